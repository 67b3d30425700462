package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// at is a local address with that port.
func at(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

func dial(t testing.TB, port int) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", at(port), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// say writes a request and reads the answer's head and body.
func say(t testing.TB, c net.Conn, r *bufio.Reader, request string) (*http.Response, string) {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// untilEnd reads until the peer ends the connection, within limit, and returns what came.
func untilEnd(t testing.TB, c net.Conn, limit time.Duration) []byte {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(limit))
	b, err := io.ReadAll(c)
	if err != nil && os.IsTimeout(err) {
		t.Fatalf("not closed within %v", limit)
	}
	return b
}

// rejected is the count of refusals for a reason.
func (q *qm) rejected(reason string) float64 {
	return q.metric(fmt.Sprintf("quaymaster_connections_rejected_total{reason=%q}", reason))
}

// gate is an HTTP target that answers /slow only when it is let go.
type gate struct {
	addr    string
	waiting atomic.Int32
	let     chan struct{}
}

func slowTarget(t testing.TB) *gate {
	g := &gate{let: make(chan struct{})}
	g.addr = httpTarget(t, "slow", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/slow" {
			fmt.Fprint(w, "quick")
			return
		}
		w.Header().Set("Content-Length", "8")
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		g.waiting.Add(1)
		select {
		case <-g.let:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "done")
	})
	return g
}

func TestC01_DrainFinishesTransfers(t *testing.T) {
	g := slowTarget(t)
	p := freePort(t)
	q := start(t, "routes:\n"+route("a", p, "a.test", g.addr))
	type answer struct {
		body string
		err  error
	}
	answers := make(chan answer, 100)
	for range 100 {
		go func() {
			_, body, err := fetch(p, "a.test", "/slow")
			answers <- answer{body, err}
		}()
	}
	q.until("100 transfers are open", func() bool { return g.waiting.Load() == 100 })
	q.signal(syscall.SIGTERM)
	q.until("new connections are refused", func() bool {
		c, err := net.Dial("tcp", at(p))
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	res, _, err := q.admin("GET", "/ready", nil)
	if err != nil || res.StatusCode != 503 {
		t.Errorf("/ready while draining: %v %v", res, err)
	}
	q.until("progress is logged", func() bool { return strings.Contains(q.log.String(), `"connections":100`) })
	close(g.let)
	for range 100 {
		if a := <-answers; a.err != nil || a.body != "halfdone" {
			t.Fatalf("transfer: %q %v", a.body, a.err)
		}
	}
	if code := q.wait(5 * time.Second); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
}

func TestC01_NoConnections(t *testing.T) {
	q := start(t, "routes:\n"+route("a", freePort(t), "a.test", "127.0.0.1:9"))
	begin := time.Now()
	q.signal(syscall.SIGTERM)
	if code := q.wait(5 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	if took := time.Since(begin); took > 950*time.Millisecond { // 100 ms on an idle machine
		t.Errorf("took %v", took)
	}
}

func TestC01_IdleKeepAlive(t *testing.T) {
	p := freePort(t)
	q := start(t, "routes:\n"+route("a", p, "a.test", httpTarget(t, "a", nil)))
	for range 1000 {
		c := dial(t, p)
		say(t, c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	}
	begin := time.Now()
	q.signal(syscall.SIGTERM)
	if code := q.wait(10 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	if took := time.Since(begin); took > 4*time.Second { // 2 s on an idle machine
		t.Errorf("1,000 idle connections: took %v", took)
	}
}

func TestC01_KeepAliveClientsUnderLoadSeeNoError(t *testing.T) {
	p := freePort(t)
	q := start(t, "routes:\n"+route("a", p, "a.test", httpTarget(t, "a", nil)))
	var wg sync.WaitGroup
	var served atomic.Int64
	for range 16 {
		c := dial(t, p)
		wg.Add(1)
		go func() { // asks on and on until it is told that the connection ends
			defer wg.Done()
			r := bufio.NewReader(c)
			for {
				if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				res, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Errorf("read: %v", err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				served.Add(1)
				if res.Close {
					return
				}
			}
		}()
	}
	q.until("load", func() bool { return served.Load() > 1000 })
	q.signal(syscall.SIGTERM)
	wg.Wait()
	if code := q.wait(10 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// wsTarget echoes messages.
func wsTarget(t testing.TB) string {
	return httpTarget(t, "ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, msg, err := c.Read(context.Background())
			if err != nil || c.Write(context.Background(), kind, msg) != nil {
				return
			}
		}
	})
}

func wsDial(t testing.TB, port int, host string) *websocket.Conn {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	c, _, err := websocket.Dial(ctx, fmt.Sprintf("ws://%s/chat", at(port)), &websocket.DialOptions{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

func wsEcho(t testing.TB, c *websocket.Conn, text string) {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if _, got, err := c.Read(ctx); err != nil || string(got) != text {
		t.Fatalf("echo of %q: %q %v", text, got, err)
	}
}

func TestC02_DeadlineCutsAndSaysSo(t *testing.T) {
	g := slowTarget(t)
	p, wsPort := freePort(t), freePort(t)
	q := start(t, "shutdown_timeout: 1s\nroutes:\n"+route("a", p, "a.test", g.addr)+route("ws", wsPort, "ws.test", wsTarget(t)))
	ws := wsDial(t, wsPort, "ws.test")
	wsEcho(t, ws, "hello")
	go func() { _, _, _ = fetch(p, "a.test", "/slow") }()
	q.until("a transfer is open", func() bool { return g.waiting.Load() == 1 })
	q.signal(syscall.SIGTERM)
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	_, _, err := ws.Read(ctx)
	if got := websocket.CloseStatus(err); got != websocket.StatusGoingAway {
		t.Errorf("the WebSocket ended with %v (%v), want 1001", got, err)
	}
	if code := q.wait(10 * time.Second); code != 4 {
		t.Errorf("exit %d, want 4", code)
	}
	if !strings.Contains(q.log.String(), "connections cut at the deadline") || !strings.Contains(q.log.String(), `"connections":2`) {
		t.Errorf("the log does not say how many were cut:\n%s", q.log)
	}
	close(g.let)
}

func TestC02_SecondSignalEndsAtOnce(t *testing.T) {
	g := slowTarget(t)
	p := freePort(t)
	q := start(t, "routes:\n"+route("a", p, "a.test", g.addr))
	go func() { _, _, _ = fetch(p, "a.test", "/slow") }()
	q.until("a transfer is open", func() bool { return g.waiting.Load() == 1 })
	q.signal(syscall.SIGTERM)
	q.until("it drains", func() bool { s := q.statusOrNil(); return s != nil && s["state"] == "draining" })
	begin := time.Now()
	q.signal(syscall.SIGTERM)
	if code := q.wait(5 * time.Second); code != 4 {
		t.Errorf("exit %d, want 4", code)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("took %v", took)
	}
	close(g.let)
}

func TestC03_CapsRefuseAndFreeAtOnce(t *testing.T) {
	echo := tcpTarget(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	web := httpTarget(t, "a", nil)
	cases := []struct{ name, settings, route, reason string }{
		{"all", "max_connections: 4\n", "", "max_connections"},
		{"per ip", "max_connections_per_ip: 4\n", "", "per_ip"},
		{"per route", "", ", security: {max_connections: 4}", "per_route"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p, h := freePort(t), freePort(t)
			q := start(t, c.settings+fmt.Sprintf("routes:\n  - {name: t, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}%s}\n", p, echo, c.route)+
				fmt.Sprintf("  - {name: h, match: {ports: [%d]}, action: {targets: [%q]}}\n", h, web))
			open := func() net.Conn {
				conn := dial(t, p)
				if _, err := conn.Write([]byte("x")); err != nil {
					return nil
				}
				if n, err := conn.Read(make([]byte, 1)); n != 1 || err != nil {
					return nil
				}
				return conn
			}
			var conns []net.Conn
			for i := range 4 {
				conn := open()
				if conn == nil {
					t.Fatalf("connection %d of 4 was refused", i+1)
				}
				conns = append(conns, conn)
			}
			if open() != nil {
				t.Fatal("the fifth was let in")
			}
			q.until("it is counted", func() bool { return q.rejected(c.reason) >= 1 })
			for i, reset := range []bool{false, true} { // a slot freed by FIN, then by RST
				if reset {
					_ = conns[i].(*net.TCPConn).SetLinger(0)
				}
				_ = conns[i].Close()
				var next net.Conn
				until(t, "the freed slot is usable", func() bool { next = open(); return next != nil })
				conns[i] = next
			}
			if res, _, err := q.admin("GET", "/metrics", nil); err != nil || res.StatusCode != 200 {
				t.Errorf("at the cap /metrics answers %v %v", res, err)
			}
			if c.name != "per route" {
				return
			}
			if status, _, err := fetch(h, "x", "/"); status != 200 {
				t.Errorf("another route at the cap of the first: %d %v", status, err)
			}
		})
	}
}

// limited is a script that runs the program with so many descriptors.
func limited(t testing.TB, dir, program string, files int) string {
	t.Helper()
	name := dir + "/limited"
	text := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec %s \"$@\"\n", files, program)
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestC05_IdleMeansSilenceOnBothSides(t *testing.T) {
	oneWay := tcpTarget(t, func(c net.Conn) {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range 40 { // 2 s: ten times idle, in one direction
			<-tick.C
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
		}
		_, _ = c.Read(make([]byte, 1)) // then silence
	})
	p := freePort(t)
	start(t, fmt.Sprintf("timeouts: {idle: 200ms}\nroutes:\n  - {name: t, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", p, oneWay))
	c := dial(t, p)
	if got := untilEnd(t, c, 20*time.Second); len(got) != 40 {
		t.Errorf("%d of 40 bytes came", len(got))
	}
}

// hello is a real ClientHello.
func hello(name string, curves ...tls.CurveID) []byte {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() {
		_ = tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: true, CurvePreferences: curves}).Handshake()
	}()
	var head [5]byte
	_, _ = io.ReadFull(b, head[:])
	rest := make([]byte, int(head[3])<<8|int(head[4]))
	_, _ = io.ReadFull(b, rest)
	return append(head[:], rest...)
}

func TestC06_ClientHelloInPieces(t *testing.T) {
	got := make(chan []byte, 16)
	target := tcpTarget(t, func(c net.Conn) {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 4096)
		n, err := io.ReadAtLeast(c, b, 200)
		if err == nil {
			got <- b[:n]
		}
		_, _ = c.Write([]byte("seen"))
	})
	p := freePort(t)
	q := start(t, fmt.Sprintf("routes:\n  - {name: s, match: {ports: [%d], domains: [s.test]}, action: {targets: [%q], tls: {mode: passthrough}}}\n", p, target))
	split := func(n int) [][]byte { // into so many segments; 0: one a byte
		var out [][]byte
		h := hello("s.test") // each with a random of its own
		if n == 0 {
			n = len(h)
		}
		for i := range n {
			out = append(out, h[i*len(h)/n:(i+1)*len(h)/n])
		}
		return out
	}
	h := hello("s.test")
	twoRecords := append([]byte{0x16, 3, 1, 0, 40}, h[5:45]...)
	rest := h[45:]
	twoRecords = append(append(twoRecords, 0x16, 3, 1, byte(len(rest)>>8), byte(len(rest))), rest...)
	for name, pieces := range map[string][][]byte{"whole": split(1), "four segments": split(4), "byte by byte": split(0), "two records": {twoRecords}} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, p)
			for _, piece := range pieces {
				if _, err := c.Write(piece); err != nil {
					t.Fatal(err)
				}
			}
			if b := untilEnd(t, c, 10*time.Second); string(b) != "seen" {
				t.Fatalf("answer %q", b)
			}
			if b := <-got; !bytes.HasPrefix(bytes.Join(pieces, nil), b) {
				t.Error("the target saw other bytes than the client sent")
			}
		})
	}
	for name, c := range map[string]struct {
		bytes  []byte
		alert  byte
		reason string
	}{
		"unknown name": {hello("other.test"), 112, "no_route"},
		"no name":      {hello(""), 112, "no_route"},
		"garbage":      {append([]byte{0x16, 3, 1, 0, 100, 1, 0, 0, 96}, bytes.Repeat([]byte{0xff}, 96)...), 50, "tls"},
	} {
		t.Run(name, func(t *testing.T) {
			before := q.rejected(c.reason)
			conn := dial(t, p)
			_, _ = conn.Write(c.bytes)
			b := untilEnd(t, conn, 10*time.Second)
			if len(b) != 7 || b[0] != 21 || b[6] != c.alert {
				t.Errorf("answer % x, want an alert %d", b, c.alert)
			}
			q.until("it is counted", func() bool { return q.rejected(c.reason) == before+1 })
		})
	}
}

func TestC07_HalfCloseAndReset(t *testing.T) {
	target := tcpTarget(t, func(c net.Conn) {
		b, _ := io.ReadAll(c) // until the client's FIN
		_, _ = c.Write(bytes.Repeat(b, 1000))
	})
	reset := make(chan error, 1)
	sees := tcpTarget(t, func(c net.Conn) {
		_, _ = c.Write([]byte("hi"))
		_, err := c.Read(make([]byte, 1))
		reset <- err
	})
	p, r, h := freePort(t), freePort(t), freePort(t)
	start(t, fmt.Sprintf("routes:\n  - {name: t, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", p, target)+
		fmt.Sprintf("  - {name: r, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", r, sees)+
		route("h", h, "h.test", httpTarget(t, "h", nil)))
	c := dial(t, p)
	_, _ = c.Write([]byte("request"))
	_ = c.(*net.TCPConn).CloseWrite()
	if got := untilEnd(t, c, 10*time.Second); len(got) != 7000 {
		t.Errorf("%d bytes after the half-close, want 7000", len(got))
	}
	c = dial(t, r)
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	select {
	case err := <-reset:
		if err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("the target saw %v, want a reset", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the client's reset did not end the target's side")
	}
	c = dial(t, h) // HTTP: FIN behind the request, the answer still comes
	_, _ = io.WriteString(c, "GET /x HTTP/1.1\r\nHost: h.test\r\n\r\n")
	_ = c.(*net.TCPConn).CloseWrite()
	if got := untilEnd(t, c, 10*time.Second); !strings.Contains(string(got), "h GET h.test /x") {
		t.Errorf("answer after a half-close: %q", got)
	}
}

// blackHole is an address that swallows SYNs: a listener whose queue is full.
func blackHole(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := at(sa.(*syscall.SockaddrInet4).Port)
	for range 3 {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	return addr
}

func TestC08_TargetRefusesOrSwallows(t *testing.T) {
	refuse, swallow, tcp := freePort(t), freePort(t), freePort(t)
	dead := at(freePort(t))
	q := start(t, "timeouts: {connect: 2s}\nroutes:\n"+
		fmt.Sprintf("  - {name: r, match: {ports: [%d]}, action: {targets: [%q], passive_health: {fails: 0}}}\n", refuse, dead)+
		fmt.Sprintf("  - {name: s, match: {ports: [%d]}, action: {targets: [%q], passive_health: {fails: 0}}}\n", swallow, blackHole(t))+
		fmt.Sprintf("  - {name: t, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q], passive_health: {fails: 0}}}\n", tcp, dead))
	begin := time.Now()
	if status, _, err := fetch(refuse, "x", "/"); status != 502 || time.Since(begin) > 1500*time.Millisecond {
		t.Errorf("a refusing target: %d %v after %v, want 502 at once", status, err, time.Since(begin))
	}
	begin = time.Now()
	if status, _, err := fetch(swallow, "x", "/"); status != 504 && status != 502 || time.Since(begin) > 8*time.Second {
		t.Errorf("a silent target: %d %v after %v", status, err, time.Since(begin))
	}
	untilEnd(t, dial(t, tcp), 5*time.Second)
	fds, routines := q.fds(), q.metric("go_goroutines")
	n := 1000
	if testing.Short() {
		n = 100
	}
	for range n {
		if status, _, err := fetch(refuse, "x", "/"); status != 502 {
			t.Fatalf("%d %v", status, err)
		}
		untilEnd(t, dial(t, tcp), 5*time.Second)
	}
	// Clients that leave while the target is dialled.
	for range 50 {
		c := dial(t, swallow)
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	q.until("descriptors are given back", func() bool { return q.fds() <= fds+5 })
	q.until("goroutines are given back", func() bool { return q.metric("go_goroutines") <= routines+5 })
}

func TestC10_EachRequestByItsOwnHost(t *testing.T) {
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", httpTarget(t, "a", nil))+route("b", p, "b.test", httpTarget(t, "b", nil)))
	c := dial(t, p)
	r := bufio.NewReader(c)
	for _, want := range []string{"a", "b", "a", "none", "b"} {
		res, body := say(t, c, r, "GET / HTTP/1.1\r\nHost: "+want+".test\r\n\r\n")
		if want == "none" {
			if res.StatusCode != 404 {
				t.Errorf("unknown host on a kept connection: %d", res.StatusCode)
			}
			if res.Close {
				t.Fatal("a 404 closed the connection")
			}
			continue
		}
		if !strings.HasPrefix(body, want+" GET") {
			t.Errorf("host %s.test got %q", want, body)
		}
	}
}

func TestC12_ProxyProtocol(t *testing.T) {
	seen := make(chan string, 1)
	target := tcpTarget(t, func(c net.Conn) { // shows the PROXY header it gets
		b := make([]byte, 512)
		n, _ := c.Read(b)
		seen <- string(b[:n])
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	})
	web := httpTarget(t, "web", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("X-Forwarded-For")) })
	in, out, refuses := freePort(t), freePort(t), freePort(t)
	q := start(t, fmt.Sprintf("proxy_protocol: {ports: [%d, %d], from: [127.0.0.1/32], policy: require}\n", in, out)+"routes:\n"+
		fmt.Sprintf("  - {name: in, match: {ports: [%d]}, action: {targets: [%q]}, security: {deny: [203.0.113.66]}}\n", in, web)+
		fmt.Sprintf("  - {name: out, match: {ports: [%d]}, action: {targets: [%q], send_proxy_protocol: v1}}\n", out, target)+
		fmt.Sprintf("  - {name: r, match: {ports: [%d]}, action: {targets: [%q]}}\n", refuses, web))
	ask := func(port int, first string) string {
		c := dial(t, port)
		_, _ = io.WriteString(c, first+"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		return string(untilEnd(t, c, 10*time.Second))
	}
	v1 := "PROXY TCP4 203.0.113.9 203.0.113.1 4444 80\r\n"
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x0a\xcb\x00\x71\x01\x11\x5c\x00\x50"
	if got := ask(in, v1); !strings.HasSuffix(got, "203.0.113.9") {
		t.Errorf("v1: the target saw %q", got)
	}
	if got := ask(in, v2); !strings.HasSuffix(got, "203.0.113.10") {
		t.Errorf("v2: the target saw %q", got)
	}
	if got := ask(in, strings.Replace(v1, "203.0.113.9", "203.0.113.66", 1)); !strings.HasPrefix(got, "HTTP/1.1 403") {
		t.Errorf("a denied client behind PROXY got %q", got)
	}
	if got := ask(in, ""); got != "" || q.rejected("proxy_header") < 1 {
		t.Errorf("without the required header: %q, %v refusals", got, q.rejected("proxy_header"))
	}
	if got := ask(refuses, v1); !strings.HasPrefix(got, "HTTP/1.1 400") && got != "" {
		t.Errorf("a PROXY header on a port that reads none: %q", got)
	}
	ask(out, v1)
	if got := <-seen; !strings.HasPrefix(got, "PROXY TCP4 203.0.113.9 ") {
		t.Errorf("sent to the target: %q", got)
	}
	q.until("the count is back at zero", func() bool { return q.metric("quaymaster_connections_active") == 0 })
}

func TestC12_ChainOfTwoCountsBackToZero(t *testing.T) {
	web := httpTarget(t, "web", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("X-Forwarded-For")) })
	front, back := freePort(t), freePort(t)
	b := start(t, fmt.Sprintf("proxy_protocol: {ports: [%d], from: [127.0.0.0/8]}\nroutes:\n  - {name: b, match: {ports: [%d]}, action: {targets: [%q], health_check: {tcp: true, interval: 200ms}}}\n", back, back, web))
	f := start(t, fmt.Sprintf("routes:\n  - {name: f, match: {ports: [%d]}, action: {targets: [%q], send_proxy_protocol: v2, health_check: {http: /, interval: 200ms}}}\n", front, at(back)))
	n := 1000
	if testing.Short() {
		n = 100
	}
	for range n {
		if status, _, err := fetch(front, "x", "/"); status != 200 {
			t.Fatalf("%d %v", status, err)
		}
	}
	for _, q := range []*qm{f, b} {
		q.until("the count is back at zero or one health check", func() bool { return q.metric("quaymaster_connections_active") <= 1 })
	}
	var up []struct {
		Targets []struct{ State, Reason string }
	}
	_ = up
	if got := f.metric(fmt.Sprintf(`quaymaster_upstream_up{target=%q,upstream="f"}`, at(back))); got != 1 {
		t.Errorf("the health check does not carry the header: upstream_up %v", got)
	}
}

func TestC13_RemovedRouteDrainsOrCloses(t *testing.T) {
	echo := tcpTarget(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	stays, drains, closes := freePort(t), freePort(t), freePort(t)
	tcp := func(name string, port int, more string) string {
		return fmt.Sprintf("  - {name: %s, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}%s}\n", name, port, echo, more)
	}
	base := "drain_timeout: 1s\nroutes:\n" + tcp("stays", stays, "")
	q := start(t, base+tcp("drains", drains, ", on_remove: drain")+tcp("closes", closes, ", on_remove: close"))
	ping := func(c net.Conn) error {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 4))
		return err
	}
	a, b, c := dial(t, stays), dial(t, drains), dial(t, closes)
	for _, conn := range []net.Conn{a, b, c} {
		if err := ping(conn); err != nil {
			t.Fatal(err)
		}
	}
	q.reload(base)
	untilEnd(t, c, 5*time.Second)
	if err := ping(b); err != nil {
		t.Errorf("the draining tunnel ended at once: %v", err)
	}
	untilEnd(t, b, 5*time.Second)
	for range 20 {
		q.reload(base + tcp("drains", drains, ""))
		q.reload(base)
		if err := ping(a); err != nil {
			t.Fatalf("an unrelated tunnel noticed a reload: %v", err)
		}
	}
}

func TestC14_RejectionsAreSummed(t *testing.T) {
	p := freePort(t)
	n := 10_000
	if testing.Short() {
		n = 2000
	}
	q := start(t, fmt.Sprintf("routes:\n  - {name: t, match: {ports: [%d]}, action: {targets: [\"127.0.0.1:9\"]}}\nconnection_rate_per_ip: 1\n", p))
	before := strings.Count(q.log.String(), "\n")
	for range n {
		c, err := net.Dial("tcp", at(p))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	q.until("all are counted", func() bool { return q.rejected("rate") >= float64(n-50) })
	if lines := strings.Count(q.log.String(), "\n") - before; lines > 20 {
		t.Errorf("%d log lines for %d rejections", lines, n)
	}
}

func TestC15_MetricsTellTheTruth(t *testing.T) {
	body := strings.Repeat("x", 100_000)
	p := freePort(t)
	q := start(t, "routes:\n"+route("a", p, "a.test", httpTarget(t, "a", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, body)
	}))+fmt.Sprintf("  - {name: s, match: {ports: [%d], domains: [s.test]}, action: {targets: [\"127.0.0.1:9\"], tls: {mode: passthrough}}}\n", p))
	for range 10 {
		if _, got, err := fetch(p, "a.test", "/"); len(got) != len(body) {
			t.Fatal(len(got), err)
		}
	}
	if n := q.metric(`quaymaster_bytes_total{direction="out",route="a"}`); n != float64(10*len(body)) {
		t.Errorf("bytes out %v, the client saw %d", n, 10*len(body))
	}
	if n := q.metric(`quaymaster_http_requests_total{code="200",method="GET",proto="http1",route="a"}`); n != 10 {
		t.Errorf("requests %v, want 10", n)
	}
	series := func() int {
		_, b, _ := q.admin("GET", "/metrics", nil)
		n := 0
		for _, l := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(l, "quaymaster_") {
				n++
			}
		}
		return n
	}
	rounds := 10_000
	if testing.Short() {
		rounds = 500
	}
	before := series()
	first := hello("aaaaaaaaaaaaaaaa.test")
	mark := bytes.Index(first, []byte("aaaaaaaaaaaaaaaa"))
	for i := range rounds {
		h := bytes.Clone(first)
		copy(h[mark:], fmt.Sprintf("%016d", i))
		c, err := net.Dial("tcp", at(p))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(h)
		_, _ = c.Read(make([]byte, 7))
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	if after := series(); after > before+2 {
		t.Errorf("%d series, before %d random names there were %d", after, rounds, before)
	}
	q.until("each is counted", func() bool { return q.rejected("no_route") == float64(rounds) })
}

func TestC16C18_FirstBytesDecide(t *testing.T) {
	say := func(text string) string {
		return tcpTarget(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); _, _ = io.WriteString(c, text) })
	}
	p, only := freePort(t), freePort(t)
	q := start(t, "routes:\n"+
		fmt.Sprintf("  - {name: ssh, match: {ports: [%d], protocols: [ssh]}, action: {targets: [%q]}}\n", p, say("ssh"))+
		fmt.Sprintf("  - {name: tcp, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", p, say("tcp"))+
		route("web", p, "a.test", httpTarget(t, "web", nil))+route("only", only, "a.test", httpTarget(t, "web", nil)))
	for name, c := range map[string]struct{ first, want string }{
		"ssh":  {"SSH-2.0-test\r\n", "ssh"},
		"mqtt": {"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", "tcp"},
		"http": {"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", "web GET"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, p)
			_, _ = io.WriteString(conn, c.first)
			if got := untilEnd(t, conn, 10*time.Second); !strings.Contains(string(got), c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	for range 3 {
		conn := dial(t, only)
		_, _ = conn.Write([]byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"))
		untilEnd(t, conn, 10*time.Second)
	}
	q.until("it is counted", func() bool { return q.rejected("unknown_protocol") == 3 })
	if n := strings.Count(q.log.String(), "100c00044d515454"); n != 1 {
		t.Errorf("the first bytes were logged %d times, want once a minute", n)
	}
}

func TestC18_KindsOnOnePort(t *testing.T) {
	p := freePort(t)
	body := "routes:\n"
	for _, kind := range []string{"websocket", "socketio", "soap", "jsonrpc"} {
		body += fmt.Sprintf("  - {name: %s, match: {ports: [%d], protocols: [%s]}, action: {targets: [%q]}}\n", kind, p, kind, httpTarget(t, kind, nil))
	}
	body += fmt.Sprintf("  - {name: plain, match: {ports: [%d]}, action: {targets: [%q]}}\n", p, httpTarget(t, "plain", nil))
	q := start(t, body)
	for want, request := range map[string]string{
		"plain":     "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"websocket": "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		"socketio":  "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n",
		"soap":      "POST /s HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nSOAPAction: \"urn:x\"\r\nContent-Length: 0\r\n\r\n",
		"jsonrpc":   "POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
	} {
		c := dial(t, p)
		if _, got := say(t, c, bufio.NewReader(c), request); !strings.HasPrefix(got, want+" ") {
			t.Errorf("%s went to %q", want, got)
		}
	}
	for _, kind := range []string{"plain", "websocket", "socketio", "soap", "jsonrpc"} {
		q.until("the access log tells "+kind, func() bool { return strings.Contains(q.out.String(), `"route":"`+kind+`"`) })
	}
}

func TestC20_AdminAnswersToTheEnd(t *testing.T) {
	g := slowTarget(t)
	p, m := freePort(t), freePort(t)
	q := start(t, fmt.Sprintf("metrics: {enabled: true, address: %q}\nroutes:\n", at(m))+route("a", p, "a.test", g.addr))
	go func() { _, _, _ = fetch(p, "a.test", "/slow") }()
	q.until("a transfer is open", func() bool { return g.waiting.Load() == 1 })
	q.signal(syscall.SIGTERM)
	q.until("it drains", func() bool { s := q.statusOrNil(); return s != nil && s["state"] == "draining" })
	for range 5 {
		if status, body, err := fetch(m, "localhost", "/metrics"); status != 200 || !strings.Contains(body, "quaymaster_connections_active 1") {
			t.Fatalf("metrics while draining: %d %v", status, err)
		}
	}
	close(g.let)
	if code := q.wait(10 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	l, err := net.Listen("tcp", at(m))
	if err != nil {
		t.Fatalf("the metrics port is not free: %v", err)
	}
	_ = l.Close()
}

func TestC20_ManyConnectionsGiveEverythingBack(t *testing.T) {
	p := freePort(t)
	q := start(t, "routes:\n"+route("a", p, "a.test", httpTarget(t, "a", nil))+"max_connections: 9000\n")
	_, _, _ = fetch(p, "a.test", "/")
	before := q.fds()
	n := 8000
	if testing.Short() {
		n = 1000
	}
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	gate := make(chan struct{}, 200)
	for i := range conns {
		wg.Add(1)
		gate <- struct{}{}
		go func() {
			defer wg.Done()
			defer func() { <-gate }()
			c, err := net.Dial("tcp", at(p))
			if err != nil {
				t.Error(err)
				return
			}
			conns[i] = c
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
			if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if got := q.fds(); got < n {
		t.Errorf("%d descriptors with %d connections: were they open at once?", got, n)
	}
	if res, _, err := q.admin("GET", "/metrics", nil); err != nil || res.StatusCode != 200 {
		t.Errorf("/metrics: %v %v", res, err)
	}
	for _, c := range conns {
		if c != nil {
			_ = c.Close()
		}
	}
	q.until("descriptors are back", func() bool { return q.fds() <= before+5+128 }) // idle target connections may stay
	q.until("the count is back", func() bool { return q.metric("quaymaster_connections_active") == 0 })
}

func TestC21_ServerSpeaksFirst(t *testing.T) {
	greeter := tcpTarget(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "J\x00\x00\x008.0 greeting")
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err == nil {
			_, _ = c.Write(append([]byte("got "), b...))
		}
	})
	own, mixed := freePort(t), freePort(t)
	start(t, "timeouts: {sniff: 200ms}\nroutes:\n"+
		fmt.Sprintf("  - {name: own, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", own, greeter)+
		fmt.Sprintf("  - {name: mixed, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", mixed, greeter)+
		route("web", mixed, "a.test", httpTarget(t, "web", nil)))
	for name, port := range map[string]int{"own port": own, "mixed port": mixed} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, port)
			b := make([]byte, 16)
			if n, err := c.Read(b); err != nil || !strings.Contains(string(b[:n]), "8.0") {
				t.Fatalf("greeting %q %v", b[:n], err)
			}
			_, _ = io.WriteString(c, "login")
			if got := untilEnd(t, c, 5*time.Second); !strings.Contains(string(got), "got login") {
				t.Errorf("answer %q", got)
			}
		})
	}
	mustFetch(t, mixed, "a.test", "/", "web")
}

func TestC22_NearMissIsNamed(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 loopback")
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	p := freePort(t)
	q := start(t, "routes:\n"+route("a", p, "a.test", "127.0.0.1:"+port))
	if status, _, _ := fetch(p, "a.test", "/"); status != 502 {
		t.Fatalf("status %d, want 502", status)
	}
	near := "[::1]:" + port
	q.until("the access log names it", func() bool { return strings.Contains(q.out.String(), near) })
	if out, _ := q.cli("explain", fmt.Sprintf("http://a.test:%d/", p)); !strings.Contains(out, near) {
		t.Errorf("explain does not name %s:\n%s", near, out)
	}
	for range 3 {
		_, _, _ = fetch(p, "a.test", "/")
	}
	if out, _ := q.cli("status"); !strings.Contains(out, near) {
		t.Errorf("status does not name %s:\n%s", near, out)
	}
}

func TestC09_ClientHelloThatComesBackIsALoop(t *testing.T) {
	p := freePort(t)
	q := start(t, fmt.Sprintf("routes:\n  - {name: s, match: {ports: [%d], domains: [s.test]}, action: {targets: [%q], tls: {mode: passthrough}}}\n", p, at(p)))
	c := dial(t, p)
	_, _ = c.Write(hello("s.test"))
	b := untilEnd(t, c, 10*time.Second)
	if len(b) != 7 || b[0] != 21 || b[6] != 80 {
		t.Errorf("answer % x, want an alert 80", b)
	}
	q.until("it is counted", func() bool { return q.rejected("loop") == 1 })
}

func TestC06_OpenSSLClient(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("openssl is not installed")
	}
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "reached by %s", r.TLS.ServerName)
	}))
	defer web.Close()
	p := freePort(t)
	start(t, fmt.Sprintf("routes:\n  - {name: s, match: {ports: [%d], domains: [s.test]}, action: {targets: [%q], tls: {mode: passthrough}}}\n", p, web.Listener.Addr()))
	ask := func(name string) string {
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		cmd := exec.CommandContext(ctx, openssl, "s_client", "-connect", at(p), "-servername", name, "-ign_eof")
		cmd.Stdin = strings.NewReader("GET / HTTP/1.1\r\nHost: s.test\r\nConnection: close\r\n\r\n")
		out, _ := cmd.CombinedOutput() // what it printed tells
		return string(out)
	}
	if out := ask("s.test"); !strings.Contains(out, "reached by s.test") {
		t.Errorf("s_client through the route:\n%s", tail(out, 20))
	}
	if out := ask("other.test"); !strings.Contains(out, "unrecognized name") {
		t.Errorf("s_client for a name without a route:\n%s", tail(out, 20))
	}
}
