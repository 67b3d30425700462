package route

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

var (
	https  = plan.Addr{Port: 443}
	client = netip.MustParseAddr("10.1.2.3")
)

// manyHosts is a plan of n hosts, each with a plain and a passthrough route.
func manyHosts(n int) *plan.Plan {
	p := &plan.Plan{Ports: []*plan.Port{{Addr: https}}}
	for i := range n {
		m := plan.Match{Ports: []plan.Addr{https}, Domains: []string{fmt.Sprintf("h%05d.example.com", i)}}
		p.Routes = append(p.Routes,
			&plan.Route{Name: fmt.Sprintf("p%d", i), Match: m, Action: plan.Forward{}, Order: 2 * i},
			&plan.Route{Name: fmt.Sprintf("t%d", i), Match: m, Action: plan.Tunnel{}, TLS: &plan.TLS{Mode: plan.Passthrough}, Order: 2*i + 1})
	}
	return p
}

// large is the plan the reload budget speaks of: 10,000 routes, among them 2,000 wildcards and 2,000 paths of one host.
func large() *plan.Plan {
	p := &plan.Plan{Ports: []*plan.Port{{Addr: https}}}
	for i := range 10_000 {
		m := plan.Match{Ports: []plan.Addr{https}}
		switch {
		case i < 1000:
			m.Domains = []string{fmt.Sprintf("*.w%d.example.com", i)}
		case i < 2000:
			m.Domains = []string{fmt.Sprintf("**.w%d.example.com", i)}
		case i < 4000:
			m.Domains, m.Paths = []string{"paths.example.com"}, []string{fmt.Sprintf("/v1/p%d/:id/*", i)}
		default:
			m.Domains = []string{fmt.Sprintf("h%05d.example.com", i)}
		}
		p.Routes = append(p.Routes, &plan.Route{Name: fmt.Sprintf("r%d", i), Match: m, Action: plan.Forward{}, Order: i})
	}
	return p
}

func mustCompile(tb testing.TB, p *plan.Plan) *Table {
	tb.Helper()
	t, err := Compile(context.Background(), p, Claims{})
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

var sizes = []int{10, 10_000}

func BenchmarkConn(b *testing.B) {
	for _, n := range sizes {
		port := mustCompile(b, manyHosts(n)).Port(https, client)
		for _, asked := range []int{10, n} {
			b.Run(fmt.Sprintf("hosts=%d/asked=%d", n, asked), func(b *testing.B) {
				qs := make([]ConnQuery, asked)
				for i := range qs {
					qs[i] = ConnQuery{Kind: ConnTLS, Name: fmt.Sprintf("h%05d.example.com", i*(n/asked)), Client: client}
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if port.Conn(&qs[i%asked]) == nil {
						b.Fatal("no route")
					}
				}
			})
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, n := range sizes {
		port := mustCompile(b, manyHosts(n)).Port(https, client)
		for _, asked := range []int{10, n} {
			b.Run(fmt.Sprintf("hosts=%d/asked=%d", n, asked), func(b *testing.B) {
				qs := make([]Request, asked)
				for i := range qs {
					host := fmt.Sprintf("H%05d.example.com:443", i*(n/asked))
					qs[i] = Request{Method: []byte("GET"), Host: []byte(host), Target: []byte("/a/b?c=d"), Client: client, Protocols: plan.ProtoHTTP1}
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if r, _ := port.Request(&qs[i%asked]); r == nil {
						b.Fatal("no route")
					}
				}
			})
		}
	}
}

func BenchmarkRequestPaths(b *testing.B) {
	port := mustCompile(b, large()).Port(https, client)
	for _, target := range []string{"/v1/p3999/42/x", "/v1/p3999/4%32/x?q=1", "/v1/p3999/42/./x", "/v1/p3999/42;v=1/a%2fb/../x"} {
		b.Run(strings.ReplaceAll(target, "/", "|"), func(b *testing.B) {
			q := Request{Method: []byte("GET"), Host: []byte("paths.example.com"), Target: []byte(target), Client: client}
			b.ReportAllocs()
			for b.Loop() {
				if r, v := port.Request(&q); r == nil {
					b.Fatal(v)
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	p := large()
	b.ReportAllocs()
	for b.Loop() {
		mustCompile(b, p)
	}
}

func BenchmarkCompileFrom(b *testing.B) {
	p := large()
	old := mustCompile(b, p)
	next := &plan.Plan{Ports: p.Ports, Routes: append([]*plan.Route(nil), p.Routes...)}
	for i := 0; i < 10_000; i += 100 {
		r := *p.Routes[i]
		r.Priority = 1
		next.Routes[i] = &r
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CompileFrom(context.Background(), old, next, Claims{}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestLookupsDoNotAllocate(t *testing.T) {
	port := mustCompile(t, large()).Port(https, client)
	q := &Request{Method: []byte("GET"), Host: []byte("Paths.Example.com:443"), Client: client, Protocols: plan.ProtoHTTP1}
	for _, target := range []string{"/v1/p3999/42/x", "/v1/p3999/4%32/x?q=1", "/v1/p3999/42;v=1/a%2fb/../x", "/v1/p3999/../x"} {
		q.Target = []byte(target)
		if n := testing.AllocsPerRun(200, func() { port.Request(q) }); n != 0 {
			t.Errorf("%s: %v allocations", target, n)
		}
	}
	q.Host = []byte("a.b.c.w1500.example.com")
	if n := testing.AllocsPerRun(200, func() { port.Request(q); port.TLSOnly(q.Host) }); n != 0 {
		t.Errorf("wildcard: %v allocations", n)
	}
	port = mustCompile(t, manyHosts(10)).Port(https, client)
	c := &ConnQuery{Kind: ConnTLS, Name: "h00003.example.com", Client: client}
	if n := testing.AllocsPerRun(200, func() { port.Conn(c); port.TLSOnly([]byte("h00004.example.com")) }); n != 0 {
		t.Errorf("connection: %v allocations", n)
	}
}

func TestALargePlanCompilesInTime(t *testing.T) {
	p := large()
	best := time.Hour
	for range 5 {
		start := time.Now()
		mustCompile(t, p)
		best = min(best, time.Since(start))
	}
	// The budget is 60 ms; the race detector and a busy machine are given ten times that.
	if best > 600*time.Millisecond {
		t.Errorf("10,000 routes took %s", best)
	}
}
