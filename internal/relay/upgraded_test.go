package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// switched gives Body and Sink of a connection after 101.
func switched(t testing.TB, c net.Conn, read string) (wire.Body, wire.Sink) {
	body, sink := new(wire.BodyReader), new(wire.BodyWriter)
	buf := wire.GetBuffer()
	t.Cleanup(buf.Put)
	buf.Append([]byte(read))
	body.Reset(c, buf, wire.ByClose, -1, nil)
	sink.Start(c, nil, wire.ByClose, -1)
	return body, sink
}

type upgrade struct {
	client, target net.Conn
	u              *Upgraded
	result         chan Result
}

// roads are the networks a client and a target may be on.
var roads = [][2]string{
	{"tcp", "tcp"}, {"tcp", "unix"}, {"tls13", "tcp"}, {"tls12", "tcp"}, {"tcp", "tls13"}, {"tcp", "tls12"}, {"tls13", "tls13"}, {"tls12", "tls12"},
}

// onEachRoad runs f as a test for every one of them.
func onEachRoad(t *testing.T, f func(t *testing.T, client, target string)) {
	for _, r := range roads {
		t.Run(r[0]+" to "+r[1], func(t *testing.T) { f(t, r[0], r[1]) })
	}
}

func upgraded(t testing.TB, clientNet, targetNet string, u *Upgraded, early string) *upgrade {
	up := &upgrade{u: u, result: make(chan Result, 1)}
	var near, far net.Conn
	up.client, near = pairOf(t, clientNet)
	up.target, far = pairOf(t, targetNet)
	cb, cs := switched(t, near, early)
	tb, ts := switched(t, far, "")
	go func() {
		r := Both(cb, cs, tb, ts, u)
		near.Close()
		far.Close()
		up.result <- r
	}()
	return up
}

func (up *upgrade) wait(t testing.TB) Result {
	t.Helper()
	select {
	case r := <-up.result:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("the connection does not end")
	}
	panic("unreachable")
}

func TestUpgradedEchoAndHalfClose(t *testing.T) {
	onEachRoad(t, func(t *testing.T, client, target string) {
		up := upgraded(t, client, target, &Upgraded{Idle: time.Minute}, "early ")
		send(t, up.client, "up")
		expect(t, up.target, "early up")
		send(t, up.target, "down")
		expect(t, up.client, "down")
		up.client.(interface{ CloseWrite() error }).CloseWrite()
		expectEOF(t, up.target)
		send(t, up.target, "rest")
		expect(t, up.client, "rest")
		up.target.Close()
		expectEOF(t, up.client)
		if r, want := up.wait(t), (Result{8, 8, EOF}); r != want {
			t.Fatalf("%+v, want %+v", r, want)
		}
	})
}

func TestUpgradedEndsFromOutside(t *testing.T) {
	for name, end := range map[string]func(*Upgraded){"cut": (*Upgraded).Cut, "go away": (*Upgraded).GoAway} {
		onEachRoad(t, func(t *testing.T, client, target string) {
			t.Log(name)
			up := upgraded(t, client, target, &Upgraded{Idle: time.Hour}, "")
			send(t, up.client, "x")
			expect(t, up.target, "x")
			end(up.u)
			if r := up.wait(t); r.Cause != Cut {
				t.Fatal(r)
			}
		})
	}
}

func TestUpgradedIdle(t *testing.T) {
	onEachRoad(t, func(t *testing.T, client, target string) {
		t.Parallel()
		const idle = 500 * time.Millisecond
		up := upgraded(t, client, target, &Upgraded{Idle: idle, WebSocket: true}, "")
		for range 10 {
			<-time.After(idle / 7)
			send(t, up.client, "x")
			expect(t, up.target, "x")
		}
		if r := up.wait(t); r.Cause != Idle {
			t.Fatal(r)
		}
	})
}

func TestUpgradedResetGoesThrough(t *testing.T) {
	onEachRoad(t, func(t *testing.T, client, target string) {
		up := upgraded(t, client, target, &Upgraded{Idle: time.Hour}, "")
		send(t, up.client, "x")
		expect(t, up.target, "x")
		under(up.client).SetLinger(0)
		under(up.client).Close()
		if r := up.wait(t); r.Cause != ClientReset {
			t.Fatal(r)
		}
	})
}

// serverFrame is an unmasked frame.
func serverFrame(op byte, payload []byte) []byte {
	b := []byte{0x80 | op}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

func TestFramesEndWhereTheyEnd(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 300 {
		var all []byte
		ends := map[int]bool{0: true}
		for range 1 + r.Intn(5) {
			size := []int{0, 1, 125, 126, 127, 300, 65535, 65536, 70000}[r.Intn(9)]
			all = append(all, serverFrame(2, make([]byte, size))...)
			ends[len(all)] = true
		}
		var f frames
		for at := 0; at < len(all); {
			n := min(1+r.Intn(40000), len(all)-at)
			if r.Intn(3) == 0 {
				n = min(1+r.Intn(8), len(all)-at)
			}
			if got := f.walk(all[at:at+n], false); got != n {
				t.Fatal("walked", got, "of", n)
			}
			at += n
			if f.mayLeave() != ends[at] {
				t.Fatalf("at %d of %v: mayLeave is %v", at, ends, f.mayLeave())
			}
		}
	}
}

func TestC02_GoAwayBetweenFrames(t *testing.T) {
	onEachRoad(t, func(t *testing.T, client, target string) {
		up := upgraded(t, client, target, &Upgraded{WebSocket: true, Idle: time.Hour}, "")
		frame := serverFrame(2, bytes.Repeat([]byte("x"), 300))
		up.target.Write(frame[:100])
		expect(t, up.client, string(frame[:100]))
		up.u.GoAway()
		up.u.GoAway()
		up.client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := up.client.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Fatal("something came in the middle of a frame")
		}
		up.target.Write(append(frame[100:], serverFrame(1, []byte("too late"))...))
		expect(t, up.client, string(frame[100:])+string(goingAway))
		send(t, up.client, "answer")
		expect(t, up.target, "answer")
		up.target.Close()
		expectEOF(t, up.client)
		up.client.Close()
		if r := up.wait(t); r.Cause != EOF {
			t.Fatal(r)
		}
	})
}

func TestC02_SilentClientIsCutASecondAfterGoAway(t *testing.T) {
	up := upgraded(t, "tcp", "tcp", &Upgraded{WebSocket: true, Idle: time.Hour}, "")
	send(t, up.client, "x")
	expect(t, up.target, "x")
	start := time.Now()
	up.u.GoAway()
	expect(t, up.client, string(goingAway))
	expectEOF(t, up.client)
	if r := up.wait(t); r.Cause != Cut {
		t.Fatal(r)
	}
	if d := time.Since(start); d < farewell/2 || d > 3*farewell {
		t.Errorf("cut after %v", d)
	}
}

func TestGoAwayBeforeItBegins(t *testing.T) {
	u := &Upgraded{WebSocket: true, Idle: time.Hour}
	u.GoAway()
	up := upgraded(t, "tcp", "tcp", u, "")
	expect(t, up.client, string(goingAway))
	up.client.Close()
	up.target.Close()
	up.wait(t)
}

func TestNoSecondCloseFrame(t *testing.T) {
	up := upgraded(t, "tcp", "tcp", &Upgraded{WebSocket: true, Idle: time.Hour}, "")
	bye := serverFrame(opClose, []byte{0x03, 0xe8})
	up.target.Write(bye)
	expect(t, up.client, string(bye))
	up.u.GoAway()
	expectEOF(t, up.client)
	up.wait(t)
}

// A real client in the middle of a conversation reads every message that was begun, then status 1001.
func TestC02_RealClientSees1001(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &Upgraded{WebSocket: true, Idle: time.Minute}
	over := make(chan Result, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		go func() {
			for range 1 << 20 {
				if c.Write(context.Background(), websocket.MessageBinary, make([]byte, 70000)) != nil {
					return
				}
			}
		}()
		c.Read(context.Background())
	}))
	go func() {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			return
		}
		cb, cs := switched(t, near, "")
		tb, ts := switched(t, far, "")
		// The handshake goes through as well: its bytes look like frames to nobody, so let it pass first.
		head := make([]byte, 64<<10)
		n, _ := near.Read(head)
		far.Write(head[:n])
		n = 0
		for !bytes.Contains(head[:n], []byte("\r\n\r\n")) {
			k, err := far.Read(head[n : n+1])
			if err != nil {
				return
			}
			n += k
		}
		near.Write(head[:n])
		over <- Both(cb, cs, tb, ts, u)
		near.Close()
		far.Close()
	}()
	c, _, err := websocket.Dial(context.Background(), "ws://"+l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(1 << 20)
	for i := 0; ; i++ {
		if i == 20 {
			u.GoAway()
		}
		_, b, err := c.Read(context.Background())
		if err != nil {
			if websocket.CloseStatus(err) != websocket.StatusGoingAway {
				t.Fatal(err)
			}
			break
		}
		if len(b) != 70000 {
			t.Fatal("a message of", len(b))
		}
	}
	c.CloseNow()
	l.Close()
	<-over
	server.Close()
	http.DefaultClient.CloseIdleConnections()
}
