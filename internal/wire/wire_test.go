package wire

import (
	"io"
	"net"
	"testing"

	"go.uber.org/goleak"
)

var (
	_ Sink = (*BodyWriter)(nil)
	_ Body = (*BodyReader)(nil)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a TCP connection over loopback, both ends. Both are closed when the test ends.
func pair(t testing.TB) (here, there *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// say sends text from a goroutine, ends the direction, and is done when the test ends.
func say(t testing.TB, c *net.TCPConn, text string) {
	t.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = io.WriteString(c, text)
		_ = c.CloseWrite()
	}()
	t.Cleanup(func() { c.Close(); <-over })
}
