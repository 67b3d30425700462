package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// withMark are the processes of a test's apps, by app.
func withMark(t testing.TB) map[string][]int {
	t.Helper()
	out := make(map[string][]int)
	list, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range list {
		env, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		vars := strings.Split(string(env), "\x00")
		if !slices.Contains(vars, "QM_APP_OF="+appMark(t)) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(name, "/")[2])
		if err != nil || ended(pid) {
			continue
		}
		for _, v := range vars {
			if port, ok := strings.CutPrefix(v, "PORT="); ok {
				out[port] = append(out[port], pid)
			}
		}
	}
	return out
}

func TestA13_AStrangerAtTheFixedPortIsNotTheApp(t *testing.T) {
	t.Parallel()
	port, fixed := freePort(t), freePort(t)
	stranger := holderOf(t, "echo", fixed, 0)
	q := startApps(t, appSites(port, "web")+"apps:\n"+appEntry(t, "web", "mute", fmt.Sprintf("port: %d", fixed)))
	a := q.appIs("web", "backing-off")
	for _, want := range []string{fmt.Sprintf("port %d is taken by ", fixed), fmt.Sprintf("(pid %d)", stranger.Process.Pid), "next start in"} {
		if !strings.Contains(a.Reason, want) {
			t.Errorf("%q does not say %q", a.Reason, want)
		}
	}
	if status, body, err := fetch(port, "web.test", "/"); err == nil && status == 200 {
		t.Errorf("a stranger answers for the app: %s", body)
	}
	_ = stranger.Process.Kill()
	q.until("it is started", func() bool { return q.app("web").PID > 0 })
}

func TestP10_AnAppTakesItsPortOverWhereItMay(t *testing.T) {
	t.Parallel()
	port, fixed := freePort(t), freePort(t)
	stranger := holderOf(t, "echo", fixed, 0)
	client := holderOf(t, "client", fixed, 0)
	entry := appEntry(t, "web", "serve", fmt.Sprintf("port: %d", fixed), "on_port_busy: take_over")
	q := startApps(t, appSites(port, "web")+"apps:\n"+entry)
	a := q.appIs("web", "backing-off")
	for _, want := range []string{fmt.Sprintf("(pid %d)", stranger.Process.Pid), "is not ended: quaymaster did not start it", "next start in"} {
		if !strings.Contains(a.Reason, want) {
			t.Errorf("%q does not say %q", a.Reason, want)
		}
	}
	if !runs(stranger) {
		t.Fatal("a stranger was ended without leave")
	}
	q.reload("port_policy: {take_over: any}\n" + appSites(port, "web") + "apps:\n" + entry)
	a = q.appIs("web", "ready")
	if pid := answer(t, port, "web"); pid != a.PID || a.Port != fixed {
		t.Errorf("pid %d answers; %+v", pid, a)
	}
	_ = stranger.Wait()
	if ws := stranger.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v", stranger.ProcessState)
	}
	if !runs(client) {
		t.Error("a client of the port was ended")
	}
	if os.Geteuid() != 0 {
		return // what follows needs a process of another user
	}
	// Another number, which a stranger has as well: the old one serves until the new one does.
	other := freePort(t)
	stranger = holderOf(t, "stubborn", other, 65534)
	moved := strings.Replace(entry, strconv.Itoa(fixed), strconv.Itoa(other), 1)
	q.reload("port_policy: {take_over: any}\n" + appSites(port, "web") + "apps:\n" + moved)
	q.until("it is refused", func() bool {
		return strings.Contains(q.app("web").Reason, "it belongs to user") || strings.Contains(q.app("web").Reason, "is not ended")
	})
	if now := q.app("web"); now.PID != a.PID || answer(t, port, "web") != a.PID || !runs(stranger) {
		t.Errorf("%+v, was %+v", now, a)
	}
	_ = stranger.Process.Kill()
	_ = stranger.Wait()
	_ = holderOf(t, "echo", other, 0)
	if out, code := q.cli("apps", "start", "web"); code != 0 {
		t.Error(out)
	}
	q.until("it has moved", func() bool { n := q.app("web"); return n.State == "ready" && n.Port == other })
	if now := q.app("web"); answer(t, port, "web") != now.PID || now.PID == a.PID {
		t.Errorf("%+v, was %+v", now, a)
	}
}

func TestP10_AnAppTakesItsPortOverFromAnotherApp(t *testing.T) {
	t.Parallel()
	port, fixed, leases := freePort(t), freePort(t), freePorts(t, 2)
	head := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+1)
	rogue := appEntry(t, "rogue", fmt.Sprintf("at=%d serve", fixed), `ready: {log: "now listening"}`, "restart: {policy: no}")
	q := startApps(t, head+appSites(port, "rogue")+"apps:\n"+rogue)
	r := q.appIs("rogue", "ready")
	q.reload(head + appSites(port, "rogue", "web") + "apps:\n" + rogue + appEntry(t, "web", "serve", fmt.Sprintf("port: %d", fixed), "on_port_busy: take_over"))
	a := q.appIs("web", "ready")
	if pid := answer(t, port, "web"); pid != a.PID {
		t.Errorf("pid %d answers for %+v", pid, a)
	}
	q.until("who had it has ended", func() bool { return ended(r.PID) }) // its sockets go before it does
}

func TestP11_APortIsTakenOverFromAnApp(t *testing.T) {
	t.Parallel()
	port, fixed, leases := freePort(t), freePort(t), freePorts(t, 2)
	head := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+1)
	rogue := appSites(port, "rogue") + "apps:\n" + appEntry(t, "rogue", fmt.Sprintf("at=%d serve", fixed), `ready: {log: "now listening"}`, "restart: {policy: no}")
	q := startApps(t, head+rogue)
	r := q.appIs("rogue", "ready")
	q.write(head + rogue + fmt.Sprintf("routes: [{name: taken, match: {ports: [{port: %d, take_over: own}]}, action: {respond: {status: 200, body: taken}}}]\n", fixed))
	q.until("it is taken over", func() bool { // by a later one, when the first is too short
		_, code := q.cli("reload")
		return code == 0
	})
	q.until("who had it has ended", func() bool { return ended(r.PID) }) // its sockets go before it does
	mustFetch(t, fixed, "x.test", "/", "taken")
}

func TestA07_WhatWasStartedAndNotNotedIsEndedAndStartedOnce(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 4)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+3)+appSites(port, "a", "b")+"apps:\n"+
		appEntry(t, "a", "family")+appEntry(t, "b", "serve"))
	a, b := q.appIs("a", "ready"), q.appIs("b", "ready")
	q.signal(syscall.SIGKILL)
	<-q.done
	// As if it had been killed before it could write: of a there is no word.
	file := q.dir + "/state/apps.json"
	var records map[string]json.RawMessage
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &records)
	}
	if err != nil || records["a"] == nil {
		t.Fatalf("%s %v", text, err)
	}
	delete(records, "a")
	text, _ = json.Marshal(records)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(q.dir+"/state/run/odd-0123456789ab.out", nil, 0o600); err != nil { // no pipe of ours
		t.Fatal(err)
	}
	before := withMark(t)[strconv.Itoa(a.Port)]
	if len(before) < 2 {
		t.Fatalf("processes %v of a at port %d", before, a.Port)
	}
	q.run()
	q.serving()
	now := q.appIs("a", "ready")
	if now.PID == a.PID || now.Port != a.Port {
		t.Errorf("%+v, was %+v", now, a)
	}
	for _, pid := range before {
		if !ended(pid) {
			t.Errorf("pid %d runs on", pid)
		}
	}
	if n := q.appIs("b", "ready"); n.PID != b.PID {
		t.Errorf("%+v, was %+v", n, b)
	}
	if _, err := os.Stat(q.dir + "/state/run/odd-0123456789ab.out"); err != nil {
		t.Errorf("a file of others: %v", err)
	}
	list, _ := filepath.Glob(q.dir + "/state/run/*-*.out")
	if len(list) != 3 { // of a, of b, and the odd one
		t.Errorf("%d pipes", len(list))
	}
}
