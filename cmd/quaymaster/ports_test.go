package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/api"
)

// route is one HTTP route by host, as YAML in flow style.
func route(name string, port int, host, target string) string {
	return fmt.Sprintf("  - {name: %s, match: {ports: [%d], domains: [%s]}, action: {targets: [%q]}}\n", name, port, host, target)
}

// hold listens on a port as a foreign process would: a child of ours that is not quaymaster. QM_CHILD_REUSE=1 in env sets
// SO_REUSEPORT; QM_CHILD_DIAL=ADDRESS connects from the port instead.
func hold(t testing.TB, addr string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildListener$", "-test.v=false")
	cmd.Env = append(os.Environ(), "QM_CHILD_LISTEN="+addr, "QUAYMASTER_TEST_BINARY="+binary) // it need not be built again
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "listening") {
		t.Fatalf("child listener: %q %v", line, err)
	}
	return cmd
}

// release ends a child listener and waits until it is gone.
func release(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// TestChildListener is no test: it is the foreign process that hold starts.
func TestChildListener(t *testing.T) {
	addr := os.Getenv("QM_CHILD_LISTEN")
	if addr == "" {
		t.Skip("runs as a child of other tests")
	}
	var lc net.ListenConfig
	if os.Getenv("QM_CHILD_REUSE") != "" {
		lc.Control = func(_, _ string, raw syscall.RawConn) error {
			var set error
			err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
			return errors.Join(err, set)
		}
	}
	if target := os.Getenv("QM_CHILD_DIAL"); target != "" {
		at, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := (&net.Dialer{LocalAddr: at}).Dial("tcp", target)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("listening: no, connected from", c.LocalAddr())
		_, _ = io.Copy(io.Discard, c)
		return
	}
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("listening", l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.Close()
	}
}

// port is one row of `ports --json`.
type portRow struct {
	Proto, Address, Wanted, State, Source, Error string
	Port                                         int
	Routes                                       []string
	Holder                                       *api.Holder
	Warning                                      string
	NextTry                                      *time.Time `json:"next_try"`
}

func (q *qm) ports() []portRow {
	q.t.Helper()
	var rows []portRow
	q.get("/v1/ports", &rows)
	return rows
}

// wanted is the row of a wanted port.
func (q *qm) wanted(port int) portRow {
	q.t.Helper()
	for _, r := range q.ports() {
		if r.Wanted == ":"+strconv.Itoa(port) || strings.HasSuffix(r.Wanted, ":"+strconv.Itoa(port)) {
			return r
		}
	}
	return portRow{}
}

func TestP01_TwoRoutesShareOnePort(t *testing.T) {
	p := freePort(t)
	a, b := httpTarget(t, "a", nil), httpTarget(t, "b", nil)
	q := start(t, "routes:\n"+route("a", p, "a.test", a)+route("b", p, "b.test", b))
	mustFetch(t, p, "a.test", "/x", "a GET a.test /x")
	mustFetch(t, p, "b.test", "/y", "b GET b.test /y")
	row := q.wanted(p)
	if row.State != "bound" || len(row.Routes) != 2 {
		t.Fatalf("want one bound socket with two routes, have %+v", row)
	}
	n := 0
	for _, r := range q.ports() {
		if r.Port == p {
			n++
		}
	}
	if n != 1 {
		t.Fatalf("%d sockets on port %d, want 1", n, p)
	}
}

func TestP02_SocketStaysWhileARouteUsesIt(t *testing.T) {
	p, other := freePort(t), freePort(t)
	a := httpTarget(t, "a", nil)
	rest := "routes:\n" + route("other", other, "o.test", a)
	keep := route("keep", p, "k.test", a)
	q := start(t, rest+keep)
	was := inode(t, p)
	if was == 0 {
		t.Fatal("not listening")
	}
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	reload := func(body string) {
		t.Helper()
		q.write(body)
		if res, b, err := q.admin("POST", "/v1/reload", nil); err != nil || res.StatusCode != 200 {
			t.Fatalf("reload: %v %s %v", res, b, err)
		}
	}
	for i := range rounds {
		name := "r" + strconv.Itoa(i)
		if i%50 != 0 {
			reload(rest + keep + route(name, p, name+".test", a))
			reload(rest + keep)
		} else { // by API, which is durable and therefore slower
			body := fmt.Sprintf(`{"match":{"ports":[%d],"domains":["%s.test"]},"action":{"targets":[%q]}}`, p, name, a)
			if res, b, err := q.admin("PUT", "/v1/routes/"+name, strings.NewReader(body), "If-Match", "*"); err != nil || res.StatusCode != 200 {
				t.Fatalf("PUT: %v %s %v", res, b, err)
			}
			mustFetch(t, p, name+".test", "/", "a")
			if res, b, err := q.admin("DELETE", "/v1/routes/"+name, nil, "If-Match", "*"); err != nil || res.StatusCode != 200 {
				t.Fatalf("DELETE: %v %s %v", res, b, err)
			}
		}
		if now := inode(t, p); now != was {
			t.Fatalf("round %d: inode %d, was %d", i, now, was)
		}
	}
	begin := time.Now()
	q.reload(rest)
	l, err := net.Listen("tcp", ":"+strconv.Itoa(p))
	if err != nil || time.Since(begin) > 5*time.Second {
		t.Fatalf("port not free %v after the last route went: %v", time.Since(begin), err)
	}
	_ = l.Close()
}

func TestP03_ReloadThatCannotBeHadChangesNothing(t *testing.T) {
	p, busy := freePort(t), freePort(t)
	a := httpTarget(t, "a", nil)
	child := hold(t, "127.0.0.1:"+strconv.Itoa(busy))
	q := start(t, "routes:\n"+route("a", p, "a.test", a))
	q.write("routes:\n" + route("b", p, "b.test", a) + route("c", busy, "c.test", a))
	out, code := q.cli("reload")
	if code != 1 {
		t.Fatalf("exit %d, want 1\n%s", code, out)
	}
	for _, want := range []string{strconv.Itoa(busy), "pid " + strconv.Itoa(child.Process.Pid), filepath.Base(os.Args[0]), "kill"} {
		if !strings.Contains(out, want) {
			t.Errorf("the error does not say %q:\n%s", want, out)
		}
	}
	mustFetch(t, p, "a.test", "/", "a")
	if status, _, _ := fetch(p, "b.test", "/"); status != 404 {
		t.Errorf("b.test answers %d: part of the refused configuration is in force", status)
	}
	if s := q.statusOrNil(); s["config"].(map[string]any)["error"] == "" {
		t.Error("status does not tell that the reload was refused")
	}
}

func TestP04_BusyPortAtStartComesUpByItself(t *testing.T) {
	p, busy := freePort(t), freePort(t)
	a := httpTarget(t, "a", nil)
	child := hold(t, ":"+strconv.Itoa(busy))
	q := start(t, "routes:\n"+route("a", p, "a.test", a)+route("b", busy, "b.test", a))
	mustFetch(t, p, "a.test", "/", "a")
	if s := q.statusOrNil(); s["state"] != "degraded" {
		t.Fatalf("state %v, want degraded", s["state"])
	}
	row := q.wanted(busy)
	if row.State != "retrying" || row.Holder == nil || row.Holder.PID != child.Process.Pid || row.NextTry == nil {
		t.Fatalf("want retrying with holder %d, have %+v", child.Process.Pid, row)
	}
	step := time.Until(*row.NextTry)
	release(child)
	begin := time.Now()
	q.until("the port comes up", func() bool { return q.wanted(busy).State == "bound" })
	if took := time.Since(begin); took > 2*max(step, 250*time.Millisecond)+2*time.Second {
		t.Errorf("came up after %v, next try was due in %v", took, step)
	}
	mustFetch(t, busy, "b.test", "/", "a")
	q.until("state serving", func() bool { return q.statusOrNil()["state"] == "serving" })
}

func TestP06_KindsOfBindErrorsAreToldApart(t *testing.T) {
	a := "127.0.0.1:9"
	p, busy := freePort(t), freePort(t)
	hold(t, ":"+strconv.Itoa(busy))
	base := "routes:\n" + route("a", p, "a.test", a)
	q := start(t, base)
	cases := []struct{ name, port, want string }{
		{"in use", strconv.Itoa(busy), "held by"},
		{"no address", `"192.0.2.7:` + strconv.Itoa(p+1) + `"`, "192.0.2.7"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			q.write(base + fmt.Sprintf("  - {name: x, match: {ports: [%s], domains: [x.test]}, action: {targets: [%q]}}\n", c.port, a))
			out, code := q.cli("reload")
			if code != 1 || !strings.Contains(out, c.want) {
				t.Fatalf("exit %d, want 1 and %q:\n%s", code, c.want, out)
			}
		})
	}
	t.Run("permission", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root to become another user")
		}
		low := unprivilegedStart(t)
		if low == 0 {
			t.Skip("every port is unprivileged here")
		}
		w := prepare(t, "routes:\n"+route("low", low, "l.test", a)+route("a", freePort(t), "a.test", a))
		if err := os.Chmod(w.dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(w.file, 0o644); err != nil {
			t.Fatal(err)
		}
		w.cmd = exec.Command(binary, "run", "-c", w.file)
		copied := filepath.Join(w.dir, "quaymaster")
		copyFile(t, binary, copied)
		w.cmd.Path = copied
		w.log = &lockedBuffer{}
		w.cmd.Stderr, w.cmd.Stdout = w.log, io.Discard
		w.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
		if err := w.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = w.cmd.Process.Kill(); _ = w.cmd.Wait() }()
		until(t, "the log says what is missing", func() bool {
			return strings.Contains(w.log.String(), "CAP_NET_BIND_SERVICE") && strings.Contains(w.log.String(), "ip_unprivileged_port_start")
		})
	})
}

// unprivilegedStart is a port that only root may bind, 0 if there is none.
func unprivilegedStart(t *testing.T) int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	for p := n - 1; p > n-100 && p > 0; p-- {
		if l, err := net.Listen("tcp", ":"+strconv.Itoa(p)); err == nil {
			_ = l.Close()
			return p
		}
	}
	return 0
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestP07P08_KillNineAndTimeWaitAreNoConflict(t *testing.T) {
	p := freePort(t)
	a := httpTarget(t, "a", nil)
	q := start(t, "routes:\n"+route("a", p, "a.test", a))
	var open []net.Conn
	for range 50 {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(p))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	for range 50 { // the server closes first: its side goes to TIME_WAIT
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(p))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	}
	if n := timeWaits(t, p); n < 50 {
		t.Fatalf("%d sockets in TIME_WAIT, want 50: the test shows nothing", n)
	}
	q.signal(syscall.SIGKILL)
	q.wait(5 * time.Second)
	begin := time.Now()
	q.run()
	q.until("it answers again", func() bool {
		status, _, err := fetch(p, "a.test", "/")
		return err == nil && status == 200
	})
	if took := time.Since(begin); took > 5*time.Second { // a minute where TIME_WAIT counts
		t.Errorf("served %v after the start, want it at once", took)
	}
	if strings.Contains(q.log.String(), "in_use") || strings.Contains(q.log.String(), "cannot bind") {
		t.Errorf("TIME_WAIT was taken for a conflict:\n%s", q.log)
	}
	_ = open
}

func timeWaits(t *testing.T, port int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	want := fmt.Sprintf(":%04X", port)
	six, _ := os.ReadFile("/proc/net/tcp6")
	for _, line := range strings.Split(string(b)+string(six), "\n") {
		w := strings.Fields(line)
		if len(w) > 3 && strings.HasSuffix(w[1], want) && w[3] == "06" {
			n++
		}
	}
	return n
}

func TestP07_ExecToFirstRequest(t *testing.T) {
	p := freePort(t)
	a := httpTarget(t, "a", nil)
	q := prepare(t, "routes:\n"+route("a", p, "a.test", a))
	best := time.Hour
	for range 5 { // the promise is for an idle machine: the best of five is what this one can do
		begin := time.Now()
		q.run()
		for {
			if status, _, err := fetch(p, "a.test", "/"); err == nil && status == 200 {
				break
			}
			if time.Since(begin) > 10*time.Second {
				t.Fatal("does not serve")
			}
		}
		best = min(best, time.Since(begin))
		q.signal(syscall.SIGKILL)
		q.wait(5 * time.Second)
	}
	t.Logf("from exec to the first answer: %v", best)
	if best > 500*time.Millisecond { // 100 ms on an idle machine; five times that under a loaded test run
		t.Errorf("from exec to the first answer: %v", best)
	}
}

func TestP09_BusyForEverIsNoBusyLoop(t *testing.T) {
	busy := freePort(t)
	child := hold(t, ":"+strconv.Itoa(busy))
	a := httpTarget(t, "a", nil)
	q := start(t, "port_policy: {give_up_after: 2s}\nroutes:\n"+route("a", freePort(t), "a.test", a)+route("b", busy, "b.test", a))
	before := cpu(t, q.cmd.Process.Pid)
	begin := time.Now()
	q.until("it gives up", func() bool { return q.wanted(busy).State == "failed" })
	took, used := time.Since(begin), cpu(t, q.cmd.Process.Pid)-before
	if took > 10*time.Second {
		t.Errorf("gave up after %v, want 2 s and one step", took)
	}
	if row := q.wanted(busy); row.Holder == nil || row.Holder.PID != child.Process.Pid || !strings.Contains(row.Error, "gave up") {
		t.Errorf("want the holder and that it gave up, have %+v", row)
	}
	if n := q.metric(fmt.Sprintf(`quaymaster_port_bind_failures_total{kind="in_use",port=":%d"}`, busy)); n < 2 || n > 8 {
		t.Errorf("%v attempts in %v: back-off does not grow", n, took)
	}
	// Polling the state costs most of what is used here; a loop would use a whole core.
	if used > took/2 {
		t.Errorf("%v of CPU in %v", used, took)
	}
}

// cpu is the CPU time a process has used.
func cpu(t testing.TB, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	w := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+2:])
	u, _ := strconv.Atoi(w[11])
	s, _ := strconv.Atoi(w[12])
	return time.Duration(u+s) * 10 * time.Millisecond
}

func TestP12_FallbackIsSaidEverywhere(t *testing.T) {
	busy := freePort(t)
	first := freePorts(t, 3)
	hold(t, ":"+strconv.Itoa(busy))
	hold(t, ":"+strconv.Itoa(first))
	a := httpTarget(t, "a", nil)
	body := fmt.Sprintf("routes:\n  - {name: a, match: {ports: [{port: %d, fallback: [\"%d-%d\"]}], domains: [a.test]}, action: {targets: [%q]}}\n",
		busy, first, first+2, a)
	q := start(t, body)
	mustFetch(t, first+1, "a.test", "/", "a")
	row := q.wanted(busy)
	if row.State != "fallback" || row.Port != first+1 {
		t.Errorf("ports: want fallback on %d, have %+v", first+1, row)
	}
	s := q.statusOrNil()
	if s["state"] != "degraded" || !strings.Contains(fmt.Sprint(s["problems"]), strconv.Itoa(first+1)) {
		t.Errorf("status does not say so: %v", s)
	}
	if q.metric(fmt.Sprintf(`quaymaster_port_state{port=":%d",state="fallback"}`, busy)) != 1 {
		t.Error("the metric does not say so")
	}
	if !strings.Contains(q.log.String(), "fallback") {
		t.Error("the log does not say so")
	}
	w := prepare(t, body)
	w.run("--strict")
	if code := w.wait(10 * time.Second); code != 3 {
		t.Errorf("run --strict: exit %d, want 3\n%s", code, w.log)
	}
}

func TestP17_OneDaemonPerStateFolder(t *testing.T) {
	a := httpTarget(t, "a", nil)
	q := start(t, "routes:\n"+route("a", freePort(t), "a.test", a))
	other := *q
	other.sock = q.dir + "/other.sock"
	other.file = q.dir + "/other.yaml"
	other.write("routes:\n" + route("a", freePort(t), "a.test", a))
	other.run()
	if code := other.wait(10 * time.Second); code != 1 || !strings.Contains(other.log.String(), "pid "+strconv.Itoa(q.cmd.Process.Pid)) {
		t.Fatalf("second: exit %d\n%s", code, other.log)
	}
	q.signal(syscall.SIGKILL)
	q.wait(5 * time.Second)
	other.run()
	other.serving()
}

func TestP18_OverlappingBindsChangeInOneReload(t *testing.T) {
	p, busy := freePort(t), freePort(t)
	a := httpTarget(t, "a", nil)
	body := func(addr string) string {
		return fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%q], domains: [a.test]}, action: {targets: [%q]}}\n", addr, a)
	}
	wide, narrow := ":"+strconv.Itoa(p), "127.0.0.1:"+strconv.Itoa(p)
	q := start(t, body(wide))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	refused := 0
	wg.Add(1)
	go func() { // a client that never retries
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if status, _, err := fetch(p, "a.test", "/"); err != nil || status != 200 {
				refused++
			}
		}
	}()
	for range 5 {
		q.reload(body(narrow))
		q.reload(body(wide))
	}
	close(stop)
	wg.Wait()
	if refused > 0 {
		t.Errorf("%d requests failed while the bind changed", refused)
	}
	hold(t, ":"+strconv.Itoa(busy))
	q.write(body(narrow) + route("b", busy, "b.test", a))
	if out, code := q.cli("reload"); code != 1 {
		t.Fatalf("exit %d\n%s", code, out)
	}
	mustFetch(t, p, "a.test", "/", "a")
	if row := q.wanted(p); row.Wanted != wide || row.State != "bound" {
		t.Errorf("the old bind is not back: %+v", row)
	}
}

func TestP21_EightClientsAtOnce(t *testing.T) {
	p := freePort(t)
	a := httpTarget(t, "a", nil)
	q := start(t, "routes:\n"+route("base", p, "base.test", a))
	before := q.fds()
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 10 {
				// Each client sets the whole layer to two routes that belong together.
				body := fmt.Sprintf(`{"routes":{"x":{"match":{"ports":[%d],"domains":["x.test"]},"action":{"respond":{"status":200,"body":"%d-%d"}}},
					"y":{"match":{"ports":[%d],"domains":["y.test"]},"action":{"respond":{"status":200,"body":"%d-%d"}}}}}`, p, c, i, p, c, i)
				res, b, err := q.admin("PUT", "/v1/config", strings.NewReader(body), "If-Match", "*")
				if err != nil || res.StatusCode != 200 {
					t.Errorf("client %d: %v %s %v", c, res, b, err)
				}
			}
		}()
	}
	wg.Wait()
	_, x, _ := fetch(p, "x.test", "/")
	_, y, _ := fetch(p, "y.test", "/")
	if x == "" || x != y {
		t.Errorf("x answers %q and y %q: halves of two changes", x, y)
	}
	q.until("descriptors are given back", func() bool { return q.fds() <= before+5 })
}

func TestP22_ThousandReloadsAreFlat(t *testing.T) {
	p, extra := freePort(t), freePort(t)
	a := httpTarget(t, "a", nil)
	base := "routes:\n" + route("base", p, "base.test", a)
	q := start(t, base)
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	cycle := func(n int) {
		for range n {
			for _, body := range []string{base + route("extra", extra, "extra.test", a), base} {
				q.write(body)
				if res, b, err := q.admin("POST", "/v1/reload", nil); err != nil || res.StatusCode != 200 {
					t.Fatalf("reload: %v %s %v", res, b, err)
				}
			}
		}
	}
	cycle(rounds / 10) // what is made once and kept
	fds, routines, rss := q.fds(), q.metric("go_goroutines"), residentKB(t, q)
	cycle(rounds)
	q.until("descriptors are flat", func() bool { return q.fds() <= fds+5 })
	q.until("goroutines are flat", func() bool { return q.metric("go_goroutines") <= routines+5 })
	if now := residentKB(t, q); now > rss+24<<10 {
		t.Errorf("resident %d KB, was %d KB before %d reloads", now, rss, 2*rounds)
	}
	if inode(t, extra) != 0 {
		t.Error("the released port still listens")
	}
}

func residentKB(t testing.TB, q *qm) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", q.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+)`).FindSubmatch(b)
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

func TestP23_RangeWithPreservedPort(t *testing.T) {
	first := freePorts(t, 100)
	// One target host with the same hundred ports, on another loopback address.
	for p := first; p < first+100; p++ {
		l, err := net.Listen("tcp", "127.0.0.2:"+strconv.Itoa(p))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "target %s", r.Context().Value(http.LocalAddrContextKey))
		}))
	}
	start(t, fmt.Sprintf("routes:\n  - {name: range, match: {ports: [\"127.0.0.1:%d-%d\"]}, action: {targets: [{host: 127.0.0.2, port: preserve}]}}\n", first, first+99))
	for p := first; p < first+100; p++ {
		mustFetch(t, p, "any.test", "/", "target 127.0.0.2:"+strconv.Itoa(p))
	}
}

func sorted(list []string) []string {
	out := append([]string(nil), list...)
	for i := range out {
		for j := i; j > 0 && out[j] < out[j-1]; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}
