// Package route says which rule a connection or a request falls under.
//
// It promises that the same question to the same table always gets the same answer, that an answer costs the same with
// ten hosts as with ten thousand, and that a request whose path can be read in two ways is never routed by one of them
// alone. A table is compiled once and never changes. The package never reads from a connection, and it holds no state
// beyond the buffers it decodes odd paths in.
package route

import (
	"net/netip"
	"sync"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A Rule is one route of a plan, as a lookup answers it. It lives as long as its table.
type Rule struct {
	Route *plan.Route
	Index int // into the Routes of the plan the table was compiled from
}

// A Table answers for every port of one plan. It is safe for use by many goroutines.
type Table struct {
	rules   []rule
	sockets map[plan.Addr]*socket
	addrs   map[place][]plan.Addr // the wishes of the plan by port number, to find a socket that has since been merged
	parts   map[*plan.Route]*parts
	none    Port      // a port of which the plan knows nothing
	scratch sync.Pool // *scratch
}

// place is what two addresses must share to be able to overlap.
type place struct {
	network plan.Network
	port    uint16
	name    string
}

// socket holds what one listener shows, by the local address a connection came to.
type socket struct {
	v4, v6, unknown *Port
	byIP            map[netip.Addr]*Port
}

func (s *socket) port(local netip.Addr) *Port {
	if p, ok := s.byIP[local]; ok {
		return p
	}
	switch {
	case local.Is4():
		return s.v4
	case local.Is6():
		return s.v6
	}
	return s.unknown
}

// Port returns what a connection that arrived at local on the listener want may see. It is never nil, lives as long as
// the table and may be kept. A listener the plan no longer wants is answered by the one that took its place, if any.
func (t *Table) Port(want plan.Addr, local netip.Addr) *Port {
	local = local.Unmap().WithZone("")
	if s, ok := t.sockets[want]; ok {
		return s.port(local)
	}
	for _, a := range t.addrs[placeOf(want)] {
		if a.Overlaps(want) && a.Takes(local) {
			return t.sockets[a].port(local)
		}
	}
	return &t.none
}

func placeOf(a plan.Addr) place {
	if a.Network == plan.Unix {
		return place{network: a.Network, name: a.Path}
	}
	return place{network: a.Network, port: a.Port, name: a.Name}
}

// A Port is what the clients of one listening address may see.
type Port struct {
	conn, request, secure index
	tls                   names     // hosts of routes with a tls block
	policy                *plan.TLS // of every client that starts TLS here; nil: it depends, or there is none
	members               []member
	table                 *Table
	scratch               *sync.Pool

	hasTLS, hasTCP, hasHTTP, hasSecure, tunnelOnly bool

	mixed bool // more than one policy, while it is compiled
}

// Empty reports whether there is nothing here for anybody: the port was given up when a client was already there.
func (p *Port) Empty() bool { return len(p.members) == 0 }

// HasTLS reports whether a client that starts TLS can be served at all.
func (p *Port) HasTLS() bool { return p.hasTLS }

// HasTCP reports whether a tunnel here takes any bytes, so that silence has somewhere to go.
func (p *Port) HasTCP() bool { return p.hasTCP }

// HasHTTP reports whether plain requests have any rule here.
func (p *Port) HasHTTP() bool { return p.hasHTTP }

// Ends reports whether the TLS of any client ends here.
func (p *Port) Ends() bool { return p.hasSecure }

// TunnelOnly reports whether nothing a client says could change its rule: every route is a tunnel without domains, and
// all take the same protocols. Such a port is not sniffed, so that the target may speak first.
func (p *Port) TunnelOnly() bool { return p.tunnelOnly }

// FirstSpeaker returns the tunnel of a client that has said nothing yet and need not, nil if there is none.
func (p *Port) FirstSpeaker(client netip.Addr) *Rule {
	q := ConnQuery{Kind: ConnSilent, Client: client}
	if p.tunnelOnly {
		q.any = true
	}
	return p.Conn(&q)
}

// ConnKind is what the first bytes of a connection were.
type ConnKind uint8

// The kinds of connection. ConnOther is anything but TLS, SSH and HTTP; ConnSilent said nothing in time.
const (
	ConnOther ConnKind = iota
	ConnSilent
	ConnTLS
	ConnSSH
)

func (k ConnKind) String() string { return [...]string{"other bytes", "silence", "TLS", "SSH"}[k] }

// A ConnQuery is what is known of a connection that does not speak plain HTTP.
type ConnQuery struct {
	Kind   ConnKind
	Name   string   // of the TLS hello; "" if none
	ALPN   []string // of the TLS hello
	Client netip.Addr
	Local  netip.Addr // where it arrived: what a hello without a name asked for; may be zero

	any bool // whatever is said, the rule is the same
}

// Conn returns the rule of a connection, nil if there is none.
func (p *Port) Conn(q *ConnQuery) *Rule {
	var buf [maxHost]byte
	return p.connRule(q.host(buf[:0]), q)
}

// host appends what the query is looked up by to dst, which has room for maxHost bytes.
func (q *ConnQuery) host(dst []byte) []byte {
	if q.Kind == ConnTLS && q.Name == "" && q.Local.IsValid() {
		return plainAddr(q.Local).AppendTo(dst)
	}
	return normalise(dst, q.Name)
}

// connRule is Conn for a host in the form in which hosts are compared.
func (p *Port) connRule(host []byte, q *ConnQuery) *Rule {
	best, hit := noRank, (*rule)(nil)
	client := plainAddr(q.Client)
	for g := p.conn.find(host); g != nil && g.chain < best; g = g.up {
		for i := range g.any {
			e := &g.any[i]
			if e.rank >= best {
				break
			}
			if e.rule.connFault(q, client) == faultNone {
				best, hit = e.rank, e.rule
				break
			}
		}
	}
	if hit == nil {
		return nil
	}
	return &hit.Rule
}

// Fields gives the value of a header field, compared without case.
type Fields interface {
	Field(name string) ([]byte, bool)
}

// A Request is what is known of one HTTP request. It may be used again; kept in an object that outlives the call, it
// costs no allocation.
type Request struct {
	Method    []byte
	Host      []byte // as it came; case, port and a trailing dot do not count
	Target    []byte // path and query as they came
	Client    netip.Addr
	Protocols plan.Protocols // see ProtocolsOf
	Fields    Fields         // may be nil

	// TLS is the policy of the connection, if it ended here; nil on a plain one. Then Conn is the question whose answer
	// it was. Default tells that no rule gave it, but the certificate for clients that name nobody known.
	TLS     *plan.TLS
	Conn    *ConnQuery
	Default bool

	memo memo
}

// Verdict says how a request was answered.
type Verdict uint8

// The verdicts. An Ambiguous request has a path that different servers read differently, and the readings fall under
// different rules; it is to be refused with 400. A Misdirected one came on a TLS connection that its host does not share
// (RFC 9110 section 15.5.20); it is to be refused with 421.
const (
	NoRoute Verdict = iota
	Found
	Ambiguous
	Misdirected
)

func (v Verdict) String() string {
	return [...]string{"no route", "found", "ambiguous", "misdirected"}[v]
}

// Request returns the rule of a request. One on a plain connection sees the rules without TLS, one whose connection's
// TLS ended here those that end it. The rule is nil unless the verdict is Found.
func (p *Port) Request(q *Request) (*Rule, Verdict) {
	var buf [maxHost]byte
	host := normalise(buf[:0], q.Host)
	q.memo = memo{}
	w := walk{q: q, client: plainAddr(q.Client), scratch: p.scratch, best: noRank}
	if q.TLS != nil {
		return p.secureRequest(&w, host)
	}
	g := p.request.find(host)
	if g == nil {
		return nil, NoRoute
	}
	if !w.search(g) {
		return nil, Ambiguous
	}
	if w.hit == nil || w.byName && p.tls.has(host) {
		return nil, NoRoute
	}
	return &w.hit.Rule, Found
}

// search looks in a group and those above it, and reports false for an ambiguous path.
func (w *walk) search(g *group) bool {
	if !g.paths {
		w.groups(g, nil)
		return true
	}
	return w.readings(g, pathOf(w.q.Target))
}

// secureRequest is Request for a connection whose TLS ended here.
func (p *Port) secureRequest(w *walk, host []byte) (*Rule, Verdict) {
	g := p.secure.find(host)
	clear := g == nil || w.search(g)
	switch {
	case w.hit != nil && !w.q.admitted(w.hit.Route.TLS), !p.shares(w, host):
		return nil, Misdirected
	case !clear:
		return nil, Ambiguous
	case w.hit == nil:
		return nil, NoRoute
	}
	return &w.hit.Rule, Found
}

// shares reports whether a connection that asked for this host would have come under the policy of this one.
func (p *Port) shares(w *walk, host []byte) bool {
	q := w.q
	if w.hit != nil && host != nil && string(host) == q.Conn.Name {
		return true // the ordinary case
	}
	if q.Default && q.Conn.Name == "" {
		return true // it could not say better, and what it is admitted to was judged
	}
	if t := p.policy; t != nil {
		return t == q.TLS || q.TLS.SamePolicy(t) || p.connRule(host, q.Conn) == nil
	}
	r := p.connRule(host, q.Conn)
	return r == nil || q.TLS.SamePolicy(r.Route.TLS)
}

// admitted reports whether the client has shown what a rule under t demands, whatever certificate it was shown itself.
func (q *Request) admitted(t *plan.TLS) bool {
	return t == q.TLS || t.MinVersion <= q.TLS.MinVersion &&
		(t.ClientAuth == q.TLS.ClientAuth || t.ClientAuth.Mode == "none" || t.ClientAuth.Mode == "")
}

// TLSOnly reports whether a host has routes on this port, and all of them want TLS: its plain requests are answered
// with a redirect to https. It is asked after Request found nothing.
func (p *Port) TLSOnly(host []byte) bool {
	if !p.tls.any && len(p.tls.exact)+len(p.tls.wild)+len(p.tls.deep) == 0 {
		return false
	}
	var buf [maxHost]byte
	h := normalise(buf[:0], host)
	if h == nil || !p.tls.any && !p.tls.has(h) {
		return false
	}
	for g := p.request.find(h); g != nil; g = g.up {
		if g.plain {
			return false
		}
	}
	return true
}

// plainAddr is the form in which clients are compared: no v4-mapped addresses, no zones.
func plainAddr(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	return a.Unmap().WithZone("")
}
