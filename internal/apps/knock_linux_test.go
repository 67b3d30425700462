package apps

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKnockSaysAtOnceWhetherSomebodyListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	c, err := knock(port)
	if err != nil || c == nil {
		t.Fatalf("where one listens: %v %v", c, err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if n, err := peer.Read(make([]byte, 1)); n != 1 {
		t.Errorf("%d bytes, %v", n, err)
	}
	_, _, _ = c.Close(), peer.Close(), l.Close()
	if c, err := knock(port); c != nil || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("where nobody listens: %v %v", c, err)
	}
}

// A full queue answers nobody: that is for a Dialer to wait for.
func TestKnockDoesNotWait(t *testing.T) {
	t.Parallel()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback.As4()}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(own.(*unix.SockaddrInet4).Port)
	for range 100 {
		c, err := knock(port)
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			return
		}
		defer func() { _ = c.Close() }()
	}
	t.Error("a queue of one takes a hundred")
}
