package relay

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// Upgraded is a connection after 101 (or its like), seen from outside: its clocks and the ways to end it. It is used
// once and may not be copied.
type Upgraded struct {
	WebSocket bool          // GoAway may speak RFC 6455 to the client
	Idle      time.Duration // as in Tunnel
	Stall     time.Duration
	Up, Down  *atomic.Int64 // as in Tunnel

	t      Tunnel
	frames frames
}

// Both relays an upgraded connection until both sides are done: client and toClient are what Answer.Switch gave, target
// and toTarget what the target's stream did. Raw ones become a Tunnel; the others are copied through. No sink need be
// closed afterwards, but both connections must.
func Both(client wire.Body, toClient wire.Sink, target wire.Body, toTarget wire.Sink, u *Upgraded) Result {
	t := &u.t
	t.Idle, t.Stall, t.Up, t.Down = u.Idle, u.Stall, u.Up, u.Down
	if u.WebSocket {
		t.frames = &u.frames
	}
	t.Client = endOf(client, toClient, t.stall())
	t.Target = endOf(target, toTarget, t.stall())
	return t.Run()
}

// Cut ends the connection from another goroutine, as Tunnel.Cut does.
func (u *Upgraded) Cut() { u.t.Cut() }

// GoAway ends the connection politely, from another goroutine and at any time: the client of a WebSocket gets a close
// frame with 1001 between two frames of the target, and nothing after it; its answer still reaches the target. What is
// not over a second later is cut. What is no WebSocket is cut at once.
func (u *Upgraded) GoAway() {
	if !u.WebSocket {
		u.Cut()
		return
	}
	t := &u.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done || t.leaving != 0 {
		return
	}
	t.leaving = clock() + farewell
	u.frames.leave.Store(true)
	if t.p != nil {
		_ = t.Target.Conn.SetReadDeadline(past) // wakes the direction that has to speak
		_ = t.Client.Conn.SetReadDeadline(time.Now().Add(farewell))
	}
}

func endOf(b wire.Body, s wire.Sink, stall time.Duration) End {
	if _, ok := s.Raw(); ok {
		if c, head, n, ok := b.Raw(); ok && n < 0 {
			return End{Conn: c, Head: head}
		}
	}
	return End{Conn: &stream{body: b, sink: s, stall: stall}}
}

// A stream makes a Body and a Sink a connection. Both must end a wait when another goroutine sets a past deadline.
type stream struct {
	net.Conn // nil: the methods below are all that is called
	body     wire.Body
	sink     wire.Sink
	stall    time.Duration
	cut      atomic.Bool
}

// Await waits for something to read without a buffer, where the body knows how.
func (s *stream) Await() error {
	if w, ok := s.body.(awaiter); ok {
		return w.Await()
	}
	return nil
}

func (s *stream) Read(p []byte) (int, error) { return s.body.Read(p) }

// Write sends p at once. What a sink did not take in time it never takes.
func (s *stream) Write(p []byte) (int, error) {
	if s.stall > 0 {
		s.sink.Deadline(time.Now().Add(s.stall))
	}
	if s.cut.Load() {
		s.sink.Deadline(past)
	}
	n, err := s.sink.Write(p)
	if err == nil {
		err = s.sink.Flush()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = ErrStall
	}
	return n, err
}

func (s *stream) CloseWrite() error { return s.sink.Close(nil) }

// SetLinger resets the message in place of the connection, which is not ours.
func (s *stream) SetLinger(int) error {
	s.sink.Reset(errors.New("the other side broke off"))
	return nil
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.body.Deadline(t)
	return nil
}

// SetWriteDeadline only takes orders to end: the time a write may last is counted from its start.
func (s *stream) SetWriteDeadline(t time.Time) error {
	if t == past {
		s.cut.Store(true)
		s.sink.Deadline(past)
	}
	return nil
}

func (s *stream) SetDeadline(t time.Time) error {
	_ = s.SetWriteDeadline(t)
	return s.SetReadDeadline(t)
}
