// Package apps runs every app of the plan, or says why not.
//
// It promises that an app has one owner, whatever asks at once; that where it is ready is told to pools only while it is,
// and that they hear first when it is to end; that each change of its state has a reason, which is an event, a metric and a
// line of the log; and that an app which runs is found again by the next daemon and never started twice. It starts no
// process and no container by itself (a run.Runner does), listens nowhere, and never ends what it did not start.
package apps

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// A Lease is a port of an app, as ports/leases has it.
type Lease interface {
	Port() uint16
	Handoff() error                    // the app is about to bind it
	Reclaim(ctx context.Context) error // the app has let go of it
	Release(ctx context.Context) error // it is wanted no more
}

// Ports leases ports. A *run.PortError says that somebody else has the port of the app or, with port 0, that none is left.
type Ports interface {
	Lease(ctx context.Context, app string, another bool) (Lease, error)
	Release(ctx context.Context, app string) error // by name; no error where there is none
}

// Pools are those who send requests and connections to apps.
type Pools interface {
	// SetMembers says where the ready instances of an app are reached.
	SetMembers(app string, at []plan.Addr)
	// Use is how many use an app at this moment, and when it was used last.
	Use(app string) (n int, last time.Time)
	// Unused returns when nobody uses the instance any more, which is no member any more, or with ctx.
	Unused(ctx context.Context, app string, at plan.Addr) error
}

// A Store keeps small files durably, as internal/state does.
type Store interface {
	Read(name string) ([]byte, error)
	Write(name string, data []byte) error
}

// Options are what Apps need of others.
type Options struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	Store    Store
	Runner   func(*plan.App) run.Runner // nil: nobody runs such an app here
	Ports    Ports
	Pools    Pools
	// Listen opens a listening socket that is blocking and nobody accepts on; the caller closes it.
	Listen func(at plan.Addr) (fd int, err error)
	// Sockets is the folder for the unix sockets of apps, and Output the one for the files of their output.
	Sockets, Output string
	Events          func(kind, object, message string) // must not block
	Holder          func(port uint16) string           // who listens there, for people; nil: nobody knows
	Served          func(at plan.Addr) plan.Addr       // where a port of the plan is served now; nil: there
	// Evict ends who listens on the port of an app, as far as its entry allows, and returns when they are gone, or why they
	// are not; ended: somebody was signalled. nil: nobody is.
	Evict func(ctx context.Context, a *plan.App, port uint16) (ended bool, err error)
}

// Apps are all apps of the plan. Use New, and Run.
type Apps struct {
	opt     Options
	metrics *metrics
	life    context.Context // ends with Run's
	end     context.CancelFunc
	work    sync.WaitGroup // every goroutine of an app
	records records

	mu     sync.Mutex // guards what follows
	apps   map[string]*app
	urls   map[string]*address
	first  bool // no plan was committed yet
	closed bool // nothing is started any more

	recovered bool     // the records were read
	inherited []Socket // does not change once that was done
}

// New returns Apps that run nothing.
func New(o Options) *Apps {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Events == nil {
		o.Events = func(string, string, string) {}
	}
	s := &Apps{opt: o, apps: make(map[string]*app), first: true}
	s.life, s.end = context.WithCancel(context.Background())
	s.records.start(o.Store, o.Log)
	s.metrics = newMetrics(s, o.Registry)
	return s
}

// Run keeps the records until ctx ends. The apps go on: Stop ends them, and Leave lets go of them.
func (s *Apps) Run(ctx context.Context) error {
	s.records.run(ctx)
	s.end()
	s.work.Wait()
	return nil
}

// app is the app of that name, or nil.
func (s *Apps) app(name string) *app {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.apps[name]
}

// all are the apps by name.
func (s *Apps) all() []*app {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*app, 0, len(s.apps))
	for _, a := range s.apps {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *app) int { return compare(a.name, b.name) })
	return out
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// An UnknownError says that there is no app of that name.
type UnknownError struct{ Name string }

func (e *UnknownError) Error() string { return fmt.Sprintf("there is no app %s", e.Name) }
