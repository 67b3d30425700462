package pools

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tb is what tests and benchmarks share.
type tb interface {
	testing.TB
}

// serve starts a target whose handler is h.
func serve(t tb, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// name answers with a fixed text.
func name(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, text) }
}

// target is the plan's for an address such as 127.0.0.1:1234.
func target(t tb, addr string) plan.Target {
	t.Helper()
	addr = strings.TrimPrefix(addr, "http://")
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Target{Text: addr, Host: host, Port: uint16(n), Weight: 1}
}

// upstream has the usual settings.
func upstream(name string, targets ...plan.Target) *plan.Upstream {
	return &plan.Upstream{
		Name: name, Targets: targets, Balance: plan.Balance{Policy: "round_robin"}, Connect: 5 * time.Second,
		Pool: plan.PoolSettings{MaxIdle: 128, Idle: time.Minute, MaxAge: 5 * time.Minute, Queue: 100, QueueTimeout: 5 * time.Second},
	}
}

// follow makes ps follow the plan with these upstreams.
func follow(t tb, ps *Pools, ups ...*plan.Upstream) {
	t.Helper()
	followPlan(t, ps, &plan.Plan{Upstreams: ups})
}

func followPlan(t tb, ps *Pools, p *plan.Plan) {
	t.Helper()
	st, err := ps.Prepare(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	st.Commit()
	st.Retire()
}

// run starts Pools that follow the plan with these upstreams, and ends them with the test.
func run(t tb, o Options, ups ...*plan.Upstream) *Pools {
	t.Helper()
	ps := New(o)
	follow(t, ps, ups...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := ps.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return ps
}

func get() *wire.Head {
	return &wire.Head{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("example.com"), Target: []byte("/"), Minor: 1, Length: -1}
}

// exchange does one GET and returns status and body.
func exchange(p *Pool, ask *Ask, s *Stream) (int, string, error) {
	if err := p.Open(ask, s); err != nil {
		return 0, "", err
	}
	status, body, err := talk(s)
	s.Close(err == nil)
	return status, body, err
}

func talk(s *Stream) (int, string, error) {
	sink, err := s.Send(get(), 0)
	if err != nil {
		return 0, "", err
	}
	if err := sink.Close(nil); err != nil {
		return 0, "", err
	}
	var h wire.Head
	for {
		body, err := s.Recv(&h, time.Time{})
		if err != nil {
			return 0, "", err
		}
		if body == nil {
			continue
		}
		b, err := io.ReadAll(body)
		return h.Status, string(b), err
	}
}

func kind(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return "?"
}

func status(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Status()
	}
	return 0
}

// must fails the test on an error.
func must(t tb, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until polls for something that another goroutine brings about.
func until(t tb, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

// counted counts the connections a target accepts.
func counted(s *httptest.Server) *atomic.Int64 {
	var n atomic.Int64
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			n.Add(1)
		}
	}
	return &n
}

func TestAConnectionIsUsedAgain(t *testing.T) {
	srv := httptest.NewUnstartedServer(name("hello"))
	n := counted(srv)
	srv.Start()
	defer srv.Close()
	ps := run(t, Options{}, upstream("web", target(t, srv.URL)))
	var s Stream
	for i := range 50 {
		p := ps.Pool("web")
		must(t, p.Open(&Ask{}, &s))
		if s.Reused() != (i > 0) {
			t.Fatalf("exchange %d: reused %v", i, s.Reused())
		}
		status, body, err := talk(&s)
		must(t, err)
		if status != 200 || body != "hello" {
			t.Fatalf("got %d %q", status, body)
		}
		s.Close(true)
	}
	if n.Load() != 1 {
		t.Fatalf("%d connections for 50 exchanges", n.Load())
	}
}

// The connection used last is the first to be used again, so that a burst's others can time out.
func TestIdleConnectionsAreLastInFirstOut(t *testing.T) {
	srv := serve(t, name("x"))
	ps := run(t, Options{}, upstream("web", target(t, srv.URL)))
	p := ps.Pool("web")
	var a, b, c Stream
	for _, s := range []*Stream{&a, &b} {
		must(t, p.Open(&Ask{}, s))
		_, _, err := talk(s)
		must(t, err)
	}
	last := b.c
	a.Close(true)
	b.Close(true)
	must(t, p.Open(&Ask{}, &c))
	if c.c != last {
		t.Fatal("not the connection that was put back last")
	}
	c.Close(false)
}

func TestAReusedExchangeAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("allocations are not counted under the race detector")
	}
	srv := rawTarget(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	ps := run(t, Options{}, upstream("web", target(t, srv)))
	p := ps.Pool("web")
	x := newExchanger(p)
	must(t, x.once())
	if n := testing.AllocsPerRun(200, func() { must(t, x.once()) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// exchanger does exchanges with storage of its own.
type exchanger struct {
	p    *Pool
	s    Stream
	ask  Ask
	out  *wire.Head
	in   wire.Head
	body []byte
}

func newExchanger(p *Pool) *exchanger {
	return &exchanger{p: p, out: get(), body: make([]byte, 512)}
}

func (x *exchanger) once() error {
	if err := x.p.Open(&x.ask, &x.s); err != nil {
		return err
	}
	err := x.talk()
	x.s.Close(err == nil)
	return err
}

func (x *exchanger) talk() error {
	sink, err := x.s.Send(x.out, 0)
	if err != nil {
		return err
	}
	if err := sink.Close(nil); err != nil {
		return err
	}
	body, err := x.s.Recv(&x.in, time.Time{})
	if err != nil {
		return err
	}
	for err == nil {
		_, err = body.Read(x.body)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// rawTarget answers every request head with the same bytes, without allocating.
func rawTarget(t tb, answer string) string {
	t.Helper()
	return rawTargetOn(t, answer, func(c net.Conn) net.Conn { return c })
}

// rawTLSTarget does so over TLS.
func rawTLSTarget(t tb, ca *authority, answer string) string {
	t.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{ca.leaf(nil)}}
	return rawTargetOn(t, answer, func(c net.Conn) net.Conn { return tls.Server(c, config) })
}

func rawTargetOn(t tb, answer string, wrap func(net.Conn) net.Conn) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			c = wrap(c)
			wg.Go(func() {
				defer c.Close()
				buf, text := make([]byte, 4096), []byte(answer)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						if _, err := c.Write(text); err != nil {
							return
						}
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

func loopback(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
}

// logLines collects log lines.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
