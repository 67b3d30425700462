package leases

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// probe binds a port on every address of this host, so that nobody else can, and returns what holds it.
//
// One dual-stack socket is enough: the kernel refuses it when anybody listens on the port at 0.0.0.0, 127.0.0.1, ::, ::1
// or any other address. It has SO_REUSEADDR, without which connections in TIME_WAIT would make the port look busy; with
// it a bind alone proves nothing, so the socket listens. Then it is shut down, which makes it a socket that is bound
// and no more: a client that comes is refused at once and does not wait in a queue that nobody empties. Last it loses
// SO_REUSEADDR, so that the kernel refuses the port to whoever binds it, with SO_REUSEADDR or without.
func probe(port uint16) (io.Closer, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
		err = reserve(fd, &unix.SockaddrInet6{Port: int(port)})
	}
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) { // a host without IPv6
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err == nil {
			err = reserve(fd, &unix.SockaddrInet4{Port: int(port)})
		}
	}
	if err != nil {
		return nil, err
	}
	return descriptor(fd), nil
}

// reserve makes fd hold the port, or closes it.
func reserve(fd int, to unix.Sockaddr) error {
	err := os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, to))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 0))
	}
	if err == nil {
		err = os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_RDWR))
	}
	if err == nil {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0))
	}
	if err != nil {
		_ = unix.Close(fd)
	}
	return err
}

type descriptor int

// Close lets go of the port.
func (d descriptor) Close() error { return unix.Close(int(d)) }
