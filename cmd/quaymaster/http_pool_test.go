package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// forwardTo is one route without conditions but the port; more are keys of its action.
func forwardTo(name string, port int, more string, targets ...string) string {
	list := ""
	for _, t := range targets {
		if !strings.HasPrefix(t, "{") {
			t = fmt.Sprintf("%q", t)
		}
		list += t + ", "
	}
	if more != "" {
		more = ", " + more
	}
	return fmt.Sprintf("  - {name: %s, match: {ports: [%d]}, action: {targets: [%s]%s}}\n", name, port, strings.TrimSuffix(list, ", "), more)
}

func TestH05_ConnectionsAreReusedAndEndInTime(t *testing.T) {
	t.Parallel()
	var open atomic.Int32
	var made atomic.Int32
	target := tcpTarget(t, func(c net.Conn) {
		made.Add(1)
		open.Add(1)
		defer open.Add(-1)
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	p, aged, capped := freePort(t), freePort(t), freePort(t)
	start(t, "routes:\n"+forwardTo("a", p, "pool: {idle: 500ms}", target)+forwardTo("aged", aged, "pool: {max_age: 300ms}", target)+
		forwardTo("capped", capped, "pool: {max_idle: 0}", target))
	for range 50 { // clients come and go, the connection to the target stays
		mustFetch(t, p, "x", "/", "ok")
	}
	c := dial(t, p)
	r := bufio.NewReader(c)
	for range 50 {
		say(t, c, r, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
	}
	if n := made.Load(); n > 10 { // a client may ask again before the connection is back in its place
		t.Errorf("%d connections for 100 requests one after the other", n)
	}
	until(t, "the idle connection is closed", func() bool { return open.Load() == 0 })
	begin := time.Now()
	for time.Since(begin) < 800*time.Millisecond { // busy all the while, but no connection gets old
		mustFetch(t, aged, "x", "/", "ok")
	}
	if n := made.Load(); n < 3 {
		t.Errorf("%d connections in all: max_age ends none", n)
	}
	before := made.Load()
	for range 5 {
		mustFetch(t, capped, "x", "/", "ok")
	}
	if n := made.Load() - before; n != 5 {
		t.Errorf("max_idle 0: %d connections for 5 requests", n)
	}
}

// A targetRow is a target as the API shows it.
type targetRow struct {
	Target, State, Reason string
	Idle                  int
}

// target is the nth target of the first route.
func (q *qm) target(n int) targetRow {
	q.t.Helper()
	var routes []struct{ Targets []targetRow }
	q.get("/v1/routes", &routes)
	return routes[0].Targets[n]
}

// idle waits until the first target has so many idle connections.
func (q *qm) idle(n int) {
	q.t.Helper()
	q.until(fmt.Sprintf("%d idle connections", n), func() bool { return q.target(0).Idle == n })
}

// fickle answers the first request of each connection and ends the connection on the second one, without a word. With
// never, it ends every connection but the first that way on its first request.
type fickle struct {
	addr   string
	never  atomic.Bool
	bodies atomic.Int32 // requests with a body that came whole
	heads  atomic.Int32 // requests that came
}

func fickleTarget(t testing.TB) *fickle {
	f := &fickle{}
	f.addr = tcpTarget(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for first := true; ; first = false {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			f.heads.Add(1)
			b, err := io.ReadAll(req.Body)
			if err == nil && len(b) > 0 {
				f.bodies.Add(1)
			}
			if !first || f.never.Load() {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	return f
}

func TestH05_AStaleConnectionIsRetriedOnceWhereThatIsSafe(t *testing.T) {
	t.Parallel()
	requests := map[string]struct {
		text string
		safe bool
	}{
		"GET":               {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", true},
		"HEAD":              {"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", true},
		"OPTIONS":           {"OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n", true},
		"POST":              {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", false},
		"POST, chunked":     {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false},
		"POST without body": {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", false},
		"PUT":               {"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", false},
		"DELETE":            {"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n", false},
		"GET with a body":   {"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", false},
		"POST of 1 MB":      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 1_000_000), false},
	}
	for name, x := range requests {
		for _, more := range []string{"", "retries: {attempts: 3, on: [connect, 502, 503]}"} {
			f := fickleTarget(t)
			p := freePort(t)
			q := start(t, "routes:\n"+forwardTo("a", p, more, f.addr))
			mustFetch(t, p, "x", "/", "ok")
			q.idle(1)
			f.heads.Store(0)
			c := dial(t, p)
			_, _ = io.WriteString(c, x.text)
			method, _, _ := strings.Cut(x.text, " ")
			res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
			if err != nil {
				t.Fatal(name, err)
			}
			want, sent := 502, int32(1)
			if x.safe {
				want, sent = 200, 2
			}
			if res.StatusCode != want || f.heads.Load() != sent || f.bodies.Load() > 1 {
				t.Errorf("%s %s: %d after the target saw it %d times (bodies %d), want %d after %d", name, more, res.StatusCode, f.heads.Load(), f.bodies.Load(), want, sent)
			}
		}
	}
	f := fickleTarget(t)
	p := freePort(t)
	q := start(t, "routes:\n"+forwardTo("a", p, "", f.addr))
	mustFetch(t, p, "x", "/", "ok")
	q.idle(1)
	f.never.Store(true)
	f.heads.Store(0)
	if status, _, err := fetch(p, "x", "/"); status != 502 || f.heads.Load() != 2 {
		t.Errorf("a target that never answers: %d %v after %d times, want 502 after one retry", status, err, f.heads.Load())
	}
}

func TestH05_AConnectionThatEndedWhileIdleIsNotUsed(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{}, 100)
	var bodies atomic.Int32
	target := tcpTarget(t, func(c net.Conn) { // one request a connection, and never says so
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		if b, _ := io.ReadAll(req.Body); len(b) > 0 {
			bodies.Add(1)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		_ = c.Close()
		ended <- struct{}{}
	})
	p := freePort(t)
	q := start(t, "routes:\n"+forwardTo("a", p, "", target))
	for i := range 20 {
		c := dial(t, p)
		if res, _ := say(t, c, bufio.NewReader(c), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"); res.StatusCode != 200 {
			t.Fatalf("request %d met the connection that had ended: %d", i, res.StatusCode)
		}
		_ = c.Close()
		<-ended
		q.idle(1)
		<-time.After(20 * time.Millisecond) // a connection is looked at again only when it was idle for 5 ms
	}
	if n := bodies.Load(); n != 20 {
		t.Errorf("20 bodies arrived %d times", n)
	}
}

func TestH05_RetriesNeverSendABodyAgain(t *testing.T) {
	t.Parallel()
	var bad, good atomic.Int32
	busy := httpTarget(t, "busy", func(w http.ResponseWriter, r *http.Request) {
		bad.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(503)
	})
	fine := httpTarget(t, "fine", func(w http.ResponseWriter, r *http.Request) {
		good.Add(1)
		_, _ = io.Copy(w, r.Body)
	})
	p := freePort(t)
	start(t, "routes:\n"+forwardTo("a", p, "retries: {attempts: 2, on: [connect, 503], budget: 100%}", busy, fine))
	for range 10 {
		if status, _, err := fetch(p, "x", "/"); status != 200 {
			t.Errorf("GET: %d %v, want the other target's 200", status, err)
		}
	}
	bad.Store(0)
	good.Store(0)
	failed := 0
	for range 10 {
		res, err := http.Post(fmt.Sprintf("http://%s/", at(p)), "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode == 503 {
			failed++
		} else if string(b) != "hello" {
			t.Errorf("POST: %d %q", res.StatusCode, b)
		}
	}
	if bad.Load()+good.Load() != 10 || failed != int(bad.Load()) || failed == 0 {
		t.Errorf("10 POSTs arrived %d+%d times, %d failed", bad.Load(), good.Load(), failed)
	}
}

// A group is some targets that say their names and count.
type group struct {
	addrs []string
	hits  []atomic.Int32
	sick  []atomic.Int32 // health checks: 0 well, 1 failing, 2 failing every second time
	asked []atomic.Int32 // health checks
	let   chan struct{}
	held  atomic.Int32 // requests for /hold that wait
}

func newGroup(t testing.TB, n int) *group {
	g := &group{addrs: make([]string, n), hits: make([]atomic.Int32, n), sick: make([]atomic.Int32, n), asked: make([]atomic.Int32, n), let: make(chan struct{})}
	for i := range n {
		g.addrs[i] = httpTarget(t, "", func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/healthz":
				if k := g.asked[i].Add(1); g.sick[i].Load() == 1 || g.sick[i].Load() == 2 && k%2 == 0 {
					w.WriteHeader(500)
					_, _ = io.WriteString(w, "database is gone")
				}
				return
			case "/hold":
				g.held.Add(1)
				select {
				case <-g.let:
				case <-r.Context().Done():
				}
			}
			g.hits[i].Add(1)
			fmt.Fprintf(w, "target %d", i)
		})
	}
	return g
}

// ask makes n requests one after the other and returns how many each target got.
func (g *group) ask(t testing.TB, port, n int) []int {
	t.Helper()
	before := make([]int, len(g.hits))
	for i := range g.hits {
		before[i] = int(g.hits[i].Load())
	}
	for range n {
		mustFetch(t, port, "x", "/", "target")
	}
	for i := range g.hits {
		before[i] = int(g.hits[i].Load()) - before[i]
	}
	return before
}

// hold opens n requests that stay with target i alone, through a port that leads only there.
func (g *group) hold(t testing.TB, port, n int) {
	t.Helper()
	was := g.held.Load()
	for range n {
		go func() { _, _, _ = fetch(port, "x", "/hold") }()
	}
	until(t, "the requests are held", func() bool { return g.held.Load() == was+int32(n) })
}

func TestH07_Policies(t *testing.T) {
	t.Parallel()
	t.Run("H07 weighted round robin", func(t *testing.T) {
		g := newGroup(t, 3)
		p, even := freePort(t), freePort(t)
		host := func(i, weight int) string {
			h, port, _ := net.SplitHostPort(g.addrs[i])
			return fmt.Sprintf("{host: %s, port: %s, weight: %d}", h, port, weight)
		}
		start(t, "routes:\n"+forwardTo("a", p, "", host(0, 3), host(1, 2), host(2, 1))+forwardTo("even", even, "", g.addrs...))
		if got := g.ask(t, p, 60); got[0] != 30 || got[1] != 20 || got[2] != 10 {
			t.Errorf("weights 3, 2, 1: %v of 60", got)
		}
		if got := g.ask(t, even, 30); got[0] != 10 || got[1] != 10 || got[2] != 10 {
			t.Errorf("no weights: %v of 30", got)
		}
	})
	for _, policy := range []string{"least_connections", "random_two"} {
		t.Run("H07 "+policy, func(t *testing.T) {
			g := newGroup(t, 3)
			defer close(g.let)
			p := freePort(t)
			start(t, "routes:\n"+forwardTo("a", p, "load_balance: {policy: "+policy+"}", g.addrs...))
			if got := g.ask(t, p, 300); got[0] < 30 || got[1] < 30 || got[2] < 30 {
				t.Errorf("idle targets got %v of 300", got)
			}
			g.hold(t, p, 30) // these spread out; then two targets are let go of none, so all stay equal
			got := g.ask(t, p, 60)
			if policy == "least_connections" && (got[0] < 15 || got[1] < 15 || got[2] < 15) {
				t.Errorf("equally busy targets got %v of 60", got)
			}
		})
	}
	t.Run("H07 least_connections avoids the busy one", func(t *testing.T) {
		g := newGroup(t, 2)
		defer close(g.let)
		p := freePort(t)
		start(t, "routes:\n"+forwardTo("a", p, "load_balance: {policy: least_connections}", g.addrs...))
		g.hold(t, p, 3) // two on one target, one on the other
		got := g.ask(t, p, 20)
		if got[0] != 20 && got[1] != 20 {
			t.Errorf("%v of 20, want all at the one with fewer", got)
		}
	})
	t.Run("H07 random_two avoids the busy one", func(t *testing.T) {
		g := newGroup(t, 3)
		defer close(g.let)
		p := freePort(t)
		h, port, _ := net.SplitHostPort(g.addrs[0])
		q := start(t, "routes:\n"+forwardTo("a", p, "load_balance: {policy: random_two}", fmt.Sprintf("{host: %s, port: %s}", h, port)))
		g.hold(t, p, 20)
		q.reload("routes:\n" + forwardTo("a", p, "load_balance: {policy: random_two}", g.addrs...))
		if got := g.ask(t, p, 300); got[0] > 50 { // chosen only when drawn twice: 1 in 9, and then once more
			t.Errorf("the busy target got %d of 300", got[0])
		}
	})
	t.Run("H07 ip_hash", func(t *testing.T) {
		g := newGroup(t, 3)
		p := freePort(t)
		body := func(targets ...string) string {
			return "routes:\n" + forwardTo("a", p, "load_balance: {policy: ip_hash}", targets...)
		}
		q := start(t, body(g.addrs...))
		ask := func(i int) string {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i))}}
			c, err := d.Dial("tcp", at(p))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, b := say(t, c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			return b
		}
		home, used := map[int]string{}, map[string]int{}
		for range 3 {
			for i := 1; i <= 60; i++ {
				b := ask(i)
				if home[i] != "" && home[i] != b {
					t.Errorf("client %d went to %q, then to %q", i, home[i], b)
				}
				home[i] = b
			}
		}
		for _, h := range home {
			used[h]++
		}
		if len(used) != 3 {
			t.Errorf("60 clients use %v", used)
		}
		q.reload(body(g.addrs[0], g.addrs[1]))
		for i := 1; i <= 60; i++ { // only who was at the one that left moves
			if b := ask(i); home[i] != "target 2" && b != home[i] || b == "target 2" {
				t.Errorf("client %d moved from %q to %q", i, home[i], b)
			}
		}
	})
}

// up is what the metric says of a target.
func (q *qm) up(upstream, target string) float64 {
	return q.metric(fmt.Sprintf("quaymaster_upstream_up{target=%q,upstream=%q}", target, upstream))
}

func TestH07_ActiveHealth(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 2)
	p := freePort(t)
	q := start(t, "routes:\n"+forwardTo("a", p, "health_check: {http: /healthz, interval: 30ms, rise: 3, fall: 3}", g.addrs...))
	checks := func(n int32) { // so many more checks of target 1
		to := g.asked[1].Load() + n
		until(t, "checks", func() bool { return g.asked[1].Load() >= to })
	}
	checks(2)
	if got := g.ask(t, p, 20); got[0] != 10 || got[1] != 10 {
		t.Errorf("both well: %v of 20", got)
	}
	g.sick[1].Store(2) // never three in a row
	for range 10 {
		checks(1)
		if q.up("a", g.addrs[1]) != 1 {
			t.Fatal("down before fall was reached")
		}
	}
	from := g.asked[1].Load()
	g.sick[1].Store(1)
	q.until("it is down", func() bool { return q.up("a", g.addrs[1]) == 0 })
	if n := g.asked[1].Load() - from; n < 2 {
		t.Errorf("down after %d failures, want 3", n)
	}
	if got := g.ask(t, p, 20); got[1] != 0 {
		t.Errorf("a target that is down got %d of 20", got[1])
	}
	if x := q.target(1); x.State != "down" || !strings.Contains(x.Reason, "500") || !strings.Contains(x.Reason, "database is gone") {
		t.Errorf("the API says %+v", x)
	}
	g.sick[1].Store(2) // never three good ones in a row
	for range 10 {
		checks(1)
		if q.up("a", g.addrs[1]) != 0 {
			t.Fatal("up before rise was reached")
		}
	}
	g.sick[1].Store(0)
	q.until("it is up again", func() bool { return q.up("a", g.addrs[1]) == 1 })
	if got := g.ask(t, p, 20); got[0] != 10 || got[1] != 10 {
		t.Errorf("after its return: %v of 20", got)
	}
}

func TestH07_PassiveHealth(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1)
	var broken atomic.Bool
	broken.Store(true)
	var met atomic.Int32
	flaky := tcpTarget(t, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		met.Add(1)
		if !broken.Load() {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\ntarget")
		}
	})
	p := freePort(t)
	q := start(t, "routes:\n"+forwardTo("a", p, "passive_health: {fails: 3, within: 1m, out: 1s}", g.addrs[0], flaky))
	failed := 0
	for range 40 {
		if status, _, _ := fetch(p, "x", "/"); status == 502 {
			failed++
		}
	}
	if failed != 3 || met.Load() != 3 || q.up("a", flaky) != 0 {
		t.Errorf("%d of 40 failed, the target met %d, up %v; want 3, then none", failed, met.Load(), q.up("a", flaky))
	}
	broken.Store(false)
	q.until("it is back after `out`", func() bool {
		mustFetch(t, p, "x", "/", "target")
		return met.Load() > 3
	})
}

func TestH07_AllDead(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1)
	g.sick[0].Store(1)
	dead := at(freePort(t))
	p := freePort(t)
	q := start(t, "routes:\n"+forwardTo("a", p, "health_check: {http: /healthz, interval: 30ms, rise: 1, fall: 2}", g.addrs[0], dead))
	q.until("both are down", func() bool { return q.up("a", g.addrs[0]) == 0 && q.up("a", dead) == 0 })
	c := dial(t, p)
	res, body := say(t, c, bufio.NewReader(c), "GET /gone HTTP/1.1\r\nHost: x\r\n\r\n")
	if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || strings.Contains(body, dead) || strings.Contains(body, "database") {
		t.Errorf("%d %v %q", res.StatusCode, res.Header, body)
	}
	id := res.Header.Get("X-Request-Id")
	var line string
	q.until("the access log has it", func() bool {
		for _, l := range strings.Split(q.out.String(), "\n") {
			if strings.Contains(l, id) {
				line = l
			}
		}
		return line != ""
	})
	for _, want := range []string{`"status":503`, `"reason":"down"`, g.addrs[0], "status 500: database is gone", dead, "connection refused"} {
		if !strings.Contains(line, want) {
			t.Errorf("the log does not say %q: %s", want, line)
		}
	}
	g.sick[0].Store(0)
	q.until("one is back", func() bool { status, _, _ := fetch(p, "x", "/"); return status == 200 })
}

func TestH07_SlowStart(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 2)
	p := freePort(t)
	q := start(t, "routes:\n"+forwardTo("a", p, "load_balance: {slow_start: 4s}, health_check: {http: /healthz, interval: 20ms, rise: 1, fall: 1}", g.addrs...))
	until(t, "checks", func() bool { return g.asked[1].Load() > 1 })
	if got := g.ask(t, p, 20); got[0] != 10 || got[1] != 10 {
		t.Errorf("at first: %v of 20, want no slow start", got)
	}
	g.sick[1].Store(1)
	q.until("it is down", func() bool { return q.up("a", g.addrs[1]) == 0 })
	g.sick[1].Store(0)
	q.until("it is back", func() bool { return q.up("a", g.addrs[1]) == 1 })
	begin := time.Now()
	if got := g.ask(t, p, 40); time.Since(begin) < time.Second && got[1] > 12 {
		t.Errorf("right after its return: %v of 40", got)
	}
	q.until("it has its full share", func() bool {
		got := g.ask(t, p, 20)
		return got[1] == 10
	})
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("full share after %v of 4 s", took)
	}
}
