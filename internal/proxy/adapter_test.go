package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func inside(t *testing.T, f http.HandlerFunc) *house {
	return build(t, &wish{action: plan.Internal{Name: "test"}, internal: f})
}

func TestInternalHandlersSeeTheRequest(t *testing.T) {
	h := inside(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		w.Header().Add("X-A", "1")
		w.Header().Add("X-A", "2\r\nX-Evil: 1")
		w.Header().Set("Transfer-Encoding", "chunked")
		w.Header().Set("Bad Name", "1")
		w.WriteHeader(202)
		_, _ = fmt.Fprint(w, r.Method, r.URL.Path, r.URL.RawQuery, r.Host, r.Header.Get("X-B"), r.ContentLength, string(body), err)
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprint(w, host)
	})
	c := h.dial()
	for _, body := range []string{"Content-Length: 2\r\n\r\nhi", "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"} {
		n := "2"
		if strings.Contains(body, "chunked") {
			n = "-1"
		}
		c.say("POST /a%20b?q=1 HTTP/1.1\r\nHost: h:1\r\nX-B: b\r\n" + body)
		a := c.answer("POST")
		if a.StatusCode != 202 || a.body != "POST/a bq=1h:1b"+n+"hi<nil>127.0.0.1" || a.ContentLength < 1 ||
			strings.Join(a.Header["X-A"], "|") != "1|2X-Evil: 1" || a.Header.Get("X-Evil") != "" || a.Header.Get("Date") == "" ||
			!strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("%d %v %q", a.StatusCode, a.Header, a.body)
		}
		if rec := h.record(); rec.In != 2 || rec.Out != a.ContentLength || rec.Status != 202 {
			t.Errorf("record %+v", rec)
		}
	}
}

func TestInternalAnswersAreFramed(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 3*holdBack)
	h := inside(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/nothing":
		case "/big":
			_, _ = w.Write(big[:holdBack])
			_, _ = w.Write(big[holdBack:])
		case "/announced":
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			_, _ = w.Write(big)
			if _, err := w.Write([]byte("more")); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("too much: %v", err)
			}
		case "/short":
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write([]byte("x"))
		case "/304":
			w.WriteHeader(304)
			if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("304 with a body: %v", err)
			}
		case "/copy":
			_, _ = io.Copy(w, bytes.NewReader(big))
		}
	})
	for target, want := range map[string]int{"/nothing": 0, "/big": len(big), "/announced": len(big), "/304": 0, "/copy": len(big)} {
		c := h.dial()
		for _, method := range []string{"GET", "HEAD"} {
			c.say(method + " " + target + " HTTP/1.1\r\nHost: a\r\n\r\n")
			a := c.answer(method)
			if method == "GET" && len(a.body) != want || method == "HEAD" && a.body != "" {
				t.Errorf("%s %s: %d bytes", method, target, len(a.body))
			}
		}
	}
	c := h.dial()
	c.say("GET /short HTTP/1.1\r\nHost: a\r\n\r\n")
	if a := c.answer("GET"); a.StatusCode != 500 {
		t.Errorf("an answer that is too short: %d", a.StatusCode)
	}
}

func TestInternalStreams(t *testing.T) {
	next := make(chan struct{})
	h := inside(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.Flush(); err != nil {
			t.Errorf("flush: %v", err)
		}
		<-next
		_, _ = io.WriteString(w, "data\n")
		_ = rc.Flush()
		<-next
	})
	c := h.dial()
	c.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	res := c.head("GET")
	next <- struct{}{}
	got := make([]byte, 5)
	if _, err := io.ReadFull(res.Body, got); err != nil {
		t.Fatal(err)
	}
	close(next)
}

func TestInternalHandlersHearThatTheClientLeft(t *testing.T) {
	started, ended := make(chan struct{}), make(chan error, 1)
	h := inside(t, func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
		ended <- r.Context().Err()
	})
	c := h.dial()
	c.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-started
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the handler was not told")
	}
	h.record()
}

func TestInternalPanicsEndTheExchangeOnly(t *testing.T) {
	var log bytes.Buffer
	w := &wish{action: plan.Internal{Name: "test"}, log: slog.New(slog.NewTextHandler(&log, nil))}
	w.internal = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			_, _ = w.Write([]byte("begun"))
			w.(http.Flusher).Flush()
		}
		if r.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
		panic("secret")
	})
	h := build(t, w)
	if a := h.ask("GET", "/"); a.StatusCode != 500 || strings.Contains(a.body, "secret") {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	h.record()
	if !strings.Contains(log.String(), "secret") {
		t.Fatal("the panic is not logged")
	}
	c := h.dial()
	c.say("GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
	if _, err := io.ReadAll(c.head("GET").Body); err == nil {
		t.Fatal("half an answer looks whole")
	}
	h.record()
	log.Reset()
	h.ask("GET", "/abort")
	if h.record(); log.Len() > 0 {
		t.Fatalf("an abort is logged: %s", log.String())
	}
}

func TestInternalBodiesAreBounded(t *testing.T) {
	w := &wish{action: plan.Internal{Name: "test"}}
	w.security.MaxBody = 4
	w.internal = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		var most *http.MaxBytesError
		if errors.As(err, &most) {
			w.WriteHeader(413)
		}
	})
	h := build(t, w)
	for body, want := range map[string]int{"Content-Length: 5\r\n\r\nhello": 413, "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n": 413, "Content-Length: 4\r\n\r\nhell": 200} {
		c := h.dial()
		c.say("POST / HTTP/1.1\r\nHost: a\r\n" + body)
		if a := c.answer("POST"); a.StatusCode != want {
			t.Errorf("%q: %d", body, a.StatusCode)
		}
	}
}

func TestInternalUnknownIsNotFound(t *testing.T) {
	h := build(t, &wish{action: plan.Internal{Name: "nobody"}})
	if a := h.ask("GET", "/"); a.StatusCode != 404 || h.record().Detail == "" {
		t.Fatalf("%d", a.StatusCode)
	}
}
