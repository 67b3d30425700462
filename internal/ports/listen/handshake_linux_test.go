package listen

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// TestAHandshakeThatEndsWhileItsPortClosesEndsInSomething: the last packet of a handshake is let in until the socket
// is closed. A client that sent it is connected as far as it knows, says nothing where the server speaks first, and would
// wait for ever if we had dropped the packet.
func TestAHandshakeThatEndsWhileItsPortClosesEndsInSomething(t *testing.T) {
	s, err := Bind(plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), 0), false)
	if err != nil {
		t.Fatal(err)
	}
	const clients = 20
	var deaf, over sync.WaitGroup
	deaf.Add(clients)
	fds := make([]int, clients)
	ends := make(chan error, clients)
	connected := make(chan struct{}, clients)
	for i := range clients {
		over.Go(func() {
			c, err := dialDeaf(s.Addr.String(), func(fd int) { fds[i] = fd; deaf.Done() })
			if err != nil {
				ends <- err // refused: its handshake was begun anew, after the end
				return
			}
			connected <- struct{}{}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			_, err = io.ReadAll(c)
			ends <- err
		})
	}
	deaf.Wait()
	h := &Handler{Take: func(c net.Conn) { c.Close() }}
	<-time.After(100 * time.Millisecond) // the first packets have come, and the answers were not heard
	s.drain(h, retireFor)
	for _, fd := range fds {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		_ = unix.Close(fd)
	}
	for range clients { // the kernel answers again after a second, and the clients complete the handshake
		select {
		case <-connected:
		case <-time.After(30 * time.Second):
			t.Fatal("the handshakes do not end")
		}
	}
	s.discard()
	over.Wait()
	for range clients {
		if err := <-ends; errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a client that is connected hears nothing")
		}
	}
}

// dialDeaf connects from a socket that hears nothing until the filter is taken off the descriptor, a copy, which is given
// before the first packet goes out.
func dialDeaf(to string, with func(fd int)) (net.Conn, error) {
	d := net.Dialer{Timeout: 60 * time.Second, KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		_ = raw.Control(func(fd uintptr) {
			none := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
			if err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none}); err != nil {
				return
			}
			var other int
			if other, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err == nil {
				with(other)
			}
		})
		return err
	}}
	return d.Dial("tcp", to)
}
