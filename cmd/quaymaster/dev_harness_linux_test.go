package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A devHome is the home of one person with projects: everything that is started there carries a mark.
type devHome struct {
	t   testing.TB
	dir string
}

func newDevHome(t testing.TB) *devHome {
	t.Helper()
	dir, err := os.MkdirTemp("", "qm-dev-") // short: a socket is to be in it
	if err != nil {
		t.Fatal(err)
	}
	h := &devHome{t: t, dir: dir}
	first := freePorts(t, 20) // those of other homes are others, since their daemons do not know of each other
	h.project(".config/quaymaster", "dev.yaml", fmt.Sprintf("app_ports: %d-%d\n", first, first+19))
	t.Cleanup(func() {
		for len(h.left("")) > 0 {
			for _, pid := range h.left("") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			<-time.After(10 * time.Millisecond)
		}
		if t.Failed() {
			log, _ := os.ReadFile(dir + "/state/quaymaster-dev/daemon.log")
			t.Logf("log of the daemon:\n%s", tail(string(log), 30))
		}
		_ = os.RemoveAll(dir)
	})
	return h
}

// mark is in the environment of all that runs for this home, apps and the daemon.
func (h *devHome) mark() string { return "RUNTIME_DIRECTORY=" + h.dir + "/quaymaster" }

func (h *devHome) sock() string { return h.dir + "/quaymaster/dev.sock" }

func (h *devHome) env(more ...string) []string {
	var out []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if !slices.Contains([]string{"HOME", "QUAYMASTER_SOCKET", "CI", "NO_COLOR", "FORCE_COLOR", "TERM", "GOFLAGS"}, name) {
			out = append(out, v)
		}
	}
	out = append(out, h.mark(), "XDG_STATE_HOME="+h.dir+"/state", "HOME="+h.dir, "TERM=xterm", "GOCACHE="+goCache(), "GOTOOLCHAIN=local")
	return append(out, more...)
}

// goCache is where Go keeps what it has built, for programs that are run in another home.
var goCache = sync.OnceValue(func() string {
	out, _ := exec.Command("go", "env", "GOCACHE").Output()
	return strings.TrimSpace(string(out))
})

// left are the processes of this home whose command line, with a blank before it, has that text.
func (h *devHome) left(word string) (out []int) {
	list, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range list {
		env, err := os.ReadFile(name)
		if err != nil || !slices.Contains(strings.Split(string(env), "\x00"), h.mark()) {
			continue
		}
		line, _ := os.ReadFile(filepath.Dir(name) + "/cmdline")
		pid, err := strconv.Atoi(strings.Split(name, "/")[2])
		if err == nil && strings.Contains(" "+strings.ReplaceAll(string(line), "\x00", " "), word) {
			out = append(out, pid)
		}
	}
	return out
}

// daemon is the pid of the daemon that projects of this home share.
func (h *devHome) daemon() int {
	h.t.Helper()
	list := h.left("run --leashed")
	if len(list) != 1 {
		h.t.Fatalf("%d daemons run, want one", len(list))
	}
	return list[0]
}

// nothingLeft waits until no process of this home is there, and no route.
func (h *devHome) nothingLeft() {
	h.t.Helper()
	until(h.t, "nothing is left", func() bool { return len(h.left("")) == 0 })
}

// project makes a folder with files: names and contents.
func (h *devHome) project(name string, files ...string) string {
	h.t.Helper()
	dir := filepath.Join(h.dir, name)
	for i := 0; i+1 < len(files); i += 2 {
		file := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			h.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(files[i+1]), 0o700); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	return dir
}

// A devProc is one `quaymaster dev` that runs.
type devProc struct {
	t        testing.TB
	h        *devHome
	cmd      *exec.Cmd
	out, err *lockedBuffer
	done     chan struct{}
}

// devLine is the command line of dev, without the right to ports below 1024 that ordinary people do not have.
func devLine(args ...string) []string {
	line := append([]string{binary, "dev"}, args...)
	if os.Geteuid() == 0 {
		line = append([]string{"setpriv", "--bounding-set", "-net_bind_service"}, line...)
	}
	return line
}

// devChild is the command line of the program of these tests (TestAppChild), and its environment.
func devChild(t testing.TB, how string) (command, env []string) {
	t.Helper()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, "-test.run=^TestAppChild$"}, []string{"QM_CHILD_LISTEN=app", "QM_APP=" + how}
}

// dev starts `quaymaster dev` in a folder, without a terminal.
func (h *devHome) dev(dir string, env []string, args ...string) *devProc {
	h.t.Helper()
	line := devLine(args...)
	p := &devProc{t: h.t, h: h, cmd: exec.Command(line[0], line[1:]...), out: &lockedBuffer{}, err: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env = dir, h.env(env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	p.cmd.WaitDelay = 20 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	p.start()
	return p
}

func (p *devProc) start() {
	p.t.Helper()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	p.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if p.t.Failed() {
			p.t.Logf("dev in %s said:\n%s\n%s", p.cmd.Dir, tail(p.err.String(), 30), tail(p.out.String(), 30))
		}
	})
}

// child starts dev with the program of these tests as its command.
func (h *devHome) child(dir, how string, args ...string) *devProc {
	h.t.Helper()
	command, env := devChild(h.t, how)
	return h.dev(dir, env, append(append(args, "--"), command...)...)
}

// said waits for a line of dev's own, and returns what the expression caught in it.
func (p *devProc) said(expression string) string {
	p.t.Helper()
	re := regexp.MustCompile(expression)
	var found []string
	until(p.t, expression, func() bool {
		found = re.FindStringSubmatch(p.err.String())
		if found == nil {
			select {
			case <-p.done:
				found = re.FindStringSubmatch(p.err.String())
				if found == nil {
					p.t.Fatalf("dev ended with %d and never said %q:\n%s\n%s", p.cmd.ProcessState.ExitCode(), expression, p.err, p.out)
				}
			default:
			}
		}
		return found != nil
	})
	return found[len(found)-1]
}

// ready waits until an app is ready, and returns its URL.
func (p *devProc) ready(label string) string {
	p.t.Helper()
	return p.said(regexp.QuoteMeta(label) + ` is ready after \S+: (\S+)`)
}

func (p *devProc) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// wait returns the exit code.
func (p *devProc) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(30 * time.Second):
		p.t.Fatal("dev still runs")
		return -1
	}
}

// devClient trusts the local CA of the daemon at that socket, and goes to this machine whatever the name.
func devClient(t testing.TB, sock string) *http.Client {
	t.Helper()
	root, code := cli(t, "trust", "--print", "--socket", sock)
	pool := x509.NewCertPool()
	if code != 0 || !pool.AppendCertsFromPEM([]byte(root)) {
		t.Fatalf("trust --print: %d %s", code, root)
	}
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Timeout: 20 * time.Second, Transport: tr}
}

// get asks for a URL and wants a body that begins so.
func (p *devProc) get(at, want string) string {
	p.t.Helper()
	return devGet(p.t, devClient(p.t, p.h.sock()), at, want)
}

func devGet(t testing.TB, c *http.Client, at, want string) string {
	t.Helper()
	status, body, err := devFetch(c, at)
	if err != nil || status != 200 || !strings.HasPrefix(body, want) {
		t.Fatalf("GET %s: %d %q %v, want 200 and %q", at, status, body, err, want)
	}
	return body
}

func devFetch(c *http.Client, at string) (int, string, error) {
	res, err := c.Get(at)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// portOf is the port of a URL.
func portOf(t testing.TB, at string) int {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case u.Port() != "":
		n, _ := strconv.Atoi(u.Port())
		return n
	case u.Scheme == "https":
		return 443
	}
	return 80
}

// terminal makes a pseudo-terminal.
func terminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	n, err := unlockTerminal(master)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// unlockTerminal makes the other end of a pseudo-terminal usable, and returns its number.
func unlockTerminal(master *os.File) (n int, err error) {
	raw, err := master.SyscallConn() // not Fd, which would make it blocking, and a Read of it endless
	if err != nil {
		return 0, err
	}
	second := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	return n, errors.Join(err, second)
}

// devAt starts dev at a terminal of its own; what it shows goes to err.
func (h *devHome) devAt(dir string, env []string, args ...string) (*devProc, *os.File) {
	h.t.Helper()
	master, slave := terminal(h.t)
	line := devLine(args...)
	p := &devProc{t: h.t, h: h, cmd: exec.Command(line[0], line[1:]...), out: &lockedBuffer{}, err: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env = dir, h.env(env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p.start()
	_ = slave.Close()
	go func() { _, _ = io.Copy(p.err, master) }()
	return p, master
}

// holdsText is a file below the folder that has the text, or "".
func holdsText(t testing.TB, dir, text string) string {
	t.Helper()
	found := ""
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if b, _ := os.ReadFile(path); bytes.Contains(b, []byte(text)) {
				found = path
			}
		}
		return nil
	})
	return found
}
