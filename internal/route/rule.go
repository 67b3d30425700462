package route

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// maxRegex bounds the text of a regular expression. RE2 runs in linear time, but its programs grow with the text.
const maxRegex = 1000

// requestProtocols are the kinds that the request stage tells apart.
const requestProtocols = ^plan.ConnProtocols

// parts are what a route compiles to, whatever plan it stands in.
type parts struct {
	hosts   []hostPattern
	paths   []*pathPattern
	headers []fieldCond
	query   []fieldCond
	clients []netip.Prefix

	takes     plan.Protocols // kinds of connection; 0: none
	alpn      plan.Protocols // ProtoHTTP1 and ProtoH2 where the hello must offer them
	requests  bool           // seen by plain requests
	secure    bool           // seen by requests on connections whose TLS ends here
	protocols plan.Protocols // kinds of request; 0: any

	connCount, requestCount   int // conditions besides host and path
	connNarrow, requestNarrow uint8
	byName, internal          bool

	below string // of a preview: the path that its requests are below; it stands in no tree of paths, which would be that of other routes too
}

// rule is a route in its plan.
type rule struct {
	Rule
	*parts
	claim     func(*Request) bool
	connClaim func(*ConnQuery) bool
	shown     *shown // of its table, where the route is of a preview
}

// fieldCond is a condition on a header field or a query parameter.
type fieldCond struct {
	name, value string
	regex       *regexp.Regexp
}

func (c *fieldCond) String() string {
	if c.regex != nil {
		return fmt.Sprintf("%s ~ %s", c.name, c.regex)
	}
	return fmt.Sprintf("%s = %q", c.name, c.value)
}

func (c *fieldCond) holds(value []byte) bool {
	if c.regex != nil {
		return c.regex.Match(value)
	}
	return string(value) == c.value
}

// parse compiles one route.
func parse(r *plan.Route) (*parts, error) {
	p := &parts{}
	m := &r.Match
	var errs []error
	for _, d := range m.Domains {
		h, err := parseHost(d)
		errs = append(errs, err)
		p.hosts = append(p.hosts, h)
	}
	if len(p.hosts) == 0 {
		p.hosts = anyHosts
	}
	for _, text := range m.Paths {
		path, err := parsePath(text)
		errs = append(errs, err)
		p.paths = append(p.paths, path)
	}
	if m.Preview != nil && len(m.Paths) > 0 {
		p.below, p.paths = strings.TrimSuffix(m.Paths[0], "/*"), nil
	}
	if len(p.paths) == 0 {
		p.paths = anyPaths
	}
	p.headers = fieldConds("header", m.Headers, &errs)
	p.query = fieldConds("query parameter", m.Query, &errs)
	for _, c := range m.Clients {
		p.clients = append(p.clients, plainPrefix(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("route %s: %w", r.Name, err)
	}
	p.stages(r)
	return p, nil
}

var (
	anyHosts = []hostPattern{{class: anyHost}}
	anyPaths = []*pathPattern{nil}
)

func fieldConds(kind string, list []plan.FieldMatch, errs *[]error) []fieldCond {
	var out []fieldCond
	for _, f := range list {
		c := fieldCond{name: f.Name, value: f.Value}
		if f.Regex != "" {
			var err error
			if len(f.Regex) > maxRegex {
				err = fmt.Errorf("%s %s: the regular expression has %d bytes, at most %d are allowed", kind, f.Name, len(f.Regex), maxRegex)
			} else if c.regex, err = regexp.Compile(f.Regex); err != nil {
				err = fmt.Errorf("%s %s: %w", kind, f.Name, err)
			}
			*errs = append(*errs, err)
		}
		out = append(out, c)
	}
	return out
}

// plainPrefix is a prefix in the form plainAddr gives addresses.
func plainPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// stages works out which clients see the route, and how narrow it is among its like.
func (p *parts) stages(r *plan.Route) {
	m := &r.Match
	count := 0
	if len(m.Clients) > 0 {
		count++
	}
	p.requestCount = count + len(m.Headers) + len(m.Query)
	if len(m.Methods) > 0 {
		p.requestCount++
	}
	if m.Preview != nil {
		p.requestCount++
	}
	p.protocols = m.Protocols & requestProtocols
	named := m.Protocols & plan.ConnProtocols
	requestsOnly := len(m.Paths)+len(m.Methods)+len(m.Headers)+len(m.Query) > 0 || named == 0 && p.protocols != 0

	_, tunnel := r.Action.(plan.Tunnel)
	switch a := r.Action.(type) {
	case plan.ByName:
		p.byName = true
		p.takes = plan.ProtoTLS
	case plan.Block:
		p.takes = named
		if named == 0 && !requestsOnly {
			p.takes = plan.ProtoTLS // the alert that a name is refused
		}
	case plan.Internal:
		p.internal = a.Name != ""
	default:
		if tunnel {
			p.takes = named
		}
	}
	if r.TLS != nil {
		p.takes |= plan.ProtoTLS
		if named == 0 && !r.TLS.Ends() {
			p.alpn = m.Protocols & (plan.ProtoHTTP1 | plan.ProtoH2)
		}
	}
	p.requests = r.TLS == nil && !tunnel && (named == 0 || p.protocols != 0)
	p.secure = r.TLS.Ends() && !tunnel

	p.connCount = count
	if p.takes != 0 && !p.byName {
		p.connCount++
	}
	if p.alpn != 0 {
		p.connCount++
	}
	if p.takes&plan.ProtoTCP == 0 {
		p.connNarrow = 1
	}
	if p.protocols != 0 {
		p.requestCount++
		p.requestNarrow = narrowness(p.protocols)
	}
}

// narrowness orders sets of request kinds whose conditions are equal in number: an application's protocol says more than
// an upgrade, and an upgrade more than a version of HTTP.
func narrowness(set plan.Protocols) uint8 {
	switch {
	case set&(plan.ProtoHTTP1|plan.ProtoH2|plan.ProtoH3) != 0:
		return 0
	case set&plan.ProtoWebSocket != 0:
		return 1
	}
	return 2
}

// fault is the first condition of a rule that does not hold.
type fault uint8

const (
	faultNone fault = iota
	faultKind
	faultALPN
	faultNoName
	faultProtocol
	faultMethod
	faultClient
	faultHeader
	faultQuery
	faultClaim
	faultForeign // the host is not one for previews
	faultPage    // no page of the preview asks
	faultPath    // it is not below the path of the preview
)

// connFault judges everything but the host.
func (r *rule) connFault(q *ConnQuery, client netip.Addr) fault {
	var kinds plan.Protocols
	switch {
	case q.any:
		kinds = plan.ConnProtocols
	case q.Kind == ConnTLS:
		kinds = plan.ProtoTLS | plan.ProtoTCP
	case q.Kind == ConnSSH:
		kinds = plan.ProtoSSH | plan.ProtoTCP
	default:
		kinds = plan.ProtoTCP
	}
	switch {
	case r.takes&kinds == 0:
		return faultKind
	case r.byName && q.Name == "":
		return faultNoName
	case r.alpn != 0 && r.alpn&offered(q.ALPN) == 0:
		return faultALPN
	case !r.client(client):
		return faultClient
	case r.connClaim != nil && !r.connClaim(q):
		return faultClaim
	}
	return faultNone
}

// offered is the versions of HTTP a hello offers; one without ALPN speaks HTTP/1.
func offered(alpn []string) plan.Protocols {
	if len(alpn) == 0 {
		return plan.ProtoHTTP1
	}
	var set plan.Protocols
	for _, a := range alpn {
		switch a {
		case "h2":
			set |= plan.ProtoH2
		case "http/1.1", "http/1.0":
			set |= plan.ProtoHTTP1
		}
	}
	return set
}

func (r *rule) client(a netip.Addr) bool {
	if len(r.clients) == 0 {
		return true
	}
	for _, p := range r.clients {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// requestFault judges everything but host and path. at is the index of the header or query condition at fault.
func (r *rule) requestFault(q *Request, client netip.Addr, pool *sync.Pool) (f fault, at int) {
	if r.protocols != 0 && r.protocols&q.Protocols == 0 {
		return faultProtocol, 0
	}
	if m := r.Route.Match.Methods; len(m) > 0 && !slices.ContainsFunc(m, func(s string) bool { return s == string(q.Method) }) {
		return faultMethod, 0
	}
	if !r.client(client) {
		return faultClient, 0
	}
	for i := range r.headers {
		if c := &r.headers[i]; !q.header(c) {
			return faultHeader, i
		}
	}
	for i := range r.query {
		if c := &r.query[i]; !q.query(c, pool) {
			return faultQuery, i
		}
	}
	if r.claim != nil && !r.claim(q) {
		return faultClaim, 0
	}
	if r.shown != nil {
		return r.previewFault(q, pool), 0
	}
	return faultNone, 0
}

// header reports whether a field holds. The host is no field of a message, but people write it as one.
func (q *Request) header(c *fieldCond) bool {
	if strings.EqualFold(c.name, "host") {
		return c.holds(q.Host)
	}
	if q.Fields == nil {
		return false
	}
	v, ok := q.Fields.Field(c.name)
	return ok && c.holds(v)
}

// query reports whether any parameter of that name holds. Parameters are compared decoded.
func (q *Request) query(c *fieldCond, pool *sync.Pool) bool {
	_, rest, _ := bytes.Cut(q.Target, queryMark)
	rest, _, _ = bytes.Cut(rest, hashBytes)
	if len(rest) == 0 {
		return false
	}
	s := pool.Get().(*scratch)
	defer pool.Put(s)
	for len(rest) > 0 {
		var pair []byte
		pair, rest, _ = bytes.Cut(rest, ampersand)
		name, value, _ := bytes.Cut(pair, equals)
		if string(s.unquery(name)) == c.name && c.holds(s.unquery(value)) {
			return true
		}
	}
	return false
}

var queryMark, ampersand, equals = []byte("?"), []byte("&"), []byte("=")

// unquery decodes one part of a query. The result is valid until the next use of s.
func (s *scratch) unquery(p []byte) []byte {
	s.buf = append(s.buf[:0], p...)
	for i := range s.buf {
		if s.buf[i] == '+' {
			s.buf[i] = ' '
		}
	}
	return decode(s.buf, splitEscaped)
}
