package ports

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// A change is one plan on its way in. From Prepare to Retire or Abort it holds the right to change ports.
type change struct {
	ps       *Ports
	plan     *plan.Plan
	first    bool
	b        *binder
	next     []*port // the ports of the new plan, those that stay included
	got      map[*port]grip
	busy     map[*port]*BindError
	seizable map[*port]bool // busy, and its holders may be ended
	over     []*socket      // no port has them any more; closed by Retire
	left     []*socket      // of a process that died, and not wanted any more; closed by Retire
	gone     []*port        // no longer wanted
}

// Prepare binds and listens wherever p wants a port that the running plan does not have; clients that come before
// Commit wait in the kernel. It returns a *BindError, or several joined, for every port that could not be had, and then
// nothing has changed. A port that the running plan already wants never refuses a plan, whatever its state; in the first
// plan a busy port refuses only where its policy, or Options.Strict, says fail.
//
// Changes are meant to be serialised by the caller. A second Prepare waits until the first has been retired or aborted.
func (ps *Ports) Prepare(ctx context.Context, p *plan.Plan) (plan.Step, error) {
	if err := ps.lock(ctx); err != nil {
		return nil, err
	}
	ps.spare.Hold()
	c := &change{ps: ps, plan: p, b: ps.binder(), got: make(map[*port]grip), busy: make(map[*port]*BindError), seizable: make(map[*port]bool)}
	if err := c.prepare(ctx); err != nil {
		c.Abort()
		return nil, err
	}
	return c, nil
}

func (c *change) prepare(ctx context.Context) error {
	kept, err := c.sort()
	if err != nil {
		return err
	}
	for _, p := range c.next {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if kept[p] {
			c.improve(p)
			continue
		}
		g, err := c.b.acquire(p.plan, func(e *BindError) bool {
			c.seizable[p] = c.ps.seizable(p.plan, e, time.Now())
			return c.seizable[p]
		})
		if err != nil {
			c.busy[p] = err
			continue
		}
		c.got[p] = g
	}
	c.seize(ctx)
	c.ps.explain(c.b.look, c.got, c.busy)
	var errs []error
	for _, p := range c.next {
		if e := c.busy[p]; e != nil && !c.mayWait(p, e) {
			errs = append(errs, e)
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// sort tells the ports that stay from those that come and those that leave.
func (c *change) sort() (kept map[*port]bool, err error) {
	ps := c.ps
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.stopped {
		return nil, errStopped
	}
	c.first = !ps.planned
	kept = make(map[*port]bool)
	for _, pp := range c.plan.Ports {
		p := ps.ports[pp.Addr]
		if p == nil {
			p = &port{plan: pp}
		} else {
			kept[p] = true
		}
		c.next = append(c.next, p)
	}
	for _, p := range ps.sorted() {
		if kept[p] {
			continue
		}
		c.gone = append(c.gone, p)
		for _, s := range p.socks {
			c.b.leaving[s] = true
		}
	}
	return kept, nil
}

// improve moves a port that stays from a fallback to the address it wants, if that has become free, and away from a
// fallback that is no longer on its list. It never refuses the plan.
func (c *change) improve(p *port) {
	to := c.wish(p)
	c.ps.mu.Lock()
	state, socks := p.state, p.socks
	c.ps.mu.Unlock()
	if state != Fallback {
		return
	}
	listed := slices.Contains(to.Fallback, socks[0].Addr)
	if listed {
		to = &plan.Port{Addr: to.Addr, Policy: to.Policy, Users: to.Users}
	}
	for _, s := range socks {
		c.b.leaving[s] = true
	}
	g, err := c.b.acquire(to, nil)
	switch {
	case err == nil:
		c.got[p] = g
	case !listed:
		c.busy[p] = err
	default:
		for _, s := range socks {
			delete(c.b.leaving, s)
		}
	}
}

// wish is what the new plan says about p.
func (c *change) wish(p *port) *plan.Port {
	i, _ := c.find(p.plan.Addr)
	return c.plan.Ports[i]
}

// wants reports whether the new plan wants a.
func (c *change) wants(a plan.Addr) bool {
	_, ok := c.find(a)
	return ok
}

func (c *change) find(a plan.Addr) (int, bool) {
	return slices.BinarySearchFunc(c.plan.Ports, a, func(pp *plan.Port, a plan.Addr) int { return pp.Addr.Compare(a) })
}

// mayWait reports whether the plan may come true without p for now.
func (c *change) mayWait(p *port, err *BindError) bool {
	if p.state != "" { // the running plan has it
		return true
	}
	return c.first && !c.ps.opt.Strict && p.plan.Policy.OnBusy != "fail"
}

// Commit makes the new ports accept, and hands those that stay to their new wish.
func (c *change) Commit() {
	ps, now := c.ps, time.Now()
	ps.mu.Lock()
	if ps.stopped { // Run ended in between: there is nobody to serve
		ps.mu.Unlock()
		c.b.undo()
		c.gone = nil
		return
	}
	if !ps.planned {
		ps.keepAll()
	}
	ps.planned = true
	ps.forget(c.wants)
	for _, p := range c.gone {
		delete(ps.ports, p.plan.Addr)
	}
	var events []Event
	for i, p := range c.next {
		if e, changed := c.settle(p, c.plan.Ports[i], now); changed {
			events = append(events, e)
		}
		ps.ports[p.plan.Addr] = p
	}
	for s := range c.b.leaving {
		if !c.b.used[s] && s.as.Load() != nil { // else it is none of ours yet: see unclaimed
			c.over = append(c.over, s)
			s.heirs.Store(c.heirs(s))
		}
	}
	c.b.start()
	c.left = ps.unclaimed()
	ps.mu.Unlock()
	ps.secure()
	ps.index()
	ps.metrics.keep(c.next)
	ps.emit(events...)
	ps.poke()
}

// settle brings one port of the new plan to its new wish and state, and describes the change if there is one.
func (c *change) settle(p *port, to *plan.Port, now time.Time) (Event, bool) {
	was := p.state
	added, removed := p.wanted(to)
	p.source = c.source(to.Addr)
	if g, ok := c.got[p]; ok {
		p.got(g, now)
	} else if err := c.busy[p]; err != nil {
		for _, s := range p.socks { // a fallback that is no longer on the list
			c.b.leaving[s] = true
		}
		p.socks = nil
		p.busy(err, now)
	} else {
		p.again(now)
	}
	if was == p.state && len(added)+len(removed) == 0 {
		return Event{}, false
	}
	return p.event(now, added, removed), true
}

// source is the layer that a port comes from: what has a place in a file comes from there.
func (c *change) source(a plan.Addr) string {
	switch at := c.plan.Where["port/"+a.String()]; {
	case at.File == "":
		return string(plan.FromAPI)
	case at.Line == 0 && plan.Source(at.File).Container():
		return at.File
	}
	return string(plan.FromFile)
}

// heirs are the ports of the new plan that overlap s, for the connections still in its queue.
func (c *change) heirs(s *socket) *[]*Listener {
	var out []*Listener
	for _, p := range c.next {
		if p.plan.Addr.Overlaps(s.Addr) {
			out = append(out, &Listener{Want: p.plan.Addr, Addr: s.Addr, Plan: p.plan})
		}
	}
	return &out
}

// Retire closes the sockets that no port has any more, after what the kernel has accepted on them was served.
func (c *change) Retire() {
	ps := c.ps
	defer ps.unlock()
	ps.discardStored(c.left)
	for _, s := range c.over {
		s.Stop(listen.Retire)
	}
	for _, s := range c.over {
		<-s.Stop(listen.Retire)
		if s.Kept {
			ps.mu.Lock()
			ps.idle = append(ps.idle, s)
			ps.mu.Unlock()
		}
	}
	for _, p := range c.gone {
		ps.emit(p.released(time.Now()))
	}
}

// Abort closes what Prepare bound. Clients that came in between on a port in force are served by it, others see their
// connection closed.
func (c *change) Abort() {
	c.b.undo()
	c.ps.unlock()
}

// retry makes the attempts that are due.
func (ps *Ports) retry(ctx context.Context) {
	if ps.lock(ctx) != nil {
		return
	}
	defer ps.unlock()
	now := time.Now()
	ps.mu.Lock()
	var due []*port
	for _, p := range ps.sorted() {
		if p.state == Retrying && !p.next.After(now) {
			due = append(due, p)
		}
	}
	ps.mu.Unlock()
	b := ps.binder()
	got, busy := make(map[*port]grip), make(map[*port]*BindError)
	for _, p := range due {
		pursued := false
		g, err := b.acquire(p.plan, func(e *BindError) bool {
			pursued = ps.takeOver(p, e, now)
			return pursued
		})
		switch {
		case err == nil:
			got[p] = g
		case pursued:
			ps.pursue(p, now)
		default:
			busy[p] = err
		}
	}
	ps.explain(b.look, got, busy)
	for _, p := range due {
		if g, ok := got[p]; ok {
			ps.nowBound(p, g)
		} else if err := busy[p]; err != nil {
			ps.stillBusy(p, err)
		}
	}
	ps.mu.Lock()
	b.start()
	ps.mu.Unlock()
	ps.secure()
	ps.index()
}

// nowBound notes an attempt that went well; the sockets accept soon after.
func (ps *Ports) nowBound(p *port, g grip) {
	ps.mu.Lock()
	p.got(g, time.Now())
	e := p.event(p.since, nil, nil)
	ps.mu.Unlock()
	if t := ps.takeovers[p.plan.Addr]; t != nil {
		t.end() // it let go before it ended
	}
	ps.emit(e)
}

// stillBusy notes a failed attempt. It is news only when somebody else holds the port now, or when it is given up.
func (ps *Ports) stillBusy(p *port, err *BindError) {
	now := time.Now()
	ps.mu.Lock()
	was, news := p.state, p.err == nil || !p.err.same(err)
	p.busy(err, now)
	e := p.event(now, nil, nil)
	news = news || was != p.state
	ps.mu.Unlock()
	if news {
		ps.emit(e)
	}
}
