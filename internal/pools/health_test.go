package pools

import (
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func countLines(text, what string) int { return strings.Count(text, what) }

// checked is a target that is well or not as the test says, and counts how often it was asked.
type checked struct {
	*checkedState
	plan.Target
}

type checkedState struct {
	ill   atomic.Bool
	asked atomic.Int64
}

func newChecked(t *testing.T) checked {
	c := checked{checkedState: &checkedState{}}
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			_, _ = io.WriteString(w, "x")
			return
		}
		defer c.asked.Add(1)
		if r.Host != "health.example" || r.UserAgent() != "quaymaster-check" {
			w.WriteHeader(400)
			return
		}
		if c.ill.Load() {
			w.WriteHeader(503)
			_, _ = io.WriteString(w, "the database\nis away; "+strings.Repeat("more and more ", 20))
		}
	})
	c.Target = target(t, srv.URL)
	return c
}

func checks() *plan.Health {
	return &plan.Health{
		Path: "/healthz", Host: "health.example", StatusMin: 200, StatusMax: 399,
		Interval: 5 * time.Millisecond, Timeout: 5 * time.Second, Rise: 2, Fall: 3,
	}
}

func TestH07_ActiveHealth(t *testing.T) {
	a, b := newChecked(t), newChecked(t)
	u := upstream("web", a.Target, b.Target)
	u.Health = checks()
	log := &logLines{}
	ps := run(t, Options{Log: log.logger()}, u)
	p := ps.Pool("web")
	state := func(i int) State { return p.status().Targets[i].State }
	var s Stream
	if state(0) != Up || state(1) != Up {
		t.Fatal("targets are taken for down before they were asked")
	}
	until(t, "checked", func() bool { return a.asked.Load() > 5 && b.asked.Load() > 5 })

	before := a.asked.Load()
	a.ill.Store(true)
	until(t, "down", func() bool { return state(0) == Down })
	if n := a.asked.Load() - before; n < 3 {
		t.Fatalf("down after %d checks", n)
	}
	for range 20 {
		must(t, p.Open(&Ask{}, &s))
		if s.Member() != p.members[1] {
			t.Fatal("a dead target was chosen")
		}
		s.Close(false)
	}
	want := "status 503: the database is away; " + strings.Repeat("more and more ", 3)
	if r := p.status().Targets[0].Reason; r != want[:len("status 503: ")+64] {
		t.Fatalf("reason %q", r)
	}

	b.ill.Store(true)
	until(t, "all down", func() bool { return state(1) == Down })
	err := p.Open(&Ask{}, &s)
	var e *Error
	if !errors.As(err, &e) || e.Kind != "down" || e.Status() != 503 ||
		!strings.Contains(err.Error(), a.Text+" (status 503: the database") || !strings.Contains(err.Error(), b.Text+" (status 503: the database") {
		t.Fatalf("got %v", err)
	}

	before = a.asked.Load()
	a.ill.Store(false)
	until(t, "up", func() bool { return state(0) == Up })
	if n := a.asked.Load() - before; n < 2 {
		t.Fatalf("up after %d checks", n)
	}
	must(t, p.Open(&Ask{}, &s))
	s.Close(false)
	if p.status().Targets[0].Reason == "" {
		t.Fatal("the last failure is forgotten")
	}
	got := log.String()
	if countLines(got, "target is down") != 2 || countLines(got, "target is up") != 1 {
		t.Fatalf("log:\n%s", got)
	}
}

func TestH07_TCPChecks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	u := upstream("web", target(t, l.Addr().String()))
	u.Health = checks()
	u.Health.Path, u.Health.Fall, u.Health.Rise = "", 1, 1
	p := run(t, Options{}, u).Pool("web")
	state := func() State { return p.status().Targets[0].State }
	c, err := l.Accept()
	must(t, err)
	c.Close()
	if state() != Up {
		t.Fatal("down although it listens")
	}
	l.Close()
	until(t, "down", func() bool { return state() == Down })
	if r := p.status().Targets[0].Reason; r != "connection refused" {
		t.Fatalf("reason %q", r)
	}
	var s Stream
	if err := p.Open(&Ask{}, &s); err == nil || err.Error() != "upstream web: every target is down: "+u.Targets[0].Text+" (connection refused)" {
		t.Fatalf("got %v", err)
	}
	if l, err = net.Listen("tcp", l.Addr().String()); err != nil {
		t.Skip("somebody else took the port: ", err)
	}
	defer l.Close()
	until(t, "up", func() bool { return state() == Up })
}

func TestACheckThatIsNotAnsweredFails(t *testing.T) {
	tg := script(t)
	u := upstream("web", target(t, tg.addr))
	u.Health = checks()
	u.Health.Timeout, u.Health.Fall = 20*time.Millisecond, 1
	p := run(t, Options{}, u).Pool("web")
	until(t, "down", func() bool { return p.status().Targets[0].State == Down })
	if r := p.status().Targets[0].Reason; r != "no answer in time" {
		t.Fatalf("reason %q", r)
	}
}

// Whoever waits for a slot learns at once that there will be none.
func TestWaitersHearThatEveryTargetWentDown(t *testing.T) {
	u := upstream("web", targets(1)...)
	u.Pool.MaxPerTarget = 1
	u.Health = checks()
	p := balanced(t, u)
	m, check := p.members[0], &watch{set: u.Health, stop: func() {}}
	m.check = check
	p.chosen(&Ask{}, true)
	w := &waiter{ask: &Ask{}, ready: make(chan struct{}, 1)}
	p.queue.push(w)
	for range 3 {
		if w.err != nil {
			t.Fatalf("too early: %v", w.err)
		}
		p.judge(m, check, "connection refused")
	}
	if kind(w.err) != "down" || p.queue.n != 0 {
		t.Fatalf("got %v, %d wait", w.err, p.queue.n)
	}
}

// Checks come and go with the plan, and a target that is checked no more is not down any more.
func TestChecksFollowThePlan(t *testing.T) {
	a := newChecked(t)
	plain := upstream("web", a.Target)
	with := *plain
	with.Health = checks()
	ps := run(t, Options{}, plain)
	a.ill.Store(true)
	for range 3 {
		follow(t, ps, &with)
		until(t, "down", func() bool { return ps.Pool("web").status().Targets[0].State == Down })
		if n := checkers(); n != 1 {
			t.Fatalf("%d goroutines check one target", n)
		}
		slower := with
		health := *with.Health
		health.Interval = time.Hour
		slower.Health = &health
		follow(t, ps, &slower)
		if ps.Pool("web").status().Targets[0].State != Down {
			t.Fatal("a change of the interval made a dead target live")
		}
		follow(t, ps, plain)
		if st := ps.Pool("web").status().Targets[0]; st.State != Up {
			t.Fatalf("%+v", st)
		}
	}
	follow(t, ps, &with)
	until(t, "checking", func() bool { return checkers() == 1 })
	follow(t, ps)
	until(t, "no more checks", func() bool { return checkers() == 0 })
}

// checkers is how many goroutines check targets.
func checkers() int {
	b := make([]byte, 1<<20)
	return strings.Count(string(b[:runtime.Stack(b, true)]), "(*Pool).checkOn(")
}

func TestNoCheckNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	ups := make([]*plan.Upstream, 0, 1000)
	for i := range cap(ups) {
		ups = append(ups, upstream("u"+strings.Repeat("x", i%60)+string(rune('a'+i%26))+string(rune('a'+i/26)), targets(1, 1)...))
	}
	run(t, Options{}, ups...)
	if n := runtime.NumGoroutine(); n > before+3 {
		t.Fatalf("%d goroutines for 1,000 upstreams without checks", n-before)
	}
}
