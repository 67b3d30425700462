//go:build !linux

package listen

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// listenerOptions are inherited by every accepted connection. The clock of keep-alive is the system's.
func listenerOptions(fd int, reuse bool) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if !reuse {
		return nil
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

// shut has no counterpart here: a connection that arrives in the instant before close is reset.
func shut(syscall.RawConn) {}

// unshut has nothing to take off.
func unshut(syscall.RawConn) {}

// unshare has nothing to do here.
func unshare(plan.Addr) {}
