package route

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func script(steps []Step) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "%s: ", s.Rule.Route.Name)
		if s.Matched {
			b.WriteString("matched")
		}
		b.WriteString(s.Reason + "\n")
	}
	return b.String()
}

func TestExplainGivesEachCandidateInOrderWithItsReason(t *testing.T) {
	p := portOf(t, route("tls", hosts("a.x"), passthrough), route("ssh", tunnel(plan.ProtoSSH)), route("rest"), route("star", hosts("a.x"), paths("/v1/*")), route("other", hosts("b.x")),
		route("post", hosts("a.x"), paths("/v1/y"), func(r *plan.Route) { r.Match.Methods = []string{"POST"} }),
		route("canary", hosts("a.x"), paths("/v1/x"), func(r *plan.Route) { r.Match.Headers = []plan.FieldMatch{{Name: "X-Canary", Value: "1"}} }),
		route("debug", hosts("a.x"), paths("/v1/x"), func(r *plan.Route) { r.Match.Query = []plan.FieldMatch{{Name: "d", Regex: "^1"}} }),
		route("near", hosts("a.x"), paths("/v1/x"), clients("192.168.0.0/16")), route("grpc", hosts("a.x"), paths("/v1/*"), protocols(plan.ProtoGRPC)))
	q := &Request{Method: []byte("GET"), Host: []byte("a.x"), Target: []byte("/v1/x"), Client: client, Protocols: plan.ProtoHTTP1}
	want := `post: path "/v1/x" is not under /v1/y
canary: header X-Canary = "1" does not hold
debug: query parameter d ~ ^1 does not hold
near: client 10.1.2.3 is not among 192.168.0.0/16
grpc: wants grpc, and this is http1
star: matched
other: host "a.x" is not among b.x
rest: would match, but comes after star
tls: is for clients that start TLS
ssh: is a tunnel for ssh
`
	if got := script(p.ExplainRequest(q)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	want = `tls: host "c.x" is not among a.x
ssh: takes ssh, and this is TLS
`
	got := script(p.ExplainConn(&ConnQuery{Kind: ConnTLS, Name: "c.x", Client: client}))
	if !strings.HasPrefix(got, want) || !strings.Contains(got, "rest: is for plain requests\n") {
		t.Error(got)
	}
	q.Target, q.Method = []byte("/v1/x/../y"), []byte("POST")
	if got := script(p.ExplainRequest(q)); !strings.Contains(got, "star: the path can be read in ways") {
		t.Error(got)
	}
}

func TestExplainAgreesWithTheLookup(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(5, seed))
		p := randomPlan(r)
		table, err := Compile(t.Context(), p, Claims{})
		if err != nil {
			continue
		}
		for range 20 {
			q, host := randomRequest(r, p)
			port := table.Port(p.Ports[0].Addr, q.local)
			ask := &Request{Method: []byte(q.method), Host: []byte(host), Target: []byte(q.path + "?" + q.query), Client: q.client, Protocols: q.protocols, Fields: fieldMap(q.headers)}
			rule, _ := port.Request(ask)
			passed := false
			for _, s := range port.ExplainRequest(ask) {
				if s.Matched != (s.Rule == rule) || s.Matched == (s.Reason != "") {
					t.Fatalf("%s: %+v, but the answer is %v", s.Rule.Route.Name, s, rule)
				}
				passed = passed || s.Matched
				if !passed && rule != nil && strings.HasPrefix(s.Reason, "would match") {
					t.Fatalf("%s would match and stands before the answer", s.Rule.Route.Name)
				}
			}
			for _, kind := range []ConnKind{ConnTLS, ConnSSH, ConnOther} {
				c := &ConnQuery{Kind: kind, Name: q.host, Client: q.client}
				rule := port.Conn(c)
				for _, s := range port.ExplainConn(c) {
					if s.Matched != (s.Rule == rule) {
						t.Fatalf("%s: %+v, but the answer is %v", s.Rule.Route.Name, s, rule)
					}
				}
			}
		}
	}
}
