package wire

import (
	"errors"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

var (
	errNoBody   = errors.New("message has no body")
	errTooLong  = errors.New("body is longer than was announced")
	errTooShort = errors.New("body is shorter than was announced")
	errEnded    = errors.New("message has ended")
	errWasReset = errors.New("message was reset")

	lastChunk = []byte("0\r\n")
	endOfLine = []byte("\r\n")
)

// chunkOverhead is what stands around the bytes of a chunk at most: 16 digits and two ends of line.
const chunkOverhead = 20

// BodyWriter is the Sink of an HTTP/1 message. What is held back stands in a pooled buffer from Start until the message
// has ended.
//
// Writing belongs to one goroutine. Deadline may be called from another one meanwhile, and one in the past ends a Write
// that waits.
type BodyWriter struct {
	c     net.Conn
	under *Carrier // of c, where it is TLS
	hold  *Buffer
	out   []byte // held back; its storage is hold's unless a head outgrew it
	f     Framing
	left  int64 // still to be written, with ByLength
	raw   bool  // handed over: what is left is the holder's to send
	ended bool
	err   error // why nothing can be written any more

	clock *Clock
	own   Clock
	stall time.Duration
	timed atomic.Bool

	vec  [3][]byte
	bufs net.Buffers
}

// Start starts a message: head is copied, held back, and goes out with the first bytes. With NoBody every Write fails.
// A switched connection is ByClose with a half-close at the end.
func (w *BodyWriter) Start(c net.Conn, head []byte, f Framing, n int64) {
	if w.clock == nil || w.clock.c != c {
		w.own.Start(c, true)
		w.clock = &w.own
	}
	if w.c != c {
		w.under = carrierOf(c)
	}
	w.release()
	w.hold = GetBuffer()
	w.out = append(w.hold.b[:0], head...)
	w.c, w.f, w.left, w.raw, w.ended, w.err = c, f, 0, false, false, nil
	if f == ByLength {
		w.left = n
	}
	w.stall = 0
	quiet(&w.timed)
	w.clock.drop()
}

// Share makes the writer keep the connection's deadline with that clock. stall, if not 0, bounds each wait for which
// nobody sets a Deadline. It is called right behind Start.
func (w *BodyWriter) Share(k *Clock, stall time.Duration) {
	w.clock, w.stall = k, stall
	k.drop()
}

// Done reports whether the whole message went out, so that c can carry the next one.
func (w *BodyWriter) Done() bool { return w.ended && w.err == nil && w.f != ByClose }

// Release ends the writer's use of connection and buffer.
func (w *BodyWriter) Release() {
	w.release()
	w.c, w.under, w.clock, w.own.c, w.ended = nil, nil, nil, nil, true
}

func (w *BodyWriter) release() {
	if w.hold != nil {
		w.hold.Put()
		w.hold, w.out = nil, nil
	}
}

// Write implements Sink. Bytes that fit behind what is held back are copied there; others go out together with it in
// one call and are not copied.
func (w *BodyWriter) Write(p []byte) (int, error) {
	switch {
	case w.err != nil:
		return 0, w.err
	case w.ended:
		return 0, errEnded
	case w.f == NoBody:
		return 0, errNoBody
	case w.f == ByLength && int64(len(p)) > w.left:
		return 0, errTooLong
	case len(p) == 0:
		return 0, nil
	}
	if w.f == ByLength {
		w.left -= int64(len(p))
	}
	w.raw = false
	held := len(w.out)+len(p)+chunkOverhead <= cap(w.out)
	if w.f == ByChunks {
		w.out = strconv.AppendInt(w.out, int64(len(p)), 16)
		w.out = append(w.out, endOfLine...)
	}
	if held {
		w.out = append(w.out, p...)
		if w.f == ByChunks {
			w.out = append(w.out, endOfLine...)
		}
		return len(p), nil
	}
	if err := w.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush implements Sink.
func (w *BodyWriter) Flush() error {
	if w.err != nil || len(w.out) == 0 {
		return w.err
	}
	err := w.push(w.out)
	w.out = w.out[:0]
	return err
}

// send sends what is held back, p, and the end of its chunk.
func (w *BodyWriter) send(p []byte) error {
	if len(w.out) == 0 {
		return w.push(p)
	}
	w.vec = [3][]byte{w.out, p, endOfLine}
	w.bufs = w.vec[:2]
	if w.f == ByChunks {
		w.bufs = w.vec[:3]
	}
	if w.under != nil {
		err := w.seal(w.bufs...)
		w.vec, w.bufs, w.out = [3][]byte{}, nil, w.out[:0]
		return err
	}
	for first := true; ; first = false {
		n, err := w.bufs.WriteTo(w.c)
		if err == nil {
			break
		}
		if !w.goOn(err, first || n > 0) {
			w.err = plainDeadline(err)
			break
		}
	}
	w.vec, w.bufs, w.out = [3][]byte{}, nil, w.out[:0]
	return w.err
}

// push sends p alone.
func (w *BodyWriter) push(p []byte) error {
	if w.under != nil {
		w.vec[0] = p
		err := w.seal(w.vec[:1]...)
		w.vec[0] = nil
		return err
	}
	if w.stall > 0 && w.clock.armed.Load() == 0 {
		w.clock.extend(w.stall)
	}
	for first := true; ; first = false {
		n, err := w.c.Write(p)
		if err == nil {
			return nil
		}
		if !w.goOn(err, first || n > 0) {
			w.err = plainDeadline(err)
			return w.err
		}
		p = p[n:]
	}
}

// seal sends parts through TLS, as many records as may be in one call.
func (w *BodyWriter) seal(parts ...[]byte) error {
	if w.stall > 0 && w.clock.armed.Load() == 0 {
		w.clock.extend(w.stall)
	}
	room := gatherMost
	w.under.Cork()
	for _, p := range parts {
		for len(p) > 0 {
			n := min(len(p), room)
			if _, err := w.c.Write(p[:n]); err != nil {
				w.under.Spoil(err)
				w.err = plainDeadline(err)
				return w.err
			}
			p, room = p[n:], room-n
			if room == 0 {
				if err := w.uncork(); err != nil {
					return err
				}
				w.under.Cork()
				room = gatherMost
			}
		}
	}
	return w.uncork()
}

func (w *BodyWriter) uncork() error {
	for first := true; ; first = false {
		n, err := w.under.Uncork()
		if err == nil {
			return nil
		}
		if !w.goOn(err, first || n > 0) {
			w.err = plainDeadline(err)
			w.under.Spoil(w.err)
			return w.err
		}
	}
}

// goOn reports whether a failed write may be taken up again: its deadline struck early, or nobody set one and the
// receiver still takes bytes.
func (w *BodyWriter) goOn(err error, moved bool) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	if w.timed.Load() || w.stall == 0 {
		return w.clock.Early(err)
	}
	if !moved || w.clock.Struck() {
		return false
	}
	w.clock.extend(w.stall)
	return true
}

func plainDeadline(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return err
}

// Raw implements Sink. The deadline is taken off the connection, for the caller to set. A caller that does not use what
// it got goes on with Write.
func (w *BodyWriter) Raw() (c *net.TCPConn, ok bool) {
	c, ok = w.c.(*net.TCPConn)
	if !ok || w.ended || w.err != nil || w.f == ByChunks || w.f == NoBody || w.Flush() != nil {
		return nil, false
	}
	w.raw = true
	w.clock.Clear()
	return c, true
}

// Deadline implements Sink.
func (w *BodyWriter) Deadline(t time.Time) {
	if !w.timed.Load() {
		w.timed.Store(true)
	}
	w.clock.Set(t)
}

// Close implements Sink.
func (w *BodyWriter) Close(trailer []Field) error {
	if w.ended {
		return w.err
	}
	w.ended = true
	if w.f == ByChunks && w.err == nil {
		w.out = append(w.out, lastChunk...)
		w.out = appendTrailer(w.out, trailer)
		w.out = append(w.out, endOfLine...)
	}
	err := w.Flush()
	if err == nil && w.left > 0 && !w.raw {
		w.err = errTooShort
		err = w.err
	}
	if half, ok := w.c.(interface{ CloseWrite() error }); ok && err == nil && w.f == ByClose {
		err = half.CloseWrite()
	}
	w.release()
	return err
}

func appendTrailer(dst []byte, trailer []Field) []byte {
	for i := range trailer {
		if !forbiddenTrailer(trailer[i].Name) {
			dst = appendFields(dst, trailer[i:i+1], true)
		}
	}
	return dst
}

// Reset implements Sink. What is held back is dropped. On TCP the close that must follow, by whoever owns the connection,
// is then a reset.
func (w *BodyWriter) Reset(error) {
	if w.ended {
		return
	}
	w.ended, w.err = true, errWasReset
	if c, ok := w.c.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0) // fails only on a closed connection
	}
	w.release()
}

// Ended reports whether the message was ended by Close or Reset, and Err why it can take no more, if it broke.
func (w *BodyWriter) Ended() bool { return w.ended }

// Err is the first error that ended the message early.
func (w *BodyWriter) Err() error { return w.err }
