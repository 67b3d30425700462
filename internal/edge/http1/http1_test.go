package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a TCP connection over loopback, both ends.
func pair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func settings() Settings {
	return Settings{RequestHeader: 30 * time.Second, KeepAlive: 75 * time.Second, BodyStall: time.Minute}
}

// A session is a client of a served connection.
type session struct {
	t       testing.TB
	c, s    *net.TCPConn
	r       *bufio.Reader
	info    wire.ConnInfo
	refused atomic.Pointer[wire.ParseError]
	over    chan struct{} // closed when Serve has returned
	err     error         // what it returned
}

// serve starts to serve one connection. What o leaves out is filled in. All of it is over when the test ends.
func serve(t testing.TB, o Options) *session {
	t.Helper()
	k := &session{t: t, over: make(chan struct{})}
	k.c, k.s = pair(t)
	k.r = bufio.NewReader(k.c)
	if o.Settings == nil {
		o.Settings = settings
	}
	o.Refuse = func(_ *wire.ConnInfo, e *wire.ParseError, _ string) { k.refused.Store(e) }
	go func() {
		defer close(k.over)
		k.err = Serve(k.s, &k.info, nil, &o)
		_ = k.s.Close()
	}()
	t.Cleanup(func() {
		_ = k.c.Close()
		<-k.over
	})
	if err := k.c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *session) say(text string) {
	k.t.Helper()
	if _, err := io.WriteString(k.c, text); err != nil {
		k.t.Error(err)
	}
}

// hear reads one answer.
func (k *session) hear(method string) (*http.Response, string) {
	k.t.Helper()
	r, err := http.ReadResponse(k.r, &http.Request{Method: method})
	if err != nil {
		k.t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		k.t.Fatal(err)
	}
	return r, string(body)
}

// want reads an answer and compares status and body.
func (k *session) want(method string, status int, body string) *http.Response {
	k.t.Helper()
	r, got := k.hear(method)
	if r.StatusCode != status || got != body {
		k.t.Errorf("answer %d %q, want %d %q", r.StatusCode, got, status, body)
	}
	return r
}

// ends expects the end of the connection, and nothing before it.
func (k *session) ends() {
	k.t.Helper()
	if rest, err := io.ReadAll(k.r); len(rest) > 0 || err != nil {
		k.t.Errorf("%q %v where the connection should end", rest, err)
	}
	_ = k.c.Close()
	<-k.over
}

// echo answers 200 with the method, the target and the body.
func echo(ex *wire.Exchange) {
	body, err := io.ReadAll(struct{ io.Reader }{ex.Body})
	if err != nil {
		say(ex, 400, err.Error())
		return
	}
	say(ex, 200, string(ex.Req.Method)+" "+string(ex.Req.Target)+" "+string(body))
}

func say(ex *wire.Exchange, status int, body string) {
	s, err := ex.Out.Begin(&wire.Head{Status: status}, int64(len(body)))
	if err != nil {
		return
	}
	if string(ex.Req.Method) != "HEAD" && status != 204 && status != 304 {
		_, _ = io.WriteString(s, body)
	}
	_ = s.Close(nil)
}

const get = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n"

func TestRequestsFollowEachOther(t *testing.T) {
	k := serve(t, Options{Handle: echo})
	for range 3 {
		k.say(get)
		k.want("GET", 200, "GET /a ")
	}
	k.say("POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
	k.want("POST", 200, "POST /b hello")
	k.say("POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\r\n")
	k.want("POST", 200, "POST /c hello")
	k.say(get)
	k.want("GET", 200, "GET /a ")
	_ = k.c.Close()
	if <-k.over; k.err != nil {
		t.Error(k.err)
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	k := serve(t, Options{Handle: echo})
	k.say(get + "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloPOST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get + "GET /d HTT")
	k.want("GET", 200, "GET /a ")
	k.want("POST", 200, "POST /b hello")
	k.want("POST", 200, "POST /c ")
	k.want("GET", 200, "GET /a ")
	k.say("P/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if r := k.want("GET", 200, "GET /d "); !r.Close {
		t.Error("the last answer does not say close")
	}
	k.ends()
}

func TestRequestsComeInAnySegments(t *testing.T) {
	k := serve(t, Options{Handle: echo})
	for _, x := range []byte("POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\n\r\n") {
		k.say(string(x))
	}
	k.want("POST", 200, "POST /b hello!")
}

func TestBytesThatWereReadBeforeAreServedFirst(t *testing.T) {
	c, s := pair(t)
	defer c.Close()
	first := wire.GetBuffer()
	first.Append([]byte(get[:10]))
	over := make(chan error)
	go func() {
		over <- Serve(s, new(wire.ConnInfo), first, &Options{Handle: echo, Settings: settings})
		_ = s.Close()
	}()
	if _, err := io.WriteString(c, get[10:]); err != nil {
		t.Fatal(err)
	}
	if r, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || r.StatusCode != 200 {
		t.Error(r, err)
	}
	_ = c.Close()
	<-over
}

// TestH01_UnreadableRequestsAreRefusedAndReachNobody sends one request of every kind that a head or a body shows.
func TestH01_UnreadableRequestsAreRefusedAndReachNobody(t *testing.T) {
	many := func(n int) string { return "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A: b\r\n", n) + "\r\n" }
	for _, c := range []struct {
		name, in string
		status   int
	}{
		{"both framings", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400},
		{"chunked in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
		{"folded line", "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400},
		{"space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400},
		{"bare LF", "GET / HTTP/1.1\nHost: a\n\n", 400},
		{"bare CR", "GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n", 400},
		{"NUL", "GET / HTTP/1.1\r\nHost: a\r\nA: \x00\r\n\r\n", 400},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		{"other host in the target", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400},
		{"100,000 fields", many(100_000), 431},
		{"101 fields", many(100), 431},
		{"a head of 70 KiB", "GET / HTTP/1.1\r\nHost: a\r\nA: " + strings.Repeat("b", 70<<10) + "\r\n\r\n", 431},
		{"a request line of 70 KiB", "GET /" + strings.Repeat("b", 70<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", 414},
		{"HTTP/0.9", "GET /\r\n", 505},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
		{"lower-case method", "get / HTTP/1.1\r\nHost: a\r\n\r\n", 501},
		{"unknown expectation", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: x\r\n\r\nhello", 417},
	} {
		t.Run("H01 "+c.name, func(t *testing.T) {
			k := serve(t, Options{Handle: func(*wire.Exchange) { t.Error("was handed over") }})
			sent := make(chan struct{})
			go func() { // a refusal comes before everything has been sent
				defer close(sent)
				_, _ = io.WriteString(k.c, c.in)
			}()
			r, body := k.hear("GET")
			if r.StatusCode != c.status || !r.Close || r.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("answer %d %q %v", r.StatusCode, body, r.Header)
			}
			if want := fmt.Sprintf(`{"type":"about:blank","title":%q,"status":%d,`, http.StatusText(c.status), c.status); c.status != 414 && !strings.HasPrefix(body, want) {
				t.Errorf("body %s, want %s...", body, want)
			}
			_ = k.c.Close()
			<-k.over
			<-sent
			var p *wire.ParseError
			if told := k.refused.Load(); !errors.As(k.err, &p) || told != p || p.Status != c.status {
				t.Errorf("told of %v, ended with %v", told, k.err)
			}
		})
	}
	t.Run("H01 garbage behind a request", func(t *testing.T) {
		k := serve(t, Options{Handle: echo})
		k.say("POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello, world\r\n\r\n")
		k.want("POST", 200, "POST /b hello")
		if r, _ := k.hear("GET"); r.StatusCode != 400 {
			t.Error(r.StatusCode)
		}
		k.ends()
	})
	for name, body := range map[string]string{
		"chunk extensions of 1 MB": "5;" + strings.Repeat("a", 1<<20) + "\r\nhello\r\n0\r\n\r\n", "chunk size overflow": "fffffffffffffffff\r\nhello",
		"chunk that does not end": "5\r\nhello, world\r\n0\r\n\r\n",
	} {
		t.Run("H01 "+name, func(t *testing.T) {
			k := serve(t, Options{Handle: echo})
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				_, _ = io.WriteString(k.c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"+body+get)
			}()
			if r, _ := k.hear("POST"); r.StatusCode != 400 || !r.Close {
				t.Error(r)
			}
			_ = k.c.Close()
			<-k.over
			<-sent
		})
	}
}

func TestH11_HeadThatTricklesIsCut(t *testing.T) {
	k := serve(t, Options{Handle: echo, Settings: func() Settings { return Settings{RequestHeader: 150 * time.Millisecond} }})
	began := time.Now()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for _, x := range []byte("GET / HTTP/1.1\r\nA: " + strings.Repeat("x", 1000)) {
			_, _ = k.c.Write([]byte{x})
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	r, _ := k.hear("GET")
	if d := time.Since(began); r.StatusCode != 408 || !r.Close || d < 100*time.Millisecond || d > 2*time.Second {
		t.Errorf("%d after %v", r.StatusCode, d)
	}
	close(stop)
	<-done
	_ = k.c.Close()
	<-k.over
	if p := k.refused.Load(); p == nil || p.Status != 408 {
		t.Error("nobody was told:", p)
	}
}

func TestH11_BodyThatStandsStillIsCutAndOneThatMovesIsNot(t *testing.T) {
	k := serve(t, Options{Handle: echo, Settings: func() Settings { return Settings{BodyStall: time.Second} }})
	k.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for range 6 {
		<-tick.C
		k.say("x")
	}
	k.want("POST", 200, "POST / xxxxxx")
	k.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nxxx")
	if r, body := k.hear("POST"); r.StatusCode != 400 || !strings.Contains(body, "timeout") {
		t.Error(r.StatusCode, body)
	}
	_ = k.c.CloseWrite()
	k.ends()
}

func TestHTTP10(t *testing.T) {
	stream := func(ex *wire.Exchange) {
		if err := ex.Out.Inform(&wire.Head{Status: 103}); err != nil {
			t.Error(err)
		}
		s, err := ex.Out.Begin(&wire.Head{Status: 200}, -1)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(s, "hello")
		_ = s.Close([]wire.Field{{Name: []byte("A"), Value: []byte("b")}})
	}
	t.Run("a body of unknown length ends with the connection", func(t *testing.T) {
		k := serve(t, Options{Handle: stream})
		k.say("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
		all, err := io.ReadAll(k.r)
		if string(all) != "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello" || err != nil {
			t.Errorf("%q %v", all, err)
		}
	})
	t.Run("keep-alive only if asked for", func(t *testing.T) {
		k := serve(t, Options{Handle: echo})
		k.say("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
		if r := k.want("GET", 200, "GET /a "); r.Header.Get("Connection") != "keep-alive" {
			t.Error(r.Header)
		}
		k.say("GET /b HTTP/1.0\r\n\r\n")
		if r := k.want("GET", 200, "GET /b "); !r.Close {
			t.Error(r.Header)
		}
		k.ends()
	})
}

func TestH02_AnswersWithoutABody(t *testing.T) {
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		switch string(ex.Req.Target) {
		case "/204":
			say(ex, 204, "")
		case "/304":
			say(ex, 304, "hello")
		default:
			s, err := ex.Out.Begin(&wire.Head{Status: 200}, 5)
			if err != nil {
				return
			}
			if _, err := s.Write([]byte("hello")); (err == nil) != (string(ex.Req.Method) == "GET") {
				t.Errorf("%s: %v", ex.Req.Method, err)
			}
			_ = s.Close(nil)
		}
	}})
	for _, c := range []struct{ line, method, head string }{
		{"GET /204", "GET", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"GET /304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"},
		{"HEAD /", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"},
		{"GET /", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"},
	} {
		k.say(c.line + " HTTP/1.1\r\nHost: a\r\n\r\n")
		p := make([]byte, len(c.head))
		if _, err := io.ReadFull(k.r, p); err != nil || string(p) != c.head {
			t.Errorf("%s: %q %v, want %q", c.line, p, err, c.head)
		}
	}
}

func TestH02_ChunkedAnswersAndTrailers(t *testing.T) {
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		s, err := ex.Out.Begin(&wire.Head{Status: 200}, -1)
		if err != nil {
			return
		}
		if string(ex.Req.Target) != "/empty" {
			_, _ = io.WriteString(s, "hello")
			_ = s.Flush()
			_, _ = io.WriteString(s, strings.Repeat("x", 100_000))
		}
		_ = s.Close([]wire.Field{{Name: []byte("T"), Value: []byte("v")}})
	}})
	for _, c := range []struct{ target, body string }{{"/", "hello" + strings.Repeat("x", 100_000)}, {"/empty", ""}} {
		k.say("GET " + c.target + " HTTP/1.1\r\nHost: a\r\n\r\n")
		if r := k.want("GET", 200, c.body); r.Trailer.Get("T") != "v" || r.Close {
			t.Error(r.Trailer, r.Close)
		}
	}
}

func TestH02_ClientIsAskedForItsBodyWhenSomebodyReadsIt(t *testing.T) {
	k := serve(t, Options{Handle: echo})
	for range 2 {
		k.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		if r, err := http.ReadResponse(k.r, nil); err != nil || r.StatusCode != 100 {
			t.Fatal(r, err)
		}
		k.say("hello")
		if r := k.want("POST", 200, "POST / hello"); r.Close {
			t.Error("closes for no reason")
		}
	}
	k.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello") // does not wait
	k.want("POST", 200, "POST / hello")
}

func TestH02_ClientIsNotAskedForABodyThatNobodyReads(t *testing.T) {
	k := serve(t, Options{Handle: func(ex *wire.Exchange) { say(ex, 403, "no") }})
	k.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	if r := k.want("POST", 403, "no"); !r.Close {
		t.Error("the connection is said to stay, though a body may follow or not")
	}
	k.ends()
}

func TestH02_InterimAnswers(t *testing.T) {
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		for _, status := range []int{103, 100} { // 100 is for who waits for it
			if err := ex.Out.Inform(&wire.Head{Status: status, Fields: []wire.Field{{Name: []byte("Link"), Value: []byte("</a>")}}}); err != nil {
				t.Error(err)
			}
		}
		if ex.Out.Inform(&wire.Head{Status: 101}) == nil || ex.Out.Inform(&wire.Head{Status: 200}) == nil {
			t.Error("took a final status for an interim one")
		}
		if _, err := ex.Out.Begin(&wire.Head{Status: 103}, 0); err == nil {
			t.Error("took an interim status for a final one")
		}
		say(ex, 200, "hello")
		if ex.Out.Inform(&wire.Head{Status: 103}) == nil {
			t.Error("interim answer behind the final one")
		}
		if _, err := ex.Out.Begin(&wire.Head{Status: 200}, 0); err == nil {
			t.Error("two answers")
		}
	}})
	k.say(get)
	if r, err := http.ReadResponse(k.r, nil); err != nil || r.StatusCode != 103 || r.Header.Get("Link") != "</a>" {
		t.Fatal(r, err)
	}
	k.want("GET", 200, "hello")
}

func TestH02_EarlyAnswers(t *testing.T) {
	early := func(ex *wire.Exchange) { say(ex, 413, "too much") }
	t.Run("H02 a small body is taken off and the connection stays", func(t *testing.T) {
		k := serve(t, Options{Handle: early})
		for range 2 {
			k.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
			if r := k.want("POST", 413, "too much"); r.Close {
				t.Error("closes")
			}
			k.say(strings.Repeat("x", 100_000))
		}
	})
	for name, request := range map[string]string{
		"large":   "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + strings.Repeat("x", 200_000),
		"chunked": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("4\r\nabcd\r\n", 10_000),
	} {
		t.Run("H02 the answer to a "+name+" body arrives and the connection ends", func(t *testing.T) {
			k := serve(t, Options{Handle: early})
			k.say(request)
			if r := k.want("POST", 413, "too much"); !r.Close {
				t.Error("does not say close")
			}
			k.ends()
		})
	}
}

func TestHandlerWithoutAnAnswerIs500(t *testing.T) {
	k := serve(t, Options{Handle: func(*wire.Exchange) {}})
	k.say(get)
	if r, _ := k.hear("GET"); r.StatusCode != 500 || !r.Close {
		t.Error(r)
	}
	k.ends()
}

func TestAnswerThatBreaksOffIsNoCompleteOne(t *testing.T) {
	for name, breakOff := range map[string]func(wire.Sink){
		"reset": func(s wire.Sink) { s.Reset(errors.New("target left")) }, "unended": func(wire.Sink) {},
	} {
		t.Run(name, func(t *testing.T) {
			k := serve(t, Options{Handle: func(ex *wire.Exchange) {
				if s, err := ex.Out.Begin(&wire.Head{Status: 200}, -1); err == nil {
					_, _ = io.WriteString(s, "hello")
					_ = s.Flush()
					breakOff(s)
				}
			}})
			k.say(get)
			_, err := io.ReadAll(k.r)
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client saw %v", err)
			}
			if <-k.over; k.err == nil {
				t.Error("Serve calls that a clean end")
			}
		})
	}
}

func TestH04_SwitchedConnectionCarriesBytesBothWays(t *testing.T) {
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		body, sink, err := ex.Out.Switch(&wire.Head{Status: 101, Upgrade: ex.Req.Upgrade})
		if err != nil {
			t.Error(err)
			return
		}
		if got := wire.ConnState(ex.Conn.State.Load()); got != wire.Tunneling {
			t.Error(got)
		}
		p := make([]byte, 100)
		for {
			n, err := body.Read(p)
			_, _ = sink.Write(bytes.ToUpper(p[:n]))
			_ = sink.Flush()
			if err != nil {
				_ = sink.Close(nil)
				return
			}
		}
	}})
	k.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
	const head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nEARLY"
	p := make([]byte, len(head))
	if _, err := io.ReadFull(k.r, p); err != nil || string(p) != head {
		t.Fatalf("%q %v", p, err)
	}
	k.say("late")
	if _, err := io.ReadFull(k.r, p[:4]); err != nil || string(p[:4]) != "LATE" {
		t.Errorf("%q %v", p[:4], err)
	}
	_ = k.c.CloseWrite()
	k.ends()
	if k.err != nil {
		t.Error(k.err)
	}
}

func TestC07_ClientThatEndedItsDirectionGetsItsAnswer(t *testing.T) {
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		stop := ex.Out.Gone(func() { t.Error("a half-closed client counts as gone") })
		wait := time.NewTimer(200 * time.Millisecond)
		<-wait.C
		stop()
		say(ex, 200, "late")
	}})
	k.say(get)
	_ = k.c.CloseWrite()
	k.want("GET", 200, "late")
	k.ends()
	if k.err != nil {
		t.Error(k.err)
	}
}
