package edge

import (
	"crypto/tls"
	"errors"
	"io"
	"net"

	"github.com/quaymaster/quaymaster/internal/edge/terminate"
	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/route"
	"github.com/quaymaster/quaymaster/internal/sniff"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// spoken are the protocols that a client may choose by ALPN.
var spoken = []string{"http/1.1"}

// secure is what is known of a connection whose TLS ended here. It never changes.
type secure struct {
	query    route.ConnQuery
	policy   *terminate.Policy
	fallback bool   // the policy is that for clients which name nobody known
	version  string // of TLS
}

// serveTLS finds the rule for a ClientHello and acts by it: the TLS ends here, or is tunnelled untouched. The results are
// those of dispatch.
func (c *conn) serveTLS(s *snapshot, tp *route.Port, res *sniff.Result) (on net.Conn, done bool) {
	t := &secure{query: route.ConnQuery{
		Kind: route.ConnTLS, Name: res.Hello.Name, ALPN: res.Hello.ALPN,
		Client: c.info.Client.Addr(), Local: c.info.Local.Addr(),
	}}
	rule := tp.Conn(&t.query)
	switch {
	case rule == nil && !tp.HasTLS():
		c.unknown(res)
		return nil, true
	case rule == nil && tp.Ends() && s.policies.Default() != nil:
		t.fallback = true
		return c.terminate(s.policies.Default(), t, res), true
	case rule == nil:
		c.alert(sniff.UnrecognizedName, guard.NoRoute, res.Hello.Name)
		return nil, true
	case rule.Route.TLS.Ends():
		return c.terminate(s.policies.Of(rule.Index), t, res), true
	}
	switch rule.Route.Action.(type) {
	case plan.Block:
		c.alert(sniff.AccessDenied, guard.Denied, res.Hello.Name)
		return nil, true
	case plan.Internal: // the one there is: a CA validates a name
		if on := c.terminate(s.policies.Challenge(), t, res); on != nil {
			_ = on.Close() // the handshake was all
		}
		return nil, true
	}
	return nil, c.tunnel(s, rule, res.Bytes, &res.Hello)
}

// terminate ends the TLS of the connection. It returns what is spoken inside, nil when the connection is over.
func (c *conn) terminate(p *terminate.Policy, t *secure, res *sniff.Result) net.Conn {
	c.info.State.Store(uint32(wire.Busy))
	var local net.Addr
	if c.port.Proxy != nil && c.info.Local.IsValid() { // then who chose the route and who chooses the certificate agree
		local = net.TCPAddrFromAddrPort(c.info.Local)
	}
	k, err := p.Handshake(c.e.dialling, c.c, local, res.Bytes, c.e.snap.Load().plan.Settings.Timeouts.TLSHandshake)
	if err != nil {
		c.reject(guard.TLS, handshakeFault(res.Hello.Name, err))
		lingerClose(c.c)
		return nil
	}
	state := k.State()
	t.policy, t.version = p, versionText(state.Version)
	c.info.TLS = &state
	c.secure.Store(t)
	return k
}

// handshakeFault says why there was no handshake.
func handshakeFault(name string, err error) string {
	what := err.Error()
	if errors.Is(err, io.EOF) {
		what = "the client left in the middle of the handshake"
	}
	if name == "" {
		return what
	}
	return name + ": " + what
}

func versionText(v uint16) string {
	switch v {
	case tls.VersionTLS13:
		return "1.3"
	case tls.VersionTLS12:
		return "1.2"
	}
	return tls.VersionName(v)
}
