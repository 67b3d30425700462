package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const linux = true

var features = []feature{
	{"pidfd", tryPidfd, "processes are told apart by pid and start time alone"},
	{"SO_REUSEPORT", tryReusePort, "overlapping addresses cannot change in one reload"},
	{"splice", trySplice, "bytes of tunnels and bodies are copied, at several times the CPU"},
}

func tryPidfd() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func tryReusePort() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

// trySplice moves a byte from one pipe of ours to another.
func trySplice() error {
	var from, to [2]int
	if err := unix.Pipe2(from[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	defer func() { _ = errors.Join(unix.Close(from[0]), unix.Close(from[1])) }()
	if err := unix.Pipe2(to[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	defer func() { _ = errors.Join(unix.Close(to[0]), unix.Close(to[1])) }()
	if _, err := unix.Write(from[1], []byte{0}); err != nil {
		return err
	}
	_, err := unix.Splice(from[0], nil, to[1], nil, 1, unix.SPLICE_F_NONBLOCK)
	return err
}

// inodeOf is a file as /proc/locks names it.
func inodeOf(info fs.FileInfo) (string, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", false
	}
	return fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino), true
}

// synchronised reports whether the kernel says that something keeps its clock right.
func synchronised() (yes, known bool) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, err == nil
}
