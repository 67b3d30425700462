package ports

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// State is what became of a wanted port.
type State string

// The states. A port is leased only by the apps that get one; released is the last thing its history says.
const (
	Bound     State = "bound"
	Retrying  State = "retrying"
	Fallback  State = "fallback"  // bound, but on an address of its fallback list
	Activated State = "activated" // bound by systemd
	Leased    State = "leased"
	Released  State = "released"
	Failed    State = "failed" // given up until the next reload
)

// A busy port is tried again after 250 ms, and then after twice as long each time up to 30 s. Up to a quarter is taken
// off each wait by chance, so that ports that became busy together are not tried together.
const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// backoff is the wait after the nth failed attempt, n from 1, before chance.
func backoff(n int) time.Duration {
	if n > 7 { // 250 ms << 7 is 32 s
		return maxBackoff
	}
	return minBackoff << (n - 1)
}

// jitter takes up to a quarter off.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/4) }

// A port is one wish of the plan and what became of it. Ports.mu guards it.
type port struct {
	plan   *plan.Port
	source string // the layer that wants it
	state  State  // "" before its first event
	since  time.Time
	socks  []*socket // accepted on; several only for fd:NAME; none while retrying or failed
	err    *BindError
	tries  int       // failed attempts since asked
	asked  time.Time // the first attempt; give_up_after counts from here
	next   time.Time // the next attempt, while retrying
}

// A grip is what an attempt got for a port.
type grip struct {
	socks []*socket
	state State
	why   *BindError // for a fallback: what became of the address wanted
}

// wanted is the first or a changed wish; it returns which users came and which went.
func (p *port) wanted(to *plan.Port) (added, removed []string) {
	if p.state == "" {
		return names(to.Users), nil
	}
	was := p.plan
	p.plan = to
	if was != to {
		added, removed = diff(was.Users, to.Users)
		for _, s := range p.socks {
			s.serveAs(to)
			s.SetReusePort(to.Policy.ReusePort)
		}
	}
	return added, removed
}

// got is an attempt that went well.
func (p *port) got(g grip, now time.Time) {
	p.move(g.state, now)
	p.socks, p.err = g.socks, g.why
	p.tries, p.asked, p.next = 0, time.Time{}, time.Time{}
	for _, s := range p.socks {
		s.serveAs(p.plan)
		if !s.Kept {
			s.SetReusePort(p.plan.Policy.ReusePort) // what it is, unless somebody else has bound it
		}
	}
}

// busy is an attempt that failed. It decides when the next one is, or that there is none.
func (p *port) busy(err *BindError, now time.Time) {
	if p.asked.IsZero() {
		p.asked = now
	}
	p.tries++
	p.err = err
	end := p.asked.Add(p.plan.Policy.GiveUpAfter)
	limited := p.plan.Policy.GiveUpAfter > 0
	if err.final || limited && !now.Before(end) {
		p.next = time.Time{}
		if !err.final {
			err.gaveUp = now.Sub(p.asked)
		}
		p.move(Failed, now)
		return
	}
	p.next = now.Add(jitter(backoff(p.tries)))
	if limited && p.next.After(end) {
		p.next = end // the last attempt is made when the time is over, not given away
	}
	err.Next = p.next.Sub(now)
	p.move(Retrying, now)
}

// again starts a failed port over.
func (p *port) again(now time.Time) {
	if p.state == Failed {
		p.tries, p.asked, p.next = 0, now, now
		p.move(Retrying, now)
	}
}

// released is the end; its sockets have been closed.
func (p *port) released(now time.Time) Event {
	e := p.event(now, nil, names(p.plan.Users))
	e.State, e.Before, e.After, e.Reason = Released, len(p.plan.Users), 0, ""
	return e
}

func (p *port) move(to State, now time.Time) {
	if p.state != to {
		p.state, p.since = to, now
	}
}

// event describes the port as it is now.
func (p *port) event(now time.Time, added, removed []string) Event {
	e := Event{Time: now, Port: p.plan.Addr, Address: p.address().String(), State: p.state, Added: added, Removed: removed}
	e.After = len(p.plan.Users)
	e.Before = e.After - len(added) + len(removed)
	if p.err != nil {
		e.Reason = p.err.Error()
	}
	return e
}

// address is what is bound, or else what is wanted.
func (p *port) address() plan.Addr {
	if len(p.socks) > 0 {
		return p.socks[0].Addr
	}
	return p.plan.Addr
}

// names are the users as tables show them: a route by its bare name.
func names(users []string) []string {
	out := make([]string, len(users))
	for i, u := range users {
		out[i] = strings.TrimPrefix(u, "route ")
	}
	return out
}

// diff compares two sorted lists of users.
func diff(was, is []string) (added, removed []string) {
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(was) == 0 || len(is) > 0 && is[0] < was[0]:
			added, is = append(added, is[0]), is[1:]
		case len(is) == 0 || was[0] < is[0]:
			removed, was = append(removed, was[0]), was[1:]
		default:
			was, is = was[1:], is[1:]
		}
	}
	return names(slices.Clip(added)), names(slices.Clip(removed))
}
