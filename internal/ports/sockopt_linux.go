package ports

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenerOptions are inherited by every accepted connection: a peer that is gone is noticed after about two minutes.
func listenerOptions(fd int, reuse bool) error {
	type option struct{ level, name, value int }
	options := []option{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4},
	}
	if reuse {
		options = append(options, option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// shut keeps new connections from the queue of a listening socket, with a packet filter that lets nothing through, so
// that the queue can be emptied for good. Connections that exist have filters of their own. Without it (an odd kernel)
// a connection that arrives in the instant before close is reset.
func shut(raw syscall.RawConn) {
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
	})
}
