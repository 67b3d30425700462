package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/quaymaster/quaymaster/internal/api"
)

func TestA01_ThreeAppsAreServedByHost(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 5)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+4)+appSites(port, "a", "b", "c")+"apps:\n"+
		appEntry(t, "a", "serve")+appEntry(t, "b", "serve", "ready: {http: /}")+appEntry(t, "c", "talk serve", "ready: {log: \"^now listening$\"}"))
	seen := map[int]bool{}
	for _, name := range []string{"a", "b", "c"} {
		pid := answer(t, port, name) // waits for readiness
		a := q.appIs(name, "ready")
		if a.PID != pid || a.Port < leases || a.Port > leases+4 || seen[a.Port] {
			t.Errorf("%+v, answered by pid %d", a, pid)
		}
		if want := fmt.Sprintf("http://%s.test:%d", name, port); a.URL != want {
			t.Errorf("url %s, want %s", a.URL, want)
		}
		q.until("it has figures", func() bool { a := q.app(name); return a.Memory > 0 && a.Uptime > 0 })
		seen[a.Port] = true
	}
	_, body, err := fetch(port, "a.test", "/env")
	var env []string
	if err != nil || json.Unmarshal([]byte(body), &env) != nil {
		t.Fatal(body, err)
	}
	for _, want := range []string{fmt.Sprintf("PORT=%d", q.app("a").Port), "HOST=127.0.0.1", fmt.Sprintf("QUAYMASTER_URL=http://a.test:%d", port)} {
		if !strings.Contains(strings.Join(env, "\n")+"\n", want+"\n") {
			t.Errorf("its environment lacks %s:\n%s", want, strings.Join(env, "\n"))
		}
	}
	if out, code := q.cli("apps"); code != 0 || !strings.Contains(out, "ready") || !strings.HasPrefix(out, "APP") {
		t.Errorf("apps: %d\n%s", code, out)
	}
	if v := q.metric(`quaymaster_app_state{app="a",state="ready"}`); v != 1 {
		t.Errorf("app_state is %v", v)
	}
}

func TestA02_TheFirstRequestWakesAnAppOnce(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 3)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+2)+appSites(port, "web")+"apps:\n"+
		appEntry(t, "web", "serve", "start: on_request", "ready: {http: /}"))
	if a := q.appIs("web", "sleeping"); a.PID != 0 {
		t.Fatalf("%+v", a)
	}
	leave, left := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var well, gone atomic.Int64
	for n := range 100 {
		ctx := context.Background()
		if n%2 == 0 {
			ctx = leave
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			req, _ := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
			req.Host = "web.test"
			res, err := (&http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
			switch {
			case err != nil && ctx.Err() != nil:
				gone.Add(1)
			case err != nil:
				t.Error(err)
			case res.StatusCode != 200:
				t.Error(res.Status)
			default:
				well.Add(1)
			}
			if err == nil {
				_ = res.Body.Close()
			}
		}()
	}
	q.appIs("web", "starting")
	left()
	wg.Wait()
	if well.Load() < 50 || well.Load()+gone.Load() != 100 {
		t.Errorf("%d were answered, %d left", well.Load(), gone.Load())
	}
	starts := 0
	for _, l := range q.said("web", "lines=1000") {
		if l.Stream == "quaymaster" && strings.HasPrefix(l.Text, "starting") {
			starts++
		}
	}
	if starts != 1 {
		t.Errorf("started %d times", starts)
	}
}

func TestA02_NotReadyInTimeIs504(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 3)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+2)+appSites(port, "web")+"apps:\n"+
		appEntry(t, "web", "mute", "start: on_request", "ready: {timeout: 1}"))
	status, _, err := fetch(port, "web.test", "/")
	if err != nil || status != http.StatusGatewayTimeout {
		t.Errorf("%d, %v", status, err)
	}
	q.until("the log says why", func() bool {
		return strings.Contains(q.out.String(), "not ready after 1s") && strings.Contains(q.out.String(), "connection refused")
	})
}

func TestA04_CrashesAreToldAndALoopIsAState(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 5)
	quick := "restart: {backoff: 50ms, max_backoff: 200ms, max: 4, within: 60, min_uptime: %s}"
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+4)+"apps:\n"+appEntry(t, "web", "crash", fmt.Sprintf(quick, "60s"))+
		appEntry(t, "shot", "killed", fmt.Sprintf(quick, "60s"))+appEntry(t, "late", "later serve", fmt.Sprintf(quick, "100ms")))
	a := q.appIs("web", "crash-looping")
	for _, want := range []string{"exit code 3 after ", "attempt 4 of 4 within 1m0s", "quaymaster apps start web", "words 2 | words 3 | words 4 | words 5 | words 6"} {
		if !strings.Contains(a.Reason, want) {
			t.Errorf("reason %q lacks %q", a.Reason, want)
		}
	}
	if a.Restarts != 4 || a.LastExit == nil || a.LastExit.Reason != "exit code 3" {
		t.Errorf("%+v", a)
	}
	if a := q.appIs("shot", "crash-looping"); !strings.Contains(a.Reason, "signal 9") {
		t.Errorf("reason %q", a.Reason)
	}
	if a := q.appIs("late", "crash-looping"); !strings.Contains(a.Reason, "exit code 4") { // each uptime resets the pause, and not the count
		t.Errorf("reason %q", a.Reason)
	}
	log := q.log.String()
	for _, want := range []string{"next start in 50ms", "next start in 100ms", "next start in 200ms"} {
		if !strings.Contains(log, "exit code 3") || !strings.Contains(log, want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	if v := q.metric(`quaymaster_app_restarts_total{app="web"}`); v != 4 {
		t.Errorf("app_restarts_total is %v", v)
	}
	var status struct{ State string }
	if q.get("/v1/status", &status); status.State != "degraded" {
		t.Errorf("status %s", status.State)
	}
	if out, code := q.cli("apps", "start", "web"); code != 1 || !strings.Contains(out, "backing-off") {
		t.Errorf("start: %d %s", code, out)
	}
	q.appIs("web", "crash-looping")
	if n := q.app("web").Restarts; n != 8 {
		t.Errorf("%d restarts, want 4 more", n)
	}
}

func TestA05_TheWholeGroupEndsAfterTheGrace(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 2)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+1)+"apps:\n"+appEntry(t, "web", "family", "stop: {timeout: 1}"))
	a := q.appIs("web", "ready")
	group := groupOf(t, a.PID)
	if len(group) < 3 {
		t.Fatalf("the group is %v: the test shows nothing", group)
	}
	if out, code := q.cli("apps", "stop", "web"); code != 0 {
		t.Fatalf("stop: %d %s", code, out)
	}
	if left := groupOf(t, a.PID); len(left) > 0 {
		t.Errorf("still there: %v of %v", left, group)
	}
	a = q.app("web")
	if a.State != "stopped" || a.LastExit == nil || !strings.Contains(a.LastExit.Reason, "signal 9") {
		t.Errorf("%+v", a)
	}
	var list []api.Lease
	if q.get("/v1/leases", &list); len(list) != 1 || list[0].State != "held" {
		t.Errorf("the port is not held again: %+v", list)
	}
}

// groupOf are the processes of a group that are not zombies.
func groupOf(t testing.TB, pgid int) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, e := range entries {
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		i := strings.LastIndex(string(stat), ") ")
		f := strings.Fields(string(stat)[max(i, 0):])
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil || len(f) < 4 {
			continue
		}
		if f[3] == fmt.Sprint(pgid) && f[1] != "Z" {
			out = append(out, pid)
		}
	}
	return out
}

func TestA06_ARestartDelayHoldsNobodyElseUp(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 4)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+3)+appSites(port, "web")+"apps:\n"+
		appEntry(t, "bad", "crash", "restart: {backoff: 60, max_backoff: 60}")+appEntry(t, "web", "serve", "restart: {backoff: 10ms}"))
	q.appIs("bad", "backing-off")
	pid := answer(t, port, "web")
	best := time.Hour
	for range 20 {
		start := time.Now()
		q.app("bad")
		best = min(best, time.Since(start))
	}
	if best > 50*time.Millisecond {
		t.Errorf("the API takes %v at best", best)
	}
	_, _, _ = fetch(port, "web.test", "/die")
	q.until("web is another one", func() bool { a := q.app("web"); return a.State == "ready" && a.PID != pid })
	if a := q.app("bad"); a.State != "backing-off" {
		t.Errorf("%+v", a)
	}
}

func TestA08_WhoIsUsedDoesNotSleep(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 4)
	idle := []string{"start: on_request", "idle_stop: 500ms", "ready: {http: /}"}
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+3)+appSites(port, "ws", "load")+"apps:\n"+
		appEntry(t, "ws", "serve", idle...)+appEntry(t, "load", "serve", idle...))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, fmt.Sprintf("ws://127.0.0.1:%d/ws", port), &websocket.DialOptions{Host: "ws.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	load, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = load.Close() }()
	fmt.Fprint(load, "GET /drip HTTP/1.1\r\nHost: load.test\r\n\r\n")
	go func() { _, _ = io.Copy(io.Discard, load) }()
	q.appIs("load", "ready")
	for since := time.Now(); time.Since(since) < 2*time.Second; {
		for _, name := range []string{"ws", "load"} { // polls of its status keep nobody up
			if a := q.app(name); a.State != "ready" {
				t.Fatalf("%s is %s: %s", name, a.State, a.Reason)
			}
		}
	}
	_, _ = c.CloseNow(), load.Close()
	q.appIs("ws", "sleeping")
	q.appIs("load", "sleeping")
	answer(t, port, "ws")
}

func TestA12_StartsAndStopsComeOneAfterTheOther(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 5)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+4)+"apps:\n"+appEntry(t, "db", "serve")+
		appEntry(t, "api", "serve", "depends_on: [db]")+appEntry(t, "web", "serve", "depends_on: [api]"))
	q.appIs("web", "ready")
	var wg sync.WaitGroup
	for _, verb := range []string{"stop", "start", "restart", "stop", "restart", "start"} {
		wg.Add(1)
		go func() { defer wg.Done(); _, _ = q.cli("apps", verb, "web") }()
	}
	wg.Wait()
	for range 2 { // the second changes nothing
		if out, code := q.cli("apps", "stop", "web"); code != 0 || out != "web is stopped\n" {
			t.Errorf("stop: %d %s", code, out)
		}
	}
	if a := q.app("web"); a.PID != 0 || len(q.recorded()) != 2 {
		t.Errorf("%+v, and processes %v", a, q.recorded())
	}
	for range 2 {
		if out, code := q.cli("apps", "start", "web"); code != 0 || !strings.HasPrefix(out, "web is ready") {
			t.Errorf("start: %d %s", code, out)
		}
	}
	res, b, err := q.admin("POST", "/v1/apps/nobody/stop", nil)
	if err != nil || res.StatusCode != 404 || !strings.Contains(string(b), "there is no app nobody") {
		t.Errorf("%v %s", err, b)
	}
	q.signal(syscall.SIGTERM)
	if code := q.wait(30 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	var order []string
	for _, l := range strings.Split(q.log.String(), "\n") {
		if strings.Contains(l, "app stopped") && strings.Contains(l, "quaymaster is stopping") {
			for _, name := range []string{"web", "api", "db"} {
				if strings.Contains(l, `"app":"`+name+`"`) || strings.Contains(l, "app="+name+" ") {
					order = append(order, name)
				}
			}
		}
	}
	if fmt.Sprint(order) != "[web api db]" {
		t.Errorf("stopped in the order %v", order)
	}
}

func TestA13_AliveIsNotReadyAndTheReasonIsShown(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 5)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+4)+"apps:\n"+
		appEntry(t, "mute", "mute")+appEntry(t, "sick", "serve", "ready: {http: /sick, timeout: 1}"))
	q.until("the reasons are shown", func() bool {
		m := q.app("mute")
		return m.State == "starting" && m.Reason == "connection refused" && m.PID > 0
	})
	q.until("the log says it too", func() bool {
		return strings.Contains(q.log.String(), "not ready after 1s: GET /sick: status 503: no database yet")
	})
	if out, _ := q.cli("apps"); !strings.Contains(out, "connection refused") {
		t.Errorf("apps:\n%s", out)
	}
}

func TestA14_OnlyTheAppThatChangedIsStartedAgain(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 5)
	rest := "apps:\n" + appEntry(t, "b", "serve")
	base := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+4) + appSites(port, "a", "b") + rest
	q := startApps(t, base+appEntry(t, "a", "serve", "ready: {http: /}"))
	a, b := q.appIs("a", "ready"), q.appIs("b", "ready")
	q.reload(base + appEntry(t, "a", "serve again", "ready: {http: /}"))
	q.until("a is another one", func() bool { n := q.app("a"); return n.State == "ready" && n.PID != a.PID })
	if n := q.app("b"); n.PID != b.PID || n.Restarts != 0 {
		t.Errorf("b: %+v, was %+v", n, b)
	}
	if pid := answer(t, port, "a"); pid == a.PID {
		t.Error("the old one answers")
	}
	vanished(t, a.PID)
	q.reload(fmt.Sprintf("app_ports: %d-%d\n", leases, leases+4) + appSites(port, "b") + rest)
	q.until("a is gone", func() bool {
		res, _, err := q.admin("GET", "/v1/apps/a", nil)
		return err == nil && res.StatusCode == 404
	})
	q.until("its port is given back", func() bool {
		var list []api.Lease
		q.get("/v1/leases", &list)
		return len(list) == 1
	})
}

func TestA16_WhatCannotStartIsRefusedByName(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 5)
	base := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+4) + "apps:\n" + appEntry(t, "web", "serve")
	q := startApps(t, base)
	pid := q.appIs("web", "ready").PID
	for entry, want := range map[string]string{
		"  bad: {command: [no-such-program-here], user: root}\n":      "no-such-program-here",
		"  bad: {command: [sh], dir: ./no/such, user: root}\n":        "no/such",
		"  bad: {command: [sh], env_required: [TOKEN], user: root}\n": "TOKEN",
		"  bad: {command: [sh], user: no-such-user-here}\n":           "no-such-user-here",
	} {
		q.write(base + entry)
		out, code := q.cli("reload")
		if code != 1 || !strings.Contains(out, "app bad") || !strings.Contains(out, want) {
			t.Errorf("reload with %q: %d %s", entry, code, out)
		}
		if out, code := cli(t, "check", "-c", q.file); code != 2 || !strings.Contains(out, q.file+":") || !strings.Contains(out, "apps.bad: it cannot be started: ") || !strings.Contains(out, want) {
			t.Errorf("check with %q: %d %s", entry, code, out)
		}
	}
	if a := q.app("web"); a.PID != pid {
		t.Error("web was touched")
	}
}

func TestA16_CheckNotesWhatDependsOnWhoRunsItAndWhatAFixedPortForbids(t *testing.T) {
	t.Parallel()
	q := prepare(t, "apps:\n"+
		"  ours: {command: [sh], user: nobody, env_required: [QM_NOT_SET], inherit_env: true}\n"+
		"  fixed: {command: [sh], user: nobody, port: 3000}\n"+
		"  queued: {command: [sh], user: nobody, port: 3001, socket: fd}\n")
	out, code := cli(t, "check", "-c", q.file)
	for _, want := range []string{"apps.ours: it could not be started by who checks this: QM_NOT_SET is not set", "apps.fixed.port: 3000 is fixed", "port: auto"} {
		if code != 0 || !strings.Contains(out, want) || strings.Contains(out, "warning") || strings.Contains(out, "apps.queued.port") {
			t.Errorf("exit %d, no %q:\n%s", code, want, out)
		}
	}
	var v struct{ Notes []struct{ Path string } }
	if out, code = cli(t, "check", "--json", "-c", q.file); code != 0 || json.Unmarshal([]byte(out), &v) != nil || len(v.Notes) < 2 {
		t.Errorf("exit %d\n%s", code, out)
	}
}
