package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/engine"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports"
	"github.com/quaymaster/quaymaster/internal/ports/leases"
	"github.com/quaymaster/quaymaster/internal/state"
)

// newEngine asks the container engines that the plan in force names.
func (d *Daemon) newEngine() *engine.Engine {
	return engine.New(engine.Options{Settings: func() plan.EngineSettings {
		if now := d.loop.Now(); now != nil {
			return now.Plan.Settings.Engine
		}
		return plan.EngineSettings{Kind: "auto"}
	}})
}

// newLeases wires leases to the state folder, to the container engines and to the events.
func (d *Daemon) newLeases(e *engine.Engine, log *slog.Logger) *leases.Leases {
	return leases.New(leases.Options{
		Store: d.state, Published: e.Published, Events: d.leaseEvent, Log: log, Registry: d.metrics,
		Runs: func(name string, port uint16) bool { return d.heir != nil || d.apps.Has(name, port) },
	})
}

// leaseEvent tells followers of events what happened to a leased port.
func (d *Daemon) leaseEvent(e leases.Event) {
	kind := "port.leased"
	switch e.State {
	case leases.Released:
		kind = "port.released"
	case leases.Busy:
		kind = "port.held"
	}
	message := "app " + e.Name
	if e.Reason != "" {
		message += ": " + e.Reason
	}
	d.event(kind, plan.Addr{Port: e.Port}.String(), message)
}

// leasePorts lists the leased ports as ports.
func (d *Daemon) leasePorts() []api.Port {
	var out []api.Port
	for _, l := range d.leases.Status() {
		p := api.Port{
			Proto: "tcp", Address: "*", Port: int(l.Port), Wanted: plan.Addr{Port: l.Port}.String(), State: "leased",
			Since: l.Since, Source: "lease", Origin: "own", Routes: []string{}, App: l.Name, Error: l.Error,
		}
		if l.State == leases.Busy {
			p.State = string(ports.Retrying)
		}
		if !l.NextTry.IsZero() {
			p.NextTry = &l.NextTry
		}
		out = append(out, p)
	}
	return out
}

// leaseHistory is what became of the leases of a port.
func (d *Daemon) leaseHistory(port uint16) []api.PortEvent {
	var out []api.PortEvent
	for _, e := range d.leases.History(port) {
		state := "leased"
		switch e.State {
		case leases.Released:
			state = string(ports.Released)
		case leases.Busy:
			state = string(ports.Retrying)
		}
		message := "app " + e.Name
		if e.Reason != "" {
			message += ": " + e.Reason
		}
		out = append(out, api.PortEvent{Time: e.Time, State: state, Address: "*", Message: message})
	}
	return out
}

// leaseTroubles are leases that cannot be read, and those whose port somebody else has.
func (d *Daemon) leaseTroubles() []api.Trouble {
	var out []api.Trouble
	if err := d.leases.Fault(); err != nil {
		out = append(out, api.Trouble{Kind: "state", Object: d.state.Path(), Message: err.Error(), Remedy: "mend or remove the file, and restart quaymaster"})
	}
	for _, l := range d.leases.Status() {
		if l.State == leases.Busy {
			out = append(out, api.Trouble{Kind: "lease", Object: l.Name, Message: l.Error, Remedy: "`quaymaster ports lease " + l.Name + " --new` takes another port"})
		}
	}
	return out
}

// leaseView is how the API sees and changes leases.
type leaseView Daemon

// Leases lists all by port.
func (v *leaseView) Leases() []api.Lease {
	list := v.leases.Status()
	out := make([]api.Lease, 0, len(list))
	for _, l := range list {
		out = append(out, apiLease(l))
	}
	return out
}

// Lease gives a port to a process that the caller starts: it is not kept bound, since that process is to bind it.
func (v *leaseView) Lease(ctx context.Context, name string, another bool) (*api.Lease, error) {
	l, made, err := v.leases.Take(ctx, leases.Want{Name: name, New: another, Promise: true})
	if err != nil {
		return nil, v.problem(err)
	}
	out := apiLease(l.Status())
	if out.New = made; !made && out.State == string(leases.Promised) {
		out.Listeners = listeners(l.Port())
	}
	return &out, nil
}

// Release gives a port back.
func (v *leaseView) Release(ctx context.Context, name string) (*api.Lease, error) {
	var was api.Lease
	for _, s := range v.leases.Status() {
		if s.Name == name {
			was = apiLease(s)
		}
	}
	ok, err := v.leases.Release(ctx, name)
	switch {
	case err != nil:
		return nil, v.problem(err)
	case !ok:
		return nil, &api.Problem{Title: "No such lease", Status: http.StatusNotFound, Detail: "no port is leased to " + name}
	}
	was.Name, was.State, was.Error, was.NextTry = name, string(leases.Released), "", nil
	was.Listeners = listeners(uint16(was.Port))
	return &was, nil
}

func apiLease(s leases.Status) api.Lease {
	l := api.Lease{Name: s.Name, Port: int(s.Port), State: string(s.State), Since: s.Since, Error: s.Error}
	if !s.NextTry.IsZero() {
		l.NextTry = &s.NextTry
	}
	return l
}

// listeners are the processes that listen on a port. Where that cannot be looked up there are none.
func listeners(port uint16) []api.Holder {
	found, err := api.Who(port)
	if err != nil {
		return nil
	}
	var out []api.Holder
	for _, l := range found {
		if l.Proto == "tcp" {
			out = append(out, *l.Holder)
		}
	}
	return out
}

// problem is the answer for an error of leases.
func (v *leaseView) problem(err error) error {
	var name *leases.NameError
	var unsaved *leases.StoreError
	p := &api.Problem{Type: api.Unavailable, Title: "The port could not be leased", Status: http.StatusConflict, Detail: err.Error()}
	switch {
	case errors.As(err, &name):
		p.Type, p.Title, p.Status = "", "Bad name", http.StatusBadRequest
	case errors.As(err, &unsaved):
		p.Detail += "; " + state.Remedy(v.state.Path(), unsaved.Err)
	case errors.Is(err, leases.ErrStarting), errors.Is(err, leases.ErrFrozen):
		p.Type, p.Title, p.Status = "", "Not now", http.StatusServiceUnavailable
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return p
}
