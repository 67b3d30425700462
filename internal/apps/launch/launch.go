// Package launch is the last step between the daemon and a program that it runs. A hidden verb of our own binary stands
// in between for a moment: it does what only the new process can do for itself, and then becomes the program.
//
// The contract with the program:
//   - its pid is the one that Start returns, it leads a session and a process group of its own, and nothing ends it when
//     the daemon ends;
//   - its environment is Spec.Inherit, less what was meant for us alone (see Clean), and Spec.Env;
//   - it has descriptors 0 to 2, the sockets from 3 on, and no other. LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES tell of
//     the sockets, as sd_listen_fds(3) has it;
//   - the sockets are blocking, as a program expects that did not make them;
//   - its user, groups and folder are as asked for, ambient and inheritable capabilities are gone, the limit of open
//     files is what it was before Go raised ours, and no signal is blocked or ignored.
//
// The contract with the daemon: a socket that is passed is never accepted on by us. O_NONBLOCK belongs to the socket and
// not to a descriptor of it, so it cannot be blocking for the program and non-blocking for a loop of ours. Start changes
// nothing of a socket: it refuses a non-blocking one, and Detach makes one that is fit by taking it away from Go.
package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxSpec    = 4 << 20 // bytes of a Spec; Linux takes 2 MiB of arguments and environment by default
	maxSockets = 250     // one kind of error for too many, wherever they come from
	maxWhy     = 4 << 10 // bytes of the answer
	within     = 10 * time.Second
	firstFD    = 3
)

// A Spec is a program to run.
type Spec struct {
	Path    string   `json:"path"` // without a slash: looked up in the program's own PATH; else relative to Dir
	Args    []string `json:"args"` // the first is the program's name
	Env     []string `json:"env"`  // NAME=value; over Inherit
	Inherit []string `json:"-"`    // our own environment, or parts of it; cleaned
	Dir     string   `json:"dir,omitempty"`
	User    *User    `json:"user,omitempty"`   // nil: as we are
	NoFile  *NoFile  `json:"nofile,omitempty"` // nil: as we were started
	Group   string   `json:"group,omitempty"`  // folder of the control group that it enters first; "": it stays in ours

	// Before is called when there is a process that only has to become the program. An error of it ends that.
	Before func() error `json:"-"`

	Sockets []Socket `json:"sockets,omitempty"`
	In      int      `json:"-"` // descriptors of ours, that stay ours; -1: /dev/null
	Out     int      `json:"-"`
	Err     int      `json:"-"`
}

// A User is whom the program runs as.
type User struct {
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups"` // all supplementary groups
}

// NoFile are the limits of open files.
type NoFile struct {
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// A Socket is passed on. FD stays ours.
type Socket struct {
	Name string `json:"name"` // for LISTEN_FDNAMES; printable ASCII without a colon, at most 255 bytes
	FD   int    `json:"-"`
}

// Start runs the program and returns its pid once it is the program, or why it is not; there is no process then. The
// launcher is our own binary, called with args and the number of a descriptor behind them so that it calls Become. The
// caller waits for the process.
func Start(launcher string, args []string, s *Spec) (pid int, err error) {
	if err := s.check(); err != nil {
		return 0, fmt.Errorf("start %s: %w", s.Path, err)
	}
	whole := *s
	whole.Env = merge(Clean(s.Inherit), s.Env)
	text, err := json.Marshal(&whole)
	if err != nil {
		return 0, err
	}
	if len(text) > maxSpec {
		return 0, fmt.Errorf("start %s: %d bytes of arguments and environment are too much", s.Path, len(text))
	}
	ours, theirs, err := pair()
	if err != nil {
		return 0, err
	}
	defer func() { _ = ours.Close() }()
	pid, inside, err := s.fork(launcher, args, theirs)
	_ = unix.Close(theirs)
	if err == nil && inside {
		whole.Group = ""
		text, err = json.Marshal(&whole)
	}
	if err != nil {
		return 0, fmt.Errorf("start %s by way of %s: %w", s.Path, launcher, err)
	}
	if err := hear(ours, text, s.Before); err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		reap(pid)
		return 0, fmt.Errorf("start %s: %w", s.Path, err)
	}
	return pid, nil
}

// check looks at what would be a mistake of the caller.
func (s *Spec) check() error {
	if s.Path == "" || len(s.Args) == 0 {
		return errors.New("no program")
	}
	if len(s.Sockets) > maxSockets {
		return fmt.Errorf("%d sockets are too many", len(s.Sockets))
	}
	for _, k := range s.Sockets {
		if len(k.Name) > 255 || strings.ContainsFunc(k.Name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
			return fmt.Errorf("%q cannot be the name of a socket", k.Name)
		}
		flags, err := unix.FcntlInt(uintptr(k.FD), unix.F_GETFL, 0)
		if err != nil {
			return fmt.Errorf("socket %q: %w", k.Name, os.NewSyscallError("fcntl", err))
		}
		if flags&unix.O_NONBLOCK != 0 {
			return fmt.Errorf("socket %q is non-blocking: somebody here accepts on it", k.Name)
		}
	}
	return nil
}

// fork starts the launcher, in its control group at once where the system can. Not os/exec: it makes every descriptor that
// it passes blocking, and with it all copies.
func (s *Spec) fork(launcher string, args []string, link int) (pid int, inside bool, err error) {
	files := []uintptr{0, 0, 0}
	for i, fd := range []int{s.In, s.Out, s.Err} {
		if fd >= 0 {
			files[i] = uintptr(fd)
			continue
		}
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return 0, false, err
		}
		defer null.Close()
		files[i] = null.Fd()
	}
	for _, k := range s.Sockets {
		files = append(files, uintptr(k.FD))
	}
	args = append(append([]string{"quaymaster"}, args...), fmt.Sprint(len(files)))
	attr := &syscall.ProcAttr{
		Env:   []string{}, // the program's own may hold what would change us, such as LD_PRELOAD
		Files: append(files, uintptr(link)),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if pid, ok := forkInto(s.Group, launcher, args, attr); ok {
		return pid, true, nil
	}
	pid, err = syscall.ForkExec(launcher, args, attr)
	return pid, false, err
}

// hear waits until the launcher is there, sends the spec, and waits until the other end is closed on exec, or says why it
// came to nothing.
func hear(c *net.UnixConn, spec []byte, before func() error) error {
	_ = c.SetDeadline(time.Now().Add(within))
	var there [1]byte
	_, failed := io.ReadFull(c, there[:])
	if failed == nil && before != nil {
		if err := before(); err != nil {
			return err
		}
	}
	if failed == nil {
		_, failed = c.Write(spec)
	}
	if failed == nil {
		failed = c.CloseWrite()
	}
	why, err := io.ReadAll(io.LimitReader(c, maxWhy))
	switch {
	case len(why) > 0:
		return errors.New(string(why))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("our own binary did not get to it in %s", within)
	case failed != nil:
		return fmt.Errorf("our own binary ended too early: %w", failed)
	}
	return err
}

func reap(pid int) {
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			return
		}
	}
}

// pair makes a socketpair of ours and a descriptor for the launcher.
func pair() (ours *net.UnixConn, theirs int, err error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "launch")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		_ = unix.Close(fds[1])
		return nil, -1, err
	}
	return c.(*net.UnixConn), fds[1], nil
}

// Detach takes a listener away from Go: it is closed here, so that nobody of us accepts on it again, and its socket lives
// on behind the descriptor, which is blocking and close-on-exec and which the caller closes. What is queued stays queued.
func Detach(l net.Listener) (fd int, err error) {
	conn, ok := l.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("a listener of type %T has no descriptor", l)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	if second := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, firstFD) }); second != nil {
		return -1, second
	}
	if err != nil {
		return -1, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	l.Close()
	if err := unix.SetNonblock(fd, false); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("fcntl F_SETFL", err)
	}
	return fd, nil
}
