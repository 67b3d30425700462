package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Bind listens on a while sockets of ours that overlap it still listen. SO_REUSEPORT is on, on both sides, for this
// moment alone: the kernel wants it at bind and at listen, and later lets both be without. With reuse it stays on ours.
func Bind(a plan.Addr, reuse bool, beside ...*Socket) (*Socket, error) {
	for i, s := range beside {
		if err := s.setReusePort(true); err != nil {
			restore(beside[:i])
			return nil, err
		}
	}
	s, err := bind(a, reuse || len(beside) > 0)
	if err == nil {
		s.reuse = reuse
		if len(beside) > 0 && !reuse {
			if err = s.setReusePort(false); err != nil {
				s.Stop(Drop)
			}
		}
	}
	restore(beside)
	if len(beside) > 0 && !reuse {
		unshare(a)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// restore gives sockets the SO_REUSEPORT that they are to have.
func restore(socks []*Socket) {
	for _, s := range socks {
		_ = s.setReusePort(s.reuse)
	}
}

func bind(a plan.Addr, reuse bool) (*Socket, error) {
	switch a.Network {
	case plan.TCP:
		return bindTCP(a, reuse)
	case plan.Unix:
		return BindUnix(a.Path, 0)
	}
	return nil, fmt.Errorf("%s ports are not in this version", a.Network)
}

func bindTCP(a plan.Addr, reuse bool) (*Socket, error) {
	network, host := "tcp", "" // dual: one IPv6 socket without IPV6_V6ONLY, or IPv4 where the host has no IPv6
	switch a.Family {
	case plan.V4:
		network, host = "tcp4", a.IP.String()
	case plan.V6:
		network, host = "tcp6", a.IP.String()
	}
	// KeepAlive -1: the options are set once on the listening socket, and every connection inherits them.
	lc := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		return control(raw, func(fd int) error { return listenerOptions(fd, reuse) })
	}}
	lc.SetMultipathTCP(false) // its sockets know neither splice nor the filter of shut
	ln, err := lc.Listen(context.Background(), network, net.JoinHostPort(host, strconv.Itoa(int(a.Port))))
	if err != nil {
		return nil, err
	}
	tcp := ln.(*net.TCPListener)
	a.Port = tcp.Addr().(*net.TCPAddr).AddrPort().Port() // the kernel's choice, where a asked for 0
	s, err := newSocket(tcp, a)
	if err != nil {
		ln.Close()
	}
	return s, err
}

// BindUnix listens on path. A socket file that nobody listens on any more is replaced; one that answers, and a file
// that is no socket, are left alone. mode 0 leaves the mode to the umask.
func BindUnix(path string, mode os.FileMode) (*Socket, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		if mode == 0 {
			return nil
		}
		// Linux makes the file with the mode of the socket, so that there is no moment in which it is open to more.
		return control(raw, func(fd int) error { return ignoreInvalid(unix.Fchmod(fd, uint32(mode))) })
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if errors.Is(err, unix.EADDRINUSE) && stale(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		ln, err = lc.Listen(context.Background(), "unix", path)
	}
	if err != nil {
		return nil, err
	}
	u := ln.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // a copy of the socket may live on in another process; unlink decides
	s, err := newSocket(u, plan.Addr{Network: plan.Unix, Path: path})
	if err == nil {
		s.file, err = os.Lstat(path)
	}
	if err == nil && mode != 0 {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	return s, nil
}

// stale reports whether path is a socket on which nobody listens. Only a refused connection says so: a full queue, a
// missing right and any other answer mean that somebody may be there.
func stale(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(context.Background(), "unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// control runs f on the descriptor and returns its error.
func control(raw syscall.RawConn, f func(fd int) error) error {
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func ignoreInvalid(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// SetReusePort switches SO_REUSEPORT of a live socket for good.
func (s *Socket) SetReusePort(on bool) {
	if s.reuse == on {
		return
	}
	s.reuse = on
	_ = s.setReusePort(on)
	unshare(s.Addr)
}

func (s *Socket) setReusePort(on bool) error {
	v := 0
	if on {
		v = 1
	}
	return control(s.raw, func(fd int) error {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, v))
	})
}

// boundAddr is what a listening descriptor is bound to.
func boundAddr(fd int) (plan.Addr, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return plan.Addr{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return plan.TCPAddr(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		if err != nil {
			return plan.Addr{}, os.NewSyscallError("getsockopt IPV6_V6ONLY", err)
		}
		ip := netip.AddrFrom16(sa.Addr)
		if ip.IsUnspecified() && only == 0 {
			return plan.Addr{Port: uint16(sa.Port)}, nil
		}
		return plan.TCPAddr(ip, uint16(sa.Port)), nil
	case *unix.SockaddrUnix:
		return plan.Addr{Network: plan.Unix, Path: sa.Name}, nil
	}
	return plan.Addr{}, fmt.Errorf("a socket of an unknown family")
}
