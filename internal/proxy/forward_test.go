package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

func TestForwardSaysTruthfullyWhoAsked(t *testing.T) {
	tg := newTarget(t, nil)
	h := build(t, forwardTo(tg.URL))
	a := h.ask("GET", "/", "X-Forwarded-For: 6.6.6.6", "x-forwarded-proto: https", "X-Forwarded-Host: evil", "X-Forwarded-Anything: 1",
		"Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6", "X-Request-Id: mine", "Via: 1.0 other", "X_Forwarded_For: 6.6.6.6",
		"X.Real.IP: 6.6.6.6", "Connection: x-forwarded-for, x-real-ip, x-hop, authorization", "Authorization: secret", "X-Hop: 1", "Keep-Alive: 5",
		"TE: gzip", "Upgrade: h2c", "Proxy-Connection: x", "X-Other: kept", "Content_Length: 3")
	if a.StatusCode != 200 {
		t.Fatalf("status %d", a.StatusCode)
	}
	r := tg.last(t)
	id := string(h.record().ID)
	for name, want := range map[string][]string{
		"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"www.example.com"}, "X-Real-Ip": {"127.0.0.1"},
		"X-Request-Id": {id}, "Via": {"1.0 other", "1.1 quaymaster"}, "X-Other": {"kept"}, "Authorization": {"secret"},
		"X-Forwarded-Anything": nil, "Forwarded": nil, "X_forwarded_for": nil, "X.real.ip": nil, "X-Hop": nil, "Keep-Alive": nil,
		"Te": nil, "Upgrade": nil, "Proxy-Connection": nil, "Content_length": nil, "Connection": nil,
	} {
		if got := r.Header[name]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if r.Host != "www.example.com" {
		t.Errorf("host %q", r.Host)
	}
}

func TestForwardBelievesTrustedProxies(t *testing.T) {
	tg := newTarget(t, nil)
	w := forwardTo(tg.URL)
	w.settings.TrustedProxies = append(loopback, netip.MustParsePrefix("10.0.0.0/8"))
	w.security.Deny = []netip.Prefix{netip.MustParsePrefix("203.0.113.66/32")}
	h := build(t, w)
	h.ask("GET", "/", "X-Forwarded-For: 6.6.6.6, 198.51.100.7", "X-Forwarded-For: 10.1.1.1", "X-Forwarded-Proto: https",
		"X-Forwarded-Host: front.example.com", "X-Request-Id: from-front", "X-Real-IP: 6.6.6.6", "X_Real_IP: 6.6.6.6")
	r := tg.last(t)
	for name, want := range map[string]string{
		"X-Forwarded-For": "6.6.6.6, 198.51.100.7, 10.1.1.1, 127.0.0.1", "X-Forwarded-Proto": "https",
		"X-Forwarded-Host": "front.example.com", "X-Request-Id": "from-front", "X-Real-Ip": "198.51.100.7", "X_real_ip": "",
	} {
		if got := strings.Join(r.Header[name], "|"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if a := h.ask("GET", "/", "X-Forwarded-For: 203.0.113.66"); a.StatusCode != 403 {
		t.Errorf("a denied address behind the proxy got %d", a.StatusCode)
	}
}

func TestForwardedClientStopsAtTheFirstStranger(t *testing.T) {
	peer := netip.MustParseAddr("127.0.0.1")
	for in, want := range map[string]string{
		"": "127.0.0.1", "198.51.100.7": "198.51.100.7", "6.6.6.6, 198.51.100.7": "198.51.100.7", "6.6.6.6,127.0.0.2": "6.6.6.6",
		"6.6.6.6, nonsense, 127.0.0.2": "127.0.0.2", "::ffff:198.51.100.7": "198.51.100.7", "[2001:db8::1]:443": "2001:db8::1",
		"198.51.100.7:1234": "198.51.100.7", "[2001:db8::1]": "2001:db8::1", "unknown": "127.0.0.1", "127.0.0.3,,127.0.0.2": "127.0.0.2",
	} {
		turn := sampleTurn()
		turn.ex.Req.Add([]byte("X-Forwarded-For"), []byte(in))
		if got := ForwardedClient(&turn.ex.Req, peer, loopback); got.String() != want {
			t.Errorf("%q: %v, want %s", in, got, want)
		}
	}
}

func TestForwardAppliesHeaderRules(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "target/1")
		w.Header().Set("X-Gone", "1")
	})
	w := forwardTo(tg.URL)
	w.action = plan.Forward{
		Upstream: "api",
		RequestHeaders: plan.HeaderRules{
			Set:    []plan.Header{{Name: "Host", Value: "inner.{route}"}, {Name: "X-A", Value: "{client_ip} {path}"}, {Name: "X-Forwarded-Proto", Value: "https"}},
			Add:    []plan.Header{{Name: "X-B", Value: "2"}},
			Remove: []string{"Cookie"},
		},
		ResponseHeaders: plan.HeaderRules{
			Set: []plan.Header{{Name: "Server", Value: "q"}}, Add: []plan.Header{{Name: "X-Id", Value: "{request_id}\r\nX-Evil: 1"}}, Remove: []string{"x-gone"},
		},
	}
	h := build(t, w)
	a := h.ask("GET", "/p?q", "Cookie: a=b", "X-A: spoofed", "x_a: spoofed", "X-B: 1")
	r := tg.last(t)
	if got := fmt.Sprint(r.Host, r.Header["X-A"], r.Header["X_a"], r.Header["X-B"], r.Header["Cookie"], r.Header["X-Forwarded-Proto"]); got != "inner.api[127.0.0.1 /p] [] [1 2] [] [https]" {
		t.Errorf("the target saw %s", got)
	}
	id := string(h.record().ID)
	if got := fmt.Sprint(a.Header["Server"], a.Header["X-Gone"], a.Header["X-Id"], a.Header["X-Evil"]); got != "[q] [] ["+id+"X-Evil: 1] []" {
		t.Errorf("the client saw %s", got)
	}
}

func TestForwardSetsTheTargetsHost(t *testing.T) {
	tg := newTarget(t, nil)
	w := forwardTo(tg.URL)
	w.action = plan.Forward{Upstream: "api", Rewrite: plan.Rewrite{SetHost: "target", StripPrefix: "/v1"}}
	h := build(t, w)
	h.ask("GET", "/v1/x%2fy?z")
	if r := tg.last(t); r.Host != strings.TrimPrefix(tg.URL, "http://") || r.RequestURI != "/x%2fy?z" {
		t.Errorf("%s %s", r.Host, r.RequestURI)
	}
}

func TestForwardSendsTheFirstByteAtOnce(t *testing.T) {
	next := make(chan struct{})
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		<-next
		_, _ = io.WriteString(w, "data: 1\n\n")
		w.(http.Flusher).Flush()
		<-next
	})
	h := build(t, forwardTo(tg.URL))
	c := h.dial()
	c.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	res := c.head("GET") // comes although there is no byte of the body yet
	next <- struct{}{}
	line, err := bufio.NewReader(res.Body).ReadString('\n')
	if err != nil || line != "data: 1\n" {
		t.Fatalf("%q %v", line, err)
	}
	close(next)
}

func TestForwardPassesEarlyAnswersOnAndStopsTheBody(t *testing.T) {
	addr := rawTarget(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
		_, _ = io.Copy(io.Discard, r) // until the body is stopped
	})
	h := build(t, forwardTo(addr))
	c := h.dial()
	c.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome")
	a := c.answer("POST")
	if a.StatusCode != 403 || a.body != "no" {
		t.Fatalf("%d %q", a.StatusCode, a.body)
	}
	if rec := h.record(); rec.Status != 403 || rec.In != 4 {
		t.Fatalf("record %+v", rec)
	}
	if _, err := c.r.ReadByte(); err == nil {
		t.Fatal("the connection was kept in the middle of a body")
	}
}

func TestForwardStopsABodyThatTheTargetDoesNotTake(t *testing.T) {
	over := make(chan struct{})
	addr := rawTarget(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
		<-over // and read nothing
	})
	defer close(over)
	h := build(t, forwardTo(addr))
	c := h.dial()
	var sent sync.WaitGroup
	sent.Go(func() {
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
		for {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	if a := c.answer("POST"); a.StatusCode != 403 {
		t.Fatalf("%d", a.StatusCode)
	}
	if rec := h.record(); rec.Status != 403 {
		t.Fatalf("record %+v", rec)
	}
	_ = c.Close()
	sent.Wait()
}

func TestForwardPassesAnAnswerOnWhoseTargetThenResets(t *testing.T) {
	addr := rawTarget(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 60000\r\nConnection: close\r\n\r\n"+strings.Repeat("x", 60_000))
		// Closing with unread bytes resets the connection while the body is still being sent.
	})
	h := build(t, forwardTo(addr))
	passed := 0
	for range 20 {
		c := h.dial()
		go func() {
			_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"+strings.Repeat("x", 1_000_000))
		}()
		switch res := c.head("POST"); res.StatusCode {
		case 413:
			if n, err := io.Copy(io.Discard, res.Body); n == 60_000 && err == nil {
				passed++
			}
		case 502: // the reset overtook the answer
		default:
			t.Fatalf("status %d", res.StatusCode)
		}
		h.record()
		_ = c.Close()
	}
	t.Logf("%d of 20 answers passed on", passed)
	if passed < 10 {
		t.Errorf("%d of 20 answers passed on", passed)
	}
}

func TestForwardAsksForTheBodyOnlyWhenTheTargetDoes(t *testing.T) {
	var wants atomic.Bool
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		if !wants.Load() {
			w.Header().Set("Connection", "close")
			w.WriteHeader(401)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body) // net/http sends the 100 here
		_, _ = fmt.Fprint(w, n)
	})
	h := build(t, forwardTo(tg.URL))
	c := h.dial()
	c.say("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n")
	if res := c.head("PUT"); res.StatusCode != 401 {
		t.Fatalf("status %d before the body was asked for", res.StatusCode)
	}
	if rec := h.record(); rec.In != 0 {
		t.Fatalf("record %+v", rec)
	}
	wants.Store(true)
	for _, n := range []int{5, 100_000, 1_000_000} {
		c = h.dial()
		c.say(fmt.Sprintf("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", n))
		if res := c.head("PUT"); res.StatusCode != 100 {
			t.Fatalf("status %d, want 100", res.StatusCode)
		}
		c.say(strings.Repeat("x", n))
		if a := c.answer("PUT"); a.StatusCode != 200 || a.body != fmt.Sprint(n) {
			t.Fatalf("%d %q", a.StatusCode, a.body)
		}
		h.record()
	}
}

func TestForwardPassesInterimAnswersOn(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(103)
		w.WriteHeader(103)
		w.WriteHeader(204)
	})
	h := build(t, forwardTo(tg.URL))
	c := h.dial()
	c.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	for _, want := range []int{103, 103, 204} {
		if res := c.head("GET"); res.StatusCode != want || res.Header.Get("Link") == "" {
			t.Fatalf("%d %v, want %d", res.StatusCode, res.Header, want)
		}
	}
	c.say("GET / HTTP/1.0\r\nHost: a\r\n\r\n")
	if res := c.head("GET"); res.StatusCode != 204 {
		t.Fatalf("an HTTP/1.0 client got %d", res.StatusCode)
	}
}

func TestForwardCarriesTrailersBothWays(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("X-Sum", "got "+r.Trailer.Get("X-Check"))
	})
	h := build(t, forwardTo(tg.URL))
	c := h.dial()
	c.say("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n5\r\nhello\r\n0\r\nX-Check: 42\r\n\r\n")
	a := c.answer("POST")
	if a.body != "hello" || a.Trailer.Get("X-Sum") != "got 42" {
		t.Fatalf("%q %v", a.body, a.Trailer)
	}
}

func TestForwardKeepsTheFramingOfBodilessAnswers(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		default:
			w.Header().Set("Content-Length", "1234")
			if r.Method != "HEAD" {
				_, _ = w.Write(make([]byte, 1234))
			}
		}
	})
	h := build(t, forwardTo(tg.URL))
	c := h.dial()
	c.say("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET /204 HTTP/1.1\r\nHost: a\r\n\r\nGET /304 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if a := c.answer("HEAD"); a.StatusCode != 200 || a.ContentLength != 1234 {
		t.Errorf("HEAD: %d, length %d", a.StatusCode, a.ContentLength)
	}
	if a := c.answer("GET"); a.StatusCode != 204 || a.Header["Content-Length"] != nil || a.TransferEncoding != nil {
		t.Errorf("204: %d %v", a.StatusCode, a.Header)
	}
	if a := c.answer("GET"); a.StatusCode != 304 || a.Header.Get("Etag") != `"x"` || a.TransferEncoding != nil {
		t.Errorf("304: %d %v", a.StatusCode, a.Header)
	}
	if a := c.answer("GET"); len(a.body) != 1234 {
		t.Errorf("the connection is out of step: %d bytes", len(a.body))
	}
}

func TestForwardBoundsTheBody(t *testing.T) {
	var whole atomic.Int32
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			whole.Add(1)
		}
	})
	w := forwardTo(tg.URL)
	w.security.MaxBody = 10
	h := build(t, w)
	for name, c := range map[string]struct {
		request string
		want    int
	}{
		"announced":            {"Content-Length: 11\r\n\r\n12345678901", 413},
		"announced and fits":   {"Content-Length: 10\r\n\r\n1234567890", 200},
		"chunked":              {"Transfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n3\r\nabc\r\n0\r\n\r\n", 413},
		"chunked and fits":     {"Transfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n2\r\nab\r\n0\r\n\r\n", 200},
		"chunked and endless":  {"Transfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n8\r\n12345678\r\n", 413},
		"chunked in one chunk": {"Transfer-Encoding: chunked\r\n\r\nff\r\n" + strings.Repeat("x", 255) + "\r\n0\r\n\r\n", 413},
	} {
		before := whole.Load()
		con := h.dial()
		con.say("POST / HTTP/1.1\r\nHost: a\r\n" + c.request)
		a := con.answer("POST")
		if a.StatusCode != c.want {
			t.Errorf("%s: %d", name, a.StatusCode)
		}
		if rec := h.record(); rec.Status != c.want || (rec.Reason == "body_too_large") != (c.want == 413) {
			t.Errorf("%s: record %+v", name, rec)
		}
		if c.want == 413 && whole.Load() != before {
			t.Errorf("%s: the target took it for a whole body", name)
		}
	}
}

func TestForwardGivesUpOnSilentTargets(t *testing.T) {
	addr := rawTarget(t, func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	w := forwardTo(addr)
	w.timeouts.ResponseHeader = 50 * time.Millisecond
	h := build(t, w)
	a := h.ask("GET", "/")
	if a.StatusCode != 504 || strings.Contains(a.body, addr) {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	if rec := h.record(); rec.Status != 504 || rec.Reason != "timeout" || rec.Detail == "" {
		t.Fatalf("record %+v", rec)
	}
}

func TestForwardCountsResponseHeaderFromTheEndOfTheBody(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	w := forwardTo(tg.URL)
	w.timeouts.ResponseHeader = 300 * time.Millisecond
	h := build(t, w)
	c := h.dial()
	c.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
	for range 6 { // an upload that lasts twice as long as the answer may be waited for
		time.Sleep(100 * time.Millisecond)
		c.say("x")
	}
	if a := c.answer("POST"); a.StatusCode != 200 || a.body != "xxxxxx" {
		t.Fatalf("%d %q", a.StatusCode, a.body)
	}
}

func TestForwardCutsStalledUploads(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	w := forwardTo(tg.URL)
	w.timeouts.BodyStall = 100 * time.Millisecond
	h := build(t, w)
	c := h.dial()
	c.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nx")
	if a := c.answer("POST"); a.StatusCode != 408 {
		t.Fatalf("%d %q", a.StatusCode, a.body)
	}
	if rec := h.record(); rec.Reason != "body_stall" {
		t.Fatalf("record %+v", rec)
	}
	begun := time.Now()
	if _, err := c.r.ReadByte(); err == nil || time.Since(begun) > 5*time.Second {
		t.Fatal("the connection of a client that stalls is kept")
	}
}

// A target that goes while the client is still sending is the target's fault: nobody else was slow.
func TestForwardBlamesTheTargetThatLeavesDuringAnUpload(t *testing.T) {
	addr := rawTarget(t, func(_ net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err == nil {
			_, _ = io.ReadFull(req.Body, make([]byte, 1))
		}
	})
	h := build(t, forwardTo("http://"+addr))
	c := h.dial()
	c.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nx")
	if a := c.answer("POST"); a.StatusCode != 502 {
		t.Fatalf("%d %q", a.StatusCode, a.body)
	}
	if rec := h.record(); rec.Reason != "closed" && rec.Reason != "reset" {
		t.Fatalf("record %+v", rec)
	}
}

func TestForwardCutsSilentStreams(t *testing.T) {
	addr := rawTarget(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
		_, _ = io.Copy(io.Discard, r)
	})
	w := forwardTo(addr)
	w.timeouts.Idle = 100 * time.Millisecond
	h := build(t, w)
	c := h.dial()
	c.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	res := c.head("GET")
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Fatal("a broken answer looks whole")
	}
	if rec := h.record(); rec.Reason != "idle" || rec.Out != 3 {
		t.Fatalf("record %+v", rec)
	}
}

func TestForwardNeverMakesABrokenAnswerLookWhole(t *testing.T) {
	for _, head := range []string{"Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n5\r\nab", "Content-Length: 1000000\r\n\r\n" + strings.Repeat("x", 100_000)} {
		addr := rawTarget(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head)
			}
		})
		h := build(t, forwardTo(addr))
		c := h.dial()
		c.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		res := c.head("GET")
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("%.20q looks whole", head)
		}
		if rec := h.record(); rec.Reason != "target_reset" {
			t.Errorf("%.20q: record %+v", head, rec)
		}
	}
}

func TestForwardAnswersForTargetsThatFail(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		addr := closedPort(t)
		h := build(t, forwardTo(addr))
		a := h.ask("POST", "/", "Content-Length: 5", "", "hello")
		if a.StatusCode != 502 || strings.Contains(a.body, addr) || strings.Contains(a.body, "refused") {
			t.Fatalf("%d %s", a.StatusCode, a.body)
		}
		if rec := h.record(); rec.Reason != "refused" || rec.Target != addr || !strings.Contains(rec.Detail, addr) {
			t.Fatalf("record %+v", rec)
		}
	})
	for name, reply := range map[string]string{
		"closes": "", "garbage": "SSH-2.0-x\r\n\r\n", "two lengths": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"101 unasked": "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			addr := rawTarget(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := http.ReadRequest(r); err == nil {
					_, _ = io.WriteString(c, reply)
				}
			})
			h := build(t, forwardTo(addr))
			if a := h.ask("GET", "/"); a.StatusCode != 502 {
				t.Fatalf("%d %s", a.StatusCode, a.body)
			}
			if rec := h.record(); rec.Reason == "" || rec.Detail == "" {
				t.Fatalf("record %+v", rec)
			}
		})
	}
}

// onceThenClose answers one request on each connection, keeps it, and closes it when the next one comes.
func onceThenClose(requests *atomic.Int32) func(c net.Conn, r *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		for i := range 2 {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			requests.Add(1)
			if i == 0 {
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		}
	}
}

func TestForwardTriesAgainOnStaleConnectionsOnlyWhereThatIsSafe(t *testing.T) {
	for method, c := range map[string]struct {
		body   string
		status int
		seen   int32
	}{
		"GET": {"", 200, 3}, "HEAD": {"", 200, 3}, "POST": {"Content-Length: 2\r\n\r\nhi", 502, 2}, "DELETE": {"", 502, 2},
		"OPTIONS": {"Content-Length: 2\r\n\r\nhi", 502, 2},
	} {
		for _, secure := range []bool{false, true} {
			var seen atomic.Int32
			w := forwardTo(rawTarget(t, onceThenClose(&seen)))
			if secure {
				w = trusting(t, rawTLSTarget(t, onceThenClose(&seen)))
			}
			h := build(t, w)
			if a := h.ask("GET", "/"); a.StatusCode != 200 {
				t.Fatalf("first: %d", a.StatusCode)
			}
			h.record()
			con := h.dial()
			con.say(method + " / HTTP/1.1\r\nHost: a\r\n")
			if c.body == "" {
				c.body = "\r\n"
			}
			con.say(c.body)
			a := con.answer(method)
			rec := h.record()
			if a.StatusCode != c.status || seen.Load() != c.seen {
				t.Errorf("%s, TLS %v: %d, the target saw %d requests, record %+v", method, secure, a.StatusCode, seen.Load(), rec)
			}
		}
	}
}

func TestForwardRetriesAsConfigured(t *testing.T) {
	good := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(append([]byte("good"), body...))
	})
	var busy atomic.Int32
	bad := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		busy.Add(1)
		w.WriteHeader(503)
		_, _ = io.WriteString(w, "busy")
	})
	t.Run("connect", func(t *testing.T) {
		w := forwardTo(closedPort(t), good.URL)
		w.action = plan.Forward{Upstream: "api", Retries: plan.Retries{Attempts: 2, Connect: true, Budget: 1}}
		h := build(t, w)
		retried := 0
		for range 4 {
			con := h.dial()
			con.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
			if a := con.answer("POST"); a.body != "goodhi" {
				t.Fatalf("%d %q", a.StatusCode, a.body)
			}
			retried += h.record().Retries
		}
		if retried == 0 {
			t.Fatal("the closed port was never tried")
		}
	})
	t.Run("status", func(t *testing.T) {
		w := forwardTo(bad.URL, good.URL)
		w.action = plan.Forward{Upstream: "api", Retries: plan.Retries{Attempts: 2, Statuses: []int{502, 503}, Budget: 1}}
		h := build(t, w)
		for range 4 {
			if a := h.ask("GET", "/"); a.body != "good" {
				t.Fatalf("%d %q", a.StatusCode, a.body)
			}
		}
		busy.Store(0)
		got := map[string]int{}
		for range 4 {
			got[h.ask("POST", "/", "Content-Length: 0").body]++
		}
		if got["busy"] != 2 || busy.Load() != 2 {
			t.Fatalf("POST was sent again: %v, %d", got, busy.Load())
		}
	})
	t.Run("budget", func(t *testing.T) {
		w := forwardTo(closedPort(t))
		w.action = plan.Forward{Upstream: "api", Retries: plan.Retries{Attempts: 3, Connect: true}}
		h := build(t, w)
		retried := 0
		for range 20 {
			if a := h.ask("GET", "/"); a.StatusCode != 502 {
				t.Fatalf("%d", a.StatusCode)
			}
			retried += h.record().Retries
		}
		if retried != budgetMost/1000 {
			t.Fatalf("%d retries without a budget beyond the store", retried)
		}
	})
}

func TestForwardLetsGoOfTheTargetWhenTheClientLeaves(t *testing.T) {
	left := make(chan struct{})
	came := make(chan struct{})
	addr := rawTarget(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		close(came)
		_, _ = r.ReadByte() // returns when the proxy closes
		close(left)
	})
	h := build(t, forwardTo(addr))
	c := h.dial()
	c.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-came
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	select {
	case <-left:
	case <-time.After(5 * time.Second):
		t.Fatal("the target still waits")
	}
	if rec := h.record(); rec.Status != 499 || rec.Reason != "client_gone" {
		t.Fatalf("record %+v", rec)
	}
}

func TestForwardAnswersAClientThatOnlyEndedItsOwnDirection(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(watchAfter + 200*time.Millisecond) // until the watcher is there
		_, _ = w.Write(bytes.Repeat([]byte("x"), 100_000))
	})
	h := build(t, forwardTo(tg.URL))
	c := h.dial()
	c.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	_ = c.Conn.(*net.TCPConn).CloseWrite()
	if a := c.answer("GET"); len(a.body) != 100_000 {
		t.Fatalf("%d %d", a.StatusCode, len(a.body))
	}
}

func TestForwardKeepsClientsAtTheirTarget(t *testing.T) {
	a := newTarget(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "a") })
	b := newTarget(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "b") })
	w := forwardTo(a.URL, b.URL)
	w.balance.StickyCookie = "qm"
	h := build(t, w)
	first := h.ask("GET", "/")
	cookies := first.Cookies()
	if len(cookies) != 1 || cookies[0].Name != "qm" || !cookies[0].HttpOnly || strings.Contains(cookies[0].Value, "127") {
		t.Fatalf("cookies %v", cookies)
	}
	for range 4 {
		again := h.ask("GET", "/", "Cookie: x=y; qm="+cookies[0].Value+"; z=1")
		if again.body != first.body || len(again.Cookies()) != 0 {
			t.Fatalf("%q after %q, cookies %v", again.body, first.body, again.Cookies())
		}
	}
	if first.Header.Get("Set-Cookie") != "qm="+cookies[0].Value+"; Path=/; HttpOnly; SameSite=Lax" {
		t.Fatalf("%v", first.Header)
	}
	if lost := h.ask("GET", "/", "Cookie: qm=unknown"); len(lost.Cookies()) != 1 {
		t.Fatal("a cookie of no target was not replaced")
	}
}

func TestForwardMakesTheCookieSecureUnderTLS(t *testing.T) {
	tg := newTarget(t, nil)
	w := forwardTo(tg.URL)
	w.balance.StickyCookie = "qm"
	h := build(t, w)
	h.before = func(ex *wire.Exchange) { ex.Req.Scheme = []byte("https") }
	if a := h.ask("GET", "/"); len(a.Cookies()) != 1 || !a.Cookies()[0].Secure {
		t.Fatalf("%v", a.Header)
	}
	if got := tg.last(t).Header.Get("X-Forwarded-Proto"); got != "https" {
		t.Fatalf("%q", got)
	}
}

func TestForwardEndsLoops(t *testing.T) {
	tg := newTarget(t, nil)
	h := build(t, forwardTo(tg.URL))
	if a := h.ask("GET", "/", "Via: "+strings.Repeat("1.1 quaymaster, ", 10)+"1.1 x"); a.StatusCode != 200 {
		t.Fatalf("ten passes: %d", a.StatusCode)
	}
	h.record()
	if a := h.ask("GET", "/", "Via: "+strings.Repeat("1.1 quaymaster, ", 10), "Via: 1.1 quaymaster"); a.StatusCode != 508 {
		t.Fatalf("eleven passes: %d", a.StatusCode)
	}
	if rec := h.record(); rec.Reason != "loop" {
		t.Fatalf("record %+v", rec)
	}
}

func TestForwardRefusesConnect(t *testing.T) {
	tg := newTarget(t, nil)
	h := build(t, forwardTo(tg.URL))
	c := h.dial()
	c.say("CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n")
	if res := c.head("GET"); res.StatusCode != 501 && res.StatusCode != 400 || len(tg.requests()) != 0 {
		t.Fatalf("%d", res.StatusCode)
	}
}

func TestGateRefusesInHTTP(t *testing.T) {
	tg := newTarget(t, nil)
	w := forwardTo(tg.URL)
	w.security.Rate = &plan.RateLimit{Requests: 1, Per: time.Minute, Burst: 1, Key: "header:X-Key"}
	h := build(t, w)
	if a := h.ask("GET", "/", "X-Key: one"); a.StatusCode != 200 {
		t.Fatalf("%d", a.StatusCode)
	}
	a := h.ask("GET", "/", "X-Key: one")
	if a.StatusCode != 429 || a.Header.Get("Retry-After") == "" {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	if a := h.ask("GET", "/", "X-Key: two"); a.StatusCode != 200 {
		t.Fatalf("another key: %d", a.StatusCode)
	}
}

func TestByNameForwardsOnlyWhereItMay(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) })
	addr := netip.MustParseAddrPort(strings.TrimPrefix(tg.URL, "http://"))
	ask := func(h *house, host string) answer {
		c := h.dial()
		c.say("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		return c.answer("GET")
	}
	w := &wish{action: plan.ByName{}}
	w.settings.ByName = plan.ByNameSettings{AllowPrivate: true, Ports: []uint16{80, addr.Port()}, Allowlist: []string{"127.0.0.1"}}
	h := build(t, w)
	for range 2 {
		if a := ask(h, addr.String()); a.StatusCode != 200 || a.body != addr.String() {
			t.Fatalf("%d %q", a.StatusCode, a.body)
		}
		h.record()
	}
	for host, want := range map[string]string{"other.example.com": "not_allowed", "127.0.0.1:1": "not_allowed", "127.0.0.1:99999": "not_allowed"} {
		if a := ask(h, host); a.StatusCode != 403 && a.StatusCode != 400 {
			t.Errorf("%s: %d", host, a.StatusCode)
		} else if a.StatusCode == 400 {
			continue
		}
		if rec := h.record(); rec.Reason != want {
			t.Errorf("%s: record %+v", host, rec)
		}
	}
	w.settings.ByName = plan.ByNameSettings{Ports: []uint16{addr.Port()}}
	h = build(t, w)
	if a := ask(h, addr.String()); a.StatusCode != 403 {
		t.Fatalf("a private address: %d", a.StatusCode)
	}
	if rec := h.record(); rec.Reason != "private_address" {
		t.Fatalf("record %+v", rec)
	}
}

func TestBudgetNeverGoesBelowNothing(t *testing.T) {
	var b budget
	if b.spend() {
		t.Fatal("spent what was not there")
	}
	for range 5 {
		b.earn(0.2)
	}
	if !b.spend() || b.spend() {
		t.Fatal("five requests at 20 % are one retry")
	}
}
