package launch

import (
	"errors"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// closeRest makes descriptors from first on vanish with exec. Ours do anyway; others we may have inherited ourselves.
func closeRest(first int) error {
	err := unix.CloseRange(uint(first), math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) { // before Linux 5.11, or filtered
		return nil
	}
	return os.NewSyscallError("close_range", err)
}

// dropCapabilities leaves nothing for exec to keep: what a program of a user gets is then what its file grants.
func dropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("prctl PR_CAP_AMBIENT_CLEAR_ALL", err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	return os.NewSyscallError("capset", unix.Capset(&head, &data[0]))
}

// ignores reports whether a signal may be ignored.
func ignores() bool {
	text, _ := os.ReadFile("/proc/self/status")
	_, set, found := strings.Cut(string(text), "\nSigIgn:\t")
	set, _, _ = strings.Cut(set, "\n")
	return !found || strings.Trim(set, "0") != ""
}
