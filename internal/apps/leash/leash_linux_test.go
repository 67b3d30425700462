package leash

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain is also the leash of these tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 4 && os.Args[1] == "leash" {
		os.Exit(Become(os.Args[3], os.Args[4:]))
	}
	os.Exit(m.Run())
}

// run starts a line for a shell, and returns what it says line by line.
func run(t *testing.T, line string) (*Leash, *bufio.Reader) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	l, err := Start(&Spec{Launcher: "/proc/self/exe", Args: []string{"leash"}, Path: "/bin/sh", Argv: []string{"sh", "-c", line}, Env: os.Environ(), Out: w, Err: w})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Stop(Kill)
		select {
		case <-l.Done():
		case <-time.After(5 * time.Second): // what it was to end may live; the test has failed
			_ = syscall.Kill(l.PID, syscall.SIGKILL)
			_ = syscall.Kill(l.Keeper, syscall.SIGKILL)
		}
	})
	return l, bufio.NewReader(r)
}

func line(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	s, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

// over waits for the end, and for the end of the output: nobody holds it any more.
func over(t *testing.T, l *Leash, r *bufio.Reader) (Exit, string) {
	t.Helper()
	select {
	case <-l.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("it has not ended")
	}
	heard := make(chan string, 1)
	go func() {
		rest, _ := io.ReadAll(r)
		heard <- string(rest)
	}()
	select {
	case rest := <-heard:
		return l.Exit(), rest
	case <-time.After(10 * time.Second):
		t.Fatal("somebody still has its output")
		return Exit{}, ""
	}
}

func alive(t *testing.T, pid string) bool {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	_, runs := parentOf(pid)
	return syscall.Kill(n, 0) == nil && runs
}

func TestA18_TheEndOfAProgramIsTold(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{"exit 0": "exit code 0", "exit 3": "exit code 3", "kill -9 $$": "signal 9 (killed)", "kill -INT $$": "signal 2 (interrupt)"} {
		l, r := run(t, line)
		if e, _ := over(t, l, r); e.String() != want || e.OK() != (line == "exit 0") {
			t.Errorf("%s: %v, want %s", line, e, want)
		}
	}
	_, err := Start(&Spec{Launcher: "/proc/self/exe", Args: []string{"leash"}, Path: "/no/such/program", Argv: []string{"x"}, Out: os.Stdout, Err: os.Stderr})
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a program that is not there: %v", err)
	}
}

// family starts one in a session of its own and one without a parent, says their pids, and waits.
const family = `setsid sh -c 'echo $$; exec sleep 1001'; (sh -c 'echo $$; exec sleep 1002' &) ; `

func TestA18_AllEndsWithWhoHoldsTheLeash(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Leash){
		"the other end is gone": func(l *Leash) { _ = l.link.Close() },
		"TERM":                  func(l *Leash) { l.Stop(Term) },
		"KILL":                  func(l *Leash) { l.Stop(Kill) },
		"nothing helps":         func(l *Leash) { l.Stop(Term); l.Stop(Kill) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := `trap "" HUP; `
			if name == "nothing helps" {
				first = `trap "" HUP TERM INT; `
			}
			l, r := run(t, first+strings.Replace(family, "1001';", "1001' &", 1)+"sleep 1003 & wait; wait")
			a, b := line(t, r), line(t, r)
			if !alive(t, a) || !alive(t, b) {
				t.Fatal("they do not run")
			}
			end(l)
			if e, _ := over(t, l, r); e.OK() {
				t.Errorf("it ended with %v", e)
			}
			if alive(t, a) || alive(t, b) {
				t.Error("somebody is left")
			}
		})
	}
}

func TestA18_WhatAProgramLeavesBehindEndsToo(t *testing.T) {
	t.Parallel()
	l, r := run(t, `sleep 1004 & echo $!; exit 5`)
	pid := line(t, r)
	if e, _ := over(t, l, r); e.Code != 5 {
		t.Errorf("%v, want exit code 5", e)
	}
	if alive(t, pid) {
		t.Error("it is still there")
	}
}

func TestA18_AProgramThatTheTerminalToldIsNotToldTwice(t *testing.T) {
	t.Parallel()
	l, r := run(t, `trap 'echo told twice' TERM; echo on; sleep 0.3; exit 0`)
	line(t, r)
	l.Stop(Expect)
	if e, said := over(t, l, r); !e.OK() || said != "" {
		t.Errorf("%v %q", e, said)
	}
	l, r = run(t, `echo on; exec sleep 1005`) // one that does not listen is
	line(t, r)
	begun := time.Now()
	l.Stop(Expect)
	if e, _ := over(t, l, r); e.Signal != syscall.SIGTERM || time.Since(begun) < Natural {
		t.Errorf("%v after %v", e, time.Since(begun))
	}
}

func TestA18_AProgramThatWasStoppedEnds(t *testing.T) {
	t.Parallel()
	l, r := run(t, `echo on; kill -STOP $$`)
	line(t, r)
	l.Stop(Term)
	if e, _ := over(t, l, r); e.Signal != syscall.SIGTERM {
		t.Errorf("%v", e)
	}
}

func TestA18_ALeashThatIsKilledTakesTheProgramAlong(t *testing.T) {
	t.Parallel()
	l, r := run(t, `echo on; exec sleep 1006`)
	line(t, r)
	if err := syscall.Kill(l.Keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e, _ := over(t, l, r); !e.Lost {
		t.Errorf("%v", e)
	}
}
