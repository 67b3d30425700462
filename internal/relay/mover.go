package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// chunk is what one copying read takes at most.
	chunk = 16 << 10
	// bulkAfter full reads in a row a pipe is worth its descriptors.
	bulkAfter = 2
	// shortMove is the splice that ends a run of them.
	shortMove = chunk
)

type buffer [chunk]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// errCut ends a direction because somebody outside wants it ended.
var errCut = errors.New("relay: cut")

// errLeave interrupts a wait of the direction that has a word to say to its receiver.
var errLeave = errors.New("relay: leave")

// A mover carries bytes one way, from src to dst. Both of its funcs for RawConn are made once and live as long as the
// mover, which is pooled, so that a short tunnel allocates next to nothing.
//
// While it waits for src it holds neither a buffer nor a pipe. What it has read it writes before it reads again.
type mover struct {
	src, dst net.Conn
	in, out  syscall.RawConn // nil where the end is no kernel socket
	waits    awaiter         // src, where it is none and can be waited for without a buffer
	watch    watch
	act      *Activity
	count    *atomic.Int64
	left     int64 // bytes still to be moved, -1: until EOF
	total    int64 // bytes dst took
	last     time.Duration
	readBy   time.Duration // the deadlines that watch last set
	writeBy  time.Duration
	queue    queue   // of out, for watch
	ended    bool    // src said that it was done, guarded by the tunnel
	frames   *frames // not nil: a WebSocket server's frames are told apart on the way

	// The state of one move. n bytes are in buf or, if spliced, in pipe.
	buf     *buffer
	pipe    *pipe
	n       int
	spliced bool
	errno   error
	full    int // full reads in a row; noSplice: splicing is out of the question

	tryRead, trySend func(fd uintptr) bool
}

const noSplice = -1 << 30

// watch judges waits that came to their deadline. Both return nil to go on waiting, with a new deadline set.
type watch interface {
	readExpired(m *mover) error
	writeExpired(m *mover) error
}

// An awaiter waits until Read has something to say; os.ErrDeadlineExceeded is as of Read.
type awaiter interface{ Await() error }

func newMover() *mover {
	m := new(mover)
	m.tryRead, m.trySend = m.readSome, m.sendPipe
	return m
}

// release gives back what is still held.
func (m *mover) release() {
	m.dropBuffer()
	m.dropPipe(m.n == 0)
}

// clear forgets everything of one use.
func (m *mover) clear() {
	m.release()
	*m = mover{tryRead: m.tryRead, trySend: m.trySend}
}

func (m *mover) dropBuffer() {
	if m.buf != nil {
		buffers.Put(m.buf)
		m.buf = nil
	}
}

func (m *mover) dropPipe(empty bool) {
	if m.pipe != nil {
		pipes.put(m.pipe, empty)
		m.pipe = nil
	}
}

// rawOf gives access to a kernel socket, nil if c is none. A type that wraps one may not be passed by.
func rawOf(c net.Conn) syscall.RawConn {
	var raw syscall.RawConn
	switch c := c.(type) {
	case *net.TCPConn:
		raw, _ = c.SyscallConn()
	case *net.UnixConn:
		raw, _ = c.SyscallConn()
	}
	return raw
}

// start prepares a fresh mover.
func (m *mover) start(src, dst net.Conn, in, out syscall.RawConn, w watch, act *Activity) {
	m.src, m.dst, m.in, m.out, m.watch, m.act = src, dst, in, out, w, act
	m.left, m.last = -1, clock()
	if in == nil || out == nil {
		m.full = noSplice
	}
	if in == nil {
		m.waits, _ = src.(awaiter)
	}
}

// run moves until src ends or left is used up. The error is nil then; else side tells whose it is.
func (m *mover) run() (side Side, err error) {
	for m.left != 0 {
		err := m.await()
		switch {
		case errors.Is(err, errLeave):
			if err := m.part(); err != nil {
				return Dest, err
			}
			continue
		case err != nil:
			return Source, err
		case m.n == 0:
			return Source, nil
		}
		m.moved(0)
		if err := m.send(); err != nil {
			return Dest, err
		}
		m.n = 0
	}
	return Source, nil
}

// await returns when n bytes are in hand; none means that src has ended.
func (m *mover) await() error {
	for {
		err := m.awaitOnce()
		if err == nil || m.n > 0 {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err := m.watch.readExpired(m); err != nil {
			return err
		}
	}
}

func (m *mover) awaitOnce() error {
	m.n, m.errno = 0, nil
	if m.in != nil {
		if err := m.in.Read(m.tryRead); err != nil {
			return err
		}
		return m.errno
	}
	if m.waits != nil {
		m.dropBuffer()
		if err := m.waits.Await(); err != nil {
			return err
		}
	}
	if m.buf == nil {
		m.buf = buffers.Get().(*buffer)
	}
	var err error
	m.n, err = m.src.Read(m.buf[:m.limit(chunk)])
	return err
}

func (m *mover) limit(n int) int {
	if m.left >= 0 && m.left < int64(n) {
		return int(m.left)
	}
	return n
}

// readSome is the func for RawConn.Read: false means that nothing is there and that nothing is held either.
func (m *mover) readSome(fd uintptr) bool {
	if m.full >= bulkAfter {
		if done, ok := m.readPipe(fd); ok {
			return done
		}
	}
	if m.buf == nil {
		m.buf = buffers.Get().(*buffer)
	}
	room := m.limit(chunk)
	for {
		n, err := syscall.Read(int(fd), m.buf[:room])
		switch err {
		case nil:
			m.n, m.spliced = max(n, 0), false
			if m.n < room {
				m.full = min(m.full, 0)
			} else {
				m.full++
			}
			return true
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			m.dropBuffer()
			return false
		}
		m.errno = os.NewSyscallError("read", err)
		return true
	}
}

// readPipe splices from src. ok is false when that cannot be done and a plain read has to.
func (m *mover) readPipe(fd uintptr) (done, ok bool) {
	m.dropBuffer()
	if m.pipe == nil {
		if m.pipe = pipes.take(); m.pipe == nil {
			return false, false
		}
	}
	n, err := m.pipe.fill(int(fd), m.limit(m.pipe.size))
	switch {
	case err == nil:
		m.n, m.spliced = n, true
		if n < shortMove {
			m.full = 0
		}
		return true, true
	case errors.Is(err, syscall.EAGAIN):
		m.dropPipe(true)
		return false, true
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOSYS):
		m.dropPipe(true)
		m.full = noSplice
		return false, false
	}
	m.errno = os.NewSyscallError("splice", err)
	return true, true
}

// send writes what is in hand, all of it.
func (m *mover) send() error {
	if !m.spliced {
		return m.pass(m.buf[:m.n])
	}
	for {
		m.errno = nil
		err := m.out.Write(m.trySend)
		if err == nil {
			err = m.errno
		}
		if err == nil {
			if m.full < bulkAfter {
				m.dropPipe(true)
			}
			return nil
		}
		if err := m.retry(err); err != nil {
			return err
		}
	}
}

// sendPipe is the func for RawConn.Write: it empties the pipe.
func (m *mover) sendPipe(fd uintptr) bool {
	for m.n > 0 {
		n, err := m.pipe.drain(int(fd), m.n)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return false
		case err != nil:
			m.errno = os.NewSyscallError("splice", err)
			return true
		}
		m.n -= n
		m.moved(n)
	}
	return true
}

// pass writes bytes that were copied.
func (m *mover) pass(p []byte) error {
	if m.frames != nil {
		return m.passFrames(p)
	}
	return m.write(p)
}

func (m *mover) write(p []byte) error {
	for len(p) > 0 {
		n, err := m.dst.Write(p)
		p = p[n:]
		if n > 0 {
			m.moved(n)
		}
		if err == nil {
			continue
		}
		if err := m.retry(err); err != nil {
			return err
		}
	}
	return nil
}

// retry decides whether a write that failed goes on.
func (m *mover) retry(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if why := m.watch.writeExpired(m); why != nil {
		return why
	}
	if errors.Is(err, ErrStall) {
		return err // of a stream, which cannot write the rest later
	}
	return nil
}

// moved counts n bytes that dst took; 0 stands for bytes that src gave.
func (m *mover) moved(n int) {
	now := clock()
	m.last = now
	m.act.at.Store(int64(now))
	if n == 0 {
		return
	}
	m.total += int64(n)
	if m.left > 0 {
		m.left -= int64(n)
	}
	if m.count != nil {
		m.count.Add(int64(n))
	}
}

// look tells whether dst still takes what was written before. The clock that has run out lasts bound.
func (m *mover) look(now, bound time.Duration) pulse {
	p := m.queue.look(m.out, now, bound/3)
	if p == moving {
		m.last = now
		m.act.Touch()
	}
	return p
}
