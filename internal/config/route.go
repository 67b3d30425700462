package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// scope is what items are built under: as long as it is the same, the same text gives the same item.
type scope struct {
	bind        []netip.Addr
	timeouts    form.Timeouts
	web, secure form.Port // of acme: where sites are
}

// item is one route, site or upstream, built. Places in it are relative to the piece of text it was made from.
type item struct {
	name     string
	at       spot
	entry    *yaml.Node // the key of an item in a map
	route    *plan.Route
	upstream *plan.Upstream // of its own, or the named one
	wishes   []wish
	key      string   // equal for two routes that match the same set, ports and priority aside
	user     string   // "route NAME", for a port
	apps     []appUse // targets that are apps
	uses     string   // the shared upstream
	usesAt   spot
	shared   *plan.Forward      // of a named upstream: what routes without their own take over
	own      ownKeys            // of a route: what it has itself
	certAt   spot               // of a route that ends TLS: its certificate, or what is around it
	certPath []string           // how it is called, if it is written
	certOpen bool               // it says none: one of `certificates` may be its own
	redirect *item              // of a site with TLS: the route that sends plain clients there
	implied  bool               // nobody wrote it, so it gives way to what somebody wrote
	vars     map[string]*string // what ${VAR} was
	used     uint64             // the load that last used it
}

// spot is a place in a piece.
type spot struct{ line, col int }

// wish is one address that a route wants, with what its port object says.
type wish struct {
	addr     plan.Addr
	fallback []plan.Addr
	object   *form.PortObject
	at       spot
}

type ownKeys struct{ proxy, rewrite, request, response, retries bool }

// builder builds one item and notes what is wrong with it.
type builder struct {
	*scope
	r    *strict.Reader
	root *yaml.Node // of the route, site or upstream
	site bool       // root is an action, not a route
	dir  string     // what relative paths are relative to; "" where they are refused
	it   *item
}

// node is the node at a path in the route, or the nearest above it that there is.
func (b *builder) node(path ...string) *yaml.Node {
	if b.site {
		if len(path) == 0 || path[0] != "action" {
			return b.root
		}
		path = path[1:]
	}
	for ; len(path) > 0; path = path[:len(path)-1] {
		if n := strict.Find(b.root, path...); n != nil {
			return n
		}
	}
	return b.root
}

// fault notes a mistake at a path in the route.
func (b *builder) fault(path []string, remedy, format string, args ...any) {
	n := b.node(path...)
	if b.site && len(path) > 0 {
		path = path[1:]
	}
	b.r.Under(path, func() { b.r.Problem(n, remedy, format, args...) })
}

// faulty notes what a text was refused for.
func (b *builder) faulty(path []string, err error) {
	message, remedy := strict.Say(err)
	b.fault(path, remedy, "%s", message)
}

func (b *builder) spot(path ...string) spot {
	n := b.node(path...)
	return spot{n.Line, n.Column}
}

// route fills the item from a route.
func (b *builder) route(f *form.Route, source plan.Source) {
	r := &plan.Route{
		Name: string(f.Name), Source: source, Priority: f.Priority, OnRemove: plan.OnRemove(f.OnRemove),
		Timeouts: b.clocks(&f.Timeouts), Security: b.security(&f.Security),
	}
	if reserved := r.Name == plan.HTTPChallenge || r.Name == plan.ALPNChallenge; reserved {
		b.fault([]string{"name"}, "give it another name", "%s is the route that answers challenges of ACME", r.Name)
	}
	b.match(&f.Match, &r.Match)
	b.it.key = matchKey(&r.Match, r.Priority)
	if r.Name == "" {
		h := sha256.Sum256(fmt.Append(nil, b.it.key, r.Match.Ports))
		r.Name = "route-" + hex.EncodeToString(h[:5])
	}
	b.it.name, b.it.route, b.it.user = r.Name, r, "route "+r.Name
	if f.Action == nil {
		b.fault(nil, "write action: {targets: [HOST:PORT]}, or redirect, respond, files or block", "the route has no action")
		return
	}
	r.Action = b.action(f.Action, r)
	b.agree(f, r)
	if t := f.Timeouts.Connect; t != nil && b.it.upstream == nil {
		b.fault([]string{"timeouts", "connect"}, "leave it out; the global timeouts.connect counts for shared upstreams", "it has no effect on this action")
	}
}

func (b *builder) clocks(f *form.RouteTimeouts) plan.Timeouts {
	t := globalClocks(&b.timeouts)
	for _, c := range []struct {
		own *form.Duration
		to  *time.Duration
	}{{f.Connect, &t.Connect}, {f.ResponseHeader, &t.ResponseHeader}, {f.BodyStall, &t.BodyStall}, {f.Idle, &t.Idle}} {
		if c.own != nil {
			*c.to = time.Duration(*c.own)
		}
	}
	return t
}

func globalClocks(f *form.Timeouts) plan.Timeouts {
	return plan.Timeouts{
		Connect: time.Duration(f.Connect), ClientHello: time.Duration(f.ClientHello), TLSHandshake: time.Duration(f.TLSHandshake), Sniff: time.Duration(f.Sniff),
		RequestHeader: time.Duration(f.RequestHeader), KeepAlive: time.Duration(f.KeepAlive),
		ResponseHeader: time.Duration(f.ResponseHeader), BodyStall: time.Duration(f.BodyStall), Idle: time.Duration(f.Idle),
	}
}

func (b *builder) security(f *form.Security) plan.Security {
	s := plan.Security{
		Allow: networks(f.Allow), Deny: networks(f.Deny), MaxConns: f.MaxConnections, MaxBody: int64(f.MaxBody),
	}
	if l := f.RateLimit; l != nil {
		s.Rate = &plan.RateLimit{Requests: l.Requests, Per: time.Duration(l.Per), Burst: l.Burst, Key: string(l.Key)}
		if l.Burst == 0 {
			s.Rate.Burst = l.Requests
		}
		switch {
		case l.Requests == 0:
			b.fault([]string{"security", "rate_limit"}, "write requests: 100", "the limit says no number of requests")
		case l.Per == 0:
			b.fault([]string{"security", "rate_limit", "per"}, "write per: 1s", "so many in no time is no limit")
		}
	}
	return s
}

func networks(list []form.Network) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range list {
		out = append(out, netip.Prefix(n))
	}
	return sorted(out, netip.Prefix.Compare)
}

// sorted sorts and drops repetitions.
func sorted[T comparable](list []T, compare func(a, b T) int) []T {
	slices.SortFunc(list, compare)
	return slices.Compact(list)
}

func texts[T ~string](list []T) []string {
	var out []string
	for _, s := range list {
		out = append(out, string(s))
	}
	return sorted(out, strings.Compare)
}

func (b *builder) match(f *form.Match, m *plan.Match) {
	if len(f.Ports) == 0 && !b.site {
		b.fault([]string{"match", "ports"}, "write match: {ports: [80]}", "the route says no port")
	}
	for i := range f.Ports {
		b.port(&f.Ports[i], i)
	}
	for _, w := range b.it.wishes {
		m.Ports = append(m.Ports, w.addr)
	}
	m.Ports = sorted(m.Ports, plan.Addr.Compare)
	m.Domains, m.Paths, m.Methods = texts(f.Domains), texts(f.Path), texts(f.Methods)
	m.Headers = b.wants(f.Headers, true)
	m.Query = b.wants(f.Query, false)
	m.Clients = networks(f.ClientIPs)
	for _, p := range f.Protocols {
		for _, known := range plan.ProtocolNames {
			if known.Name == p {
				m.Protocols |= known.Bit
			}
		}
	}
}

func (b *builder) wants(f map[string]form.Want, header bool) []plan.FieldMatch {
	var out []plan.FieldMatch
	for name, w := range f {
		if header {
			var t form.Token
			if err := t.ReadText(name); err != nil {
				b.faulty([]string{"match", "headers"}, err)
			}
			name = canonical(name)
		}
		out = append(out, plan.FieldMatch{Name: name, Value: w.Value, Regex: w.Regex})
	}
	slices.SortFunc(out, func(a, b plan.FieldMatch) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(out); i++ {
		if out[i].Name == out[i-1].Name {
			b.fault([]string{"match", "headers"}, "keep one of the two: case does not count", "%s stands here twice", out[i].Name)
		}
	}
	return out
}

// maxRange bounds what one line can make us listen on.
const maxRange = 10_000

// port adds the wishes of one port entry.
func (b *builder) port(f *form.Port, i int) {
	at := []string{"match", "ports", index(i)}
	b.it.wishes = b.expand(b.it.wishes, f, b.spot(at...), func(remedy, format string, args ...any) { b.fault(at, remedy, format, args...) })
	if len(b.it.wishes) > maxRange {
		b.fault(at, "write fewer", "the route wants more than %d ports", maxRange)
		b.it.wishes = b.it.wishes[:maxRange]
	}
}

func index(i int) string { return "[" + strconv.Itoa(i) + "]" }

// expand adds the addresses that a port entry stands for.
func (b *builder) expand(out []wish, f *form.Port, at spot, fault func(remedy, format string, args ...any)) []wish {
	p := &f.Port
	if p.Text == "" || (p.Lo == 0 && p.Unix == "" && p.FD == "") {
		return out // already found wrong
	}
	var object *form.PortObject
	if f.Object {
		object = &f.PortObject
	}
	for _, addr := range b.addrs(p, netip.Addr{}, fault) {
		w := wish{addr: addr, object: object, at: at}
		for j := range f.Fallback {
			fb := b.addrs(&f.Fallback[j], addr.IP, fault)
			if addr.Network == plan.Unix || addr.Name != "" || f.Fallback[j].Unix != "" || f.Fallback[j].FD != "" {
				fault("leave it out", "fallback is for numbered ports only")
			}
			w.fallback = append(w.fallback, fb...)
		}
		out = append(out, w)
	}
	if len(f.Fallback) > 0 && p.Lo != p.Hi {
		fault("write an object for each port", "a range cannot have a fallback")
	}
	return out
}

// addrs expands a port text. A bare number is bound on ip if that is valid, else on the hosts of `bind`.
func (b *builder) addrs(p *form.PortText, ip netip.Addr, fault func(remedy, format string, args ...any)) []plan.Addr {
	switch {
	case p.Unix != "":
		path, ok := b.path(p.Unix)
		if !ok {
			fault("write an absolute path", "%q is relative, and there is no file it could be relative to", p.Unix)
		} else if err := form.SocketPath(path); err != nil {
			message, remedy := strict.Say(err)
			fault(remedy, "%s", message)
		}
		return []plan.Addr{{Network: plan.Unix, Path: path}}
	case p.FD != "":
		return []plan.Addr{{Name: p.FD}}
	}
	hosts := []netip.Addr{p.IP}
	if p.Bare {
		switch {
		case ip.IsValid():
			hosts[0] = ip
		case len(b.bind) > 0:
			hosts = b.bind
		}
	}
	var out []plan.Addr
	for n := int(p.Lo); n <= int(p.Hi) && len(out) <= maxRange; n++ {
		for _, h := range hosts {
			out = append(out, plan.TCPAddr(h, uint16(n)))
		}
	}
	return out
}

// path makes a path absolute. It reports false where only absolute ones are taken.
func (b *builder) path(p string) (string, bool) {
	if filepath.IsAbs(p) {
		return filepath.Clean(p), true
	}
	return filepath.Join(b.dir, p), b.dir != ""
}

// matchKey is equal for two matches that take the same set, ports aside.
func matchKey(m *plan.Match, priority int) string {
	k := make([]byte, 0, 128)
	k = strconv.AppendInt(k, int64(priority), 10)
	k = strconv.AppendUint(append(k, ' '), uint64(m.Protocols), 16)
	for _, list := range [][]string{m.Domains, m.Paths, m.Methods} {
		k = append(k, '\n')
		for _, s := range list {
			k = strconv.AppendQuote(append(k, ' '), s)
		}
	}
	for _, list := range [][]plan.FieldMatch{m.Headers, m.Query} {
		k = append(k, '\n')
		for _, f := range list {
			k = strconv.AppendQuote(append(k, ' '), f.Name)
			k = strconv.AppendQuote(append(k, '='), f.Value)
			k = strconv.AppendQuote(append(k, '~'), f.Regex)
		}
	}
	for _, c := range m.Clients {
		k = c.AppendTo(append(k, ' '))
	}
	return string(k)
}
