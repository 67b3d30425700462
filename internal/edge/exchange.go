package edge

import (
	"net/netip"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/proxy"
	"github.com/quaymaster/quaymaster/internal/route"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// handle acts out one exchange: which route by the table of this moment, then the route's own doing, then the log.
func handle(ex *wire.Exchange) {
	c, _ := ex.Conn.Owner.(*conn) // Serve put it there
	s, rule, verdict := c.choose(ex)
	switch {
	case rule != nil && verdict == route.Misdirected:
		ex.Out = last{ex.Out}
		proxy.Refuse(ex, 421, "misdirected", "the ca_file of the route holds something else than when this connection began", 0)
	case rule != nil:
		live := s.routes[rule.Index]
		c.route.Store(live)
		c.e.overtaken(c, live, s)
		live.Serve(ex)
		c.route.Store(nil)
		live.Life.Drop()
	case verdict == route.Misdirected:
		proxy.Refuse(ex, 421, "misdirected", "the host has another TLS policy than the server name of this connection", 0)
	case verdict == route.Ambiguous:
		proxy.Refuse(ex, 400, "bad_request", "the path has readings that belong to different routes", 0)
	case c.info.TLS == nil && c.portOf(s).TLSOnly(ex.Req.Authority):
		proxy.RedirectTLS(ex)
	default:
		c.reject(guard.NoRoute, "")
		proxy.Refuse(ex, 404, "no_route", "", 0)
	}
	if s.plan.Settings.AccessLog.Enabled || ex.Log.Reason != "" {
		c.logExchange(s, ex)
	}
}

// questions are asked by one exchange at a time; on the stack each would be an allocation.
var questions = sync.Pool{New: func() any { return &route.Request{} }}

// last is an answer that the connection ends with.
type last struct{ wire.Answer }

// Begin implements wire.Answer.
func (l last) Begin(h *wire.Head, n int64) (wire.Sink, error) {
	h.Close = true
	return l.Answer.Begin(h, n)
}

// choose finds the rule for a request and takes a reference on its route. A route that ended between the two is looked
// up again in the newer table. A rule that is Misdirected takes clients of other CAs by now than when this one came; there
// is no reference on its route.
func (c *conn) choose(ex *wire.Exchange) (*snapshot, *route.Rule, route.Verdict) {
	q, _ := questions.Get().(*route.Request)
	defer questions.Put(q)
	for {
		s := c.e.snap.Load()
		*q = route.Request{
			Method: ex.Req.Method, Host: ex.Req.Authority, Target: ex.Req.Target, Client: c.clientOf(ex, s),
			Fields: &ex.Req,
		}
		t := c.secure.Load()
		if t != nil {
			q.TLS, q.Conn, q.Default = t.policy.TLS, &t.query, t.fallback
		}
		q.Protocols = route.ProtocolsOf(&ex.Req, plan.ProtoHTTP1, ex.Req.Method, ex.Req.Target, ex.Req.Upgrade, nil)
		rule, verdict := c.portOf(s).Request(q)
		if rule != nil && t != nil && !t.policy.Vouches(s.policies.Of(rule.Index)) {
			return s, rule, route.Misdirected
		}
		if rule == nil || s.routes[rule.Index].Life.Hold() {
			return s, rule, verdict
		}
	}
}

// clientOf is the address that client_ips and limits of a request go by.
func (c *conn) clientOf(ex *wire.Exchange, s *snapshot) netip.Addr {
	a := c.info.Client.Addr()
	if trusted := s.plan.Settings.TrustedProxies; len(trusted) > 0 && contains(trusted, a) {
		return proxy.ForwardedClient(&ex.Req, a, trusted)
	}
	return a
}

// refuseHead counts and logs a request that could not be read; http1 has answered it.
func refuseHead(info *wire.ConnInfo, e *wire.ParseError, id string) {
	c, _ := info.Owner.(*conn)
	why := guard.BadRequest
	if e.Status == 408 {
		why = guard.HeaderTimeout
	}
	c.reject(why, e.What)
	log := wire.Record{ID: []byte(id), Status: e.Status, Reason: string(why), Detail: e.What}
	c.write(c.e.snap.Load(), &entry{start: time.Now(), client: info.Client.Addr(), kind: "http", Record: &log})
}

// write remembers an entry that tells of a failure, and logs any.
func (c *conn) write(s *snapshot, e *entry) {
	if e.Reason != "" && len(e.ID) > 0 {
		c.e.failed.keep(e)
	}
	c.e.access.write(&s.plan.Settings.AccessLog, e)
}

func (c *conn) logExchange(s *snapshot, ex *wire.Exchange) {
	agent, _ := ex.Req.Field("User-Agent")
	e := entry{
		start: ex.Start, took: time.Since(ex.Start), client: c.clientOf(ex, s), kind: "http", proto: "HTTP/1.1",
		method: ex.Req.Method, host: ex.Req.Authority, target: ex.Req.Target, agent: agent, Record: &ex.Log,
	}
	if ex.Req.Minor == 0 {
		e.proto = "HTTP/1.0"
	}
	if t := c.secure.Load(); t != nil {
		e.tls = t.version
	}
	c.write(s, &e)
}
