package ports

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/evict"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// The limits of take_over. A holder that comes back as often as it is ended is kept alive by somebody; ending it again
// and again helps nobody.
const (
	maxTakeovers   = 3 // of one port within takeoverWindow
	takeoverWindow = 10 * time.Minute
	takeoverStep   = 50 * time.Millisecond       // between two attempts while a holder is ending
	reloadTakeover = 500 * time.Millisecond      // what a reload waits for a holder before it is refused
	startTakeover  = evict.Grace + 6*time.Second // what a start waits where a port may not
	maxAsked       = 256                         // processes remembered of one port
	errHeldAgain   = "it ended, and the port was held again at once"
	errSurvived    = "it has not ended, not even after KILL: it hangs in the kernel"
	errComesBack   = "3 holders were ended within 10 min and the port was held again each time: something starts them, stop that first"
	errStillThere  = "it was asked to end (TERM) and still listens; reload again: 10 s after that request it is killed"
	errPartlyBlind = "who holds the port cannot be looked up"
)

// A takeover is what take_over has done for one wish. It belongs to whoever holds the right to change.
type takeover struct {
	began   []time.Time           // evictions within takeoverWindow
	asked   map[process]time.Time // who was sent TERM, and when: what one reload begins another may end
	running *evict.Eviction       // of the retry loop
	told    bool                  // KILL of the running one was told
}

// A process is told from another of its pid by its start.
type process struct {
	pid   int
	start int64 // nanoseconds
}

func processOf(h *Holder) process { return process{h.Pid, h.Started.UnixNano()} }

// takeable reports whether the policy of p has something to say about e.
func takeable(p *plan.Port, e *BindError) bool {
	return e.Kind == InUse && (p.Policy.TakeOver == "own" || p.Policy.TakeOver == "any")
}

// seizable reports whether everybody who holds the port of p may be ended by its policy. If not, e says why.
func (ps *Ports) seizable(p *plan.Port, e *BindError, now time.Time) bool {
	if !takeable(p, e) {
		return false
	}
	if t := ps.takeovers[p.Addr]; t != nil && t.tired(now) {
		e.takeover = errComesBack
		return false
	}
	holders, err := ps.blockers(p)()
	switch {
	case err != nil:
		e.takeover = errPartlyBlind
	case len(holders) == 0: // it has just left, or is bound and does not listen: nobody to end
	default:
		err = ps.rules(p).All(holders)
		e.takeover = refusal(err)
		return err == nil
	}
	return false
}

// rules are the policy of p as evict knows it.
func (ps *Ports) rules(p *plan.Port) evict.Rules {
	return evict.Rules{Own: ps.opt.Own, OnlyOwn: p.Policy.TakeOver != "any"}
}

// refusal words why a holder is not ended, beside a sentence that names it at length.
func refusal(err error) string {
	var r *evict.Refusal
	switch {
	case err == nil:
		return ""
	case !errors.As(err, &r):
		return err.Error()
	case r.Holder.Pid == 0:
		return r.Reason
	}
	return r.Holder.Brief() + " is not ended: " + r.Reason
}

// blockers lists everybody whose socket stands in the way of p.
func (ps *Ports) blockers(p *plan.Port) evict.Look {
	return func() ([]Holder, error) {
		if p.Addr.Network == plan.Unix {
			return holder.FindUnix(p.Addr.Path)
		}
		all, err := holder.Everyone(func(l netip.AddrPort) bool { return l.Port() == p.Addr.Port })
		// [::] takes IPv4 too, unless somebody listens there beside it.
		dual := !slices.ContainsFunc(all, func(h Holder) bool { return h.Addr.Addr().Unmap().Is4() })
		return slices.DeleteFunc(all, func(h Holder) bool {
			return !p.Addr.Overlaps(listened(h.Addr, dual)) || p.Policy.ReusePort && ours(&h)
		}), err
	}
}

// listened is the address of a row of the kernel's table, which does not tell IPv6 from both.
func listened(l netip.AddrPort, dual bool) plan.Addr {
	if a := l.Addr(); a.Is6() && a.IsUnspecified() && dual {
		return plan.Addr{Port: l.Port()}
	}
	return plan.TCPAddr(l.Addr(), l.Port())
}

// ours reports whether h runs our program.
func ours(h *Holder) bool {
	exe, err := os.Executable()
	return h.Ours() || err == nil && h.Exe == exe
}

// takeoverOf is the record of a wish.
func (ps *Ports) takeoverOf(a plan.Addr) *takeover {
	t := ps.takeovers[a]
	if t == nil {
		t = &takeover{asked: make(map[process]time.Time)}
		ps.takeovers[a] = t
	}
	return t
}

// tired reports whether enough holders were ended for now.
func (t *takeover) tired(now time.Time) bool {
	t.began = slices.DeleteFunc(t.began, func(at time.Time) bool { return now.Sub(at) > takeoverWindow })
	return len(t.began) >= maxTakeovers
}

// since is when all of holders had been asked to end; zero when one of them has not been.
func (t *takeover) since(holders []Holder) (at time.Time) {
	for i := range holders {
		asked, ok := t.asked[processOf(&holders[i])]
		if !ok {
			return time.Time{}
		}
		if asked.After(at) {
			at = asked
		}
	}
	return at
}

// note remembers who was asked to end. Those who were asked before do not count again.
func (t *takeover) note(holders []Holder, now time.Time) {
	for who, at := range t.asked {
		if now.Sub(at) > takeoverWindow || len(t.asked) >= maxAsked {
			delete(t.asked, who)
		}
	}
	fresh := false
	for i := range holders {
		if who := processOf(&holders[i]); t.asked[who].IsZero() {
			t.asked[who], fresh = now, true
		}
	}
	if fresh {
		t.began = append(t.began, now)
	}
}

// end lets go of who was being ended.
func (t *takeover) end() {
	if t.running != nil {
		t.running.Close()
		t.running, t.told = nil, false
	}
}

// begin asks who holds the port of p to end. Users are how many routes have it already.
func (ps *Ports) begin(p *plan.Port, state State, users int, now time.Time) error {
	t, look := ps.takeoverOf(p.Addr), ps.blockers(p)
	holders, err := look()
	if err != nil {
		return err
	}
	ev, err := evict.Begin(ps.rules(p), holders, look, t.since(holders), cmp.Or(ps.opt.grace, evict.Grace))
	if err != nil {
		return err
	}
	t.running, t.told = ev, false
	if asked := ev.Asked(); len(asked) > 0 {
		t.note(asked, now)
		ps.emit(eviction(p.Addr, state, users, "TERM", asked, now))
	}
	return nil
}

// eviction describes a signal. The port itself stays as it is.
func eviction(a plan.Addr, state State, users int, signal string, to []Holder, now time.Time) Event {
	e := Event{Time: now, Port: a, Address: a.String(), State: state, Before: users, After: users, Signal: signal}
	for i := range to {
		e.Holders = append(e.Holders, to[i].String())
	}
	did := map[string]string{"TERM": "asked to end (TERM): ", "KILL": "has not ended, and was killed (KILL): "}[signal]
	e.Reason = "take_over: " + did + strings.Join(e.Holders, ", ")
	return e
}

// step goes one step further with who is being ended for the port of p.
func (ps *Ports) step(p *plan.Port, state State, users int, now time.Time) evict.Phase {
	t := ps.takeoverOf(p.Addr)
	phase := t.running.Step(now)
	if killed := t.running.Killed(); len(killed) > 0 && !t.told {
		t.told = true
		ps.emit(eviction(p.Addr, state, users, "KILL", killed, now))
	}
	return phase
}

// takeOver goes one step towards having the port of p, an attempt at which has just failed with e. true means that it is
// on its way: another attempt comes soon, and none at a fallback. If not, e says why.
func (ps *Ports) takeOver(p *port, e *BindError, now time.Time) bool {
	t := ps.takeovers[p.plan.Addr]
	if t == nil || t.running == nil {
		if !ps.seizable(p.plan, e, now) {
			return false
		}
		if err := ps.begin(p.plan, p.state, len(p.plan.Users), now); err != nil {
			e.takeover = refusal(err)
			return false
		}
		return true
	}
	if !takeable(p.plan, e) { // the policy has changed
		t.end()
		return false
	}
	switch ps.step(p.plan, p.state, len(p.plan.Users), now) {
	case evict.Gone: // after this attempt: the next one tells
		t.end()
	case evict.Stuck:
		e.takeover = errSurvived
		t.end()
		return false
	}
	return true
}

// pursue puts the next attempt at a port whose holder is ending soon after this one.
func (ps *Ports) pursue(p *port, now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.next = now.Add(takeoverStep)
	if p.err != nil {
		e := *p.err
		e.takeover = "it was asked to end"
		p.err = &e
	}
}

// seize ends the holders of the new ports that must be had and whose policy allows it, within the time that a start or a
// reload may take. Nobody is ended for a plan that is refused anyway. The ports it gets are got.
func (c *change) seize(ctx context.Context) {
	var must []*port
	for _, p := range c.next {
		switch e := c.busy[p]; {
		case e == nil || c.mayWait(p, e):
		case !c.seizable[p]:
			return
		default:
			must = append(must, p)
		}
	}
	if len(must) == 0 {
		return
	}
	limit := cmp.Or(c.ps.opt.reload, reloadTakeover)
	if c.first {
		limit = startTakeover
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, p := range must {
		if err := c.ps.begin(p.plan, p.state, 0, time.Now()); err != nil {
			c.busy[p].takeover = refusal(err)
		}
	}
	tick := time.NewTicker(takeoverStep)
	defer tick.Stop()
	for {
		must = slices.DeleteFunc(must, c.seized)
		if len(must) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			for _, p := range must {
				c.ps.takeoverOf(p.plan.Addr).end()
				c.fallBack(p, errStillThere)
			}
			return
		}
	}
}

// seized makes an attempt at p, and reports whether that was the last.
func (c *change) seized(p *port) bool {
	t := c.ps.takeoverOf(p.plan.Addr)
	if t.running == nil { // could not be asked
		c.fallBack(p, c.busy[p].takeover)
		return true
	}
	phase := c.ps.step(p.plan, p.state, 0, time.Now())
	g, err := c.b.one(p.plan.Addr, p.plan)
	if err == nil {
		t.end()
		c.got[p] = g
		delete(c.busy, p)
		return true
	}
	switch phase {
	case evict.Gone:
		t.end()
		c.fallBack(p, errHeldAgain)
	case evict.Stuck:
		t.end()
		c.fallBack(p, errSurvived)
	default:
		return false
	}
	return true
}

// fallBack gives p what it can have after all, or the reason why it has nothing.
func (c *change) fallBack(p *port, why string) {
	g, err := c.b.acquire(p.plan, nil)
	if err == nil {
		c.got[p] = g
		delete(c.busy, p)
		err = g.why
	} else {
		c.busy[p] = err
	}
	if err != nil {
		err.takeover = why
	}
}

// forget drops what take_over did for wishes that are no more, and lets go of whoever it was about to end.
func (ps *Ports) forget(wanted func(plan.Addr) bool) {
	for a, t := range ps.takeovers {
		if !wanted(a) {
			t.end()
			delete(ps.takeovers, a)
		}
	}
}
