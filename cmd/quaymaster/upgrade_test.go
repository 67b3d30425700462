package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// upgrade runs the verb and returns the pid that serves now. Processes that took over are ended with the test.
func (q *qm) upgrade(args ...string) int {
	q.t.Helper()
	out, code := q.cli(append([]string{"upgrade", "--json"}, args...)...)
	var up struct{ PID, Before int }
	if err := json.Unmarshal([]byte(out), &up); code != 0 || err != nil || up.PID == 0 || up.PID == up.Before {
		q.t.Fatalf("upgrade: exit %d\n%s", code, out)
	}
	q.t.Cleanup(func() { _ = syscall.Kill(up.PID, syscall.SIGKILL) })
	return up.PID
}

func (q *qm) pid() int {
	q.t.Helper()
	var s struct{ PID int }
	q.get("/v1/status", &s)
	return s.PID
}

// vanished waits until there is no such process.
func vanished(t testing.TB, pid int) {
	t.Helper()
	until(t, fmt.Sprintf("pid %d ends", pid), func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// A crowd is clients that must not see a single error, each on its own goroutine, until it is over.
type crowd struct {
	t    testing.TB
	over chan struct{}
	all  sync.WaitGroup
	done atomic.Int64
}

func gather(t testing.TB) *crowd {
	c := &crowd{t: t, over: make(chan struct{})}
	t.Cleanup(c.disperse)
	return c
}

func (c *crowd) disperse() {
	select {
	case <-c.over:
	default:
		close(c.over)
	}
	c.all.Wait()
}

// join repeats f until the crowd disperses. The first error fails the test and ends this client.
func (c *crowd) join(name string, f func() error) {
	c.all.Add(1)
	go func() {
		defer c.all.Done()
		for {
			select {
			case <-c.over:
				return
			default:
			}
			if err := f(); err != nil {
				c.t.Errorf("%s: %v", name, err)
				return
			}
			c.done.Add(1)
		}
	}()
}

// more waits until the crowd has been served n more times.
func (c *crowd) more(n int64) {
	c.t.Helper()
	from := c.done.Load()
	until(c.t, "clients are served", func() bool { return c.done.Load() >= from+n || c.t.Failed() })
}

// once asks over a connection of its own.
func once(port int) func() error {
	return func() error {
		code, body, err := fetch(port, "a.test", "/")
		if err == nil && (code != 200 || !strings.Contains(body, "one")) {
			err = fmt.Errorf("%d %q", code, body)
		}
		return err
	}
}

// again asks over connections that are kept, with a body; a POST is never sent twice.
func again(port int) func() error {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	return func() error {
		req, err := http.NewRequest("POST", "http://"+at(port)+"/", strings.NewReader("body"))
		if err != nil {
			return err
		}
		req.Host = "a.test"
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && (res.StatusCode != 200 || !strings.Contains(string(body), "one")) {
			err = fmt.Errorf("%s %q", res.Status, body)
		}
		return err
	}
}

// sealed asks over TLS, which passes through.
func sealed(port int) func() error {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "s.test"},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", at(port))
		},
	}}
	return func() error {
		res, err := client.Get("https://s.test/")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && string(body) != "sealed" {
			err = fmt.Errorf("%s %q", res.Status, body)
		}
		return err
	}
}

// steady asks for the status, which some process must give at every moment.
func steady(q *qm, slowest *atomic.Int64) func() error {
	return func() error {
		begin := time.Now()
		res, body, err := q.admin("GET", "/v1/status", nil)
		if err != nil {
			return err
		}
		var s struct{ State string }
		if err := json.Unmarshal(body, &s); err != nil || res.StatusCode != 200 || s.State != "serving" && s.State != "draining" {
			return fmt.Errorf("%s %s (%w)", res.Status, body, err)
		}
		took := time.Since(begin).Milliseconds()
		for was := slowest.Load(); took > was && !slowest.CompareAndSwap(was, took); was = slowest.Load() {
		}
		<-time.After(5 * time.Millisecond)
		return nil
	}
}

func TestP20_UpgradeUnderLoad(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	target := httpTarget(t, "one", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/long" {
			_, _ = io.WriteString(w, "one")
			return
		}
		for range 3 { // the last piece comes when both upgrades are over
			_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
		}
		w.(http.Flusher).Flush()
		<-release
		_, _ = io.WriteString(w, "the end")
	})
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "sealed") }))
	t.Cleanup(secure.Close)
	p, m := freePort(t), freePort(t)
	q := start(t, fmt.Sprintf("metrics: {address: %q}\nroutes:\n", at(m))+route("one", p, "a.test", target)+route("ws", p, "ws.test", wsTarget(t))+
		fmt.Sprintf("  - {name: s, match: {ports: [%d], domains: [s.test]}, action: {targets: [%q], tls: {mode: passthrough}}}\n", p, secure.Listener.Addr()))
	first, number := q.cmd.Process.Pid, inode(t, p)

	long := dial(t, p)
	fmt.Fprintf(long, "GET /long HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
	answer := bufio.NewReader(long)
	if _, err := answer.Peek(1); err != nil {
		t.Fatal(err)
	}
	var sockets []*websocket.Conn
	for range 50 {
		c := wsDial(t, p, "ws.test")
		wsEcho(t, c, "before")
		sockets = append(sockets, c)
	}
	type parked struct {
		c net.Conn
		r *bufio.Reader
	}
	var idle []parked
	for range 500 {
		c := dial(t, p)
		r := bufio.NewReader(c)
		if res, _ := say(t, c, r, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); res.StatusCode != 200 || res.Close {
			t.Fatalf("%s, close %v", res.Status, res.Close)
		}
		idle = append(idle, parked{c, r})
	}
	var slowest atomic.Int64
	load := gather(t)
	for range 2 {
		load.join("new connections", once(p))
		load.join("kept connections", again(p))
		load.join("TLS", sealed(p))
	}
	load.join("status", steady(q, &slowest))
	load.more(100)
	second := q.upgrade()
	load.more(100)
	third := q.upgrade() // while the first still has the download
	load.more(100)
	if got := q.pid(); got != third {
		t.Errorf("pid %d answers, want %d", got, third)
	}
	var status struct {
		Before []struct{ PID, Connections int }
	}
	q.until("the status shows who drains", func() bool {
		q.get("/v1/status", &status)
		for _, b := range status.Before {
			if b.PID == first {
				return b.Connections >= 551
			}
		}
		return false
	})
	if got := inode(t, p); got != number {
		t.Errorf("the socket was replaced: inode %d, then %d", number, got)
	}
	if res, err := http.Get("http://" + at(m) + "/metrics"); err != nil || res.StatusCode != 200 {
		t.Errorf("metrics: %v %v", res, err)
	}
	load.disperse()
	t.Logf("%d answers, slowest status %d ms", load.done.Load(), slowest.Load())

	for i, k := range idle {
		res, _ := say(t, k.c, k.r, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		if res.StatusCode != 200 || !res.Close {
			t.Fatalf("idle connection %d: %s, close %v", i, res.Status, res.Close)
		}
	}
	for _, c := range sockets {
		wsEcho(t, c, "after")
		_ = c.Close(websocket.StatusNormalClosure, "")
	}
	vanished(t, second)
	close(release)
	res, err := http.ReadResponse(answer, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if n := len(body); err != nil || n < 3<<20 || !strings.Contains(string(body[n-100:]), "the end") {
		t.Errorf("download: %d bytes, %v", n, err)
	}
	vanished(t, first)
	mustFetch(t, p, "a.test", "/", "one")
	if out, code := q.cli("stop"); code != 0 {
		t.Errorf("stop: exit %d\n%s", code, out)
	}
	vanished(t, third)
	if l, err := net.Listen("tcp", at(p)); err != nil {
		t.Errorf("after the stop: %v", err)
	} else {
		l.Close()
	}
}

func TestP20_ABadBinaryLeavesTheOldOneServing(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := start(t, "routes:\n"+route("one", p, "a.test", httpTarget(t, "one", nil)))
	load := gather(t)
	load.join("new connections", once(p))
	load.join("kept connections", again(p))
	program := func(name, text string) string {
		path := filepath.Join(q.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct{ binary, timeout, want string }{
		"ends":       {program("ends", "#!/bin/sh\nexit 3\n"), "20s", "exit status 3"},
		"hangs":      {program("hangs", "#!/bin/sh\nexec sleep 1000\n"), "300ms", "not ready after 300ms"},
		"no program": {program("text", "not a program"), "20s", "exec format error"},
	} {
		out, code := q.cli("upgrade", "--binary", c.binary, "--timeout", c.timeout)
		if code != 1 || !strings.Contains(out, c.want) || !strings.Contains(out, fmt.Sprintf("pid %d goes on serving", q.cmd.Process.Pid)) {
			t.Errorf("%s: exit %d\n%s", name, code, out)
		}
		load.more(10)
	}
	good, err := os.ReadFile(q.file)
	if err != nil {
		t.Fatal(err)
	}
	q.write("routes:\n  - {nmae: x}\n")
	if out, code := q.cli("upgrade"); code != 1 || !strings.Contains(out, "nmae") {
		t.Errorf("invalid configuration: exit %d\n%s", code, out)
	}
	load.more(10)
	if err := os.WriteFile(q.file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := q.cli("reload"); code != 0 { // nothing is frozen any more
		t.Errorf("reload: exit %d\n%s", code, out)
	}
	if got := q.pid(); got != q.cmd.Process.Pid {
		t.Errorf("pid %d answers", got)
	}
	q.upgrade()
	load.more(10)
	load.disperse()
	vanished(t, q.cmd.Process.Pid)
	mustFetch(t, p, "a.test", "/", "one")
}

func TestP20_SignalUpgradesAndConfigurationMayDiffer(t *testing.T) {
	t.Parallel()
	p, gone := freePort(t), freePort(t)
	one := httpTarget(t, "one", nil)
	q := start(t, "routes:\n"+route("one", p, "a.test", one)+route("old", gone, "a.test", one))
	next := freePort(t)
	q.write("routes:\n" + route("one", p, "a.test", one) + route("new", next, "a.test", one))
	q.signal(syscall.SIGUSR2)
	old := q.cmd.Process.Pid
	q.until("another process answers", func() bool {
		s := q.statusOrNil()
		return s != nil && s["pid"] != float64(old) && s["state"] == "serving"
	})
	pid := q.pid()
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	mustFetch(t, p, "a.test", "/", "one")
	mustFetch(t, next, "a.test", "/", "one")
	vanished(t, old)
	if c, err := net.DialTimeout("tcp", at(gone), 5*time.Second); err == nil {
		c.Close()
		t.Error("the port that the new configuration does not name is still open")
	}
	if _, err := os.Stat(q.sock); err != nil {
		t.Errorf("the admin socket: %v", err)
	}
	q.upgrade()
}
