package wire

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func b(s string) []byte { return []byte(s) }

func TestRequestsAreWritten(t *testing.T) {
	get := Head{Method: b("GET"), Authority: b("a"), Target: b("/x"), Fields: []Field{{b("A"), b("1")}}}
	with := func(f func(*Head)) Head {
		h := get
		f(&h)
		return h
	}
	for _, c := range []struct {
		name string
		h    Head
		n    int64
		want string
	}{
		{"GET", get, 0, "GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\n\r\n"},
		{"GET with a body", get, 5, "GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\nContent-Length: 5\r\n\r\n"},
		{"POST without a body", with(func(h *Head) { h.Method = b("POST") }), 0, "POST /x HTTP/1.1\r\nHost: a\r\nA: 1\r\nContent-Length: 0\r\n\r\n"},
		{"DELETE without a body", with(func(h *Head) { h.Method = b("DELETE") }), 0, "DELETE /x HTTP/1.1\r\nHost: a\r\nA: 1\r\n\r\n"},
		{"chunked", with(func(h *Head) { h.Method = b("PUT") }), -1, "PUT /x HTTP/1.1\r\nHost: a\r\nA: 1\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"upgrade", with(func(h *Head) { h.Upgrade = b("websocket") }), 0, "GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"},
		{"trailers", with(func(h *Head) { h.Trailers = true }), 0, "GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\nTE: trailers\r\nConnection: TE\r\n\r\n"},
		{"trailers and upgrade", with(func(h *Head) { h.Trailers, h.Upgrade = true, b("websocket") }), 0, "GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\nTE: trailers\r\nConnection: upgrade, TE\r\nUpgrade: websocket\r\n\r\n"},
		{"expectation", with(func(h *Head) { h.Expect = true }), 5, "GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"},
		{"expectation without a body", with(func(h *Head) { h.Expect = true }), 0, "GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\n\r\n"},
		{"close is the client's alone", with(func(h *Head) { h.Close = true }), 0, "GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\n\r\n"},
		{"empty target", with(func(h *Head) { h.Target = nil }), 0, "GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\n\r\n"},
		{"target with what would end it", with(func(h *Head) { h.Target = b("/a b\r\n\x7fc") }), 0, "GET /a%20b%0D%0A%7Fc HTTP/1.1\r\nHost: a\r\nA: 1\r\n\r\n"},
		{"value with what would end it", with(func(h *Head) { h.Fields = []Field{{b("A"), b("1\r\nB: 2\x00")}} }), 0, "GET /x HTTP/1.1\r\nHost: a\r\nA: 1  B: 2 \r\n\r\n"},
		{"name with what would end it", with(func(h *Head) { h.Fields = []Field{{b("A: 1\r\nB"), b("2")}, {b(""), b("3")}} }), 0, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"fields of the connection", with(func(h *Head) {
			h.Fields = []Field{{b("content-length"), b("7")}, {b("Transfer-Encoding"), b("x")}, {b("Connection"), b("x")}, {b("HOST"), b("b")}, {b("Upgrade"), b("h2c")}, {b("Expect"), b("x")}}
		}), 0, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, string(AppendRequest(nil, &c.h, c.n))); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestResponsesAreWritten(t *testing.T) {
	for _, c := range []struct {
		name    string
		h       Head
		f       Framing
		n       int64
		closing bool
		want    string
	}{
		{"length", Head{Status: 200, Fields: []Field{{b("A"), b("1")}}}, ByLength, 5, false, "HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 5\r\n\r\n"},
		{"empty", Head{Status: 200}, ByLength, 0, false, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"reason", Head{Status: 404, Reason: b("Nope\r\n")}, ByLength, 5, true, "HTTP/1.1 404 Nope  \r\nContent-Length: 5\r\nConnection: close\r\n\r\n"},
		{"unknown status", Head{Status: 799}, ByLength, 0, false, "HTTP/1.1 799 \r\nContent-Length: 0\r\n\r\n"},
		{"chunked", Head{Status: 200}, ByChunks, -1, false, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"until close", Head{Status: 200}, ByClose, -1, true, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"},
		{"HEAD", Head{Status: 200}, NoBody, 5, false, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"},
		{"HEAD of unknown length", Head{Status: 200}, NoBody, -1, false, "HTTP/1.1 200 OK\r\n\r\n"},
		{"204", Head{Status: 204}, NoBody, 0, false, "HTTP/1.1 204 No Content\r\n\r\n"},
		{"304", Head{Status: 304}, NoBody, 5, false, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"},
		{"interim", Head{Status: 103}, NoBody, 0, false, "HTTP/1.1 103 Early Hints\r\n\r\n"},
		{"101", Head{Status: 101, Upgrade: b("websocket")}, NoBody, -1, false, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"},
		{"426", Head{Status: 426, Upgrade: b("websocket")}, ByLength, 0, true, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"},
		{"offer of an upgrade", Head{Status: 200, Upgrade: b("h2c")}, ByLength, 0, false, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"fields of the connection", Head{Status: 200, Fields: []Field{{b("Content-Length"), b("7")}, {b("Keep-Alive"), b("x")}, {b("Host"), b("x")}}}, ByLength, 0, false, "HTTP/1.1 200 OK\r\nHost: x\r\nContent-Length: 0\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, string(AppendResponse(nil, &c.h, c.f, c.n, c.closing))); d != "" {
				t.Error(d)
			}
		})
	}
}
