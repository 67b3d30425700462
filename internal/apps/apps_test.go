package apps_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
)

func TestA01_AppsStartAndAreReachedOnlyWhenTheyAnswer(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("a", "serve"), app("b", "serve"), app("c", "serve"))
	seen := map[uint16]bool{}
	for _, name := range []string{"a", "b", "c"} {
		s := f.until(name, apps.Ready)
		if seen[s.Port] || s.Port < f.range_.Lo || s.Port > f.range_.Hi {
			t.Errorf("%s has port %d", name, s.Port)
		}
		seen[s.Port] = true
		if body, err := f.get(name, "/"); err != nil || body != fmt.Sprintf("pid %d", s.PID) {
			t.Errorf("%s: %q, %v; want pid %d", name, body, err, s.PID)
		}
	}
}

func TestA02_ManyWakeAnAppThatSleepsOnce(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "serve", func(a *plan.App) { a.Start, a.IdleStop = "on_request", time.Hour }))
	f.until("web", apps.Sleeping)
	if f.runner.count("web") != 0 {
		t.Fatal("it was started by nobody")
	}
	leave, left := context.WithCancel(context.Background())
	errs := make(chan error, 100)
	for n := range 100 {
		ctx := context.Background()
		if n%2 == 0 {
			ctx = leave
		}
		go func() { errs <- f.apps.Wake(ctx, "web") }()
	}
	f.until("web", apps.Starting)
	left()
	well, gone := 0, 0
	for range 100 {
		switch err := <-errs; {
		case err == nil:
			well++
		case errors.Is(err, context.Canceled):
			gone++
		default:
			t.Error(err)
		}
	}
	if well < 50 || well+gone != 100 || f.runner.count("web") != 1 {
		t.Errorf("%d were answered and %d left; it was started %d times", well, gone, f.runner.count("web"))
	}
}

func TestA02_WhoWaitsTooLongIsToldWhy(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "mute", func(a *plan.App) {
		a.Start, a.IdleStop, a.Ready.Timeout = "on_request", time.Hour, 5*time.Second
	}))
	err := f.apps.Wake(context.Background(), "web")
	var wake *apps.WakeError
	if !errors.As(err, &wake) || !wake.Timeout() || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
}

func TestA04_ACrashLoopBecomesAState(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "crash"))
	s := f.until("web", apps.CrashLooping)
	if n := f.runner.count("web"); n != 5 {
		t.Errorf("started %d times, want 5", n)
	}
	for _, want := range []string{"exit code 3", "attempt 5 of 5", "it is broken"} {
		if !strings.Contains(s.Reason, want) {
			t.Errorf("reason %q lacks %q", s.Reason, want)
		}
	}
	if s.Restarts != 5 || s.Last == nil || s.Last.Text != "exit code 3" {
		t.Errorf("%+v", s)
	}
	var pauses []string
	for _, e := range f.history("web") {
		if strings.HasPrefix(e, "app.backing_off") {
			_, rest, _ := strings.Cut(e, "next start in ")
			pause, _, _ := strings.Cut(rest, ";")
			pauses = append(pauses, pause)
			if !strings.Contains(e, "exit code 3 after ") || !strings.Contains(e, "of 5 within 1m0s") || !strings.Contains(e, "first words | it is broken") {
				t.Errorf("event %q", e)
			}
		}
	}
	if got := strings.Join(pauses, " "); got != "20ms 40ms 80ms 100ms" {
		t.Errorf("pauses %s", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := f.apps.Start(ctx, "web") // clears it, and it loops again
	if err != nil || s.State != apps.BackingOff && s.State != apps.CrashLooping {
		t.Errorf("start: %+v, %v", s, err)
	}
	f.wait("it is tried again", func() bool { return f.runner.count("web") > 5 })
}

func TestA04_StableUptimeResetsThePauseAndNotTheCount(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "serve", func(a *plan.App) { a.Restart.MinUptime, a.Restart.Max = time.Millisecond, 3 }))
	for n := range 3 {
		pid := f.until("web", apps.Ready).PID
		_, _ = f.get("web", "/die")
		f.wait("it ended", func() bool { s := f.is("web"); return s.PID != pid && s.Restarts == n+1 })
	}
	s := f.until("web", apps.CrashLooping)
	if !strings.Contains(s.Reason, "exit code 7") || !strings.Contains(s.Reason, "attempt 3 of 3") {
		t.Errorf("reason %q", s.Reason)
	}
	for _, e := range f.history("web") {
		if strings.HasPrefix(e, "app.backing_off") && !strings.Contains(e, "next start in 20ms") {
			t.Errorf("event %q: want the first pause", e)
		}
	}
}

func TestA12_CommandsAtAnyTimeComeToTheLastOne(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "serve"))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for n := range 30 { // whichever comes last, each of them is answered
		all.Add(1)
		go func() {
			defer all.Done()
			var err error
			switch n % 3 {
			case 0:
				_, err = f.apps.Start(ctx, "web")
			case 1:
				_, err = f.apps.Stop(ctx, "web")
			case 2:
				_, err = f.apps.Restart(ctx, "web", n%2 == 0)
			}
			if err != nil {
				t.Error(err)
			}
		}()
	}
	all.Wait()
	s, err := f.apps.Stop(ctx, "web")
	if err != nil || s.State != apps.Stopped || s.PID != 0 {
		t.Fatalf("stop: %+v, %v", s, err)
	}
	s, err = f.apps.Start(ctx, "web")
	if err != nil || s.State != apps.Ready {
		t.Fatalf("start: %+v, %v", s, err)
	}
	pid := s.PID
	if s, err = f.apps.Start(ctx, "web"); err != nil || s.PID != pid {
		t.Errorf("a second start: %+v, %v", s, err)
	}
	if _, err := f.apps.Stop(ctx, "nobody"); !errors.As(err, new(*apps.UnknownError)) {
		t.Errorf("stop of nobody: %v", err)
	}
}

func TestP14_PortStaysOverStopAndStart(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "serve"))
	port := f.until("web", apps.Ready).Port
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	must := func(s apps.Status, err error) apps.Status {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	must(f.apps.Stop(ctx, "web"))
	if s := must(f.apps.Start(ctx, "web")); s.Port != port || s.State != apps.Ready {
		t.Errorf("after stop and start: %+v, want port %d", s, port)
	}
	if s := must(f.apps.Restart(ctx, "web", false)); s.Port != port || s.State != apps.Ready {
		t.Errorf("after restart: %+v, want port %d", s, port)
	}
	other := must(f.apps.Restart(ctx, "web", true))
	if other.Port == port || other.State != apps.Ready {
		t.Errorf("with a new port: %+v, want another than %d", other, port)
	}
	if n := len(f.leases.Status()); n != 1 {
		t.Errorf("%d leases: %+v", n, f.leases.Status())
	}
	f.follow()
	f.wait("the port is given back", func() bool { return len(f.leases.Status()) == 0 })
}

func TestA14_OnlyTheAppWhoseEntryChangedIsReplaced(t *testing.T) {
	t.Parallel()
	a, b := app("a", "serve"), app("b", "serve")
	f := newFloor(t, a, b)
	was, stays := f.until("a", apps.Ready), f.until("b", apps.Ready)
	before := len(f.history("a"))
	next := app("a", "serve", func(a *plan.App) { a.Env = []plan.EnvVar{{Name: "X", Value: "y"}} })
	f.follow(next, b)
	f.wait("a is another one", func() bool { s := f.is("a"); return s.State == apps.Ready && s.PID != was.PID })
	if s := f.is("b"); s.PID != stays.PID || f.runner.count("b") != 1 {
		t.Errorf("b was started again: %+v", s)
	}
	for _, e := range f.history("a")[before:] {
		if strings.HasPrefix(e, "app.starting") || strings.HasPrefix(e, "app.stopped") || strings.HasPrefix(e, "app.draining") {
			t.Errorf("%q: the new one was to be ready before the old one goes", e)
		}
	}
	// What does not need another process is followed by the one that runs.
	now := f.is("a")
	calm := app("a", "serve", func(a *plan.App) {
		a.Env, a.Health = next.Env, &plan.AppHealth{Path: "/sick", Interval: 10 * time.Millisecond, Timeout: time.Second, Fall: 1, OnUnhealthy: "nothing"}
	})
	f.follow(calm, b)
	f.until("a", apps.Ready)
	if s := f.is("a"); s.PID != now.PID {
		t.Errorf("a was started again for a health check")
	}
	f.wait("the old port is given back", func() bool { return len(f.leases.Status()) == 2 })
}

func TestA11_TheOldInstanceStaysWhereTheNewOneFails(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "serve"))
	was := f.until("web", apps.Ready)
	f.follow(app("web", "crash"))
	f.wait("the new entry is refused", func() bool { return strings.Contains(f.is("web").Reason, "does not come up") })
	s := f.is("web")
	if s.State != apps.Ready || s.PID != was.PID || s.Port != was.Port {
		t.Errorf("%+v, want the one before: %+v", s, was)
	}
	if body, err := f.get("web", "/"); err != nil || body != fmt.Sprintf("pid %d", was.PID) {
		t.Errorf("%q, %v", body, err)
	}
	f.wait("only the old port is leased", func() bool {
		l := f.leases.Status()
		return len(l) == 1 && l[0].Port == was.Port
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	f.follow(app("web", "serve"))
	if s, err := f.apps.Restart(ctx, "web", false); err != nil || s.Port != was.Port || s.State != apps.Ready {
		t.Errorf("restart: %+v, %v", s, err)
	}
}

func TestA16_WhatCannotBeStartedIsRefusedByName(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "serve"))
	f.until("web", apps.Ready)
	err := f.try(app("bad", "missing"), app("web", "serve"))
	if err == nil || !strings.Contains(err.Error(), "app bad") || !strings.Contains(err.Error(), "no program missing") {
		t.Errorf("%v", err)
	}
	if f.runner.count("bad") != 0 || f.is("web").State != apps.Ready {
		t.Error("something was done")
	}
}

func TestA12_DependenciesAreReadyFirstAndEndLast(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("api", "serve", func(a *plan.App) { a.DependsOn = []string{"db"} }), app("db", "serve"), app("web", "serve", func(a *plan.App) { a.DependsOn = []string{"api"} }))
	f.until("web", apps.Ready)
	order := func(kind string) string {
		var out []string
		for _, e := range f.events.Last(1000) {
			if rest, ok := strings.CutPrefix(e, kind+" "); ok {
				name, _, _ := strings.Cut(rest, " ")
				out = append(out, name)
			}
		}
		return strings.Join(out, " ")
	}
	if got := order("app.ready"); got != "db api web" {
		t.Errorf("ready: %s", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := f.apps.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if got := order("app.stopped"); got != "web api db" {
		t.Errorf("stopped: %s", got)
	}
}

func TestA13_AliveIsNotReady(t *testing.T) {
	t.Parallel()
	sick := filepath.Join(t.TempDir(), "sick")
	if err := os.WriteFile(sick, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFloor(t, app("web", "serve", func(a *plan.App) {
		a.Ready.Path, a.Env = "/sick", []plan.EnvVar{{Name: "SICK", Value: sick}}
	}))
	f.wait("it says why", func() bool {
		s := f.is("web")
		return s.State == apps.Starting && strings.Contains(s.Reason, "status 500: feeling bad")
	})
	if err := os.Remove(sick); err != nil {
		t.Fatal(err)
	}
	f.until("web", apps.Ready)
}

func TestUnhealthyIsRoutedAwayAndComesBack(t *testing.T) {
	t.Parallel()
	sick := filepath.Join(t.TempDir(), "sick")
	f := newFloor(t, app("web", "serve", func(a *plan.App) {
		a.Env = []plan.EnvVar{{Name: "SICK", Value: sick}}
		a.Health = &plan.AppHealth{Path: "/sick", Interval: 10 * time.Millisecond, Timeout: 5 * time.Second, Fall: 2, OnUnhealthy: "route_away"}
	}))
	pid := f.until("web", apps.Ready).PID
	if err := os.WriteFile(sick, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.until("web", apps.Unhealthy)
	if _, err := f.get("web", "/"); err == nil || !strings.Contains(err.Error(), "feeling bad") {
		t.Errorf("%v", err)
	}
	if err := os.Remove(sick); err != nil {
		t.Fatal(err)
	}
	if s := f.until("web", apps.Ready); s.PID != pid {
		t.Error("it was started again")
	}
	if _, err := f.get("web", "/"); err != nil {
		t.Error(err)
	}
}

func TestA08_WhoIsUsedIsNotPutToSleep(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "serve", func(a *plan.App) { a.Start, a.IdleStop = "on_request", 200*time.Millisecond }))
	c, m, err := f.pools.Pool("web").Dial(context.Background(), &pools.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	since := f.until("web", apps.Ready).Since
	for time.Since(since) < time.Second {
		if s := f.is("web"); s.State != apps.Ready {
			t.Fatalf("it is %s with a connection open", s.State)
		}
		<-time.After(10 * time.Millisecond)
	}
	_ = c.Close()
	m.Release(true)
	f.until("web", apps.Sleeping)
	if _, err := f.get("web", "/"); err != nil {
		t.Error(err)
	}
	if n := f.runner.count("web"); n != 2 {
		t.Errorf("started %d times", n)
	}
}

func TestPortThatIsTakenIsAnsweredByPolicy(t *testing.T) {
	t.Parallel()
	f := newFloor(t)
	f.runner.busy[f.range_.Lo] = true
	f.follow(app("web", "serve"))
	if s := f.until("web", apps.Ready); s.Port == f.range_.Lo || s.Restarts != 0 {
		t.Errorf("%+v", s)
	}
	f.runner.mu.Lock()
	f.runner.busy[4999] = true
	f.runner.mu.Unlock()
	f.follow(app("fails", "serve", func(a *plan.App) { a.Port, a.OnPortBusy = 4999, "fail" }), app("retries", "serve", func(a *plan.App) { a.Port, a.OnPortBusy = 4999, "retry" }))
	if s := f.until("fails", apps.Failed); !strings.Contains(s.Reason, "port 4999 is taken") {
		t.Errorf("%+v", s)
	}
	if s := f.until("retries", apps.BackingOff); !strings.Contains(s.Reason, "next start in") || s.Restarts != 0 {
		t.Errorf("%+v", s)
	}
}

func TestOnFailureLeavesWhatHasEnded(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("job", "done", func(a *plan.App) { a.Restart.Policy = "on-failure" }), app("once", "crash", func(a *plan.App) { a.Restart.Policy = "no" }))
	f.wait("the job is over", func() bool {
		s := f.is("job")
		return s.State == apps.Stopped && strings.Contains(s.Reason, "exit code 0")
	})
	if s := f.until("once", apps.Failed); !strings.Contains(s.Reason, "exit code 3") {
		t.Errorf("%+v", s)
	}
	if f.runner.count("job") != 1 || f.runner.count("once") != 1 {
		t.Errorf("started %d and %d times", f.runner.count("job"), f.runner.count("once"))
	}
}
