package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// direct is how much must be wanted, and to come, for a chunk to be read around the buffer.
const direct = 2 << 10

// fullRecord is what one record of TLS holds at most: where as much came, more may be there.
const fullRecord = 16 << 10

// eager is a connection that can be asked for what it can give without waiting: os.ErrDeadlineExceeded when that is
// nothing. One of TLS gives a record at a time, and moving many together is cheaper.
type eager interface{ ReadNow(p []byte) (int, error) }

// BodyReader is the Body of an HTTP/1 message. The zero value is an empty body.
//
// It has no lock: reading belongs to one goroutine. Done, Handed and Deadline may be called from another one meanwhile,
// and a deadline in the past ends a Read that waits.
type BodyReader struct {
	c      net.Conn
	eager  eager // c, where it is one
	buf    *Buffer
	f      Framing
	left   int64 // of the body, or of the chunk
	open   atomic.Bool
	handed atomic.Bool // Raw gave the rest away, and it is not known to have been read
	err    error       // found while looking ahead; the next Read says it
	onRead func() error

	clock *Clock
	own   Clock
	stall time.Duration
	timed atomic.Bool

	chunks chunkState
}

// Reset starts a body that continues in buf and then on c. onRead, if not nil, is called before the first read from c
// that must wait (100-continue is sent there). What was consumed of buf so far stays where it is until the body has ended.
func (r *BodyReader) Reset(c net.Conn, buf *Buffer, f Framing, n int64, onRead func() error) {
	if r.clock == nil || r.clock.c != c {
		r.own.Start(c, false)
		r.clock = &r.own
	}
	if r.c != c {
		r.eager, _ = c.(eager)
	}
	r.c, r.buf, r.f, r.left, r.err, r.onRead = c, buf, f, n, nil, onRead
	r.stall = 0
	quiet(&r.timed)
	quiet(&r.handed)
	r.clock.drop()
	r.chunks.reset()
	r.open.Store(f == ByChunks || f == ByClose || f == ByLength && n > 0)
	if f == ByChunks {
		r.left = 0
	}
	if buf != nil {
		buf.keep = buf.r
	}
}

// Share makes the reader keep the connection's deadline with the clock of whoever else reads from it. stall, if not 0,
// bounds each wait for which nobody sets a Deadline. It is called right behind Reset.
func (r *BodyReader) Share(k *Clock, stall time.Duration) {
	r.clock, r.stall = k, stall
	k.drop()
}

// Done reports whether the body was read to its end, so that buf holds the start of the next message.
func (r *BodyReader) Done() bool { return !r.open.Load() }

// Handed reports whether Raw handed the rest over and nobody has said since, with Landed or Spoil, what became of it: as
// long as it does, somebody else reads from the connection, whatever Done says.
func (r *BodyReader) Handed() bool { return r.handed.Load() }

// Release forgets connection and buffer, so that a pooled reader holds on to neither.
func (r *BodyReader) Release() {
	r.open.Store(false)
	r.c, r.eager, r.buf, r.onRead, r.clock, r.own.c, r.f = nil, nil, nil, nil, nil, nil, NoBody
}

// Read implements Body. The end comes together with the last bytes wherever it can be known.
func (r *BodyReader) Read(p []byte) (int, error) {
	switch {
	case r.err != nil:
		return 0, r.err
	case !r.open.Load():
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	case r.f == ByLength:
		return r.readLength(p)
	case r.f == ByChunks:
		return r.readChunks(p)
	}
	if n := r.take(p); n > 0 {
		return n, nil
	}
	n, err := r.wait(p)
	if errors.Is(err, io.EOF) {
		r.open.Store(false)
	}
	return n, err
}

func (r *BodyReader) readLength(p []byte) (int, error) {
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n := r.take(p)
	if n == 0 {
		var err error
		if n, err = r.wait(p); err != nil {
			return n, cutOff(err)
		}
	}
	r.left -= int64(n)
	if r.left == 0 {
		r.open.Store(false)
		return n, io.EOF
	}
	return n, nil
}

// take copies what the buffer holds.
func (r *BodyReader) take(p []byte) int {
	n := copy(p, r.buf.Bytes())
	r.buf.Discard(n)
	return n
}

// wait reads from the connection, which may take long. It returns bytes or an error, never both.
func (r *BodyReader) wait(p []byte) (int, error) {
	if f := r.onRead; f != nil {
		r.onRead = nil
		if err := f(); err != nil {
			return 0, err
		}
	}
	if r.stall > 0 {
		r.clock.allow(r.stall, &r.timed)
	}
	for {
		n, err := r.c.Read(p)
		if n > 0 || err == nil {
			for full := n == fullRecord; full && r.eager != nil && n < len(p); {
				m, err := r.eager.ReadNow(p[n:]) // whatever is wrong, the next Read says it too
				n += m
				full = m == fullRecord && err == nil
			}
			return n, nil
		}
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if r.clock.Early(err) {
				continue
			}
			err = os.ErrDeadlineExceeded
		}
		return 0, err
	}
}

// Await waits until Read has something to say, and holds no buffer meanwhile where the connection can be waited for
// without one. After a deadline it returns os.ErrDeadlineExceeded.
func (r *BodyReader) Await() error {
	w, ok := r.c.(interface{ Await() error })
	ready := !r.open.Load() || r.err != nil || r.Buffered() > 0
	if !ok || ready {
		return nil
	}
	for late := true; late; {
		err := w.Await()
		if late = errors.Is(err, os.ErrDeadlineExceeded); late && !r.clock.Early(err) {
			return os.ErrDeadlineExceeded
		}
	}
	return nil // if anything else is wrong, Read says it
}

// cutOff tells the end of the connection from the end of the body.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Buffered implements Body.
func (r *BodyReader) Buffered() int {
	if !r.open.Load() {
		return -1
	}
	n := r.buf.w - r.buf.r
	if r.f != ByClose && int64(n) > r.left {
		n = int(r.left)
	}
	return n
}

// Len implements Body.
func (r *BodyReader) Len() int64 {
	switch {
	case !r.open.Load():
		return 0
	case r.f == ByLength:
		return r.left
	}
	return -1
}

// Trailer implements Body.
func (r *BodyReader) Trailer() []Field { return r.chunks.trailer.Fields }

// Raw implements Body. The deadline is taken off the connection, for the caller to set. A caller that does not keep
// its promise says so with Spoil, one that has kept it with Landed.
func (r *BodyReader) Raw() (c *net.TCPConn, head []byte, n int64, ok bool) {
	c, ok = r.c.(*net.TCPConn)
	if !ok || !r.open.Load() || r.err != nil || r.f == ByChunks {
		return nil, nil, 0, false
	}
	if f := r.onRead; f != nil {
		r.onRead = nil
		if r.err = f(); r.err != nil {
			return nil, nil, 0, false
		}
	}
	head, n = r.buf.Bytes(), -1
	if r.f == ByLength {
		n = r.left
		if int64(len(head)) > n {
			head = head[:n]
		}
	}
	r.buf.Discard(len(head))
	r.left = 0
	r.handed.Store(true) // before Done is true: whoever asks for both never sees a body that is read by nobody
	r.open.Store(false)
	r.clock.Clear()
	return c, head, n, true
}

// Landed says that what Raw handed over was read to its end.
func (r *BodyReader) Landed() { r.handed.Store(false) }

// Spoil says that what Raw handed over was not read to its end: the connection cannot carry another message.
func (r *BodyReader) Spoil() {
	r.err = io.ErrUnexpectedEOF
	r.open.Store(true)
	r.handed.Store(false)
}

// Deadline implements Body.
func (r *BodyReader) Deadline(t time.Time) {
	if r.clock == nil {
		return
	}
	if !r.timed.Load() {
		r.timed.Store(true)
	}
	r.clock.Set(t)
}
