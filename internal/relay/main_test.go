package relay

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pairOf joins two sockets of a network. On "tls12" and "tls13" b is a connection of ours over TCP, and its server.
func pairOf(t testing.TB, network string) (a, b net.Conn) {
	t.Helper()
	switch network {
	case "tls12":
		a, b = pairOf(t, "tcp")
		return secure(t, a, b, tls.VersionTLS12, true)
	case "tls13":
		a, b = pairOf(t, "tcp")
		return secure(t, a, b, tls.VersionTLS13, true)
	}
	addr := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "relay")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		addr = dir + "/s"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// joint is a tunnel that runs between a client and a target.
type joint struct {
	client, target net.Conn // the far ends
	*Tunnel
	result chan Result
	once   sync.Once
	res    Result
}

// join runs t between two sockets of those networks. "pipe" is a TCP socket that hides what it is.
func join(t testing.TB, clientNet, targetNet string, tun *Tunnel) *joint {
	t.Helper()
	end := func(network string) (far, near net.Conn) {
		kind, hidden := strings.CutSuffix(network, "-wrapped")
		far, near = pairOf(t, kind)
		if hidden {
			near = wrapped{near.(*net.TCPConn)}
		}
		return far, near
	}
	j := &joint{Tunnel: tun, result: make(chan Result, 1)}
	j.client, tun.Client.Conn = end(clientNet)
	j.target, tun.Target.Conn = end(targetNet)
	client, target := tun.Client.Conn, tun.Target.Conn
	go func() {
		r := tun.Run()
		client.Close()
		target.Close()
		j.result <- r
	}()
	t.Cleanup(func() {
		tun.Cut()
		j.wait(t)
	})
	return j
}

// wrapped is a connection that relay knows nothing of.
type wrapped struct{ c *net.TCPConn }

func (w wrapped) Read(p []byte) (int, error)         { return w.c.Read(p) }
func (w wrapped) Write(p []byte) (int, error)        { return w.c.Write(p) }
func (w wrapped) Close() error                       { return w.c.Close() }
func (w wrapped) CloseWrite() error                  { return w.c.CloseWrite() }
func (w wrapped) LocalAddr() net.Addr                { return w.c.LocalAddr() }
func (w wrapped) RemoteAddr() net.Addr               { return w.c.RemoteAddr() }
func (w wrapped) SetDeadline(t time.Time) error      { return w.c.SetDeadline(t) }
func (w wrapped) SetReadDeadline(t time.Time) error  { return w.c.SetReadDeadline(t) }
func (w wrapped) SetWriteDeadline(t time.Time) error { return w.c.SetWriteDeadline(t) }
func (w wrapped) SetLinger(n int) error              { return w.c.SetLinger(n) }

func (j *joint) wait(t testing.TB) Result {
	t.Helper()
	j.once.Do(func() {
		select {
		case j.res = <-j.result:
		case <-time.After(20 * time.Second):
			t.Fatal("the tunnel does not end")
		}
	})
	return j.res
}

func (j *joint) wantCause(t *testing.T, want Cause) {
	t.Helper()
	if r := j.wait(t); r.Cause != want {
		t.Fatalf("cause %v, want %v (%+v)", r.Cause, want, r)
	}
}

// under is the socket of c.
func under(c net.Conn) *net.TCPConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return c.(*net.TCPConn)
}

func send(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, c net.Conn, text string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("read %q, %v; want %q", b, err, text)
	}
}

func expectEOF(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 64)
	if n, err := c.Read(b); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %q, %v; want EOF", b[:n], err)
	}
}
