package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

const hello = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"

// switching is a target that switches and then echoes what it gets.
func switching(t *testing.T, answer string) string {
	return rawTarget(t, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") || req.Header.Get("Sec-Websocket-Key") != "x" {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			return
		}
		_, _ = io.WriteString(c, answer)
		_, _ = io.Copy(c, r)
	})
}

const switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n"

func TestUpgradeCarriesBytesBothWays(t *testing.T) {
	w := forwardTo(switching(t, switched+"early"))
	w.timeouts.Idle = time.Minute
	h := build(t, w)
	c := h.dial()
	c.say(hello)
	res := c.head("GET")
	if res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" || res.Header.Get("Sec-Websocket-Accept") != "y" {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	c.say("ping")
	got := make([]byte, 9)
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != "earlyping" {
		t.Fatalf("%q %v", got, err)
	}
	_ = c.Conn.(*net.TCPConn).CloseWrite()
	if _, err := c.r.ReadByte(); err != io.EOF {
		t.Fatalf("the end is %v", err)
	}
	if rec := h.record(); rec.Status != 101 || rec.In != 4 || rec.Out != 9 || rec.Reason != "" {
		t.Fatalf("record %+v", rec)
	}
	if in, out := h.route.BytesIn().Load(), h.route.BytesOut().Load(); in != 4 || out != 9 {
		t.Fatalf("counted %d in, %d out", in, out)
	}
}

func TestUpgradeRefusalsAreOrdinaryAnswers(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(403)
		_, _ = io.WriteString(w, "no")
	})
	h := build(t, forwardTo(tg.URL))
	c := h.dial()
	for range 2 {
		c.say(hello)
		if a := c.answer("GET"); a.StatusCode != 403 || a.body != "no" {
			t.Fatalf("%d %q", a.StatusCode, a.body)
		}
	}
}

func TestUpgradeToAnythingButWebSocketIsDropped(t *testing.T) {
	for name, request := range map[string]string{
		"h2c":       "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		"other":     "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n",
		"several":   "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c, websocket\r\n\r\n",
		"unnamed":   "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
		"POST":      "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
		"with body": "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
	} {
		tg := newTarget(t, nil)
		h := build(t, forwardTo(tg.URL))
		c := h.dial()
		c.say(request)
		if a := c.answer("GET"); a.StatusCode != 200 {
			t.Errorf("%s: %d", name, a.StatusCode)
		}
		if r := tg.last(t); r.Header.Get("Upgrade") != "" || r.Header.Get("Connection") != "" || r.Header.Get("Http2-Settings") != "" {
			t.Errorf("%s: the target saw %v", name, r.Header)
		}
	}
}

func TestUpgradeToAnotherProtocolThanAskedForIsRefused(t *testing.T) {
	h := build(t, forwardTo(switching(t, strings.Replace(switched, "websocket", "tcp", 1))))
	c := h.dial()
	c.say(hello + "raw bytes that came too early")
	if a := c.answer("GET"); a.StatusCode != 502 {
		t.Fatalf("%d %q", a.StatusCode, a.body)
	}
}

func TestUpgradeSendsNothingRawBeforeThe101(t *testing.T) {
	early := make(chan string, 1)
	addr := rawTarget(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		got, _ := io.ReadAll(r)
		early <- string(got)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, switched)
		_, _ = io.CopyN(c, r, 5)
	})
	h := build(t, forwardTo(addr))
	c := h.dial()
	c.say(hello + "early")
	if res := c.head("GET"); res.StatusCode != 101 {
		t.Fatalf("%d", res.StatusCode)
	}
	if got := <-early; got != "" {
		t.Fatalf("the target got %q before it had switched", got)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != "early" {
		t.Fatalf("%q %v", got, err)
	}
}

func TestUpgradeEndsWhenIdle(t *testing.T) {
	w := forwardTo(switching(t, switched))
	w.timeouts.Idle = 100 * time.Millisecond
	h := build(t, w)
	c := h.dial()
	c.say(hello)
	c.head("GET")
	if _, err := c.r.ReadByte(); err == nil {
		t.Fatal("a byte out of nothing")
	}
	if rec := h.record(); rec.Reason != "idle" {
		t.Fatalf("record %+v", rec)
	}
}

func TestUpgradeSaysFarewell(t *testing.T) {
	var conn *wire.ConnInfo
	h := build(t, forwardTo(switching(t, switched+"\x81\x02hi")))
	h.before = func(ex *wire.Exchange) { conn = ex.Conn }
	c := h.dial()
	c.say(hello)
	c.head("GET")
	got := make([]byte, 4)
	if _, err := io.ReadFull(c.r, got); err != nil {
		t.Fatal(err)
	}
	bye := conn.Farewell.Load()
	if bye == nil || wire.ConnState(conn.State.Load()) != wire.Tunneling {
		t.Fatal("the connection cannot be told to end")
	}
	(*bye)()
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != "\x88\x02\x03\xe9" {
		t.Fatalf("%q %v", got, err)
	}
	h.record()
	if conn.Farewell.Load() != nil {
		t.Fatal("the farewell outlived the exchange")
	}
}
