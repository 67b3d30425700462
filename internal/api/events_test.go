package api

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEvents_LastAndNew(t *testing.T) {
	m := newMachine()
	c, _ := onSocket(t, m)
	for _, kind := range []string{"one", "two", "three"} {
		m.events.Add(Event{Time: began, Kind: kind})
	}
	var got []string
	err := c.Events(context.Background(), 2, func(e Event) bool {
		got = append(got, e.Kind)
		if len(got) == 2 {
			m.events.Add(Event{Kind: "four"}) // while somebody listens
		}
		return len(got) < 3
	})
	if want := []string{"two", "three", "four"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v", got, err)
	}
}

func TestEvents_ResumeBehindTheLastOne(t *testing.T) {
	m := newMachine()
	c, _ := onSocket(t, m)
	m.events.Add(Event{Kind: "one"})
	m.events.Add(Event{Kind: "two"})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://localhost/v1/events", nil)
	req.Header.Set("Last-Event-ID", "1")
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := make([]byte, 200)
	n, _ := resp.Body.Read(b)
	if got := string(b[:n]); !strings.HasPrefix(got, "id: 2\nevent: two\ndata: {\"id\":2,") || !strings.HasSuffix(got, "}\n\n") {
		t.Errorf("%q", got)
	}
}

func TestEvents_StreamsAreBounded(t *testing.T) {
	m := newMachine()
	c, _ := onSocket(t, m)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range maxStreams {
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://localhost/v1/events", nil)
		resp, err := c.http.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		defer resp.Body.Close()
	}
	if got := c.raw(t, "GET", "/v1/events", ""); got.status != 503 {
		t.Errorf("one more than %d streams: %d", maxStreams, got.status)
	}
	if got := c.raw(t, "GET", "/v1/status", ""); got.status != 200 {
		t.Errorf("status beside full streams: %d", got.status)
	}
}

// C20 in small: what is open when the end comes is finished, streams say what happened, and nothing is left.
func TestClose_FinishesAnswersAndEndsStreams(t *testing.T) {
	m := newMachine()
	m.scrape = make(chan struct{})
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a := New(m.options())
	served := make(chan error)
	go func() { served <- a.Serve(l, Socket) }()
	c := NewClient(path)
	defer c.Close()

	started := make(chan *http.Response)
	go func() {
		resp, _ := c.http.Get("http://localhost/metrics")
		started <- resp
	}()
	scrape := <-started // its first line is there, the second is held back
	defer scrape.Body.Close()

	heard := make(chan []string)
	m.events.Add(Event{Kind: "listening"})
	listening := make(chan struct{})
	go func() {
		var kinds []string
		_ = c.Events(context.Background(), 1, func(e Event) bool {
			kinds = append(kinds, e.Kind)
			if e.Kind == "listening" {
				close(listening)
			}
			return true
		})
		heard <- kinds
	}()
	<-listening
	m.events.Add(Event{Kind: "drain.cut"})
	closed := make(chan error)
	go func() { closed <- a.Close(context.Background()) }()
	if got := <-heard; !slices.Equal(got, []string{"listening", "drain.cut"}) {
		t.Errorf("the stream said %v", got)
	}
	select {
	case err := <-closed:
		t.Fatal("closed before the scrape was out:", err)
	default:
	}
	close(m.scrape)
	if text, err := io.ReadAll(scrape.Body); err != nil || string(text) != "up 1\ndown 0\n" {
		t.Errorf("the scrape got %q, %v", text, err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := c.Get(context.Background(), "/v1/status", nil); err == nil {
		t.Error("still answering")
	}
}

func TestClose_CutsWhatOutlivesItsTime(t *testing.T) {
	m := newMachine()
	m.scrape = make(chan struct{})
	defer close(m.scrape)
	path := filepath.Join(t.TempDir(), "a.sock")
	l, _ := net.Listen("unix", path)
	a := New(m.options())
	served := make(chan error)
	go func() { served <- a.Serve(l, Socket) }()
	c := NewClient(path)
	defer c.Close()
	resp, err := c.http.Get("http://localhost/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if a.Close(ctx) == nil {
		t.Error("no word of the answer that was cut")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestServe_EndsWhenTheOwnerClosesTheListener(t *testing.T) {
	m := newMachine()
	a := New(m.options())
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error)
		go func() { served <- a.Serve(l, Metrics) }()
		if got := get(t, "GET", l.Addr().String(), "/metrics", nil).StatusCode; got != 200 {
			t.Errorf("%d", got)
		}
		l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	if n := len(a.serving.servers); n != 0 {
		t.Errorf("%d servers are still known", n)
	}
	if err := a.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
