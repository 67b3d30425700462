package wire

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const manyFields = 100

// statusOf is what a parser's error is answered with, 0 for none.
func statusOf(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	var p *ParseError
	if !errors.As(err, &p) {
		t.Fatalf("error %v is no ParseError", err)
	}
	return p.Status
}

func req(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

// TestH01_RequestsWithTwoReadingsAreRefused holds the cases of H01 that a head alone shows.
func TestH01_RequestsWithTwoReadingsAreRefused(t *testing.T) {
	host := "Host: a.example"
	for _, c := range []struct {
		name   string
		in     string
		status int
	}{
		{"content-length and transfer-encoding", req("POST / HTTP/1.1", host, "Content-Length: 5", "Transfer-Encoding: chunked"), 400},
		{"transfer-encoding and content-length", req("POST / HTTP/1.1", host, "Transfer-Encoding: chunked", "Content-Length: 5"), 400},
		{"two content-lengths that differ", req("POST / HTTP/1.1", host, "Content-Length: 5", "Content-Length: 6"), 400},
		{"two content-lengths alike", req("POST / HTTP/1.1", host, "Content-Length: 5", "content-length: 5"), 400},
		{"list of content-lengths", req("POST / HTTP/1.1", host, "Content-Length: 5, 5"), 400},
		{"content-length with a plus", req("POST / HTTP/1.1", host, "Content-Length: +5"), 400},
		{"content-length with a minus", req("POST / HTTP/1.1", host, "Content-Length: -5"), 400},
		{"content-length in hex", req("POST / HTTP/1.1", host, "Content-Length: 0x5"), 400},
		{"content-length with a space inside", req("POST / HTTP/1.1", host, "Content-Length: 5 5"), 400},
		{"content-length beyond 63 bits", req("POST / HTTP/1.1", host, "Content-Length: 9223372036854775808"), 400},
		{"content-length of twenty digits", req("POST / HTTP/1.1", host, "Content-Length: 00000000000000000005"), 400},
		{"empty content-length", req("POST / HTTP/1.1", host, "Content-Length:"), 400},
		{"transfer-encoding in HTTP/1.0", req("POST / HTTP/1.0", host, "Transfer-Encoding: chunked"), 400},
		{"transfer-encoding gzip, chunked", req("POST / HTTP/1.1", host, "Transfer-Encoding: gzip, chunked"), 501},
		{"transfer-encoding identity", req("POST / HTTP/1.1", host, "Transfer-Encoding: identity"), 501},
		{"transfer-encoding xchunked", req("POST / HTTP/1.1", host, "Transfer-Encoding: xchunked"), 501},
		{"transfer-encoding chunked with a parameter", req("POST / HTTP/1.1", host, "Transfer-Encoding: chunked;a=b"), 501},
		{"transfer-encoding behind a vertical tab", req("POST / HTTP/1.1", host, "Transfer-Encoding: \x0bchunked"), 400},
		{"empty transfer-encoding", req("POST / HTTP/1.1", host, "Transfer-Encoding:"), 501},
		{"two transfer-encodings", req("POST / HTTP/1.1", host, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400},
		{"folded line", req("GET / HTTP/1.1", host, "A: b", " c"), 400},
		{"folded line with a tab", req("GET / HTTP/1.1", host, "A: b", "\tc"), 400},
		{"folded first line", req("GET / HTTP/1.1", " "+host, host), 400},
		{"space before the colon", req("GET / HTTP/1.1", host, "Content-Length : 5"), 400},
		{"tab before the colon", req("GET / HTTP/1.1", host, "Content-Length\t: 5"), 400},
		{"space inside a name", req("GET / HTTP/1.1", host, "Content Length: 5"), 400},
		{"no colon", req("GET / HTTP/1.1", host, "Content-Length"), 400},
		{"empty name", req("GET / HTTP/1.1", host, ": 5"), 400},
		{"name in brackets", req("GET / HTTP/1.1", host, "A(b): 5"), 400},
		{"name outside ASCII", req("GET / HTTP/1.1", host, "\xc3\xa4: 5"), 400},
		{"bare LF behind the request line", "GET / HTTP/1.1\n" + host + "\r\n\r\n", 400},
		{"bare LF behind a field", "GET / HTTP/1.1\r\n" + host + "\nA: b\r\n\r\n", 400},
		{"bare LF at the end", "GET / HTTP/1.1\r\n" + host + "\r\n\n", 400},
		{"bare CR inside a value", req("GET / HTTP/1.1", host, "A: b\rc"), 400},
		{"bare CR inside the request line", req("GET /\r HTTP/1.1", host), 400},
		{"CR CR LF", "GET / HTTP/1.1\r\r\n" + host + "\r\n\r\n", 400},
		{"NUL in a value", req("GET / HTTP/1.1", host, "A: b\x00c"), 400},
		{"NUL in a name", req("GET / HTTP/1.1", host, "A\x00: b"), 400},
		{"NUL in the target", req("GET /\x00 HTTP/1.1", host), 400},
		{"escape in a value", req("GET / HTTP/1.1", host, "A: \x1b[2J"), 400},
		{"DEL in a value", req("GET / HTTP/1.1", host, "A: \x7f"), 400},
		{"DEL in the target", req("GET /\x7f HTTP/1.1", host), 400},
		{"no host", req("GET / HTTP/1.1", "A: b"), 400},
		{"empty host", req("GET / HTTP/1.1", "Host:"), 400},
		{"two hosts", req("GET / HTTP/1.1", host, "Host: b.example"), 400},
		{"two hosts alike", req("GET / HTTP/1.1", host, host), 400},
		{"two hosts in HTTP/1.0", req("GET / HTTP/1.0", host, host), 400},
		{"list of hosts", req("GET / HTTP/1.1", "Host: a.example, b.example"), 400},
		{"host with a user", req("GET / HTTP/1.1", "Host: u@a.example"), 400},
		{"host with a path", req("GET / HTTP/1.1", "Host: a.example/b"), 400},
		{"host with a space", req("GET / HTTP/1.1", "Host: a.example b"), 400},
		{"host percent-encoded", req("GET / HTTP/1.1", "Host: %61.example"), 400},
		{"host with two ports", req("GET / HTTP/1.1", "Host: a.example:80:81"), 400},
		{"host with a port of letters", req("GET / HTTP/1.1", "Host: a.example:http"), 400},
		{"host with a port too high", req("GET / HTTP/1.1", "Host: a.example:65536"), 400},
		{"host with only a port", req("GET / HTTP/1.1", "Host: :80"), 400},
		{"host with an open bracket", req("GET / HTTP/1.1", "Host: [::1"), 400},
		{"host with text behind a bracket", req("GET / HTTP/1.1", "Host: [::1]a"), 400},
		{"bare IPv6 host", req("GET / HTTP/1.1", "Host: ::1"), 400},
		{"absolute target with another host", req("GET http://b.example/ HTTP/1.1", host), 400},
		{"absolute target with another port", req("GET http://a.example:81/ HTTP/1.1", host), 400},
		{"absolute target with a user", req("GET http://u@a.example/ HTTP/1.1", host), 400},
		{"absolute target without a host", req("GET http:///a HTTP/1.1", host), 400},
		{"absolute target with a query only", req("GET http://a.example?b HTTP/1.1", host), 400},
		{"absolute target of another scheme", req("GET ftp://a.example/ HTTP/1.1", host), 400},
		{"absolute target without host field", req("GET http://a.example/ HTTP/1.1", "A: b"), 400},
		{"CONNECT to another host", req("CONNECT b.example:443 HTTP/1.1", host), 400},
		{"target without a slash", req("GET a HTTP/1.1", host), 400},
		{"target with a fragment", req("GET /a#b HTTP/1.1", host), 400},
		{"asterisk with GET", req("GET * HTTP/1.1", host), 400},
		{"two spaces behind the method", req("GET  / HTTP/1.1", host), 400},
		{"two spaces behind the target", req("GET /  HTTP/1.1", host), 400},
		{"space in the target", req("GET /a b HTTP/1.1", host), 400},
		{"tab in the request line", req("GET\t/ HTTP/1.1", host), 400},
		{"space behind the version", req("GET / HTTP/1.1 ", host), 400},
		{"space before the method", req(" GET / HTTP/1.1", host), 400},
		{"no method", req("/ HTTP/1.1", host), 400},
		{"method with a bracket", req("G(T / HTTP/1.1", host), 400},
		{"lower-case method", req("get / HTTP/1.1", host), 501},
		{"method of 33 letters", req(strings.Repeat("A", 33)+" / HTTP/1.1", host), 501},
		{"HTTP/0.9", "GET /\r\n", 505},
		{"HTTP/2.0", req("GET / HTTP/2.0", host), 505},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
		{"HTTP/1.2", req("GET / HTTP/1.2", host), 505},
		{"HTTP/1.10", req("GET / HTTP/1.10", host), 400},
		{"HTTP/1.", req("GET / HTTP/1.", host), 400},
		{"lower-case version", req("GET / http/1.1", host), 400},
		{"two empty lines first", "\r\n\r\n" + req("GET / HTTP/1.1", host), 400},
		{"101 fields", req("GET / HTTP/1.1", host, strings.TrimSuffix(strings.Repeat("A: b\r\n", 100), "\r\n")), 431},
		{"connection option that is no token", req("GET / HTTP/1.1", host, "Connection: a b"), 400},
		{"five connection fields", req("GET / HTTP/1.1", host, "Connection: a", "Connection: a", "Connection: a", "Connection: a", "Connection: a"), 400},
		{"33 connection options", req("GET / HTTP/1.1", host, "Connection: a"+strings.Repeat(",a", 32)), 400},
		{"unknown expectation", req("POST / HTTP/1.1", host, "Expect: 200-ok", "Content-Length: 1"), 417},
	} {
		t.Run("H01 "+c.name, func(t *testing.T) {
			var h Head
			n, _, err := ParseRequest([]byte(c.in), 0, &h, manyFields)
			if got := statusOf(t, err); got != c.status {
				t.Errorf("status %d (%v), want %d", got, err, c.status)
			}
			if n != 0 {
				t.Errorf("took %d bytes of a refused request", n)
			}
		})
	}
}

func TestBareLineFeedIsRefusedBeforeTheHeadIsComplete(t *testing.T) {
	for _, in := range []string{"GET / HTTP/1.1\n", "GET / HTTP/1.1\r\nHost: a\n", "GET / HTTP/1.1\r\nHost: a\r\nA: b\x00"} {
		if _, _, err := ParseRequest([]byte(in), 0, new(Head), manyFields); statusOf(t, err) != 400 {
			t.Errorf("%q: %v, want a refusal at once", in, err)
		}
	}
}

// show is a head as text, for comparing.
func show(h *Head) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s|%d %s|minor %d length %d", h.Method, h.Scheme, h.Authority, h.Target, h.Status, h.Reason, h.Minor, h.Length)
	for _, f := range []struct {
		on   bool
		word string
	}{{h.Chunked, "chunked"}, {h.Expect, "expect"}, {h.Trailers, "trailers"}, {h.Close, "close"}} {
		if f.on {
			b.WriteString(" " + f.word)
		}
	}
	if h.Upgrade != nil {
		fmt.Fprintf(&b, " upgrade %s", h.Upgrade)
	}
	for _, f := range h.Fields {
		fmt.Fprintf(&b, "\n%s: %s", f.Name, f.Value)
	}
	return b.String()
}

func TestRequestHeadsAreReadAsTheyAreMeant(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", req("GET /a%20b?c HTTP/1.1", "Host: a.example", "Accept: */*"), "GET  a.example /a%20b?c|0 |minor 1 length -1\nAccept: */*"},
		{"white space around values", req("GET / HTTP/1.1", "Host:a.example", "A: \t b c\t "), "GET  a.example /|0 |minor 1 length -1\nA: b c"},
		{"empty value", req("GET / HTTP/1.1", "Host: a", "A:", "B: "), "GET  a /|0 |minor 1 length -1\nA: \nB: "},
		{"bytes beyond ASCII in a value", req("GET / HTTP/1.1", "Host: a", "A: \xe4\xc3\xa4"), "GET  a /|0 |minor 1 length -1\nA: \xe4\xc3\xa4"},
		{"empty line first", "\r\n" + req("GET / HTTP/1.1", "Host: a"), "GET  a /|0 |minor 1 length -1"},
		{"port", req("GET / HTTP/1.1", "Host: a:8080"), "GET  a:8080 /|0 |minor 1 length -1"},
		{"IPv6 host", req("GET / HTTP/1.1", "Host: [::1]:8080"), "GET  [::1]:8080 /|0 |minor 1 length -1"},
		{"absolute", req("GET http://A.example/b?c HTTP/1.1", "Host: a.example"), "GET http a.example /b?c|0 |minor 1 length -1"},
		{"absolute without a path", req("GET HTTPS://a HTTP/1.1", "Host: a"), "GET https a /|0 |minor 1 length -1"},
		{"absolute OPTIONS without a path", req("OPTIONS http://a HTTP/1.1", "Host: a"), "OPTIONS http a *|0 |minor 1 length -1"},
		{"absolute in HTTP/1.0 without host", req("GET http://a/b HTTP/1.0"), "GET http a /b|0 |minor 0 length -1 close"},
		{"asterisk", req("OPTIONS * HTTP/1.1", "Host: a"), "OPTIONS  a *|0 |minor 1 length -1"},
		{"CONNECT", req("CONNECT a:443 HTTP/1.1", "Host: a:443"), "CONNECT  a:443 a:443|0 |minor 1 length -1"},
		{"HTTP/1.0", req("GET / HTTP/1.0"), "GET   /|0 |minor 0 length -1 close"},
		{"HTTP/1.0 that stays", req("GET / HTTP/1.0", "Connection: Keep-Alive"), "GET   /|0 |minor 0 length -1"},
		{"close", req("GET / HTTP/1.1", "Host: a", "Connection: keep-alive, Close"), "GET  a /|0 |minor 1 length -1 close"},
		{"length", req("POST / HTTP/1.1", "Host: a", "Content-Length: 007"), "POST  a /|0 |minor 1 length 7"},
		{"chunked", req("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: Chunked"), "POST  a /|0 |minor 1 length -1 chunked"},
		{"expectation", req("POST / HTTP/1.1", "Host: a", "Content-Length: 7", "Expect: 100-Continue"), "POST  a /|0 |minor 1 length 7 expect"},
		{"expectation without a body", req("GET / HTTP/1.1", "Host: a", "Expect: 100-continue"), "GET  a /|0 |minor 1 length -1"},
		{"expectation in HTTP/1.0", req("POST / HTTP/1.0", "Content-Length: 7", "Expect: 100-continue"), "POST   /|0 |minor 0 length 7 close"},
		{"trailers", req("GET / HTTP/1.1", "Host: a", "TE: gzip;q=0.5, trailers", "Connection: TE"), "GET  a /|0 |minor 1 length -1 trailers"},
		{"upgrade", req("GET / HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: keep-alive, Upgrade"), "GET  a /|0 |minor 1 length -1 upgrade websocket"},
		{"upgrade that Connection does not name", req("GET / HTTP/1.1", "Host: a", "Upgrade: websocket"), "GET  a /|0 |minor 1 length -1"},
		{"upgrade in HTTP/1.0", req("GET / HTTP/1.0", "Upgrade: websocket", "Connection: Upgrade"), "GET   /|0 |minor 0 length -1 close"},
		{"method that is odd but a token", req("M-SEARCH / HTTP/1.1", "Host: a"), "M-SEARCH  a /|0 |minor 1 length -1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h Head
			n, _, err := ParseRequest([]byte(c.in+"behind"), 0, &h, manyFields)
			if err != nil || n != len(c.in) {
				t.Fatalf("took %d bytes of %d, %v", n, len(c.in), err)
			}
			if d := cmp.Diff(c.want, show(&h)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestConnectionTakesFieldsAwayButNotThoseWeRelyOn(t *testing.T) {
	in := req("GET / HTTP/1.1", "X-Gone: 1", "Host: a", "Authorization: b", "X-Forwarded-For: c", "Forwarded: d", "X-Real-IP: e", "Via: f",
		"X-Request-ID: g", "Cookie: h", "Content-Type: i", "Keep-Alive: j", "Proxy-Connection: k", "HTTP2-Settings: l",
		"Connection: x-gone, Host, authorization, x-forwarded-for, forwarded, x-real-ip, via, x-request-id, cookie, content-type, , y-gone",
		"Y-Gone: 2", "x-gone: 3", "X-Stays: 4")
	var h Head
	if _, _, err := ParseRequest([]byte(in), 0, &h, manyFields); err != nil {
		t.Fatal(err)
	}
	want := "GET  a /|0 |minor 1 length -1\nAuthorization: b\nX-Forwarded-For: c\nForwarded: d\nX-Real-IP: e\nVia: f\nX-Request-ID: g\n" +
		"Cookie: h\nContent-Type: i\nX-Stays: 4"
	if d := cmp.Diff(want, show(&h)); d != "" {
		t.Error(d)
	}
}

func TestResponseHeads(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", req("HTTP/1.1 200 OK", "Content-Length: 5", "Server: x"), "   |200 OK|minor 1 length 5\nServer: x"},
		{"reason of words", req("HTTP/1.1 404 Not  Here"), "   |404 Not  Here|minor 1 length -1"},
		{"empty reason", req("HTTP/1.1 200 "), "   |200 |minor 1 length -1"},
		{"no reason", req("HTTP/1.1 200"), "   |200 |minor 1 length -1"},
		{"HTTP/1.0", req("HTTP/1.0 200 OK"), "   |200 OK|minor 0 length -1 close"},
		{"HTTP/1.0 that stays", req("HTTP/1.0 200 OK", "Connection: keep-alive"), "   |200 OK|minor 0 length -1"},
		{"close", req("HTTP/1.1 200 OK", "Connection: close"), "   |200 OK|minor 1 length -1 close"},
		{"connection that is no token", req("HTTP/1.1 200 OK", "Connection: a b"), "   |200 OK|minor 1 length -1"},
		{"204 with a body announced", req("HTTP/1.1 204 No Content", "Content-Length: 5"), "   |204 No Content|minor 1 length 5 close"},
		{"304 with a length", req("HTTP/1.1 304 Not Modified", "Content-Length: 5"), "   |304 Not Modified|minor 1 length 5"},
		{"101", req("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"), "   |101 Switching Protocols|minor 1 length -1 upgrade websocket"},
		{"interim", req("HTTP/1.1 103 Early Hints", "Link: </a>"), "   |103 Early Hints|minor 1 length -1\nLink: </a>"},
		{"host and expect are nothing special", req("HTTP/1.1 200 OK", "Host: a", "Expect: b"), "   |200 OK|minor 1 length -1\nHost: a\nExpect: b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h Head
			n, _, err := ParseResponse([]byte(c.in), 0, &h, manyFields)
			if err != nil || n != len(c.in) {
				t.Fatalf("took %d bytes of %d, %v", n, len(c.in), err)
			}
			if d := cmp.Diff(c.want, show(&h)); d != "" {
				t.Error(d)
			}
		})
	}
	for _, in := range []string{
		"HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 099 X\r\n\r\n", "HTTP/1.1 2000 X\r\n\r\n", "HTTP/1.1  200 OK\r\n\r\n", "HTTP/2.0 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\n\n", "ICY 200 OK\r\n\r\n", "http/1.1 200 OK\r\n\r\n", "HTTP/1.1 +20 OK\r\n\r\n",
		req("HTTP/1.1 200 OK", "Content-Length: 5", "Transfer-Encoding: chunked"), req("HTTP/1.1 200 OK", "Content-Length: 5", "Content-Length: 5"),
		req("HTTP/1.0 200 OK", "Transfer-Encoding: chunked"), req("HTTP/1.1 200 OK", "Transfer-Encoding: gzip"), req("HTTP/1.1 100 Continue", "Content-Length: 5"),
		req("HTTP/1.1 200 OK", "A: b", " c"), req("HTTP/1.1 200 OK", "A : b"),
	} {
		if n, _, err := ParseResponse([]byte(in), 0, new(Head), manyFields); err == nil || n != 0 {
			t.Errorf("%q was taken", in)
		}
	}
}

func TestFramingFollowsRFC9112(t *testing.T) {
	for _, c := range []struct {
		method string
		h      Head
		f      Framing
		n      int64
	}{
		{"GET", Head{Length: -1}, NoBody, 0},
		{"POST", Head{Length: 0}, NoBody, 0},
		{"POST", Head{Length: 9}, ByLength, 9},
		{"POST", Head{Length: -1, Chunked: true}, ByChunks, -1},
		{"GET", Head{Status: 200, Length: 9}, ByLength, 9},
		{"GET", Head{Status: 200, Length: 0}, NoBody, 0},
		{"GET", Head{Status: 200, Length: -1, Chunked: true}, ByChunks, -1},
		{"GET", Head{Status: 200, Length: -1}, ByClose, -1},
		{"HEAD", Head{Status: 200, Length: 9}, NoBody, 0},
		{"HEAD", Head{Status: 200, Length: -1, Chunked: true}, NoBody, 0},
		{"GET", Head{Status: 204, Length: 9}, NoBody, 0},
		{"GET", Head{Status: 304, Length: 9}, NoBody, 0},
		{"GET", Head{Status: 100, Length: -1}, NoBody, 0},
		{"GET", Head{Status: 101, Length: -1}, ByClose, -1},
		{"CONNECT", Head{Status: 200, Length: 9}, ByClose, -1},
		{"CONNECT", Head{Status: 403, Length: 9}, ByLength, 9},
	} {
		if f, n := FramingOf([]byte(c.method), &c.h); f != c.f || n != c.n {
			t.Errorf("%s %+v: %v %d, want %v %d", c.method, c.h, f, n, c.f, c.n)
		}
	}
}

// TestParsingDoesNotDependOnSegments feeds heads byte by byte.
func TestParsingDoesNotDependOnSegments(t *testing.T) {
	in := "\r\n" + req("POST http://a.example/b HTTP/1.1", "Host: a.example", "Connection: x, keep-alive", "X: y", "Content-Length: 3", "A:\tb") + "abc"
	var whole Head
	want, _, err := ParseRequest([]byte(in), 0, &whole, manyFields)
	if err != nil {
		t.Fatal(err)
	}
	var h Head
	from := 0
	for i := 1; i <= len(in); i++ {
		n, next, err := ParseRequest([]byte(in)[:i:i], from, &h, manyFields)
		if err != nil {
			t.Fatalf("after %d bytes: %v", i, err)
		}
		if n > 0 {
			if n != want || i != want {
				t.Fatalf("took %d bytes of %d, want %d", n, i, want)
			}
			if d := cmp.Diff(show(&whole), show(&h)); d != "" {
				t.Error(d)
			}
			return
		}
		from = next
	}
	t.Error("the head never was complete")
}

func TestControlFindsEveryControlByte(t *testing.T) {
	for _, size := range []int{1, 7, 8, 9, 16, 33} {
		for at := range size {
			for x := range 256 {
				b := bytes.Repeat([]byte{0xa0}, size)
				for i := range at {
					b[i] = "\t \x80~"[i%4]
				}
				b[at] = byte(x)
				want := size
				if x < 0x20 && x != '\t' || x == 0x7f {
					want = at
				}
				if got := control(b, 0); got != want {
					t.Fatalf("%q: %d, want %d", b, got, want)
				}
			}
		}
	}
}
