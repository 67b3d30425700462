package listen

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// An Inherited socket was open when the process started.
type Inherited struct {
	Name    string // what fd:NAME in a configuration means; may be shared by several
	FD      int
	Systemd bool      // somebody else holds the socket for good: it is never closed, only not accepted on
	Given   bool      // by the process whose place we take; it lets go of it when we serve
	Stored  bool      // by a process that died; systemd has kept it for us, and it is ours alone
	Want    plan.Addr // of a given one: the wish it served
}

// Adopt makes a socket of an inherited descriptor and closes the descriptor, of which the socket has its own copy.
func Adopt(in Inherited) (*Socket, error) {
	f := os.NewFile(uintptr(in.FD), in.Name)
	if f == nil {
		return nil, fmt.Errorf("descriptor %d is not open", in.FD)
	}
	defer f.Close()
	if on, err := unix.GetsockoptInt(in.FD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return nil, fmt.Errorf("descriptor %d is not a listening socket", in.FD)
	}
	addr, err := boundAddr(in.FD)
	if err != nil {
		return nil, err
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	l, ok := ln.(Listener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("descriptor %d is neither tcp nor a unix stream socket", in.FD)
	}
	if addr.Network == plan.TCP {
		// The options of the one who made the socket may differ; connections inherit ours from now on.
		_ = listenerOptions(in.FD, false)
	}
	s, err := newSocket(l, addr)
	if err != nil {
		ln.Close()
		return nil, err
	}
	s.Name, s.Kept, s.Given, s.Stored, s.Want = in.Name, in.Systemd, in.Given, in.Stored, in.Want
	s.lent.Store(in.Given || in.Stored) // if we do not come to serve, the next process has it as it was
	if in.Stored {
		unshut(s.raw) // it may have died while it closed the socket
	}
	if on, err := unix.GetsockoptInt(in.FD, unix.SOL_SOCKET, unix.SO_REUSEPORT); err == nil {
		s.reuse = on != 0
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		if !s.Kept {
			s.file, _ = os.Lstat(addr.Path)
		}
	}
	return s, nil
}

// Descriptor runs f with the descriptor, which stays open and as it is meanwhile.
func (s *Socket) Descriptor(f func(fd int)) {
	_ = control(s.raw, func(fd int) error { f(fd); return nil }) // a socket that is closed has none
}

// Copy returns a new descriptor of the socket, close-on-exec. Nothing is set on the socket itself: it stays non-blocking,
// and we stay able to close our own descriptor.
func (s *Socket) Copy() (fd int, err error) {
	fd = -1
	err = control(s.raw, func(of int) (err error) {
		fd, err = unix.FcntlInt(uintptr(of), unix.F_DUPFD_CLOEXEC, 3)
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	})
	return fd, err
}
