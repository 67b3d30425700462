package leases

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestHeldPortIsNobodyElsesAndRefusesClients(t *testing.T) {
	t.Parallel()
	b := open(t, "", free(t, 1), nil)
	c, err := b.Ask(t.Context(), Want{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	l := c.Leases()[0]
	heldEverywhere(t, l.Port()) // provisional
	if l.Handoff() == nil {
		t.Error("a provisional lease was handed off")
	}
	c.Commit()
	heldEverywhere(t, l.Port())
	if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", l.Port())); err == nil {
		_ = conn.Close()
		t.Error("a client was let into a queue that nobody empties")
	}
	if err := l.Handoff(); err != nil {
		t.Fatal(err)
	}
	app := listen(t, "::", l.Port())
	if l.State() != InUse || l.Handoff() != nil {
		t.Errorf("state %s", l.State())
	}
	var busy *BusyError
	if err := l.Reclaim(t.Context()); !errors.As(err, &busy) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d", os.Getpid())) {
		t.Errorf("reclaimed beside the app: %v", err)
	}
	_ = app.Close()
	if err := l.Reclaim(t.Context()); err != nil || l.State() != Held {
		t.Errorf("after the app ended: %v, %s", err, l.State())
	}
	heldEverywhere(t, l.Port())
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	listen(t, "0.0.0.0", l.Port())
	if len(b.Status()) != 0 || b.file() != "" || l.Release(t.Context()) != nil {
		t.Errorf("after the release: %v, %q", b.Status(), b.file())
	}
}

func TestPromisedPortIsFreeForWhoeverWasToldIt(t *testing.T) {
	t.Parallel()
	b := open(t, "", free(t, 2), nil)
	l := b.one(Want{Name: "web", Promise: true})
	app := listen(t, "::", l.Port())
	if b.one(Want{Name: "other"}).Port() == l.Port() {
		t.Error("two owners")
	}
	if again := b.one(Want{Name: "web", Promise: true}); again != l || again.State() != Promised {
		t.Errorf("asked again beside the app: %d %s", again.Port(), again.State())
	}
	_ = app.Close()
}

func TestP14_AppKeepsItsPortOverItsRestartAndOurs(t *testing.T) {
	t.Parallel()
	r := free(t, 6)
	b := open(t, "", r, nil)
	b.one(Want{Name: "first"})
	web, dev := b.one(Want{Name: "web"}), b.one(Want{Name: "dev", Promise: true})
	if _, err := b.Release(t.Context(), "first"); err != nil { // a lower port is free from here on
		t.Fatal(err)
	}
	_ = web.Handoff()
	if err := web.Reclaim(t.Context()); err != nil || b.one(Want{Name: "web"}).Port() != web.Port() {
		t.Errorf("after stop and start: %v, %s", err, b.memory())
	}
	b.stop()
	listen(t, "127.0.0.1", dev.Port()) // its process lives on, or a stranger came: nobody knows
	again := open(t, b.dir, r, nil)
	heldEverywhere(t, web.Port())
	if again.memory() != b.file() || again.one(Want{Name: "web"}).Port() != web.Port() || again.one(Want{Name: "dev"}).Port() != dev.Port() {
		t.Errorf("after a restart: %s, the file has %s", again.memory(), again.file())
	}
	if n := again.one(Want{Name: "web", New: true}); n.Port() == web.Port() || again.one(Want{Name: "web"}) != n {
		t.Errorf("asked for a new one: %s", again.memory())
	}
	listen(t, "::", web.Port()) // given back with the Commit of the new one
	if again.memory() != again.file() {
		t.Errorf("on the disk: %s\nin memory: %s", again.file(), again.memory())
	}
}

func TestP14_PortTakenWhileWeWereAwayIsNamedAndTakenBack(t *testing.T) {
	t.Parallel()
	r := free(t, 3)
	b := open(t, "", r, nil)
	web := b.one(Want{Name: "web"})
	b.stop()
	stranger := listen(t, "0.0.0.0", web.Port())
	again := open(t, b.dir, r, nil)
	s := again.Status()
	if len(s) != 1 || s[0].State != Busy || !strings.Contains(s[0].Error, fmt.Sprintf("(pid %d", os.Getpid())) || s[0].NextTry.IsZero() {
		t.Fatalf("status %+v", s)
	}
	_, err := again.Ask(t.Context(), Want{Name: "web"})
	var busy *BusyError
	if !errors.As(err, &busy) || busy.Port != web.Port() {
		t.Errorf("asked: %v", err)
	}
	if got := again.one(Want{Name: "other"}).Port(); got == web.Port() {
		t.Error("the port was leased to another")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = again.Run(ctx) }()
	_ = stranger.Close()
	until(t, "the port is held again", func() bool { return again.Status()[0].State == Held })
	heldEverywhere(t, web.Port())
	if n := strings.Count(again.log.String(), "port busy"); n != 1 {
		t.Errorf("%d lines say that the port is busy", n)
	}
	cancel()
	<-done
	listen(t, "::", web.Port()) // Run lets go at its end
}

func TestAbortLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	r := free(t, 4)
	b := open(t, "", r, nil)
	web := b.one(Want{Name: "web"})
	c, err := b.Ask(t.Context(), Want{Name: "web", New: true}, Want{Name: "new"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ask(t.Context(), Want{Name: "new"}); !errors.Is(err, ErrPending) {
		t.Errorf("a name that another change leases: %v", err)
	}
	if _, err := b.Release(t.Context(), "new"); !errors.Is(err, ErrPending) {
		t.Errorf("released from under a change: %v", err)
	}
	c.Abort()
	c.Commit() // too late
	want := fmt.Sprintf("web %d", web.Port())
	if b.memory() != want || b.file() != want || b.one(Want{Name: "web"}) != web {
		t.Errorf("in memory %q, on the disk %q, want %q", b.memory(), b.file(), want)
	}
	listen(t, "::", r.Lo+1)
	listen(t, "::", r.Lo+2)
	heldEverywhere(t, web.Port())
}

func TestNewLeaseLeavesARunningAppItsPort(t *testing.T) {
	t.Parallel()
	b := open(t, "", free(t, 3), nil)
	old := b.one(Want{Name: "web"})
	_ = old.Handoff()
	n := b.one(Want{Name: "web", New: true})
	if old.State() != InUse || len(b.Status()) != 2 || b.file() != fmt.Sprintf("web %d", n.Port()) {
		t.Errorf("old %s, status %v, file %s", old.State(), b.Status(), b.file())
	}
	if got := b.one(Want{Name: "other"}).Port(); got == old.Port() {
		t.Error("the port of a running app was leased to another")
	}
	if err := old.Release(t.Context()); err != nil || b.memory() != b.file() {
		t.Errorf("%v, memory %s, file %s", err, b.memory(), b.file())
	}
}

func TestWhatCannotBeWrittenIsRefusedAndNothingIsHalfDone(t *testing.T) {
	t.Parallel()
	r := free(t, 3)
	b := open(t, "", r, nil)
	web := b.one(Want{Name: "web"})
	before := b.file()
	away := b.dir + ".away"
	if err := os.Rename(b.dir, away); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(away)
	var unsaved *StoreError
	if _, err := b.Ask(t.Context(), Want{Name: "new"}); !errors.As(err, &unsaved) {
		t.Errorf("leased: %v", err)
	}
	if _, err := b.Ask(t.Context(), Want{Name: "web", New: true}); !errors.As(err, &unsaved) {
		t.Errorf("leased anew: %v", err)
	}
	if _, err := b.Release(t.Context(), "web"); !errors.As(err, &unsaved) {
		t.Errorf("released: %v", err)
	}
	if b.one(Want{Name: "web"}) != web || len(b.Status()) != 1 {
		t.Errorf("leases %v", b.Status())
	}
	heldEverywhere(t, web.Port())
	l := listen(t, "::", r.Lo+1) // of the refused one
	_ = l.Close()
	if err := os.Rename(away, b.dir); err != nil {
		t.Fatal(err)
	}
	if b.file() != before {
		t.Errorf("the file says %s, and said %s", b.file(), before)
	}
	b.one(Want{Name: "new"})
	if b.file() != b.memory() {
		t.Errorf("file %s, memory %s", b.file(), b.memory())
	}
}

func TestFileThatCannotBeReadIsSetAside(t *testing.T) {
	t.Parallel()
	r := free(t, 2)
	b := open(t, "", r, nil)
	b.stop()
	for _, text := range []string{"{", `{"version": 9}`, ""} {
		if err := os.WriteFile(b.dir+"/"+fileName, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		again := open(t, b.dir, r, nil)
		again.one(Want{Name: "web"})
		aside, err := os.ReadFile(b.dir + "/" + asideName)
		if err != nil || string(aside) != text || !strings.Contains(again.log.String(), "set aside") {
			t.Errorf("%q: aside %q, %v\n%s", text, aside, err, again.log)
		}
		again.stop()
	}
	_ = os.Remove(b.dir + "/" + fileName)
	if err := os.Mkdir(b.dir+"/"+fileName, 0o700); err != nil { // can be opened, and neither read nor written
		t.Fatal(err)
	}
	last := open(t, b.dir, r, nil)
	if _, err := last.Ask(t.Context(), Want{Name: "web"}); err == nil || !strings.Contains(err.Error(), "not overwritten") {
		t.Errorf("leased without knowing what is leased: %v", err)
	}
	if err := last.Fault(); err == nil || !strings.Contains(err.Error(), fileName) || b.Fault() != nil {
		t.Errorf("the fault is %v, and was %v", err, b.Fault())
	}
}

func TestRecordsThatContradictEachOtherAreDropped(t *testing.T) {
	t.Parallel()
	r := free(t, 3)
	b := open(t, "", r, nil)
	b.stop()
	text := fmt.Sprintf(`{"version": 1, "leases": [{"name": "a", "port": %d}, {"name": "b", "port": %[1]d}, {"name": "a", "port": %d},
		{"name": "Bad", "port": %[2]d}, {"name": "z", "port": 0}]}`, r.Lo, r.Lo+1)
	if err := os.WriteFile(b.dir+"/"+fileName, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	again := open(t, b.dir, r, nil)
	if want := fmt.Sprintf("a %d", r.Lo); again.memory() != want || again.file() != want {
		t.Errorf("memory %q, file %q, want %q", again.memory(), again.file(), want)
	}
}

func TestLeasesOutsideOfANewRangeStay(t *testing.T) {
	t.Parallel()
	r := free(t, 6)
	b := open(t, "", plan.PortRange{Lo: r.Lo, Hi: r.Lo + 2}, nil)
	web := b.one(Want{Name: "web"})
	b.follow(&plan.Plan{Settings: plan.Settings{AppPorts: plan.PortRange{Lo: r.Lo + 3, Hi: r.Hi}}})
	if b.one(Want{Name: "web"}) != web || b.one(Want{Name: "new"}).Port() != r.Lo+3 {
		t.Errorf("leases %s", b.memory())
	}
	if !strings.Contains(b.log.String(), "lease outside of app_ports stays until it is released") {
		t.Errorf("the log does not say that it stays:\n%s", b.log)
	}
	if _, err := b.Release(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if got := b.one(Want{Name: "web"}).Port(); got != r.Lo+4 {
		t.Errorf("leased %d after the release, outside of the new range", got)
	}
}

func TestPlanAndLeasesDoNotMeet(t *testing.T) {
	t.Parallel()
	r := free(t, 4)
	b := open(t, "", r, nil)
	web := b.one(Want{Name: "web"})
	wants := func(port uint16) *plan.Plan {
		return &plan.Plan{Settings: plan.Settings{AppPorts: r}, Ports: []*plan.Port{
			{Addr: plan.Addr{Port: port}, Fallback: []plan.Addr{{Port: r.Lo + 3}}, Users: []string{"route api"}},
		}}
	}
	_, err := b.Prepare(t.Context(), wants(web.Port()))
	if err == nil || !strings.Contains(err.Error(), "the port of route api: it is leased to web") {
		t.Errorf("a plan that wants a leased port: %v", err)
	}
	step, err := b.Prepare(t.Context(), wants(r.Lo+1))
	if err != nil {
		t.Fatal(err)
	}
	if got := b.one(Want{Name: "between"}).Port(); got != r.Lo+2 {
		t.Errorf("leased %d: %d is being bound, %d is a fallback", got, r.Lo+1, r.Lo+3)
	}
	step.Abort()
	if got := b.one(Want{Name: "after"}).Port(); got != r.Lo+1 {
		t.Errorf("leased %d after the plan was refused", got)
	}
	b.stop()
	b = openPlan(t, b.dir, wants(r.Lo+1), nil)
	if step, err = b.Prepare(t.Context(), &plan.Plan{Settings: plan.Settings{AppPorts: r}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ask(t.Context(), Want{Name: "early"}); err == nil {
		t.Error("a port was leased that the plan in force still has")
	}
	step.Commit()
	b.one(Want{Name: "early"})
	b.stop()
	first := openPlan(t, b.dir, wants(web.Port()), nil)
	if strings.Contains(first.memory(), "web") || first.file() != first.memory() || !strings.Contains(first.log.String(), "lease ended") {
		t.Errorf("at start the plan did not win: %s, file %s\n%s", first.memory(), first.file(), first.log)
	}
}

func TestEphemeralPortsAreWarnedOf(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/sys/net/ipv4/ip_local_port_range"); err != nil {
		t.Skip("only Linux says which ports are ephemeral")
	}
	b := open(t, "", plan.PortRange{Lo: 1, Hi: 65535}, nil)
	if !strings.Contains(b.log.String(), "overlaps the ephemeral ports") {
		t.Error("no warning")
	}
	if strings.Contains(open(t, "", plan.PortRange{Lo: 1, Hi: 2}, nil).log.String(), "ephemeral") {
		t.Error("a warning without a reason")
	}
}

func TestNothingChangesWhileAnotherTakesOver(t *testing.T) {
	t.Parallel()
	b := open(t, "", free(t, 2), nil)
	b.one(Want{Name: "web"})
	before := b.file()
	resume, err := b.Suspend(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ask(t.Context(), Want{Name: "new"}); !errors.Is(err, ErrFrozen) {
		t.Errorf("leased: %v", err)
	}
	if _, err := b.Release(t.Context(), "web"); !errors.Is(err, ErrFrozen) || b.file() != before {
		t.Errorf("released: %v, file %s", err, b.file())
	}
	resume()
	b.one(Want{Name: "new"})
}

func TestNothingIsLeasedBeforeThePlan(t *testing.T) {
	t.Parallel()
	if _, err := New(Options{}).Ask(t.Context(), Want{Name: "web"}); !errors.Is(err, ErrStarting) {
		t.Error(err)
	}
}
