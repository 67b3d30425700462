package guard

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func gateOf(g *Guard, s plan.Security) *Gate {
	return NewGate(&plan.Route{Name: "r", Security: s}, g)
}

// enters reports the reason a client is refused, "" if it is not; it does not stay.
func enters(gt *Gate, client string, field ...string) Reason {
	var key []byte
	if len(field) > 0 {
		key = []byte(field[0])
	}
	ip, _ := netip.ParseAddr(client)
	why, _, ok := gt.Enter(ip, key)
	if ok {
		gt.Leave()
	}
	return why
}

func TestDenyWinsOverAllow(t *testing.T) {
	g := New(Options{Limit: many})
	both := gateOf(g, plan.Security{Allow: prefixes("10.0.0.0/8", "2001:db8::/32", "fe80::/64", "::ffff:192.168.0.0/120"), Deny: prefixes("10.1.2.3/32", "fe80::1/128", "10.9.9.9/16", "2001:db8:dead::/48")})
	deny := gateOf(g, plan.Security{Deny: prefixes("10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/9")})
	six := gateOf(g, plan.Security{Allow: prefixes("::/0")})
	all := gateOf(g, plan.Security{Allow: prefixes("0.0.0.0/0", "::/0")})
	for _, c := range []struct {
		gate   *Gate
		client string
		in     bool
	}{
		{both, "10.0.0.0", true},
		{both, "10.255.255.255", true},
		{both, "9.255.255.255", false},
		{both, "11.0.0.0", false},
		{both, "10.1.2.3", false},
		{both, "10.1.2.4", true},
		{both, "10.9.0.1", false},
		{both, "10.10.0.0", true},
		{both, "::ffff:10.0.0.1", true},
		{both, "::ffff:10.1.2.3", false},
		{both, "192.168.1.1", false},
		{both, "192.168.0.7", true},
		{both, "2001:db8::1", true},
		{both, "2001:db8:dead::1", false},
		{both, "2001:db9::1", false},
		{both, "fe80::2%eth0", true},
		{both, "fe80::1%eth0", false},
		{both, "fe80:0:0:1::", false},
		{both, "fe80::ffff:ffff:ffff:ffff%eth0", true},
		{both, "::a00:1", false},
		{both, "", false},
		{deny, "10.200.0.1", false},
		{deny, "10.1.5.5", false},
		{deny, "11.0.0.1", true},
		{deny, "2001:db8::1", true},
		{deny, "9.9.9.9", true},
		{six, "10.0.0.1", false},
		{six, "::ffff:10.0.0.1", false},
		{six, "fe80::1%eth0", true},
		{all, "10.0.0.1", true},
		{all, "::1", true},
	} {
		want := Reason("")
		if !c.in {
			want = Denied
		}
		if got := enters(c.gate, c.client); got != want {
			t.Errorf("%q: %q, want %q", c.client, got, want)
		}
	}
}

func TestARouteHasSoManyInProgress(t *testing.T) {
	gt := gateOf(New(Options{Limit: many}), plan.Security{MaxConns: 2})
	for range 2 {
		if why, _, ok := gt.Enter(addr10, nil); !ok {
			t.Fatal(why)
		}
	}
	if why := enters(gt, "10.0.0.2"); why != PerRoute {
		t.Error(why)
	}
	gt.Leave()
	if why := enters(gt, "10.0.0.2"); why != "" {
		t.Error("a freed slot was not free:", why)
	}
	if gt.Active() != 1 {
		t.Error(gt.Active())
	}
}

func TestTheGatesOfOneRouteCountTogether(t *testing.T) {
	g := New(Options{Limit: many})
	free := gateOf(g, plan.Security{})
	for range 3 {
		free.Enter(addr10, nil)
	}
	tight := gateOf(g, plan.Security{MaxConns: 3})
	if why := enters(tight, "10.0.0.1"); why != PerRoute {
		t.Error("those who came under the old value were forgotten:", why)
	}
	free.Leave()
	if why := enters(tight, "10.0.0.1"); why != "" {
		t.Error("one who left under the old value still counts:", why)
	}
	if other := NewGate(&plan.Route{Name: "other"}, g); other.Active() != 0 {
		t.Error("another route counts with it")
	}
}

func TestRateLimitsRefillAndSayWhenToComeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Limit: many})
		gt := gateOf(g, plan.Security{Rate: &plan.RateLimit{Requests: 10, Per: time.Second, Burst: 3, Key: "client_ip"}})
		for range 3 {
			if why := enters(gt, "10.0.0.1"); why != "" {
				t.Fatal(why)
			}
		}
		why, after, ok := gt.Enter(addr10, nil)
		if ok || why != Rate || after != 100*time.Millisecond {
			t.Error(why, after, ok)
		}
		if why := enters(gt, "10.0.0.2"); why != "" {
			t.Error("another client pays for the first:", why)
		}
		if why := enters(gt, "::ffff:10.0.0.1"); why != Rate {
			t.Error("another spelling is another client:", why)
		}
		time.Sleep(after)
		if why := enters(gt, "10.0.0.1"); why != "" {
			t.Error("came when told to and was refused:", why)
		}
		if why := enters(gt, "10.0.0.1"); why != Rate {
			t.Error(why)
		}
		time.Sleep(time.Minute)
		n := 0
		for enters(gt, "10.0.0.1") == "" {
			n++
		}
		if n != 3 {
			t.Errorf("%d at once after a minute, want 3", n)
		}
	})
}

func TestWithoutABurstAsManyComeAtOnceAsThePeriodHas(t *testing.T) {
	gt := gateOf(New(Options{Limit: many}), plan.Security{Rate: &plan.RateLimit{Requests: 5, Per: time.Hour, Key: "client_ip"}})
	n := 0
	for n < 100 && enters(gt, "10.0.0.1") == "" {
		n++
	}
	if n != 5 {
		t.Error(n)
	}
}

func TestARateLimitCountsByWhatItIsTold(t *testing.T) {
	g := New(Options{Limit: many})
	one := func(key string) *Gate {
		return gateOf(g, plan.Security{Rate: &plan.RateLimit{Requests: 1, Per: time.Hour, Key: key}})
	}
	whole := one("route")
	if enters(whole, "10.0.0.1") != "" || enters(whole, "10.0.0.2") != Rate {
		t.Error("the route's limit is not for all together")
	}
	field := one("header:X-Key")
	if field.Field() != "X-Key" || whole.Field() != "" || one("client_ip").Field() != "" {
		t.Error("the gate does not know its field")
	}
	for _, c := range []struct {
		client, key string
		want        Reason
	}{
		{"10.0.0.1", "alice", ""}, {"10.0.0.2", "alice", Rate}, {"10.0.0.1", "bob", ""}, {"10.0.0.1", "", ""}, {"10.0.0.1", "", Rate}, {"10.0.0.2", "", ""},
	} {
		if got := enters(field, c.client, c.key); got != c.want {
			t.Errorf("%s %q: %q, want %q", c.client, c.key, got, c.want)
		}
	}
}

func TestARateLimitThatDidNotChangeKeepsItsBuckets(t *testing.T) {
	g := New(Options{Limit: many})
	limit := func(n int) plan.Security {
		return plan.Security{Rate: &plan.RateLimit{Requests: n, Per: time.Hour, Key: "client_ip"}}
	}
	first := gateOf(g, limit(1))
	if why := enters(first, "10.0.0.1"); why != "" {
		t.Fatal(why)
	}
	same := limit(1)
	same.MaxConns = 50
	if why := enters(gateOf(g, same), "10.0.0.1"); why != Rate {
		t.Error("a reload gave the token back:", why)
	}
	if why := enters(gateOf(g, limit(2)), "10.0.0.1"); why != "" {
		t.Error("a new limit begins anew:", why)
	}
	runtime.KeepAlive(first)
}

func TestARefusalForWantOfASlotCostsNoToken(t *testing.T) {
	gt := gateOf(New(Options{Limit: many}), plan.Security{MaxConns: 1, Rate: &plan.RateLimit{Requests: 2, Per: time.Hour, Key: "route"}})
	gt.Enter(addr10, nil)
	for range 5 {
		if why := enters(gt, "10.0.0.1"); why != PerRoute {
			t.Fatal(why)
		}
	}
	gt.Leave()
	if why := enters(gt, "10.0.0.1"); why != "" {
		t.Error(why)
	}
}

func TestTheMemoryOfARateLimitIsBounded(t *testing.T) {
	gt := gateOf(New(Options{Limit: many}), plan.Security{Rate: &plan.RateLimit{Requests: 1, Per: time.Hour, Key: "header:X-Key"}})
	var key []byte
	for n := range 200_000 {
		key = fmt.Appendf(key[:0], "stranger %d", n)
		if _, _, ok := gt.Enter(addr10, key); ok {
			gt.Leave()
		}
	}
	if known, idle := gt.buckets.table.size(); known > idleBuckets || idle != known || known < idleBuckets/2 {
		t.Errorf("%d keys known, %d idle", known, idle)
	}
}

func TestRoutesThatAreGoneAreForgotten(t *testing.T) {
	g := New(Options{Limit: many})
	kept := gateOf(g, plan.Security{})
	kept.Enter(addr10, nil)
	for n := range 5000 {
		NewGate(&plan.Route{Name: fmt.Sprintf("gone-%d", n)}, g)
		if n%1000 == 0 {
			runtime.GC()
		}
	}
	runtime.GC()
	g.tidy()
	g.mu.Lock()
	n := len(g.shares)
	g.mu.Unlock()
	if n > 10 {
		t.Errorf("%d names are remembered, one of them lives", n)
	}
	if gateOf(g, plan.Security{}).Active() != 1 {
		t.Error("a living route was forgotten")
	}
	runtime.KeepAlive(kept)
}
