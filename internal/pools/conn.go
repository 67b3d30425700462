package pools

import (
	"net"
	"os"
	"syscall"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// A conn is one connection to a target, in use by a Stream or idle in its member's list. It keeps the reader and the
// writer of its messages; their buffers are borrowed for as long as an exchange lasts.
type conn struct {
	ps   *Pools
	nc   net.Conn
	tls  *sealed // nc, where it is TLS
	key  connKey
	born int64 // Pools.now at the dial
	idle int64 // Pools.now when it was put back

	hello []byte // the PROXY header, until the first message takes it along
	once  bool   // it had a PROXY header, and so speaks for one client: it is never kept
	buf   *wire.Buffer
	reads wire.Clock // of heads and bodies
	body  wire.BodyReader
	sink  wire.BodyWriter

	// What alive asks the kernel with; made once, so that asking allocates nothing.
	raw   syscall.RawConn
	peek  func(fd uintptr)
	byte1 [1]byte
	quiet bool // what peek found
}

// A connKey tells apart the connections of one member that cannot stand in for each other: the port where it is
// preserved, the name where it is dialled by name.
type connKey struct {
	port uint16
	name string
}

// scratch is where a request head is built before the writer takes it over.
type scratch struct{ b []byte }

func newConn(ps *Pools, nc net.Conn, key connKey, now int64) *conn {
	c := &conn{ps: ps, nc: nc, key: key, born: now}
	c.reads.Start(nc, false)
	if c.tls, _ = nc.(*sealed); c.tls != nil {
		return c
	}
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw, c.peek = raw, c.look
		}
	}
	return c
}

// alive asks the kernel whether an idle connection is still good: neither ended nor with bytes nobody asked for. It
// does not wait.
func (c *conn) alive() bool {
	if c.tls != nil {
		return c.tls.quiet()
	}
	if c.raw == nil {
		return true
	}
	c.quiet = false
	return c.raw.Control(c.peek) == nil && c.quiet
}

func (c *conn) look(fd uintptr) {
	_, _, err := syscall.Recvfrom(int(fd), c.byte1[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	c.quiet = err == syscall.EAGAIN
}

// send starts a request: the PROXY header, if one is due, and the head go to the writer, which holds them back.
func (c *conn) send(h *wire.Head, n int64) {
	sc, _ := c.ps.scratch.Get().(*scratch)
	b := append(sc.b[:0], c.hello...)
	c.hello = nil
	b = wire.AppendRequest(b, h, n)
	f := wire.ByLength
	switch {
	case n == 0:
		f = wire.NoBody
	case n < 0:
		f = wire.ByChunks
	}
	c.sink.Start(c.nc, b, f, n)
	if cap(b) <= maxScratch {
		sc.b = b
	}
	c.ps.scratch.Put(sc)
}

// fill reads more of an answer's head. os.ErrDeadlineExceeded means that the deadline has come.
func (c *conn) fill(limit int) error {
	for {
		_, err := c.buf.Fill(c.nc, limit)
		switch {
		case err == nil:
			return nil
		case c.reads.Early(err):
		case isTimeout(err):
			return os.ErrDeadlineExceeded
		default:
			return err
		}
	}
}

// expect starts the body that follows a head.
func (c *conn) expect(f wire.Framing, n int64) {
	c.body.Reset(c.nc, c.buf, f, n, nil)
	c.body.Share(&c.reads, 0)
}

// exact says whether the end of the connection, where it is TLS, must have been the target's own word.
func (c *conn) exact(on bool) {
	if c.tls != nil {
		c.tls.exact = on && c.tls.verified
	}
}

// socket is what lies below: to close it ends whatever is done on the connection, at once.
func (c *conn) socket() net.Conn {
	if c.tls != nil {
		return c.tls.under
	}
	return c.nc
}

// between reports whether both messages of the last exchange ended cleanly, so that the next may follow.
func (c *conn) between() bool {
	return c.sink.Done() && c.body.Done() && (c.buf == nil || len(c.buf.Bytes()) == 0)
}

// giveBack returns the borrowed buffers. Nobody may use a head, body or sink of the connection any more; when it is not
// going to be used again, it lets go of everything.
func (c *conn) giveBack(last bool) {
	if last {
		c.sink.Release()
		c.body.Release()
	} else {
		c.body.Reset(c.nc, nil, wire.NoBody, 0, nil) // an idle connection keeps no buffer alive
	}
	if c.buf != nil {
		c.buf.Put()
		c.buf = nil
	}
}
