package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/apps/launch"
	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// patience is for a machine that has much to do.
const patience = 30 * time.Second

// TestMain makes the test program the launcher, and the app, of its own tests.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "launch" {
		link, _ := strconv.Atoi(os.Args[2])
		fmt.Fprintln(os.Stderr, launch.Become(link))
		os.Exit(1)
	}
	if len(os.Args) == 3 && os.Args[1] == "daemon" {
		daemon(os.Args[2])
		os.Exit(1)
	}
	if len(os.Args) == 3 && os.Args[1] == "limited" {
		limited(os.Args[2])
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "init" {
		one(os.Args[2])
		os.Exit(0)
	}
	if len(os.Args) >= 2 && os.Args[1] == "app" {
		app(os.Args[2:])
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// daemon starts an app that ticks, says what it hears, and first of all the record, and never ends by itself.
func daemon(dir string) {
	self, _ := os.Executable()
	r := New(Options{Launcher: "/proc/self/exe", Args: []string{"launch"}, Dir: dir})
	i, err := r.Start(context.Background(), &run.Start{
		App: &plan.App{Name: "web", Command: []string{self, "app", "tick=" + filepath.Join(dir, "go")}}, Listener: -1, Output: printer{},
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	text, _ := json.Marshal(i.Record())
	fmt.Printf("record %s\n", text)
	<-i.Done()
}

// one is process 1: it runs an app that leaves orphans to it, and says when those were there and were reaped.
func one(dir string) {
	r := New(Options{Launcher: "/proc/self/exe", Args: []string{"launch"}, Dir: dir})
	r.every = 50 * time.Millisecond
	_, err := r.Start(context.Background(), &run.Start{
		App:      &plan.App{Name: "web", Command: []string{"sh", "-c", "for n in 1 2 3; do (setsid sh -c 'sleep 0.3' &); done; sleep 100"}},
		Listener: -1, Output: printer{},
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	orphans := func() (n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, p := range r.table.since(time.Now()) {
			if p.parent == 1 && r.ours[p.pid] == nil {
				n++
			}
		}
		return n
	}
	for most, late := 0, time.Now().Add(patience); time.Now().Before(late); time.Sleep(5 * time.Millisecond) {
		n := orphans()
		most = max(most, n)
		if most == 3 && n == 0 {
			fmt.Println("reaped")
			return
		}
	}
	fmt.Println("left:", orphans())
}

type printer struct{}

func (printer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stdout, nil)) }

func (printer) Line(_ time.Time, _ bool, text []byte) { fmt.Printf("out: %s\n", text) }

// app is a program that does what its arguments say, one after the other.
func app(words []string) {
	for n, w := range words {
		what, arg, _ := strings.Cut(w, "=")
		switch what {
		case "say":
			fmt.Println(arg)
		case "moan":
			fmt.Fprintln(os.Stderr, arg)
		case "deaf":
			signal.Ignore(syscall.SIGTERM)
		case "env":
			fmt.Println(arg + "=" + os.Getenv(arg))
		case "environ":
			for _, v := range os.Environ() {
				fmt.Println(v)
			}
			fmt.Println("that is all")
		case "long":
			n, _ := strconv.Atoi(arg)
			fmt.Print(strings.Repeat("x", n))
		case "print":
			fmt.Print(arg)
		case "listen":
			l, err := net.Listen("tcp", "127.0.0.1:"+arg)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println("port", l.Addr().(*net.TCPAddr).Port)
		case "unix":
			if _, err := net.Listen("unix", arg); err != nil {
				fmt.Println(err)
			}
		case "serve": // on the socket that it was given
			l, err := net.FileListener(os.NewFile(3, "socket"))
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println("sockets", os.Getenv("LISTEN_FDS"), os.Getenv("PORT"))
			c, _ := l.Accept()
			fmt.Fprint(c, "hello")
			c.Close()
		case "eat": // so many MiB
			n, _ := strconv.Atoi(arg)
			for held := [][]byte(nil); len(held) < n; {
				held = append(held, bytes.Repeat([]byte{1}, 1<<20))
			}
		case "burn":
			for until := time.Now().Add(300 * time.Millisecond); time.Now().Before(until); {
			}
		case "count":
			terms := make(chan os.Signal, 10)
			signal.Notify(terms, syscall.SIGTERM)
			fmt.Println("counting")
			for range terms {
				fmt.Println("term")
			}
		case "exit":
			code, _ := strconv.Atoi(arg)
			os.Exit(code)
		case "wait":
			select {}
		case "tick":
			for i := 0; ; i++ {
				fmt.Println("tick", i)
				if i+1 == pausing {
					for !there(arg) {
						time.Sleep(5 * time.Millisecond)
					}
				}
				time.Sleep(time.Millisecond)
			}
		default:
			fmt.Println("what is", w, n)
			os.Exit(99)
		}
	}
}

// pausing is the number of ticks after which a file is waited for, if one is named.
const pausing = 30

func there(file string) bool {
	_, err := os.Stat(file)
	return file == "" || err == nil
}

// output is what an app has said.
type output struct {
	mu    sync.Mutex
	more  chan struct{}
	lines []string // "out: ..." and "err: ..."
}

func newOutput() *output { return &output{more: make(chan struct{}, 1)} }

func (o *output) Line(_ time.Time, stderr bool, text []byte) {
	stream := "out: "
	if stderr {
		stream = "err: "
	}
	o.mu.Lock()
	o.lines = append(o.lines, stream+string(text))
	o.mu.Unlock()
	select {
	case o.more <- struct{}{}:
	default:
	}
}

func (o *output) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.lines)
}

// until waits for a line.
func (o *output) until(t *testing.T, line string) {
	t.Helper()
	late := time.After(patience)
	for !slices.Contains(o.all(), line) {
		select {
		case <-o.more:
		case <-late:
			t.Fatalf("no line %q in %q", line, o.all())
		}
	}
}

func runner(t *testing.T) *Runner {
	t.Helper()
	return New(Options{Launcher: "/proc/self/exe", Args: []string{"launch"}, Dir: t.TempDir()})
}

// me is an app that is this program.
func me(t *testing.T, words ...string) *plan.App {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fast := []plan.EnvVar{{Name: "GORACE", Value: "atexit_sleep_ms=0"}}
	return &plan.App{Name: "web", Command: append([]string{self, "app"}, words...), Env: fast}
}

func start(t *testing.T, r *Runner, a *plan.App, more ...func(*run.Start)) (run.Instance, *output) {
	t.Helper()
	out := newOutput()
	s := &run.Start{App: a, Port: 32100, Host: "127.0.0.1", Listener: -1, Output: out}
	for _, f := range more {
		f(s)
	}
	i, err := r.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = i.Stop(ctx, plan.AppStop{Signal: "KILL"})
	})
	return i, out
}

func done(t *testing.T, i run.Instance) run.Exit {
	t.Helper()
	select {
	case <-i.Done():
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	return i.Exit()
}

func stop(t *testing.T, i run.Instance, how plan.AppStop) run.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := i.Stop(ctx, how); err != nil {
		t.Fatal(err)
	}
	return done(t, i)
}

func alive(pid int) bool {
	p, ok := readProc(pid)
	return ok && !p.dead
}

func TestA04_TheEndOfAnAppHasItsReason(t *testing.T) {
	t.Parallel()
	r := runner(t)
	for _, c := range []struct{ word, want string }{
		{"exit=0", "exit code 0"}, {"exit=7", "exit code 7"},
	} {
		i, out := start(t, r, me(t, "say=hello", "moan=oh", c.word))
		if got := done(t, i).String(); got != c.want {
			t.Errorf("%s: %s", c.word, got)
		}
		if got := out.all(); !slices.Contains(got, "out: hello") || !slices.Contains(got, "err: oh") || len(got) != 2 {
			t.Errorf("%s: it said %q", c.word, got)
		}
	}
	i, out := start(t, r, me(t, "say=up", "wait"))
	out.until(t, "out: up")
	if err := syscall.Kill(i.Record().PID, syscall.SIGSEGV); err != nil {
		t.Fatal(err)
	}
	if e := done(t, i); e.Signal != syscall.SIGSEGV && e.Code != 2 { // Go answers it with a trace and code 2
		t.Errorf("%v", e)
	}
	left, err := os.ReadDir(r.opt.Dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the folder of pipes: %v, %v", left, err)
	}
}

func TestA05_AnAppThatIgnoresTermIsKilledWithItsGroup(t *testing.T) {
	t.Parallel()
	r := runner(t)
	self := me(t).Command[0]
	a := &plan.App{Name: "web", Command: []string{"/bin/sh", "-c", `trap "" TERM; "$0" app deaf say=one wait & "$0" app deaf say=two wait & echo up; wait`, self}}
	i, out := start(t, r, a)
	for _, l := range []string{"out: one", "out: two", "out: up"} {
		out.until(t, l)
	}
	rest := i.(*instance).rest()
	if len(rest) != 3 {
		t.Fatalf("its processes: %v", rest)
	}
	if e := stop(t, i, plan.AppStop{Signal: "TERM", Timeout: 100 * time.Millisecond}); e.Signal != syscall.SIGKILL || e.OOM {
		t.Errorf("it ended with %v", e)
	}
	for _, p := range rest {
		if alive(p.pid) {
			t.Errorf("process %d is alive", p.pid)
		}
	}
}

func TestWhatAnAppLeavesBehindIsEnded(t *testing.T) {
	t.Parallel()
	r := runner(t)
	self := me(t).Command[0]
	i, out := start(t, r, &plan.App{Name: "web", Command: []string{"/bin/sh", "-c", `"$0" app deaf say=rest wait & read x </dev/null; sleep 1; exit 3`, self}})
	out.until(t, "out: rest")
	rest := i.(*instance).rest()
	if e := done(t, i); e.Code != 3 {
		t.Errorf("%v", e)
	}
	for _, p := range rest {
		if alive(p.pid) {
			t.Errorf("process %d is alive", p.pid)
		}
	}
}

func TestA07_AnAppIsFoundAgainAndNothingItSaidIsLost(t *testing.T) {
	t.Parallel()
	r := runner(t)
	i, out := start(t, r, me(t, "tick"))
	out.until(t, "out: tick 20")
	i.Leave()
	first := out.all()
	later := New(r.opt)
	second := newOutput()
	found, err := later.Adopt(t.Context(), i.Record(), second)
	if err != nil {
		t.Fatal(err)
	}
	second.until(t, fmt.Sprintf("out: tick %d", len(first)+20))
	if got, want := found.Record(), i.Record(); got.PID != want.PID || !got.Started.Equal(want.Started) {
		t.Errorf("found %+v, want %+v", got, want)
	}
	stop(t, found, plan.AppStop{Signal: "TERM", Timeout: patience})
	if e := found.Exit(); e.String() != "unknown (adopted)" {
		t.Errorf("%v", e)
	}
	if whole := strings.Join(append(first, second.all()...), "\n"); !inOrder(whole) {
		t.Errorf("lines are missing:\n%s", whole)
	}
}

// inOrder reports whether the ticks in text are without a gap.
func inOrder(text string) bool {
	for n, line := range strings.Split(text, "\n") {
		if line != fmt.Sprintf("out: tick %d", n) {
			return false
		}
	}
	return true
}

func TestA07_WhatHasEndedIsNotFound(t *testing.T) {
	t.Parallel()
	r := runner(t)
	i, _ := start(t, r, me(t, "exit=0"))
	done(t, i)
	if _, err := New(r.opt).Adopt(t.Context(), i.Record(), newOutput()); !errors.Is(err, run.ErrGone) {
		t.Errorf("adopt: %v", err)
	}
}
