// Package pools keeps, for each upstream, who is alive, who is next, and which connections can be used again.
//
// It promises that a connection it hands out goes to a target of the committed plan that was believed to be up, that
// no connection carries two exchanges at once or one after a doubtful end, and that a target that stays in the plan
// keeps its health and its connections. It never sends a request again by itself, never listens, and never closes a
// connection that is in use, except by Stream.Abort.
package pools

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Options are what Pools need of the others. The zero Options work.
type Options struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	// Ours reports whether one of our own listeners takes connections to that address; by-name forwarding refuses it.
	Ours func(netip.AddrPort) bool
	// Listening says what listens near an address that refused, "" if nothing or unknown. It is asked at most once a
	// second per target.
	Listening func(netip.AddrPort) string
	// Key makes sticky cookies mean the same after a restart; random if nil.
	Key []byte
	// Wake returns when an app is ready, or why it will not be. An error whose Timeout says true has waited for it.
	Wake func(ctx context.Context, app string) error
}

// Pools are the upstreams of the committed plan.
type Pools struct {
	log       *slog.Logger
	ours      func(netip.AddrPort) bool
	listening func(netip.AddrPort) string
	key       []byte
	epoch     time.Time
	scratch   sync.Pool // of *scratch
	named     *Pool     // connections that were dialled by name
	rules     atomic.Pointer[nameRules]
	own       ownAddrs
	maxHead   atomic.Int64
	conns     atomic.Int64 // open HTTP connections, in use or idle
	wakeApp   func(ctx context.Context, app string) error
	roster    roster
	closed    atomic.Bool // Run has ended: nothing is kept any more
	wake      chan struct{}

	mu     sync.Mutex // guards the following
	pools  []*Pool    // sorted by name
	staged []*Pool    // of the plan between Prepare and Commit; nil if none
	run    context.Context
	checks sync.WaitGroup // grows only while run is set
}

// New returns Pools that follow no plan yet.
func New(o Options) *Pools {
	ps := &Pools{log: o.Log, ours: o.Ours, listening: o.Listening, key: o.Key, wakeApp: o.Wake, epoch: time.Now(), wake: make(chan struct{}, 1)}
	if ps.log == nil {
		ps.log = slog.New(slog.DiscardHandler)
	}
	if ps.key == nil {
		ps.key = make([]byte, 32)
		_, _ = rand.Read(ps.key) // never fails
	}
	ps.scratch.New = func() any { return &scratch{b: make([]byte, 0, 4096)} }
	ps.maxHead.Store(64 << 10)
	ps.rules.Store(newNameRules(&plan.Settings{}))
	named := ps.newPool(&plan.Upstream{
		Targets: []plan.Target{{Weight: 1}},
		Pool:    plan.PoolSettings{MaxIdle: namedIdle, Idle: namedIdleTime, MaxAge: namedMaxAge},
	})
	ps.named = named.pool
	ps.named.apply(named)
	if o.Registry != nil {
		o.Registry.MustRegister(&collector{ps})
	}
	return ps
}

// now is a monotonic clock in nanoseconds; it is never 0.
func (ps *Pools) now() int64 { return int64(time.Since(ps.epoch)) + 1 }

// at is now for a moment that was read off the clock already, or now itself for the zero time.
func (ps *Pools) at(t time.Time) int64 {
	if t.IsZero() {
		return ps.now()
	}
	return int64(t.Sub(ps.epoch)) + 1
}

func (ps *Pools) clock(now int64) time.Time { return ps.epoch.Add(time.Duration(now)) }

// Run closes idle connections in time and checks the health of targets. When ctx is done it ends both, closes what is
// idle, and returns nil. Pools work without it, but keep connections and know no active checks.
func (ps *Pools) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ps.mu.Lock()
	ps.run = ctx
	for _, p := range ps.pools {
		ps.watch(p, len(ps.pools))
	}
	ps.mu.Unlock()

	ps.reap(ctx)

	ps.closed.Store(true)
	ps.mu.Lock()
	ps.run = nil
	all := append(slices.Clone(ps.pools), ps.named)
	ps.mu.Unlock()
	ps.checks.Wait()
	for _, p := range all {
		p.closeIdle()
	}
	return nil
}

// reap sweeps out idle connections until ctx is done. It sleeps while there are no connections at all.
func (ps *Pools) reap(ctx context.Context) {
	t := time.NewTimer(sweepEvery)
	defer t.Stop()
	for {
		if ps.conns.Load() == 0 {
			select {
			case <-ctx.Done():
				return
			case <-ps.wake:
			}
		}
		t.Reset(sweepEvery)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		ps.sweep()
	}
}

// sweep sweeps every pool once.
func (ps *Pools) sweep() {
	ps.mu.Lock()
	all := ps.pools
	ps.mu.Unlock()
	ps.named.sweep(ps.now())
	var breath plan.Breath
	defer breath.End()
	for _, p := range all {
		breath.Take()
		p.sweep(ps.now())
	}
}

const sweepEvery = time.Second

// sweep closes connections that were idle for too long or are too old.
func (p *Pool) sweep(now int64) {
	var out []*conn
	p.mu.Lock()
	set := p.want.Pool
	for _, m := range p.members {
		kept := m.idle[:0]
		for _, c := range m.idle {
			if set.Idle > 0 && now-c.idle > int64(set.Idle) || set.MaxAge > 0 && now-c.born > int64(set.MaxAge) {
				out = append(out, c)
			} else {
				kept = append(kept, c)
			}
		}
		clear(m.idle[len(kept):])
		m.idle = kept
	}
	if p.queue.n > 0 {
		p.pump(now) // a target that passive health had taken out may be back
	}
	p.mu.Unlock()
	for _, c := range out {
		p.ps.discard(c)
	}
}

// opened and gone count connections.
func (ps *Pools) opened() {
	if ps.conns.Add(1) == 1 {
		select {
		case ps.wake <- struct{}{}:
		default:
		}
	}
}

func (ps *Pools) gone() { ps.conns.Add(-1) }

// discard closes a connection that is in no list.
func (ps *Pools) discard(c *conn) {
	_ = c.nc.Close()
	ps.gone()
}

// Pool returns the pool of that upstream, as of the last Prepare that was not aborted; nil if there is none.
func (ps *Pools) Pool(name string) *Pool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, list := range [][]*Pool{ps.staged, ps.pools} {
		if i, ok := slices.BinarySearchFunc(list, name, func(p *Pool, name string) int { return strings.Compare(p.name, name) }); ok {
			return list[i]
		}
	}
	return nil
}

func (ps *Pools) newPool(u *plan.Upstream) *change {
	p := &Pool{ps: ps, name: u.Name, want: u}
	p.life.Start(p.end)
	return ps.plan(p, u, nil)
}

// cookie is the sticky value of a target: it names it to us and tells nobody else where it is.
func (ps *Pools) cookie(upstream string, t *plan.Target) []byte {
	h := sha256.New()
	for _, s := range []string{string(ps.key), upstream, t.Text} {
		_, _ = h.Write([]byte(s))
		_, _ = h.Write([]byte{0})
	}
	return []byte(hex.EncodeToString(h.Sum(nil)[:8]))
}
