package edge

import (
	"context"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/proxy"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// lastByte is how long an idle connection may still begin a request once a drain has begun; farewell is how long a
// connection that was asked to end may take before it is closed under its user.
const (
	lastByte = time.Second
	farewell = time.Second
)

// Leave lets every connection end in its own time, for the successor that takes the new ones: HTTP/1.1 connections get
// Connection: close on their next answer and stay until then, or until keep_alive. It returns when the last has left, or
// with ctx; Drain may follow.
func (e *Edge) Leave(ctx context.Context) (left int) {
	e.leaving.Store(true)
	e.mu.Lock()
	for t := range e.timers {
		t.Stop()
	}
	if e.count == 0 {
		e.signalQuiet()
	}
	e.mu.Unlock()
	select {
	case <-e.quiet:
		return 0
	case <-ctx.Done():
		_, left = e.Connections(0)
		return left
	}
}

// Drain lets every connection end: HTTP/1.1 connections get Connection: close on their next answer and are closed after
// a second without a byte, transfers and tunnels finish. When ctx ends the rest is cut, WebSockets with 1001, tunnels
// with a FIN. It returns how many were cut. Connections may still be handed to ServeConn while it runs.
func (e *Edge) Drain(ctx context.Context) (cut int) {
	e.leaving.Store(true)
	e.draining.Store(true)
	e.mu.Lock()
	for t := range e.timers {
		t.Stop()
	}
	began := e.count
	for c := e.first; c != nil; c = c.next {
		// One that has not said a word is as idle as one between requests; its first byte sets the deadline anew.
		if s := wire.ConnState(c.info.State.Load()); s == wire.Idle || s == wire.Opening {
			_ = c.c.SetReadDeadline(time.Now().Add(lastByte))
		}
	}
	if e.count == 0 {
		e.signalQuiet()
	}
	e.mu.Unlock()
	if began > 0 {
		e.o.Log.Info("draining connections", "connections", began)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-e.quiet:
			if began > 0 {
				e.o.Log.Info("drained", "connections", began)
			}
			return 0
		case <-tick.C:
			_, left := e.Connections(0)
			e.o.Log.Info("draining connections", "connections", left)
		case <-ctx.Done():
			return e.cutAll()
		}
	}
}

// cutAll ends every connection and waits until the last has left.
func (e *Edge) cutAll() int {
	e.mu.Lock()
	n := e.count
	for c := e.first; c != nil; c = c.next {
		c.end()
	}
	e.mu.Unlock()
	if n > 0 {
		e.o.Log.Warn("connections cut at the deadline", "connections", n)
	}
	last := time.NewTimer(farewell)
	defer last.Stop()
	select {
	case <-e.quiet:
		return n
	case <-last.C:
	}
	e.mu.Lock()
	for c := e.first; c != nil; c = c.next {
		c.shut()
	}
	e.mu.Unlock()
	e.abandon()
	<-e.quiet
	return n
}

// depart applies on_remove after a change of plan: to everything that stands on a route which is gone by name, on an
// earlier state of it too, and to tunnels whose target is no longer a target. Whatever else is under way ends as it began.
func (e *Edge) depart(gone []*proxy.Route, next *plan.Plan) {
	left := make(map[string]*plan.Route)
	for _, r := range gone {
		if next.Route(r.Plan.Name) == nil {
			left[r.Plan.Name] = r.Plan
		}
	}
	var drained []stand
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := e.first; c != nil; c = c.next {
		r, m := c.route.Load(), c.member.Load()
		if r == nil {
			continue
		}
		last := left[r.Plan.Name] // as it was removed
		if last == nil {
			if m == nil || !m.Retired() {
				continue
			}
			last = r.Plan
		}
		if last.OnRemove == plan.CloseOnRemove {
			c.end()
		} else {
			drained = append(drained, stand{c, r})
		}
	}
	if len(drained) > 0 && !e.leaving.Load() {
		e.endLater(drained, next.Settings.DrainTimeout)
	}
}

// overtaken does for one connection what depart did for all, when it came to stand on r by the plan of s (nil: of an
// earlier one) after that plan had gone and depart had passed.
func (e *Edge) overtaken(c *conn, r *proxy.Route, s *snapshot) {
	now := e.snap.Load()
	if now == s {
		return
	}
	m := c.member.Load()
	if now.plan.Route(r.Plan.Name) != nil && (m == nil || !m.Retired()) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case r.Plan.OnRemove == plan.CloseOnRemove:
		c.end()
	case !e.leaving.Load():
		e.endLater([]stand{{c, r}}, now.plan.Settings.DrainTimeout)
	}
}

// stand is a connection and the route it stood on when its end was decided.
type stand struct {
	c *conn
	r *proxy.Route
}

// endLater ends the connections that still stand where they stood when the drain timeout is over. mu is held; Drain
// stops the timer.
func (e *Edge) endLater(stands []stand, after time.Duration) {
	if e.timers == nil {
		e.timers = make(map[*time.Timer]bool)
	}
	var t *time.Timer
	t = time.AfterFunc(after, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.timers, t)
		for _, s := range stands {
			if s.c.route.Load() == s.r {
				s.c.end()
			}
		}
	})
	e.timers[t] = true
}

// end asks the connection to finish: a WebSocket says 1001, anything else finds both directions over. It may be called
// from any goroutine.
func (c *conn) end() {
	if f := c.info.Farewell.Load(); f != nil {
		(*f)()
		return
	}
	c.shut()
}

// shut ends the connection under its user: a tunnel is cut, any other wait of our side ends by a past deadline, the
// peer sees a FIN, and an exchange that waits for its target sees a client that hung up, and gives the target up.
func (c *conn) shut() {
	c.info.Cut.Store(true)
	if t := c.running.Load(); t != nil {
		t.Cut()
		return
	}
	_ = c.c.SetDeadline(time.Unix(1, 0))
	if t, ok := c.c.(interface {
		CloseRead() error
		CloseWrite() error
	}); ok {
		_ = t.CloseWrite()
		_ = t.CloseRead()
	}
}
