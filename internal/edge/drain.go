package edge

import (
	"context"
	"net"
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

// Drain lets every connection end: HTTP/1.1 connections get Connection: close on their next answer and are closed after
// a second without a byte, transfers and tunnels finish. When ctx ends the rest is cut, WebSockets with 1001, tunnels
// with a FIN. It returns how many were cut. Connections may still be handed to ServeConn while it runs.
func (e *Edge) Drain(ctx context.Context) (cut int) {
	e.draining.Store(true)
	e.mu.Lock()
	began := e.count
	for c := e.first; c != nil; c = c.next {
		if wire.ConnState(c.info.State.Load()) == wire.Idle {
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
	<-e.quiet
	return n
}

// depart applies on_remove to the connections that stand on routes which left the plan. A tunnel whose target is still
// a target of the route's new value is left alone.
func (e *Edge) depart(gone []*proxy.Route, next *snapshot) {
	left := make(map[*proxy.Route]*plan.Upstream, len(gone))
	for _, r := range gone {
		left[r] = upstreamOf(next.plan, r.Plan.Name)
	}
	var drained []*conn
	e.mu.Lock()
	for c := e.first; c != nil; c = c.next {
		r := c.route.Load()
		up, ok := left[r]
		if r == nil || !ok || hasTarget(up, c.targetText()) {
			continue
		}
		if r.Plan.OnRemove == plan.CloseOnRemove {
			c.end()
		} else {
			drained = append(drained, c)
		}
	}
	e.mu.Unlock()
	if len(drained) > 0 {
		e.drainLater(drained, next.plan.Settings.DrainTimeout)
	}
}

// drainLater ends the connections that still stand on the same route when the drain timeout is over. Nothing waits
// for it: a connection that has left by itself has cleared its route.
func (e *Edge) drainLater(conns []*conn, after time.Duration) {
	type stand struct {
		c *conn
		r *proxy.Route
	}
	stands := make([]stand, len(conns))
	for i, c := range conns {
		stands[i] = stand{c, c.route.Load()}
	}
	time.AfterFunc(after, func() {
		for _, s := range stands {
			if s.r != nil && s.c.route.Load() == s.r {
				s.c.end()
			}
		}
	})
}

// upstreamOf is the upstream of the route of that name, nil if either is gone.
func upstreamOf(p *plan.Plan, name string) *plan.Upstream {
	r := p.Route(name)
	if r == nil {
		return nil
	}
	switch a := r.Action.(type) {
	case plan.Tunnel:
		return p.Upstream(a.Upstream)
	case plan.Forward:
		return p.Upstream(a.Upstream)
	}
	return nil
}

func hasTarget(u *plan.Upstream, text string) bool {
	if u == nil || text == "" {
		return false
	}
	for i := range u.Targets {
		if u.Targets[i].Text == text {
			return true
		}
	}
	return false
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

// shut ends the connection under its user. The past deadline ends waits of our side; closing both directions lets a
// peer see a FIN.
func (c *conn) shut() {
	c.cut.Store(true)
	_ = c.c.SetDeadline(time.Unix(1, 0))
	if t := c.target.Load(); t != nil {
		_ = (*t).SetDeadline(time.Unix(1, 0))
	}
	if t, ok := c.c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
}
