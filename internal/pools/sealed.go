package pools

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// A sealed is a TLS connection to a target.
type sealed struct {
	*tls.Conn
	under *wire.Carrier
	era   *era
	// exact: the end of the stream counts only where the target has said it. Else somebody on the way could cut an
	// answer short that has no other end (RFC 9112 section 9.8).
	exact    bool
	verified bool
	byte1    [1]byte
	held     bool // Await has read byte1
	readable func(fd uintptr) bool
}

var errCutShort = fmt.Errorf("TLS ended without a close_notify: %w", io.ErrUnexpectedEOF)

// past is a deadline that ends a wait at once.
var past = time.Unix(1, 0)

// seal begins TLS on nc, which leads to m, after the PROXY header if one is due. It ends with ctx. An error leaves nc to
// the caller.
func (p *Pool) seal(ctx context.Context, m *Member, nc net.Conn, hello []byte) (*sealed, error) {
	config, sec := p.tlsFor(m)
	under := wire.NewCarrier(nc)
	c := &sealed{Conn: tls.Client(under, config), under: under, era: sec.era, verified: !sec.set.Insecure}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(past) })
	var err error
	if len(hello) > 0 {
		_, err = nc.Write(hello)
	}
	if err == nil {
		err = c.Handshake()
	}
	switch {
	case !stop() && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, &Error{Kind: "timeout", Err: errors.New("the TLS handshake did not end in time")}
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, &Error{Kind: "tls", Err: handshakeWords(err, config, &sec.set, m.target.Text)}
	}
	return c, nil
}

// Read implements net.Conn.
func (c *sealed) Read(p []byte) (int, error) {
	if c.held && len(p) > 0 {
		c.held, p[0] = false, c.byte1[0]
		n, _ := c.ReadNow(p[1:]) // whatever is wrong, the next Read says it too
		return 1 + n, nil
	}
	n, err := c.Conn.Read(p)
	if c.exact && err != nil && errors.Is(err, io.EOF) && c.under.Ended() {
		err = errCutShort
	}
	return n, err
}

// Await waits until Read has something to say, and holds no buffer of the reader's meanwhile. That bytes came is not
// enough: they may be a part of a record, or none of the target's.
func (c *sealed) Await() error {
	raw, err := c.under.SyscallConn()
	if err != nil || c.held {
		return nil //nolint:nilerr // Read waits
	}
	if c.readable == nil {
		c.readable = func(fd uintptr) bool {
			var b [1]byte
			_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			return err != syscall.EAGAIN
		}
	}
	for {
		n, err := c.ReadNow(c.byte1[:])
		if c.held = n > 0; c.held || !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err := raw.Read(c.readable); err != nil {
			return err
		}
	}
}

// ReadNow reads what is there and waits for nothing.
func (c *sealed) ReadNow(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.under.Now(true)
	n, err := c.Read(p)
	c.under.Now(false)
	return n, err
}

// quiet reports whether the target has neither ended the connection nor said anything on its own that is more than TLS's
// own affairs: session tickets and new keys may come at any time. It does not wait.
func (c *sealed) quiet() bool {
	n, err := c.ReadNow(c.byte1[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

// Close ends the connection and waits for nobody.
func (c *sealed) Close() error {
	c.under.Closing()
	return c.Conn.Close()
}

// SetLinger implements what makes a close a reset.
func (c *sealed) SetLinger(sec int) error {
	if tc, ok := c.under.Conn.(*net.TCPConn); ok {
		return tc.SetLinger(sec)
	}
	return nil
}
