package pools

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

const (
	maxFields   = 256 // of an answer's head
	maxInterims = 64  // 1xx heads before one final answer
	maxScratch  = 64 << 10
)

// A Stream is one exchange with a target. The zero Stream is ready for Pool.Open; after Close it may be opened again.
// One goroutine opens, receives and closes it; the sink may be used by another. Only Abort may be called by anybody.
type Stream struct {
	mu      sync.Mutex // guards the four below, which Abort needs
	aborted bool
	nc      net.Conn           // while there is a connection
	cancel  context.CancelFunc // while dialling
	wake    chan struct{}      // while queueing

	p *Pool
	m *Member
	c *conn

	reused   bool
	method   []byte // of the request
	upgrade  bool   // the request asks for an upgrade
	began    bool   // a byte of the answer came
	answered bool   // the final head came
	ends     bool   // the target closes after this answer
	switched bool
	from     int // where the parser of the head goes on
	took     int // length of the interim head still in the buffer
	interims int
	bodyless bool // the request has no body
	stale    bool
	target   string // for people
	cookie   []byte
	fault    string // what the target did wrong; counts for passive health
}

// Abort ends whatever the Stream does or is about to do: queueing, dialling, sending and receiving return at once with
// an error. It may be called from any goroutine from before Open until Close has returned; a call after that would hit
// the Stream's next use.
func (s *Stream) Abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = true
	if s.nc != nil {
		_ = s.nc.Close()
	}
	if s.cancel != nil {
		s.cancel()
	}
	if s.wake != nil {
		close(s.wake)
		s.wake = nil
	}
}

// Aborted reports whether Abort was called since the last Close.
func (s *Stream) Aborted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aborted
}

// attach gives an opening Stream its connection; false when it was aborted meanwhile.
func (s *Stream) attach(p *Pool, m *Member, c *conn, reused bool, cookie []byte) bool {
	s.mu.Lock()
	if s.aborted {
		s.mu.Unlock()
		return false
	}
	s.nc = c.socket()
	s.mu.Unlock()
	s.p, s.m, s.c, s.reused, s.cookie = p, m, c, reused, cookie
	s.upgrade, s.bodyless, s.began, s.answered, s.ends, s.switched = false, false, false, false, false, false
	s.from, s.took, s.interims, s.fault, s.stale = 0, 0, 0, "", false
	s.target = m.target.Text
	if c.key.name != "" {
		s.target = c.key.name
	}
	return true
}

// Reused reports whether the connection has carried exchanges before.
func (s *Stream) Reused() bool { return s.reused }

// Stale reports, of an exchange that failed, whether it failed as it does when a kept connection ended while it was
// idle: reused, and not a byte of an answer. Close then drops the target's other idle connections, so that a second
// Open dials.
func (s *Stream) Stale() bool {
	unsent := s.c != nil && s.bodyless && !s.c.sink.Done()
	return s.stale || s.reused && !s.began && unsent && !s.Aborted()
}

// Target is the target as configuration wrote it; by name, the host and port.
func (s *Stream) Target() string { return s.target }

// Member is the target that was chosen.
func (s *Stream) Member() *Member { return s.m }

// StickyValue is the cookie value that leads back to this target; nil when the upstream sets none.
func (s *Stream) StickyValue() []byte { return s.cookie }

// Send starts the request. n is the length of its body, 0 for none, -1 when unknown. The head is held back until the
// sink's first Flush or Close; Close alone sends a request without a body. The sink is valid until the Stream's Close.
func (s *Stream) Send(h *wire.Head, n int64) (wire.Sink, error) {
	s.method = append(s.method[:0], h.Method...)
	s.upgrade, s.bodyless = len(h.Upgrade) > 0, n == 0
	s.c.send(h, n)
	return &s.c.sink, nil
}

// Recv reads the next head into h. An interim one (100-199, not 101) comes with a nil body; call again for the next.
// The final one comes with the body, which may be empty but is never nil. After deadline (zero: none) Recv returns
// os.ErrDeadlineExceeded and may be called again; whoever gives up then says so to Pool.Fail. Any other error is an
// *Error. h points into the connection's buffer until the next Recv or Close.
func (s *Stream) Recv(h *wire.Head, deadline time.Time) (wire.Body, error) {
	c := s.c
	if c.buf == nil {
		c.buf = wire.GetBuffer()
	}
	if s.took > 0 {
		c.buf.Discard(s.took)
		s.took, s.from = 0, 0
	}
	limit := int(c.ps.maxHead.Load())
	c.reads.Set(deadline)
	for {
		if b := c.buf.Bytes(); len(b) > 0 {
			n, next, err := wire.ParseResponse(b, s.from, h, maxFields)
			if err != nil {
				return nil, s.failed("bad_answer", err)
			}
			if n > 0 {
				return s.headCame(h, n)
			}
			s.from = next
		}
		err := c.fill(limit)
		switch {
		case err == nil:
			s.began = true
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, err
		default:
			return nil, s.failed(s.kindOf(err), err)
		}
	}
}

// headCame acts on a complete head of n bytes.
func (s *Stream) headCame(h *wire.Head, n int) (wire.Body, error) {
	c := s.c
	s.fault = ""
	if h.Status < 200 && h.Status != 101 {
		if s.interims++; s.interims > maxInterims {
			return nil, s.failed("bad_answer", errors.New("too many interim answers"))
		}
		s.took = n
		return nil, nil
	}
	if h.Status == 101 && !s.upgrade {
		return nil, s.failed("bad_answer", errors.New("101 without an upgrade asked for"))
	}
	c.buf.Discard(n)
	f, length := wire.NoBody, int64(0) // until Switch
	if h.Status != 101 {
		f, length = wire.FramingOf(s.method, h)
	}
	c.expect(f, length)
	c.exact(f == wire.ByClose)
	s.answered = true
	s.ends = h.Close || h.Minor == 0 || f == wire.ByClose
	return &c.body, nil
}

// kindOf sorts an error of the connection; one of an aborted Stream is its own doing.
func (s *Stream) kindOf(err error) string {
	if s.Aborted() {
		return "aborted"
	}
	if s.began && errors.Is(err, wire.ErrTooLarge) {
		return "bad_answer"
	}
	return recvKind(err)
}

func (s *Stream) failed(kind string, err error) error {
	e := &Error{Kind: kind, Upstream: s.p.name, Target: s.target, Member: s.m, Err: err}
	if kind == "tls" {
		e.Err = alertWords(err)
	}
	if kind == "aborted" {
		return e
	}
	if kind == "closed" || kind == "reset" {
		e.Err = nil
	}
	if s.reused && !s.began && (kind == "closed" || kind == "reset" || kind == "tls") {
		s.stale = true
		return e
	}
	s.fault = e.short()
	return e
}

// Switch gives the raw connection both ways. It is called once, after Recv returned a head with status 101 and after
// the request's sink was closed; the sink's Close is then a half-close.
func (s *Stream) Switch() (wire.Body, wire.Sink) {
	c := s.c
	s.switched = true
	c.exact(false) // what is spoken now has ends of its own
	nc := c.nc
	if c.tls != nil {
		nc = c.tls.under.Conn
	}
	if tc, ok := nc.(*net.TCPConn); ok {
		_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true}) // lets a connection of a dead peer end; a failure costs only that
	}
	c.expect(wire.ByClose, -1)
	c.sink.Start(c.nc, nil, wire.ByClose, -1)
	return &c.body, &c.sink
}

// Close ends the exchange. Nobody may use its heads, body or sink any more. reusable says that the caller has no
// objection to the connection being used again; it is, if both messages ended cleanly and the target did not ask to
// close it. Whatever the target did wrong counts for passive health. Closing a Stream that is not open is allowed.
func (s *Stream) Close(reusable bool) {
	stale := s.Stale()
	s.mu.Lock()
	aborted := s.aborted
	s.aborted, s.nc = false, nil
	s.mu.Unlock()
	c := s.c
	if c == nil {
		return
	}
	if stale && !aborted {
		s.p.flush(s.m)
	}
	reusable = reusable && !aborted && s.fault == "" && s.answered && !s.ends && !s.switched && !c.once && c.between()
	c.giveBack(!reusable)
	s.c = nil
	s.p.leave(s.m, c, reusable, s.fault)
}
