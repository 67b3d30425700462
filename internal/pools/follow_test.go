package pools

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestAnUnchangedTargetKeepsStateAndConnections(t *testing.T) {
	srv := [2]*httptest.Server{serve(t, name("a")), serve(t, name("b"))}
	u := upstream("web", target(t, srv[0].URL))
	ps := run(t, Options{}, u)
	p := ps.Pool("web")
	var s Stream
	_, _, err := exchange(p, &Ask{}, &s)
	must(t, err)
	m := s.Member()
	p.Fail(m, "status 500")

	same := *u
	follow(t, ps, &same)
	changed := *u
	changed.Targets = []plan.Target{target(t, srv[0].URL), target(t, srv[1].URL)}
	changed.Targets[0].Weight = 5
	changed.Pool.MaxIdle = 7
	follow(t, ps, &changed)
	if ps.Pool("web") != p || p.members[0] != m {
		t.Fatal("another pool or member for the same upstream and target")
	}
	if st := p.status().Targets[0]; st.Idle != 1 || st.Weight != 5 || st.Reason != "status 500" {
		t.Fatalf("%+v", st)
	}
	seen := map[string]int{}
	for range 12 {
		_, body, err := exchange(p, &Ask{}, &s)
		must(t, err)
		seen[body]++
	}
	if seen["a"] != 10 || seen["b"] != 2 {
		t.Fatalf("weights 5 and 1 give %v", seen)
	}

	other := *u
	other.Targets = changed.Targets[1:]
	follow(t, ps, &other)
	if !m.Retired() || p.members[0].Retired() {
		t.Fatal("who is retired is not told")
	}
	if n := ps.conns.Load(); n != 1 {
		t.Fatalf("%d connections: those of a target that is gone are kept", n)
	}
}

func TestAnExchangeUnderWayOutlivesItsUpstream(t *testing.T) {
	tg := script(t)
	ps := run(t, Options{}, upstream("web", target(t, tg.addr)))
	p := ps.Pool("web")
	if !p.Hold() {
		t.Fatal("not held")
	}
	var s Stream
	begin(t, p, &s)
	c := <-tg.conns
	hear(t, c)
	follow(t, ps)
	if ps.Pool("web") != nil {
		t.Fatal("still there")
	}
	say(t, c, okEmpty)
	if h, _ := receive(t, &s); h.Status != 200 {
		t.Fatalf("status %d", h.Status)
	}
	s.Close(true)
	if n := ps.conns.Load(); n != 0 {
		t.Fatalf("%d connections are kept to a target that is gone", n)
	}
	p.Drop()
	if p.Hold() {
		t.Fatal("held although it has ended")
	}
	follow(t, ps, upstream("web", target(t, tg.addr)))
	if again := ps.Pool("web"); again == nil || again == p {
		t.Fatal("no new pool")
	}
}

func TestAnAbortedPlanLeavesNothing(t *testing.T) {
	srv := serve(t, name("a"))
	u := upstream("web", target(t, srv.URL))
	ps := run(t, Options{}, u)
	p := ps.Pool("web")
	changed := *u
	changed.Targets = targets(1)
	fresh := upstream("new", targets(1)...)
	st, err := ps.Prepare(context.Background(), &plan.Plan{Upstreams: []*plan.Upstream{fresh, &changed}})
	must(t, err)
	n := ps.Pool("new")
	if n == nil || ps.Pool("web") != p {
		t.Fatal("the pools of a prepared plan cannot be had")
	}
	var s Stream
	_, body, err := exchange(p, &Ask{}, &s)
	if err != nil || body != "a" {
		t.Fatalf("Prepare shows: %q, %v", body, err)
	}
	st.Abort()
	if ps.Pool("new") != nil || n.Hold() || ps.Pool("web") != p {
		t.Fatal("something is left")
	}
	if list := ps.Status(); len(list) != 1 || list[0].Name != "web" || list[0].Targets[0].Target != u.Targets[0].Text {
		t.Fatalf("%+v", list)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	many := &plan.Plan{}
	for range 200 {
		many.Upstreams = append(many.Upstreams, upstream("x"))
	}
	if _, err := ps.Prepare(ctx, many); err == nil {
		t.Fatal("a cancelled Prepare goes on")
	}
}

// Ten thousand upstreams of which a hundred change.
func TestAChangeOfAHundredAmongTenThousandIsFast(t *testing.T) {
	if raced {
		t.Skip("not timed under the race detector")
	}
	a, b := thousands()
	ps := New(Options{})
	followPlan(t, ps, a)
	best := time.Hour
	for i := range 10 {
		start := time.Now()
		followPlan(t, ps, []*plan.Plan{b, a}[i%2])
		best = min(best, time.Since(start))
	}
	if best > 20*time.Millisecond {
		t.Fatalf("took %v", best)
	}
}

func TestMetricsFollowThePlan(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	srv := serve(t, name("a"))
	addr := srv.URL[len("http://"):]
	u := upstream("web", target(t, srv.URL), targets(1)[0])
	ps := run(t, Options{Registry: reg}, u)
	var s Stream
	ps.Pool("web").set(1, func(m *Member) { m.down = true })
	_, _, err := exchange(ps.Pool("web"), &Ask{}, &s)
	must(t, err)
	want := `
# HELP quaymaster_upstream_connections Connections to the targets of an upstream, and exchanges that wait for one.
# TYPE quaymaster_upstream_connections gauge
quaymaster_upstream_connections{state="active",upstream="web"} 0
quaymaster_upstream_connections{state="idle",upstream="web"} 1
quaymaster_upstream_connections{state="queued",upstream="web"} 0
# HELP quaymaster_upstream_up Whether a target may be chosen.
# TYPE quaymaster_upstream_up gauge
quaymaster_upstream_up{target="` + addr + `",upstream="web"} 1
quaymaster_upstream_up{target="t0",upstream="web"} 0
`
	must(t, testutil.GatherAndCompare(reg, strings.NewReader(want)))
	follow(t, ps)
	if n, err := testutil.GatherAndCount(reg); err != nil || n != 0 {
		t.Fatalf("%d series of what is gone, %v", n, err)
	}
}

func TestRunLeavesNothingOpen(t *testing.T) {
	srv := serve(t, name("a"))
	silent := script(t)
	u, v := upstream("web", target(t, srv.URL)), upstream("x", target(t, silent.addr))
	v.Health = checks()
	v.Health.Timeout = time.Minute
	ps := New(Options{})
	follow(t, ps, u, v)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- ps.Run(ctx) }()
	<-silent.conns // a check is under way
	var a, b Stream
	p := ps.Pool("web")
	must(t, p.Open(&Ask{}, &a))
	_, _, err := talk(&a)
	must(t, err)
	_, _, err = exchange(p, &Ask{}, &b)
	must(t, err)
	start := time.Now()
	cancel()
	must(t, <-done)
	if took := time.Since(start); took > 10*time.Second {
		t.Fatalf("took %v", took)
	}
	if n := checkers(); n != 0 {
		t.Fatalf("%d goroutines check on", n)
	}
	if n := ps.conns.Load(); n != 1 {
		t.Fatalf("%d connections, one is in use", n)
	}
	a.Close(true)
	if n := ps.conns.Load(); n != 0 {
		t.Fatalf("%d connections", n)
	}
}
