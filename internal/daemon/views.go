package daemon

import (
	"errors"
	"net/http"
	"os"
	"slices"
	"sort"
	"strconv"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/ports"
)

// maxShown bounds the connections that one answer lists.
const maxShown = 10_000

// apiOptions wires the API's questions to those who know the answers.
func (d *Daemon) apiOptions(metrics http.Handler) api.Options {
	return api.Options{
		Status:       d.status,
		Ready:        func() bool { return d.phase.Load().name == "serving" },
		Control:      (*changes)(d),
		Editor:       (*changes)(d),
		Configs:      (*changes)(d),
		Ports:        (*portView)(d),
		Leases:       (*leaseView)(d),
		Leashes:      d.leashes,
		Certificates: (*certView)(d),
		Apps:         (*appView)(d),
		Upstreams:    d.upstreams,
		Connections:  d.connections,
		Explain:      d.explain,
		Events:       d.events,
		Stop:         d.Stop,
		Upgrade:      d.Upgrade,
		Metrics:      metrics,
		Admin:        d.admin,
		Log:          d.log.With("component", "api"),
	}
}

// status is the daemon as a whole: draining, starting, degraded while something the plan wants is missing, or serving.
func (d *Daemon) status() api.Status {
	ph := d.phase.Load()
	s := api.Status{
		PID: os.Getpid(), Version: d.o.Version, State: ph.name, Since: ph.since,
		Config: d.configStatus(), Problems: d.problems(),
	}
	s.Before = d.beforeView()
	g := d.guard.Status()
	s.Connections = api.Slots{Active: g.Active, Max: g.Max}
	for _, p := range s.Problems {
		if s.State == "serving" && p.Kind != "config" && p.Kind != "target" && p.Kind != "warning" && p.Kind != "label" && p.Kind != "engine" {
			s.State = "degraded"
		}
	}
	return s
}

func (d *Daemon) configStatus() api.ConfigStatus {
	now := d.loop.Now()
	if now == nil {
		return api.ConfigStatus{Files: []string{}}
	}
	s := api.ConfigStatus{Files: now.Files, Revision: now.Revision, LoadedAt: now.LoadedAt, Error: now.Error}
	if until := d.loop.Unconfirmed(); !until.IsZero() {
		s.ConfirmBy = &until
	}
	return s
}

// recent is how long a failure of a target that is up again is still shown.
const recent = time.Minute

// problems lists what is not as the plan wants it, in a fixed order.
func (d *Daemon) problems() []api.Trouble {
	out := []api.Trouble{}
	if now := d.loop.Now(); now != nil && now.Error != "" {
		out = append(out, api.Trouble{
			Kind: "config", Object: now.Revision, Message: "the newest reload was refused: " + now.Error,
			Remedy: "mend the configuration and run `quaymaster reload`; the one before goes on serving",
		})
	}
	out = append(out, d.stateTroubles()...)
	for _, p := range d.ports.Status() {
		if t := portTrouble(p); t != nil {
			out = append(out, *t)
		}
	}
	out = append(out, d.leaseTroubles()...)
	out = append(out, d.appTroubles()...)
	out = append(out, d.certTroubles()...)
	out = append(out, d.labelTroubles()...)
	for _, u := range d.pools.Status() {
		for _, t := range u.Targets {
			var message string
			switch {
			case t.State == pools.Away: // the app itself says what it does
				continue
			case targetState(string(t.State)) == "down":
				message = "target is down: "
			case time.Since(t.Failed) < recent:
				message = "target failed " + time.Since(t.Failed).Round(time.Second).String() + " ago: "
			default:
				continue
			}
			out = append(out, api.Trouble{
				Kind: "target", Object: u.Name + " " + t.Target, Message: message + t.Reason,
				Remedy: "start it, or take it out of upstream " + u.Name,
			})
		}
	}
	return out
}

func portTrouble(p ports.Status) *api.Trouble {
	switch p.State {
	case ports.Retrying, ports.Failed:
		return &api.Trouble{Kind: "port", Object: p.Wanted, Message: p.Error, Remedy: "`quaymaster ports who " + strconv.Itoa(int(p.Port)) + "` shows who has it; it is taken by itself when it becomes free"}
	case ports.Fallback:
		return &api.Trouble{
			Kind: "port", Object: p.Wanted, Message: "port " + p.Wanted + " was busy and " + p.Address + ":" + strconv.Itoa(int(p.Port)) + " serves instead",
			Remedy: "free " + p.Wanted + " and reload",
		}
	}
	if p.Warning != "" {
		return &api.Trouble{Kind: "warning", Object: p.Wanted, Message: p.Warning, Remedy: "publish the container at another port, or listen on another one here"}
	}
	return nil
}

// portView shows the ports.
type portView Daemon

// Ports lists every socket held or wanted.
func (v *portView) Ports() []api.Port {
	list := v.ports.Status()
	out := make([]api.Port, 0, len(list))
	for _, p := range list {
		out = append(out, apiPort(p))
	}
	return append(out, (*Daemon)(v).leasePorts()...)
}

// History is what happened to a port, oldest first.
func (v *portView) History(port uint16) []api.PortEvent {
	list := v.ports.History(port)
	out := make([]api.PortEvent, 0, len(list))
	for _, e := range list {
		out = append(out, api.PortEvent{Time: e.Time, State: string(e.State), Address: e.Address, Message: e.Reason})
	}
	out = append(out, (*Daemon)(v).leaseHistory(port)...)
	slices.SortStableFunc(out, func(a, b api.PortEvent) int { return a.Time.Compare(b.Time) })
	return out
}

func apiPort(p ports.Status) api.Port {
	routes := p.Routes
	if routes == nil {
		routes = []string{}
	}
	a := api.Port{
		Proto: p.Proto, Address: p.Address, Port: int(p.Port), Wanted: p.Wanted, State: string(p.State), Since: p.Since,
		Source: p.Source, Origin: p.Origin, Routes: routes, App: p.App, Error: p.Error, Warning: p.Warning,
		Holder: api.HolderOf(p.Holder),
	}
	if !p.NextTry.IsZero() {
		next := p.NextTry
		a.NextTry = &next
	}
	return a
}

// targetState is the state of a target as the contract has it: whether connections go there.
func targetState(s string) string {
	if s == "down" || s == "out" || s == "away" {
		return "down"
	}
	return "up"
}

func (d *Daemon) upstreams() []api.Upstream {
	list := d.pools.Status()
	out := make([]api.Upstream, 0, len(list))
	for _, u := range list {
		a := api.Upstream{Name: u.Name, Targets: []api.Target{}}
		for _, t := range u.Targets {
			a.Targets = append(a.Targets, api.Target{
				Target: t.Target, State: targetState(string(t.State)), Reason: t.Reason, Since: t.Since,
				Active: t.Active, Idle: t.Idle, Weight: t.Weight,
			})
		}
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (d *Daemon) connections() []api.Connection {
	list, _ := d.edge.Connections(maxShown)
	out := make([]api.Connection, 0, len(list))
	for _, c := range list {
		out = append(out, api.Connection{
			ID: strconv.FormatUint(c.ID, 10), Client: c.Client, Local: c.Local, State: c.State, TLS: c.TLS, Name: c.Name,
			Since: c.Since, Route: c.Route, Target: c.Target,
		})
	}
	return out
}

// problemOf is the answer for an error of control or config.
func problemOf(err error) error {
	var bad config.Errors
	var held *config.Conflict
	switch {
	case err == nil:
		return nil
	case errors.As(err, &bad):
		return &api.Problem{
			Type: api.Invalid, Title: "Invalid configuration", Status: http.StatusUnprocessableEntity,
			Detail: "the configuration has " + strconv.Itoa(len(bad)) + " fault(s); nothing was changed", Errors: findings(bad),
		}
	case errors.As(err, &held):
		return api.HeldByFile(held.Kind, held.Name, held.Where)
	}
	return &api.Problem{
		Type: api.Unavailable, Title: "The change could not be had", Status: http.StatusConflict,
		Detail: err.Error() + "; nothing was changed, the configuration before goes on serving",
		Errors: []api.Finding{{Message: err.Error()}},
	}
}

func findings(list config.Errors) []api.Finding {
	out := make([]api.Finding, 0, len(list))
	for _, e := range list {
		out = append(out, api.Finding{File: e.File, Line: e.Line, Col: e.Col, Path: e.Path, Message: e.Message, Remedy: e.Remedy})
	}
	return out
}

func items(list []plan.Change) []api.Item {
	out := make([]api.Item, 0, len(list))
	for _, c := range list {
		out = append(out, api.Item{Kind: c.Kind, Name: c.Name, Change: string(c.Op), Detail: c.Detail})
	}
	return out
}

func confirmBy(now time.Time, after time.Duration) *time.Time {
	if after <= 0 {
		return nil
	}
	t := now.Add(after)
	return &t
}
