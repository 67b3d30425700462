package edge

import (
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/edge/http1"
	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/proxy"
	"github.com/quaymaster/quaymaster/internal/relay"
	"github.com/quaymaster/quaymaster/internal/route"
	"github.com/quaymaster/quaymaster/internal/sniff"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// conn is one client connection. Its goroutine owns it; what others may touch is atomic or guarded by Edge.mu.
type conn struct {
	info wire.ConnInfo
	c    net.Conn
	e    *Edge
	port *plan.Port

	// seen caches which part of the table this connection looks at; owned by the connection's goroutine.
	seen struct {
		table *route.Table
		port  *route.Port
	}
	secure     atomic.Pointer[secure] // nil on a plain connection
	identified bool                   // a per-IP slot is held
	first      *[]byte                // memory for first bytes, while it is needed; owned by whoever reads or relays them

	route      atomic.Pointer[proxy.Route]  // where an exchange or tunnel stands right now
	running    atomic.Pointer[relay.Tunnel] // while it is one
	member     atomic.Pointer[pools.Member] // the tunnel's target, where its route has an upstream
	prev, next *conn                        // guarded by Edge.mu
}

// Serve begins to serve c, which arrived at the port, in a goroutine of its own, and returns. The connection is closed
// when it is over. The caller has taken a slot with Guard.Accept; it is given back then. Drain waits for every
// connection that Serve was called with.
func (e *Edge) Serve(c net.Conn, port *plan.Port) {
	k := &conn{c: c, e: e, port: port}
	k.info.Owner = k
	k.info.ID = e.nextID.Add(1)
	k.info.Since = time.Now()
	e.add(k)
	go k.serve()
}

// serve is the whole life of the connection.
func (k *conn) serve() {
	e, c := k.e, k.c
	k.info.Peer = addrPort(c.RemoteAddr())
	k.info.Local = addrPort(c.LocalAddr())
	k.info.Client = k.info.Peer
	e.o.Guard.Arrived(k.port.Addr.String())
	if on, first := k.open(); on != nil {
		k.serveHTTP1(on, first)
		_ = on.Close()
	}
	_ = c.Close()
	if k.identified {
		e.o.Guard.Forget(k.info.Client.Addr())
	}
	e.remove(k)
	e.o.Guard.Leave()
}

// serveHTTP1 is kept small: its frame stands under every parked connection.
func (c *conn) serveHTTP1(on net.Conn, first *wire.Buffer) {
	_ = http1.Serve(on, &c.info, first, c.e.h1)
}

// openings hold what a client says before it is known what it speaks.
var openings = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// forget gives the memory of the first bytes back: when the opening is over, or when a tunnel has passed them on.
func (c *conn) forget() {
	if c.first != nil {
		openings.Put(c.first)
		c.first = nil
	}
}

// open does everything up to the protocol: PROXY header, per-IP gate, sniffing, and the connection stage. It returns
// where HTTP/1 is spoken, and what the client has said there so far; or nil when the connection is over.
func (c *conn) open() (on net.Conn, first *wire.Buffer) {
	s := c.e.snap.Load()
	c.first, _ = openings.Get().(*[]byte)
	defer c.forget()
	have := (*c.first)[:0]
	if c.port.Proxy != nil {
		var ok bool
		if have, ok = c.readProxy(have, &s.plan.Settings); !ok {
			return nil, nil
		}
	}
	c.info.ClientText = c.info.Client.Addr().AppendTo(nil)
	if !c.identify() {
		return nil, nil
	}
	tp := c.portOf(s)
	for tp.TunnelOnly() && len(have) == 0 {
		rule := tp.FirstSpeaker(c.info.Client.Addr())
		if rule == nil {
			break
		}
		if c.tunnel(s, rule, nil, nil) {
			return nil, nil
		}
		s = c.e.snap.Load()
		tp = c.portOf(s)
	}
	if tp.Empty() { // a client who waits for the server's word need not wait until ours is up
		c.reject(guard.NoRoute, "the port is no longer wanted")
		lingerClose(c.c)
		return nil, nil
	}
	res, err := sniff.Read(c.c, have, c.patience(tp, &s.plan.Settings.Timeouts))
	if cap(res.Bytes) > cap(*c.first) && cap(res.Bytes) <= 16<<10 {
		*c.first = res.Bytes[:0] // grown: keep the larger one
	}
	if len(res.Bytes) == 0 && err != nil && !isTimeout(err) {
		return nil, nil // came and went without a word
	}
	for {
		s = c.e.snap.Load() // the plan of now: saying hello may have taken seconds
		tp = c.portOf(s)
		if res.Kind == sniff.HTTP1 && (tp.HasHTTP() || tp.Ends()) {
			b := wire.GetBuffer()
			b.Append(res.Bytes)
			return c.c, b
		}
		on, done := c.dispatch(s, tp, &res, err)
		if done {
			return on, nil
		}
	}
}

// dispatch serves or refuses what is no plain HTTP. It reports false when the route ended in between: then look again. on
// is where HTTP/1 is spoken behind TLS, nil when the connection is over.
func (c *conn) dispatch(s *snapshot, tp *route.Port, res *sniff.Result, err error) (on net.Conn, done bool) {
	switch res.Kind {
	case sniff.HTTP1:
		c.unknown(res)
		return nil, true
	case sniff.TLS:
		return c.serveTLS(s, tp, res)
	}
	return nil, c.serveOther(s, tp, res, err)
}

// patience is how long the client may take to say what it speaks. On a port that also has a route for silent clients
// the first byte is awaited for the sniff time alone.
func (c *conn) patience(tp *route.Port, t *plan.Timeouts) sniff.Options {
	o := sniff.Options{Silence: t.ClientHello, Hello: t.ClientHello}
	if tp.HasHTTP() {
		o.Silence = t.RequestHeader
	}
	if tp.HasTCP() {
		o.Silence = t.Sniff
	}
	if c.e.draining.Load() {
		o.Silence = min(o.Silence, lastByte)
	}
	return o
}

// portOf is the part of the table that this connection sees in s.
func (c *conn) portOf(s *snapshot) *route.Port {
	if c.seen.table != s.table {
		c.seen.table, c.seen.port = s.table, s.table.Port(c.port.Addr, c.info.Local.Addr())
	}
	return c.seen.port
}

// readProxy reads the PROXY header of a trusted sender. From anybody else none is looked for, and where one is
// required the connection is refused.
func (c *conn) readProxy(have []byte, set *plan.Settings) ([]byte, bool) {
	want := c.port.Proxy
	if !contains(want.From, c.info.Peer.Addr()) {
		if want.Require {
			c.reject(guard.ProxyHeader, "no PROXY header is taken from this sender: add it to proxy_protocol.from")
			return nil, false
		}
		return have, true
	}
	src, dst, _, rest, err := sniff.ReadProxy(c.c, have, want.Require, time.Now().Add(set.Timeouts.ClientHello))
	if err != nil {
		c.reject(guard.ProxyHeader, err.Error())
		return nil, false
	}
	if src.IsValid() {
		c.info.Client = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	}
	if dst.IsValid() {
		c.info.Local = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	}
	return rest, true
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// identify passes the second gate: limits on the real client address.
func (c *conn) identify() bool {
	ip := c.info.Client.Addr()
	if !ip.IsValid() {
		return true // a unix socket has no address to count by
	}
	if why, ok := c.e.o.Guard.Identify(ip); !ok {
		c.reject(why, "")
		return false
	}
	c.identified = true
	return true
}

// reject counts a connection that ends here. What the client sees is a close.
func (c *conn) reject(why guard.Reason, detail string) {
	c.e.o.Guard.Reject(why, c.info.Client.Addr(), c.port.Addr.String(), detail)
}

// serveOther serves what is neither HTTP/1 nor TLS, or nothing at all; false as in dispatch.
func (c *conn) serveOther(s *snapshot, tp *route.Port, res *sniff.Result, err error) bool {
	q := route.ConnQuery{Kind: route.ConnOther, Client: c.info.Client.Addr()}
	switch res.Kind {
	case sniff.SSH:
		q.Kind = route.ConnSSH
	case sniff.Silent:
		q.Kind = route.ConnSilent
	case sniff.Broken:
		c.broken(res, err)
		return true
	}
	rule := tp.Conn(&q)
	switch {
	case rule != nil:
		if _, blocked := rule.Route.Action.(plan.Block); !blocked {
			return c.tunnel(s, rule, res.Bytes, nil)
		}
		c.reject(guard.Denied, rule.Route.Name)
	case res.Kind == sniff.Silent:
		c.silent(tp)
	default:
		c.unknown(res)
	}
	return true
}

// silent ends a connection that said nothing in time.
func (c *conn) silent(tp *route.Port) {
	if c.e.draining.Load() {
		return // nothing was asked for: nothing is refused
	}
	if tp.HasHTTP() {
		c.reject(guard.HeaderTimeout, "")
		return
	}
	c.reject(guard.HelloTimeout, "")
}

// broken ends a connection whose ClientHello did not come or cannot be read.
func (c *conn) broken(res *sniff.Result, err error) {
	if isTimeout(err) {
		c.reject(guard.HelloTimeout, "")
		return
	}
	detail := ""
	if err != nil {
		detail = err.Error()
	}
	c.alert(sniff.DecodeError, guard.TLS, detail)
}

// alert ends a TLS connection with an alert record.
func (c *conn) alert(a sniff.Alert, why guard.Reason, detail string) {
	c.reject(why, detail)
	c.sendAlert(a)
}

func (c *conn) sendAlert(a sniff.Alert) {
	_ = c.c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.c.Write(a.Bytes()) // the connection ends either way
	lingerClose(c.c)
}

// lingerClose lets the last bytes reach a peer that is still sending: closing a socket with unread bytes resets it,
// and the reset overtakes what was written (RFC 9112 section 9.6).
func lingerClose(c net.Conn) {
	t, ok := c.(interface{ CloseWrite() error })
	if !ok || t.CloseWrite() != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	var sink [512]byte
	for left := 64 << 10; left > 0; {
		n, err := c.Read(sink[:])
		if err != nil {
			return
		}
		left -= n
	}
}

// unknown ends a connection whose first bytes no route asks for; the guard logs them once per source and minute.
func (c *conn) unknown(res *sniff.Result) {
	c.reject(guard.UnknownProtocol, hex.EncodeToString(res.Bytes[:min(len(res.Bytes), 16)]))
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// targetText is the target of the tunnel this connection is, "" if it is none.
func (c *conn) targetText() string {
	if m := c.member.Load(); m != nil {
		return m.Target()
	}
	return ""
}

func (c *conn) describe() Connection {
	d := Connection{
		ID: c.info.ID, Client: c.info.Client.String(), Local: c.port.Addr.String(),
		State: wire.ConnState(c.info.State.Load()).String(), Since: c.info.Since, Target: c.targetText(),
	}
	if t := c.secure.Load(); t != nil {
		d.TLS, d.Name = t.version, t.query.Name
	}
	if r := c.route.Load(); r != nil {
		d.Route = r.Plan.Name
	}
	return d
}
