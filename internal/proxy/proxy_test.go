package proxy

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/edge/http1"
	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// house is one route behind a real listener, wired as the edge wires it.
type house struct {
	t        testing.TB
	addr     string
	route    *Route
	pools    *pools.Pools
	options  *Options
	registry *prometheus.Registry
	atEnd    func()               // if not nil, called when the last reference to the route is gone
	silent   bool                 // keep no records
	secure   bool                 // clients speak TLS
	before   func(*wire.Exchange) // if not nil, called with each exchange; set before the first connection

	mu      sync.Mutex // guards records
	records []wire.Record
	more    chan struct{} // one value per record
}

// wish is what a test wants of its house; the zero wish is a forward to nobody.
type wish struct {
	action   plan.Action
	settings plan.Settings
	security plan.Security
	timeouts plan.Timeouts
	balance  plan.Balance
	passive  plan.Passive
	targets  []string
	internal http.Handler
	log      *slog.Logger

	targetTLS plan.TargetTLS // for targets that begin with https://
	clientTLS bool           // clients speak TLS
}

func build(t testing.TB, w *wish) *house {
	t.Helper()
	r := &plan.Route{Name: "api", Action: w.action, Security: w.security, Timeouts: w.timeouts}
	up := &plan.Upstream{
		Name: "api", Connect: 5 * time.Second, Balance: w.balance, Passive: w.passive,
		Pool: plan.PoolSettings{MaxIdle: 16, Idle: time.Minute, MaxAge: time.Hour, Queue: 10, QueueTimeout: time.Second},
	}
	up.Balance.Policy = cmp.Or(up.Balance.Policy, "round_robin")
	up.TLS = w.targetTLS
	for _, text := range w.targets {
		addr, secure := strings.CutPrefix(text, "https://")
		host, port, err := net.SplitHostPort(strings.TrimPrefix(addr, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(port)
		up.Targets = append(up.Targets, plan.Target{Text: strings.TrimPrefix(text, "http://"), Host: host, Port: uint16(n), Weight: 1, TLS: secure})
	}
	p := &plan.Plan{Settings: w.settings, Routes: []*plan.Route{r}, Upstreams: []*plan.Upstream{up}}
	h := &house{t: t, registry: prometheus.NewRegistry(), more: make(chan struct{}, 10_000), secure: w.clientTLS}
	g := guard.New(guard.Options{Limit: func() uint64 { return 65536 }})
	h.pools = pools.New(pools.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	var workers sync.WaitGroup
	workers.Go(func() { _ = h.pools.Run(ctx) })
	for _, f := range []plan.Follower{g, h.pools} {
		step, err := f.Prepare(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		step.Commit()
		step.Retire()
	}
	h.options = &Options{
		Log: w.log, Registry: h.registry, Pools: h.pools, Guard: g,
		Settings: func() *plan.Settings { return &p.Settings },
		Internal: func(name string) http.Handler {
			if name != "test" {
				return nil
			}
			return w.internal
		},
	}
	route, err := NewRoute(r, h.options)
	if err != nil {
		t.Fatal(err)
	}
	h.route = route
	h.listen(func() {
		route.Life.Drop()
		if h.atEnd != nil {
			h.atEnd()
		}
		cancel()
		workers.Wait()
	})
	return h
}

// listen serves connections until the test is over, and then calls end.
func (h *house) listen(end func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.addr = ln.Addr().String()
	var conns sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			conns.Go(func() {
				h.serve(c)
				_ = c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	h.t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		conns.Wait()
		end()
	})
}

func (h *house) serve(c net.Conn) {
	peer := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	info := &wire.ConnInfo{Client: peer, Peer: peer, Local: c.LocalAddr().(*net.TCPAddr).AddrPort(), ClientText: []byte(peer.Addr().String())}
	if h.secure {
		tc := tls.Server(wire.NewCarrier(c), &tls.Config{Certificates: []tls.Certificate{certificate().cert}})
		if tc.Handshake() != nil {
			return
		}
		state := tc.ConnectionState()
		c, info.TLS = tc, &state
	}
	_ = http1.Serve(c, info, nil, &http1.Options{
		Handle: h.handle,
		Settings: func() http1.Settings {
			return http1.Settings{RequestHeader: 10 * time.Second, KeepAlive: 30 * time.Second, BodyStall: 10 * time.Second}
		},
	})
}

func (h *house) handle(ex *wire.Exchange) {
	if !h.route.Life.Hold() {
		Refuse(ex, 404, "no_route", "", 0)
		return
	}
	if h.before != nil {
		h.before(ex)
	}
	h.route.Serve(ex)
	h.route.Life.Drop()
	if h.silent {
		return
	}
	rec := ex.Log
	rec.ID = slices.Clone(rec.ID)
	h.mu.Lock()
	h.records = append(h.records, rec)
	h.mu.Unlock()
	select {
	case h.more <- struct{}{}:
	default:
	}
}

// record waits for the next exchange to be over.
func (h *house) record() wire.Record {
	h.t.Helper()
	select {
	case <-h.more:
	case <-time.After(10 * time.Second):
		h.t.Fatal("the exchange does not end")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	rec := h.records[0]
	h.records = h.records[1:]
	return rec
}

// client is one raw connection to a house.
type client struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func (h *house) dial() *client {
	h.t.Helper()
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if h.secure {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	return &client{h.t, c, bufio.NewReader(c)}
}

func (c *client) say(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// head reads one response head, interim ones too. The body can be read from it.
func (c *client) head(method string) *http.Response {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatal(err)
	}
	return res
}

// answer is a whole response.
type answer struct {
	*http.Response
	body string
}

func (c *client) answer(method string) answer {
	c.t.Helper()
	res := c.head(method)
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return answer{res, string(body)}
}

// ask sends one request on a connection of its own.
func (h *house) ask(method, target string, fields ...string) answer {
	h.t.Helper()
	c := h.dial()
	c.say(method + " " + target + " HTTP/1.1\r\nHost: www.example.com\r\n" + strings.Join(append(fields, "", ""), "\r\n"))
	return c.answer(method)
}

// target is a net/http server that tells what it received.
type target struct {
	*httptest.Server
	mu   sync.Mutex // guards seen
	seen []*http.Request
}

func newTarget(t testing.TB, h http.HandlerFunc) *target {
	t.Helper()
	tg := &target{}
	tg.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tg.mu.Lock()
		tg.seen = append(tg.seen, r)
		tg.mu.Unlock()
		if h != nil {
			h(w, r)
		}
	}))
	t.Cleanup(tg.Close)
	return tg
}

func (tg *target) requests() []*http.Request {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	return slices.Clone(tg.seen)
}

func (tg *target) last(t testing.TB) *http.Request {
	t.Helper()
	all := tg.requests()
	if len(all) == 0 {
		t.Fatal("the target received nothing")
	}
	return all[len(all)-1]
}

// rawTarget is a target that a test writes by hand: each accepted connection goes to serve.
func rawTarget(t testing.TB, serve func(c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	return rawTargetOn(t, serve, func(c net.Conn) net.Conn { return c })
}

// rawTLSTarget is one over TLS.
func rawTLSTarget(t testing.TB, serve func(c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{certificate().cert}}
	return "https://" + rawTargetOn(t, serve, func(c net.Conn) net.Conn { return tls.Server(c, config) })
}

func rawTargetOn(t testing.TB, serve func(c net.Conn, r *bufio.Reader), wrap func(net.Conn) net.Conn) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				c := wrap(c)
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				serve(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); conns.Wait() })
	return ln.Addr().String()
}

// closedPort is an address where nobody listens.
func closedPort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

func forwardTo(targets ...string) *wish {
	return &wish{action: plan.Forward{Upstream: "api"}, targets: targets}
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func TestServeForwards(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(append([]byte(r.Method+" "+r.RequestURI+" "), body...))
	})
	h := build(t, forwardTo(tg.URL))
	c := h.dial()
	for i := range 3 {
		c.say("POST /a%2fb/../c?x=%20 HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello")
		if a := c.answer("POST"); a.StatusCode != 200 || a.body != "POST /a%2fb/../c?x=%20 hello" {
			t.Fatalf("request %d: %d %q", i, a.StatusCode, a.body)
		}
		rec := h.record()
		if rec.Status != 200 || rec.In != 5 || rec.Out != 28 || rec.Route != "api" || rec.Upstream != "api" ||
			rec.Target != strings.TrimPrefix(tg.URL, "http://") || rec.Reason != "" || len(rec.ID) != 16 || rec.First <= 0 {
			t.Fatalf("record %+v", rec)
		}
	}
}

func TestRouteEndsWithItsLastHolder(t *testing.T) {
	h := build(t, forwardTo(closedPort(t)))
	h.ask("GET", "/")
	pool := h.route.Pool
	if !h.route.Current() {
		t.Fatal("a new route does not stand on the plan's pool")
	}
	h.route.Life.Hold()
	again, err := NewRoute(h.route.Plan, h.options)
	if err != nil {
		t.Fatal(err)
	}
	step, err := h.pools.Prepare(context.Background(), &plan.Plan{})
	if err != nil {
		t.Fatal(err)
	}
	step.Commit()
	step.Retire()
	if h.route.Current() {
		t.Fatal("the route takes a pool that left the plan for its own")
	}
	if _, err := NewRoute(h.route.Plan, h.options); err == nil || !strings.Contains(err.Error(), "route api: upstream api") {
		t.Fatalf("a route without its upstream: %v", err)
	}
	h.route.Life.Drop()
	again.Life.Drop()
	if len(shown(t, h.registry)) == 0 {
		t.Fatal("the series are gone while the route is held")
	}
	if !pool.Hold() {
		t.Fatal("the pool ended while its route is held")
	}
	pool.Drop()
	h.atEnd = func() {
		if got := shown(t, h.registry); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
		if pool.Hold() {
			t.Error("the pool outlived its last route")
		}
	}
}

func TestServeStreamsLargeBodiesBothWays(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	h := build(t, forwardTo(tg.URL))
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	for _, chunked := range []bool{false, true} {
		req, _ := http.NewRequest("POST", "http://"+h.addr, bytes.NewReader(data))
		if chunked {
			req.ContentLength = -1
		}
		tr := &http.Transport{}
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		tr.CloseIdleConnections()
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("chunked %v: %d bytes of %d, %v", chunked, len(got), len(data), err)
		}
		if rec := h.record(); rec.In != int64(len(data)) || rec.Out != int64(len(data)) {
			t.Fatalf("record %+v", rec)
		}
	}
}
