package pools

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// scripted is a target whose connections the test holds in its hand.
type scripted struct {
	addr  string
	conns chan net.Conn
}

func script(t *testing.T) *scripted {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &scripted{addr: l.Addr().String(), conns: make(chan net.Conn, 100)}
	var mu sync.Mutex
	var all []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			all = append(all, c)
			mu.Unlock()
			s.conns <- c
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range all {
			c.Close()
		}
	})
	return s
}

// hear reads one request head.
func hear(t *testing.T, c net.Conn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	r := bufio.NewReader(c)
	var b strings.Builder
	for {
		l, err := r.ReadString('\n')
		b.WriteString(l)
		if err != nil {
			t.Fatalf("the target heard %q and then %v", b.String(), err)
		}
		if l == "\r\n" {
			return b.String()
		}
	}
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

const okEmpty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

// begin opens s and sends a GET, so that the target's side of the connection is known.
func begin(t *testing.T, p *Pool, s *Stream) {
	t.Helper()
	must(t, p.Open(&Ask{}, s))
	sink, err := s.Send(get(), 0)
	must(t, err)
	must(t, sink.Close(nil))
}

func receive(t *testing.T, s *Stream) (wire.Head, wire.Body) {
	t.Helper()
	var h wire.Head
	body, err := s.Recv(&h, time.Now().Add(5*time.Second))
	must(t, err)
	return h, body
}

func TestStaleConnections(t *testing.T) {
	t.Run("one that ended a while ago is never used", func(t *testing.T) {
		tg := script(t)
		p := run(t, Options{}, upstream("web", target(t, tg.addr))).Pool("web")
		var s Stream
		begin(t, p, &s)
		c := <-tg.conns
		hear(t, c)
		say(t, c, okEmpty)
		receive(t, &s)
		s.Close(true)
		c.Close()
		gone(t, p)
		begin(t, p, &s)
		if s.Reused() {
			t.Fatal("an ended connection was used again")
		}
		s.Close(false)
	})
	t.Run("one on which bytes came unasked is never used", func(t *testing.T) {
		tg := script(t)
		p := run(t, Options{}, upstream("web", target(t, tg.addr))).Pool("web")
		var s Stream
		begin(t, p, &s)
		c := <-tg.conns
		hear(t, c)
		say(t, c, okEmpty)
		receive(t, &s)
		s.Close(true)
		say(t, c, okEmpty)
		gone(t, p)
		begin(t, p, &s)
		if s.Reused() {
			t.Fatal("the answer to nothing would have been taken for this one's")
		}
		s.Close(false)
	})
	t.Run("one that ends under the request is told apart, and its kind are dropped", func(t *testing.T) {
		tg := script(t)
		p := run(t, Options{}, upstream("web", target(t, tg.addr))).Pool("web")
		var a, b Stream
		begin(t, p, &a)
		begin(t, p, &b)
		ca, cb := <-tg.conns, <-tg.conns
		for _, c := range []net.Conn{ca, cb} {
			hear(t, c)
			say(t, c, okEmpty)
		}
		receive(t, &a)
		receive(t, &b)
		b.Close(true)
		a.Close(true)
		begin(t, p, &a)
		if !a.Reused() {
			t.Fatal("not reused")
		}
		if a.Stale() {
			t.Fatal("called stale before anything failed")
		}
		for _, c := range []net.Conn{ca, cb} { // the target goes away; whichever carries the request has read it
			c.Close()
		}
		var h wire.Head
		if _, err := a.Recv(&h, time.Time{}); err == nil || !a.Stale() {
			t.Fatalf("%v, stale %v", err, a.Stale())
		}
		a.Close(false)
		if st := p.status().Targets[0]; st.Idle != 0 || st.Reason != "" {
			t.Fatalf("%+v", st)
		}
	})
	t.Run("a failure on a new connection is none", func(t *testing.T) {
		tg := script(t)
		p := run(t, Options{}, upstream("web", target(t, tg.addr))).Pool("web")
		var s Stream
		begin(t, p, &s)
		(<-tg.conns).Close()
		var h wire.Head
		if _, err := s.Recv(&h, time.Time{}); err == nil || s.Stale() {
			t.Fatalf("%v, stale %v", err, s.Stale())
		}
		s.Close(true)
		if st := p.status().Targets[0]; st.Reason == "" || st.Idle != 0 {
			t.Fatalf("%+v", st)
		}
	})
}

// gone waits until the kernel knows that the idle connection of p has ended or bytes on it, and until that is asked.
func gone(t *testing.T, p *Pool) {
	t.Helper()
	p.mu.Lock()
	c := p.members[0].idle[0]
	p.mu.Unlock()
	until(t, "the connection's end is known", func() bool { return !c.alive() && p.ps.now()-c.idle > stalePeek })
}

func TestIdleAndOldConnectionsAreClosed(t *testing.T) {
	for what, change := range map[string]func(*plan.PoolSettings){
		"idle":    func(s *plan.PoolSettings) { s.Idle = 50 * time.Millisecond },
		"max_age": func(s *plan.PoolSettings) { s.MaxAge = time.Second },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			tg := script(t)
			u := upstream("web", target(t, tg.addr))
			change(&u.Pool)
			ps := run(t, Options{}, u)
			p := ps.Pool("web")
			var s Stream
			begin(t, p, &s)
			c := <-tg.conns
			hear(t, c)
			say(t, c, okEmpty)
			receive(t, &s)
			s.Close(true)
			if n := p.status().Targets[0].Idle; n != 1 {
				t.Fatalf("%d idle", n)
			}
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatalf("the target saw %v", err)
			}
			until(t, "counted", func() bool { return ps.conns.Load() == 0 && p.status().Targets[0].Idle == 0 })
		})
	}
}

func TestOnlyCleanConnectionsAreKept(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		kept         bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", true},
		{"interim before", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + okEmpty, true},
		{"asked to close", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false},
		{"more than announced", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := rawTarget(t, c.answer)
			p := run(t, Options{}, upstream("web", target(t, addr))).Pool("web")
			var s Stream
			_, _, err := exchange(p, &Ask{}, &s)
			must(t, err)
			if idle := p.status().Targets[0].Idle; idle == 1 != c.kept {
				t.Fatalf("%d idle", idle)
			}
		})
	}
	t.Run("an answer not read to its end", func(t *testing.T) {
		p := run(t, Options{}, upstream("web", target(t, rawTarget(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")))).Pool("web")
		var s Stream
		begin(t, p, &s)
		receive(t, &s)
		s.Close(true)
		if idle := p.status().Targets[0].Idle; idle != 0 {
			t.Fatalf("%d idle", idle)
		}
	})
	t.Run("an answer whose rest is yet to come", func(t *testing.T) {
		p := run(t, Options{}, upstream("web", target(t, rawTarget(t, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok")))).Pool("web")
		var s Stream
		begin(t, p, &s)
		_, body := receive(t, &s)
		if _, err := io.ReadFull(body, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		s.Close(true)
		if idle := p.status().Targets[0].Idle; idle != 0 {
			t.Fatalf("%d idle", idle)
		}
	})
	t.Run("one that is older than max_age", func(t *testing.T) {
		u := upstream("web", target(t, rawTarget(t, okEmpty)))
		u.Pool.MaxAge = time.Nanosecond
		p := run(t, Options{}, u).Pool("web")
		var s Stream
		_, _, err := exchange(p, &Ask{}, &s)
		must(t, err)
		if idle := p.status().Targets[0].Idle; idle != 0 {
			t.Fatalf("%d idle", idle)
		}
	})
	t.Run("a request not sent to its end", func(t *testing.T) {
		p := run(t, Options{}, upstream("web", target(t, rawTarget(t, okEmpty)))).Pool("web")
		var s Stream
		must(t, p.Open(&Ask{}, &s))
		sink, err := s.Send(get(), 100)
		must(t, err)
		must(t, sink.Flush())
		receive(t, &s)
		s.Close(true)
		if idle := p.status().Targets[0].Idle; idle != 0 {
			t.Fatalf("%d idle", idle)
		}
	})
}

func TestBadAnswersAreErrors(t *testing.T) {
	for what, answer := range map[string]string{
		"no HTTP":         "SSH-2.0-OpenSSH_9.2\r\n",
		"unasked upgrade": "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
		"two lengths":     "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
		"huge head":       "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
		"many interims":   strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", maxInterims+1),
	} {
		t.Run(what, func(t *testing.T) {
			p := run(t, Options{}, upstream("web", target(t, rawTarget(t, answer)))).Pool("web")
			var s Stream
			_, _, err := exchange(p, &Ask{}, &s)
			if kind(err) != "bad_answer" || status(err) != 502 {
				t.Fatalf("got %v", err)
			}
			if st := p.status().Targets[0]; !strings.HasPrefix(st.Reason, "not a valid answer: ") {
				t.Fatalf("%+v", st)
			}
		})
	}
}

// A deadline of Recv is judged exactly, although it is moved on the connection as seldom as possible.
func TestRecvKeepsItsDeadline(t *testing.T) {
	tg := script(t)
	p := run(t, Options{}, upstream("web", target(t, tg.addr))).Pool("web")
	var s Stream
	var h wire.Head
	begin(t, p, &s)
	c := <-tg.conns
	hear(t, c)
	for _, wait := range []time.Duration{50 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond} {
		end := time.Now().Add(wait)
		_, err := s.Recv(&h, end)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().Before(end) {
			t.Fatalf("%v, %v early", err, time.Until(end))
		}
	}
	say(t, c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
	_, err := s.Recv(&h, time.Now().Add(30*time.Millisecond))
	must(t, err)
	s.Close(false)

	begin(t, p, &s) // the deadline of a head does not end the wait for its body
	c = <-tg.conns
	hear(t, c)
	say(t, c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
	body, err := s.Recv(&h, time.Now().Add(30*time.Millisecond))
	must(t, err)
	late := time.AfterFunc(80*time.Millisecond, func() { _, _ = io.WriteString(c, "ok") })
	defer late.Stop()
	b, err := io.ReadAll(body)
	if err != nil || string(b) != "ok" {
		t.Fatalf("%q, %v", b, err)
	}
	s.Close(true)
}

func TestAbortEndsReceiving(t *testing.T) {
	tg := script(t)
	u := upstream("web", target(t, tg.addr))
	u.Passive = plan.Passive{Fails: 1, Within: time.Minute, Out: time.Minute}
	p := run(t, Options{}, u).Pool("web")
	var s Stream
	begin(t, p, &s)
	c := <-tg.conns
	hear(t, c)
	var h wire.Head
	done := make(chan error)
	go func() {
		_, err := s.Recv(&h, time.Time{})
		done <- err
	}()
	s.Abort()
	if err := <-done; kind(err) != "aborted" || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	s.Close(true)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("the target's connection is still open")
	}
	if st := p.status().Targets[0]; st.State != Up || st.Reason != "" || st.Active != 0 {
		t.Fatalf("the client's leaving counts against the target: %+v", st)
	}
}

func TestSwitchedConnectionsCarryBytesBothWays(t *testing.T) {
	tg := script(t)
	p := run(t, Options{}, upstream("web", target(t, tg.addr))).Pool("web")
	var s Stream
	must(t, p.Open(&Ask{}, &s))
	h := get()
	h.Upgrade = []byte("websocket")
	sink, err := s.Send(h, 0)
	must(t, err)
	must(t, sink.Close(nil))
	c := <-tg.conns
	if req := strings.ToLower(hear(t, c)); !strings.Contains(req, "upgrade: websocket\r\n") {
		t.Fatalf("heard %q", req)
	}
	say(t, c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
	if in, _ := receive(t, &s); in.Status != 101 {
		t.Fatalf("status %d", in.Status)
	}
	body, out := s.Switch()
	b := make([]byte, 5)
	if _, err := io.ReadFull(body, b); err != nil || string(b) != "first" {
		t.Fatalf("%q, %v", b, err)
	}
	if _, err := out.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	must(t, out.Close(nil))
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Fatalf("the target got %q, %v", got, err)
	}
	s.Close(true)
	if n := p.status().Targets[0].Idle; n != 0 {
		t.Fatal("a switched connection was kept")
	}
}

func TestUnixTargetsAndPreservedPorts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	must(t, err)
	web := &http.Server{Handler: name("unix")}
	go func() { _ = web.Serve(l) }()
	defer web.Close()
	a, b := serve(t, name("a")), serve(t, name("b"))
	ps := run(t, Options{},
		upstream("sock", plan.Target{Text: "unix:" + path, Network: plan.Unix, Host: path, Weight: 1}),
		upstream("range", plan.Target{Text: "127.0.0.1", Host: "127.0.0.1", PreservePort: true, Weight: 1}))
	var s Stream
	for range 2 {
		_, body, err := exchange(ps.Pool("sock"), &Ask{}, &s)
		must(t, err)
		if body != "unix" {
			t.Fatalf("got %q", body)
		}
	}
	if !s.Reused() {
		t.Fatal("a unix connection was not used again")
	}
	for i := range 6 { // idle connections of two ports lie in one list
		want, port := "a", target(t, a.URL).Port
		if i%2 == 1 {
			want, port = "b", target(t, b.URL).Port
		}
		_, body, err := exchange(ps.Pool("range"), &Ask{Local: loopback(port)}, &s)
		must(t, err)
		if body != want {
			t.Fatalf("port %d: got %q", port, body)
		}
		if s.Reused() != (i > 1) {
			t.Fatalf("exchange %d: reused %v", i, s.Reused())
		}
	}
}

func TestTargetsThatCannotBeReached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed := l.Addr().String()
	l.Close()

	t.Run("refused, a thousand times without a leak", func(t *testing.T) {
		p := run(t, Options{}, upstream("web", target(t, closed))).Pool("web")
		var s Stream
		goroutines, fds := runtime.NumGoroutine(), openFDs(t)
		for range 1000 {
			err := p.Open(&Ask{}, &s)
			if kind(err) != "refused" || status(err) != 502 {
				t.Fatalf("got %v", err)
			}
			s.Close(false)
		}
		until(t, "goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
		if n := openFDs(t); n > fds+2 {
			t.Fatalf("%d descriptors, %d before", n, fds)
		}
		if st := p.status().Targets[0]; st.Active != 0 || st.Reason != "connection refused" {
			t.Fatalf("%+v", st)
		}
	})
	t.Run("silence ends at the connect timeout", func(t *testing.T) {
		p := run(t, Options{}, upstream("web", target(t, swallower(t)))).Pool("web")
		var s Stream
		start := time.Now()
		err := p.Open(&Ask{Connect: 50 * time.Millisecond}, &s)
		if kind(err) != "timeout" || status(err) != 504 || time.Since(start) > 2*time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
	})
	t.Run("a client that leaves abandons the dial", func(t *testing.T) {
		p := run(t, Options{}, upstream("web", target(t, swallower(t)))).Pool("web")
		var s Stream
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- p.Open(&Ask{Connect: time.Minute}, &s) }()
		until(t, "dialling", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.cancel != nil
		})
		s.Abort()
		if err := <-done; kind(err) != "aborted" || time.Since(start) > 10*time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
		if st := p.status().Targets[0]; st.Active != 0 || st.Reason != "" {
			t.Fatalf("%+v", st)
		}
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			_, _, err := p.Dial(ctx, &Ask{})
			done <- err
		}()
		until(t, "dialling", func() bool { return p.status().Targets[0].Active == 1 })
		cancel()
		if err := <-done; kind(err) != "aborted" {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("a name that does not resolve", func(t *testing.T) {
		p := run(t, Options{}, upstream("web", plan.Target{Text: "no.such.invalid:80", Host: "no.such.invalid", Port: 80, Weight: 1})).Pool("web")
		var s Stream
		if err := p.Open(&Ask{}, &s); kind(err) != "dns" {
			t.Fatalf("got %v", err)
		}
	})
}

func openFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// swallower is an address whose kernel no longer answers SYNs: its queue of connections to accept is full.
func swallower(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	must(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, syscall.Listen(fd, 0))
	sa, err := syscall.Getsockname(fd)
	must(t, err)
	addr := loopback(uint16(sa.(*syscall.SockaddrInet4).Port)).String()
	for range 10 {
		c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue does not fill")
	return ""
}

func TestWhatListensNearARefusingTargetIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	tg := target(t, l.Addr().String())
	l.Close()
	var asked atomic.Int64
	p := run(t, Options{Listening: func(a netip.AddrPort) string {
		asked.Add(1)
		return "node (pid 7) listens on [::1]:" + strings.Split(a.String(), ":")[1]
	}}, upstream("web", tg)).Pool("web")
	var s Stream
	for range 100 {
		err := p.Open(&Ask{}, &s)
		var e *Error
		if !errors.As(err, &e) || !strings.HasPrefix(e.Near, "node (pid 7) listens on [::1]:") {
			t.Fatalf("got %v", err)
		}
	}
	if n := asked.Load(); n > 5 {
		t.Fatalf("looked up %d times for 100 dials in a moment", n)
	}
	if r := p.status().Targets[0].Reason; !strings.Contains(r, "node (pid 7)") {
		t.Fatalf("reason %q", r)
	}
}

// Everything at once, for the race detector: exchanges, aborts, changes of the plan, and status.
func TestManyAtOnce(t *testing.T) {
	srv := [2]string{serve(t, name("x")).URL, serve(t, name("x")).URL}
	u := func(n int) *plan.Upstream {
		u := upstream("web", target(t, srv[0]))
		if n%2 == 0 {
			u.Targets = append(u.Targets, target(t, srv[1]))
		}
		u.Pool.MaxPerTarget, u.Pool.MaxIdle = 4, 2
		return u
	}
	ps := run(t, Options{}, u(0))
	p := ps.Pool("web")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			var s Stream
			for j := range 50 {
				if (i+j)%5 == 0 {
					ended := make(chan struct{})
					go func() { s.Abort(); close(ended) }()
					_, _, _ = exchange(p, &Ask{}, &s)
					<-ended
					s.Close(false)
					continue
				}
				if _, body, err := exchange(p, &Ask{}, &s); err != nil || body != "x" {
					t.Errorf("%q, %v", body, err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 50 {
			follow(t, ps, u(i))
			ps.Status()
		}
	})
	wg.Wait()
	for _, st := range p.status().Targets {
		if st.Active != 0 || st.Idle > 2 {
			t.Fatalf("%+v", st)
		}
	}
	follow(t, ps)
	if n := ps.conns.Load(); n != 0 {
		t.Fatalf("%d connections are left", n)
	}
}
