package evict

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// gone reports whether the process has ended, all its threads with it; that its parent has not asked how does not
// matter, since its sockets are closed by then.
func (p *proc) gone() bool {
	over := false
	err := p.handle.WithHandle(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		over = err == nil && n > 0
	})
	if errors.Is(err, os.ErrProcessDone) {
		return true
	}
	if err != nil { // a kernel without handles
		return !p.same()
	}
	return over
}
