package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
)

// ticksOf are the numbers of the ticks in an app's output, which must rise one by one.
func ticksOf(t testing.TB, lines []api.AppLine) int {
	t.Helper()
	last := -1
	for _, l := range lines {
		var n int
		if _, err := fmt.Sscanf(l.Text, "tick %d", &n); err != nil {
			continue
		}
		if last >= 0 && n != last+1 {
			t.Errorf("tick %d follows %d", n, last)
		}
		last = n
	}
	return last
}

// ticked waits until an app has said more than n.
func (q *qm) ticked(name string, n int) int {
	q.t.Helper()
	last := -1
	q.until("it ticks on", func() bool { last = ticksOf(q.t, q.said(name, "lines=1000")); return last > n })
	return last
}

func TestA07_AppsOutliveADaemonThatIsKilled(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 4)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+3)+appSites(port, "a", "b")+"apps:\n"+
		appEntry(t, "a", "ticks serve")+appEntry(t, "b", "ticks serve", "socket: fd", "ready: {http: /}")+appEntry(t, "off", "serve"))
	a, b := q.appIs("a", "ready"), q.appIs("b", "ready")
	q.appIs("off", "ready")
	if out, code := q.cli("apps", "stop", "off"); code != 0 {
		t.Fatal(out)
	}
	q.ticked("a", 5)
	q.signal(syscall.SIGKILL)
	<-q.done
	before := ticksOf(t, linesOf(t, q.dir+"/state/output/a.log"))
	for _, x := range []api.App{a, b} { // they go on, whoever listens
		if err := syscall.Kill(x.PID, 0); err != nil {
			t.Fatalf("%s has ended with the daemon: %v", x.Name, err)
		}
	}
	<-time.After(300 * time.Millisecond) // some ticks that nobody reads
	q.run()
	q.serving()
	for _, x := range []api.App{a, b} {
		now := q.appIs(x.Name, "ready")
		if now.PID != x.PID || now.Port != x.Port {
			t.Errorf("%+v, was %+v", now, x)
		}
		if pid := answer(t, port, x.Name); pid != x.PID {
			t.Errorf("pid %d answers, want %d", pid, x.PID)
		}
	}
	var list []api.Lease
	q.get("/v1/leases", &list)
	for _, l := range list {
		if want := map[string]string{"off": "held"}[l.Name]; l.State != want && (want != "" || l.State != "in_use") {
			t.Errorf("lease %+v", l)
		}
	}
	if off := q.app("off"); off.State != "stopped" {
		t.Errorf("what was stopped by hand is %s", off.State)
	}
	q.ticked("a", before+10)
	// The way it ends is known in part alone, and it is started again.
	if err := syscall.Kill(a.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	q.until("it is another one", func() bool { n := q.app("a"); return n.State == "ready" && n.PID != a.PID })
	if n := q.app("a"); n.Port != a.Port || n.LastExit == nil || n.LastExit.Reason != "unknown (adopted)" || n.Restarts != 1 {
		t.Errorf("%+v", n)
	}
	if out, code := q.cli("apps", "restart", "b"); code != 0 {
		t.Errorf("restart of b: %s", out)
	}
	if pid := answer(t, port, "b"); pid == b.PID {
		t.Error("b was not restarted")
	}
}

// linesOf reads the lines of a file of output.
func linesOf(t testing.TB, name string) []api.AppLine {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out []api.AppLine
	for _, l := range strings.Split(string(text), "\n") {
		if f := strings.SplitN(l, " ", 3); len(f) == 3 {
			out = append(out, api.AppLine{Stream: f[1], Text: f[2]})
		}
	}
	return out
}

func TestA07_AReusedPidIsNotTaken(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 2)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+1)+"apps:\n"+appEntry(t, "web", "serve"))
	a := q.appIs("web", "ready")
	q.signal(syscall.SIGKILL)
	<-q.done
	_ = syscall.Kill(-a.PID, syscall.SIGKILL)
	vanished(t, a.PID)
	// The record names a process that is another one: this test.
	file := q.dir + "/state/apps.json"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.ReplaceAll(text, []byte(fmt.Sprintf(`"pid":%d`, a.PID)), []byte(fmt.Sprintf(`"pid":%d`, os.Getpid())))
	if bytes.Equal(forged, text) {
		t.Fatalf("the record has no pid %d: %s", a.PID, text)
	}
	if err := os.WriteFile(file, forged, 0o600); err != nil {
		t.Fatal(err)
	}
	q.run()
	q.serving()
	n := q.appIs("web", "ready")
	if n.PID == os.Getpid() || n.PID == a.PID || n.Port != a.Port {
		t.Errorf("%+v, was %+v", n, a)
	}
	if out, code := q.cli("apps", "stop", "web"); code != 0 {
		t.Error(out)
	}
}

func TestA07_AppsGoOverInAnUpgrade(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 4)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+3)+appSites(port, "a", "b")+"apps:\n"+
		appEntry(t, "a", "ticks serve")+appEntry(t, "b", "serve", "socket: fd", "ready: {http: /}")+appEntry(t, "off", "serve"))
	a, b, off := q.appIs("a", "ready"), q.appIs("b", "ready"), q.appIs("off", "ready").Port
	if out, code := q.cli("apps", "stop", "off"); code != 0 {
		t.Fatal(out)
	}
	hold, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)) // keeps the process before alive while it drains
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hold.Close() }()
	fmt.Fprint(hold, "GET /drip HTTP/1.1\r\nHost: a.test\r\n\r\n")
	q.ticked("a", 3)
	for range 2 {
		q.upgrade()
		for _, x := range []api.App{a, b} {
			now := q.appIs(x.Name, "ready")
			if now.PID != x.PID || now.Port != x.Port || now.Restarts != 0 {
				t.Errorf("%+v, was %+v", now, x)
			}
			if pid := answer(t, port, x.Name); pid != x.PID {
				t.Errorf("pid %d answers, want %d", pid, x.PID)
			}
		}
		q.ticked("a", ticksOf(t, q.said("a", "lines=1000"))+3)
	}
	// The port of what is stopped is held by the new one, and the socket that an app had is opened anew, though the process
	// before is still there.
	var list []api.Lease
	q.get("/v1/leases", &list)
	for _, l := range list {
		if l.Name == "off" && (l.State != "held" || l.Port != off) {
			t.Errorf("%+v, want port %d held", l, off)
		}
	}
	if out, code := q.cli("apps", "start", "off"); code != 0 || q.app("off").Port != off {
		t.Errorf("%s, on port %d, want %d", out, q.app("off").Port, off)
	}
	if out, code := q.cli("apps", "restart", "b"); code != 0 || q.app("b").Port != b.Port {
		t.Errorf("%s, on port %d, want %d", out, q.app("b").Port, b.Port)
	}
	// One that fails leaves the apps with the daemon that goes on.
	if out, code := q.cli("upgrade", "--binary", "/bin/false"); code == 0 {
		t.Errorf("upgrade to /bin/false: %s", out)
	}
	q.ticked("a", ticksOf(t, q.said("a", "lines=1000"))+3)
	if err := syscall.Kill(a.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	q.until("it is started again", func() bool { n := q.app("a"); return n.State == "ready" && n.PID != a.PID })
}

func TestA09_OutputIsKeptAndFollowed(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 3)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+2)+appSites(port, "web")+"apps:\n"+
		appEntry(t, "web", "talk serve", "logs: {lines: 40, files: 3}", "restart: {backoff: 50ms}"))
	q.appIs("web", "ready")
	q.until("the last line is there", func() bool {
		l := q.said("web", "lines=1000")
		return strings.Contains(fmt.Sprint(l), "line 49")
	})
	if list := q.said("web", "lines=1000"); len(list) != 40 {
		t.Errorf("%d lines are kept, want 40", len(list))
	}
	if list := q.said("web", "lines=3"); len(list) != 3 {
		t.Errorf("%d lines, want 3", len(list))
	}
	kept := linesOf(t, q.dir+"/state/output/web.log")
	if older, err := os.ReadFile(q.dir + "/state/output/web.log.1"); err == nil {
		t.Logf("%d bytes were put aside", len(older))
		kept = append(linesOf(t, q.dir+"/state/output/web.log.1"), kept...)
	}
	var long int
	var words []string
	for _, l := range kept {
		if n := strings.Count(l.Text, "x"); n > 1000 {
			long += n
			continue
		}
		words = append(words, l.Stream+" "+l.Text)
	}
	all := "\n" + strings.Join(words, "\n") + "\n"
	for _, want := range []string{"stderr on stderr", "stdout half a line and the other half", "stdout line 0"} {
		if !strings.Contains(all, "\n"+want+"\n") {
			t.Errorf("the file lacks %q", want)
		}
	}
	if long != 1<<20 {
		t.Errorf("the file has %d bytes of the long line", long)
	}
	q.followed(port)
	mark := time.Now()
	_, _, _ = fetch(port, "web.test", "/die")
	q.until("it is another one", func() bool {
		return strings.Contains(fmt.Sprint(q.said("web", "since="+mark.UTC().Format(time.RFC3339Nano))), "ended: exit code 7")
	})
	for _, l := range q.said("web", "since="+mark.UTC().Format(time.RFC3339Nano)) {
		if l.Time.Before(mark) {
			t.Errorf("line %+v is from before %v", l, mark)
		}
	}
	q.rotated(port)
	out, code := q.cli("apps", "logs", "web", "-n", "2")
	if code != 0 || strings.Count(out, "\n") != 2 {
		t.Errorf("apps logs: %d %q", code, out)
	}
}

// followed reads the stream of an app's output while it speaks, and another reader takes nothing.
func (q *qm) followed(port int) {
	q.t.Helper()
	slow, err := net.Dial("unix", q.sock)
	if err != nil {
		q.t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	fmt.Fprint(slow, "GET /v1/apps/web/logs?follow=1 HTTP/1.1\r\nHost: quaymaster\r\n\r\n")
	c := api.NewClient(q.sock)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	got := make(chan string, 1)
	go func() {
		defer close(got)
		err := c.Lines(ctx, "/v1/apps/web/logs?follow=1&lines=1", func(l api.AppLine) bool {
			if l.Text == "said to be followed" {
				got <- l.Stream
				return false
			}
			return true
		})
		if err != nil {
			q.t.Error(err)
		}
	}()
	q.until("it is heard", func() bool {
		q.tell(port, "said to be followed")
		select {
		case s := <-got:
			if s != "stdout" {
				q.t.Errorf("stream %q", s)
			}
			return true
		default:
			return false
		}
	})
}

// tell lets the app say lines; it answers when it has written them.
func (q *qm) tell(port int, text string) {
	q.t.Helper()
	req, _ := http.NewRequest("POST", fmt.Sprintf("http://127.0.0.1:%d/say", port), strings.NewReader(text))
	req.Host = "web.test"
	res, err := (&http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		q.t.Fatal(err)
	}
	_ = res.Body.Close()
}

// rotated lets the app say more than its files may hold, past a reader that takes nothing.
func (q *qm) rotated(port int) {
	q.t.Helper()
	q.appIs("web", "ready")
	text := strings.Repeat(strings.Repeat("y", 1000)+"\n", 500)
	for range 10 {
		q.tell(port, text)
	}
	q.until("the files are rotated", func() bool {
		list, _ := filepath.Glob(q.dir + "/state/output/web.log*")
		return len(list) == 3
	})
	list, _ := filepath.Glob(q.dir + "/state/output/web.log*")
	for _, f := range list {
		if info, err := os.Stat(f); err != nil || info.Size() > 1<<20+300<<10 {
			q.t.Errorf("%s: %v %v", f, info, err)
		}
	}
}

func TestA22_RequestsNeverFailOverStopAndRestart(t *testing.T) {
	t.Parallel()
	for _, socket := range []string{"tcp", "fd", "unix"} {
		t.Run(socket, func(t *testing.T) {
			t.Parallel()
			port, leases := freePort(t), freePorts(t, 4)
			body := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+3) + appSites(port, "web") + "apps:\n"
			q := startApps(t, body+appEntry(t, "web", "serve abrupt", "ready: {http: /}", "socket: "+socket))
			first := q.appIs("web", "ready").PID
			done, stop := pressed(t, port, "web")
			defer stop()
			for range 2 {
				if out, code := q.cli("apps", "restart", "web"); code != 0 {
					t.Errorf("restart: %s", out)
				}
			}
			q.reload(body + appEntry(t, "web", "serve abrupt anew", "ready: {http: /}", "socket: "+socket)) // the new one beside the old one, where it can be
			before := done()
			q.until("the load goes on", func() bool { return done() > before+20 })
			stop()
			if pid := q.appIs("web", "ready").PID; pid == first {
				t.Error("it was not restarted")
			}
			vanished(t, first)
		})
	}
}

func TestP14_TheSamePortAfterRestarts(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 6)
	body := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+5) + "apps:\n" + appEntry(t, "web", "serve")
	q := startApps(t, body+appEntry(t, "other", "serve"))
	port, other := q.appIs("web", "ready").Port, q.appIs("other", "ready").Port
	same := func(when string) {
		t.Helper()
		if p := q.appIs("web", "ready").Port; p != port {
			t.Errorf("port %d %s, want %d", p, when, port)
		}
	}
	for _, verb := range []string{"stop", "start", "restart"} {
		if out, code := q.cli("apps", verb, "web"); code != 0 {
			t.Fatalf("%s: %s", verb, out)
		}
	}
	same("after stop and start")
	q.signal(syscall.SIGTERM)
	if code := q.wait(30 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	q.run()
	q.serving()
	same("after a restart of quaymaster")
	if out, code := q.cli("apps", "restart", "web", "--new-port"); code != 0 {
		t.Fatal(out)
	}
	next := q.appIs("web", "ready").Port
	if next == port || next == other {
		t.Errorf("port %d with --new-port, was %d", next, port)
	}
	if out, code := q.cli("ports", "lease", "web", "--new"); code != 0 {
		t.Fatal(out)
	}
	if out, code := q.cli("apps", "restart", "web"); code != 0 {
		t.Fatal(out)
	}
	if p := q.appIs("web", "ready").Port; p == next {
		t.Errorf("port %d after ports lease --new", p)
	}
	q.reload(body)
	q.until("the port of other is given back", func() bool {
		var list []api.Lease
		q.get("/v1/leases", &list)
		return len(list) == 1 && list[0].Name == "web"
	})
}

func TestP15_NoPortIsLeft(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 2)
	base := fmt.Sprintf("app_ports: %d-%d\napps:\n", leases, leases+1)
	two := appEntry(t, "b", "serve") + appEntry(t, "c", "serve")
	q := startApps(t, base+appEntry(t, "a", "serve")+two)
	var without string
	q.until("one of three has no port", func() bool {
		n := 0
		without = ""
		var list []api.App
		q.get("/v1/apps", &list)
		for _, a := range list {
			if a.State == "ready" {
				n++
			} else if strings.Contains(a.Reason, fmt.Sprintf("none of app_ports %d-%d is free", leases, leases+1)) && strings.Contains(a.Reason, "leased to ") {
				without = a.Name
			}
		}
		return n == 2 && without != ""
	})
	if a := q.app(without); a.State != "backing-off" || a.Restarts != 0 {
		t.Errorf("%+v", a)
	}
	var list []api.Lease
	q.get("/v1/leases", &list)
	if out, code := q.cli("apps", "stop", list[0].Name); code != 0 {
		t.Fatal(out)
	}
	if out, code := q.cli("ports", "release", list[0].Name); code != 0 {
		t.Fatal(out)
	}
	q.appIs(without, "ready")
}

func TestWaitKnowsPortsURLsAndApps(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 3)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+2)+appSites(port, "web")+"apps:\n"+
		appEntry(t, "web", "serve")+appEntry(t, "mute", "mute"))
	for _, what := range []string{"app:web", fmt.Sprint(port), fmt.Sprintf("http://127.0.0.1:%d/", q.appIs("web", "ready").Port)} {
		if out, code := q.cli("wait", what, "--timeout", "20s"); code != 0 {
			t.Errorf("wait %s: %d %s", what, code, out)
		}
	}
	if out, code := q.cli("wait", "app:mute", "--timeout", "300ms"); code != 1 || !strings.Contains(out, "it is starting") {
		t.Errorf("%d %s", code, out)
	}
	if out, code := q.cli("wait", "app:nobody"); code != 1 || !strings.Contains(out, "no app nobody") {
		t.Errorf("%d %s", code, out)
	}
	if out, code := q.cli("wait", fmt.Sprint(port), "--free", "--timeout", "300ms"); code != 1 {
		t.Errorf("%d %s", code, out)
	}
	if out, code := q.cli("wait", fmt.Sprint(freePort(t)), "--free", "--timeout", "10s"); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	if out, code := q.cli("wait", "app:web", "--free"); code != 2 {
		t.Errorf("%d %s", code, out)
	}
	var doc struct{ Paths map[string]json.RawMessage }
	if q.get("/v1/openapi.json", &doc); doc.Paths["/v1/apps/{name}/logs"] == nil {
		t.Error("the contract lacks the logs of apps")
	}
}

func TestP14_AnAppOfTheAPIComesAndGoes(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 3)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+2)+appSites(port, "held")+"apps:\n"+appEntry(t, "held", "serve"))
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, how string) (int, string) {
		t.Helper()
		entry := map[string]any{"command": []string{self, "-test.run=^TestAppChild$"}, "env": map[string]string{"QM_CHILD_LISTEN": "app", "QM_APP": how, "QM_APP_OF": appMark(t), "AT": "${PORT}"}}
		if os.Geteuid() == 0 {
			entry["user"] = "root"
		}
		body, _ := json.Marshal(entry)
		res, b, err := q.admin("PUT", "/v1/apps/"+name, bytes.NewReader(body), "If-Match", "*")
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	if status, b := put("web", "serve"); status != 200 {
		t.Fatalf("%d %s", status, b)
	}
	a := q.appIs("web", "ready")
	if a.Source != "api" || q.appIs("held", "ready").Source != "file" {
		t.Errorf("%+v", a)
	}
	_, env, err := fetch(a.Port, "web.test", "/env")
	if err != nil || !strings.Contains(env, fmt.Sprintf("AT=%d", a.Port)) {
		t.Errorf("%v %s", err, env)
	}
	if status, b := put("held", "serve"); status != 409 || !strings.Contains(b, "q.yaml") {
		t.Errorf("an app of the file: %d %s", status, b)
	}
	if out, code := q.cli("apps", "remove", "held"); code != 1 || !strings.Contains(out, "q.yaml") {
		t.Errorf("remove: %d %s", code, out)
	}
	if res, b, err := q.admin("PUT", "/v1/apps/bad", strings.NewReader(`{"comand": ["x"]}`), "If-Match", "*"); err != nil || res.StatusCode != 422 || !strings.Contains(string(b), "write command") {
		t.Errorf("%v %s", err, b)
	}
	q.signal(syscall.SIGTERM)
	q.wait(30 * time.Second)
	q.run()
	q.serving()
	if b := q.appIs("web", "ready"); b.Port != a.Port {
		t.Errorf("port %d after a restart, want %d", b.Port, a.Port)
	}
	if out, code := q.cli("apps", "remove", "web"); code != 0 || out != "removed web\n" {
		t.Errorf("remove: %d %s", code, out)
	}
	q.until("its port is given back", func() bool {
		var list []api.Lease
		q.get("/v1/leases", &list)
		return len(list) == 1 && list[0].Name == "held"
	})
}
