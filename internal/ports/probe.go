package ports

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// Probe finds out whether a could be bound now, and by whom it is held if not; nil says that it could. It binds as a
// start would but does not listen, and lets go at once: no client can come in by it, and a socket that others listen on
// refuses it. For that blink nobody else can bind a without SO_REUSEADDR. A unix socket is looked up, not bound.
func Probe(a plan.Addr) *BindError {
	if a.Network == plan.Unix {
		return probeUnix(a)
	}
	err := bindOnly(a)
	if err == nil {
		return nil
	}
	e := bindError(a, err)
	e.lookUp()
	return e
}

func bindOnly(a plan.Addr) error {
	domain, kind := unix.AF_INET6, unix.SOCK_STREAM
	if a.Family == plan.V4 {
		domain = unix.AF_INET
	}
	if a.Network == plan.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) && a.Family == plan.Dual {
		domain = unix.AF_INET // a host without IPv6
		fd, err = unix.Socket(domain, kind, 0)
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	unix.CloseOnExec(fd)
	if kind == unix.SOCK_STREAM {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // else TIME_WAIT would look like a conflict
	}
	if domain == unix.AF_INET {
		to := &unix.SockaddrInet4{Port: int(a.Port)}
		if a.IP.IsValid() {
			to.Addr = a.IP.As4()
		}
		return unix.Bind(fd, to)
	}
	to := &unix.SockaddrInet6{Port: int(a.Port)}
	if a.IP.IsValid() {
		to.Addr = a.IP.As16()
		if zone, err := net.InterfaceByName(a.IP.Zone()); err == nil {
			to.ZoneId = uint32(zone.Index)
		}
	}
	only := 0
	if a.Family == plan.V6 {
		only = 1
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	return unix.Bind(fd, to)
}

// probeUnix looks whether anybody listens on the path. Where the kernel does not tell, a connection does.
func probeUnix(a plan.Addr) *BindError {
	e := bindError(a, unix.EADDRINUSE)
	e.looked = true
	if holders, err := holder.FindUnix(a.Path); err == nil && len(holders) > 0 {
		e.name(&holders[0])
		return e
	}
	info, err := os.Lstat(a.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return bindError(a, err)
	case info.Mode().Type() != os.ModeSocket:
		return e
	}
	c, err := net.DialTimeout("unix", a.Path, time.Second)
	if err == nil {
		_ = c.Close()
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return nil // left over: a start replaces it
	}
	return e
}
