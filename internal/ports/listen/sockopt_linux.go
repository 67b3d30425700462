package listen

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
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

// noNewHandshake is a packet filter of a listening socket, where a packet begins with its TCP header.
var noNewHandshake = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},            // the flags
	{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 0x02, Jf: 1}, // SYN
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
}

// shut lets no new handshake through to a listening socket, so that its queue can be emptied for good. Those under way
// end, and connections that exist already are not touched. Where the kernel has no filters a connection that arrives in
// the instant before close is reset.
func shut(raw syscall.RawConn) {
	_ = control(raw, func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(noNewHandshake)), Filter: &noNewHandshake[0]})
	})
}

// unshut takes a filter off again.
func unshut(raw syscall.RawConn) {
	_ = control(raw, func(fd int) error { // there may be none
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	})
}

// unshare makes the kernel forget that a port was bound with SO_REUSEPORT. It remembers that beyond the life of the option,
// and would let in any later socket of our user that has the option, without a look at who listens. A bind without the
// option ends that; the socket made for it is closed unheard. It must not clash with what listens, so it is of the other
// family, or (where both are taken by a dual socket) in repair mode, which needs CAP_NET_ADMIN: without that right a dual
// port stays open to processes of our own user that ask for SO_REUSEPORT.
func unshare(a plan.Addr) {
	family, at := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(a.Port), Addr: [4]byte{127, 0, 0, 1}})
	if a.Family == plan.V4 {
		family, at = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port), Addr: [16]byte{15: 1}}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
	_ = unix.Bind(fd, at)
	_ = unix.Close(fd)
}
