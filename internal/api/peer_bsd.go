//go:build darwin || freebsd

package api

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// credentials asks the kernel for the user and the groups that the peer had when it connected.
func credentials(c *net.UnixConn) (uid uint32, groups []uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		if err != nil {
			inner = err
			return
		}
		uid, groups = cred.Uid, append(groups, cred.Groups[:max(0, min(int(cred.Ngroups), len(cred.Groups)))]...)
	})
	return uid, groups, errors.Join(err, inner)
}
