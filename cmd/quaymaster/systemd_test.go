package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/apps/launch"
)

// A boss does for one daemon what systemd does: it has a notify socket, hears the main process alone, keeps the
// descriptors that it is given, and passes them to the process that it starts next.
type boss struct {
	q    *qm
	name string // of the notify socket
	conn *net.UnixConn
	over chan struct{}

	mu    sync.Mutex // guards what follows
	main  int
	said  []string       // by the main process
	other int            // messages of others
	store map[string]int // descriptors by FDNAME
}

func newBoss(q *qm, name string) *boss {
	q.t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		q.t.Fatal(err)
	}
	raw, _ := conn.SyscallConn()
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err != nil {
		q.t.Fatal(err)
	}
	b := &boss{q: q, name: name, conn: conn, over: make(chan struct{}), store: make(map[string]int)}
	go b.hear()
	q.t.Cleanup(func() {
		conn.Close()
		<-b.over
		for _, fd := range b.store {
			unix.Close(fd)
		}
		if q.t.Failed() {
			q.t.Logf("the service manager heard:\n%s", tail(strings.Join(b.heard(), "\n"), 60))
		}
	})
	return b
}

func (b *boss) hear() {
	defer close(b.over)
	text, oob := make([]byte, 8192), make([]byte, 4096)
	for {
		n, k, _, _, err := b.conn.ReadMsgUnix(text, oob)
		if err != nil {
			return
		}
		var fds []int
		pid := 0
		list, _ := unix.ParseSocketControlMessage(oob[:k])
		for i := range list {
			if got, err := unix.ParseUnixRights(&list[i]); err == nil {
				fds = append(fds, got...)
			}
			if cred, err := unix.ParseUnixCredentials(&list[i]); err == nil {
				pid = int(cred.Pid)
			}
		}
		b.take(pid, string(text[:n]), fds)
	}
}

func (b *boss) take(pid int, text string, fds []int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	name, keep, forget := "", false, false
	if pid == b.main {
		b.said = append(b.said, text)
		for _, line := range strings.Split(text, "\n") {
			k, v, _ := strings.Cut(line, "=")
			switch k {
			case "MAINPID":
				b.main, _ = strconv.Atoi(v)
			case "FDNAME":
				name = v
			case "FDSTORE":
				keep = true
			case "FDSTOREREMOVE":
				forget = true
			}
		}
	} else if text != "BARRIER=1" { // which anybody may ask for
		b.other++
	}
	old, had := b.store[name]
	switch {
	case keep && len(fds) == 1 && !had:
		b.store[name] = fds[0]
		return
	case forget && had:
		delete(b.store, name)
		unix.Close(old)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func (b *boss) heard() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.said)
}

func (b *boss) stored() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for name := range b.store {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// start runs the daemon as the main process, with what is in the store.
func (b *boss) start(env []string, args ...string) {
	b.q.t.Helper()
	names := b.stored()
	b.mu.Lock()
	var files []*os.File
	for _, name := range names {
		fd, err := unix.FcntlInt(uintptr(b.store[name]), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			b.mu.Unlock()
			b.q.t.Fatal(err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	defer b.mu.Unlock() // what the new process says is heard when it is known
	env = append(slices.Clone(env), "NOTIFY_SOCKET="+b.name)
	if len(names) > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	b.q.runFrom(env, files, append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", binary, "run", "-c", b.q.file}, args...)...)
	for _, f := range files {
		f.Close()
	}
	b.main = b.q.cmd.Process.Pid
}

// after waits for a message that pred likes among those after the first from, and returns how many there were with it.
func (b *boss) after(from int, what string, pred func(string) bool) int {
	b.q.t.Helper()
	at := 0
	b.q.until(what, func() bool {
		said := b.heard()
		for i := from; i < len(said); i++ {
			if pred(said[i]) {
				at = i + 1
				return true
			}
		}
		return false
	})
	return at
}

func saying(parts ...string) func(string) bool {
	return func(text string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, p) })
	}
}

// runFrom starts the program by way of another command; what it execs in the end is the daemon.
func (q *qm) runFrom(env []string, files []*os.File, command ...string) {
	q.t.Helper()
	q.log, q.out, q.done = &lockedBuffer{}, &lockedBuffer{}, make(chan struct{})
	cmd, done := exec.Command(command[0], command[1:]...), q.done
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = q.out, q.log, files
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		q.t.Fatal(err)
	}
	q.cmd = cmd
	log := q.log
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	q.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if q.t.Failed() {
			q.t.Logf("log of pid %d:\n%s", cmd.Process.Pid, tail(log.String(), 60))
		}
	})
}

// systemProgram is the path of a program of systemd.
func systemProgram(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

// routesOn are routes to target, one for each port.
func routesOn(target string, ports ...any) string {
	text := "routes:\n"
	if len(ports) == 0 {
		return "routes: []\n"
	}
	for i, p := range ports {
		text += fmt.Sprintf("  - {name: r%d, match: {ports: [%q], protocols: [http1]}, action: {targets: [%q]}}\n", i, fmt.Sprint(p), target)
	}
	return text
}

// origins are the ports of the plan as "WANTED STATE ORIGIN PORT", sorted.
func (q *qm) origins() []string {
	q.t.Helper()
	var list []struct {
		Wanted, State, Origin, Source string
		Port                          int
	}
	q.get("/v1/ports", &list)
	var out []string
	for _, p := range list {
		if p.Source == "file" || p.Source == "api" {
			out = append(out, fmt.Sprintf("%s %s %s %d", p.Wanted, p.State, p.Origin, p.Port))
		}
	}
	slices.Sort(out)
	return out
}

func (q *qm) wantOrigins(want ...string) {
	q.t.Helper()
	slices.Sort(want)
	if got := q.origins(); !slices.Equal(got, want) {
		q.t.Errorf("ports %q, want %q", got, want)
	}
}

// A waiting client has asked and not been answered yet.
type waiting struct {
	t testing.TB
	c net.Conn
}

func asks(t testing.TB, addr string) *waiting {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 20*time.Second)
	if err != nil {
		t.Fatalf("connect to a socket of systemd: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprint(c, "GET /w HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
	return &waiting{t, c}
}

// unanswered makes sure that nobody answers for a moment.
func (w *waiting) unanswered() {
	w.t.Helper()
	_ = w.c.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	if n, err := w.c.Read(make([]byte, 1)); !os.IsTimeout(err) {
		w.t.Errorf("a client of a port that nobody wants got %d bytes, %v; want it to wait", n, err)
	}
}

func (w *waiting) answered() {
	w.t.Helper()
	_ = w.c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(w.c)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200") {
		w.t.Errorf("a client that waited got %q, %v", b, err)
	}
}

func TestP19_SocketActivationByAddressAndByName(t *testing.T) {
	t.Parallel()
	activate := systemProgram(t, "systemd-socket-activate")
	target := httpTarget(t, "one", nil)
	n := freePorts(t, 4)
	addr := func(i int) string { return at(n + i) }
	all := routesOn(target, addr(0), "fd:https", ":"+strconv.Itoa(n+3))
	q := prepare(t, all)

	// One socket is ours, so that somebody holds it beside the daemon, as systemd does. The others are made by
	// systemd-socket-activate, which passes this one on, and execs the daemon at the first connection.
	l, err := net.Listen("tcp", addr(0))
	if err != nil {
		t.Fatal(err)
	}
	held, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	defer held.Close()
	run := func() {
		q.runFrom([]string{"LISTEN_FDS=1"}, []*os.File{held}, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", activate,
			"-l", addr(1), "-l", addr(2), "-l", strconv.Itoa(n+3), "--fdname=web:https:https:http", binary, "run", "-c", q.file)
	}
	run()
	first := asks(t, addr(0))
	first.answered() // the one that woke it
	q.serving()
	inodes := func() (out []uint64) {
		for i := range 4 {
			out = append(out, inode(t, n+i))
		}
		return out
	}
	before := inodes()
	listed := []string{
		fmt.Sprintf("%s activated systemd %d", addr(0), n), fmt.Sprintf("fd:https activated systemd %d", n+1),
		fmt.Sprintf("fd:https activated systemd %d", n+2), fmt.Sprintf(":%d activated systemd %d", n+3, n+3),
	}
	for round := range 2 {
		q.wantOrigins(listed...)
		for i := range 4 {
			mustFetch(t, n+i, "a.test", "/", "one")
		}
		q.reload(all + "# the same\n")
		if now := inodes(); !slices.Equal(now, before) {
			t.Errorf("round %d: sockets %v, before the reload %v", round, now, before)
		}
		q.reload(routesOn(target, addr(0)))
		q.wantOrigins(listed[0])
		var between []*waiting
		for i := 1; i < 4; i++ {
			between = append(between, asks(t, addr(i)))
		}
		between[0].unanswered()
		if now := inodes(); !slices.Equal(now, before) {
			t.Errorf("round %d: sockets %v, before their routes were removed %v", round, now, before)
		}
		mustFetch(t, n, "a.test", "/", "one")
		q.reload(all)
		for _, w := range between {
			w.answered()
		}
	}
	q.write(routesOn(target, "fd:nosuch"))
	if out, code := q.cli("reload"); code != 1 || !strings.Contains(out, "systemd passed no socket called nosuch (it passed http, https, web)") {
		t.Errorf("a name that was not passed: exit %d\n%s", code, out)
	}
	q.write(all)
	q.signal(syscall.SIGTERM)
	if code := q.wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	late := asks(t, addr(0))
	late.unanswered()
	run()
	late.answered()
}

func TestP19_TheServiceManagerHearsOfEveryPhase(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	target := httpTarget(t, "one", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "one")
		if r.URL.Path == "/slow" {
			w.(http.Flusher).Flush()
			<-gone
		}
	})
	port := freePort(t)
	body := routesOn(target, at(port))
	q := prepare(t, body)
	b := newBoss(q, "@"+q.dir+"/notify") // abstract; the others use a path
	b.start(nil, "--watch")
	k := b.after(0, "READY", saying("READY=1", "STATUS=serving 1 port, 1 route"))
	q.serving()

	cycle := func(what, status string) {
		t.Helper()
		k = b.after(k, what+": RELOADING", func(m string) bool {
			_, at, ok := strings.Cut(m, "MONOTONIC_USEC=")
			us, _, _ := strings.Cut(at, "\n")
			n, err := strconv.ParseInt(us, 10, 64)
			return strings.HasPrefix(m, "RELOADING=1\n") && ok && err == nil && n > 0
		})
		k = b.after(k, what+": READY", saying("READY=1", status))
	}
	q.signal(syscall.SIGHUP)
	cycle("HUP", "STATUS=serving 1 port, 1 route")
	if out, code := q.cli("reload"); code != 0 {
		t.Fatal(out)
	}
	cycle("reload", "STATUS=serving 1 port, 1 route")
	if out, code := q.cli("reload", "--dry-run"); code != 0 {
		t.Fatal(out)
	}
	route := fmt.Sprintf(`{"match": {"ports": [%q], "path": ["/api"]}, "action": {"targets": [%q]}}`, at(port), target)
	if res, text, err := q.admin("PUT", "/v1/routes/second", strings.NewReader(route), "If-Match", "*"); err != nil || res.StatusCode/100 != 2 {
		t.Fatalf("%v %s", err, text)
	}
	cycle("an edit", "STATUS=serving 1 port, 2 routes")
	q.write(body + "unheard: of\n") // seen by --watch
	cycle("a file that is refused", "; the newest reload was refused: ")
	other := freePort(t)
	hold(t, at(other))
	q.write(body)
	cycle("the file is whole again", "STATUS=serving 1 port, 2 routes")
	q.write(routesOn(target, at(port), at(other)))
	cycle("a port that is held", "; the newest reload was refused: cannot bind tcp "+at(other))
	q.write(body)
	cycle("no longer wanted", "STATUS=serving 1 port, 2 routes")
	if strings.Count(strings.Join(b.heard(), "\n"), "RELOADING=1") != strings.Count(strings.Join(b.heard(), "\n"), "READY=1")-1 {
		t.Error("not every reload came to an end")
	}

	c := asksFor(t, port, "/slow")
	if _, err := c.Read(make([]byte, 12)); err != nil {
		t.Fatal(err)
	}
	q.signal(syscall.SIGTERM)
	k = b.after(k, "STOPPING", saying("STOPPING=1", "STATUS=draining: 1 connection"))
	k = b.after(k, "more time", saying("EXTEND_TIMEOUT_USEC=15000000", "STATUS=draining: 1 connection"))
	b.after(k, "even more time", saying("EXTEND_TIMEOUT_USEC=15000000"))
	close(gone)
	if code := q.wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	if got := b.stored(); len(got) > 0 {
		t.Errorf("after an orderly stop the store has %q", got)
	}
}

// asksFor is a connection that has asked for path.
func asksFor(t testing.TB, port int, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", at(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a.test\r\n\r\n", path)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestP19_APortThatIsBusyAtStartIsSaid(t *testing.T) {
	t.Parallel()
	n := freePorts(t, 2)
	holder := hold(t, at(n+1))
	q := prepare(t, routesOn("127.0.0.1:9", at(n), at(n+1)))
	b := newBoss(q, q.dir+"/notify")
	b.start(nil)
	k := b.after(0, "READY", saying("READY=1", "STATUS=serving 1 of 2 ports, 2 routes; not bound: "+at(n+1)))
	release(holder)
	b.after(k, "the port is had", saying("STATUS=serving 2 ports, 2 routes"))
	q.until("both are stored", func() bool { return len(b.stored()) == 2 })
}

func TestP19_ADaemonThatCannotStartSaysWhy(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	hold(t, at(port))
	q := prepare(t, routesOn("127.0.0.1:9", at(port)))
	b := newBoss(q, q.dir+"/notify")
	b.start(nil, "--strict")
	if code := q.wait(20 * time.Second); code != 3 {
		t.Errorf("exit %d", code)
	}
	b.after(0, "why", saying("STATUS=cannot start: cannot bind tcp "+at(port)))
	if strings.Contains(strings.Join(b.heard(), "\n"), "READY=1") {
		t.Error("it said READY")
	}
}

func TestP19_TheWatchdogIsForUsAlone(t *testing.T) {
	t.Parallel()
	beats := func(b *boss) int { return strings.Count(strings.Join(b.heard(), "\n"), "WATCHDOG=1") }
	q := prepare(t, routesOn("127.0.0.1:9", at(freePort(t))))
	b := newBoss(q, q.dir+"/notify")
	b.start([]string{"WATCHDOG_USEC=400000"})
	q.until("it lives", func() bool { return beats(b) > 5 })
	// A process that is stopped lives no more.
	q.signal(syscall.SIGSTOP)
	stopped := func() bool {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", q.cmd.Process.Pid))
		return strings.Contains(string(stat), ") T ")
	}
	q.until("it is stopped", stopped)
	was := beats(b)
	<-time.After(time.Second)
	if now := beats(b); now > was+1 { // one may have been on its way
		t.Errorf("%d signs of life from a stopped process", now-was)
	}
	q.signal(syscall.SIGCONT)
	q.until("it lives again", func() bool { return beats(b) > was+3 })

	other := prepare(t, routesOn("127.0.0.1:9", at(freePort(t))))
	c := newBoss(other, other.dir+"/notify")
	c.start([]string{"WATCHDOG_USEC=400000", "WATCHDOG_PID=1"})
	c.after(0, "READY", saying("READY=1"))
	<-time.After(time.Second)
	if n := beats(c); n > 0 {
		t.Errorf("%d signs of life for a watchdog of somebody else", n)
	}
}

// A throng connects to a port again and again on several goroutines. A connection that is refused, or that gets no
// answer in time, fails the test; one that was accepted and is cut is what a kill -9 does.
type throng struct {
	t           testing.TB
	served, cut atomic.Int64
	end         chan struct{}
	once        sync.Once
	all         sync.WaitGroup
}

func newThrong(t testing.TB, port int) *throng {
	x := &throng{t: t, end: make(chan struct{})}
	for range 4 {
		x.all.Go(func() {
			for {
				select {
				case <-x.end:
					return
				default:
				}
				c, err := net.DialTimeout("tcp", at(port), 20*time.Second)
				if err != nil {
					t.Errorf("a client cannot connect: %v", err)
					return
				}
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
				b, err := io.ReadAll(c)
				c.Close()
				switch {
				case bytes.HasPrefix(b, []byte("HTTP/1.1 200")):
					x.served.Add(1)
				case os.IsTimeout(err):
					t.Errorf("a client is not answered: %q, %v", b, err)
					return
				default:
					x.cut.Add(1)
				}
			}
		})
	}
	t.Cleanup(x.over)
	return x
}

// more waits until that many more were served.
func (x *throng) more(n int64) {
	x.t.Helper()
	was := x.served.Load()
	until(x.t, "clients are served", func() bool { return x.served.Load() > was+n || x.t.Failed() })
}

func (x *throng) over() {
	x.once.Do(func() {
		close(x.end)
		x.all.Wait()
		x.t.Logf("%d served, %d cut", x.served.Load(), x.cut.Load())
	})
}

func TestP19_NobodyIsRefusedWhileAKilledDaemonStartsAgain(t *testing.T) {
	t.Parallel()
	target := httpTarget(t, "one", nil)
	n := freePorts(t, 3)
	q := prepare(t, routesOn(target, at(n), ":"+strconv.Itoa(n+1), at(n+2)))
	b := newBoss(q, q.dir+"/notify")
	b.start(nil)
	b.after(0, "READY", saying("READY=1"))
	name := func(addr string) string { return "quaymaster=" + strings.ReplaceAll(addr, ":", "%3A") }
	q.until("the sockets are stored", func() bool {
		return slices.Equal(b.stored(), []string{name(":" + strconv.Itoa(n+1)), name(at(n)), name(at(n + 2))})
	})
	q.wantOrigins(at(n)+" bound own "+strconv.Itoa(n), fmt.Sprintf(":%d bound own %d", n+1, n+1), at(n+2)+" bound own "+strconv.Itoa(n+2))
	sockets := []uint64{inode(t, n), inode(t, n+1), inode(t, n+2)}
	one, two := newThrong(t, n), newThrong(t, n+1)
	for range 3 {
		one.more(20)
		two.more(20)
		q.signal(syscall.SIGKILL)
		q.wait(20 * time.Second)
		waits := asks(t, at(n)) // while there is no process at all
		k := len(b.heard())
		b.start(nil)
		waits.answered()
		b.after(k, "READY", saying("READY=1", "STATUS=serving 3 ports, 3 routes"))
		q.wantOrigins(at(n)+" bound systemd "+strconv.Itoa(n), fmt.Sprintf(":%d bound systemd %d", n+1, n+1), at(n+2)+" bound systemd "+strconv.Itoa(n+2))
		if now := []uint64{inode(t, n), inode(t, n+1), inode(t, n+2)}; !slices.Equal(now, sockets) {
			t.Errorf("sockets %v, before the kill %v", now, sockets)
		}
	}
	one.more(20)
	one.over()
	two.over()

	// A port that leaves the plan leaves the store, and is closed.
	q.reload(routesOn(target, at(n), ":"+strconv.Itoa(n+1)))
	q.until("the third is forgotten", func() bool { return len(b.stored()) == 2 })
	refuses(t, n+2)
	// So does one that leaves it while there is no process.
	q.signal(syscall.SIGKILL)
	q.wait(20 * time.Second)
	q.write(routesOn(target, "127.0.0.1:"+strconv.Itoa(n+1)))
	k := len(b.heard())
	b.start(nil)
	b.after(k, "READY", saying("READY=1", "STATUS=serving 1 port, 1 route"))
	q.serving()
	q.until("its own alone is stored", func() bool { return slices.Equal(b.stored(), []string{name(at(n + 1))}) })
	refuses(t, n)
	mustFetch(t, n+1, "a.test", "/", "one") // bound beside the wildcard that was in the store
	q.wantOrigins(at(n+1) + " bound own " + strconv.Itoa(n+1))
}

// refuses waits until nobody listens on port.
func refuses(t testing.TB, port int) {
	t.Helper()
	until(t, fmt.Sprintf("port %d refuses", port), func() bool {
		c, err := net.Dial("tcp", at(port))
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

func TestP19_AStartThatFailsLeavesTheStoreAlone(t *testing.T) {
	t.Parallel()
	target := httpTarget(t, "one", nil)
	port := freePort(t)
	body := routesOn(target, at(port))
	q := prepare(t, body)
	b := newBoss(q, q.dir+"/notify")
	b.start(nil)
	q.until("the socket is stored", func() bool { return len(b.stored()) == 1 })
	q.signal(syscall.SIGKILL)
	q.wait(20 * time.Second)
	early := asks(t, at(port))
	busy := freePort(t)
	hold(t, at(busy))
	for _, broken := range []string{"unheard: of\n", body + fmt.Sprintf("  - {name: other, match: {ports: [{port: %d, on_busy: fail}], protocols: [http1]}, action: {targets: [%q]}}\n", busy, target)} {
		q.write(broken)
		b.start(nil)
		if code := q.wait(20 * time.Second); code == 0 {
			t.Error("it started")
		}
	}
	if len(b.stored()) != 1 {
		t.Fatalf("stored: %q", b.stored())
	}
	q.write(body)
	b.start(nil)
	early.answered()
}

func TestP19_AnUpgradeGoesOnUnderTheServiceManager(t *testing.T) {
	t.Parallel()
	target := httpTarget(t, "one", nil)
	port := freePort(t)
	q := prepare(t, routesOn(target, at(port)))
	b := newBoss(q, q.dir+"/notify")
	b.start([]string{"WATCHDOG_USEC=800000"})
	b.after(0, "READY", saying("READY=1"))
	q.serving()
	clients := newThrong(t, port)
	for range 2 {
		k := len(b.heard())
		pid := q.upgrade()
		k = b.after(k, "MAINPID", saying("MAINPID="+strconv.Itoa(pid)))
		k = b.after(k, "the successor is heard", saying("READY=1", "STATUS=serving 1 port, 1 route"))
		k = b.after(k, "its watchdog", saying("WATCHDOG=1"))
		if out, code := q.cli("reload"); code != 0 {
			t.Fatal(out)
		}
		k = b.after(k, "its reload", saying("RELOADING=1"))
		b.after(k, "its reload", saying("READY=1"))
		clients.more(20)
	}
	if n := clients.cut.Load(); n > 0 {
		t.Errorf("%d connections cut by upgrades", n)
	}
	if got := b.stored(); len(got) != 1 {
		t.Errorf("stored: %q", got)
	}
	b.mu.Lock()
	if b.other > 0 {
		t.Errorf("%d messages of processes that are not, or no longer, the main one", b.other)
	}
	b.mu.Unlock()
	// The successor is killed; its socket comes back like any other.
	pid := q.pid()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	vanished(t, pid)
	b.start(nil)
	q.serving()
	q.wantOrigins(at(port) + " bound systemd " + strconv.Itoa(port))
	clients.more(20)
	clients.over()
}

func TestP19_TheShippedUnitsPassSystemdAnalyze(t *testing.T) {
	t.Parallel()
	analyze := systemProgram(t, "systemd-analyze")
	dir := t.TempDir()
	var units []string
	list, err := filepath.Glob("../../dist/systemd/quaymaster*.s[eo][rc][vk]*")
	if err != nil || len(list) != 3 {
		t.Fatalf("units %q %v", list, err)
	}
	for _, file := range list {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("/usr/bin/quaymaster"), []byte(binary)) // verify wants it to be there
		unit := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(unit, text, 0o600); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "'DelegateSubgroup' in section") { // of systemd before 254
			t.Errorf("verify: %s", line)
		}
	}
	if err != nil {
		t.Errorf("verify: %v", err)
	}
	service := filepath.Join(dir, "quaymaster.service")
	const most = "25" // tenths: 2.5; it is 2.2 with systemd 252
	if out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold="+most, service).CombinedOutput(); err != nil {
		t.Errorf("security: %v\n%s", err, tail(string(out), 3))
	}
	text, _ := os.ReadFile(service)
	for _, line := range []string{
		"Type=notify", "KillMode=process", "Delegate=yes", "DelegateSubgroup=daemon", "SuccessExitStatus=4", "Restart=on-failure", "NotifyAccess=main",
		"StateDirectoryMode=0700", "RuntimeDirectoryMode=0700", "AmbientCapabilities=CAP_NET_BIND_SERVICE", "TimeoutStopSec=45",
	} {
		if !bytes.Contains(text, []byte("\n"+line+"\n")) {
			t.Errorf("the unit has no line %s", line)
		}
	}
}

func TestP19_TheUnitsFoldersAreTheDaemonsOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "q.yaml")
	if err := os.WriteFile(file, []byte("routes: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	q := &qm{t: t, dir: dir, file: file, sock: dir + "/quaymaster/admin.sock"}
	folders := []string{"STATE_DIRECTORY=" + dir + "/state", "RUNTIME_DIRECTORY=" + dir + "/quaymaster"}
	q.runEnv(folders)
	q.serving()
	if _, err := os.Stat(dir + "/state"); err != nil {
		t.Error(err)
	}
	cmd := exec.Command(binary, "reload", "-c", file) // as ExecReload= runs it
	cmd.Env = append(os.Environ(), folders...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestTheLaunchVerbBecomesAProgramWithItsSocket(t *testing.T) {
	t.Parallel()
	python := systemProgram(t, "python3")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := launch.Detach(l)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const program = `
import json, os, socket
s = socket.socket(fileno=3)
c, _ = s.accept()
c.sendall(json.dumps({"pid": os.getpid(), "env": dict(os.environ), "blocking": os.get_blocking(3)}).encode())
c.close()
`
	pid, err := launch.Start(binary, []string{"launch"}, &launch.Spec{
		Path: python, Args: []string{"python3", "-c", program}, Env: []string{"PORT=1", "LC_ALL=C.UTF-8"},
		Inherit: []string{"NOTIFY_SOCKET=/x", "QUAYMASTER_SOCKET=/x", "HOME=/"}, Sockets: []launch.Socket{{Name: "web", FD: fd}},
		In: -1, Out: -1, Err: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(c)
	var got struct {
		PID      int
		Env      map[string]string
		Blocking bool
	}
	if err != nil || json.Unmarshal(text, &got) != nil {
		t.Fatalf("%q %v", text, err)
	}
	want := map[string]string{"PORT": "1", "LC_ALL": "C.UTF-8", "HOME": "/", "LISTEN_PID": strconv.Itoa(pid), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
	if got.PID != pid || !got.Blocking {
		t.Errorf("pid %d, blocking %v; want %d, true", got.PID, got.Blocking, pid)
	}
	for k, v := range want { // a python3 that is a script adds its own
		if got.Env[k] != v {
			t.Errorf("%s=%q, want %q", k, got.Env[k], v)
		}
	}
	for k := range got.Env {
		if k == "NOTIFY_SOCKET" || strings.HasPrefix(k, "QUAYMASTER_") {
			t.Errorf("%s=%q", k, got.Env[k])
		}
	}
	if out, code := cli(t, "launch", "5"); code != 1 || !strings.Contains(out, "for the daemon alone") {
		t.Errorf("by hand: exit %d\n%s", code, out)
	}
	if out, _ := cli(t, "--help"); strings.Contains(out, "launch") {
		t.Error("the verb is not hidden")
	}
}
