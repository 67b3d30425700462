package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Become is the launcher's part. It reads the spec from link, and does not return if all goes well. Why it did return is
// told to Start as well; the caller ends the process.
func Become(link int) error {
	kind, err := unix.GetsockoptInt(link, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || link <= 2 || kind != unix.SOCK_STREAM {
		return errors.New("this verb is for the daemon alone")
	}
	unix.CloseOnExec(link)
	f := os.NewFile(uintptr(link), "launch")
	_, _ = io.WriteString(f, "\n") // we are there
	err = become(f, link)
	_, _ = io.WriteString(f, err.Error()) // nobody to tell is nobody to care
	_ = f.Close()
	return err
}

func become(spec io.Reader, link int) error {
	text, err := io.ReadAll(io.LimitReader(spec, maxSpec+1))
	if err != nil {
		return err
	}
	var s Spec
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("read what to start: %w", err)
	}
	if link != firstFD+len(s.Sockets) {
		return fmt.Errorf("%d sockets do not end before descriptor %d", len(s.Sockets), link)
	}
	runtime.LockOSThread() // capabilities are of the thread that execs
	if ignores() {
		signal.Notify(make(chan os.Signal, 1)) // what is handled becomes the default with exec; it costs some milliseconds
	}
	if err := closeRest(link + 1); err != nil {
		return err
	}
	if s.Group != "" {
		if err := enter(s.Group); err != nil {
			return err
		}
	}
	if n := s.NoFile; n != nil {
		limit := &syscall.Rlimit{}
		setLimit(limit, n.Soft, n.Hard)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, limit); err != nil {
			return fmt.Errorf("set the limit of open files to %d, at most %d: %w", n.Soft, n.Hard, err)
		}
	}
	if err := s.switchUser(); err != nil {
		return err
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	if s.Dir != "" {
		if err := os.Chdir(s.Dir); err != nil {
			return err
		}
	}
	env := s.environ()
	path, err := look(s.Path, env)
	if err != nil {
		return err
	}
	err = syscall.Exec(path, s.Args, env)
	if errors.Is(err, syscall.E2BIG) {
		return fmt.Errorf("exec %s: its arguments and environment are longer than the system takes", path)
	}
	return fmt.Errorf("exec %s: %w", path, err)
}

// enter enters a control group, with all threads.
func enter(group string) error {
	f, err := os.OpenFile(filepath.Join(group, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = f.WriteString("0")
	return err
}

// switchUser is for good: afterwards there is no way back.
func (s *Spec) switchUser() error {
	u := s.User
	if u == nil {
		return nil
	}
	if os.Geteuid() != 0 && (u.UID != os.Getuid() || u.GID != os.Getgid()) {
		return fmt.Errorf("run as user %d, group %d: only root may; the daemon is user %d", u.UID, u.GID, os.Getuid())
	}
	if os.Geteuid() != 0 {
		return nil // it is the user already, and its groups are not ours to set
	}
	if err := syscall.Setgroups(u.Groups); err != nil {
		return fmt.Errorf("set groups %v: %w", u.Groups, err)
	}
	if err := syscall.Setgid(u.GID); err != nil {
		return fmt.Errorf("become group %d: %w", u.GID, err)
	}
	if err := syscall.Setuid(u.UID); err != nil {
		return fmt.Errorf("become user %d: %w", u.UID, err)
	}
	return nil
}

// environ is the program's environment. LISTEN_* of the spec itself would be wrong, and are left out.
func (s *Spec) environ() []string {
	var env []string
	for _, v := range s.Env {
		if !strings.HasPrefix(v, "LISTEN_") {
			env = append(env, v)
		}
	}
	if len(s.Sockets) == 0 {
		return env
	}
	names := make([]string, len(s.Sockets))
	for i, k := range s.Sockets {
		names[i] = k.Name
	}
	return append(env,
		"LISTEN_PID="+strconv.Itoa(os.Getpid()), // exec keeps the pid
		"LISTEN_FDS="+strconv.Itoa(len(names)),
		"LISTEN_FDNAMES="+strings.Join(names, ":"))
}

// look finds the program in the PATH of env, as a shell would.
func look(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := ""
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	denied := ""
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if !filepath.IsAbs(file) { // an empty or relative entry would be the folder of the app
			continue
		}
		info, err := os.Stat(file)
		switch {
		case err != nil || info.IsDir():
		case unix.Access(file, unix.X_OK) != nil:
			denied = file
		default:
			return file, nil
		}
	}
	if denied != "" {
		return "", fmt.Errorf("%s: not executable by user %d", denied, os.Getuid())
	}
	return "", fmt.Errorf("no program %s in PATH=%s", name, path)
}
