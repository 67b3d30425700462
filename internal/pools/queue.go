package pools

import (
	"errors"
	"strings"
	"time"
)

// A waiter is one Open in the queue of its pool.
type waiter struct {
	prev, next *waiter
	ask        *Ask
	ready      chan struct{} // has room for the one message it gets
	m          *Member       // granted, with a slot on it
	err        error
}

// A queue holds the waiters of a pool, first come first served. Its pool's mu guards it.
type queue struct {
	head, tail *waiter
	n          int
}

func (q *queue) push(w *waiter) {
	w.prev = q.tail
	if q.tail != nil {
		q.tail.next = w
	} else {
		q.head = w
	}
	q.tail = w
	q.n++
}

func (q *queue) remove(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.tail = w.prev
	}
	q.n--
}

// wait queues until a target has a slot. It is called with mu held and returns without it. full is what pick said: no
// means that nobody is up, and then there is nothing to wait for.
func (p *Pool) wait(ask *Ask, s *Stream, full bool) (*Member, error) {
	if !full {
		err := p.downError()
		p.mu.Unlock()
		return nil, err
	}
	set := p.want.Pool
	if p.queue.n >= set.Queue {
		p.mu.Unlock()
		return nil, &Error{Kind: "queue_full", Upstream: p.name}
	}
	w := &waiter{ask: ask, ready: make(chan struct{}, 1)}
	p.queue.push(w)
	p.mu.Unlock()

	abort := make(chan struct{})
	s.mu.Lock()
	if s.aborted {
		close(abort)
	} else {
		s.wake = abort
	}
	s.mu.Unlock()
	var late <-chan time.Time
	if set.QueueTimeout > 0 {
		t := time.NewTimer(set.QueueTimeout)
		defer t.Stop()
		late = t.C
	}
	kind := ""
	select {
	case <-w.ready:
	case <-late:
		kind = "queue_timeout"
	case <-abort:
		kind = "aborted"
	}
	s.mu.Lock()
	s.wake = nil
	s.mu.Unlock()
	return p.waited(w, kind)
}

// waited takes w out of the queue, or what it was granted. kind is why the waiting ended, "" if by a grant.
func (p *Pool) waited(w *waiter, kind string) (*Member, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case w.err != nil:
		return nil, w.err
	case w.m == nil:
		p.queue.remove(w)
		return nil, &Error{Kind: kind, Upstream: p.name}
	case kind == "aborted":
		w.m.give()
		p.pump(p.ps.now())
		return nil, &Error{Kind: kind, Upstream: p.name}
	}
	return w.m, nil
}

// pump grants slots to waiters for as long as there are any. mu is held.
func (p *Pool) pump(now int64) {
	for w := p.queue.head; w != nil; {
		next := w.next
		m, full := p.pick(w.ask, now)
		switch {
		case m != nil:
			m.take()
			w.m = m
		case !full:
			w.err = p.downError()
		case p.want.Balance.StickyCookie == "":
			return // everyone behind w waits for the same
		default:
			w = next
			continue
		}
		p.queue.remove(w)
		w.ready <- struct{}{}
		w = next
	}
}

// downError says why nobody is up, target by target. mu is held.
func (p *Pool) downError() *Error {
	if len(p.members) == 0 {
		return &Error{Kind: "no_targets", Upstream: p.name}
	}
	var b strings.Builder
	for i, m := range p.members {
		if i > 0 {
			b.WriteString(", ")
		}
		if i == maxReasons {
			b.WriteString("...")
			break
		}
		b.WriteString(m.target.Text + " (" + m.reason + ")")
	}
	return &Error{Kind: "down", Upstream: p.name, Err: errors.New(b.String())}
}

// maxReasons bounds how many targets one error lists.
const maxReasons = 8
