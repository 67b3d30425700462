// Package daemon is the whole program wired together: it knows every other package and is known by the command alone.
//
// It promises that everything it starts is ended by Stop, in the reverse order, and that nothing that can fail happens
// after the first connection was taken.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/apps"
	"github.com/quaymaster/quaymaster/internal/apps/process"
	"github.com/quaymaster/quaymaster/internal/certs"
	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/control"
	"github.com/quaymaster/quaymaster/internal/edge"
	"github.com/quaymaster/quaymaster/internal/edge/terminate"
	"github.com/quaymaster/quaymaster/internal/engine"
	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/handover"
	"github.com/quaymaster/quaymaster/internal/logs"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/ports"
	"github.com/quaymaster/quaymaster/internal/ports/leases"
	"github.com/quaymaster/quaymaster/internal/proxy"
	"github.com/quaymaster/quaymaster/internal/state"
)

// Options say how a daemon is run.
type Options struct {
	Config  string // what -c named: a file, a folder, or "" for the default
	Socket  string // admin socket instead of the configured one; "" = as configured
	Watch   bool   // reload when the files change
	Strict  bool   // a port that is busy at start ends the start
	Leashed bool   // stop when nobody holds a leash any more
	Version string
	Program string    // absolute path of the program, for upgrades
	Args    []string  // that it was started with
	Out     io.Writer // access log without a file; nil: os.Stdout
	Err     io.Writer // log; nil: os.Stderr
}

// The exit codes of a daemon.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitConfig = 2 // the configuration is invalid
	ExitPort   = 3 // a port could not be had before serving
	ExitCut    = 4 // stopped, but connections were cut
)

// A Daemon is one running Quaymaster. New makes it, Run serves until Stop.
type Daemon struct {
	o       Options
	log     *slog.Logger
	level   *logs.Switch
	events  *logs.Ring[api.Event]
	metrics *prometheus.Registry
	state   *state.Dir
	aside   atomic.Pointer[asideLayer] // an API layer that was left out; nil when there is none
	access  accessLog
	guard   *guard.Guard
	pools   *pools.Pools
	tickets terminate.Tickets
	leashes *leashes
	certs   *certs.Certs
	edge    *edge.Edge
	ports   *ports.Ports
	leases  *leases.Leases
	watch   *engine.Watch
	apps    *apps.Apps

	processes *process.Runner // of apps; nil before they are made

	loop    *control.Loop
	api     *api.API
	service service
	admin   plan.AdminSettings // as started with; cannot change

	phase   atomic.Pointer[phase]
	undo    undoStack
	running sync.WaitGroup  // the Run of every live package
	life    context.Context // ends when the last connection has left
	leaving context.Context // ends with the first Stop
	ask     context.CancelFunc
	hurry   context.Context // ends with Cut
	rush    context.CancelFunc
	cut     int

	upgrading sync.Mutex     // held for the whole of an upgrade
	given     chan struct{}  // closed when a successor serves
	onceGiven sync.Once      // closes it
	after     *handover.Link // to the successor, once given
	heir      *bequest       // of a process that this one replaces; nil: there is none

	mu     sync.Mutex // guards what follows
	before []*predecessor
}

// phase is what the daemon is doing, and since when.
type phase struct {
	name  string // "starting", "serving" or "draining"
	since time.Time
}

func (d *Daemon) enter(name string) { d.phase.Store(&phase{name, time.Now()}) }

// New returns a daemon that has done nothing yet.
func New(o Options) *Daemon {
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Err == nil {
		o.Err = os.Stderr
	}
	d := &Daemon{
		o: o, given: make(chan struct{}), level: &logs.Switch{},
		events: logs.NewRing[api.Event](1000), metrics: prometheus.NewRegistry(),
	}
	d.leaving, d.ask = context.WithCancel(context.Background())
	d.hurry, d.rush = context.WithCancel(context.Background())
	d.enter("starting")
	return d
}

// Run serves until Stop is called or something that cannot be mended happens, and returns the exit code. What went
// wrong before serving is printed to Options.Err as a sentence.
func (d *Daemon) Run(ctx context.Context) int {
	if code := d.start(ctx); code != ExitOK {
		d.undo.unwind(expired())
		return code
	}
	select {
	case <-d.given:
		return d.leave()
	case <-d.leaving.Done():
	case <-ctx.Done():
	}
	return d.stop()
}

// maxSocket is what the path of a unix socket may have, in bytes, on any system (sun_path).
const maxSocket = 104

// start builds and starts everything, from the floor up; each thing that must be ended is pushed on the undo stack.
func (d *Daemon) start(ctx context.Context) int {
	if err := d.inherit(); err != nil {
		return d.fail(err)
	}
	first, err := control.Load(nil, d.o.Config, nil)
	if err != nil {
		return d.fail(err)
	}
	set := &first.Plan.Settings
	d.log = logs.New(logs.Options{Level: set.LogLevel, Format: set.LogFormat, Out: d.o.Err, Switch: d.level})
	d.undo.log = d.log
	d.openService()
	d.admin = set.Admin
	if d.o.Socket != "" {
		d.admin.Socket = d.o.Socket
		if n := len(d.o.Socket); n > maxSocket {
			return d.fail(config.Errors{{
				Message: fmt.Sprintf("the path that --socket names has %d bytes, more than %d", n, maxSocket), Remedy: "choose a shorter one, such as /run/x.sock",
			}})
		}
	}
	if err = d.openState(set.StateDir); err != nil {
		return d.fail(err)
	}
	d.undo.push("state", func(context.Context) { _ = d.state.Close() })
	if err := d.state.Fault(); err != nil {
		d.log.Error("state folder", "err", err, "remedy", state.Remedy(d.state.Path(), err))
	}
	layer := d.readLayer()
	if layer != nil {
		if with, err := control.Load(nil, d.o.Config, layer); err == nil {
			first = with
		} else {
			layer = nil
			d.setAside(err)
		}
	}
	run, over := context.WithCancel(context.Background())
	d.life = run
	d.undo.push("workers", func(context.Context) { over(); d.running.Wait() })
	d.build(layer)
	if err := d.openAdmin(set); err != nil {
		return d.fail(err)
	}
	d.work(run, "guard", d.guard.Run)
	d.work(run, "memory", d.tidy)
	d.work(run, "state", d.watchState)
	d.work(run, "pools", d.pools.Run)
	d.work(run, "ports", d.ports.Run)
	d.work(run, "leases", d.leases.Run)
	d.work(run, "apps", d.apps.Run)
	d.undo.push("apps", d.closeApps)
	d.work(run, "service manager", d.report)
	first = d.withLabels(ctx, first)
	if err := d.loop.Start(ctx, first); err != nil {
		return d.fail(err)
	}
	d.work(run, "certs", d.certs.Run)
	d.work(run, "labels", d.watch.Run)
	for _, w := range first.Warnings {
		d.log.Warn("configuration", "warning", w.Error.Error())
	}
	if d.o.Leashed {
		d.work(run, "leashes", d.watchLeashes)
	}
	if d.o.Watch {
		d.work(run, "watch", d.loop.Watch)
	}
	d.enter("serving")
	d.service.Ready(d.line())
	d.takenOver()
	d.log.Info("serving", "version", d.o.Version, "pid", os.Getpid(), "config", first.Files, "ports", len(first.Plan.Ports), "routes", len(first.Plan.Routes))
	return ExitOK
}

// work runs one live package until the daemon is over.
func (d *Daemon) work(ctx context.Context, name string, run func(context.Context) error) {
	d.running.Add(1)
	go d.worker(ctx, name, run)
}

func (d *Daemon) worker(ctx context.Context, name string, run func(context.Context) error) {
	defer d.running.Done()
	if err := run(ctx); err != nil && ctx.Err() == nil {
		d.log.Error("part of the daemon ended", "part", name, "err", err)
	}
}

// build makes the live packages; none of them has a socket or a goroutine yet.
func (d *Daemon) build(layer *config.Layer) {
	d.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d.metrics.MustRegister(buildInfo(d.o.Version))
	part := func(name string) *slog.Logger { return d.log.With("component", name) }
	d.guard = guard.New(guard.Options{Log: part("guard"), Registry: d.metrics})
	d.pools = pools.New(pools.Options{
		Log: part("pools"), Registry: d.metrics,
		Ours:      d.isOurs,
		Listening: d.listeningNear,
		Key:       stickyKey(d.state.Path()),
		Wake:      func(ctx context.Context, app string) error { return d.apps.Wake(ctx, app) },
	})
	d.certs = d.newCerts(part("certs"))
	d.resumeTickets()
	d.edge = edge.New(edge.Options{
		Log: part("edge"), Guard: d.guard, Pools: d.pools, Access: &d.access,
		Proxy: &proxy.Options{
			Log: part("proxy"), Pools: d.pools, Guard: d.guard, Registry: d.metrics, Internal: d.internal, App: d.lastWords,
			Settings: func() *plan.Settings { return &d.loop.Now().Plan.Settings },
		},
		Claims: d.claims(), Certificate: d.certs.Get, Default: d.certs.Default, Challenge: d.certs.Challenge, Tickets: &d.tickets,
	})
	engines := d.newEngine()
	d.ports = ports.New(ports.Options{
		Log: part("ports").With("pid", os.Getpid()), Registry: d.metrics, Strict: d.o.Strict, Accept: d.guard.Accept,
		Serve: d.serve, Dropped: d.dropped, Events: d.portEvent,
		Inherited: d.inherited(), Held: d.heir != nil, Safe: d.safe(), Published: engines.Published, Own: d.owns,
	})
	d.leases = d.newLeases(engines, part("leases"))
	d.apps = d.newApps(engines, part("apps"))
	if d.heir != nil {
		d.apps.Inherit(d.heir.apps)
	}
	d.leashes = newLeashes(d)
	d.loop = control.New(control.Options{
		Config: d.o.Config, Layer: layer, Save: d.saveLayer, Ready: d.ready, Touched: d.edge.Touched, Event: d.event, Busy: d.changing,
		Log: part("control"), Registry: d.metrics,
		Followers: []control.Named{
			{Name: "certs", Follower: d.certs},
			{Name: "leases", Follower: d.leases},
			{Name: "settings", Follower: &settings{d: d}},
			{Name: "guard", Follower: d.guard},
			{Name: "pools", Follower: d.pools},
			{Name: "apps", Follower: d.apps},
			{Name: "edge", Follower: d.edge},
			{Name: "ports", Follower: d.ports},
		},
	})
	d.watch = d.newWatch()
	d.api = api.New(d.apiOptions(promhttp.HandlerFor(d.metrics, promhttp.HandlerOpts{})))
}

// event tells followers of /v1/events what happened.
func (d *Daemon) event(kind, object, message string) {
	e := api.Event{Time: time.Now(), Kind: kind, Object: object, Message: message}
	d.events.Add(e)
}

// fail prints why the daemon does not start and returns the exit code for it.
func (d *Daemon) fail(err error) int {
	fmt.Fprintln(d.o.Err, err.Error())
	d.refuse(err)
	d.service.Status("cannot start: " + err.Error())
	var bad config.Errors
	var busy *ports.BindError
	switch {
	case errors.As(err, &bad):
		return ExitConfig
	case errors.As(err, &busy):
		return ExitPort
	}
	return ExitFailed
}

// Reload reads the files again and opens the access log anew. The results are logged.
func (d *Daemon) Reload() {
	phase := d.phase.Load().name
	if phase == "serving" {
		_, _ = d.loop.Reload(context.Background(), control.ReloadOptions{}) // logged and kept for status by the loop
	}
	if phase != "starting" {
		if err := d.access.reopen(); err != nil {
			d.log.Error("access log", "err", err)
		}
	}
}

// Stop begins the drain; Run returns when it is over. Later calls change nothing.
func (d *Daemon) Stop() { d.ask() }

// Cut ends a drain at once: what is still open is closed.
func (d *Daemon) Cut() {
	d.Stop()
	d.rush()
}

// stop drains and ends everything, in the reverse order of start.
func (d *Daemon) stop() int {
	d.enter("draining")
	d.loop.Freeze(control.ErrFrozen)
	d.service.Stopping(d.line())
	set := d.loop.Now().Plan.Settings
	d.log.Info("stopping", "shutdown_timeout", set.ShutdownTimeout, "shutdown_delay", set.ShutdownDelay)
	if set.ShutdownDelay > 0 {
		d.wait(set.ShutdownDelay)
	}
	ctx, done := d.budget(set.ShutdownTimeout)
	defer done()
	if err := d.ports.Stop(ctx); err != nil {
		d.log.Warn("ports are still being closed", "err", err)
	}
	go d.stopPredecessors(ctx)
	return d.finish(ctx)
}

// finish ends what is left within ctx and undoes the start.
func (d *Daemon) finish(ctx context.Context) int {
	if d.cut = d.edge.Drain(ctx); d.cut > 0 {
		d.event("drain.cut", "", fmt.Sprintf("%d connections were cut", d.cut))
	}
	d.undo.unwind(ctx)
	if d.cut > 0 || d.hurry.Err() != nil {
		return ExitCut
	}
	return ExitOK
}

// wait passes time, unless Cut is called.
func (d *Daemon) wait(t time.Duration) {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-d.hurry.Done():
	}
}

// budget is a context that ends after t or with Cut.
func (d *Daemon) budget(t time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(d.hurry, t)
}

// expired is a context that is over.
func expired() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func buildInfo(version string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "quaymaster_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 })
}
