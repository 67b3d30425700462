package relay

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lastWords is how long a side that takes no more bytes is still listened to.
	lastWords = time.Second
	// farewell is how long a client that was told to go away has for its answer.
	farewell = time.Second
)

// past is a deadline that ends a wait at once.
var past = time.Unix(1, 0)

// An End is one side of a tunnel.
type End struct {
	Conn net.Conn
	// Head holds bytes that were already read from Conn. They go to the other side first.
	Head []byte
}

// A Tunnel joins two connections. It is used once.
//
// TCP and unix sockets are read without holding a buffer while nothing comes, and spliced once much does; any other
// net.Conn is copied. An end that has a CloseWrite method can be half-closed; without one, its EOF ends both directions.
//
// It keeps the deadlines of both connections while it runs, and leaves them as they are then.
type Tunnel struct {
	Client, Target End
	Idle           time.Duration // ends the tunnel when no byte moved either way for so long; 0: never
	Stall          time.Duration // bounds a write that gets nowhere; 0: as Idle
	Up, Down       *atomic.Int64 // if not nil, grow as bytes reach the target and the client
	// Sent, if not nil, is called once, when neither Head is needed any more. A tunnel that lasts then keeps no memory
	// of its caller's.
	Sent func()

	act    Activity
	frames *frames // of a WebSocket, else nil

	mu      sync.Mutex // guards all below, and the deadlines of both movers
	p       *pair      // not nil while it runs
	over    bool       // both directions are to end now
	lost    bool       // a side takes nothing more; what it has said goes out, then the tunnel is over
	done    bool
	cause   Cause
	leaving time.Duration // when to end, once the client is to be told to go away; 0: it is not
}

// never is the deadline that was not set.
const never = time.Duration(1<<63 - 1)

// pair is what a running tunnel needs and the next can use again.
type pair struct {
	up, down *mover
	running  int // directions not over, guarded by Tunnel.mu
	wg       sync.WaitGroup
}

func (p *pair) other(m *mover) *mover {
	if m == p.up {
		return p.down
	}
	return p.up
}

var pairs = sync.Pool{New: func() any { return &pair{up: newMover(), down: newMover()} }}

// Run relays until both sides are done, and closes neither: the caller does that at once, for a FIN may only go out
// then. Where a side broke off before it had said that it was done, the other connection is prepared so that its close is
// a reset. A side that breaks off after it was done is noticed when it is sent something, or as idle. The client's bytes are moved by one more goroutine, the target's by the caller's.
func (t *Tunnel) Run() Result {
	p := pairs.Get().(*pair)
	if t.begin(p) && t.sendHeads(p) {
		p.wg.Add(1)
		go t.runUp(p)
		t.runDown(p)
		p.wg.Wait()
	}
	r := t.finish(p)
	p.up.clear()
	p.down.clear()
	pairs.Put(p)
	return r
}

// Cut ends the tunnel from another goroutine, before, while or after it runs: Run returns Cut, and both sides have been
// sent a FIN. Closing the connections, or setting a past deadline on both, ends it too; but such a deadline is
// overlooked when it comes in the very moment in which the tunnel sets its own.
func (t *Tunnel) Cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.done {
		t.stop(Cut)
	}
}

// begin takes the connections over. It reports false when the tunnel was cut before it ran.
func (t *Tunnel) begin(p *pair) bool {
	client, target := rawOf(t.Client.Conn), rawOf(t.Target.Conn)
	t.act.Touch()
	p.up.start(t.Client.Conn, t.Target.Conn, client, target, t, &t.act)
	p.down.start(t.Target.Conn, t.Client.Conn, target, client, t, &t.act)
	p.up.count, p.down.count, p.running = t.Up, t.Down, 2
	if p.down.frames = t.frames; t.frames != nil {
		p.down.full = noSplice
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		if t.Sent != nil {
			t.Sent()
		}
		return false
	}
	t.p = p
	first, by, at := never, never, time.Time{}
	for _, d := range [...]time.Duration{t.Idle, t.stall()} {
		if d > 0 {
			first = min(first, d)
		}
	}
	if first != never {
		by, at = clock()+first, time.Now().Add(first)
	}
	p.up.readBy, p.up.writeBy, p.down.readBy, p.down.writeBy = by, by, by, by
	_ = t.Client.Conn.SetDeadline(at) // an error says that it is closed, as its first use will
	_ = t.Target.Conn.SetDeadline(at)
	if t.leaving != 0 {
		_ = t.Target.Conn.SetReadDeadline(past)
	}
	return true
}

func (t *Tunnel) stall() time.Duration {
	if t.Stall > 0 {
		return t.Stall
	}
	return t.Idle
}

// sendHeads sends what was read before, and reports false when that ended the tunnel.
func (t *Tunnel) sendHeads(p *pair) bool {
	m := p.up
	err := m.pass(t.Client.Head)
	if err == nil {
		m = p.down
		err = m.pass(t.Target.Head)
	}
	t.Client.Head, t.Target.Head = nil, nil
	if t.Sent != nil {
		t.Sent()
	}
	if err == nil {
		return true
	}
	t.mu.Lock()
	t.stop(t.causeOf(m, Dest, err))
	t.mu.Unlock()
	return false
}

func (t *Tunnel) runUp(p *pair) {
	side, err := p.up.run()
	t.ended(p.up, side, err)
	p.wg.Done()
}

func (t *Tunnel) runDown(p *pair) {
	side, err := p.down.run()
	t.ended(p.down, side, err)
}

// ended takes note of a direction that is over.
func (t *Tunnel) ended(m *mover, side Side, err error) {
	m.release()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p.running--
	m.ended = err == nil && !t.over && !t.lost
	if t.over || t.p.running == 0 {
		if err != nil && !t.over && !t.lost {
			t.cause = t.causeOf(m, side, err)
		}
		return
	}
	if err == nil {
		if half, ok := m.dst.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // fails only where the peer has gone, which reading from it says
			return
		}
		t.stop(EOF)
		return
	}
	cause := t.causeOf(m, side, err)
	if side == Dest && (cause == ClientReset || cause == TargetReset) {
		t.lost, t.cause = true, cause
		t.setRead(t.p.other(m), lastWords)
		return
	}
	t.stop(cause)
}

// stop makes both directions end. The caller holds mu.
func (t *Tunnel) stop(c Cause) {
	if t.over {
		return
	}
	t.over = true
	if !t.lost {
		t.cause = c
	}
	if t.p != nil {
		_ = t.Client.Conn.SetDeadline(past)
		_ = t.Target.Conn.SetDeadline(past)
	}
}

func (t *Tunnel) causeOf(m *mover, side Side, err error) Cause {
	switch {
	case errors.Is(err, ErrIdle):
		return Idle
	case errors.Is(err, ErrStall):
		return Stall
	case errors.Is(err, errCut), errors.Is(err, net.ErrClosed):
		return Cut
	case (m.src == t.Client.Conn) == (side == Source):
		return ClientReset
	}
	return TargetReset
}

// finish prepares the connections for being closed and sums up.
func (t *Tunnel) finish(p *pair) Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p, t.done = nil, true
	switch t.cause {
	case ClientReset:
		if !p.up.ended {
			reset(t.Target.Conn)
		}
	case TargetReset:
		if !p.down.ended {
			reset(t.Client.Conn)
		}
	case Cut:
		for _, c := range [...]net.Conn{t.Client.Conn, t.Target.Conn} {
			if half, ok := c.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite() // a FIN goes out even where unread bytes turn the close into a reset
			}
		}
	}
	return Result{Up: p.up.total, Down: p.down.total, Cause: t.cause}
}

// reset makes the close of c a reset.
func reset(c net.Conn) {
	if c, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0) // fails only on a closed connection
	}
}

// readExpired implements watch.
func (t *Tunnel) readExpired(m *mover) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := clock()
	switch {
	case t.over || t.lost:
		return errCut
	case t.leaving != 0 && m.frames != nil && m.frames.mayLeave():
		return errLeave
	case t.leaving != 0 && now >= t.leaving:
		return errCut
	case t.leaving != 0:
		t.setRead(m, t.leaving-now)
		return nil
	case now < m.readBy:
		return errCut // somebody else's deadline
	case t.Idle <= 0:
		m.readBy = never
		_ = m.src.SetReadDeadline(time.Time{})
		return nil
	}
	left := t.Idle - t.act.Quiet()
	if left <= 0 {
		seen := max(t.p.up.look(now, t.Idle), t.p.down.look(now, t.Idle))
		if left = seen.wait(t.Idle); left == 0 {
			return ErrIdle
		}
	}
	t.setRead(m, left)
	return nil
}

// writeExpired implements watch.
func (t *Tunnel) writeExpired(m *mover) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := clock()
	if t.over || now < m.writeBy {
		return errCut
	}
	left := t.stall() - (now - m.last)
	if left <= 0 {
		if left = m.look(now, t.stall()).wait(t.stall()); left == 0 {
			return ErrStall
		}
	}
	m.writeBy = now + left
	_ = m.dst.SetWriteDeadline(time.Now().Add(left))
	return nil
}

// setRead sets the deadline of a direction's source. The caller holds mu.
func (t *Tunnel) setRead(m *mover, d time.Duration) {
	m.readBy = clock() + d
	_ = m.src.SetReadDeadline(time.Now().Add(d))
}
