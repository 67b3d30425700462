package process

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// gone waits until a process is reaped.
func gone(t *testing.T, pid int) {
	t.Helper()
	for late := time.Now().Add(patience); ; {
		if _, there := readProc(pid); !there {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("process %d is still there", pid)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// busyTime is what a process has used of a processor.
func busyTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	p, ok := readProc(pid)
	if !ok || p.dead {
		t.Fatal("the app has ended with its daemon")
	}
	return p.cpu
}

// changed is a record with other data.
func changed(t *testing.T, rec run.Record, f func(*data)) run.Record {
	t.Helper()
	var d data
	if err := json.Unmarshal(rec.Data, &d); err != nil {
		t.Fatal(err)
	}
	f(&d)
	rec.Data, _ = json.Marshal(d)
	return rec
}

func TestA07_AnAppSurvivesTheKillOfItsDaemonAndLosesNoLine(t *testing.T) {
	t.Parallel()
	r := runner(t)
	dead := exec.Command("/proc/self/exe", "daemon", r.opt.Dir)
	said, err := dead.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.Start(); err != nil {
		t.Fatal(err)
	}
	var first []string
	var rec run.Record
	sc := bufio.NewScanner(said)
	for sc.Scan() {
		if text, is := strings.CutPrefix(sc.Text(), "record "); is {
			if err := json.Unmarshal([]byte(text), &rec); err != nil {
				t.Fatal(err)
			}
			continue
		}
		first = append(first, sc.Text())
		if len(first) == pausing { // it has nothing in hand
			_ = dead.Process.Kill()
		}
	}
	_ = dead.Wait()
	if err := os.WriteFile(filepath.Join(r.opt.Dir, "go"), nil, 0o600); err != nil { // the app goes on with nobody to hear it
		t.Fatal(err)
	}
	if rec.PID == 0 || len(first) != pausing {
		t.Fatalf("record %+v after %q", rec, first)
	}
	for before := busyTime(t, rec.PID); busyTime(t, rec.PID) == before; { // it has gone on
		time.Sleep(5 * time.Millisecond)
	}
	out := newOutput()
	i, err := r.Adopt(t.Context(), rec, out)
	if err != nil {
		t.Fatal(err)
	}
	out.until(t, fmt.Sprintf("out: tick %d", len(first)+30))
	if e := stop(t, i, plan.AppStop{Signal: "TERM", Timeout: patience}); !e.Lost {
		t.Errorf("%v", e)
	}
	if alive(rec.PID) {
		t.Error("it is alive")
	}
	if whole := strings.Join(append(first, out.all()...), "\n"); !inOrder(whole) {
		t.Errorf("lines are missing:\n%s", whole)
	}
}

func TestA07_AReusedPidIsNotSignalled(t *testing.T) {
	t.Parallel()
	r := runner(t)
	other, out := start(t, r, me(t, "say=up", "wait")) // stands for a stranger that has the pid now
	out.until(t, "out: up")
	later := New(r.opt)
	for what, f := range map[string]func(*data){
		"another start time": func(d *data) { d.Begun--; d.Pipe, d.Group = "", "" },
		"another boot":       func(d *data) { d.Boot = "x"; d.Pipe, d.Group = "", "" },
		"another namespace":  func(d *data) { d.Space = "x"; d.Pipe, d.Group = "", "" },
		"foreign files":      func(d *data) { d.Begun--; d.Pipe, d.Group = "/etc/passwd", "/sys/fs/cgroup" },
	} {
		if _, err := later.Adopt(t.Context(), changed(t, other.Record(), f), newOutput()); !errors.Is(err, run.ErrGone) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !alive(other.Record().PID) {
		t.Error("the stranger was ended")
	}
	select {
	case <-other.Done():
		t.Error("the stranger has ended")
	default:
	}
	if _, err := later.Adopt(t.Context(), run.Record{PID: other.Record().PID}, newOutput()); !errors.Is(err, run.ErrGone) {
		t.Errorf("without data: %v", err)
	}
}

func TestA07_WhatALeaderLeftBehindIsEndedByTheNextDaemon(t *testing.T) {
	t.Parallel()
	for name, groups := range map[string]groups{"control groups": findGroups(), "none": {}} {
		r := runner(t)
		r.groups = groups
		self := me(t).Command[0]
		i, out := start(t, r, &plan.App{Name: "web", Command: []string{"sh", "-c", `"$0" app deaf say=rest wait & wait`, self}})
		out.until(t, "out: rest")
		rest := i.(*instance).rest()
		i.Leave()
		pid := i.Record().PID
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		gone(t, pid) // reaped, though it was left
		later := New(r.opt)
		later.groups = groups
		unproven := changed(t, i.Record(), func(d *data) { d.Pipe, d.Group = "", "" })
		if _, err := later.Adopt(t.Context(), unproven, newOutput()); !errors.Is(err, run.ErrGone) || !alive(rest[0].pid) && !alive(rest[1].pid) {
			t.Errorf("%s: those that nothing proves to be ours: %v", name, err)
		}
		if _, err := later.Adopt(t.Context(), i.Record(), newOutput()); !errors.Is(err, run.ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
		for _, p := range rest {
			if alive(p.pid) {
				t.Errorf("%s: process %d is alive", name, p.pid)
			}
		}
		if left, err := os.ReadDir(r.opt.Dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left: %v, %v", name, left, err)
		}
	}
}

func TestAnAppThatWasLeftInVainKeepsItsStatus(t *testing.T) {
	t.Parallel()
	r := runner(t)
	i, out := start(t, r, me(t, "say=up", "wait"))
	out.until(t, "out: up")
	i.Leave()
	again, err := r.Adopt(t.Context(), i.Record(), newOutput())
	if err != nil {
		t.Fatal(err)
	}
	if e := stop(t, again, plan.AppStop{Signal: "TERM", Timeout: patience}); e.Signal != syscall.SIGTERM {
		t.Errorf("%v", e)
	}
	select {
	case <-i.Done():
		t.Error("who has left it says that it is done")
	default:
	}
}

func TestALineThatIsHalfReadIsNotCutByLeave(t *testing.T) {
	t.Parallel()
	r := runner(t)
	i, out := start(t, r, &plan.App{Name: "web", Command: []string{"sh", "-c", "echo up; n=0; while :; do printf 'part one, '; printf 'part two, '; printf 'end\n'; done"}})
	out.until(t, "out: part one, part two, end")
	for range 5 {
		i.Leave()
		found, err := r.Adopt(t.Context(), i.Record(), out)
		if err != nil {
			t.Fatal(err)
		}
		i = found
	}
	stop(t, i, plan.AppStop{Signal: "KILL"})
	lines := out.all()
	lines = lines[1 : len(lines)-1] // "up", and the one that KILL has cut
	if n := slices.IndexFunc(lines, func(l string) bool { return l != "out: part one, part two, end" }); n >= 0 {
		t.Errorf("line %d of %d: %q", n, len(lines), lines[n])
	}
}

func TestA05_AControlGroupHasThoseThatLeftTheirSession(t *testing.T) {
	t.Parallel()
	r := runner(t)
	if r.groups.root == "" {
		t.Skip("no control group was given to us")
	}
	self := me(t).Command[0]
	i, out := start(t, r, &plan.App{Name: "web", Command: []string{"sh", "-c", `setsid "$0" app deaf say=away wait & wait`, self}})
	out.until(t, "out: away")
	rest := i.(*instance).rest()
	if len(rest) != 2 {
		t.Fatalf("its processes: %v", rest)
	}
	group := i.(*instance).group.path
	stop(t, i, plan.AppStop{Signal: "TERM", Timeout: 50 * time.Millisecond})
	for _, p := range rest {
		if alive(p.pid) {
			t.Errorf("process %d is alive", p.pid)
		}
	}
	if _, err := os.Stat(group); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its control group is left: %v", err)
	}
}

func TestStopsAtOnceAreOne(t *testing.T) {
	t.Parallel()
	r := runner(t)
	i, out := start(t, r, me(t, "deaf", "say=up", "wait"))
	out.until(t, "out: up")
	patient := make(chan error)
	go func() { patient <- i.Stop(t.Context(), plan.AppStop{Signal: "TERM", Timeout: 10 * patience}) }()
	if e := stop(t, i, plan.AppStop{Signal: "KILL"}); e.Signal != syscall.SIGKILL {
		t.Errorf("%v", e)
	}
	if err := <-patient; err != nil {
		t.Error(err)
	}
	if err := i.Stop(t.Context(), plan.AppStop{Signal: "TERM"}); err != nil {
		t.Errorf("of one that has ended: %v", err)
	}
	if err := i.Stop(t.Context(), plan.AppStop{Signal: "NONSENSE"}); err == nil {
		t.Error("NONSENSE is a signal")
	}
}

func TestLimitsThatCannotBeSetAreSaid(t *testing.T) {
	t.Parallel()
	var g groups
	if _, err := g.make(&plan.App{Name: "web"}, "web-1"); err != nil {
		t.Errorf("without limits: %v", err)
	}
	if _, err := g.make(&plan.App{Name: "web", Limits: plan.AppLimits{Memory: 1 << 20}}, "web-1"); err == nil {
		t.Error("memory is not limited, and nothing is said")
	}
	if g.known("/etc").path != "" {
		t.Error("a foreign folder is a control group of ours")
	}
}

func TestProcessOneReapsWhatAppsLeaveToIt(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root makes a namespace for it")
	}
	out, err := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", me(t).Command[0], "init", t.TempDir()).CombinedOutput()
	if !strings.Contains(string(out), "reaped") {
		t.Errorf("%s%v", out, err)
	}
}

func TestNobodyIsToldTwiceToEnd(t *testing.T) {
	t.Parallel()
	r := runner(t)
	self := me(t).Command[0]
	for range 5 {
		i, out := start(t, r, &plan.App{Name: "web", Command: []string{"sh", "-c", `trap "" TERM; "$0" app count & "$0" app count`, self}})
		for counting := 0; counting < 2; {
			select {
			case <-out.more:
			case <-time.After(patience):
				t.Fatalf("%q", out.all())
			}
			counting = 0
			for _, l := range out.all() {
				if l == "out: counting" {
					counting++
				}
			}
		}
		stop(t, i, plan.AppStop{Signal: "TERM", Timeout: 300 * time.Millisecond})
		if n := strings.Count(strings.Join(out.all(), "\n"), "out: term"); n > 2 {
			t.Errorf("%d were told: %q", n, out.all())
		}
	}
}

// slow takes its first line when it is let.
type slow struct {
	*output
	let chan struct{}
}

func (s *slow) Line(at time.Time, stderr bool, text []byte) {
	<-s.let
	s.output.Line(at, stderr, text)
}

func TestWhatIsInThePipeAtTheEndIsRead(t *testing.T) {
	t.Parallel()
	r := runner(t)
	out := &slow{newOutput(), make(chan struct{})}
	script := "echo one; sleep 0.3; n=0; while [ $n -lt 500 ]; do echo line $n; n=$((n+1)); done"
	i, err := r.Start(t.Context(), &run.Start{App: &plan.App{Name: "web", Command: []string{"sh", "-c", script}}, Listener: -1, Output: out})
	if err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(patience); !i.(*instance).pipes.out.drain.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("it does not end")
		}
	}
	close(out.let)
	done(t, i)
	if got := out.all(); len(got) != 501 || got[500] != "out: line 499" {
		t.Errorf("%d lines", len(got))
	}
}

func TestAKillForMemoryIsToldByTheControlGroup(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{"low 0\noom 1\noom_kill 0\n": false, "low 0\noom 1\noom_kill 2\noom_group_kill 0\n": true, "": false} {
		g := group{t.TempDir()} // with the file as the kernel has it
		if err := os.WriteFile(filepath.Join(g.path, "memory.events"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := g.oom(); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestFiftyAtOnceEndAsTheyShould(t *testing.T) {
	t.Parallel()
	r := runner(t)
	var work sync.WaitGroup
	for n := range 50 {
		work.Add(1)
		go func() {
			defer work.Done()
			out := newOutput()
			i, err := r.Start(t.Context(), &run.Start{App: me(t, "say=up", fmt.Sprintf("exit=%d", n)), Listener: -1, Output: out})
			if err != nil {
				t.Error(err)
				return
			}
			<-i.Done()
			if e := i.Exit(); e.Code != n || !slices.Equal(out.all(), []string{"out: up"}) {
				t.Errorf("number %d: %v, %q", n, e, out.all())
			}
		}()
	}
	work.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ours) > 0 {
		t.Errorf("%d are still known", len(r.ours))
	}
}
