package http1

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

func TestGoneTellsOfAReset(t *testing.T) {
	began, gone := make(chan struct{}), make(chan struct{})
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		stop := ex.Out.Gone(func() { close(gone) })
		close(began)
		<-gone
		stop()
		stop()
	}})
	k.say(get)
	<-began
	_ = k.c.SetLinger(0)
	_ = k.c.Close()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("nobody noticed")
		close(gone)
	}
	<-k.over
}

func TestGoneTellsOfAResetBehindAHalfClose(t *testing.T) {
	began, gone := make(chan struct{}), make(chan struct{})
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		stop := ex.Out.Gone(func() { close(gone) })
		close(began)
		<-gone
		stop()
	}})
	k.say(get)
	<-began
	_ = k.c.CloseWrite()
	_ = k.c.SetLinger(0)
	_ = k.c.Close()
	<-gone
	<-k.over
}

func TestWatchedConnectionServesOn(t *testing.T) {
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		stop := ex.Out.Gone(func() { t.Error("nobody is gone") })
		echo(ex)
		if string(ex.Req.Target) == "/a" {
			stop() // else it is left to Serve
		}
	}})
	for range 3 {
		k.say(get + "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
		k.want("GET", 200, "GET /a ")
		body := strings.Repeat("x", 100_000)
		k.say(body)
		k.want("POST", 200, "POST /b "+body)
	}
}

func TestStatesOfAConnection(t *testing.T) {
	inside, on := make(chan struct{}), make(chan struct{})
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		inside <- struct{}{}
		<-on
		echo(ex)
	}})
	await := func(want wire.ConnState) {
		t.Helper()
		for wire.ConnState(k.info.State.Load()) != want {
			runtime.Gosched()
		}
	}
	await(wire.Idle)
	for range 2 {
		k.say(get)
		<-inside
		await(wire.Busy)
		on <- struct{}{}
		k.want("GET", 200, "GET /a ")
		await(wire.Idle)
	}
}

func TestIdleConnectionEndsWithKeepAlive(t *testing.T) {
	var asked atomic.Int32
	k := serve(t, Options{Handle: echo, Settings: func() Settings {
		asked.Add(1)
		return Settings{KeepAlive: 600 * time.Millisecond}
	}})
	for range 3 { // the deadline of one idle time does not cut the next
		wait := time.NewTimer(350 * time.Millisecond)
		<-wait.C
		k.say(get)
		k.want("GET", 200, "GET /a ")
	}
	began := time.Now()
	k.ends()
	if d := time.Since(began); d < 500*time.Millisecond || d > 10*time.Second {
		t.Errorf("ended after %v", d)
	}
	if k.err != nil {
		t.Error(k.err)
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("settings were asked for %d times", n)
	}
}

func TestDrainingConnections(t *testing.T) {
	var draining atomic.Bool
	options := Options{Handle: echo, Leaving: draining.Load, Draining: draining.Load}
	t.Run("the next answer says close", func(t *testing.T) {
		k := serve(t, options)
		k.say(get)
		k.want("GET", 200, "GET /a ")
		draining.Store(true)
		k.say(get)
		if r := k.want("GET", 200, "GET /a "); !r.Close {
			t.Error("the answer does not say close")
		}
		k.ends()
	})
	t.Run("an idle one ends after the deadline that the drain set", func(t *testing.T) {
		draining.Store(false)
		k := serve(t, options)
		k.say(get)
		k.want("GET", 200, "GET /a ")
		for wire.ConnState(k.info.State.Load()) != wire.Idle {
			runtime.Gosched()
		}
		draining.Store(true)
		_ = k.s.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		k.ends()
		if k.err != nil {
			t.Error(k.err)
		}
	})
	t.Run("one without a byte ends after a second", func(t *testing.T) {
		draining.Store(true)
		began := time.Now()
		serve(t, options).ends()
		if d := time.Since(began); d < 900*time.Millisecond || d > 10*time.Second {
			t.Errorf("ended after %v", d)
		}
	})
	t.Run("a request that is being sent is taken", func(t *testing.T) {
		draining.Store(false)
		patient := options
		patient.Settings = func() Settings { return Settings{RequestHeader: time.Hour, KeepAlive: time.Minute} }
		k := serve(t, patient)
		for wire.ConnState(k.info.State.Load()) != wire.Idle {
			runtime.Gosched()
		}
		draining.Store(true)
		_ = k.s.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		k.say(get[:10])
		wait := time.NewTimer(500 * time.Millisecond)
		<-wait.C
		k.say(get[10:])
		k.want("GET", 200, "GET /a ")
		k.ends()
	})
}

func TestDeadlineInThePastEndsABusyConnection(t *testing.T) {
	reading := make(chan struct{})
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		ex.Body.Deadline(time.Now().Add(time.Hour)) // later than the connection's, which stays
		close(reading)
		_, err := ex.Body.Read(make([]byte, 1))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	}})
	k.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
	<-reading
	_ = k.s.SetDeadline(time.Unix(1, 0))
	<-k.over
}

// plainConn hides that a connection is a socket.
type plainConn struct{ net.Conn }

func TestConnectionThatIsNoSocketIsServedToo(t *testing.T) {
	c, s := pair(t)
	over := make(chan error)
	go func() {
		over <- Serve(plainConn{s}, new(wire.ConnInfo), nil, &Options{Handle: echo, Settings: settings})
		_ = s.Close()
	}()
	r := bufio.NewReader(c)
	for range 3 {
		if _, err := io.WriteString(c, get); err != nil {
			t.Fatal(err)
		}
		a, err := http.ReadResponse(r, nil)
		if err != nil || a.StatusCode != 200 {
			t.Fatal(a, err)
		}
		if _, err := io.ReadAll(a.Body); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Close()
	if err := <-over; err != nil {
		t.Error(err)
	}
}

func TestBodyHandedOverRaw(t *testing.T) {
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		c, head, n, ok := ex.Body.Raw()
		if !ok {
			t.Error("not handed over")
			return
		}
		if string(ex.Req.Target) == "/spoil" {
			ex.Body.(interface{ Spoil() }).Spoil()
			say(ex, 502, "")
			return
		}
		rest := make([]byte, n-int64(len(head)))
		if _, err := io.ReadFull(c, rest); err != nil {
			t.Error(err)
		}
		_ = c.SetReadDeadline(time.Unix(1, 0)) // what its user leaves behind is not known
		say(ex, 200, string(head)+string(rest))
	}})
	for range 2 {
		k.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
		k.say("world")
		k.want("POST", 200, "helloworld")
	}
	k.say("POST /spoil HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
	k.want("POST", 502, "")
	k.ends()
}

func TestGoneTellsThatTheConnectionIsBeingEnded(t *testing.T) {
	began, gone := make(chan struct{}), make(chan struct{})
	k := serve(t, Options{Handle: func(ex *wire.Exchange) {
		stop := ex.Out.Gone(func() { close(gone) })
		close(began)
		<-gone
		stop()
	}})
	k.say(get)
	<-began
	over := make(chan struct{})
	go func() { // until the watcher waits, its own start takes a deadline off again
		defer close(over)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-gone:
				return
			case <-tick.C:
				_ = k.s.SetReadDeadline(time.Unix(1, 0))
			}
		}
	}()
	<-over
	_ = k.c.Close()
	<-k.over
}
