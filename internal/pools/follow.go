package pools

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A step is a prepared plan.
type step struct {
	ps      *Pools
	pools   []*Pool
	changes []*change
	added   []*Pool
	removed []*Pool
	rules   *nameRules
	maxHead int64
}

// A change is what becomes of one pool.
type change struct {
	pool    *Pool
	want    *plan.Upstream
	members []*Member
	weights []int64
	limits  []int
	fresh   []*Member // new among members
	ring    []point
	sticky  map[string]*Member
	secure  *secure
}

// Prepare works out which pools stay, change, come and go, and reads the files of target_tls. It does not dial. Pool already gives the new ones.
func (ps *Pools) Prepare(ctx context.Context, p *plan.Plan) (plan.Step, error) {
	ps.mu.Lock()
	old := ps.pools
	ps.mu.Unlock()
	want := p.Upstreams
	byName := func(a, b *plan.Upstream) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(want, byName) {
		want = slices.SortedFunc(slices.Values(want), byName)
	}
	st := &step{ps: ps, rules: newNameRules(&p.Settings), maxHead: int64(p.Settings.MaxHeaderBytes), pools: make([]*Pool, 0, len(want))}
	files := shelf{}
	var breath plan.Breath
	defer breath.End()
	for i, u := range want {
		breath.Take()
		if i%100 == 99 && ctx.Err() != nil {
			st.Abort()
			return nil, ctx.Err()
		}
		for len(old) > 0 && old[0].name < u.Name {
			st.removed = append(st.removed, old[0])
			old = old[1:]
		}
		if len(old) > 0 && old[0].name == u.Name {
			live := old[0]
			old = old[1:]
			st.pools = append(st.pools, live)
			have, was := live.wanted()
			sec, err := loadSecure(u, was, files)
			if err != nil {
				st.Abort()
				return nil, err
			}
			if sec != was || have != u && !equal(have, u) {
				c := ps.plan(live, u, live.current())
				c.secure = sec
				st.changes = append(st.changes, c)
			}
			continue
		}
		sec, err := loadSecure(u, nil, files)
		if err != nil {
			st.Abort()
			return nil, err
		}
		c := ps.newPool(u)
		c.secure = sec
		st.pools = append(st.pools, c.pool)
		st.added = append(st.added, c.pool)
		st.changes = append(st.changes, c)
	}
	st.removed = append(st.removed, old...)
	ps.mu.Lock()
	ps.staged = st.pools
	ps.mu.Unlock()
	return st, nil
}

// Commit makes the new plan the one that is chosen from.
func (st *step) Commit() {
	ps := st.ps
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.pools, ps.staged = st.pools, nil
	if st.maxHead > 0 {
		ps.maxHead.Store(st.maxHead)
	}
	if old := ps.rules.Swap(st.rules); !old.equal(st.rules) {
		ps.named.closeIdle() // what they lead to may not be allowed any more
	}
	var breath plan.Breath
	defer breath.End()
	for _, c := range st.changes {
		if hasApps(c.want) { // they may be elsewhere by now
			sec := c.secure
			c = ps.plan(c.pool, c.want, c.pool.current())
			c.secure = sec
		}
		c.pool.apply(c)
		ps.watch(c.pool, len(st.changes))
		breath.Take() // no request asks for mu
	}
	for _, p := range st.removed {
		p.unwatch()
	}
}

// Retire drops the pools that are out of the plan. Those who still use one may go on to do so.
func (st *step) Retire() {
	for _, p := range st.removed {
		p.end() // what is in use stays so, and is not kept afterwards
		p.Drop()
	}
}

// Abort forgets the plan.
func (st *step) Abort() {
	st.ps.mu.Lock()
	st.ps.staged = nil
	st.ps.mu.Unlock()
	for _, p := range st.added {
		p.Drop()
	}
}

func (p *Pool) wanted() (*plan.Upstream, *secure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.want, p.secure
}

func (p *Pool) current() []*Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.members
}

// plan works out the members of p under u; those that stay are taken from have.
func (ps *Pools) plan(p *Pool, u *plan.Upstream, have []*Member) *change {
	c := &change{pool: p, want: u, members: make([]*Member, 0, len(u.Targets)), weights: make([]int64, 0, len(u.Targets))}
	left := make(map[plan.Target][]*Member, len(have))
	for _, m := range have {
		left[m.target] = append(left[m.target], m)
	}
	for _, one := range u.Targets {
		for _, t := range ps.instances(one) {
			c.weights, c.limits = append(c.weights, int64(max(1, t.Weight))), append(c.limits, t.MaxConns)
			t.Weight, t.MaxConns = 0, 0
			if same := left[t]; len(same) > 0 {
				c.members = append(c.members, same[0])
				left[t] = same[1:]
				continue
			}
			m := &Member{pool: p, target: t}
			if t.App != "" {
				m.seat = ps.roster.seat(t.App, addrOf(&t, ps.roster.where(t.App)))
			}
			c.members = append(c.members, m)
			c.fresh = append(c.fresh, m)
		}
	}
	if u.Balance.Policy == "ip_hash" {
		c.ring = newRing(c.members, c.weights)
	}
	if u.Balance.StickyCookie != "" {
		c.sticky = make(map[string]*Member, len(c.members))
		for _, m := range c.members {
			c.sticky[string(ps.cookie(u.Name, &m.target))] = m
		}
	}
	return c
}

// apply makes p what c says.
func (p *Pool) apply(c *change) {
	var out []*conn
	now := p.ps.now()
	p.mu.Lock()
	p.cookie.Store(&c.want.Balance.StickyCookie)
	p.apps.Store(hasApps(c.want))
	first := p.members == nil
	for _, m := range p.members {
		m.gone = true
	}
	old := p.members
	p.want, p.members = c.want, c.members
	p.balance = balance{policy: c.want.Balance.Policy, turn: p.balance.turn, ring: c.ring, sticky: c.sticky, dirty: true}
	for i, m := range c.members {
		m.gone, m.weight, m.cookie = false, c.weights[i], nil
		m.limit = smallest(c.want.Pool.MaxPerTarget, c.limits[i])
		if c.want.Health == nil {
			m.down, m.streak = false, 0
		}
		if c.want.Passive.Fails == 0 {
			m.outUntil = 0
		}
	}
	for v, m := range c.sticky {
		m.cookie = []byte(v)
	}
	for _, m := range c.fresh {
		m.since = time.Now()
		if !first {
			m.risen = now
		}
	}
	if p.secure != c.secure {
		out, p.looked, p.broken = p.become(c.secure), now, ""
	}
	for _, m := range old {
		if m.gone {
			out = append(out, m.idle...)
			m.idle = nil
			m.live = false
		}
	}
	p.pump(now)
	p.mu.Unlock()
	for _, m := range old {
		m.stopWatch(func() bool { return m.gone })
	}
	for _, conn := range out {
		p.ps.discard(conn)
	}
}

// smallest of two limits where 0 is none.
func smallest(a, b int) int {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func equal(a, b *plan.Upstream) bool {
	health := a.Health == b.Health || a.Health != nil && b.Health != nil && *a.Health == *b.Health
	return health && a.Name == b.Name && a.Inline == b.Inline && slices.Equal(a.Targets, b.Targets) && a.Balance == b.Balance &&
		a.Passive == b.Passive && a.Pool == b.Pool && a.Connect == b.Connect && a.TLS == b.TLS
}
