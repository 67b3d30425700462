package terminate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// A Conn is a client connection whose TLS ended here. It is a net.Conn of what is said inside.
//
// Reading and writing belong to one goroutine each. A deadline that strikes a read leaves the connection as it was; one
// that strikes a write ends it, unless whoever writes does so by way of the Carrier below, as a wire.BodyWriter does.
type Conn struct {
	t *tls.Conn
	f feed

	broken bool // the end must not look like one
}

// Handshake ends the TLS of c under the policy. head is what was read of c already; it belongs to the caller again when
// Handshake returns. It may last for d (0: as long as it likes); ctx is what a certificate is waited for under. local is
// where the client came to, when that is not where c arrived; else nil.
//
// It sets deadlines of c and clears them. After an error c is to be closed, and an alert was sent where the client was
// still to be reached.
func (p *Policy) Handshake(ctx context.Context, c net.Conn, local net.Addr, head []byte, d time.Duration) (*Conn, error) {
	p.settle()
	k := &Conn{}
	f := &k.f
	f.Carrier, f.local, f.b, f.ctx = wire.NewCarrier(c), local, head, ctx
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			f.raw, f.try = raw, f.tryRead
		}
	}
	if d > 0 {
		f.until = time.Now().Add(d)
	}
	if err := c.SetDeadline(f.until); err != nil {
		return nil, err
	}
	k.t = tls.Server(f, p.config)
	if err := k.t.HandshakeContext(context.Background()); err != nil {
		f.drop()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("tls handshake not complete after %v: %w", d, os.ErrDeadlineExceeded)
		}
		return nil, err
	}
	f.ctx, f.until, f.local = nil, time.Time{}, nil // head is used up: the last message of a handshake answers ours
	state := k.t.ConnectionState()
	f.more, f.overhead = 0, overhead(&state)
	return k, c.SetDeadline(time.Time{})
}

// overhead is what a record holds besides the bytes of the application at least.
func overhead(s *tls.ConnectionState) int {
	switch {
	case s.Version >= tls.VersionTLS13:
		return 17 // tag and type
	case s.CipherSuite == tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, s.CipherSuite == tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:
		return 16
	}
	return 24 // nonce and tag
}

// State says what was agreed on.
func (k *Conn) State() tls.ConnectionState { return k.t.ConnectionState() }

// Await waits until Read may have something to give, and holds no memory while it does. It heeds the read deadline.
func (k *Conn) Await() error {
	if k.f.more > 0 || len(k.f.b) > 0 {
		return nil
	}
	return k.f.fill()
}

// Read implements net.Conn.
func (k *Conn) Read(p []byte) (int, error) {
	n, err := k.t.Read(p)
	if n < len(p) {
		k.f.more = 0 // it would have given what it had
	} else {
		k.f.more = max(k.f.more-n, 0)
	}
	return n, err
}

// Write implements net.Conn.
func (k *Conn) Write(p []byte) (int, error) { return k.t.Write(p) }

// CloseWrite says close_notify, if the client takes it at once, and FIN. Nothing can be written afterwards.
func (k *Conn) CloseWrite() error {
	k.f.Closing()
	err := k.t.CloseWrite()
	if half, ok := k.f.Conn.(interface{ CloseWrite() error }); ok {
		return errors.Join(err, half.CloseWrite())
	}
	return err
}

// Close implements net.Conn. It waits for nobody: close_notify is said if the client takes it at once.
func (k *Conn) Close() error {
	defer k.f.drop()
	if k.broken {
		return k.f.Conn.Close()
	}
	k.f.Closing()
	_ = k.t.Close() // closes what is below, whatever it says
	return nil
}

// SetLinger is that of TCP. The close to come is the end of an unfinished message, and says no close_notify.
func (k *Conn) SetLinger(sec int) error {
	k.broken = true
	if c, ok := k.f.Conn.(interface{ SetLinger(int) error }); ok {
		return c.SetLinger(sec)
	}
	return nil
}

// NetConn is the *wire.Carrier below.
func (k *Conn) NetConn() net.Conn { return k.f.Carrier }

// LocalAddr implements net.Conn.
func (k *Conn) LocalAddr() net.Addr { return k.f.Conn.LocalAddr() }

// RemoteAddr implements net.Conn.
func (k *Conn) RemoteAddr() net.Addr { return k.f.Conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (k *Conn) SetDeadline(t time.Time) error { return k.f.Conn.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (k *Conn) SetReadDeadline(t time.Time) error { return k.f.Conn.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (k *Conn) SetWriteDeadline(t time.Time) error { return k.f.Conn.SetWriteDeadline(t) }
