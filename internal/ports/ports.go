// Package ports holds every port the plan wants, and is the only package that listens.
//
// It promises that a port is bound before it is promised and closed only after its last use; that a connection the
// kernel has accepted is served or counted, never lost; and that whoever stands in the way of a port is named. It never
// reads a byte of a connection, never ends a process but through evict and where take_over says so, and never checks
// whether a port is free other than by binding it.
package ports

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// A Listener says where a connection came in. It is never changed: a port whose plan changes gets a new one.
type Listener struct {
	Want plan.Addr  // the wish it belongs to: the identity for the route table
	Addr plan.Addr  // what is really bound: a fallback, or the number the kernel chose for port 0
	Plan *plan.Port // the wish as of the last Commit; nil for admin listeners
}

// Options are what Ports needs from others. The zero value works, and then every connection is closed at once.
type Options struct {
	// Serve takes a connection over and closes it when done. It is called in the accept loop, so it starts a goroutine
	// of its own and returns at once; when Stop returns it has been called for every connection there was.
	Serve func(c net.Conn, l *Listener)
	// Accept asks for a slot. On false the connection is closed at once. nil admits everyone.
	Accept func() bool
	// Dropped is told about a connection that was closed because no descriptor was left for it (reason no_fd).
	Dropped func(client netip.AddrPort, l *Listener)
	// Events is told about every change, in order, from one goroutine at a time. It must not block.
	Events func(Event)

	Log      *slog.Logger
	Registry prometheus.Registerer

	// Own reports whether Quaymaster itself started a process: what take_over own may end. The start is as package holder
	// reads it, which may move by a second when the clock is set. nil: none.
	Own func(pid int, started time.Time) bool
	// Published lists the TCP ports of this host that containers publish, and whose they are: container db (podman). nil:
	// no engine.
	Published func(ctx context.Context) (map[uint16]string, error)
	// Safe keeps copies of the plan's sockets, for the process that follows if this one dies. nil: nobody does.
	Safe Safe
	// Held keeps admin and metrics from accepting until Admit: a predecessor still does.
	Held bool
	// Strict makes the first plan fail where a port is busy, instead of retrying or falling back.
	Strict bool
	// Inherited are sockets that were open when the process started, from systemd or from a process we replace.
	Inherited []listen.Inherited

	grace  time.Duration // before a holder that does not end is killed; 0 is evict.Grace
	reload time.Duration // what a reload waits for a holder; 0 is reloadTakeover
}

// Ports follows the plan with listening sockets. Use New.
type Ports struct {
	opt     Options
	metrics *metrics
	spare   listen.Spare
	wake    chan struct{}  // tells Run that the next attempt may have moved
	loops   sync.WaitGroup // accept loops
	ours    atomic.Pointer[map[uint16][]plan.Addr]
	local   localAddrs
	near    nearCache

	published published
	gate      gate // shut while a predecessor or a successor accepts for admin and metrics

	// change is held by whoever may bind or close: a change from Prepare to Retire or Abort, one attempt of the retry
	// loop, or Stop. Events leave only under it, which keeps them in order. It is taken before mu.
	change chan struct{}
	safe   map[plan.Addr]*socket // what Options.Safe has; for whoever holds change

	takeovers map[plan.Addr]*takeover // by wish; for whoever holds change

	waits map[*socket]uint64 // of Stuck alone

	mu      sync.Mutex          // guards what follows
	ports   map[plan.Addr]*port // by wish
	idle    []*socket           // inherited sockets that no port uses
	own     []*ownListener      // admin and metrics
	history history
	planned bool // a plan was committed
	stopped bool
}

var errStopped = errors.New("ports are closed: the daemon is stopping")

// New returns Ports that hold nothing but what was inherited. Run must be called for retries.
func New(o Options) *Ports {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ps := &Ports{
		opt: o, metrics: newMetrics(o.Registry), wake: make(chan struct{}, 1), change: make(chan struct{}, 1),
		ports: make(map[plan.Addr]*port), takeovers: make(map[plan.Addr]*takeover),
		published: published{ask: make(chan struct{}, 1)},
	}
	ps.ours.Store(&map[uint16][]plan.Addr{})
	if o.Held {
		ps.gate.shut()
	}
	for _, in := range o.Inherited {
		s, err := listen.Adopt(in)
		if err != nil {
			o.Log.Warn("inherited socket not usable", "name", in.Name, "fd", in.FD, "err", err)
			continue
		}
		ps.idle = append(ps.idle, newSocket(s))
	}
	return ps
}

// lock takes the right to bind and close.
func (ps *Ports) lock(ctx context.Context) error {
	select {
	case ps.change <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (ps *Ports) unlock() { <-ps.change }

// Run tries busy ports again until ctx ends. It then closes what Stop has not closed, without serving what is still
// queued, and returns when the last accept loop has ended.
func (ps *Ports) Run(ctx context.Context) error {
	ps.loops.Add(1)
	go ps.watchPublished(ctx)
	timer := time.NewTimer(maxBackoff)
	defer timer.Stop()
	for {
		timer.Reset(ps.untilDue(time.Now()))
		select {
		case <-ctx.Done():
			ps.close()
			ps.loops.Wait()
			return nil
		case <-ps.wake:
		case <-timer.C:
			ps.retry(ctx)
		}
	}
}

// Stop stops accepting for good. Every connection the kernel has accepted by then is handed to Serve; then the sockets
// are closed, those of systemd excepted, whose queue is left to whoever comes next. Admin and metrics stay open, they
// are closed by those who asked for them. When ctx ends first, what is left is still closed, by Run.
func (ps *Ports) Stop(ctx context.Context) error {
	if err := ps.lock(ctx); err != nil {
		return err
	}
	defer ps.unlock()
	ps.forget(func(plan.Addr) bool { return false })
	ps.mu.Lock()
	ps.stopped = true
	gone := ps.sorted()
	clear(ps.ports)
	ps.mu.Unlock()
	ps.secure()
	for _, p := range gone {
		for _, s := range p.socks {
			s.Stop(listen.Leave)
		}
	}
	for _, p := range gone {
		for _, s := range p.socks {
			select {
			case <-s.Stop(listen.Leave):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		ps.emit(p.released(time.Now()))
	}
	ps.index()
	return nil
}

// close ends what Stop has not ended. The connections still queued are closed, since nobody serves them any more.
func (ps *Ports) close() {
	ps.mu.Lock()
	ps.stopped = true
	socks := ps.idle
	ps.idle = nil
	for _, p := range ps.ports {
		socks = append(socks, p.socks...)
	}
	clear(ps.ports)
	ps.mu.Unlock()
	for _, s := range socks {
		s.Stop(listen.Drop)
	}
	ps.loops.Wait()
	ps.spare.Close()
	ps.index()
}

// sorted lists the ports by address; mu is held.
func (ps *Ports) sorted() []*port {
	out := make([]*port, 0, len(ps.ports))
	for _, p := range ps.ports {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *port) int { return a.plan.Addr.Compare(b.plan.Addr) })
	return out
}

// run starts the accept loop of s.
func (ps *Ports) run(s *socket) {
	s.Start()
	ps.loops.Add(1)
	go ps.accept(s)
}

// poke makes Run look at its clock again.
func (ps *Ports) poke() {
	select {
	case ps.wake <- struct{}{}:
	default:
	}
}
