package acme

import (
	"context"
	"crypto/tls"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
)

// An entry is one name and its certificate.
type entry struct {
	name   string
	demand bool // asked for by a client
	cert   atomic.Pointer[tls.Certificate]
	used   atomic.Bool // on demand: a client wanted it since it was made

	// Issuer.mu guards what follows.
	users     []string
	rec       *kept  // what cert was made of; nil = none
	unstored  bool   // rec could not be written
	challenge string // being tried
	plan      schedule
	working   bool
	cancel    context.CancelFunc // of the order under way
	forced    bool               // somebody wants it anew
	asked     bool               // on demand: a client waits for an order
	blocked   string             // why no order can begin
	hold      time.Time          // no order before this: the CAs rest
	done      chan struct{}      // closed at the end of the order under way or to come; nil = nobody waits
}

// inherit takes over the certificate and the schedule of another entry of the same name. a.mu is held.
func (e *entry) inherit(from *entry) {
	e.rec, e.unstored, e.plan, e.hold = from.rec, from.unstored, from.plan, from.hold
	e.cert.Store(from.cert.Load())
}

// A schedule is what has to be remembered between orders.
type schedule struct {
	Attempts int       `json:"attempts,omitempty"` // failed ones in a row; the one under way counts
	Tried    time.Time `json:"tried,omitzero"`     // when the last began
	Wait     seconds   `json:"wait,omitempty"`     // from then to the next
	Refused  bool      `json:"refused,omitempty"`  // by a CA, and not for want of one
	Error    string    `json:"error,omitempty"`
	ARI      window    `json:"ari,omitzero"`
}

// A window is when the CA would have the certificate renewed, and the moment in it that we chose.
type window struct {
	Serial string    `json:"serial,omitempty"` // of the certificate that it is about
	Start  time.Time `json:"start,omitzero"`
	End    time.Time `json:"end,omitzero"`
	At     time.Time `json:"at,omitzero"`
	Again  time.Time `json:"again,omitzero"` // when to ask again
}

type seconds int64

func (s seconds) duration() time.Duration { return time.Duration(s) * time.Second }

// next is when the last failure lets another order begin. A clock that was set back makes nobody wait longer than was
// meant.
func (s *schedule) next(now time.Time) time.Time {
	if s.Attempts == 0 {
		return time.Time{}
	}
	tried := s.Tried
	if tried.After(now) {
		tried = now
		s.Tried = now
	}
	return tried.Add(s.Wait.duration())
}

// due says when there is an order to be made; the zero time means never, unless something else happens.
func (e *entry) due(a *Issuer, now time.Time) time.Time {
	if e.working {
		return time.Time{}
	}
	if e.forced {
		return now
	}
	at := now
	c := e.cert.Load()
	switch {
	case e.demand && c == nil && !e.asked:
		return time.Time{}
	case e.demand && c != nil && !e.used.Load():
		return time.Time{}
	case c != nil:
		at = a.renewAt(e, c.Leaf)
	}
	for _, t := range []time.Time{e.plan.next(now), e.held(now), e.rested(now)} {
		if t.After(at) {
			at = t
		}
	}
	return at
}

// held is until when no order is made whatever the schedule says. It is never longer than the longest that there is: one
// that is was made by a clock that was ahead. Issuer.mu is held.
func (e *entry) held(now time.Time) time.Time {
	if most := now.Add(deniedWait); e.hold.After(most) {
		e.hold = most
	}
	return e.hold
}

// rested is when the certificate is old enough to be renewed, whatever the CA or the clock makes of its times: after an
// hour, or half its lifetime where that is less.
func (e *entry) rested(now time.Time) time.Time {
	c := e.cert.Load()
	if c == nil || e.rec == nil || e.rec.Obtained.After(now) { // by a clock that was ahead
		return time.Time{}
	}
	life := c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)
	return e.rec.Obtained.Add(min(max(life/2, restLeast), restMost))
}

// status is e for people. a.mu is held.
func (e *entry) status(a *Issuer, now time.Time) State {
	s := State{
		Name: e.name, State: Pending, Error: e.plan.Error, Attempts: e.plan.Attempts, Challenge: e.challenge,
		OnDemand: e.demand, Users: e.users,
	}
	c := e.cert.Load()
	if c != nil {
		s.State, s.NotBefore, s.NotAfter = Valid, c.Leaf.NotBefore, c.Leaf.NotAfter
		if !c.Leaf.NotAfter.After(now) {
			s.State = Expired
		}
		s.RenewAt = a.renewAt(e, c.Leaf)
	}
	if e.rec != nil {
		s.Issuer = authority.Host(e.rec.Directory)
		s.File = a.store.Where(certFile(e.name))
		if s.Challenge == "" {
			s.Challenge = e.rec.Challenge
		}
		if e.unstored {
			s.Error = "it is kept in memory only: " + a.storeFault()
			s.File = ""
		}
	}
	switch {
	case e.working:
		s.State = Ordering
		s.Attempts = max(s.Attempts-1, 0) // the one under way has not failed yet
	case e.plan.Attempts > 0:
		s.State = Failing
		s.NextTry = e.due(a, now)
	case e.blocked != "" || !e.hold.IsZero():
		s.NextTry = e.held(now)
	}
	if e.blocked != "" && !e.working {
		s.Error = e.blocked
	}
	return s
}

// release tells those who wait for the end of an order. a.mu is held.
func (e *entry) release() {
	if e.done != nil {
		close(e.done)
		e.done = nil
	}
}
