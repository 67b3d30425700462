package api

import (
	"errors"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// credentials asks the kernel for the user and all groups that the peer had when it connected (SO_PEERCRED and
// SO_PEERGROUPS, unix(7)).
func credentials(c *net.UnixConn) (uid uint32, groups []uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			inner = os.NewSyscallError("getsockopt SO_PEERCRED", err)
			return
		}
		uid, groups = cred.Uid, append(peerGroups(fd), cred.Gid)
	})
	return uid, groups, errors.Join(err, inner)
}

// peerGroups lists the supplementary groups of the peer; none if the kernel is too old to tell.
func peerGroups(fd uintptr) []uint32 {
	groups := make([]uint32, 256)
	for range 2 {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4]
		case errno == unix.ERANGE && size/4 <= 65536: // NGROUPS_MAX; size now says what is needed
			groups = make([]uint32, size/4)
		default:
			return nil
		}
	}
	return nil
}
