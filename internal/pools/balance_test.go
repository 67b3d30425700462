package pools

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// targets are n that nobody dials, named t0, t1 and so on.
func targets(weights ...int) []plan.Target {
	out := make([]plan.Target, len(weights))
	for i, w := range weights {
		out[i] = plan.Target{Text: fmt.Sprint("t", i), Host: "192.0.2.1", Port: uint16(1 + i), Weight: w}
	}
	return out
}

// balanced is a pool that follows u without running.
func balanced(t tb, u *plan.Upstream) *Pool {
	ps := New(Options{})
	follow(t, ps, u)
	return ps.Pool(u.Name)
}

// choose picks once, and holds the slot if asked to.
func (p *Pool) chosen(ask *Ask, hold bool) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, _ := p.pick(ask, p.ps.now())
	if m == nil {
		return ""
	}
	if hold {
		m.active++
	}
	return m.target.Text
}

func (p *Pool) spread(n int, hold bool) map[string]int {
	got := map[string]int{}
	for range n {
		got[p.chosen(&Ask{}, hold)]++
	}
	return got
}

// set changes a member as its health would.
func (p *Pool) set(i int, change func(*Member)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p.members[i])
	p.balance.dirty = true
}

func TestH07_Balancing(t *testing.T) {
	t.Run("round robin takes turns", func(t *testing.T) {
		p := balanced(t, upstream("web", targets(1, 1, 1)...))
		if got := p.spread(300, false); got["t0"] != 100 || got["t1"] != 100 || got["t2"] != 100 {
			t.Fatalf("%v", got)
		}
	})
	t.Run("weighted round robin is exact and smooth", func(t *testing.T) {
		p := balanced(t, upstream("web", targets(5, 1, 1)...))
		order := ""
		for range 7 {
			order += p.chosen(&Ask{}, false)[1:]
		}
		if order != "0010200" {
			t.Fatalf("order %s", order)
		}
		if got := p.spread(700, false); got["t0"] != 500 || got["t1"] != 100 || got["t2"] != 100 {
			t.Fatalf("%v", got)
		}
	})
	t.Run("least connections fills by weight", func(t *testing.T) {
		u := upstream("web", targets(1, 1, 2)...)
		u.Balance.Policy = "least_connections"
		p := balanced(t, u)
		if got := p.spread(40, true); got["t0"] != 10 || got["t1"] != 10 || got["t2"] != 20 {
			t.Fatalf("%v", got)
		}
		p.set(1, func(m *Member) { m.active = 0 })
		if got := p.spread(5, true); got["t1"] != 5 {
			t.Fatalf("%v", got)
		}
	})
	t.Run("random of two keeps loads together", func(t *testing.T) {
		u := upstream("web", targets(1, 1, 1, 1, 2)...)
		u.Balance.Policy = "random_two"
		p := balanced(t, u)
		got := p.spread(6000, true)
		for name, n := range got {
			if want := map[bool]int{true: 2000, false: 1000}[name == "t4"]; n < want*9/10 || n > want*11/10 {
				t.Fatalf("%v", got)
			}
		}
	})
	t.Run("ip hash keeps a client, and moves few when a target comes or goes", hashMovesFew)
	t.Run("a target at its limit is passed over", func(t *testing.T) {
		for _, policy := range []string{"round_robin", "least_connections", "random_two", "ip_hash"} {
			u := upstream("web", targets(1, 1, 3)...)
			u.Balance.Policy = policy
			u.Targets[0].MaxConns = 2
			u.Pool.MaxPerTarget = 5
			p := balanced(t, u)
			ask := &Ask{Client: netip.MustParseAddrPort("192.0.2.7:1")}
			got := map[string]int{}
			for range 13 {
				got[p.chosen(ask, true)]++
			}
			if got["t0"] != 2 || got["t1"] != 5 || got["t2"] != 5 || got[""] != 1 {
				t.Errorf("%s: %v", policy, got)
			}
		}
	})
	t.Run("one that was tried is chosen only when there is nobody else", func(t *testing.T) {
		for _, policy := range []string{"round_robin", "least_connections", "random_two", "ip_hash"} {
			u := upstream("web", targets(1, 1, 2)...)
			u.Balance.Policy = policy
			p := balanced(t, u)
			ask := &Ask{Client: netip.MustParseAddrPort("192.0.2.7:1"), Not: [4]*Member{p.members[0], p.members[2]}}
			for range 20 {
				if got := p.chosen(ask, false); got != "t1" {
					t.Fatalf("%s: %s", policy, got)
				}
			}
			p.set(1, func(m *Member) { m.down = true })
			if got := p.chosen(ask, false); got != "t0" && got != "t2" {
				t.Fatalf("%s: %q", policy, got)
			}
		}
	})
}

func hashMovesFew(t *testing.T) {
	u := upstream("web", targets(1, 1, 1, 1, 2)...)
	u.Balance.Policy = "ip_hash"
	p := balanced(t, u)
	const clients = 6000
	at := func(i int) string {
		ip := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		return p.chosen(&Ask{Client: netip.AddrPortFrom(ip, uint16(i))}, false)
	}
	first := make([]string, clients)
	load := map[string]int{}
	for i := range clients {
		first[i] = at(i)
		load[first[i]]++
		if again := at(i); again != first[i] {
			t.Fatalf("client %d went to %s and then to %s", i, first[i], again)
		}
	}
	for name, n := range load {
		if want := map[bool]int{true: 2000, false: 1000}[name == "t4"]; n < want*7/10 || n > want*13/10 {
			t.Fatalf("%v", load)
		}
	}
	check := func(what string, mayMove func(was string) bool) {
		t.Helper()
		for i := range clients {
			if now := at(i); now != first[i] && !mayMove(first[i]) {
				t.Fatalf("%s: client %d moved from %s to %s", what, i, first[i], now)
			}
		}
	}
	p.set(2, func(m *Member) { m.down = true })
	check("t2 down", func(was string) bool { return was == "t2" })
	p.set(2, func(m *Member) { m.down = false })
	check("t2 back", func(string) bool { return false })

	without := *u
	without.Targets = append(targets(1, 1, 1, 1, 2)[:1:1], u.Targets[2:]...)
	follow(t, p.ps, &without)
	check("t1 removed", func(was string) bool { return was == "t1" })
	v6 := &Ask{Client: netip.MustParseAddrPort("[2001:db8::1]:5")}
	one, two := p.chosen(v6, false), p.chosen(v6, false)
	if one != two {
		t.Fatal("an IPv6 client wanders")
	}
}

func TestH07_Sticky(t *testing.T) {
	u := upstream("web", targets(1, 1, 1)...)
	u.Balance.StickyCookie = "qm"
	p := balanced(t, u)
	if p.StickyCookie() != "qm" {
		t.Fatal("no cookie")
	}
	value := p.members[1].cookie
	for range 10 {
		if got := p.chosen(&Ask{Sticky: value}, false); got != "t1" {
			t.Fatalf("went to %s", got)
		}
	}
	if got := p.spread(30, false); got["t1"] != 10 {
		t.Fatalf("%v", got)
	}
	if got := p.chosen(&Ask{Sticky: []byte("forged")}, false); got == "" {
		t.Fatal("a forged value gets nothing")
	}
	if got := p.chosen(&Ask{Sticky: value, Not: [4]*Member{p.members[1]}}, false); got == "t1" {
		t.Fatal("tried again")
	}
	p.set(1, func(m *Member) { m.down = true })
	if got := p.chosen(&Ask{Sticky: value}, false); got == "t1" || got == "" {
		t.Fatalf("went to %q", got)
	}
	p.set(1, func(m *Member) { m.down = false })

	key := []byte("0123456789abcdef")
	same := func() string {
		ps := New(Options{Key: key})
		follow(t, ps, u)
		return string(ps.Pool("web").members[1].cookie)
	}
	if a := same(); a != same() || a == string(value) {
		t.Fatal("the value does not follow from the key")
	}
	changed := *u
	changed.Targets = targets(1, 1, 1, 4)
	follow(t, p.ps, &changed)
	if got := p.chosen(&Ask{Sticky: value}, false); got != "t1" {
		t.Fatalf("after a change of other targets: %s", got)
	}
	plain := changed
	plain.Balance.StickyCookie = ""
	follow(t, p.ps, &plain)
	if p.StickyCookie() != "" || p.members[1].cookie != nil {
		t.Fatal("still sticky")
	}
}

func TestH07_SlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := upstream("web", targets(1, 1)...)
		u.Balance.SlowStart = 32 * time.Second
		p := balanced(t, u)
		if got := p.spread(100, false); got["t0"] != 50 {
			t.Fatalf("at the first start all are equal, but %v", got)
		}
		p.set(1, func(m *Member) { m.risen = p.ps.now() })
		var last int
		for range 4 {
			got := p.spread(1000, false)["t1"]
			if got < last || got >= 500 {
				t.Fatalf("share %d after %d", got, last)
			}
			last = got
			time.Sleep(8 * time.Second)
		}
		if last < 350 || last > 450 { // three quarters of a share beside a whole one
			t.Fatalf("share %d after 24 s", last)
		}
		if got := p.spread(1000, false)["t1"]; got != 500 {
			t.Fatalf("share %d at the end", got)
		}
		more := *u
		more.Targets = targets(1, 1, 1)
		follow(t, p.ps, &more)
		if got := p.spread(1000, false); got["t2"] > 30 || got["t0"] < 450 {
			t.Fatalf("a target that comes later starts with %v", got)
		}
		if st := p.status().Targets; st[2].State != Starting || st[0].State != Up {
			t.Fatalf("%+v", st)
		}
	})
}

func TestH07_PassiveHealth(t *testing.T) {
	passive := func(weights ...int) *Pool {
		u := upstream("web", targets(weights...)...)
		u.Passive = plan.Passive{Fails: 3, Within: 10 * time.Second, Out: 20 * time.Second}
		return balanced(t, u)
	}
	t.Run("fails within the window take a target out for a while", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := passive(1, 1)
			bad := p.members[0]
			p.Fail(bad, "status 500")
			p.Fail(bad, "status 500")
			time.Sleep(9 * time.Second)
			if got := p.spread(10, false); got["t0"] != 5 {
				t.Fatalf("after two: %v", got)
			}
			p.Fail(bad, "status 502")
			if got := p.spread(10, false); got["t0"] != 0 {
				t.Fatalf("after three: %v", got)
			}
			if st := p.status().Targets[0]; st.State != Out || st.Reason != "status 502" {
				t.Fatalf("%+v", st)
			}
			time.Sleep(20 * time.Second)
			if got := p.spread(10, false); got["t0"] != 5 {
				t.Fatalf("after out: %v", got)
			}
			if st := p.status().Targets[0]; st.State != Up || st.Reason != "status 502" {
				t.Fatalf("%+v", st)
			}
		})
	})
	t.Run("fails further apart do not", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := passive(1, 1)
			for range 10 {
				p.Fail(p.members[0], "status 500")
				time.Sleep(6 * time.Second)
			}
			if got := p.spread(10, false); got["t0"] != 5 {
				t.Fatalf("%v", got)
			}
		})
	})
	t.Run("the last ones are never taken out", func(t *testing.T) {
		p := passive(1, 1)
		for range 3 {
			p.Fail(p.members[0], "status 500")
			p.Fail(p.members[1], "status 500")
		}
		if got := p.spread(10, false); got["t0"] != 5 || got["t1"] != 5 {
			t.Fatalf("%v", got)
		}
	})
	t.Run("refused connections count", func(t *testing.T) {
		u := upstream("web", target(t, "127.0.0.1:1"), target(t, serve(t, name("x")).URL))
		u.Passive = plan.Passive{Fails: 3, Within: 10 * time.Second, Out: time.Minute}
		log := &logLines{}
		p := run(t, Options{Log: log.logger()}, u).Pool("web")
		var s Stream
		failed := 0
		for range 100 {
			if _, _, err := exchange(p, &Ask{}, &s); err != nil {
				failed++
			}
		}
		if failed != 3 {
			t.Fatalf("%d failed", failed)
		}
		if got := log.String(); countLines(got, "target taken out after failures") != 1 {
			t.Fatalf("log:\n%s", got)
		}
	})
}
