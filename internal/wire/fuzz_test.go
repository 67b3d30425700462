package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fuzzed bounds inputs, since they are parsed once for each of their bytes.
const fuzzed = 2 << 10

type parseFunc func(b []byte, from int, h *Head, maxFields int) (n, next int, err error)

// parseWhole parses in at once and checks what holds for every result.
func parseWhole(t *testing.T, parse parseFunc, in []byte, h *Head) (int, error) {
	t.Helper()
	n, next, err := parse(in, 0, h, manyFields)
	var p *ParseError
	switch {
	case n < 0 || n > len(in) || next < 0 || next > len(in):
		t.Fatalf("took %d, next %d of %d", n, next, len(in))
	case err != nil && (n != 0 || !errors.As(err, &p)):
		t.Fatalf("took %d with error %v", n, err)
	case n > 0:
		for _, s := range [][]byte{h.Method, h.Authority, h.Target, h.Reason, h.Upgrade} {
			checkText(t, s)
		}
		for _, f := range h.Fields {
			checkText(t, f.Name)
			checkText(t, f.Value)
			if !isToken(f.Name) || len(trim(f.Value)) != len(f.Value) {
				t.Fatalf("field %q: %q", f.Name, f.Value)
			}
		}
	}
	return n, err
}

func checkText(t *testing.T, s []byte) {
	t.Helper()
	if bytes.ContainsAny(s, "\r\n\x00") {
		t.Fatalf("%q holds what ends a line", s)
	}
}

// parseSplit parses in as it grows by step bytes, in memory that moves each time.
func parseSplit(parse parseFunc, in []byte, step int, h *Head) (n int, err error) {
	from := 0
	for end := step; ; end += step {
		end = min(end, len(in))
		n, from, err = parse(bytes.Clone(in[:end]), from, h, manyFields)
		if n > 0 || err != nil || end == len(in) {
			return n, err
		}
	}
}

func checkSplits(t *testing.T, parse parseFunc, in []byte, want *Head, wantN int, wantErr error) {
	t.Helper()
	for _, step := range []int{1, 2, 7} {
		var h Head
		n, err := parseSplit(parse, in, step, &h)
		if n != wantN || !errors.Is(err, wantErr) {
			t.Fatalf("in steps of %d: %d %v, at once: %d %v", step, n, err, wantN, wantErr)
		}
		if n > 0 && show(&h) != show(want) {
			t.Fatalf("in steps of %d: %s", step, cmp.Diff(show(want), show(&h)))
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{
		small, browser, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", "GET / HTTP/1.0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nTE: trailers\r\nConnection: TE, x\r\nX: 1\r\n\r\n",
		"GET http://a.b:80/c?d HTTP/1.1\r\nHost: A.b:80\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "\r\nGET / HTTP/1.1\r\nHost:\ta \r\nA: \xff\tb\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		in = in[:min(len(in), fuzzed)]
		var h Head
		n, err := parseWhole(t, ParseRequest, in, &h)
		checkSplits(t, ParseRequest, in, &h, n, err)
		if n == 0 {
			return
		}
		if h.Minor > 0 && len(h.Authority) == 0 || len(h.Target) == 0 || h.Chunked && h.Length >= 0 || h.Chunked && h.Minor == 0 {
			t.Fatalf("took %s", show(&h))
		}
		framing, length := FramingOf(nil, &h)
		out := AppendRequest(nil, &h, length)
		again := h
		again.Fields = nil
		if len(h.Authority) == 0 {
			return // HTTP/1.0 may come without a host, but is not sent so
		}
		m, _, err := ParseRequest(out, 0, &again, manyFields+1)
		if err != nil || m != len(out) {
			t.Fatalf("%q, written as %q: %d %v", in[:n], out, m, err)
		}
		if got, size := FramingOf(nil, &again); got != framing || size != length {
			t.Fatalf("framing %v %d became %v %d", framing, length, got, size)
		}
		// What belongs to the sender's connection, and an empty body's announcement, may differ.
		h.Minor, h.Close, h.Scheme, again.Scheme, h.Length, again.Length = 1, again.Close, nil, nil, max(h.Length, 0), max(again.Length, 0)
		if d := cmp.Diff(show(&h), show(&again)); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzParseResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\nhello", "HTTP/1.0 200\r\n\r\n", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close, x\r\nX: y\r\n\r\n5\r\nhello\r\n", "HTTP/1.1 304 \r\nETag: \"a\"\r\n\r\n",
		"HTTP/1.1 200 OK\n\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", "ICY 200 OK\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		in = in[:min(len(in), fuzzed)]
		var h Head
		n, err := parseWhole(t, ParseResponse, in, &h)
		checkSplits(t, ParseResponse, in, &h, n, err)
		if n == 0 {
			return
		}
		if h.Status != 101 && h.Status != 426 {
			h.Upgrade = nil // an offer goes no further
		}
		framing, length := FramingOf([]byte("GET"), &h)
		if framing == NoBody {
			length = h.Length
		}
		if h.Status == 101 {
			framing, length = NoBody, -1
		}
		if len(h.Reason) == 0 {
			h.Reason = []byte(StatusText(h.Status))
		}
		out := AppendResponse(nil, &h, framing, length, h.Close)
		var again Head
		m, _, err := ParseResponse(out, 0, &again, manyFields+1)
		if err != nil || m != len(out) {
			t.Fatalf("%q, written as %q: %d %v", in[:n], out, m, err)
		}
		if framing == NoBody {
			h.Chunked = false
			if h.Status < 200 || h.Status == 204 {
				h.Length = -1
			}
		}
		h.Minor = 1
		h.Reason, again.Reason = trim(h.Reason), trim(again.Reason)
		if d := cmp.Diff(show(&h), show(&again)); d != "" {
			t.Fatal(d)
		}
	})
}

// readBody reads a chunked body that comes in steps, size bytes at a time.
func readBody(t *testing.T, in []byte, step, size int) (body, trailer string, left int, err error) {
	var segments []string
	for rest := in; len(rest) > 0; {
		n := min(step, len(rest))
		segments, rest = append(segments, string(rest[:n])), rest[n:]
	}
	buf := GetBuffer()
	defer buf.Put()
	var r BodyReader
	c := &script{segments: segments}
	r.Reset(c, buf, ByChunks, -1, nil)
	p, out := make([]byte, size), []byte(nil)
	for err == nil {
		var n int
		n, err = r.Read(p)
		out = append(out, p[:n]...)
	}
	for _, f := range r.Trailer() {
		checkText(t, f.Value)
		trailer += string(f.Name) + ": " + string(f.Value) + "\n"
	}
	left = len(buf.Bytes())
	for _, s := range c.segments {
		left += len(s)
	}
	if r.Done() != errors.Is(err, io.EOF) {
		t.Fatalf("done %v with %v", r.Done(), err)
	}
	return string(out), trailer, left, err
}

func FuzzChunked(f *testing.F) {
	for _, s := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "0\r\n\r\nGET", "a;b=\"c\"\r\n0123456789\r\n0\r\nA: b\r\nHost: c\r\n\r\n", "00000000000000000\r\n", "5\r\nhello0\r\n\r\n",
		"5\nhello\n0\n\n", "ffffffffffffffff\r\n", "1 ;\r\na\r\n0 ; x\r\n\r\n", "0\r\nA\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		in = in[:min(len(in), fuzzed)]
		body, trailer, left, err := readBody(t, in, max(len(in), 1), 64<<10)
		for _, c := range [][2]int{{1, 1}, {1, 4096}, {3, 5}, {len(in) + 1, 1}} {
			b2, t2, l2, err2 := readBody(t, in, c[0], c[1])
			var p1, p2 *ParseError
			same := errors.Is(err2, err) || errors.As(err, &p1) && errors.As(err2, &p2) // a line may be refused before its end
			if !same || b2 != body || t2 != trailer || errors.Is(err, io.EOF) && l2 != left {
				t.Fatalf("by %v: %q %q %d %v, at once: %q %q %d %v", c, b2, t2, l2, err2, body, trailer, left, err)
			}
		}
		if !errors.Is(err, io.EOF) {
			return
		}
		var k calls
		var w BodyWriter
		w.Start(&k, nil, ByChunks, -1)
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(nil); err != nil {
			t.Fatal(err)
		}
		var out []byte
		for _, s := range k.writes {
			out = append(out, s...)
		}
		if again, _, rest, err := readBody(t, out, len(out), 64<<10); again != body || rest != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("%q, written as %q, is read as %q %d %v", body, out, again, rest, err)
		}
	})
}
