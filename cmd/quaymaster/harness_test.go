package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the real program, built once for all scenarios. QUAYMASTER_TEST_BINARY names another one.
var binary string

func TestMain(m *testing.M) {
	for _, child := range []string{"QM_CHILD_LISTEN", "QM_CHILD_TARGET"} {
		if os.Getenv(child) != "" { // a child of a test needs no program of ours, and no time to build one
			os.Exit(m.Run())
		}
	}
	dir, err := os.MkdirTemp("", "quaymaster-test-")
	if err != nil {
		panic(err)
	}
	binary = os.Getenv("QUAYMASTER_TEST_BINARY")
	if binary == "" {
		binary = filepath.Join(dir, "quaymaster")
		if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			os.Exit(1)
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// allotted are the ports that this process gives out. They are below the ephemeral ones, so that no outgoing connection
// takes a number in between, and come in blocks: whoever listens on the first port of one has the rest, so that test
// programs that run at the same time do not meet.
var allotted struct {
	sync.Mutex
	claims []net.Listener
	blocks []int // first ports
	next   int   // counts through all of them
}

const (
	lowestPort = 20000
	blockSize  = 500
	blockCount = 20
)

// freePort is a port that nobody listens on and nobody else was given.
func freePort(t testing.TB) int {
	t.Helper()
	allotted.Lock()
	defer allotted.Unlock()
	return nextPort(t)
}

// nextPort is freePort with the lock held.
func nextPort(t testing.TB) int {
	t.Helper()
	for range 2 * blockSize * blockCount {
		if allotted.next == len(allotted.blocks)*(blockSize-1) && !claimBlock() {
			allotted.next = 0 // all are given out: those from the beginning are free again
		}
		if len(allotted.blocks) == 0 {
			break
		}
		p := allotted.blocks[allotted.next/(blockSize-1)] + 1 + allotted.next%(blockSize-1)
		allotted.next++
		l, err := net.Listen("tcp", ":"+strconv.Itoa(p))
		if err != nil {
			continue
		}
		_ = l.Close()
		return p
	}
	t.Fatal("no free port")
	return 0
}

// claimBlock takes one more block, if nobody else has it.
func claimBlock() bool {
	for i := range blockCount {
		first := lowestPort + blockSize*((i+os.Getpid())%blockCount)
		l, err := net.Listen("tcp", ":"+strconv.Itoa(first))
		if err == nil {
			allotted.claims = append(allotted.claims, l)
			allotted.blocks = append(allotted.blocks, first)
			return true
		}
	}
	return false
}

// freePorts are n ports in a row.
func freePorts(t testing.TB, n int) int {
	t.Helper()
	allotted.Lock() // those who want one at the same time shall not be given one of these
	defer allotted.Unlock()
next:
	for range 500 {
		first := nextPort(t)
		for p := first + 1; p < first+n; p++ {
			if nextPort(t) != p {
				continue next
			}
		}
		return first
	}
	t.Fatal("no free range")
	return 0
}

// A qm is one running quaymaster.
type qm struct {
	t    testing.TB
	cmd  *exec.Cmd
	dir  string // holds q.yaml, state and admin.sock
	file string
	sock string
	log  *lockedBuffer
	out  *lockedBuffer
	done chan struct{}
}

// lockedBuffer collects output that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// write makes a configuration file of body in the instance's folder; state and admin socket are added.
func (q *qm) write(body string) {
	q.t.Helper()
	text := fmt.Sprintf("state_dir: %s/state\nadmin: {socket: %s}\n%s", q.dir, q.sock, body)
	if err := os.WriteFile(q.file+".new", []byte(text), 0o600); err != nil {
		q.t.Fatal(err)
	}
	if err := os.Rename(q.file+".new", q.file); err != nil {
		q.t.Fatal(err)
	}
}

// prepare makes the folder and the configuration, and starts nothing.
func prepare(t testing.TB, body string) *qm {
	t.Helper()
	dir, err := os.MkdirTemp("", "qm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	q := &qm{t: t, dir: dir, file: dir + "/q.yaml", sock: dir + "/admin.sock"}
	q.write(body)
	return q
}

// start runs quaymaster on body and returns when it serves or is degraded. It is stopped when the test ends.
func start(t testing.TB, body string, args ...string) *qm {
	t.Helper()
	q := prepare(t, body)
	q.run(args...)
	q.serving()
	return q
}

// run starts the program and does not wait for anything.
func (q *qm) run(args ...string) { q.runEnv(nil, args...) }

func (q *qm) runEnv(env []string, args ...string) {
	q.t.Helper()
	q.launch(env, append([]string{binary, "run", "-c", q.file}, args...))
}

// runAs starts what begins a command line (a script, setpriv) and ends in the program.
func (q *qm) runAs(program ...string) {
	q.t.Helper()
	q.launch(nil, append(program, "run", "-c", q.file))
}

func (q *qm) launch(env, line []string) {
	q.t.Helper()
	q.log, q.out, q.done = &lockedBuffer{}, &lockedBuffer{}, make(chan struct{})
	q.cmd = exec.Command(line[0], line[1:]...)
	q.cmd.Stdout, q.cmd.Stderr = q.out, q.log
	q.cmd.Env = append(os.Environ(), env...)
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := q.cmd.Start(); err != nil {
		q.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(q.cmd, q.done)
	cmd, done := q.cmd, q.done
	q.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // and what it has started
		<-done
		if q.t.Failed() {
			q.t.Logf("log of pid %d:\n%s", cmd.Process.Pid, tail(q.log.String(), 60))
		}
	})
}

func tail(s string, lines int) string {
	all := strings.Split(s, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// serving waits until the daemon says it serves or is degraded.
func (q *qm) serving() {
	q.t.Helper()
	q.until("it serves", func() bool {
		select {
		case <-q.done:
			q.t.Fatalf("quaymaster ended with %d:\n%s", q.cmd.ProcessState.ExitCode(), q.log)
		default:
		}
		s := q.statusOrNil()
		return s != nil && (s["state"] == "serving" || s["state"] == "degraded")
	})
}

// until polls f for at most 20 s.
func (q *qm) until(what string, f func() bool) {
	q.t.Helper()
	until(q.t, what, f)
}

func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// admin asks the API over the unix socket.
func (q *qm) admin(method, path string, body io.Reader, head ...string) (*http.Response, []byte, error) {
	client := &http.Client{
		Timeout: 20 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", q.sock)
		}},
	}
	req, err := http.NewRequest(method, "http://quaymaster"+path, body)
	if err != nil {
		return nil, nil, err
	}
	for i := 0; i+1 < len(head); i += 2 {
		req.Header.Set(head[i], head[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

func (q *qm) statusOrNil() map[string]any {
	_, b, err := q.admin("GET", "/v1/status", nil)
	if err != nil {
		return nil
	}
	var s map[string]any
	if json.Unmarshal(b, &s) != nil {
		return nil
	}
	return s
}

// get decodes an answer of the API into v.
func (q *qm) get(path string, v any) {
	q.t.Helper()
	res, b, err := q.admin("GET", path, nil)
	if err != nil {
		q.t.Fatal(err)
	}
	if res.StatusCode != 200 {
		q.t.Fatalf("GET %s: %s\n%s", path, res.Status, b)
	}
	if err := json.Unmarshal(b, v); err != nil {
		q.t.Fatalf("GET %s: %v\n%s", path, err, b)
	}
}

// metric is the value of one series, as /metrics writes it; 0 if there is none.
func (q *qm) metric(series string) float64 {
	q.t.Helper()
	_, b, err := q.admin("GET", "/metrics", nil)
	if err != nil {
		q.t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(rest, 64)
			if err != nil {
				q.t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// cli runs a verb against this instance and returns what it printed, both streams, and its exit code.
func (q *qm) cli(args ...string) (string, int) {
	q.t.Helper()
	return cli(q.t, append(args, "--socket", q.sock)...)
}

func cli(t testing.TB, args ...string) (string, int) {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	cmd := exec.CommandContext(ctx, binary, args...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// reload writes body and reloads; it must succeed.
func (q *qm) reload(body string) {
	q.t.Helper()
	q.write(body)
	if out, code := q.cli("reload"); code != 0 {
		q.t.Fatalf("reload: exit %d\n%s", code, out)
	}
}

// signal sends a signal to the daemon.
func (q *qm) signal(s os.Signal) {
	q.t.Helper()
	if err := q.cmd.Process.Signal(s); err != nil {
		q.t.Fatal(err)
	}
}

// wait returns the exit code, or fails after limit.
func (q *qm) wait(limit time.Duration) int {
	q.t.Helper()
	select {
	case <-q.done:
		return q.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		q.t.Fatalf("still running after %v", limit)
		return -1
	}
}

// fds counts the open descriptors of the daemon.
func (q *qm) fds() int {
	q.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", q.cmd.Process.Pid))
	if err != nil {
		q.t.Fatal(err)
	}
	return len(list)
}

// inode is the inode of the socket listening on port in the daemon's network namespace; 0 if nobody listens.
func inode(t testing.TB, port int) uint64 {
	t.Helper()
	return inodeIn(t, "/proc/net", port)
}

// inodeIn does the same for another network namespace: that of /proc/PID/net.
func inodeIn(t testing.TB, folder string, port int) uint64 {
	t.Helper()
	for _, f := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(filepath.Join(folder, f))
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			w := strings.Fields(line)
			if len(w) < 10 || w[3] != "0A" {
				continue
			}
			_, hex, _ := strings.Cut(w[1], ":")
			if p, _ := strconv.ParseUint(hex, 16, 16); int(p) != port {
				continue
			}
			if len(w[1]) > 0 {
				n, _ := strconv.ParseUint(w[9], 10, 64)
				return n
			}
		}
	}
	return 0
}

// httpTarget is an HTTP server that answers "NAME METHOD HOST PATH" and whatever extra does.
func httpTarget(t testing.TB, name string, extra http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if extra != nil {
			extra(w, r)
			return
		}
		fmt.Fprintf(w, "%s %s %s %s", name, r.Method, r.Host, r.URL.RequestURI())
	})}
	go srv.Serve(l)
	t.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String()
}

// tcpTarget runs serve for each connection.
func tcpTarget(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

// fetch asks for host and path at a local port on a connection of its own.
func fetch(port int, host, path string) (int, string, error) {
	client := &http.Client{
		Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	res, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// mustFetch wants status 200 and an answer that starts with want.
func mustFetch(t testing.TB, port int, host, path, want string) {
	t.Helper()
	status, body, err := fetch(port, host, path)
	if err != nil || status != 200 || !strings.HasPrefix(body, want) {
		t.Fatalf("GET http://%s:%d%s: %d %q %v, want 200 and %q", host, port, path, status, body, err, want)
	}
}
