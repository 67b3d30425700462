package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// gatherMost is how much plain text may be written between Cork and Uncork: four full records of TLS.
const gatherMost = 64 << 10

// gatherRoom is what that takes with the headers and seals of its records, also when they are small.
const gatherRoom = gatherMost + 8<<10

type gathered [gatherRoom]byte

var gatherings = sync.Pool{New: func() any { return new(gathered) }}

// A Carrier is the connection that a tls.Conn stands on. It lets whoever writes to that do what crypto/tls does not: send
// many records in one call, and go on with a write after its deadline (for crypto/tls a write that timed out is the end
// of the connection). Between Cork and Uncork what is written is gathered; Uncork sends it, and may be called again.
//
// A BodyWriter on a connection whose NetConn is a Carrier uses it so. Reading and writing are as of the connection below;
// only one goroutine may cork, and
// not before the handshake is over.
type Carrier struct {
	net.Conn
	raw    syscall.RawConn // nil where there is no socket
	now    bool            // reads wait for nothing; as the next, the reader's
	into   []byte
	got    int
	failed error
	try    func(fd uintptr)
	ended  atomic.Bool
	closes atomic.Bool

	mu     sync.Mutex // guards the following, and is held while anything is written
	corked bool
	out    *gathered // nil while nothing is gathered
	n      int
	broken error // of gathered bytes that were lost
}

// NewCarrier returns the Carrier on c.
func NewCarrier(c net.Conn) *Carrier {
	k := &Carrier{Conn: c}
	k.try = k.tryRead
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			k.raw = raw
		}
	}
	return k
}

// carrierOf is the Carrier under c, nil if there is none.
func carrierOf(c net.Conn) *Carrier {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		k, _ := t.NetConn().(*Carrier)
		return k
	}
	return nil
}

// SyscallConn implements syscall.Conn.
func (k *Carrier) SyscallConn() (syscall.RawConn, error) {
	if k.raw == nil {
		return nil, errors.ErrUnsupported
	}
	return k.raw, nil
}

// Read implements net.Conn.
func (k *Carrier) Read(p []byte) (int, error) {
	if k.now {
		return k.readNow(p)
	}
	n, err := k.Conn.Read(p)
	if err != nil && errors.Is(err, io.EOF) {
		k.ended.Store(true)
	}
	return n, err
}

// Now makes reads give what is there without waiting, or os.ErrDeadlineExceeded when that is nothing. Whoever reads may
// call it.
func (k *Carrier) Now(on bool) { k.now = on && k.raw != nil }

func (k *Carrier) readNow(p []byte) (int, error) {
	k.into = p
	err := k.raw.Control(k.try)
	k.into = nil
	switch {
	case err != nil:
		return 0, err
	case errors.Is(k.failed, syscall.EAGAIN), errors.Is(k.failed, syscall.EINTR):
		return 0, os.ErrDeadlineExceeded
	case k.failed != nil:
		return 0, os.NewSyscallError("read", k.failed)
	case k.got <= 0:
		k.ended.Store(true)
		return 0, io.EOF
	}
	return k.got, nil
}

func (k *Carrier) tryRead(fd uintptr) { k.got, k.failed = syscall.Read(int(fd), k.into) }

// Ended reports whether the connection was seen to end. A tls.Conn that says io.EOF before that was told so by its peer.
func (k *Carrier) Ended() bool { return k.ended.Load() }

// Write implements net.Conn.
func (k *Carrier) Write(p []byte) (int, error) {
	if k.closes.Load() {
		return k.writeNow(p)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.broken != nil:
		return 0, k.broken
	case !k.corked && k.n == 0:
		return k.Conn.Write(p)
	}
	if k.n+len(p) > gatherRoom {
		if _, err := k.flush(); err != nil {
			return 0, k.spoil(err)
		}
	}
	if len(p) > gatherRoom {
		return k.Conn.Write(p)
	}
	if k.out == nil {
		k.out = gatherings.Get().(*gathered)
	}
	k.n += copy(k.out[k.n:], p)
	return len(p), nil
}

// Cork makes writes gather.
func (k *Carrier) Cork() {
	k.mu.Lock()
	k.corked = true
	k.mu.Unlock()
}

// Uncork sends what was gathered, n bytes of it. After a deadline it may be called again for the rest, or Spoil.
func (k *Carrier) Uncork() (n int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.corked = false
	if k.broken != nil {
		return 0, k.broken
	}
	n, err = k.flush()
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		_ = k.spoil(err)
	}
	return n, err
}

// flush sends what was gathered; what did not go out stays. mu is held.
func (k *Carrier) flush() (int, error) {
	if k.out == nil {
		return 0, nil
	}
	n, err := k.Conn.Write(k.out[:k.n])
	if err != nil {
		k.n = copy(k.out[:], k.out[n:k.n])
		return n, err
	}
	k.drop()
	return n, nil
}

// Spoil gives up what was gathered and did not go out: nothing can be written any more.
func (k *Carrier) Spoil(why error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.n > 0 {
		_ = k.spoil(why)
	}
}

func (k *Carrier) spoil(why error) error {
	k.drop()
	k.broken = why
	return why
}

func (k *Carrier) drop() {
	if k.out != nil {
		gatherings.Put(k.out)
		k.out = nil
	}
	k.n = 0
}

// Closing says that the tls.Conn is about to be closed: its last words are sent if that is possible at once, and wait
// for nothing.
func (k *Carrier) Closing() { k.closes.Store(true) }

func (k *Carrier) writeNow(p []byte) (n int, err error) {
	if !k.mu.TryLock() {
		return 0, net.ErrClosed // somebody is in the middle of a record
	}
	defer k.mu.Unlock()
	if k.broken != nil || k.n > 0 || k.raw == nil {
		k.drop()
		return 0, net.ErrClosed
	}
	if cerr := k.raw.Control(func(fd uintptr) { n, err = syscall.Write(int(fd), p) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, os.NewSyscallError("write", err)
	}
	return n, nil
}
