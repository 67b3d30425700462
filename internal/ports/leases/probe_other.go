//go:build !linux

package leases

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// probe binds a port on every address of this host, so that nobody else can, and returns what holds it.
//
// These kernels let a bind to a wildcard pass beside one to an address of it where SO_REUSEADDR is set, and without it
// TIME_WAIT makes a port look busy. So each of the four addresses that servers use is bound: the kernel refuses the same
// one twice, whether it listens or not. None of the sockets listens: a client that comes is refused.
func probe(port uint16) (io.Closer, error) {
	var all descriptors
	for _, ip := range []netip.Addr{
		netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Unspecified(), netip.IPv6Loopback(),
	} {
		fd, err := bindOne(netip.AddrPortFrom(ip, port))
		if ip.Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) { // a host without IPv6
			continue
		}
		if err != nil {
			_ = all.Close()
			return nil, err
		}
		all = append(all, fd)
	}
	return all, nil
}

func bindOne(a netip.AddrPort) (int, error) {
	family := unix.AF_INET6
	var to unix.Sockaddr = &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if a.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if family == unix.AF_INET6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, to))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

type descriptors []int

// Close lets go of the port.
func (d descriptors) Close() error {
	var err error
	for _, fd := range d {
		err = errors.Join(err, unix.Close(fd))
	}
	return err
}
