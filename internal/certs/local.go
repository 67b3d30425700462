package certs

import (
	"context"
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/ca"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// slot is the leaf of one name of the local CA. It is made when it is asked for: signing one costs less than the
// handshake that waits for it.
type slot struct {
	name string
	now  atomic.Pointer[leaf] // nil: none yet

	mu    sync.Mutex // held by who makes one; guards what follows
	fault error
	again time.Time // when a CA that could not is asked again
	made  int
}

type leaf struct {
	cert    *tls.Certificate
	begin   time.Time
	renewAt time.Time
	end     time.Time
}

// fresh reports whether nothing is to be done about l. One that has not begun was made when the clock was ahead.
func (l *leaf) fresh(now time.Time) bool {
	return l != nil && !now.Before(l.begin) && now.Before(l.renewAt)
}

// get is the leaf in force. One whose time has come is replaced first; if that cannot be it serves to its end.
func (s *slot) get(c *Certs) (*tls.Certificate, error) {
	now := c.o.Now()
	l := s.now.Load()
	if l.fresh(now) {
		return l.cert, nil
	}
	if l != nil && now.Before(l.end) && !s.mu.TryLock() {
		return l.cert, nil // somebody makes the next one
	} else if l == nil || !now.Before(l.end) {
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if l := s.now.Load(); l.fresh(now) {
		return l.cert, nil
	}
	err := s.make(c)
	if l := s.now.Load(); l != nil && now.Before(l.end) {
		return l.cert, nil
	}
	return nil, err
}

// make signs a leaf. mu is held.
func (s *slot) make(c *Certs) error {
	now := c.o.Now()
	if s.fault != nil && now.Before(s.again) && s.again.Sub(now) <= tick { // more: the clock was set back
		return s.fault
	}
	cert, err := c.ca.Leaf(s.name)
	if err != nil {
		s.fault, s.again = err, now.Add(tick)
		return err
	}
	s.now.Store(&leaf{cert: cert, begin: cert.Leaf.NotBefore, renewAt: ca.RenewAt(cert.Leaf), end: cert.Leaf.NotAfter})
	s.fault = nil
	s.made++
	return nil
}

// eager is up to how many names leaves are made before anybody asks, so that their status says when they end.
const eager = 1000

// tend makes the leaves that are due, and lets the CA keep what it has.
func (c *Certs) tend(ctx context.Context) {
	x := c.now.Load()
	if len(x.local) > 0 || len(x.wild) > 0 || x.strangers() {
		was := c.ca.Fault()
		err := c.ca.Tend()
		if err != nil && (was == nil || was.Error() != err.Error()) {
			c.o.Log.Error("local CA", "err", err)
			c.o.Events("certificate.failing", "local CA", err.Error())
		}
	}
	var breath plan.Breath
	defer breath.End()
	now := c.o.Now()
	for _, s := range x.local {
		breath.Take()
		if ctx.Err() != nil {
			return
		}
		l := s.now.Load()
		if l == nil && len(x.local) > eager || l.fresh(now) {
			continue
		}
		s.mu.Lock()
		again := s.made > 0
		err := s.make(c)
		s.mu.Unlock()
		if err == nil && again {
			c.o.Log.Info("certificate renewed", "host", s.name, "source", "internal")
			c.o.Events("certificate.renewed", s.name, "by the local CA")
		}
	}
	x.anon.leave(now)
}

// crowd holds the leaves of names that only clients spell out. Any client can invent them, so there is a bound: beyond
// it, some other name's leaf goes and is made anew when it is asked for again.
type crowd struct {
	mu    sync.Mutex // guards slots
	slots map[string]*slot
}

const maxCrowd = 4096

func newCrowd() *crowd { return &crowd{slots: map[string]*slot{}} }

func (w *crowd) slot(name string, now time.Time) *slot {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.slots[name]
	if s == nil {
		if len(w.slots) >= maxCrowd {
			for old := range w.slots {
				delete(w.slots, old)
				break
			}
		}
		s = &slot{name: name}
		w.slots[name] = s
	}
	return s
}

// leave forgets those whose leaf has ended: nobody has asked for them in a long time.
func (w *crowd) leave(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, s := range w.slots {
		if l := s.now.Load(); l == nil || !now.Before(l.end) {
			delete(w.slots, name)
		}
	}
}
