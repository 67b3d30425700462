package launch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes this binary the launcher, the program that is launched, and a daemon that launches.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "launch":
			fd, _ := strconv.Atoi(os.Args[2])
			_ = Become(fd)
			os.Exit(1)
		case "child":
			child()
			os.Exit(0)
		case "outer":
			outer()
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// A report is what a program knows of itself.
type report struct {
	PID, Parent, Session, Group int
	UID, GID                    int
	Groups                      []int
	Env                         []string
	Args                        []string
	Dir                         string
	FDs                         []int
	Open                        []string // what they are
	Blocking                    []bool   // of those from 3 on
	NoFile                      uint64
	Status                      map[string]string // of /proc/self/status
}

// child prints a report of itself and then answers on each of its sockets in turn, as sd_listen_fds(3) has it. Its limit
// is read by a raw call: Go has raised it by now, and remembers what it was for its own children.
func child() {
	r := report{
		PID: os.Getpid(), Parent: os.Getppid(), Group: syscall.Getpgrp(), UID: os.Getuid(), GID: os.Getgid(),
		Env: os.Environ(), Args: os.Args, Status: status("self"), NoFile: shellLimit(),
	}
	r.Session, _ = unix.Getsid(0)
	r.Groups, _ = os.Getgroups()
	r.Dir, _ = os.Getwd()
	list, _ := os.ReadDir("/proc/self/fd")
	for _, e := range list {
		fd, _ := strconv.Atoi(e.Name())
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(to, "/proc/") || strings.HasPrefix(to, "/sys/fs/cgroup/") || strings.Contains(to, "[event") {
			continue // of this loop and of the Go runtime
		}
		r.FDs, r.Open = append(r.FDs, fd), append(r.Open, to)
		if fd >= firstFD {
			flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			r.Blocking = append(r.Blocking, flags&unix.O_NONBLOCK == 0)
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return
	}
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	for i := range n {
		fd, _, err := unix.Accept(firstFD + i) // blocking, as a program that knows nothing of polling does it
		if err != nil {
			fmt.Println("accept:", err)
			return
		}
		fmt.Println("accepted")
		_, _ = unix.Write(fd, []byte(strconv.Itoa(os.Getpid())))
		_ = unix.Close(fd)
	}
}

// shellLimit is the soft limit of open files that a child of ours gets: what it was before Go raised it.
func shellLimit() uint64 {
	out, _ := exec.Command("/bin/sh", "-c", "ulimit -S -n").Output()
	n, _ := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
	return n
}

func status(pid string) map[string]string {
	out := make(map[string]string)
	b, _ := os.ReadFile("/proc/" + pid + "/status")
	for _, line := range strings.Split(string(b), "\n") {
		if k, v, ok := strings.Cut(line, ":\t"); ok {
			out[k] = v
		}
	}
	return out
}

// outer launches one child with its own environment, waits for it, and says what became of it.
func outer() {
	var s Spec
	if err := json.Unmarshal([]byte(os.Args[2]), &s); err != nil {
		fmt.Println(err)
		return
	}
	s.Inherit, s.In, s.Out, s.Err = os.Environ(), -1, 1, 2
	pid, err := Start("/proc/self/exe", []string{"launch"}, &s)
	if err != nil {
		fmt.Println("refused:", err)
		return
	}
	reap(pid)
}

// A running program of a test.
type running struct {
	t   *testing.T
	pid int
	out *bufio.Reader
}

// run launches this binary as a child.
func run(t *testing.T, s *Spec) *running {
	t.Helper()
	r, err := try(t, s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func try(t *testing.T, s *Spec) (*running, error) {
	t.Helper()
	if s.Path == "" {
		s.Path, s.Args = self(t), []string{"app", "child"}
	}
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close() })
	s.In, s.Out, s.Err = -1, int(to.Fd()), 2
	pid, err := Start("/proc/self/exe", []string{"launch"}, s)
	to.Close()
	if err != nil {
		return nil, err
	}
	p := &running{t, pid, bufio.NewReader(from)}
	t.Cleanup(p.kill)
	_ = from.SetReadDeadline(time.Now().Add(30 * time.Second))
	return p, nil
}

// kill ends the program and waits for its end.
func (p *running) kill() {
	if p.pid > 0 {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
		reap(p.pid)
		p.pid = 0
	}
}

func (p *running) line() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the program said %q: %v", line, err)
	}
	return line
}

func (p *running) report() report {
	p.t.Helper()
	var r report
	if line := p.line(); json.Unmarshal([]byte(line), &r) != nil {
		p.t.Fatalf("the program said %q", line)
	}
	return r
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// detached is a socket that nobody here accepts on.
func detached(t *testing.T) (fd int, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fd, err = Detach(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after Detach: %v", err)
	}
	return fd, l.Addr().String()
}

func flags(t *testing.T, fd int) int {
	t.Helper()
	f, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// ask is what whoever accepts on addr answers.
func ask(t *testing.T, addr string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return answer(t, c)
}

func answer(t *testing.T, c net.Conn) string {
	t.Helper()
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheProgramGetsWhatTheContractSays(t *testing.T) {
	a, _ := detached(t)
	b, _ := detached(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := run(t, &Spec{
		Dir: dir, Sockets: []Socket{{Name: "http", FD: b}, {Name: "admin", FD: a}},
		Env:     []string{"PORT=1", "PORT=80", "GOGC=50", "QUAYMASTER_URL=http://x", "LISTEN_FDS=9"},
		Inherit: []string{"PATH=/bin", "PORT=0", "NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=1", "LISTEN_PID=1", "GODEBUG=x", "QUAYMASTER_SOCKET=/x"},
	})
	r := p.report()
	if r.PID != p.pid || r.Parent != os.Getpid() || r.Session != r.PID || r.Group != r.PID {
		t.Errorf("pid %d, parent %d, session %d, group %d of process %d of %d", r.PID, r.Parent, r.Session, r.Group, p.pid, os.Getpid())
	}
	want := []string{
		"PATH=/bin", "PORT=80", "GOGC=50", "QUAYMASTER_URL=http://x",
		fmt.Sprintf("LISTEN_PID=%d", p.pid), "LISTEN_FDS=2", "LISTEN_FDNAMES=http:admin",
	}
	if !slices.Equal(r.Env, want) {
		t.Errorf("environment %q, want %q", r.Env, want)
	}
	if !slices.Equal(r.Args, []string{"app", "child"}) || r.Dir != dir {
		t.Errorf("arguments %q in %s", r.Args, r.Dir)
	}
	if !slices.Equal(r.FDs, []int{0, 1, 2, 3, 4}) || !slices.Equal(r.Blocking, []bool{true, true}) {
		t.Errorf("descriptors %v %q, blocking %v", r.FDs, r.Open, r.Blocking)
	}
	for _, fd := range []int{a, b} {
		if flags(t, fd)&unix.O_NONBLOCK != 0 {
			t.Error("a socket became non-blocking")
		}
	}
}

func TestASocketOutlivesItsProgramAndItsClientsWait(t *testing.T) {
	fd, addr := detached(t)
	early, err := net.Dial("tcp", addr) // before anybody accepts
	if err != nil {
		t.Fatal(err)
	}
	sockets := []Socket{{Name: "http", FD: fd}}
	first := run(t, &Spec{Sockets: sockets})
	pid := first.pid
	if got := answer(t, early); got != strconv.Itoa(pid) {
		t.Errorf("the client that came first was answered by %q, not %d", got, pid)
	}
	first.kill()
	between, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("while no program runs: %v", err)
	}
	second := run(t, &Spec{Sockets: sockets})
	if got := answer(t, between); got != strconv.Itoa(second.pid) {
		t.Errorf("the client that came in between was answered by %q, not %d", got, second.pid)
	}
}

func TestASocketThatWeAcceptOnIsRefusedAndStaysAsItIs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if _, err := try(t, &Spec{Sockets: []Socket{{Name: "http", FD: int(fd)}}}); err == nil || !strings.Contains(err.Error(), `socket "http" is non-blocking`) {
			t.Errorf("start with a socket of ours: %v", err)
		}
		if flags(t, int(fd))&unix.O_NONBLOCK == 0 {
			t.Error("our socket became blocking: Close would hang")
		}
	})
	noChildren(t)
	go func() {
		if c, err := l.Accept(); err == nil {
			fmt.Fprint(c, "ours")
			c.Close()
		}
	}()
	if got := ask(t, l.Addr().String()); got != "ours" {
		t.Errorf("our socket answers %q", got)
	}
}

func TestDetachedUnixSocketKeepsItsFileAndItsQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := Detach(l)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
	p := run(t, &Spec{Sockets: []Socket{{Name: "s", FD: fd}}})
	if got := answer(t, c); got != strconv.Itoa(p.pid) {
		t.Errorf("answered by %q, not %d", got, p.pid)
	}
}

// noChildren fails if there is a child of ours, running or dead.
func noChildren(t *testing.T) {
	t.Helper()
	var s syscall.WaitStatus
	if pid, err := syscall.Wait4(-1, &s, syscall.WNOHANG, nil); !errors.Is(err, syscall.ECHILD) {
		t.Errorf("a process is left: %d, %v", pid, err)
	}
}

func TestWhatCannotStartSaysWhyAndLeavesNothing(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := count(t)
	for _, c := range []struct {
		name string
		spec Spec
		want string
	}{
		{"nothing", Spec{Path: "/bin/true"}, "no program"},
		{"no file", Spec{Path: "/no/such/program", Args: []string{"x"}}, "exec /no/such/program: no such file or directory"},
		{"no right", Spec{Path: text, Args: []string{"x"}}, "permission denied"},
		{"not in PATH", Spec{Path: "nosuch", Args: []string{"x"}, Env: []string{"PATH=/bin:/usr/bin"}}, "no program nosuch in PATH=/bin:/usr/bin"},
		{"not executable", Spec{Path: "text", Args: []string{"x"}, Env: []string{"PATH=:." + ":" + filepath.Dir(text)}}, text + ": not executable"},
		{"no folder", Spec{Path: "/bin/true", Args: []string{"x"}, Dir: "/no/such"}, "chdir /no/such: no such file or directory"},
		{"too long", Spec{Path: "/bin/true", Args: []string{"x", strings.Repeat("x", 3<<20)}}, "longer than the system takes"},
		{"much too long", Spec{Path: "/bin/true", Args: []string{"x", strings.Repeat("x", 5<<20)}}, "are too much"},
		{"bad name", Spec{Path: "/bin/true", Args: []string{"x"}, Sockets: []Socket{{Name: "a:b", FD: 0}}}, `"a:b" cannot be the name of a socket`},
		{"closed", Spec{Path: "/bin/true", Args: []string{"x"}, Sockets: []Socket{{Name: "a", FD: 1 << 20}}}, "bad file descriptor"},
	} {
		s := c.spec
		_, err := try(t, &s)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := Start("/no/such/launcher", nil, &Spec{Path: "/bin/true", Args: []string{"x"}, In: -1, Out: -1, Err: -1}); err == nil || !strings.Contains(err.Error(), "/no/such/launcher") {
		t.Errorf("without a launcher: %v", err)
	}
	if _, err := Start("/bin/true", nil, &Spec{Path: "/bin/true", Args: []string{"x", strings.Repeat("x", 1<<20)}, In: -1, Out: -1, Err: -1}); err == nil {
		t.Error("a launcher that ends without a word counts as a start")
	}
	noChildren(t)
	if after := count(t); after > before+11 { // the reading ends of the pipes are closed with the test
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func count(t *testing.T) int {
	list, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestBecomeIsForTheDaemonAlone(t *testing.T) {
	for _, fd := range []int{-1, 0, 1 << 20} {
		if err := Become(fd); err == nil || !strings.Contains(err.Error(), "for the daemon alone") {
			t.Errorf("Become(%d): %v", fd, err)
		}
	}
}

func TestCleanLeavesWhatIsForPeople(t *testing.T) {
	in := []string{
		"PATH=/bin", "GOPATH=/go", "GOOGLE_APPLICATION_CREDENTIALS=/x", "LISTENER=1", "QUAYMASTERS=1", "no variable", "EMPTY=",
		"GODEBUG=1", "GOMAXPROCS=1", "LISTEN_FDS=1", "LISTEN_PIDFDID=1", "WATCHDOG_PID=1", "NOTIFY_SOCKET=@x", "QUAYMASTER_HANDOVER=3",
		"STATE_DIRECTORY=/x", "JOURNAL_STREAM=1:2", "INVOCATION_ID=1",
	}
	want := []string{"PATH=/bin", "GOPATH=/go", "GOOGLE_APPLICATION_CREDENTIALS=/x", "LISTENER=1", "QUAYMASTERS=1", "EMPTY="}
	if got := Clean(in); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestAsOnePythonProgramUnderstandsIt uses sockets the way Python's own library does.
func TestAsOnePythonProgramUnderstandsIt(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	fd, addr := detached(t)
	p := run(t, &Spec{
		Path: python, Sockets: []Socket{{Name: "web", FD: fd}},
		Args: []string{"python3", "-c", `
import os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid()), os.environ
assert (os.environ["LISTEN_FDS"], os.environ["LISTEN_FDNAMES"]) == ("1", "web"), os.environ
assert os.get_blocking(3)
s = socket.socket(fileno=3)
assert s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
c, _ = s.accept()
c.sendall(b"python %d" % os.getpid())
c.close()
print("done", flush=True)
`},
	})
	if got, want := ask(t, addr), fmt.Sprintf("python %d", p.pid); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := p.line(); got != "done\n" {
		t.Errorf("python says %q", got)
	}
}

// report of a child that an outer process, itself started by way of command, has launched.
func byOuter(t *testing.T, s Spec, command ...string) (report, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // another user runs it
		t.Fatal(err)
	}
	program := filepath.Join(dir, "outer")
	b, err := os.ReadFile(self(t))
	if err == nil {
		err = os.WriteFile(program, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Path, s.Args, s.Env = program, []string{"app", "child"}, []string{"GORACE=atexit_sleep_ms=0"}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command[0], append(command[1:], program, "outer", string(text))...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=/run/x", "KEPT=1", "GORACE=atexit_sleep_ms=0")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, &out, &errs)
	}
	var r report
	if json.Unmarshal(out.Bytes(), &r) != nil {
		return r, out.String() + errs.String()
	}
	return r, ""
}
