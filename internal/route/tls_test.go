package route

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// ends makes TLS end at the route, with the certificate of that name.
func ends(cert string, options ...func(*plan.TLS)) func(*plan.Route) {
	t := &plan.TLS{
		Mode: plan.Terminate, MinVersion: 0x303, ALPN: []string{"http/1.1"}, ClientAuth: plan.ClientAuth{Mode: "none"},
		Certificate: plan.CertSource{Kind: plan.CertFiles, CertFile: cert, KeyFile: cert},
	}
	for _, o := range options {
		o(t)
	}
	return func(r *plan.Route) { r.TLS = t }
}

func mutual(t *plan.TLS) { t.ClientAuth = plan.ClientAuth{Mode: "required", CAFile: "/ca.pem"} }

// secure makes ask's request one on a connection that asked for name.
func secure(p *Port, name string) func(*Request) {
	c := &ConnQuery{Kind: ConnTLS, Name: name, Client: client}
	r := p.Conn(c)
	return func(q *Request) {
		q.Conn = c
		if r != nil {
			q.TLS = r.Route.TLS
			return
		}
		q.TLS, q.Default = &plan.TLS{Mode: plan.Terminate, MinVersion: 0x303, ClientAuth: plan.ClientAuth{Mode: "none"}}, true
	}
}

func TestBestHostDecidesWhereTLSEnds(t *testing.T) {
	p := portOf(t,
		route("ended", ends("a"), hosts("*.x.test")),
		route("passed", passthrough, hosts("p.x.test")),
		route("reencrypted", ends("a", func(t *plan.TLS) { t.Mode = plan.Reencrypt }), hosts("r.x.test"), paths("/v1/*")),
		route("plain", hosts("a.x.test")),
	)
	for name, want := range map[string]string{
		"a.x.test": "ended", "P.X.test": "passed", "r.x.test": "reencrypted", "y.test": "none", "": "none",
	} {
		if got := connect(p, ConnTLS, name); got != want {
			t.Errorf("%q goes to %s, want %s", name, got, want)
		}
	}
	if !p.Ends() || !p.HasTLS() {
		t.Error("nothing ends TLS here")
	}
}

func TestHelloWithoutANameAsksForTheAddress(t *testing.T) {
	p := portOf(t, route("ip", ends("a"), hosts("127.0.0.1")), route("names", action(plan.ByName{})))
	q := ConnQuery{Kind: ConnTLS, Client: client, Local: netip.MustParseAddr("::ffff:127.0.0.1")}
	if r := p.Conn(&q); r == nil || r.Route.Name != "ip" {
		t.Errorf("it goes to %v", r)
	}
	q.Local = netip.MustParseAddr("10.0.0.1")
	if r := p.Conn(&q); r != nil {
		t.Errorf("a name that nobody said is forwarded by %s", r.Route.Name)
	}
}

func TestStagesDoNotSeeEachOther(t *testing.T) {
	p := portOf(t,
		route("tls", ends("a"), hosts("a.test", "only.test")),
		route("plain", hosts("a.test", "b.test")),
		route("passed", passthrough, hosts("p.test")),
	)
	for text, want := range map[string]string{"GET a.test/": "plain", "GET b.test/": "plain", "GET only.test/": "no route"} {
		if got := ask(p, text); got != want {
			t.Errorf("plain %s goes to %s, want %s", text, got, want)
		}
	}
	for text, want := range map[string]string{"GET a.test/": "tls", "GET A.test:443/": "tls", "GET b.test/": "no route", "GET p.test/": "misdirected"} {
		if got := ask(p, text, secure(p, "a.test")); got != want {
			t.Errorf("%s over TLS goes to %s, want %s", text, got, want)
		}
	}
	if !p.TLSOnly([]byte("only.test")) || p.TLSOnly([]byte("a.test")) {
		t.Error("TLSOnly")
	}
}

func TestMisdirected(t *testing.T) {
	p := portOf(t,
		route("a", ends("one"), hosts("a.test")),
		route("a2", ends("one"), hosts("a2.test")),
		route("b", ends("two"), hosts("b.test")),
		route("m", ends("one", mutual), hosts("m.test")),
		route("under-m", ends("one", mutual), hosts("*.w.test"), paths("/secret")),
		route("w", ends("one"), hosts("x.w.test"), paths("/open")),
	)
	for _, c := range []struct{ name, ask, want string }{
		{"a.test", "GET a.test/", "a"},
		{"a.test", "GET a2.test/", "a2"},
		{"a.test", "GET b.test/", "misdirected"},
		{"a.test", "GET m.test/", "misdirected"},
		{"m.test", "GET m.test/", "m"},
		{"m.test", "GET a.test/", "misdirected"},
		{"a.test", "GET unknown.test/", "no route"},
		{"x.w.test", "GET x.w.test/open", "w"},
		{"x.w.test", "GET x.w.test/secret", "misdirected"}, // never without the client's certificate
		{"y.w.test", "GET y.w.test/secret", "under-m"},
		{"unknown.test", "GET a.test/", "misdirected"}, // under the default certificate, whose name is none of ours
		{"", "GET a.test/", "a"},
		{"", "GET m.test/", "misdirected"},
		{"unknown.test", "GET unknown.test/", "no route"},
	} {
		if got := ask(p, c.ask, secure(p, c.name)); got != c.want {
			t.Errorf("%q on a connection for %q: %s, want %s", c.ask, c.name, got, c.want)
		}
	}
}

func TestOnePolicyNeedsNoSecondLook(t *testing.T) {
	p := portOf(t, route("a", ends("one"), hosts("a.test")), route("b", ends("one"), hosts("b.test")))
	if p.policy == nil {
		t.Fatal("one policy is not seen as one")
	}
	if got := ask(p, "GET b.test/", secure(p, "a.test")); got != "b" {
		t.Error(got)
	}
	if got := ask(p, "GET c.test/", secure(p, "a.test")); got != "no route" {
		t.Error(got)
	}
}

func TestPolicyOfAnEarlierTable(t *testing.T) {
	old := portOf(t, route("a", ends("one"), hosts("a.test")), route("b", ends("one"), hosts("b.test")))
	on := secure(old, "a.test")
	now := portOf(t, route("a", ends("two"), hosts("a.test")), route("b", ends("two"), hosts("b.test")))
	if got := ask(now, "GET a.test/", on); got != "a" {
		t.Errorf("an open connection meets %s after its host got another certificate", got)
	}
	if got := ask(now, "GET b.test/", on); got != "misdirected" {
		t.Error(got)
	}
	strict := portOf(t, route("a", ends("one", mutual), hosts("a.test")))
	if got := ask(strict, "GET a.test/", on); got != "misdirected" {
		t.Errorf("%s without the certificate that is demanded now", got)
	}
	gone := portOf(t, route("a", passthrough, hosts("a.test")), route("b", ends("one"), hosts("b.test")))
	if got := ask(gone, "GET a.test/", on); got != "misdirected" {
		t.Error(got)
	}
}

func TestChallengeOfALPNIsClaimed(t *testing.T) {
	challenge := route(plan.ALPNChallenge, passthrough, action(plan.Internal{Name: plan.ALPNChallenge}), protocols(plan.ProtoTLS), priority(1<<31-1))
	challenge.TLS = &plan.TLS{Mode: plan.Passthrough}
	p := planOf(challenge, route("passed", passthrough, hosts("p.test")), route("ended", ends("a"), hosts("a.test")))
	claims := Claims{Conn: map[string]func(*ConnQuery) bool{plan.ALPNChallenge: func(q *ConnQuery) bool {
		return len(q.ALPN) == 1 && q.ALPN[0] == plan.ALPNProtocol && strings.HasPrefix(q.Name, "o")
	}}}
	table, err := Compile(context.Background(), p, claims)
	if err != nil {
		t.Fatal(err)
	}
	port := table.Port(plan.Addr{Port: 80}, loopback)
	for name, want := range map[string]string{"o.test": plan.ALPNChallenge, "p.test": "passed", "a.test": "ended", "z.test": "none"} {
		if got := connect(port, ConnTLS, name, plan.ALPNProtocol); got != want {
			t.Errorf("%s goes to %s, want %s", name, got, want)
		}
	}
	if got := connect(port, ConnTLS, "p.test", "h2"); got != "passed" {
		t.Error(got)
	}
	if port.TLSOnly([]byte("z.test")) {
		t.Error("the challenge makes every host one that wants TLS")
	}
	silent := mustCompile(t, p).Port(plan.Addr{Port: 80}, loopback)
	if got := connect(silent, ConnTLS, "o.test", plan.ALPNProtocol); got != "none" {
		t.Errorf("without a claim it took a connection: %s", got)
	}
}

func TestSecureRequestAllocatesNothing(t *testing.T) {
	p := portOf(t, route("a", ends("one"), hosts("a.test"), paths("/v1/*")), route("b", ends("two"), hosts("b.test")), route("c", ends("one"), hosts("c.test")))
	q := &Request{Method: []byte("GET"), Host: []byte("c.test"), Target: []byte("/v1/x"), Client: client}
	secure(p, "a.test")(q)
	if n := testing.AllocsPerRun(100, func() {
		if r, _ := p.Request(q); r == nil {
			t.Fatal("no rule")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestExplainSecure(t *testing.T) {
	p := portOf(t, route("a", ends("one"), hosts("a.test")), route("b", ends("two"), hosts("b.test")), route("p", hosts("a.test")), route("q", passthrough, hosts("q.test")))
	q := &Request{Method: []byte("GET"), Host: []byte("b.test"), Target: []byte("/"), Client: client}
	secure(p, "a.test")(q)
	why := map[string]string{}
	for _, s := range p.ExplainRequest(q) {
		if s.Matched {
			t.Errorf("%s matched", s.Rule.Route.Name)
		}
		why[s.Rule.Route.Name] = s.Reason
	}
	for name, part := range map[string]string{"a": "not among", "b": "421", "p": "plain requests", "q": "passes TLS through"} {
		if !strings.Contains(why[name], part) {
			t.Errorf("%s: %q, want %q in it", name, why[name], part)
		}
	}
}
