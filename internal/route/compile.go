package route

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Claims are, by the name of an internal handler, the funcs that say whether a request or a connection is one of its
// own; on no the search goes on. A handler of requests without a claim takes whatever its route matches, one of
// connections takes nothing. They are called on the way of every request and connection that matches the route: they may
// not wait.
type Claims struct {
	Request map[string]func(*Request) bool
	Conn    map[string]func(*ConnQuery) bool
}

// Compile makes the table of a plan. The error names two routes that match the same set, or a pattern that nothing can
// match.
func Compile(ctx context.Context, p *plan.Plan, claims Claims) (*Table, error) {
	return CompileFrom(ctx, nil, p, claims)
}

// CompileFrom is Compile with an earlier table at hand: what that table knows of a route whose pointer is the same is
// used again.
func CompileFrom(ctx context.Context, old *Table, p *plan.Plan, claims Claims) (*Table, error) {
	b := &builder{ctx: ctx, plan: p, table: &Table{
		rules:   make([]rule, len(p.Routes)),
		sockets: make(map[plan.Addr]*socket, len(p.Ports)),
		addrs:   make(map[place][]plan.Addr, len(p.Ports)),
		parts:   make(map[*plan.Route]*parts, len(p.Routes)),
	}}
	defer b.breath.End()
	t := b.table
	t.scratch.New = func() any { return new(scratch) }
	t.none = Port{table: t, scratch: &t.scratch}
	var errs []error
	shown := b.shown()
	for i, r := range p.Routes {
		b.yield()
		var known *parts
		if old != nil {
			known = old.parts[r]
		}
		if known == nil {
			var err error
			if known, err = parse(r); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		t.parts[r] = known
		t.rules[i] = rule{Rule: Rule{Route: r, Index: i}, parts: known}
		if r.Match.Preview != nil {
			t.rules[i].shown = shown
		}
		if a, ok := r.Action.(plan.Internal); ok {
			t.rules[i].claim = claims.Request[a.Name]
			if t.rules[i].connClaim = claims.Conn[a.Name]; t.rules[i].connClaim == nil {
				t.rules[i].connClaim = nobody
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := b.twins(); err != nil {
		return nil, err
	}
	b.ports()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return t, nil
}

// nobody is the claim of a handler that has none.
func nobody(*ConnQuery) bool { return false }

type builder struct {
	ctx    context.Context
	plan   *plan.Plan
	table  *Table
	shared map[string]*Port // by the members they were made of
	breath plan.Breath
}

// yield lets requests go on while a large table is compiled. It is called for each item.
func (b *builder) yield() { b.breath.Take() }

// member is a rule that a port shows; exact tells that the route names an address narrower than the socket's.
type member struct {
	rule  int32
	exact bool
}

// ports makes the socket of each port of the plan.
func (b *builder) ports() {
	wishes := map[plan.Addr][]int32{} // rules by the address they name
	near := map[place][]plan.Addr{}
	for i, r := range b.plan.Routes {
		b.yield()
		for _, a := range r.Match.Ports {
			list, ok := wishes[a]
			if !ok {
				near[placeOf(a)] = append(near[placeOf(a)], a)
			}
			if len(list) == 0 || list[len(list)-1] != int32(i) {
				wishes[a] = append(list, int32(i))
			}
		}
	}
	b.shared = map[string]*Port{}
	for _, p := range b.plan.Ports {
		var covered []plan.Addr
		for _, a := range near[placeOf(p.Addr)] {
			if p.Addr.Covers(a) {
				covered = append(covered, a)
			}
		}
		b.table.sockets[p.Addr] = b.socket(p.Addr, covered, wishes)
		b.table.addrs[placeOf(p.Addr)] = append(b.table.addrs[placeOf(p.Addr)], p.Addr)
	}
}

// Addresses that stand for those no route names. They are documentation addresses, and a route that names one of them
// is found by it first.
var (
	someV4 = netip.MustParseAddr("192.0.2.255")
	someV6 = netip.MustParseAddr("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")
)

// socket makes the ports of one listener: one for each address that a route names, and one for the rest of a family.
func (b *builder) socket(want plan.Addr, covered []plan.Addr, wishes map[plan.Addr][]int32) *socket {
	s := &socket{byIP: map[netip.Addr]*Port{}}
	at := func(local netip.Addr) *Port {
		var members []member
		for _, a := range covered {
			if local.IsValid() && !takes(a, local) {
				continue
			}
			for _, r := range wishes[a] {
				b.yield()
				members = append(members, member{r, a != want})
			}
		}
		return b.port(members)
	}
	s.unknown = at(netip.Addr{})
	s.v4, s.v6 = s.unknown, s.unknown
	if len(covered) == 1 && covered[0] == want {
		return s
	}
	s.v4, s.v6 = at(someV4), at(someV6)
	for _, a := range covered {
		if ip := a.IP.WithZone(""); ip.IsValid() && !ip.IsUnspecified() {
			s.byIP[ip] = at(ip)
		}
	}
	return s
}

// takes is Addr.Takes, without zones.
func takes(a plan.Addr, local netip.Addr) bool {
	a.IP = a.IP.WithZone("")
	return a.Takes(local)
}

// port makes what the members make together, once.
func (b *builder) port(members []member) *Port {
	slices.SortFunc(members, func(x, y member) int { // an exact mention of a rule before a loose one
		b.yield()
		return cmp.Or(cmp.Compare(x.rule, y.rule), boolFirst(x.exact, y.exact))
	})
	members = slices.CompactFunc(members, func(x, y member) bool { return x.rule == y.rule })
	key := make([]byte, 0, 4*len(members))
	for _, m := range members {
		b.yield()
		v := uint32(m.rule) << 1
		if m.exact {
			v |= 1
		}
		key = binary.BigEndian.AppendUint32(key, v)
	}
	if p, ok := b.shared[string(key)]; ok {
		return p
	}
	p := &Port{members: members, table: b.table, scratch: &b.table.scratch, tunnelOnly: len(members) > 0}
	b.shared[string(key)] = p
	var first *rule
	for _, m := range members {
		b.yield()
		r := &b.table.rules[m.rule]
		if r.takes&plan.ProtoTLS != 0 || r.takes&plan.ProtoTCP != 0 {
			p.hasTLS = true
		}
		p.hasTCP = p.hasTCP || r.takes&plan.ProtoTCP != 0
		p.hasHTTP = p.hasHTTP || r.requests
		if first == nil {
			first = r
		}
		if r.requests || r.Route.TLS != nil || r.byName || r.hosts[0].class != anyHost || r.takes != first.takes {
			p.tunnelOnly = false
		}
		p.addTLS(r)
	}
	if p.mixed {
		p.policy = nil
	}
	if b.ctx.Err() != nil {
		return p
	}
	for rank, s := range b.sorted(members, connStage) {
		p.conn.add(s.host, nil, s.rule.entry(rank, false))
		b.yield()
	}
	p.conn.link(b.yield)
	b.fill(&p.request, members, plainStage)
	if p.hasSecure {
		b.fill(&p.secure, members, secureStage)
	}
	return p
}

// fill makes the index of a stage of requests.
func (b *builder) fill(x *index, members []member, st stage) {
	for rank, s := range b.sorted(members, st) {
		x.add(s.host, s.path, s.rule.entry(rank, s.rule.requestCount == 0 && s.rule.claim == nil))
		b.yield()
	}
	x.link(b.yield)
}

// addTLS notes what a rule says of TLS on the port.
func (p *Port) addTLS(r *rule) {
	if r.takes&plan.ProtoTLS == 0 || r.internal && !r.secure {
		return // challenges of ours are no policy
	}
	t := r.Route.TLS
	switch {
	case !t.Ends():
		p.mixed = true
	case p.policy == nil:
		p.policy = t
	case !p.policy.SamePolicy(t):
		p.mixed = true
	}
	p.hasSecure = p.hasSecure || r.secure
	if t != nil {
		for _, h := range r.hosts {
			p.tls.add(h)
		}
	}
}

func (r *rule) entry(rank int, free bool) entry {
	return entry{rank: int32(rank), free: free, byName: r.byName, rule: r}
}

func boolFirst(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return -1
	}
	return 1
}

// spot is one host and path of a rule, with what decides its place among the others.
type spot struct {
	rule   *rule
	host   hostPattern
	path   *pathPattern
	labels int // of the host pattern: the longer of two deep ones is the narrower
	count  int
	narrow uint8
}

// stage is one of the questions a table answers.
type stage uint8

const (
	connStage   stage = iota // what becomes of a connection
	plainStage               // of a request on a plain connection
	secureStage              // of a request on a connection whose TLS ends here
)

// in reports whether the rule has a say in a stage.
func (r *rule) in(st stage) bool {
	switch st {
	case connStage:
		return r.takes != 0
	case secureStage:
		return r.secure
	}
	return r.requests
}

// sorted lists the spots of one stage in the order of their precedence.
func (b *builder) sorted(members []member, st stage) []spot {
	list := make([]spot, 0, len(members))
	for _, m := range members {
		r := &b.table.rules[m.rule]
		s := spot{rule: r, count: r.requestCount, narrow: r.requestNarrow}
		paths := r.paths
		if st == connStage {
			s.count, s.narrow, paths = r.connCount, r.connNarrow, anyPaths
		}
		if !r.in(st) {
			continue
		}
		if m.exact {
			s.count++
		}
		for _, h := range r.hosts {
			s.host, s.labels = h, strings.Count(h.name, ".")
			for _, s.path = range paths {
				list = append(list, s)
			}
		}
		b.yield()
	}
	slices.SortStableFunc(list, func(x, y spot) int {
		b.yield()
		return x.compare(&y)
	})
	return list
}

// compare orders two spots as the reference says: by_name last; priority, host, path, number of other conditions, order.
func (s *spot) compare(o *spot) int {
	x, y := s.rule, o.rule
	return cmp.Or(
		boolFirst(!x.byName, !y.byName),
		cmp.Compare(y.Route.Priority, x.Route.Priority),
		cmp.Compare(s.host.class, o.host.class),
		cmp.Compare(o.labels, s.labels),
		cmp.Compare(y.Route.Rank, x.Route.Rank),
		strings.Compare(s.pathRank(), o.pathRank()),
		cmp.Compare(o.count, s.count),
		cmp.Compare(o.narrow, s.narrow),
		boolFirst(x.Route.Source == plan.FromFile, y.Route.Source == plan.FromFile),
		boolFirst(!x.Route.Source.Container(), !y.Route.Source.Container()),
		cmp.Compare(x.Route.Order, y.Route.Order),
		cmp.Compare(x.Index, y.Index),
	)
}

func (s *spot) pathRank() string {
	if s.path == nil {
		return noPath
	}
	return s.path.rank
}

// twins finds two routes of equal priority that match the same set on one port.
func (b *builder) twins() error {
	type claim struct {
		first int32
		addr  plan.Addr
	}
	firsts := make(map[string]int32, len(b.plan.Routes)) // the first route of each match
	taken := map[claim]int32{}                           // filled only for matches that occur twice
	var key []byte
	var errs []error
	for i := range b.table.rules {
		b.yield()
		r := &b.table.rules[i]
		if r.claim != nil || r.shown != nil || r.connClaim != nil && r.takes != 0 {
			continue // it takes only what is its own
		}
		key = r.identity(key[:0])
		first, again := firsts[string(key)]
		if !again {
			firsts[string(key)] = int32(i)
			continue
		}
		for _, a := range b.table.rules[first].Route.Match.Ports {
			if _, ok := taken[claim{first, a}]; !ok {
				taken[claim{first, a}] = first
			}
		}
		told := false
		for _, a := range r.Route.Match.Ports {
			other, ok := taken[claim{first, a}]
			if !ok {
				taken[claim{first, a}] = int32(i)
			} else if other != int32(i) && !told {
				told = true
				errs = append(errs, b.twin(b.table.rules[other].Route, r.Route, a))
			}
		}
	}
	return errors.Join(errs...)
}

func (b *builder) twin(x, y *plan.Route, on plan.Addr) error {
	return fmt.Errorf("routes %s and %s match the same on %s: remove one, or give one another match or priority%s",
		x.Name, y.Name, on, b.places(x, y))
}

// places says where two routes were written, if that is known.
func (b *builder) places(x, y *plan.Route) string {
	at, and := b.plan.Where["route/"+x.Name], b.plan.Where["route/"+y.Name]
	if at.File == "" || and.File == "" {
		return ""
	}
	return fmt.Sprintf(" (%s:%d and %s:%d)", at.File, at.Line, and.File, and.Line)
}

// identity appends what is equal for rules that match the same set, ports aside.
func (r *rule) identity(k []byte) []byte {
	m := &r.Route.Match
	k = binary.AppendVarint(k, int64(r.Route.Priority))
	k = append(k, byte(r.takes>>8), byte(r.takes), byte(m.Protocols>>8), byte(m.Protocols), '0')
	if r.requests {
		k[len(k)-1] = '1'
	}
	if r.byName {
		k[len(k)-1] += 2
	}
	if r.secure {
		k[len(k)-1] += 4
	}
	part := func(list []string) {
		slices.Sort(list)
		list = slices.Compact(list)
		k = binary.AppendUvarint(k, uint64(len(list)))
		for _, s := range list {
			k = append(binary.AppendUvarint(k, uint64(len(s))), s...)
		}
	}
	var space [8]string
	texts := space[:0]
	for _, h := range r.hosts {
		texts = append(texts, h.String())
	}
	part(texts)
	texts = texts[:0]
	for _, p := range r.paths {
		if p != nil {
			texts = append(texts, p.key())
		}
	}
	part(texts)
	part(append(texts[:0], m.Methods...))
	texts = texts[:0]
	for i := range r.headers {
		texts = append(texts, strings.ToLower(r.headers[i].name)+"\x00"+r.headers[i].String())
	}
	part(texts)
	texts = texts[:0]
	for i := range r.query {
		texts = append(texts, r.query[i].String())
	}
	part(texts)
	texts = texts[:0]
	for _, c := range r.clients {
		texts = append(texts, c.Masked().String())
	}
	part(texts)
	return k
}
