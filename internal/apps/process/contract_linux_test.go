package process

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestTheEnvironmentIsWhatTheContractSays(t *testing.T) {
	for name, value := range map[string]string{
		"SECRET_OF_OURS": "x", "NOTIFY_SOCKET": "/run/x", "QUAYMASTER_SOCKET": "/x", "PATH": "/usr/bin:/bin", "LANG": "C", "TZ": "UTC",
		"HOME": "/tmp", "TMPDIR": t.TempDir(),
	} {
		t.Setenv(name, value)
	}
	r := runner(t)
	a := me(t, "say=at ${HOST}:${PORT} ${SOCKET} ${QUAYMASTER_URL} ${HOME} $PORT", "environ")
	a.Env = []plan.EnvVar{{Name: "BASE", Value: "http://${HOST}:${PORT}/"}, {Name: "PLAIN", Value: "a b;'\"$(id)"}}
	with := func(s *run.Start) { s.URL = "https://web.localhost" }
	i, out := start(t, r, a, with)
	done(t, i)
	got := out.all()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"out: at 127.0.0.1:32100  https://web.localhost ${HOME} $PORT", "out: PATH=/usr/bin:/bin", "out: LANG=C", "out: HOME=/tmp", "out: USER=" + me.Username,
		"out: TZ=UTC", "out: TMPDIR=" + os.Getenv("TMPDIR"), "out: BASE=http://127.0.0.1:32100/", `out: PLAIN=a b;'"$(id)`, "out: PORT=32100",
		"out: HOST=127.0.0.1", "out: QUAYMASTER_URL=https://web.localhost", "out: that is all",
	}
	if !slices.Equal(got, want) {
		t.Errorf("it has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	a.InheritEnv = true
	i, out = start(t, r, a, with)
	done(t, i)
	if got := out.all(); !slices.Contains(got, "out: SECRET_OF_OURS=x") || slices.Contains(got, "out: NOTIFY_SOCKET=/run/x") {
		t.Errorf("with inherit_env it has\n%s", strings.Join(got, "\n"))
	}
}

func TestA10_ArgumentsArePassedAsTheyAre(t *testing.T) {
	t.Parallel()
	r := runner(t)
	for _, text := range []string{"a;b", "../x", "  ", `"'`, strings.Repeat("x", 300), "$(id)", "*", "ü"} {
		i, out := start(t, r, me(t, "say="+text))
		done(t, i)
		if got := out.all(); !slices.Equal(got, []string{"out: " + text}) {
			t.Errorf("%q came out as %q", text, got)
		}
	}
}

func TestA16_WhatWouldKeepAnAppFromStartingIsNamed(t *testing.T) {
	t.Parallel()
	r := runner(t)
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		app  plan.App
		want string // "" is nothing
	}{
		{plan.App{Command: []string{"sh"}}, ""},
		{plan.App{Command: []string{"no-such-program"}}, "no program no-such-program in PATH="},
		{plan.App{Command: []string{"/no/such"}}, "/no/such: no such file"},
		{plan.App{Command: []string{"./text"}, Dir: dir}, text + " is not executable"},
		{plan.App{Command: []string{dir}}, "is a folder"},
		{plan.App{Command: []string{"sh"}, Dir: "/no/such"}, "/no/such: no such file"},
		{plan.App{Command: []string{"sh"}, Dir: text}, "is no folder"},
		{plan.App{Command: []string{"sh"}, User: "no-such-user"}, "no user no-such-user"},
		{plan.App{Command: []string{"sh"}, EnvRequired: []string{"API_TOKEN"}}, "API_TOKEN is not set"},
		{plan.App{Command: []string{"sh"}, EnvRequired: []string{"PATH"}}, "PATH is not set"},
		{plan.App{Command: []string{"sh"}, EnvRequired: []string{"PATH"}, InheritEnv: true}, ""},
		{plan.App{Command: []string{"sh"}, EnvRequired: []string{"X"}, Env: []plan.EnvVar{{Name: "X"}}}, ""},
		{plan.App{Command: []string{"sh"}, Limits: plan.AppLimits{NoFile: 1 << 40}}, "open files"},
		{plan.App{}, "no command"},
	} {
		a := c.app
		if a.User == "" && os.Geteuid() == 0 {
			a.User = "root"
		}
		err := errors.Join(r.Check(t.Context(), &a)...)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.app, err, c.want)
		}
	}
	if os.Geteuid() == 0 {
		if err := errors.Join(r.Check(t.Context(), &plan.App{Command: []string{"sh"}})...); err == nil || !strings.Contains(err.Error(), "user: root") {
			t.Errorf("root starts an app as root untold: %v", err)
		}
	}
}

func TestWhatCannotBeStartedLeavesNothing(t *testing.T) {
	t.Parallel()
	r := runner(t)
	no := errors.New("the port is not let go")
	for _, c := range []struct {
		app     *plan.App
		handoff error
		want    string
	}{
		{&plan.App{Name: "web", Command: []string{"/no/such"}}, nil, "no such file"},
		{me(t, "wait"), no, no.Error()},
	} {
		_, err := r.Start(t.Context(), &run.Start{App: c.app, Listener: -1, Output: newOutput(), Handoff: func() error { return c.handoff }})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v", err)
		}
	}
	if left, err := os.ReadDir(r.opt.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestAnAppIsItsUserAndMaySayMoreOnItsOwnOutput(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root starts apps as others")
	}
	r := runner(t)
	i, out := start(t, r, &plan.App{Name: "web", User: "nobody", Command: []string{"sh", "-c", `id -un; echo $HOME; echo more > /dev/stdout; echo ill > /dev/stderr`}})
	if e := done(t, i); !e.OK() {
		t.Errorf("%v", e)
	}
	if got := out.all(); !slices.Contains(got, "out: nobody") || !slices.Contains(got, "out: more") || !slices.Contains(got, "err: ill") {
		t.Errorf("it said %q", got)
	}
}

func TestTheLimitOfOpenFilesIsWhatItWasOrWhatThePlanSays(t *testing.T) {
	t.Parallel()
	r := runner(t)
	cmd := []string{"sh", "-c", "ulimit -Sn; ulimit -Hn"}
	i, out := start(t, r, &plan.App{Name: "web", Command: cmd, Limits: plan.AppLimits{NoFile: 256}})
	done(t, i)
	if got := out.all(); !slices.Equal(got, []string{"out: 256", "out: 256"}) {
		t.Errorf("%q", got)
	}
	i, out = start(t, r, &plan.App{Name: "web", Command: cmd})
	done(t, i)
	before, err := exec.Command(cmd[0], cmd[1:]...).Output() // which has the limit from before Go raised it, too
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(strings.Join(out.all(), "\n"), "out: ", "") + "\n"; got != string(before) {
		t.Errorf("%q, want %q", got, before)
	}
}

func TestA11_AnAppServesOnASocketThatIsOurs(t *testing.T) {
	t.Parallel()
	r := runner(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(fd, 5)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	name, _ := unix.Getsockname(fd)
	port := uint16(name.(*unix.SockaddrInet4).Port)
	for range 2 { // one after the other, on the same socket
		if err := unix.SetNonblock(fd, false); err != nil { // the one before has made it otherwise
			t.Fatal(err)
		}
		i, out := start(t, r, me(t, "serve"), func(s *run.Start) { s.Listener, s.Port = fd, port })
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
		_ = c.Close()
		done(t, i)
		if got := out.all(); !slices.Contains(got, fmt.Sprintf("out: sockets 1 %d", port)) {
			t.Errorf("%q", got)
		}
	}
}

func TestA21_AnAppOfAnotherUserMakesItsSocket(t *testing.T) {
	t.Parallel()
	r := runner(t)
	base, err := os.MkdirTemp("", "room") // a path that others may go
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if err := os.Chmod(base, 0o711); err != nil {
		t.Fatal(err)
	}
	a := &plan.App{Name: "web", Command: []string{"python3", "-c", "import os,socket,time\ns=socket.socket(socket.AF_UNIX)\ns.bind(os.environ['SOCKET'])\ns.listen()\nprint('up',flush=True)\ntime.sleep(60)"}}
	if os.Geteuid() == 0 {
		a.User = "nobody"
	}
	if _, err := exec.LookPath("/usr/bin/python3"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	a.Command[0] = "/usr/bin/python3"
	path := filepath.Join(base, "web-1", "s")
	i, out := start(t, r, a, func(s *run.Start) { s.Path, s.Port = path, 0 })
	out.until(t, "out: up")
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	stop(t, i, plan.AppStop{Signal: "TERM", Timeout: patience})
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is left: %v", err)
	}
}

func TestFiguresAndPortsAreOfTheWholeGroup(t *testing.T) {
	t.Parallel()
	r := runner(t)
	self := me(t).Command[0]
	i, out := start(t, r, &plan.App{Name: "web", Command: []string{"sh", "-c", `"$0" app burn listen=0 wait & "$0" app listen=0 wait; :`, self}})
	var want []uint16
	for late := time.Now().Add(patience); len(want) < 2 && time.Now().Before(late); {
		select {
		case <-out.more:
		case <-time.After(time.Second):
		}
		want = nil
		for _, l := range out.all() {
			n, _ := strconv.ParseUint(strings.TrimPrefix(l, "out: port "), 10, 16)
			want = append(want, uint16(n))
		}
	}
	slices.Sort(want)
	if got, err := i.Listening(); err != nil || !slices.Equal(got, want) || len(got) != 2 {
		t.Errorf("it listens on %v, %v; it said %v", got, err, want)
	}
	for late := time.Now().Add(patience); ; { // a list of processes may be a second old
		s, err := i.Stats()
		if err == nil && s.Memory > 4<<20 && s.CPU >= 50*time.Millisecond {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("%+v, %v", s, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestA09_LongLinesAndPartialWritesComeWhole(t *testing.T) {
	t.Parallel()
	r := runner(t)
	i, out := start(t, r, me(t, "long=1048576", "print=end\n", "print=a", "print=b\nc", "print=d"))
	done(t, i)
	got := out.all()
	if n := len(got); n < 3 || got[n-1] != "out: cd" || got[n-2] != "out: ab" {
		t.Fatalf("%d lines, the last are %.200q", len(got), got[max(len(got)-2, 0):])
	}
	long := strings.ReplaceAll(strings.Join(got[:len(got)-2], ""), "out: ", "")
	if long != strings.Repeat("x", 1<<20)+"end" {
		t.Errorf("the long line has %d bytes", len(long))
	}
	for _, l := range got {
		if len(l) > maxLine+5 {
			t.Errorf("a part of %d bytes", len(l))
		}
	}
}

func TestATakenPortIsSaidByTheAppThatWantedIt(t *testing.T) {
	t.Parallel()
	r := runner(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	programs := map[string]*plan.App{"go": me(t, "listen=${PORT}", "wait")}
	for name, words := range map[string][]string{
		"python3": {"-m", "http.server", "--bind", "${HOST}", "${PORT}"},
		"node":    {"-e", "require('http').createServer().listen(process.env.PORT, process.env.HOST)"},
		"ruby":    {"-rsocket", "-e", "TCPServer.new(ENV['HOST'], ENV['PORT'])"},
		"php":     {"-S", "${HOST}:${PORT}"},
		"perl":    {"-MIO::Socket::INET", "-e", "IO::Socket::INET->new(LocalAddr => $ENV{HOST}, LocalPort => $ENV{PORT}, Listen => 5) or die $!"},
	} {
		if path, err := exec.LookPath(name); err == nil {
			programs[name] = &plan.App{Name: "web", Command: append([]string{path}, words...)}
		}
	}
	for name, a := range programs {
		i, out := start(t, r, a, func(s *run.Start) { s.Port = port })
		if e := done(t, i); e.OK() {
			t.Errorf("%s: %v", name, e)
		}
		got := i.(*instance).PortTaken()
		if got == nil || got.Port != port || got.Text == "" {
			t.Errorf("%s said %q: %v", name, out.all(), got)
		}
	}
}

func TestThePortIsLetGoWhenTheProcessIsThere(t *testing.T) {
	t.Parallel()
	r := runner(t)
	waiting := 0
	i, _ := start(t, r, me(t, "exit=0"), func(s *run.Start) {
		s.Handoff = func() error {
			var list table
			for pid, p := range list.since(time.Now()) {
				line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
				if err == nil && p.parent == os.Getpid() && strings.HasPrefix(string(line), "quaymaster\x00launch\x00") {
					waiting++
				}
			}
			return nil
		}
	})
	done(t, i)
	if waiting == 0 {
		t.Error("the port was let go before there was a process")
	}
}
