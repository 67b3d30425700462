package launch

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// forkInto starts a process inside a control group (Linux 5.7). One that enters it by itself waits for every processor to
// have come by, 10 to 30 ms. It reports false where that cannot be had, and the process has to enter by itself.
func forkInto(group, path string, args []string, attr *syscall.ProcAttr) (pid int, ok bool) {
	if group == "" || runtime.GOOS == "android" { // which ends programs that ask for what it does not know
		return 0, false
	}
	fd, err := unix.Open(group, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer func() { _ = unix.Close(fd) }()
	a, sys := *attr, *attr.Sys
	sys.UseCgroupFD, sys.CgroupFD = true, fd
	a.Sys = &sys
	pid, err = syscall.ForkExec(path, args, &a)
	return pid, err == nil
}
