package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

const (
	// spliceFrom is how much must be to come before a body is handed over to the kernel.
	spliceFrom = 256 << 10
	bodyChunk  = 64 << 10
	// coarse is how often a receiver's deadline moves at most.
	coarse = time.Second
)

type bodyBuffer [bodyChunk]byte

var bodyBuffers = sync.Pool{New: func() any { return new(bodyBuffer) }}

// A Flow bounds and counts one body on its way.
type Flow struct {
	Read  time.Duration // how long to wait for more from the source; 0: for ever
	Write time.Duration // how long the receiver may take nothing; 0: for ever. It may last a second longer
	// Activity, if not nil, is touched whenever something moves, and shared with the other direction: then Read is over
	// only when nothing moved either way.
	Activity *Activity
	Count    *atomic.Int64 // if not nil, grows as bytes move
}

// Body moves src to dst and closes dst, with src's trailers. It flushes whenever it must wait. When both are plain TCP
// and much is to come, the kernel moves the bytes.
//
// It returns how many bytes dst took. An error is a *SideError, which tells the side that failed (Source with ErrIdle:
// it sent nothing in time; Dest with ErrStall: it took nothing); dst was reset then. A deadline that somebody else set
// on src ends it with os.ErrDeadlineExceeded.
func Body(dst wire.Sink, src wire.Body, f *Flow) (n int64, err error) {
	if src.Buffered() < 0 {
		return 0, finishBody(dst, src)
	}
	if left := src.Len(); left > spliceFrom || left < 0 {
		if c, ok := dst.Raw(); ok {
			if from, head, left, ok := src.Raw(); ok {
				return rawBody(dst, src, c, from, head, left, f)
			}
		}
	}
	p := bodyBuffers.Get().(*bodyBuffer)
	b := copying{dst: dst, src: src, f: f, act: f.Activity}
	n, err = b.run(p[:])
	bodyBuffers.Put(p)
	if err != nil {
		dst.Reset(err)
	}
	return n, err
}

func finishBody(dst wire.Sink, src wire.Body) error {
	if err := dst.Close(src.Trailer()); err != nil {
		dst.Reset(err)
		return &SideError{Dest, err}
	}
	return nil
}

// copying is a body that is moved by hand.
type copying struct {
	dst wire.Sink
	src wire.Body
	f   *Flow
	act *Activity // nil: quiet is counted from last

	last    time.Duration // when something was read
	readBy  time.Duration // the deadline set on src, 0: none yet
	written time.Duration // when dst's deadline was set, 0: never
}

func (b *copying) run(p []byte) (n int64, err error) {
	for {
		if b.src.Buffered() == 0 {
			b.allow(clock())
			if err := b.dst.Flush(); err != nil {
				return n, &SideError{Dest, stalled(err)}
			}
		}
		size, end, err := b.read(p)
		if err != nil {
			return n, &SideError{Source, err}
		}
		b.allow(b.touch())
		if size > 0 {
			if _, err := b.dst.Write(p[:size]); err != nil {
				return n, &SideError{Dest, stalled(err)}
			}
			n += int64(size)
			if b.f.Count != nil {
				b.f.Count.Add(int64(size))
			}
		}
		if end {
			if err := b.dst.Close(b.src.Trailer()); err != nil {
				return n, &SideError{Dest, stalled(err)}
			}
			return n, nil
		}
	}
}

// read waits for bytes, the end, or both.
func (b *copying) read(p []byte) (n int, end bool, err error) {
	if b.readBy == 0 && b.f.Read > 0 && b.src.Buffered() == 0 {
		b.last = clock()
		b.await(b.f.Read)
	}
	for {
		n, err = b.src.Read(p)
		switch {
		case err == nil || n > 0 || errors.Is(err, io.EOF):
			return n, errors.Is(err, io.EOF), nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return 0, false, err
		case b.readBy == 0 || clock() < b.readBy:
			return 0, false, os.ErrDeadlineExceeded // somebody else's
		}
		quiet := clock() - b.last
		if b.act != nil {
			quiet = min(quiet, b.act.Quiet())
		}
		if quiet >= b.f.Read {
			return 0, false, ErrIdle
		}
		b.await(b.f.Read - quiet)
	}
}

func (b *copying) await(d time.Duration) {
	b.readBy = clock() + d
	b.src.Deadline(epoch.Add(b.readBy))
}

// touch notes that something was read, and returns when.
func (b *copying) touch() time.Duration {
	now := clock()
	b.last = now
	if b.act != nil {
		b.act.at.Store(int64(now))
	}
	return now
}

// allow gives dst time for the next write.
func (b *copying) allow(now time.Duration) {
	if b.f.Write > 0 && (b.written == 0 || now-b.written >= coarse) {
		b.written = now
		b.dst.Deadline(epoch.Add(now + b.f.Write + coarse))
	}
}

func stalled(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrStall
	}
	return err
}

// handed is a body in the hands of the kernel: it watches the clocks of its mover.
type handed struct {
	m   *mover
	f   *Flow
	own Activity
}

var handeds = sync.Pool{New: func() any { return &handed{m: newMover()} }}

// rawBody moves left bytes (-1: all until EOF), the first of which are in head, from one socket to the other.
func rawBody(dst wire.Sink, src wire.Body, to, from *net.TCPConn, head []byte, left int64, f *Flow) (int64, error) {
	h := handeds.Get().(*handed)
	side, err := h.run(to, from, head, left, f)
	n := h.m.total
	h.m.clear()
	h.f = nil
	handeds.Put(h)
	_ = from.SetReadDeadline(time.Time{}) // fails only on a closed connection, as below
	_ = to.SetWriteDeadline(time.Time{})
	if err == nil {
		if body, ok := src.(interface{ Landed() }); ok {
			body.Landed()
		}
		if err = dst.Close(nil); err == nil {
			return n, nil
		}
		side = Dest
	} else if body, ok := src.(interface{ Spoil() }); ok {
		body.Spoil()
	}
	err = &SideError{side, err}
	dst.Reset(err)
	return n, err
}

func (h *handed) run(to, from *net.TCPConn, head []byte, left int64, f *Flow) (Side, error) {
	m := h.m
	h.f = f
	act := f.Activity
	if act == nil {
		act = &h.own
	}
	m.start(from, to, rawOf(from), rawOf(to), h, act)
	m.left, m.count = left, f.Count
	act.Touch()
	m.readBy, m.writeBy = never, never
	if f.Read > 0 {
		h.await(f.Read)
	}
	if f.Write > 0 {
		h.allow(f.Write)
	}
	if err := m.write(head); err != nil {
		return Dest, err
	}
	side, err := m.run()
	if err == nil && m.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return side, err
}

func (h *handed) await(d time.Duration) {
	h.m.readBy = clock() + d
	_ = h.m.src.SetReadDeadline(time.Now().Add(d)) // an error says that it is closed, as reading will
}

func (h *handed) allow(d time.Duration) {
	h.m.writeBy = clock() + d
	_ = h.m.dst.SetWriteDeadline(time.Now().Add(d))
}

// readExpired implements watch.
func (h *handed) readExpired(m *mover) error {
	if clock() < m.readBy {
		return os.ErrDeadlineExceeded // somebody else's
	}
	quiet := m.act.Quiet()
	if quiet >= h.f.Read {
		return ErrIdle
	}
	h.await(h.f.Read - quiet)
	return nil
}

// writeExpired implements watch.
func (h *handed) writeExpired(m *mover) error {
	now := clock()
	if now < m.writeBy {
		return os.ErrDeadlineExceeded
	}
	left := h.f.Write - (now - m.last)
	if left <= 0 {
		if left = m.look(now, h.f.Write).wait(h.f.Write); left == 0 {
			return ErrStall
		}
	}
	h.allow(left)
	return nil
}
