package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// route is a plain forward on :80; each option changes it.
func route(name string, options ...func(*plan.Route)) *plan.Route {
	r := &plan.Route{Name: name, Source: plan.FromFile, Action: plan.Forward{Upstream: name}, Match: plan.Match{Ports: []plan.Addr{{Port: 80}}}}
	for _, o := range options {
		o(r)
	}
	return r
}

func hosts(list ...string) func(*plan.Route) { return func(r *plan.Route) { r.Match.Domains = list } }
func paths(list ...string) func(*plan.Route) { return func(r *plan.Route) { r.Match.Paths = list } }
func protocols(set plan.Protocols) func(*plan.Route) {
	return func(r *plan.Route) { r.Match.Protocols = set }
}
func action(a plan.Action) func(*plan.Route) { return func(r *plan.Route) { r.Action = a } }
func priority(n int) func(*plan.Route)       { return func(r *plan.Route) { r.Priority = n } }
func on(list ...plan.Addr) func(*plan.Route) { return func(r *plan.Route) { r.Match.Ports = list } }
func clients(list ...string) func(*plan.Route) {
	return func(r *plan.Route) {
		for _, c := range list {
			r.Match.Clients = append(r.Match.Clients, netip.MustParsePrefix(c))
		}
	}
}

func passthrough(r *plan.Route) {
	r.TLS, r.Action = &plan.TLS{Mode: plan.Passthrough}, plan.Tunnel{Upstream: r.Name}
}

func tunnel(set plan.Protocols) func(*plan.Route) {
	return func(r *plan.Route) { r.Action, r.Match.Protocols = plan.Tunnel{Upstream: r.Name}, set }
}

func planOf(routes ...*plan.Route) *plan.Plan {
	p := &plan.Plan{Ports: []*plan.Port{{Addr: plan.Addr{Port: 80}}}, Routes: routes}
	for i, r := range routes {
		r.Order = i
	}
	return p
}

func portOf(t *testing.T, routes ...*plan.Route) *Port {
	t.Helper()
	return mustCompile(t, planOf(routes...)).Port(plan.Addr{Port: 80}, loopback)
}

// ask is "METHOD HOST/path"; the answer is a route's name or the verdict.
func ask(p *Port, text string, options ...func(*Request)) string {
	method, rest, _ := strings.Cut(text, " ")
	i := strings.IndexByte(rest, '/')
	q := &Request{Method: []byte(method), Host: []byte(rest[:i]), Target: []byte(rest[i:]), Client: client, Protocols: plan.ProtoHTTP1}
	for _, o := range options {
		o(q)
	}
	r, v := p.Request(q)
	if r != nil {
		return r.Route.Name
	}
	return v.String()
}

func connect(p *Port, kind ConnKind, name string, alpn ...string) string {
	if r := p.Conn(&ConnQuery{Kind: kind, Name: name, ALPN: alpn, Client: client}); r != nil {
		return r.Route.Name
	}
	return "none"
}

type asked struct{ ask, want string }

func checkAll(t *testing.T, p *Port, list []asked) {
	t.Helper()
	for _, c := range list {
		if got := ask(p, c.ask); got != c.want {
			t.Errorf("%s: %s, want %s", c.ask, got, c.want)
		}
	}
}

func TestHostsGoFromTheExactToTheLoose(t *testing.T) {
	p := portOf(t, route("none", paths("/only")), route("deep", hosts("**.d.x")), route("deeper", hosts("**.c.d.x")),
		route("wild", hosts("*.d.x")), route("exact", hosts("a.d.x")), route("ip6", hosts("::1")))
	checkAll(t, p, []asked{
		{"GET a.d.x/", "exact"},
		{"GET A.D.X.:80/", "exact"},
		{"GET b.d.x/", "wild"},
		{"GET c.b.d.x/", "deep"},
		{"GET z.c.d.x/", "deeper"},
		{"GET c.d.x/", "wild"},
		{"GET d.x/", "no route"},
		{"GET ad.x/", "no route"},
		{"GET .d.x/", "no route"},
		{"GET a..d.x/", "no route"},
		{"GET [::1]:80/", "ip6"},
		{"GET a.d.x:x/", "no route"},
		{"GET evil/only", "none"},
		{"GET a.d.x/only", "exact"},
		{"GET a d.d.x/only", "none"},
		{"GET /only", "none"},
		{"GET b@a.d.x/", "no route"},
	})
}

func TestPathsGoSegmentBySegmentFromTheLiteralToTheStar(t *testing.T) {
	p := portOf(t, route("star", paths("/v1/*")), route("param", paths("/users/:id")), route("me", paths("/users/me")),
		route("deep", paths("/users/:id/posts/*")), route("exact", paths("/v1")), route("slash", paths("/users/")), route("late", paths("/:a/b/c")), route("early", paths("/x/*")))
	checkAll(t, p, []asked{
		{"GET h/v1", "exact"},
		{"GET h/v1/", "star"},
		{"GET h/v1/a/b", "star"},
		{"GET h/v1x", "no route"},
		{"GET h/V1", "no route"},
		{"GET h/users/7", "param"},
		{"GET h/users/me", "me"},
		{"GET h/users/", "slash"},
		{"GET h/users", "no route"},
		{"GET h/users/7/", "no route"},
		{"GET h/users/7/posts", "deep"},
		{"GET h/users/me/posts/1?q", "deep"},
		{"GET h/x/b/c", "early"},
		{"GET h/y/b/c", "late"},
		{"GET h/users/%6de", "me"},
		{"GET h/users/m%C3%A9", "param"},
	})
}

func TestALiteralBranchThatEndsNowhereGoesBackToTheParameter(t *testing.T) {
	p := portOf(t, route("lit", paths("/a/b/c")), route("param", paths("/:x/b/d")), route("star", paths("/a/*")))
	checkAll(t, p, []asked{{"GET h/a/b/c", "lit"}, {"GET h/a/b/d", "star"}, {"GET h/z/b/d", "param"}, {"GET h/z/b/c", "no route"}})
}

func TestPrecedenceIsPriorityThenHostThenPathThenConditionsThenOrder(t *testing.T) {
	p := portOf(t, route("any", priority(1), paths("/up/*")), route("exact", hosts("h.x")), route("wildpath", hosts("*.x"), paths("/p/q")),
		route("first", hosts("*.x"), paths("/same"), func(r *plan.Route) { r.Match.Methods = []string{"GET"} }),
		route("second", hosts("*.x"), paths("/same"), clients("10.0.0.0/8")),
		route("third", hosts("*.x"), paths("/same"), clients("10.0.0.0/8"), func(r *plan.Route) { r.Match.Methods = []string{"PUT"} }))
	checkAll(t, p, []asked{
		{"GET h.x/up/1", "any"},
		{"GET h.x/p/q", "exact"},
		{"GET i.x/p/q", "wildpath"},
		{"GET i.x/same", "first"},
		{"POST i.x/same", "second"},
		{"PUT i.x/same", "third"},
	})
}

func TestTheFileComesBeforeTheAPI(t *testing.T) {
	api := route("api", clients("10.0.0.0/8"))
	api.Source = plan.FromAPI
	p := portOf(t, api, route("file", clients("10.0.0.0/9")))
	checkAll(t, p, []asked{{"GET h/", "file"}})
}

func TestAPathThatCanBeReadTwoWaysIsRefusedWhereItMatters(t *testing.T) {
	p := portOf(t, route("site", hosts("a.x"), paths("/*")), route("admin", hosts("a.x"), paths("/admin/*")),
		route("plain", hosts("b.x")), route("param", hosts("c.x"), paths("/:one")),
		route("rest", hosts("d.x"), paths("/*")), route("xy", hosts("d.x"), paths("/x/y")), route("xab", hosts("d.x"), paths("/x/a/b")))
	checkAll(t, p, []asked{
		{"GET a.x/admin", "admin"},
		{"GET a.x/%61dmin", "admin"},
		{"GET a.x/admin/%2e%2e%2fadmin/x", "admin"},
		{"GET a.x/x/../admin", "ambiguous"},
		{"GET a.x/x/%2e%2e/admin", "ambiguous"},
		{"GET a.x/x%2f..%2fadmin", "ambiguous"},
		{"GET a.x//admin", "ambiguous"},
		{"GET a.x/admin;v=1", "ambiguous"},
		{"GET a.x/;/admin", "ambiguous"},
		{"GET a.x/x\\..\\admin", "ambiguous"},
		{"GET a.x/%5cadmin", "ambiguous"},
		{"GET a.x/admin%2fx", "ambiguous"},
		{"GET a.x/%2561dmin", "ambiguous"},
		{"GET a.x/%252fadmin", "ambiguous"},
		{"GET a.x/admin%00", "ambiguous"},
		{"GET a.x/admin#x", "ambiguous"},
		{"GET a.x/./admin", "ambiguous"},
		{"GET a.x/x/..;/admin", "ambiguous"},
		{"GET a.x/%%36%31dmin", "ambiguous"},
		{"GET a.x/admin%3bx", "ambiguous"},
		{"GET a.x/%25%36%31dmin", "ambiguous"},
		{"GET a.x/x/./y", "site"},
		{"GET a.x/x//y;a=b/%2f%5c", "site"},
		{"GET a.x/100%25%20off", "site"},
		{"GET a.x/%zz", "site"},
		{"GET a.x/a/b.c/..d", "site"},
		{"GET d.x/x%2fy;a%2fb", "ambiguous"},
		{"GET d.x/x//a//../b", "ambiguous"}, // one reading alone differs
		{"GET b.x/x/../admin%2f;%00", "plain"},
		{"GET c.x/a%2fb", "ambiguous"},
		{"GET c.x/a%20b", "param"},
		{"GET a.x/;" + strings.Repeat("a", maxOdd), "ambiguous"},
		{"GET a.x/" + strings.Repeat("a", 60_000), "site"},
	})
}

func TestATargetWithoutAPathMatchesRulesWithoutOne(t *testing.T) {
	p := portOf(t, route("any", hosts("a.x")), route("all", hosts("a.x"), paths("/*")))
	star := func(q *Request) { q.Target = []byte("*") }
	if got := ask(p, "OPTIONS a.x/", star); got != "any" {
		t.Error(got)
	}
	if got := ask(p, "OPTIONS a.x/"); got != "all" {
		t.Error(got)
	}
}

func TestEveryConditionMustHold(t *testing.T) {
	p := portOf(t, route("r", clients("10.0.0.0/8", "::ffff:172.16.0.0/108", "2001:db8::/32"), protocols(plan.ProtoHTTP1|plan.ProtoGRPC), func(r *plan.Route) {
		r.Match.Methods = []string{"GET", "POST"}
		r.Match.Headers = []plan.FieldMatch{{Name: "Host", Regex: `^a\.x`}, {Name: "X-A", Value: "1"}}
		r.Match.Query = []plan.FieldMatch{{Name: "a b", Value: "c&d"}, {Name: "n", Regex: "^[0-9]+$"}}
	}))
	all := func(q *Request) { q.Fields = fieldMap{"X-A": "1"} }
	const good = "GET a.x/?n=x&a+b=c%26d&n=12"
	for _, c := range []struct {
		name, ask string
		option    func(*Request)
		want      string
	}{
		{"all hold", good, func(*Request) {}, "r"},
		{"method", strings.Replace(good, "GET", "PUT", 1), func(*Request) {}, "no route"},
		{"client", good, func(q *Request) { q.Client = netip.MustParseAddr("11.0.0.1") }, "no route"},
		{"mapped client", good, func(q *Request) { q.Client = netip.MustParseAddr("::ffff:10.0.0.1") }, "r"},
		{"zoned client", good, func(q *Request) { q.Client = netip.MustParseAddr("2001:db8::1%eth0") }, "r"},
		{"client in a mapped prefix", good, func(q *Request) { q.Client = netip.MustParseAddr("172.16.0.1") }, "r"},
		{"no client", good, func(q *Request) { q.Client = netip.Addr{} }, "no route"},
		{"protocol", good, func(q *Request) { q.Protocols = plan.ProtoH2 }, "no route"},
		{"header", good, func(q *Request) { q.Fields = fieldMap{"X-A": "2"} }, "no route"},
		{"no headers", good, func(q *Request) { q.Fields = nil }, "no route"},
		{"host", strings.Replace(good, "a.x", "b.x", 1), func(*Request) {}, "no route"},
		{"query value", "GET a.x/?a+b=c&n=1", func(*Request) {}, "no route"},
		{"query missing", "GET a.x/?n=1", func(*Request) {}, "no route"},
		{"query behind a hash", "GET a.x/?n=1&x#&a+b=c%26d", func(*Request) {}, "no route"},
	} {
		if got := ask(p, c.ask, all, c.option); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestAClaimThatSaysNoPassesTheRequestOn(t *testing.T) {
	p := planOf(route("challenge", paths("/.well-known/acme-challenge/*"), action(plan.Internal{Name: "challenge"}), priority(9)), route("user", hosts("a.x")))
	table, err := Compile(context.Background(), p, Claims{Request: map[string]func(*Request) bool{
		"challenge": func(q *Request) bool { return strings.HasSuffix(string(q.Target), "/ours") },
	}})
	if err != nil {
		t.Fatal(err)
	}
	// Two claims may share a match: each takes only what is its own.
	if _, err := Compile(context.Background(), planOf(p.Routes[0], p.Routes[0]), Claims{Request: map[string]func(*Request) bool{"challenge": func(*Request) bool { return false }}}); err != nil {
		t.Error(err)
	}
	checkAll(t, table.Port(plan.Addr{Port: 80}, loopback), []asked{
		{"GET a.x/.well-known/acme-challenge/ours", "challenge"}, {"GET a.x/.well-known/acme-challenge/theirs", "user"},
	})
}

func TestTLSClientsSeeOnlyWhatIsForThem(t *testing.T) {
	p := portOf(t, route("plain", hosts("a.x")), route("tls", hosts("a.x"), passthrough), route("h2", hosts("b.x"), passthrough, protocols(plan.ProtoH2)),
		route("b", hosts("b.x"), passthrough), route("ssh", tunnel(plan.ProtoSSH)), route("tcp", tunnel(plan.ProtoTCP)),
		route("blocked", hosts("old.x"), action(plan.Block{Status: 403})), route("half", hosts("c.x"), paths("/admin"), action(plan.Block{Status: 403})), route("byname", action(plan.ByName{})))
	for _, c := range []struct {
		kind ConnKind
		name string
		alpn []string
		want string
	}{
		{ConnTLS, "a.x", nil, "tls"},
		{ConnTLS, "b.x", []string{"h2", "http/1.1"}, "h2"},
		{ConnTLS, "b.x", []string{"http/1.1"}, "b"},
		{ConnTLS, "c.x", nil, "tcp"},
		{ConnTLS, "old.x", nil, "blocked"},
		{ConnTLS, "", nil, "tcp"},
		{ConnSSH, "", nil, "ssh"},
		{ConnOther, "", nil, "tcp"},
		{ConnSilent, "", nil, "tcp"},
	} {
		if got := connect(p, c.kind, c.name, c.alpn...); got != c.want {
			t.Errorf("%s %q %v: %s, want %s", c.kind, c.name, c.alpn, got, c.want)
		}
	}
	if got := ask(p, "GET a.x/"); got != "plain" {
		t.Error("a plain client got", got)
	}
	if !p.HasTLS() || !p.HasTCP() || !p.HasHTTP() || p.TunnelOnly() {
		t.Error("the port does not know what it has")
	}
}

func TestRawBytesGoNowhereUnlessNamed(t *testing.T) {
	p := portOf(t, route("plain"), route("tls", passthrough), route("byname", action(plan.ByName{})), route("onlytls", hosts("t.x"), tunnel(plan.ProtoTLS)))
	for _, kind := range []ConnKind{ConnOther, ConnSilent, ConnSSH} {
		if got := connect(p, kind, "t.x"); got != "none" {
			t.Errorf("%s went to %s", kind, got)
		}
	}
	if p.HasTCP() {
		t.Error("there is no tcp route")
	}
}

func TestByNameComesLastInBothStages(t *testing.T) {
	p := portOf(t, route("byname", action(plan.ByName{}), priority(100)), route("tls", hosts("*.x"), passthrough), route("plain", hosts("p.y"), paths("/a")))
	for name, want := range map[string]string{"a.x": "tls", "z.org": "byname", "": "none"} {
		if got := connect(p, ConnTLS, name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
	checkAll(t, p, []asked{
		{"GET z.org/", "byname"},
		{"GET p.y/a", "plain"},
		{"GET p.y/b", "byname"},
		{"GET a.x/", "no route"}, // it has TLS routes here, which are not bypassed by name
	})
}

func TestAHostWithOnlyTLSRoutesIsTold(t *testing.T) {
	p := portOf(t, route("tls", hosts("t.x", "*.w.x", "both.x"), passthrough), route("plain", hosts("both.x"), paths("/a")),
		route("challenge", paths("/c/*"), action(plan.Internal{Name: "challenge"})), route("byname", action(plan.ByName{})))
	for host, want := range map[string]bool{"t.x": true, "T.x.:80": true, "a.w.x": true, "a.b.w.x": false, "both.x": false, "other.x": false, "": false} {
		if got := p.TLSOnly([]byte(host)); got != want {
			t.Errorf("%q: %t", host, got)
		}
	}
	if p := portOf(t, route("tls", passthrough)); !p.TLSOnly([]byte("any.x")) || p.TLSOnly(nil) {
		t.Error("a route without domains takes every name")
	}
}

func TestAPortOfTunnelsIsNotSniffed(t *testing.T) {
	p := portOf(t, route("near", tunnel(plan.ProtoTCP), clients("10.0.0.0/8")), route("far", tunnel(plan.ProtoTCP)))
	if !p.TunnelOnly() || p.FirstSpeaker(client).Route.Name != "near" || p.FirstSpeaker(netip.MustParseAddr("11.1.1.1")).Route.Name != "far" {
		t.Error("the tunnel was not found")
	}
	if p := portOf(t, route("ssh", tunnel(plan.ProtoSSH))); !p.TunnelOnly() || p.FirstSpeaker(client) == nil {
		t.Error("one kind alone need not be told apart")
	}
	for name, p := range map[string]*Port{
		"two kinds":   portOf(t, route("ssh", tunnel(plan.ProtoSSH)), route("tcp", tunnel(plan.ProtoTCP))),
		"a domain":    portOf(t, route("tcp", tunnel(plan.ProtoTCP), hosts("a.x"))),
		"passthrough": portOf(t, route("tls", passthrough)),
		"a request":   portOf(t, route("tcp", tunnel(plan.ProtoTCP)), route("plain", hosts("a.x"))),
		"nothing":     mustCompile(t, planOf()).Port(plan.Addr{Port: 80}, loopback),
	} {
		if p.TunnelOnly() {
			t.Errorf("%s: must be sniffed", name)
		}
	}
}

func TestOnePortTellsSixProtocolsApart(t *testing.T) {
	p := portOf(t, route("plain"), route("ws", protocols(plan.ProtoWebSocket)), route("sio", protocols(plan.ProtoSocketIO)), route("grpc", protocols(plan.ProtoGRPC)),
		route("soap", protocols(plan.ProtoSOAP)), route("rpc", protocols(plan.ProtoJSONRPC)), route("one", protocols(plan.ProtoHTTP1), hosts("one.x")))
	for _, c := range []struct {
		ask, upgrade, body string
		version            plan.Protocols
		fields             fieldMap
		want               string
	}{
		{"GET h/", "", "", plan.ProtoHTTP1, nil, "plain"},
		{"GET h/chat", "websocket", "", plan.ProtoHTTP1, nil, "ws"},
		{"GET h/chat", "h2c, WebSocket", "", plan.ProtoHTTP1, nil, "ws"},
		{"GET h/chat", "h2c", "", plan.ProtoHTTP1, nil, "plain"},
		{"GET h/socket.io/?EIO=4&transport=polling", "", "", plan.ProtoHTTP1, nil, "sio"},
		{"GET h/socket.io/?transport=websocket&EIO=4", "websocket", "", plan.ProtoHTTP1, nil, "sio"},
		{"GET h/socket.iox/?EIO=4", "", "", plan.ProtoHTTP1, nil, "plain"},
		{"POST h/a.B/C", "", "", plan.ProtoH2, fieldMap{"Content-Type": "application/grpc+proto"}, "grpc"},
		{"POST h/", "", "", plan.ProtoHTTP1, fieldMap{"Soapaction": `"x"`}, "soap"},
		{"POST h/", "", "", plan.ProtoHTTP1, fieldMap{"Content-Type": "Application/Soap+XML; charset=utf-8"}, "soap"},
		{"POST h/", "", "", plan.ProtoHTTP1, fieldMap{"Content-Type": "application/json-rpc"}, "rpc"},
		{"POST h/v1/rpc", "", "", plan.ProtoHTTP1, fieldMap{"Content-Type": "application/json"}, "rpc"},
		{"POST h/v1", "", `{"jsonrpc": "2.0"}`, plan.ProtoHTTP1, fieldMap{"Content-Type": "application/json; charset=utf-8"}, "rpc"},
		{"POST h/v1", "", `{"id": 1}`, plan.ProtoHTTP1, fieldMap{"Content-Type": "application/json"}, "plain"},
		{"GET one.x/", "websocket", "", plan.ProtoHTTP1, nil, "one"},
	} {
		got := ask(p, c.ask, func(q *Request) {
			q.Protocols = ProtocolsOf(c.fields, c.version, q.Method, q.Target, []byte(c.upgrade), []byte(c.body))
		})
		if got != c.want {
			t.Errorf("%s upgrade %q %v: %s, want %s", c.ask, c.upgrade, c.fields, got, c.want)
		}
	}
}

func TestAMergedSocketTellsItsRoutesApartByLocalAddress(t *testing.T) {
	loop := plan.TCPAddr(loopback, 80)
	six := plan.TCPAddr(netip.IPv6Unspecified(), 80)
	p := planOf(route("all", hosts("a.x")), route("loop", hosts("a.x"), on(loop)), route("loop-only", hosts("b.x"), on(loop)), route("six", hosts("c.x"), on(six)),
		route("link", hosts("d.x"), on(plan.TCPAddr(netip.MustParseAddr("fe80::1"), 80))))
	table := mustCompile(t, p)
	for _, c := range []struct{ local, ask, want string }{
		{"127.0.0.1", "GET a.x/", "loop"},
		{"::ffff:127.0.0.1", "GET b.x/", "loop-only"},
		{"10.0.0.1", "GET a.x/", "all"},
		{"10.0.0.1", "GET b.x/", "no route"},
		{"fe80::1%eth0", "GET c.x/", "six"},
		{"fe80::1%eth0", "GET d.x/", "link"},
		{"fe80::2%eth0", "GET d.x/", "no route"},
		{"10.0.0.1", "GET c.x/", "no route"},
	} {
		if got := ask(table.Port(plan.Addr{Port: 80}, netip.MustParseAddr(c.local)), c.ask); got != c.want {
			t.Errorf("%s at %s: %s, want %s", c.ask, c.local, got, c.want)
		}
	}
	// A listener of an earlier plan is answered by the one that took its place.
	if got := ask(table.Port(loop, loopback), "GET b.x/"); got != "loop-only" {
		t.Error("the listener that was merged:", got)
	}
	if got := ask(table.Port(plan.Addr{Port: 81}, loopback), "GET a.x/"); got != "no route" {
		t.Error("an unknown listener:", got)
	}
}

func TestPortsWithTheSameRoutesShareOneIndex(t *testing.T) {
	p := planOf()
	var all []plan.Addr
	for n := range uint16(100) {
		all = append(all, plan.Addr{Port: 8000 + n})
		p.Ports = append(p.Ports, &plan.Port{Addr: all[n]})
	}
	p.Routes = []*plan.Route{route("a", hosts("a.x"), on(all...)), route("b", on(all...))}
	table := mustCompile(t, p)
	if x, y := table.Port(all[0], loopback), table.Port(all[99], netip.IPv6Loopback()); x != y {
		t.Error("two indexes for one set of routes")
	}
}

func TestTwoRoutesThatMatchTheSameAreAnError(t *testing.T) {
	get := func(r *plan.Route) { r.Match.Methods = []string{"GET", "POST"} }
	teg := func(r *plan.Route) { r.Match.Methods = []string{"POST", "GET"} }
	for name, c := range map[string]struct {
		x, y *plan.Route
		same bool
	}{
		"order of lists, names of parameters": {route("a", hosts("a.x", "b.x"), paths("/:id"), get), route("b", hosts("B.x", "a.x"), paths("/:name"), teg), true},
		"one port of two":                     {route("a", on(plan.Addr{Port: 80}, plan.Addr{Port: 81})), route("b", on(plan.Addr{Port: 81})), true},
		"ports":                               {route("a"), route("b", on(plan.Addr{Port: 81})), false},
		"priority":                            {route("a"), route("b", priority(1)), false},
		"stage":                               {route("a", hosts("a.x")), route("b", hosts("a.x"), passthrough), false},
		"clients":                             {route("a", clients("10.0.0.0/8")), route("b", clients("10.0.0.0/9")), false},
		"clients by host bits":                {route("a", clients("10.0.0.0/8")), route("b", clients("10.1.1.1/8")), true},
		"hosts":                               {route("a", hosts("*.x")), route("b", hosts("**.x")), false},
		"a third":                             {route("a", on(plan.Addr{Port: 1})), route("b", on(plan.Addr{Port: 80}, plan.Addr{Port: 81})), false},
	} {
		p := planOf(c.x, c.y, route("third", on(plan.Addr{Port: 90})))
		p.Where = map[string]plan.Pos{"route/a": {File: "q.yaml", Line: 3}, "route/b": {File: "q.yaml", Line: 9}}
		_, err := Compile(context.Background(), p, Claims{})
		if (err != nil) != c.same {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "routes a and b match the same on :8") || err != nil && !strings.Contains(err.Error(), "(q.yaml:3 and q.yaml:9)") {
			t.Error(err)
		}
	}
}

func TestPatternsThatNothingMatchesAreErrors(t *testing.T) {
	for want, r := range map[string]*plan.Route{
		"begins with /":        route("r", paths("v1")),
		"whole segment":        route("r", paths("/a*")),
		"the last one":         route("r", paths("/*/b")),
		"needs a name":         route("r", paths("/:")),
		"resolved":             route("r", paths("/a/../b")),
		"at most 1024":         route("r", paths("/"+strings.Repeat("a", maxPattern))),
		"at the front":         route("r", hosts("a.*.x")),
		"not a host name":      route("r", hosts("a.x:80")),
		"missing closing":      route("r", func(r *plan.Route) { r.Match.Headers = []plan.FieldMatch{{Name: "A", Regex: "("}} }),
		"at most 1000 are all": route("r", func(r *plan.Route) { r.Match.Query = []plan.FieldMatch{{Name: "A", Regex: strings.Repeat("a", 2000)}} }),
	} {
		_, err := Compile(context.Background(), planOf(r), Claims{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "route r: ") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestACompileThatIsCalledOffEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Compile(ctx, large(), Claims{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestCompilingFromAnEarlierTableGivesTheSameAnswers(t *testing.T) {
	p := planOf(route("a", hosts("a.x")), route("b", hosts("b.x")), route("c"))
	old := mustCompile(t, p)
	next := planOf(p.Routes[0], route("d", hosts("d.x")), p.Routes[2])
	table, err := CompileFrom(context.Background(), old, next, Claims{})
	if err != nil {
		t.Fatal(err)
	}
	checkAll(t, table.Port(plan.Addr{Port: 80}, loopback), []asked{{"GET a.x/", "a"}, {"GET b.x/", "c"}, {"GET d.x/", "d"}})
	if table.rules[0].parts != old.rules[0].parts {
		t.Error("an unchanged route was parsed again")
	}
	checkAll(t, old.Port(plan.Addr{Port: 80}, loopback), []asked{{"GET b.x/", "b"}})
}

func TestManyDeepPatternsFindTheLongest(t *testing.T) {
	var list []*plan.Route
	name := "x"
	for i := range 80 {
		list = append(list, route(fmt.Sprintf("r%d", i), hosts("**."+name)))
		name = "a." + name
	}
	p := portOf(t, list...)
	checkAll(t, p, []asked{{"GET a.x/", "r0"}, {"GET a.a.x/", "r1"}, {"GET b.a.a.x/", "r2"}, {"GET z." + name + "/", "r79"}, {"GET z.b." + name[20:] + "/", "r70"}})
}

func TestADeepPatternOfManyLabelsIsFoundAlone(t *testing.T) {
	name := strings.Repeat("a.", 70) + "x"
	checkAll(t, portOf(t, route("r", hosts("**."+name))), []asked{{"GET b.c.d." + name + "/", "r"}, {"GET " + name + "/", "no route"}})
}
