package pools

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A roster is what pools know of apps: where the ready instances of each are, and who uses them.
type roster struct {
	mu    sync.Mutex // guards what follows; taken after Pools.mu
	at    map[string][]plan.Addr
	uses  map[string]*use
	seats map[seatKey]*seat
}

type seatKey struct {
	app string
	at  plan.Addr
}

// use counts for an app as a whole.
type use struct {
	n    atomic.Int64
	last atomic.Int64 // Unix nanoseconds of the last begin or end; 0: never
}

// seat counts for one instance.
type seat struct {
	use   *use
	n     atomic.Int64
	quiet atomic.Pointer[chan struct{}] // closed when n becomes 0; nil: nobody waits
}

func (s *seat) enter() {
	s.n.Add(1)
	s.use.n.Add(1)
	s.use.last.Store(time.Now().UnixNano())
}

func (s *seat) leave() {
	s.use.last.Store(time.Now().UnixNano())
	s.use.n.Add(-1)
	if s.n.Add(-1) == 0 {
		s.wake()
	}
}

func (s *seat) wake() {
	if c := s.quiet.Swap(nil); c != nil {
		close(*c)
	}
}

// use is what counts for an app. mu is held.
func (r *roster) use(app string) *use {
	u := r.uses[app]
	if u == nil {
		u = &use{}
		if r.uses == nil {
			r.uses = make(map[string]*use)
		}
		r.uses[app] = u
	}
	return u
}

// seat is what counts for an instance.
func (r *roster) seat(app string, at plan.Addr) *seat {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := seatKey{app, at}
	s := r.seats[key]
	if s == nil {
		s = &seat{use: r.use(app)}
		if r.seats == nil {
			r.seats = make(map[seatKey]*seat)
		}
		r.seats[key] = s
	}
	return s
}

// set notes where an app is, and reports whether that is news.
func (r *roster) set(app string, at []plan.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(r.at[app], at) {
		return false
	}
	if r.at == nil {
		r.at = make(map[string][]plan.Addr)
	}
	if len(at) == 0 {
		delete(r.at, app)
	} else {
		r.at[app] = slices.Clone(at)
	}
	return true
}

// prune forgets instances of an app that are gone and that nobody uses.
func (r *roster) prune(app string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, s := range r.seats {
		if key.app == app && s.n.Load() == 0 && !slices.Contains(r.at[app], key.at) {
			delete(r.seats, key)
		}
	}
}

func (r *roster) where(app string) []plan.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at[app]
}

// SetMembers says where the ready instances of an app are reached; none: it is not ready. When it returns no connection is
// opened to any other instance. What is in use goes on.
func (ps *Pools) SetMembers(app string, at []plan.Addr) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if !ps.roster.set(app, at) {
		return
	}
	for _, p := range ps.pools {
		want, sec := p.wanted()
		if !slices.ContainsFunc(want.Targets, func(t plan.Target) bool { return t.App == app }) {
			continue
		}
		c := ps.plan(p, want, p.current())
		c.secure = sec
		p.apply(c)
		ps.watch(p, 1)
	}
	ps.roster.prune(app)
}

// Use is how many connections to an app are in use, and when one last began or ended; the zero time is never.
func (ps *Pools) Use(app string) (n int, last time.Time) {
	ps.roster.mu.Lock()
	u := ps.roster.use(app)
	ps.roster.mu.Unlock()
	if t := u.last.Load(); t != 0 {
		last = time.Unix(0, t)
	}
	return int(u.n.Load()), last
}

// Unused returns when no connection to an instance is in use, which is no member any more, or with ctx.
func (ps *Pools) Unused(ctx context.Context, app string, at plan.Addr) error {
	s := ps.roster.seat(app, at)
	for {
		quiet := make(chan struct{})
		s.quiet.Store(&quiet)
		if s.n.Load() == 0 {
			return nil
		}
		select {
		case <-quiet:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// instances are the targets that a target stands for: itself, or the ready instances of its app.
func (ps *Pools) instances(t plan.Target) []plan.Target {
	if t.App == "" {
		return []plan.Target{t}
	}
	var out []plan.Target
	for _, at := range ps.roster.where(t.App) {
		one := t
		one.Network, one.Host, one.Port = at.Network, at.IP.String(), at.Port
		if at.Network == plan.Unix {
			one.Host = at.Path
		}
		out = append(out, one)
	}
	return out
}

// addr is where an instance of an app is reached.
func addrOf(t *plan.Target, at []plan.Addr) plan.Addr {
	for _, a := range at {
		if a.Network == t.Network && a.Port == t.Port && (a.Network == plan.Unix && a.Path == t.Host || a.Network != plan.Unix && a.IP.String() == t.Host) {
			return a
		}
	}
	return plan.Addr{}
}

func hasApps(u *plan.Upstream) bool {
	return slices.ContainsFunc(u.Targets, func(t plan.Target) bool { return t.App != "" })
}

// maxWakes bounds how often one Open waits for apps.
const maxWakes = 3

// away is an app of the pool that has no ready instance, "" if there is none. mu is held.
func (p *Pool) away() string {
	if p.ps.wakeApp == nil {
		return ""
	}
	for i := range p.want.Targets {
		app := p.want.Targets[i].App
		if app != "" && !slices.ContainsFunc(p.members, func(m *Member) bool { return m.target.App == app }) {
			return app
		}
	}
	return ""
}

// rouse waits until an app is ready. It is called with mu held, and returns with it held only if it returns nil.
func (p *Pool) rouse(ask *Ask, s *Stream, app string) error {
	p.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if ask.Patience > 0 {
		var done context.CancelFunc
		ctx, done = context.WithTimeout(ctx, ask.Patience)
		defer done()
	}
	s.mu.Lock()
	s.cancel = cancel
	if s.aborted {
		cancel()
	}
	s.mu.Unlock()
	err := p.ps.wakeApp(ctx, app)
	s.mu.Lock()
	s.cancel = nil
	aborted := s.aborted
	s.mu.Unlock()
	if err == nil && !aborted {
		p.mu.Lock()
		return nil
	}
	e := &Error{Kind: "app", Upstream: p.name, Target: "app:" + app, Err: err}
	var late interface{ Timeout() bool }
	switch {
	case aborted:
		e.Kind, e.Err = "aborted", nil
	case errors.Is(err, context.DeadlineExceeded) && ask.Patience > 0:
		e.Kind, e.Err = "app_starting", nil
	case errors.As(err, &late) && late.Timeout():
		e.Kind = "app_late"
	}
	return e
}
