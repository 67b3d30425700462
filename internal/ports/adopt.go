package ports

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
	Systemd bool // somebody else holds the socket for good: it is never closed, only not accepted on
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

// adopt makes a socket of an inherited descriptor and closes the descriptor, of which the socket has its own copy.
func adopt(in Inherited) (*socket, error) {
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
	l, ok := ln.(listener)
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
	s.name, s.kept = in.Name, in.Systemd
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		if !s.kept {
			s.file, _ = os.Lstat(addr.Path)
		}
	}
	return s, nil
}

// fresh is a socket of systemd after its accept loop has ended, ready for another.
func (s *socket) fresh() *socket {
	return &socket{ln: s.ln, raw: s.raw, addr: s.addr, name: s.name, kept: true, over: make(chan struct{})}
}

// A Socket is one live socket, for the process that takes our place.
type Socket struct {
	Want, Addr plan.Addr
	Name       string // as inherited
	Systemd    bool
	FD         int // a copy that the receiver of the list closes; close-on-exec
}

// Sockets copies the descriptors of every socket that serves the plan. Nothing is set on the sockets themselves: they
// stay non-blocking, and we stay able to close our own.
func (ps *Ports) Sockets() ([]Socket, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var out []Socket
	for _, p := range ps.sorted() {
		for _, s := range p.socks {
			fd := -1
			err := control(s.raw, func(of int) (err error) {
				fd, err = unix.FcntlInt(uintptr(of), unix.F_DUPFD_CLOEXEC, 3)
				return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
			})
			if err != nil {
				for _, got := range out {
					_ = unix.Close(got.FD)
				}
				return nil, fmt.Errorf("copy the socket of port %s: %w", p.plan.Addr, err)
			}
			out = append(out, Socket{Want: p.plan.Addr, Addr: s.addr, Name: s.name, Systemd: s.kept, FD: fd})
		}
	}
	return out, nil
}
