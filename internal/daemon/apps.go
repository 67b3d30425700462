package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/apps"
	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/engine"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/leases"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
	"github.com/quaymaster/quaymaster/internal/proxy"
)

// appsGrace is what apps get at a stop whose time was used up by connections.
const appsGrace = 5 * time.Second

// newApps wires apps to those who run them, lease them ports, and send requests to them.
func (d *Daemon) newApps(e *engine.Engine, log *slog.Logger) *apps.Apps {
	return apps.New(apps.Options{
		Log: log, Registry: d.metrics, Store: d.state, Runner: d.runners(e, log), Ports: (*appPorts)(d), Pools: d.pools, Listen: listenFor,
		Sockets: filepath.Join(filepath.Dir(d.admin.Socket), "apps"), Output: filepath.Join(d.state.Path(), "output"),
		Events: d.event, Holder: whoListens, Evict: d.evictFor, Served: d.ports.Served,
	})
}

// listenFor opens a listening socket for an app: it is blocking, as programs expect that did not make it, and nobody here
// accepts on it.
func listenFor(at plan.Addr) (int, error) {
	s, err := listen.Bind(at, false)
	if err != nil {
		return -1, err
	}
	defer s.Release()
	fd, err := s.Copy()
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// whoListens names who has a port, for a reason.
func whoListens(port uint16) string {
	found := listeners(port)
	if len(found) == 0 {
		return ""
	}
	name := found[0].Command
	if name == "" {
		name = found[0].Exe
	}
	return fmt.Sprintf("%s (pid %d)", name, found[0].PID)
}

// appPorts leases ports to apps.
type appPorts Daemon

// Lease is the port that an app has, or another one.
func (p *appPorts) Lease(ctx context.Context, app string, another bool) (apps.Lease, error) {
	l, _, err := p.leases.Take(ctx, leases.Want{Name: app, New: another})
	var busy *leases.BusyError
	var none *leases.ExhaustedError
	switch {
	case errors.As(err, &none):
		return nil, &run.PortError{Text: err.Error()}
	case errors.As(err, &busy):
		return nil, &run.PortError{Port: busy.Port, Text: busy.Who}
	case err != nil:
		return nil, err
	}
	return l, nil
}

// Release gives the port of an app back.
func (p *appPorts) Release(ctx context.Context, app string) error {
	_, err := p.leases.Release(ctx, app)
	return err
}

// closeApps ends the apps of a daemon that stops. Those of one that was replaced go on.
func (d *Daemon) closeApps(ctx context.Context) {
	select {
	case <-d.given:
		return
	default:
	}
	if ctx.Err() != nil && d.hurry.Err() == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(d.hurry, appsGrace)
		defer cancel()
	}
	if err := d.apps.Close(ctx); err != nil {
		d.log.Error("apps", "err", err)
	}
}

// appView is how the API sees and moves apps.
type appView Daemon

// Apps lists all by name.
func (v *appView) Apps() []api.App {
	list := v.apps.Status()
	out := make([]api.App, 0, len(list))
	for _, a := range list {
		out = append(out, apiApp(a))
	}
	return out
}

// App is one of them.
func (v *appView) App(name string) (*api.App, error) { return v.answer(v.apps.One(name)) }

// Start starts one.
func (v *appView) Start(ctx context.Context, name string) (*api.App, error) {
	return v.answer(v.apps.Start(ctx, name))
}

// Stop ends one.
func (v *appView) Stop(ctx context.Context, name string) (*api.App, error) {
	return v.answer(v.apps.Stop(ctx, name))
}

// Restart ends and starts one.
func (v *appView) Restart(ctx context.Context, name string, newPort bool) (*api.App, error) {
	return v.answer(v.apps.Restart(ctx, name, newPort))
}

// Output is what one has said.
func (v *appView) Output(name string) (api.AppOutput, error) {
	o, err := v.apps.Output(name)
	if err != nil {
		_, err = v.answer(apps.Status{}, err)
		return nil, err
	}
	return appOutput{o}, nil
}

// answer words an error. A status that came beside one is kept.
func (v *appView) answer(s apps.Status, err error) (*api.App, error) {
	var unknown *apps.UnknownError
	if errors.As(err, &unknown) {
		return nil, &api.Problem{Title: "No such app", Status: http.StatusNotFound, Detail: err.Error() + "; \"quaymaster apps\" lists those there are"}
	}
	a := apiApp(s)
	return &a, err
}

type appOutput struct{ o *apps.Output }

func (o appOutput) Last(n int) []api.AppLine {
	list := o.o.Last(n)
	out := make([]api.AppLine, 0, len(list))
	for _, l := range list {
		out = append(out, api.AppLine(l))
	}
	return out
}

func (o appOutput) End() uint64 { return o.o.End() }

func (o appOutput) Next(ctx context.Context, from uint64) (api.AppLine, error) {
	l, err := o.o.Next(ctx, from)
	return api.AppLine(l), err
}

func apiApp(s apps.Status) api.App {
	a := api.App{
		Name: s.Name, State: string(s.State), Reason: s.Reason, Since: s.Since, Source: string(s.Source), PID: s.PID, Container: s.Container,
		Port: int(s.Port), Path: s.Path, URL: s.URL, Restarts: s.Restarts, Memory: s.Memory, CPU: s.CPU.Seconds(),
	}
	if !s.Began.IsZero() {
		a.Uptime = time.Since(s.Began).Seconds()
	}
	if s.Last != nil {
		a.LastExit = &api.AppExit{At: s.Last.At, Reason: s.Last.Text, Uptime: s.Last.Uptime.Seconds()}
	}
	return a
}

// lastWords is what a page says of an app. Only the pages of previews ask for its lines.
func (d *Daemon) lastWords(name string, lines int) proxy.App {
	s, err := d.apps.One(name)
	if err != nil {
		return proxy.App{}
	}
	a := proxy.App{State: string(s.State), Reason: s.Reason, Sleeps: s.OnRequest}
	if lines == 0 {
		return a
	}
	if o, err := d.apps.Output(name); err == nil {
		for _, l := range o.Last(2 * lines) { // what we say of the app stands among them
			if l.Stream != "quaymaster" {
				a.Lines = append(a.Lines, l.Text)
			}
		}
		a.Lines = a.Lines[max(0, len(a.Lines)-lines):]
	}
	return a
}

// appTroubles are apps that do not do what they should.
func (d *Daemon) appTroubles() []api.Trouble {
	var out []api.Trouble
	for _, a := range d.apps.Status() {
		switch a.State {
		case apps.Unknown:
			out = append(out, api.Trouble{
				Kind: "app", Object: a.Name, Message: string(a.State) + ": " + a.Reason,
				Remedy: "see whether what the message names runs; the app is found again by itself",
			})
		case apps.Unhealthy, apps.BackingOff, apps.CrashLooping, apps.Failed:
			out = append(out, api.Trouble{
				Kind: "app", Object: a.Name, Message: string(a.State) + ": " + a.Reason,
				Remedy: "`quaymaster apps logs " + a.Name + "` shows what it says; mend it, and `quaymaster apps start " + a.Name + "`",
			})
		}
	}
	return out
}
