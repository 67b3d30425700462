package pools

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// BenchmarkExchange is Open, Send, Recv, the body and Close over loopback, the target's side included.
func BenchmarkExchange(b *testing.B) {
	addr := rawTarget(b, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	ps := run(b, Options{}, upstream("web", target(b, addr)))
	x := newExchanger(ps.Pool("web"))
	b.ReportAllocs()
	for b.Loop() {
		if err := x.once(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenClose is what a pool adds to an exchange: no byte is sent.
func BenchmarkOpenClose(b *testing.B) {
	addr := rawTarget(b, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	ps := run(b, Options{}, upstream("web", target(b, addr)))
	p := ps.Pool("web")
	x := newExchanger(p)
	if err := x.once(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Open(&x.ask, &x.s); err != nil {
			b.Fatal(err)
		}
		p.leave(x.s.m, x.s.c, true, "")
		x.s.c, x.s.nc = nil, nil
	}
}

func BenchmarkPick(b *testing.B) {
	for _, policy := range []string{"round_robin", "weighted", "least_connections", "ip_hash", "random_two"} {
		for _, n := range []int{3, 100} {
			b.Run(fmt.Sprintf("%s/%d", policy, n), func(b *testing.B) {
				up := upstream("web")
				for i := range n {
					t := plan.Target{Text: fmt.Sprint("10.0.0.1:", i+1), Host: "10.0.0.1", Port: uint16(i + 1), Weight: 1}
					if policy == "weighted" {
						t.Weight = 1 + i%3
					}
					up.Targets = append(up.Targets, t)
				}
				if policy != "weighted" {
					up.Balance.Policy = policy
				}
				ps := New(Options{})
				follow(b, ps, up)
				p := ps.Pool("web")
				ask := Ask{Client: netip.MustParseAddrPort("192.0.2.1:4")}
				b.ReportAllocs()
				for b.Loop() {
					p.mu.Lock()
					m, _ := p.pick(&ask, 1)
					p.mu.Unlock()
					if m == nil {
						b.Fatal("nobody")
					}
				}
			})
		}
	}
}

// BenchmarkPrepare changes 100 of 10,000 upstreams.
func BenchmarkPrepare(b *testing.B) {
	a, c := thousands()
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			followPlan(b, New(Options{}), a)
		}
	})
	b.Run("change", func(b *testing.B) {
		ps := New(Options{})
		followPlan(b, ps, a)
		for i := 0; b.Loop(); i++ {
			followPlan(b, ps, []*plan.Plan{c, a}[i%2])
		}
	})
}

// thousands are two plans of 10,000 upstreams that differ in 100.
func thousands() (a, c *plan.Plan) {
	many := func(change int) *plan.Plan {
		p := &plan.Plan{}
		for i := range 10_000 {
			u := upstream(fmt.Sprintf("u%05d", i), plan.Target{Text: "10.0.0.1:80", Host: "10.0.0.1", Port: 80, Weight: 1})
			p.Upstreams = append(p.Upstreams, u)
			if i%100 == 0 {
				u.Targets[0].Weight += change
			}
		}
		return p
	}
	a = many(0)
	c = &plan.Plan{}
	c.Upstreams = append(c.Upstreams, a.Upstreams...)
	for i, u := range many(1).Upstreams {
		if i%100 == 0 {
			c.Upstreams[i] = u
		}
	}
	return a, c
}
