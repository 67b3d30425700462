// Package guard says who may come in, how many at once, and how fast.
//
// It promises that a freed slot can be used at once, that counts stay right whatever arrives at the same time, and that
// strangers can make it neither remember nor write without bound. It never closes, delays or answers anything: whoever
// asked does that.
package guard

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Reason is why something was refused: a label of connections_rejected_total.
type Reason string

// The reasons there are.
const (
	MaxConnections  Reason = "max_connections"
	PerIP           Reason = "per_ip"
	PerRoute        Reason = "per_route"
	Rate            Reason = "rate"
	Denied          Reason = "denied"
	NoRoute         Reason = "no_route"
	UnknownProtocol Reason = "unknown_protocol"
	HelloTimeout    Reason = "hello_timeout"
	HeaderTimeout   Reason = "header_timeout"
	BadRequest      Reason = "bad_request"
	TLS             Reason = "tls"
	NotAllowed      Reason = "not_allowed"
	PrivateAddress  Reason = "private_address"
	Loop            Reason = "loop"
	ProxyHeader     Reason = "proxy_header"
	NoFD            Reason = "no_fd"
	Draining        Reason = "draining"
)

func (r Reason) String() string { return string(r) }

// reasons lists all of them.
var reasons = [...]Reason{
	MaxConnections, PerIP, PerRoute, Rate, Denied, NoRoute, UnknownProtocol, HelloTimeout, HeaderTimeout, BadRequest, TLS,
	NotAllowed, PrivateAddress, Loop, ProxyHeader, NoFD, Draining,
}

// Options are what a Guard needs. The zero value works.
type Options struct {
	Log      *slog.Logger          // nil: silent
	Registry prometheus.Registerer // nil: no metrics are shown
	Limit    func() uint64         // soft limit of open files; nil: the process's own
}

// A Guard counts the connections of the whole process. It follows the plan: a limit that changes binds whoever comes
// later and forgets nobody who is there.
type Guard struct {
	log    *slog.Logger
	limit  func() uint64
	start  time.Time // monotonic zero of every clock here
	active atomic.Int64
	max    atomic.Int64
	perIP  atomic.Int64 // 0: off
	rate   atomic.Pointer[rate]
	peers  table
	refusals
	metrics *metrics

	mu      sync.Mutex                     // guards what follows
	shares  map[string]weak.Pointer[share] // by route, what its gates have in common
	sweep   int                            // number of shares at which the dead are looked for
	wanted  int                            // max_connections as configured
	settled ceiling                        // of the last committed plan, so that only a change is logged
}

// New returns a Guard that admits as many connections as the open files allow, until a plan says otherwise.
func New(o Options) *Guard {
	g := &Guard{log: o.Log, limit: o.Limit, start: time.Now(), shares: map[string]weak.Pointer[share]{}}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if g.limit == nil {
		g.limit = openFiles
	}
	g.peers.init(idlePeers)
	g.sources.init(idleSources)
	g.max.Store(int64(ceilingOf(0, g.limit(), 0).max))
	g.metrics = newMetrics(o.Registry, g)
	return g
}

// openFiles is the soft limit of open files of this process.
func openFiles() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return uint64(max(0, l.Cur)) //nolint:unconvert // the type differs between systems
}

// now is the time since the guard was made.
func (g *Guard) now() int64 { return int64(time.Since(g.start)) }

// Accept takes a slot for a connection. It reports false, and counts the refusal, when none is free.
func (g *Guard) Accept() bool {
	for {
		n := g.active.Load()
		if n >= g.max.Load() {
			g.Reject(MaxConnections, netip.Addr{}, "", "")
			return false
		}
		if g.active.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Leave gives a slot back.
func (g *Guard) Leave() {
	if g.active.Add(-1) < 0 {
		panic("guard: more connections left than came")
	}
}

// Arrived counts a connection that was let in on a port, by the port's text in the plan. Others are not counted.
func (g *Guard) Arrived(port string) { g.metrics.arrived(port) }

// Identify admits a connection from the real address of its client, and counts it there. Every admission is ended by
// Forget with the same address.
func (g *Guard) Identify(ip netip.Addr) (Reason, bool) {
	return g.peers.enter(keyOf(ip), g.now(), g.perIP.Load(), g.rate.Load())
}

// Forget ends what Identify began.
func (g *Guard) Forget(ip netip.Addr) { g.peers.leave(keyOf(ip), g.now()) }

// Status is how full the house is.
type Status struct {
	Active int // client connections now
	Max    int // at most at once
	Wanted int // max_connections as configured, before it was clamped; 0: none was
}

// Status returns the present counts.
func (g *Guard) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Status{Active: int(g.active.Load()), Max: int(g.max.Load()), Wanted: g.wanted}
}

// Prepare works out the limits of a plan.
func (g *Guard) Prepare(_ context.Context, p *plan.Plan) (plan.Step, error) {
	s := &p.Settings
	if s.RatePerIP < 0 || math.IsNaN(s.RatePerIP) || math.IsInf(s.RatePerIP, 0) || s.MaxPerIP < 0 || s.MaxConnections < 0 {
		return nil, fmt.Errorf("connection limits: %d, %d per address and %g a minute: none may be negative",
			s.MaxConnections, s.MaxPerIP, s.RatePerIP)
	}
	st := &step{guard: g, settings: s, ceiling: ceilingOf(s.MaxConnections, g.limit(), len(p.Ports)), ports: p.Ports}
	if s.RatePerIP > 0 {
		st.rate = newRate(s.RatePerIP, time.Minute, 0)
	}
	return st, nil
}

// step is a prepared change of the limits.
type step struct {
	guard    *Guard
	settings *plan.Settings
	ceiling  ceiling
	rate     *rate
	ports    []*plan.Port
}

func (s *step) Commit() {
	g := s.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted = s.settings.MaxConnections
	g.max.Store(int64(s.ceiling.max))
	g.perIP.Store(int64(s.settings.MaxPerIP))
	g.rate.Store(s.rate)
	g.metrics.wantPorts(s.ports)
	if g.settled != s.ceiling {
		g.settled = s.ceiling
		s.ceiling.tell(g.log)
	}
}

func (s *step) Retire() { s.guard.metrics.dropPorts(s.ports) }
func (s *step) Abort()  {}

// Descriptors that are kept for other things than client connections and their targets: listeners, logs, admin clients,
// health checks, pipes. Where the limit is very small, half of it.
const (
	reservedFiles = 128
	filesPerConn  = 2       // the client's and the target's
	mostConns     = 1 << 20 // with a limit of a billion files, memory is the limit
)

// ceiling is how the number of slots came about.
type ceiling struct {
	wanted   int
	files    uint64
	ideal    uint64 // files to be kept for other things
	reserved uint64 // of them, what a small limit leaves
	max      int
}

// ceilingOf clamps the wanted number of connections to what the descriptors hold. At least one is always admitted.
func ceilingOf(wanted int, files uint64, ports int) ceiling {
	c := ceiling{wanted: wanted, files: files, ideal: reservedFiles + uint64(ports)}
	c.reserved = min(c.ideal, files/2)
	held := max((files-c.reserved)/filesPerConn, 1)
	c.max = int(min(held, mostConns))
	if wanted > 0 {
		c.max = min(c.max, wanted)
	}
	return c
}

// Slots is the arithmetic of max_connections: how many connections a limit of open files holds beside so many ports, at
// most wanted (0: as many as there can be), and how many open files would hold wanted.
func Slots(wanted int, files uint64, ports int) (held int, enough uint64) {
	c := ceilingOf(wanted, files, ports)
	return c.max, c.enough()
}

func (c ceiling) tell(log *slog.Logger) {
	attrs := []any{
		"max", c.max, "wanted", c.wanted, "open_files", c.files, "reserved", c.reserved, "files_per_connection", filesPerConn,
	}
	if c.wanted > c.max {
		log.Warn("max_connections is more than the open files allow", append(attrs,
			"remedy", fmt.Sprintf("raise the limit of open files to %d (LimitNOFILE= or ulimit -n), or lower max_connections", c.enough()))...)
		return
	}
	log.Info("connection slots", attrs...)
}

// enough is how many open files would hold what was wanted.
func (c ceiling) enough() uint64 { return uint64(c.wanted)*filesPerConn + c.ideal }
