package listen

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// maxInherited bounds what is taken from the environment.
const maxInherited = 1024

// An Inherited socket was open when the process started.
type Inherited struct {
	Name    string // what fd:NAME in a configuration means; may be shared by several
	FD      int
	Systemd bool      // somebody else holds the socket for good: it is never closed, only not accepted on
	Given   bool      // by the process whose place we take; it lets go of it when we serve
	Want    plan.Addr // of a given one: the wish it served
}

// Activation lists the sockets that systemd passed to this process (sd_listen_fds): nothing, unless LISTEN_PID is pid.
// The descriptors are set close-on-exec.
func Activation(env func(string) (string, bool), pid int) []Inherited {
	value := func(name string) string { v, _ := env(name); return v }
	if value("LISTEN_PID") != strconv.Itoa(pid) {
		return nil
	}
	n, err := strconv.Atoi(value("LISTEN_FDS"))
	if err != nil || n <= 0 || n > maxInherited {
		return nil
	}
	list := strings.Split(value("LISTEN_FDNAMES"), ":")
	out := make([]Inherited, n)
	for i := range out {
		fd := 3 + i // SD_LISTEN_FDS_START
		unix.CloseOnExec(fd)
		out[i] = Inherited{FD: fd, Systemd: true}
		if i < len(list) {
			out[i].Name = list[i]
		}
	}
	return out
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
	s.Name, s.Kept, s.Given, s.Want = in.Name, in.Systemd, in.Given, in.Want
	s.lent.Store(in.Given)
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		if !s.Kept {
			s.file, _ = os.Lstat(addr.Path)
		}
	}
	return s, nil
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
