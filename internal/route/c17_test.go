package route

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// The slow matcher is written from the reference alone: it knows strings, and nothing of this package but its types.

type slowAnswer struct {
	index     int
	priority  int
	byName    bool
	hostClass int // 0 exact, 1 *., 2 **., 3 none
	labels    int
	segments  []int // 0 literal, 1 :name, 2 *; nil without a path
	hasPath   bool
	others    int
	narrow    int
	order     int
}

func (a slowAnswer) before(b slowAnswer) bool {
	if a.byName != b.byName {
		return b.byName
	}
	if a.priority != b.priority {
		return a.priority > b.priority
	}
	if a.hostClass != b.hostClass {
		return a.hostClass < b.hostClass
	}
	if a.labels != b.labels {
		return a.labels > b.labels
	}
	if a.hasPath != b.hasPath {
		return a.hasPath
	}
	for i := 0; i < len(a.segments) || i < len(b.segments); i++ {
		if i >= len(a.segments) {
			return true
		}
		if i >= len(b.segments) {
			return false
		}
		if a.segments[i] != b.segments[i] {
			return a.segments[i] < b.segments[i]
		}
	}
	if a.others != b.others {
		return a.others > b.others
	}
	if a.narrow != b.narrow {
		return a.narrow > b.narrow
	}
	return a.order < b.order
}

func slowHost(pattern, host string) (class int, ok bool) {
	switch {
	case strings.HasPrefix(pattern, "**."):
		left, found := strings.CutSuffix(host, pattern[2:])
		return 2, found && left != ""
	case strings.HasPrefix(pattern, "*."):
		left, found := strings.CutSuffix(host, pattern[1:])
		return 1, found && left != "" && !strings.Contains(left, ".")
	}
	return 0, pattern == host
}

func slowPath(pattern, p string) ([]int, bool) {
	want, have := strings.Split(pattern[1:], "/"), strings.Split(p[1:], "/")
	var kinds []int
	for i, w := range want {
		if w == "*" {
			return append(kinds, 2), true
		}
		if i >= len(have) {
			// "/v1/*" also takes "/v1".
			if i == len(want)-1 && w == "*" {
				return append(kinds, 2), true
			}
			return nil, false
		}
		if strings.HasPrefix(w, ":") {
			if have[i] == "" {
				return nil, false
			}
			kinds = append(kinds, 1)
			continue
		}
		if w != have[i] {
			return nil, false
		}
		kinds = append(kinds, 0)
	}
	return kinds, len(want) == len(have)
}

type slowRequest struct {
	method, host, path, query string
	client, local             netip.Addr
	protocols                 plan.Protocols
	headers                   map[string]string
}

func slowConditions(m *plan.Match, q *slowRequest) (others int, ok bool) {
	if len(m.Methods) > 0 {
		others++
		if !slices.Contains(m.Methods, q.method) {
			return 0, false
		}
	}
	for _, h := range m.Headers {
		others++
		v, ok := q.headers[h.Name]
		if !ok || h.Regex == "" && v != h.Value || h.Regex != "" && !regexp.MustCompile(h.Regex).MatchString(v) {
			return 0, false
		}
	}
	params, _ := url.ParseQuery(q.query)
	for _, h := range m.Query {
		others++
		if !slices.ContainsFunc(params[h.Name], func(v string) bool {
			return h.Regex == "" && v == h.Value || h.Regex != "" && regexp.MustCompile(h.Regex).MatchString(v)
		}) {
			return 0, false
		}
	}
	if len(m.Clients) > 0 {
		others++
		if !slices.ContainsFunc(m.Clients, func(p netip.Prefix) bool { return p.Contains(q.client.Unmap()) }) {
			return 0, false
		}
	}
	if m.Protocols != 0 {
		others++
		if m.Protocols&q.protocols == 0 {
			return 0, false
		}
	}
	return others, true
}

// slowFind goes through all routes, hosts and paths. -1 is none.
func slowFind(p *plan.Plan, q *slowRequest) int {
	host := strings.ToLower(q.host)
	if i := strings.LastIndex(host, ":"); i >= 0 {
		host = host[:i]
	}
	host = strings.TrimSuffix(host, ".")
	var all []slowAnswer
	for i, r := range p.Routes {
		_, tunnel := r.Action.(plan.Tunnel)
		if r.TLS != nil || tunnel {
			continue
		}
		here, special := false, false
		for _, a := range r.Match.Ports {
			if a.Takes(q.local) {
				here = true
				special = special || a.IP.IsValid()
			}
		}
		others, ok := slowConditions(&r.Match, q)
		if !here || !ok {
			continue
		}
		if special {
			others++
		}
		a := slowAnswer{index: i, priority: r.Priority, others: others, order: r.Order}
		_, a.byName = r.Action.(plan.ByName)
		if s := r.Match.Protocols; s == plan.ProtoWebSocket {
			a.narrow = 1
		} else if s&(plan.ProtoHTTP1|plan.ProtoWebSocket) == 0 && s != 0 {
			a.narrow = 2
		}
		domains := r.Match.Domains
		if len(domains) == 0 {
			domains = []string{""}
		}
		for _, d := range domains {
			a.hostClass, a.labels = 3, 0
			if d != "" {
				if a.hostClass, ok = slowHost(d, host); !ok {
					continue
				}
				a.labels = strings.Count(strings.TrimLeft(d, "*."), ".")
			}
			if len(r.Match.Paths) == 0 {
				a.hasPath, a.segments = false, nil
				all = append(all, a)
			}
			for _, pattern := range r.Match.Paths {
				if a.segments, a.hasPath = slowPath(pattern, q.path); a.hasPath {
					all = append(all, a)
				}
			}
		}
	}
	best := -1
	for i := range all {
		if best < 0 || all[i].before(all[best]) {
			best = i
		}
	}
	if best < 0 {
		return -1
	}
	if all[best].byName && slowTLSHost(p, host, q.local) {
		return -1
	}
	return all[best].index
}

func slowTLSHost(p *plan.Plan, host string, local netip.Addr) bool {
	for _, r := range p.Routes {
		if !slices.ContainsFunc(r.Match.Ports, func(a plan.Addr) bool { return a.Takes(local) }) {
			continue
		}
		for _, d := range r.Match.Domains {
			if _, ok := slowHost(d, host); ok && r.TLS != nil {
				return true
			}
		}
	}
	return false
}

type fieldMap map[string]string

func (f fieldMap) Field(name string) ([]byte, bool) {
	v, ok := f[name]
	return []byte(v), ok
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func randomHost(r *rand.Rand) string {
	labels := make([]string, 1+r.IntN(4))
	for i := range labels {
		labels[i] = pick(r, "a", "b", "c", "xn--p", "a-b")
	}
	return strings.Join(labels, ".")
}

func randomPattern(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(4) {
		b.WriteString(pick(r, "/x", "/y", "/:id", "/:name", "/x.y", "/é"))
	}
	b.WriteString(pick(r, "/*", "/z", "/:last", "/"))
	return b.String()
}

func randomPlan(r *rand.Rand) *plan.Plan {
	p := &plan.Plan{Ports: []*plan.Port{{Addr: plan.Addr{Port: 80}}}}
	loop := plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), 80)
	for i := range 5 + r.IntN(40) {
		route := &plan.Route{Name: fmt.Sprintf("r%d", i), Order: i, Source: plan.FromFile, Action: plan.Forward{}}
		route.Priority = pick(r, 0, 0, 0, 0, 0, 1, -1)
		m := &route.Match
		m.Ports = pick(r, []plan.Addr{{Port: 80}}, []plan.Addr{{Port: 80}}, []plan.Addr{loop}, []plan.Addr{{Port: 80}, loop})
		for range r.IntN(3) {
			m.Domains = append(m.Domains, pick(r, "", "", "*.", "**.")+randomHost(r))
		}
		for range r.IntN(3) {
			m.Paths = append(m.Paths, randomPattern(r))
		}
		if r.IntN(4) == 0 {
			m.Methods = pick(r, []string{"GET"}, []string{"GET", "POST"})
		}
		if r.IntN(5) == 0 {
			m.Headers = pick(r, []plan.FieldMatch{{Name: "X-A", Value: "1"}}, []plan.FieldMatch{{Name: "X-A", Regex: "^[12]"}, {Name: "X-B", Value: "1"}})
		}
		if r.IntN(5) == 0 {
			m.Query = pick(r, []plan.FieldMatch{{Name: "q", Value: "1 2"}}, []plan.FieldMatch{{Name: "q", Regex: "2$"}})
		}
		if r.IntN(5) == 0 {
			m.Clients = []netip.Prefix{netip.MustParsePrefix(pick(r, "10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"))}
		}
		if r.IntN(5) == 0 {
			m.Protocols = pick(r, plan.ProtoHTTP1, plan.ProtoWebSocket, plan.ProtoGRPC, plan.ProtoHTTP1|plan.ProtoGRPC)
		}
		switch r.IntN(12) {
		case 0:
			route.TLS, route.Action = &plan.TLS{Mode: plan.Passthrough}, plan.Tunnel{}
		case 1:
			route.Action, m.Protocols = plan.Tunnel{}, plan.ProtoTCP
		case 2:
			route.Action, route.Match = plan.ByName{}, plan.Match{Ports: m.Ports}
		}
		p.Routes = append(p.Routes, route)
	}
	return p
}

func randomRequest(r *rand.Rand, p *plan.Plan) (q slowRequest, host string) {
	q = slowRequest{
		method: pick(r, "GET", "POST", "PUT"), host: randomHost(r),
		query:     pick(r, "", "q=1%202", "q=1+2&x=y", "x&q=2&q=1", "Q=2"),
		client:    netip.MustParseAddr(pick(r, "10.1.2.3", "10.2.2.3", "::ffff:10.2.2.3", "2001:db8::1", "192.0.2.1")),
		local:     netip.MustParseAddr(pick(r, "127.0.0.1", "127.0.0.2", "::1")),
		protocols: pick(r, plan.ProtoHTTP1, plan.ProtoHTTP1|plan.ProtoWebSocket, plan.ProtoH2|plan.ProtoGRPC, plan.ProtoH2),
		headers:   pick(r, map[string]string{}, map[string]string{"X-A": "1"}, map[string]string{"X-A": "2", "X-B": "1"}),
	}
	// Half of the hosts are near a pattern, so that something matches.
	if route := p.Routes[r.IntN(len(p.Routes))]; len(route.Match.Domains) > 0 && r.IntN(2) == 0 {
		d := route.Match.Domains[0]
		d = strings.Replace(d, "**.", pick(r, "c.d.", "a.", ""), 1)
		q.host = strings.Replace(d, "*.", pick(r, "c.", "c.d.", ""), 1)
	}
	for range r.IntN(4) {
		q.path += pick(r, "/x", "/y", "/x.y", "/é", "/v")
	}
	q.path += pick(r, "/", "/z", "/x", "/q")
	host = q.host
	if r.IntN(3) == 0 {
		host = strings.ToUpper(host)
	}
	return q, host + pick(r, "", "", ".", ":80", ".:8080")
}

// escape writes a path in one of the ways that all mean the same.
func escape(r *rand.Rand, p string) string {
	var b strings.Builder
	for i := range len(p) {
		switch {
		case p[i] >= 0x80 || p[i] != '/' && p[i] != '.' && r.IntN(8) == 0:
			fmt.Fprintf(&b, pick(r, "%%%02x", "%%%02X"), p[i])
		default:
			b.WriteByte(p[i])
		}
	}
	return b.String()
}

func TestC17_NoRequestReachesAnotherRouteThanTheSlowMatcherSays(t *testing.T) {
	tables, found, none := 0, 0, 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(17, seed))
		p := randomPlan(r)
		table, err := Compile(context.Background(), p, Claims{})
		if err != nil {
			if !strings.Contains(err.Error(), "match the same") {
				t.Fatal(err)
			}
			continue
		}
		tables++
		for range 100 {
			q, host := randomRequest(r, p)
			target := escape(r, q.path)
			if q.query != "" {
				target += "?" + q.query
			}
			ask := &Request{
				Method: []byte(q.method), Host: []byte(host), Target: []byte(target),
				Client: q.client, Protocols: q.protocols, Fields: fieldMap(q.headers),
			}
			got, verdict := table.Port(p.Ports[0].Addr, q.local).Request(ask)
			want := slowFind(p, &q)
			index := -1
			if got != nil {
				index = got.Index
				found++
			} else {
				none++
			}
			if index != want || verdict == Ambiguous {
				t.Fatalf("seed %d: %s %s%s from %s to %s: got %d (%s), want %d", seed, q.method, host, target, q.client, q.local, index, verdict, want)
			}
		}
	}
	if tables < 100 || found < 10_000 || none < 2_000 {
		t.Fatalf("the test has become weak: %d tables, %d found, %d not", tables, found, none)
	}
}

// Odd paths: whatever the table answers must hold however the path is read.
func TestC17_AnOddPathIsRoutedOnlyIfEveryReadingAgrees(t *testing.T) {
	found, refused := 0, 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(18, seed))
		p := randomPlan(r)
		table, err := Compile(context.Background(), p, Claims{})
		if err != nil {
			continue
		}
		for range 100 {
			q, host := randomRequest(r, p)
			raw := ""
			for range 1 + r.IntN(4) {
				raw += pick(r, "/x", "/y", "/z", "/v", "//", "/.", "/..", "/%2e%2e", "/x;a", "/..;a", "%2fx", "%2Fy", "%5cx", "\\y", "%252fx", "/x%00", "/%252e%252e", "/x%3bz", "/%2e")
			}
			if raw[0] != '/' {
				raw = "/" + raw
			}
			ask := &Request{
				Method: []byte(q.method), Host: []byte(host), Target: []byte(raw + "?" + q.query),
				Client: q.client, Protocols: q.protocols, Fields: fieldMap(q.headers),
			}
			got, verdict := table.Port(p.Ports[0].Addr, q.local).Request(ask)
			if verdict == Ambiguous {
				refused++
				continue
			}
			found++
			index := -1
			if got != nil {
				index = got.Index
			}
			for _, reading := range slowReadings(raw) {
				q.path = reading
				if want := slowFind(p, &q); want != index {
					t.Fatalf("seed %d: %s%s: got %d, but read as %q it is %d", seed, host, raw, index, reading, want)
				}
			}
		}
	}
	if found < 1000 || refused < 1000 {
		t.Fatalf("the test has become weak: %d found, %d refused", found, refused)
	}
}

// slowReadings are what some well-known servers make of a path.
func slowReadings(raw string) []string {
	unescape := func(s string) string {
		u, err := url.PathUnescape(s)
		if err != nil {
			return s
		}
		return u
	}
	clean := func(s string) string {
		c := path.Clean("/" + s)
		if c != "/" && (strings.HasSuffix(s, "/") || strings.HasSuffix(s, "/.") || strings.HasSuffix(s, "/..")) {
			c += "/"
		}
		return c
	}
	tomcat := regexp.MustCompile(`;[^/]*`).ReplaceAllString(raw, "")
	keep := strings.NewReplacer("%2f", "%252f", "%2F", "%252F").Replace(raw)
	nul, _, _ := strings.Cut(unescape(raw), "\x00")
	return []string{
		unescape(raw),                  // decoded, not normalised
		clean(unescape(raw)),           // decoded, then normalised (nginx)
		unescape(keep),                 // encoded slashes stay
		clean(unescape(keep)),          //
		clean(unescape(tomcat)),        // parameters dropped first (Tomcat)
		clean(unescape(unescape(raw))), // decoded twice
		clean(strings.ReplaceAll(unescape(raw), "\\", "/")), // backslashes turned (IIS)
		nul, // a C string
		clean(regexp.MustCompile(`;[^/]*`).ReplaceAllString(unescape(raw), "")),
	}
}

func TestC17_NoConnectionReachesAnotherRouteThanTheSlowMatcherSays(t *testing.T) {
	found, none := 0, 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(19, seed))
		p := randomPlan(r)
		table, err := Compile(context.Background(), p, Claims{})
		if err != nil {
			continue
		}
		for range 100 {
			q, _ := randomRequest(r, p)
			kind := pick(r, ConnTLS, ConnTLS, ConnTLS, ConnOther, ConnSilent, ConnSSH)
			if kind != ConnTLS || r.IntN(10) == 0 {
				q.host = ""
			}
			got := table.Port(p.Ports[0].Addr, q.local).Conn(&ConnQuery{Kind: kind, Name: q.host, ALPN: []string{"h2"}, Client: q.client})
			index := -1
			if got != nil {
				index = got.Index
				found++
			} else {
				none++
			}
			if want := slowConn(p, &q, kind); index != want {
				t.Fatalf("seed %d: %s to %q from %s at %s: got %d, want %d", seed, kind, q.host, q.client, q.local, index, want)
			}
		}
	}
	if found < 2000 || none < 2000 {
		t.Fatalf("the test has become weak: %d found, %d not", found, none)
	}
}

// slowConn goes through all routes. The random plans hold passthrough, tcp and by_name.
func slowConn(p *plan.Plan, q *slowRequest, kind ConnKind) int {
	var all []slowAnswer
	for i, r := range p.Routes {
		m := &r.Match
		_, tunnel := r.Action.(plan.Tunnel)
		_, byName := r.Action.(plan.ByName)
		a := slowAnswer{index: i, priority: r.Priority, order: r.Order, byName: byName}
		switch {
		case r.TLS != nil && kind == ConnTLS && m.Protocols&(plan.ProtoHTTP1|plan.ProtoH2) != 0: // by what the hello offers, which is h2
			if m.Protocols&plan.ProtoH2 == 0 {
				continue
			}
			a.others, a.narrow = 2, 1
		case r.TLS != nil && kind == ConnTLS:
			a.others, a.narrow = 1, 1
		case byName && kind == ConnTLS && q.host != "":
			a.narrow = 1
		case r.TLS == nil && tunnel:
			a.others = 1
		default:
			continue
		}
		here, special := false, false
		for _, w := range m.Ports {
			here = here || w.Takes(q.local)
			special = special || w.Takes(q.local) && w.IP.IsValid()
		}
		if !here || len(m.Clients) > 0 && !slices.ContainsFunc(m.Clients, func(c netip.Prefix) bool { return c.Contains(q.client.Unmap()) }) {
			continue
		}
		if special {
			a.others++
		}
		if len(m.Clients) > 0 {
			a.others++
		}
		if len(m.Domains) == 0 {
			a.hostClass = 3
			all = append(all, a)
		}
		for _, d := range m.Domains {
			var ok bool
			if a.hostClass, ok = slowHost(d, q.host); ok && q.host != "" {
				a.labels = strings.Count(strings.TrimLeft(d, "*."), ".")
				all = append(all, a)
			}
		}
	}
	best := -1
	for i := range all {
		if best < 0 || all[i].before(all[best]) {
			best = i
		}
	}
	if best < 0 {
		return -1
	}
	return all[best].index
}
