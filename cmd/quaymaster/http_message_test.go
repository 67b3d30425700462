package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// script is a target that is told word by word what to do with its one connection after another.
func script(t testing.TB, act func(c net.Conn, r *bufio.Reader)) string {
	return tcpTarget(t, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		act(c, bufio.NewReader(c))
	})
}

// readHead reads up to and with the empty line.
func readHead(r *bufio.Reader) string {
	var b strings.Builder
	for {
		l, err := r.ReadString('\n')
		b.WriteString(l)
		if err != nil || l == "\r\n" {
			return b.String()
		}
	}
}

// expectHead reads a head and wants it to begin like that.
func expectHead(t testing.TB, r *bufio.Reader, start string) string {
	t.Helper()
	h := readHead(r)
	if !strings.HasPrefix(h, start) {
		t.Fatalf("head %q, want %q", h, start)
	}
	return h
}

func has(head, line string) bool { return strings.Contains(head, "\r\n"+line+"\r\n") }

func TestH02_AnswersWithoutABody(t *testing.T) {
	t.Parallel()
	texts := map[string]string{
		"/length":  "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nETag: \"x\"\r\n\r\n",
		"/chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"/204":     "HTTP/1.1 204 No Content\r\nA: b\r\n\r\n",
		"/304":     "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 12345\r\n\r\n",
		"/empty":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"/zero":    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	}
	s := spoolTarget(t, func(_ int, r *http.Request, _ string) string { return texts[r.URL.Path] })
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", s.addr))
	c := dial(t, p)
	r := bufio.NewReader(c)
	// All on one connection here and one at the target: a byte too many or too few anywhere would show.
	for _, x := range []struct{ method, path, start, line, not string }{
		{"HEAD", "/length", "HTTP/1.1 200 OK", "Content-Length: 12345", "Transfer-Encoding"},
		{"GET", "/304", "HTTP/1.1 304 Not Modified", `ETag: "x"`, "Transfer-Encoding"},
		{"HEAD", "/chunked", "HTTP/1.1 200 OK", "", "Content-Length: 0"},
		{"GET", "/204", "HTTP/1.1 204 No Content", "A: b", "Content-Length"},
		{"HEAD", "/204", "HTTP/1.1 204 No Content", "A: b", "Transfer-Encoding"},
		{"GET", "/empty", "HTTP/1.1 200 OK", "", "\r\nContent-Length: 0\r\nTransfer-Encoding"},
		{"GET", "/zero", "HTTP/1.1 200 OK", "Content-Length: 0", "Transfer-Encoding"},
		{"HEAD", "/zero", "HTTP/1.1 200 OK", "Content-Length: 0", "Transfer-Encoding"},
		{"GET", "/304", "HTTP/1.1 304 Not Modified", `ETag: "x"`, "Transfer-Encoding"},
	} {
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: a.test\r\n\r\n", x.method, x.path)
		h := expectHead(t, r, x.start)
		if x.line != "" && !has(h, x.line) || strings.Contains(h, x.not) || strings.Contains(h, "close") {
			t.Errorf("%s %s: %q", x.method, x.path, h)
		}
		if has(h, "Transfer-Encoding: chunked") && x.method != "HEAD" {
			expectHead(t, r, "0\r\n\r\n")
		}
	}
	if n := len(s.all()); n != 1 {
		t.Errorf("%d connections to the target, want 1", n)
	}
}

func TestH02_InterimAnswers(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, func(int, *http.Request, string) string {
		return "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	})
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", s.addr))
	got := letters(t, send(t, p, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"), "GET")
	if len(got) != 3 || got[0].start != "HTTP/1.1 102 Processing" || got[1].start != "HTTP/1.1 103 Early Hints" || got[1].one("Link") != "</a.css>" || got[2].body != "ok" {
		t.Errorf("1.1: %+v", got)
	}
	// HTTP/1.0 knows none (RFC 9110 section 15.2).
	got = letters(t, send(t, p, "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n"), "GET")
	if len(got) != 1 || got[0].body != "ok" {
		t.Errorf("1.0: %+v", got)
	}
}

func TestH02_Continue(t *testing.T) {
	t.Parallel()
	saw := make(chan string, 1)
	asks := script(t, func(c net.Conn, r *bufio.Reader) {
		h := readHead(r)
		_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		b := make([]byte, 5)
		_, _ = io.ReadFull(r, b)
		saw <- h + string(b)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	})
	refuses := script(t, func(c net.Conn, r *bufio.Reader) {
		readHead(r)
		_, _ = io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
		rest, _ := io.ReadAll(r)
		saw <- string(rest)
	})
	ignores := script(t, func(c net.Conn, r *bufio.Reader) {
		readHead(r)
		b := make([]byte, 5)
		_, _ = io.ReadFull(r, b)
		saw <- string(b)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	})
	p := freePort(t)
	start(t, "routes:\n"+route("asks", p, "asks.test", asks)+route("refuses", p, "refuses.test", refuses)+route("ignores", p, "ignores.test", ignores))
	ask := func(host string) (net.Conn, *bufio.Reader) {
		c := dial(t, p)
		_, _ = io.WriteString(c, "PUT / HTTP/1.1\r\nHost: "+host+"\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		return c, bufio.NewReader(c)
	}
	c, r := ask("asks.test")
	expectHead(t, r, "HTTP/1.1 100 Continue\r\n\r\n")
	_, _ = io.WriteString(c, "hello")
	expectHead(t, r, "HTTP/1.1 200 OK")
	if got := <-saw; !has(got, "Expect: 100-continue") || !strings.HasSuffix(got, "\r\n\r\nhello") {
		t.Errorf("the target that says 100 saw %q", got)
	}
	_, r = ask("refuses.test") // a final answer instead: no 100, and the body is never asked for
	h := expectHead(t, r, "HTTP/1.1 401 Unauthorized")
	if !has(h, "Connection: close") {
		t.Errorf("the connection is kept although a body may follow: %q", h)
	}
	if got := <-saw; got != "" {
		t.Errorf("the target that refused got %q", got)
	}
	c, r = ask("ignores.test") // says nothing: the body comes all the same
	expectHead(t, r, "HTTP/1.1 100 Continue\r\n\r\n")
	_, _ = io.WriteString(c, "hello")
	expectHead(t, r, "HTTP/1.1 200 OK")
	if got := <-saw; got != "hello" {
		t.Errorf("the target that says no 100 saw %q", got)
	}
	if got := send(t, p, "PUT / HTTP/1.1\r\nHost: asks.test\r\nContent-Length: 5\r\nExpect: a-present\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 417 ") {
		t.Errorf("another expectation: %q", got)
	}
}

func TestH02_EarlyFinalAnswer(t *testing.T) {
	t.Parallel()
	early := script(t, func(c net.Conn, r *bufio.Reader) {
		readHead(r)
		_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly")
	})
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", early)+route("b", p, "b.test", httpTarget(t, "b", nil)))
	for name, framing := range map[string]string{"length": "Content-Length: 104857600", "chunked": "Transfer-Encoding: chunked"} {
		c := dial(t, p)
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a.test\r\n"+framing+"\r\n\r\n5\r\nhello\r\n") // and no more
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(name, err)
		}
		if b, err := io.ReadAll(res.Body); res.StatusCode != 403 || string(b) != "early" || err != nil || !res.Close {
			t.Errorf("%s: %d %q %v, closes: %v", name, res.StatusCode, b, err, res.Close)
		}
		_ = c.Close()
	}
	// A client that sends on and reads only then still finds the answer.
	c := dial(t, p)
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 104857600\r\n\r\n"+strings.Repeat("x", 100_000))
	if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != 403 {
		t.Errorf("while sending: %v %v", res, err)
	}
	mustFetch(t, p, "b.test", "/", "b")
}

func TestH02_TrailersAndEmptyChunkedBodies(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, func(int, *http.Request, string) string {
		return "HTTP/1.1 200 OK\r\nTrailer: A\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\nContent-Length: 7\r\nSet-Cookie: x=y\r\n\r\n"
	})
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", s.addr))
	got := letters(t, send(t, p, "POST / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nConnection: TE, close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nChecksum: 1\r\nHost: evil\r\n\r\n"), "POST")
	if len(got) != 1 || got[0].body != "hello" || len(got[0].trailers) != 1 || got[0].trailers[0] != [2]string{"A", "b"} {
		t.Errorf("answer %+v", got[0])
	}
	came := letters(t, s.text(), "")
	if len(came) != 1 || came[0].body != "hello" || len(came[0].trailers) != 1 || came[0].trailers[0] != [2]string{"Checksum", "1"} || came[0].one("TE") != "trailers" {
		t.Errorf("the target got %q", s.text())
	}
	s.forget()
	send(t, p, "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	if came := letters(t, s.text(), ""); len(came) != 1 || came[0].body != "" || len(came[0].values("Content-Length"))+len(came[0].values("Transfer-Encoding")) != 1 {
		t.Errorf("an empty chunked body came as %q", s.text())
	}
	s.forget()
	send(t, p, "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n")
	if came := letters(t, s.text(), ""); len(came) != 1 || came[0].body != "" || len(came[0].trailers) != 1 {
		t.Errorf("an empty chunked body with a trailer came as %q", s.text())
	}
	// A client of HTTP/1.0 gets the body until the end of the connection, and no trailers.
	if got := send(t, p, "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n"); !strings.HasSuffix(got, "\r\n\r\nhello") || strings.Contains(got, "chunked") {
		t.Errorf("1.0: %q", got)
	}
}

func TestH02_UpgradeRefusals(t *testing.T) {
	t.Parallel()
	const handshake = "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	answers := []string{
		"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nContent-Length: 2\r\n\r\nno",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
		"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
	}
	for i, answer := range answers {
		s := spoolTarget(t, func(n int, r *http.Request, _ string) string {
			if n == 1 {
				return answer
			}
			return okay(n, r, "")
		})
		p := freePort(t)
		start(t, "routes:\n"+route("a", p, "a.test", s.addr)+route("b", p, "b.test", httpTarget(t, "b", nil)))
		c := dial(t, p)
		r := bufio.NewReader(c)
		// What a client sends behind the handshake is a request of its own until there was a 101.
		res, body := say(t, c, r, handshake+"GET /two HTTP/1.1\r\nHost: b.test\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 "+res.Status) || body != "no" {
			t.Errorf("%d: %s %q", i, res.Status, body)
		}
		if i == 0 && (res.Header.Get("Upgrade") != "websocket" || res.Header.Get("Sec-WebSocket-Version") != "8") {
			t.Errorf("426 without what it asks for: %v", res.Header)
		}
		if res, body := say(t, c, r, ""); res.StatusCode != 200 || body != "b GET b.test /two" {
			t.Errorf("%d: the request behind the refused handshake got %d %q", i, res.StatusCode, body)
		}
		if _, body := say(t, c, r, "GET /three HTTP/1.1\r\nHost: a.test\r\n\r\n"); body != "ok" {
			t.Errorf("%d: the connection cannot go on: %q", i, body)
		}
		if text := s.text(); strings.Contains(text, "/two") {
			t.Errorf("%d: copied raw before a 101: %q", i, text)
		}
	}
}

func TestH03_HopByHop(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, func(int, *http.Request, string) string {
		return "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive, Set-Cookie\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n" +
			"Set-Cookie: a=b\r\nX-End: 2\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok"
	})
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", s.addr))
	got := letters(t, send(t, p, "GET / HTTP/1.1\r\nHost: a.test\r\n"+
		"Connection: close, X-Drop, host, authorization, cookie, x-forwarded-for, x-forwarded-proto, X-Forwarded-Host, x-real-ip, via, x-request-id, content-type\r\n"+
		"Connection: X-Also\r\nX-Drop: 1\r\nX-Also: 1\r\nX-Stay: 1\r\nAuthorization: Basic eDp5\r\nCookie: c=d\r\nContent-Type: text/x\r\n"+
		"Keep-Alive: timeout=1\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: foo\r\n\r\n"), "GET")
	came := letters(t, s.text(), "")
	if len(came) != 1 {
		t.Fatalf("the target got %q", s.text())
	}
	for _, name := range []string{"X-Drop", "X-Also", "Keep-Alive", "Proxy-Connection", "TE", "Upgrade", "Connection"} {
		if v := came[0].values(name); len(v) > 0 {
			t.Errorf("%s went on: %q", name, v)
		}
	}
	for name, want := range map[string]string{
		"Host": "a.test", "X-Stay": "1", "Authorization": "Basic eDp5", "Cookie": "c=d", "Content-Type": "text/x",
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "a.test", "X-Real-IP": "127.0.0.1", "Via": "1.1 quaymaster",
	} {
		if v := came[0].values(name); len(v) != 1 || v[0] != want {
			t.Errorf("%s: the target got %q, want %q", name, v, want)
		}
	}
	if len(came[0].one("X-Request-Id")) < 16 {
		t.Errorf("X-Request-Id %q", came[0].values("X-Request-Id"))
	}
	for _, name := range []string{"X-Hop", "Keep-Alive", "Proxy-Connection", "Upgrade"} {
		if v := got[0].values(name); len(v) > 0 {
			t.Errorf("%s of the target's connection reached the client: %q", name, v)
		}
	}
	if got[0].one("X-End") != "2" || got[0].one("Set-Cookie") != "a=b" || got[0].one("Connection") != "close" {
		t.Errorf("answer %+v", got[0])
	}
}

// spoken is what a client says that only a trusted proxy may say, in all spellings.
const spoken = "X-Forwarded-For: 6.6.6.6, 198.51.100.7, 10.9.1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: pub.test\r\nX-Forwarded-Port: 1\r\n" +
	"X-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Request-Id: their-id\r\nVia: 1.1 front\r\n" +
	"X_Forwarded_For: 6.6.6.6\r\nX_Forwarded-For: 6.6.6.6\r\nX.Forwarded.Proto: evil\r\nX_Real_IP: 6.6.6.6\r\nX_Request_Id: evil\r\nX-Forwarded_Host: evil\r\nA_b: fine\r\n"

// saysOfClient asks with all of spoken and compares what the target then gets; "" is no such field.
func saysOfClient(t *testing.T, settings string, want map[string]string) *letter {
	t.Helper()
	s := spoolTarget(t, okay)
	p := freePort(t)
	start(t, settings+"routes:\n"+route("a", p, "a.test", s.addr))
	send(t, p, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n"+spoken+"\r\n")
	came := letters(t, s.text(), "")
	if len(came) != 1 {
		t.Fatalf("the target got %q", s.text())
	}
	for name, w := range want {
		if v := strings.Join(came[0].values(name), " and "); v != w {
			t.Errorf("%s: the target got %q, want %q", name, v, w)
		}
	}
	if v := strings.Join(came[0].values("Via"), ", "); v != "1.1 front, 1.1 quaymaster" {
		t.Errorf("Via %q", v)
	}
	for _, f := range came[0].fields {
		if f[0] != "A_b" && strings.ContainsAny(f[0], "_.") {
			t.Errorf("the alias %s went on", f[0])
		}
	}
	return came[0]
}

func TestH03_WhatIsSaidOfAStranger(t *testing.T) {
	t.Parallel()
	l := saysOfClient(t, "trusted_proxies: [10.0.0.0/8]\n", map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "a.test", "X-Real-IP": "127.0.0.1",
		"X-Forwarded-Port": "", "Forwarded": "", "A_b": "fine",
	})
	if id := l.one("X-Request-Id"); len(id) < 16 {
		t.Errorf("X-Request-Id of a stranger: %q", id)
	}
}

func TestH03_WhatATrustedProxySays(t *testing.T) {
	t.Parallel()
	saysOfClient(t, "trusted_proxies: [127.0.0.0/8, 10.9.0.0/16]\n", map[string]string{
		"X-Forwarded-For": "6.6.6.6, 198.51.100.7, 10.9.1.1, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "pub.test",
		"X-Real-IP": "198.51.100.7", "X-Forwarded-Port": "1", "Forwarded": "for=6.6.6.6", "X-Request-Id": "their-id", "A_b": "fine",
	})
}

func TestH03_AliasesOfFieldsThatRulesSet(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, okay)
	p := freePort(t)
	start(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {targets: [%q], request_headers: {set: {X-User: ann}, remove: [X-Admin]}}}\n", p, s.addr))
	send(t, p, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close, X-User\r\nX-User: eve\r\nX_User: eve\r\nx.user: eve\r\nX-Admin: 1\r\nX_Admin: 1\r\n\r\n")
	if text := s.text(); strings.Contains(text, "eve") || !has(text, "X-User: ann") || strings.Contains(strings.ToLower(text), "admin") {
		t.Errorf("the target got %q", text)
	}
}

func TestH04_WebSocketAndNothingElse(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, okay)
	p := freePort(t)
	start(t, "routes:\n"+route("ws", p, "ws.test", wsTarget(t))+route("a", p, "a.test", s.addr))
	ws := wsDial(t, p, "ws.test")
	wsEcho(t, ws, "hello")
	big := strings.Repeat("x", 30_000)
	for range 20 {
		wsEcho(t, ws, big)
	}
	if err := ws.Close(websocket.StatusNormalClosure, "bye"); err != nil {
		t.Errorf("close handshake: %v", err)
	}
	for name, fields := range map[string]string{
		"h2c":                 "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
		"another protocol":    "Connection: Upgrade\r\nUpgrade: foo/2\r\n",
		"not in Connection":   "Upgrade: websocket\r\n",
		"a list":              "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
		"TLS within HTTP":     "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
		"h2c in two spelling": "Connection: upgrade,http2-settings\r\nUpgrade: H2C\r\nHTTP2_Settings: x\r\n",
	} {
		s.forget()
		got := send(t, p, "GET / HTTP/1.1\r\nHost: a.test\r\n"+fields+"\r\nGET /next HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
		if answers := letters(t, got, "GET"); len(answers) != 2 || answers[0].body != "ok" {
			t.Errorf("%s: %q", name, got)
		}
		for _, l := range letters(t, s.text(), "") {
			if len(l.values("Upgrade"))+len(l.values("HTTP2-Settings"))+len(l.values("Connection")) > 0 {
				t.Errorf("%s: the target got %+v", name, l.fields)
			}
		}
	}
}

func TestH04_NothingGoesRawBefore101(t *testing.T) {
	t.Parallel()
	early := make(chan int, 1)
	let := make(chan struct{})
	target := script(t, func(c net.Conn, r *bufio.Reader) {
		readHead(r)
		<-let // what the client sent behind its handshake has long been sent
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		b, _ := r.Peek(1)
		early <- len(b)
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
		b = make([]byte, 8)
		_, _ = io.ReadFull(r, b)
		_, _ = c.Write(append([]byte("got "), b...))
	})
	other := spoolTarget(t, func(int, *http.Request, string) string {
		return "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\nraw"
	})
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", target)+route("b", p, "b.test", other.addr))
	const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	c := dial(t, p)
	r := bufio.NewReader(c)
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n"+upgrade+"12345678")
	close(let)
	if n := <-early; n != 0 {
		t.Error("bytes went to the target before it said 101")
	}
	expectHead(t, r, "HTTP/1.1 101 ")
	if b := make([]byte, 12); true {
		if _, err := io.ReadFull(r, b); err != nil || string(b) != "got 12345678" {
			t.Errorf("after 101: %q %v", b, err)
		}
	}
	// 101 for what was not asked for, and a handshake that is none.
	for name, request := range map[string]string{
		"another protocol": "GET / HTTP/1.1\r\nHost: b.test\r\n" + upgrade,
		"POST":             "POST / HTTP/1.1\r\nHost: b.test\r\nContent-Length: 0\r\n" + upgrade,
	} {
		c := dial(t, p)
		if res, body := say(t, c, bufio.NewReader(c), request); res.StatusCode != 502 || strings.Contains(body, "raw") {
			t.Errorf("101 for %s: %d %q", name, res.StatusCode, body)
		}
	}
}

func TestH04_WebSocketOutlivesAnIdleTarget(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	start(t, "timeouts: {keep_alive: 200ms, request_header: 200ms, idle: 1h}\nroutes:\n"+route("ws", p, "ws.test", wsTarget(t)))
	ws := wsDial(t, p, "ws.test")
	wsEcho(t, ws, "before")
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	<-ctx.Done() // five times as long as any clock of a connection between requests
	wsEcho(t, ws, "after")
}
