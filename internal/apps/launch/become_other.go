//go:build !linux

package launch

import "golang.org/x/sys/unix"

// closeRest makes descriptors from first on vanish with exec. Ours do anyway; others we may have inherited ourselves.
func closeRest(first int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	for fd := first; fd < int(min(uint64(limit.Cur), 4096)); fd++ { //nolint:unconvert // the type differs between systems
		unix.CloseOnExec(fd)
	}
	return nil
}

// dropCapabilities has nothing to drop: there are none here.
func dropCapabilities() error { return nil }

// ignores reports whether a signal may be ignored.
func ignores() bool { return true }
