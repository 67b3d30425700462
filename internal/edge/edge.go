// Package edge is one accepted connection from its first byte to its last, in whatever protocol it speaks.
//
// It promises that every connection it was given ends in one of the known ways, is counted while it lives, and goes on
// under the route it began with when the plan changes. It never opens a port, and it never decides who a target is.
package edge

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/edge/http1"
	"github.com/quaymaster/quaymaster/internal/edge/terminate"
	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/proxy"
	"github.com/quaymaster/quaymaster/internal/route"
)

// Options are what an Edge needs.
type Options struct {
	Log    *slog.Logger
	Guard  *guard.Guard
	Pools  *pools.Pools
	Proxy  *proxy.Options
	Claims route.Claims // by the name of an Internal action
	Access io.Writer    // access log, one Write a line; nil writes none

	// Certificate is what a client is shown whose connection fell under a policy with that source. Default is for one that
	// names nobody known, Challenge for one that validates a name by tls-alpn-01. No certificate, or an error, is an alert.
	Certificate func(ctx context.Context, hello *tls.ClientHelloInfo, src plan.CertSource) (*tls.Certificate, error)
	Default     func(hello *tls.ClientHelloInfo) *tls.Certificate
	Challenge   func(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	// Tickets seal the sessions of clients that come back; nil: ones of its own.
	Tickets *terminate.Tickets
}

// An Edge serves connections by the plan committed last.
type Edge struct {
	o      Options
	h1     *http1.Options // shared by all connections
	tls    *terminate.Options
	access accessLog
	hellos hellos
	failed failures
	snap   atomic.Pointer[snapshot]
	nextID atomic.Uint64

	leaving  atomic.Bool     // answers end their connection; the last one that leaves closes quiet
	draining atomic.Bool     // and idle ones are not waited for
	dialling context.Context // what targets of tunnels are dialled under; abandon ends it
	abandon  context.CancelFunc

	mu     sync.Mutex // guards what follows
	first  *conn      // of the list of connections
	count  int
	timers map[*time.Timer]bool // of drains of removed routes
	quiet  chan struct{}        // closed when draining and the last connection has left
}

// snapshot is one committed plan, compiled. routes[i] acts for plan.Routes[i].
type snapshot struct {
	plan     *plan.Plan
	table    *route.Table
	routes   []*proxy.Route
	policies *terminate.Policies
	h1       http1.Settings
}

// New returns an Edge without routes.
func New(o Options) *Edge {
	e := &Edge{o: o, quiet: make(chan struct{})}
	e.access.out = o.Access
	if e.o.Tickets == nil {
		e.o.Tickets = new(terminate.Tickets)
	}
	e.tls = &terminate.Options{
		Certificate: o.Certificate, Default: o.Default, Challenge: o.Challenge, Tickets: e.o.Tickets, Protocols: spoken,
	}
	e.dialling, e.abandon = context.WithCancel(context.Background())
	e.h1 = &http1.Options{Handle: handle, Settings: e.settings, Leaving: e.leaving.Load, Draining: e.draining.Load, Refuse: refuseHead}
	return e
}

func (e *Edge) settings() http1.Settings { return e.snap.Load().h1 }

// step is a prepared snapshot. made are the routes that only it has, gone those that only the old one had.
type step struct {
	e          *Edge
	next       *snapshot
	made, gone []*proxy.Route
}

// Prepare compiles the table and makes the living side of every route that is new or changed. A route that did not
// change keeps its living side, with all that is counted there.
func (e *Edge) Prepare(ctx context.Context, p *plan.Plan) (plan.Step, error) {
	old := e.snap.Load()
	if old == nil {
		old = &snapshot{}
	}
	table, err := route.CompileFrom(ctx, old.table, p, e.o.Claims)
	if err != nil {
		return nil, err
	}
	policies, err := terminate.Prepare(e.tls, old.policies, p)
	if err != nil {
		return nil, err
	}
	s := &step{e: e, next: &snapshot{
		plan: p, table: table, policies: policies, routes: make([]*proxy.Route, len(p.Routes)),
		h1: http1.Settings{
			RequestHeader: p.Settings.Timeouts.RequestHeader, KeepAlive: p.Settings.Timeouts.KeepAlive,
			BodyStall: p.Settings.Timeouts.BodyStall, MaxHeader: p.Settings.MaxHeaderBytes,
		},
	}}
	was := old.routes
	var breath plan.Breath
	defer breath.End()
	for i, r := range p.Routes {
		breath.Take()
		for len(was) > 0 && was[0].Plan.Name < r.Name {
			s.gone, was = append(s.gone, was[0]), was[1:]
		}
		if len(was) > 0 && was[0].Plan.Name == r.Name {
			live := was[0]
			was = was[1:]
			if live.Plan == r && live.Current() {
				s.next.routes[i] = live
				continue
			}
			s.gone = append(s.gone, live)
		}
		live, err := proxy.NewRoute(r, e.o.Proxy)
		if err != nil {
			s.Abort()
			return nil, err
		}
		s.next.routes[i] = live
		s.made = append(s.made, live)
	}
	s.gone = append(s.gone, was...)
	return s, nil
}

// Commit shows the new table: the next request of every connection, old or new, goes by it.
func (s *step) Commit() { s.e.snap.Store(s.next) }

// Retire lets go of the routes that are no longer in the plan and applies their on_remove.
func (s *step) Retire() {
	s.e.depart(s.gone, s.next.plan)
	for _, r := range s.gone {
		r.Life.Drop()
	}
}

// Abort lets go of what only this step had.
func (s *step) Abort() {
	for _, r := range s.made {
		r.Life.Drop()
	}
}

// Connection is what `GET /v1/connections` shows of one connection.
type Connection struct {
	ID     uint64    `json:"id"`
	Client string    `json:"client"`
	Local  string    `json:"local"`
	State  string    `json:"state"`
	TLS    string    `json:"tls,omitempty"`         // version, where it ends here
	Name   string    `json:"server_name,omitempty"` // that the client asked for
	Route  string    `json:"route,omitempty"`
	Target string    `json:"target,omitempty"`
	Since  time.Time `json:"since"`
}

// Connections lists at most max connections, the newest first, and how many there are.
func (e *Edge) Connections(max int) ([]Connection, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Connection
	for c := e.first; c != nil && len(out) < max; c = c.next {
		out = append(out, c.describe())
	}
	return out, e.count
}

// Touched counts the connections that stand on a route which is gone or changed in next.
func (e *Edge) Touched(from, next *plan.Plan) int {
	same := make(map[*plan.Route]bool, len(next.Routes))
	for _, r := range next.Routes {
		same[r] = true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for c := e.first; c != nil; c = c.next {
		if r := c.route.Load(); r != nil && !same[r.Plan] {
			n++
		}
	}
	return n
}

// Table is the routing table in force, nil before the first Commit.
func (e *Edge) Table() *route.Table {
	if s := e.snap.Load(); s != nil {
		return s.table
	}
	return nil
}

func (e *Edge) add(c *conn) {
	e.mu.Lock()
	c.next = e.first
	if c.next != nil {
		c.next.prev = c
	}
	e.first = c
	e.count++
	e.mu.Unlock()
}

func (e *Edge) remove(c *conn) {
	e.mu.Lock()
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		e.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
	e.count--
	if e.count == 0 && e.leaving.Load() {
		e.signalQuiet()
	}
	e.mu.Unlock()
}

// signalQuiet closes quiet once. mu is held.
func (e *Edge) signalQuiet() {
	select {
	case <-e.quiet:
	default:
		close(e.quiet)
	}
}

// addrPort is the address of a TCP connection's end, never v4-mapped, and the zero value for any other network.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
