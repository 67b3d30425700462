package evict

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// TestMain lets the test binary be a process that holds a port: QM_EVICT_CHILD says which.
func TestMain(m *testing.M) {
	switch os.Getenv("QM_EVICT_CHILD") {
	case "":
		goleak.VerifyTestMain(m)
	case "polite":
		hold(os.Args[1])
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		hold(os.Args[1])
	case "fork":
		fork(os.Args[1])
	case "drain":
		drain(os.Args[1])
	case "runsv":
		cmd := exec.Command("/proc/self/exe", os.Args[1])
		cmd.Env, cmd.Stdout = append(os.Environ(), "QM_EVICT_CHILD=polite"), os.Stdout
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		_ = cmd.Run()
	case "heir":
		fmt.Println(os.Getpid())
		select {}
	case "client":
		c, err := net.Dial("tcp", os.Args[1])
		if err == nil {
			fmt.Println("connected")
			_, _ = io.Copy(io.Discard, c)
		}
		select {}
	case "free":
		childFree()
	}
}

// hold listens until it is ended, and keeps whoever connects.
func hold(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(l.Addr())
	for kept := []net.Conn(nil); len(kept) < 1000; {
		if c, err := l.Accept(); err == nil {
			kept = append(kept, c)
		}
	}
}

// drain closes its socket at TERM, and serves on.
func drain(addr string) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(l.Addr())
	<-asked
	l.Close()
	fmt.Println("drains")
	select {}
}

// fork is a listener whose child has the socket too and lives on.
func fork(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(l.Addr())
	heir := exec.Command("/proc/self/exe")
	heir.Env = append(os.Environ(), "QM_EVICT_CHILD=heir")
	heir.ExtraFiles, heir.Stdout = []*os.File{f}, os.Stdout
	if err := heir.Start(); err != nil {
		fmt.Println(err)
	}
	select {}
}

// childFree is a program that was started by the holder of a port, and wants to end it.
func childFree() {
	n, _ := strconv.Atoi(os.Args[1])
	found, err := holder.Everyone(at(uint16(n)))
	if err == nil {
		_, err = Begin(Rules{Force: true}, found, look(uint16(n)), time.Time{}, 0)
	}
	fmt.Println(err)
}

func at(port uint16) func(netip.AddrPort) bool {
	return func(a netip.AddrPort) bool { return a.Port() == port }
}

func look(port uint16) Look {
	return func() ([]holder.Holder, error) { return holder.Everyone(at(port)) }
}

// start runs this binary as mode and returns the lines it prints first.
func start(t *testing.T, mode string, lines int, edit func(*exec.Cmd), args ...string) (*exec.Cmd, []string) {
	t.Helper()
	self, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3", args...) // another user may not read the binary where it lies
	cmd.ExtraFiles, cmd.Dir = []*os.File{self}, "/"
	cmd.Env = append(os.Environ(), "QM_EVICT_CHILD="+mode)
	if edit != nil {
		edit(cmd)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	r := bufio.NewReader(out)
	var said []string
	for range lines {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%s said %q: %v", mode, line, err)
		}
		said = append(said, strings.TrimSpace(line))
	}
	return cmd, said
}

func never() bool { return false }

func portOf(t *testing.T, addr string) uint16 {
	t.Helper()
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return a.Port()
}

func found(t *testing.T, port uint16) []holder.Holder {
	t.Helper()
	list, err := look(port)()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// alive reports whether a process of that pid runs; one that nobody has waited for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	field := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return field[0] != "Z"
}

func TestP10_TermFirstAndTheClientLives(t *testing.T) {
	cmd, said := start(t, "polite", 1, nil, "127.0.0.1:0")
	client, _ := start(t, "client", 1, nil, said[0])
	port := portOf(t, said[0])
	a := plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), port)
	if err := Probe(a); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("the probe of a held port: %v", err)
	}
	holders := found(t, port)
	e, err := Begin(Rules{}, holders, look(port), time.Time{}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if p := e.Wait(t.Context(), never, func() { t.Error("killed") }); p != Gone {
		t.Errorf("phase %s", p)
	}
	_ = cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGTERM {
		t.Errorf("the holder ended with %v", ws)
	}
	if err := Probe(a); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if !alive(client.Process.Pid) {
		t.Error("the client was ended")
	}
	if len(e.Asked()) != 1 || e.Asked()[0].Pid != cmd.Process.Pid || len(e.Killed())+len(e.Left()) != 0 {
		t.Errorf("asked %v, killed %v, left %v", e.Asked(), e.Killed(), e.Left())
	}
}

func TestP10_KillWhenTheGraceIsOverAndNotBefore(t *testing.T) {
	cmd, said := start(t, "stubborn", 1, nil, "127.0.0.1:0")
	port := portOf(t, said[0])
	e, err := Begin(Rules{}, found(t, port), look(port), time.Time{}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if p := e.Wait(ctx, never, func() { t.Error("killed within the grace") }); p != Asked || !alive(cmd.Process.Pid) {
		t.Fatalf("phase %s within the grace, alive: %v", p, alive(cmd.Process.Pid))
	}
	if p := e.Step(time.Now().Add(2 * time.Hour)); p != Killed {
		t.Fatalf("phase %s after the grace", p)
	}
	if p := e.Wait(t.Context(), never, func() {}); p != Gone || len(e.Killed()) != 1 {
		t.Errorf("phase %s, killed %v", p, e.Killed())
	}
	_ = cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("the holder ended with %v", ws)
	}
}

// Whoever lets go of the port at TERM and finishes with its clients is not killed for the time that takes.
func TestP10_WhoLetsGoIsNotKilled(t *testing.T) {
	cmd, said := start(t, "drain", 1, nil, "127.0.0.1:0")
	port := portOf(t, said[0])
	e, err := Begin(Rules{}, found(t, port), look(port), time.Time{}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for end := time.Now().Add(20 * time.Second); len(found(t, port)) > 0; {
		if time.Now().After(end) {
			t.Fatal("it does not let go")
		}
	}
	if p := e.Step(time.Now()); p != Asked || len(e.Left()) != 1 {
		t.Errorf("phase %s, left %v", p, e.Left())
	}
	if p := e.Step(time.Now().Add(2 * time.Hour)); p != Gone || len(e.Killed()) != 0 || !alive(cmd.Process.Pid) {
		t.Errorf("when the grace was over: phase %s, killed %v", p, e.Killed())
	}
}

func TestP10_WhoWasAskedBeforeIsKilledAtOnce(t *testing.T) {
	_, said := start(t, "stubborn", 1, nil, "127.0.0.1:0")
	port := portOf(t, said[0])
	e, err := Begin(Rules{}, found(t, port), look(port), time.Now().Add(-time.Minute), 50*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if p := e.Step(time.Now()); p != Killed {
		t.Errorf("phase %s", p)
	}
	if p := e.Wait(t.Context(), never, func() {}); p != Gone {
		t.Errorf("phase %s", p)
	}
}

func TestP10_AllThatShareTheSocketEnd(t *testing.T) {
	_, said := start(t, "fork", 2, nil, "127.0.0.1:0")
	port := portOf(t, said[0])
	heir, _ := strconv.Atoi(said[1])
	holders := found(t, port)
	if len(holders) != 2 {
		t.Fatalf("holders %v", holders)
	}
	e, err := Begin(Rules{}, holders, look(port), time.Time{}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if p := e.Wait(t.Context(), never, func() {}); p != Gone || alive(heir) {
		t.Errorf("phase %s, the heir is alive: %v", p, alive(heir))
	}
	if err := Probe(plan.Addr{Port: port}); err != nil {
		t.Error(err)
	}
}

// One that may not be ended saves the others: the port would not be free without it.
func TestP10_NoneIsSignalledWhereOneMayNotBe(t *testing.T) {
	cmd, said := start(t, "fork", 2, nil, "127.0.0.1:0")
	port := portOf(t, said[0])
	heir, _ := strconv.Atoi(said[1])
	rules := Rules{OnlyOwn: true, Own: func(pid int, _ time.Time) bool { return pid == cmd.Process.Pid }}
	var no *Refusal
	if _, err := Begin(rules, found(t, port), look(port), time.Time{}, time.Hour); !errors.As(err, &no) || no.Holder.Pid != heir {
		t.Fatalf("refusal %v", err)
	}
	<-time.After(100 * time.Millisecond) // a signal would have come through
	if !alive(heir) || !alive(cmd.Process.Pid) {
		t.Error("one of them was ended")
	}
}

func TestP10_OnlyListenersAreSignalled(t *testing.T) {
	_, said := start(t, "polite", 1, nil, "127.0.0.1:0")
	client, _ := start(t, "client", 1, nil, said[0])
	port := portOf(t, said[0])
	for _, h := range found(t, port) {
		if h.Pid == client.Process.Pid {
			t.Error("the client is listed as a holder")
		}
	}
	// Even when it was taken for one: it does not listen when it comes to it.
	h, _ := holder.Process(client.Process.Pid)
	e, err := Begin(Rules{}, []holder.Holder{h}, look(port), time.Time{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.Step(time.Now()) != Gone || len(e.Asked()) != 0 {
		t.Errorf("asked %v", e.Asked())
	}
	<-time.After(100 * time.Millisecond)
	if !alive(client.Process.Pid) {
		t.Error("a client was ended")
	}
}

func TestP10_AnotherProcessOfThePidIsNotSignalled(t *testing.T) {
	t.Run("found to be younger", func(t *testing.T) {
		cmd, said := start(t, "polite", 1, nil, "127.0.0.1:0")
		port := portOf(t, said[0])
		holders := found(t, port)
		holders[0].Started = holders[0].Started.Add(-10 * time.Millisecond)
		e, err := Begin(Rules{}, holders, look(port), time.Time{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		<-time.After(100 * time.Millisecond)
		if len(e.Asked()) != 0 || !alive(cmd.Process.Pid) {
			t.Errorf("asked %v, alive: %v", e.Asked(), alive(cmd.Process.Pid))
		}
	})
	t.Run("between TERM and KILL", func(t *testing.T) {
		for range 50 { // somebody else may get the pid
			first, said := start(t, "polite", 1, nil, "127.0.0.1:0")
			pid, port := first.Process.Pid, portOf(t, said[0])
			e, err := Begin(Rules{}, found(t, port), look(port), time.Time{}, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			_ = first.Wait()
			if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0o600); err != nil {
				e.Close()
				t.Skip("LOUD SKIP: the kernel lets nobody choose a pid:", err)
			}
			second, _ := start(t, "polite", 1, nil, "127.0.0.1:0")
			if second.Process.Pid != pid {
				e.Close()
				continue
			}
			if err := e.signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			<-time.After(100 * time.Millisecond)
			if !alive(pid) {
				t.Error("the second process of the pid was killed")
			}
			e.Close()
			return
		}
		t.Error("no pid came twice in 50 attempts")
	})
}

func TestP10_NeverThoseWeDescendFrom(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // we are the holder, and the parent of who wants us gone
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	_, said := start(t, "free", 1, nil, strconv.Itoa(int(port)))
	if !strings.Contains(said[0], "is not ended: this program was started by it") {
		t.Errorf("said %q", said[0])
	}
	if no := (Rules{Force: true}).Judge(found(t, port)[0]); no == nil || no.Reason != "that is this program" {
		t.Errorf("ourselves: %v", no)
	}
}

func TestP10_AnotherUsersProcessNeedsForce(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("LOUD SKIP: needs root to start a process as another user")
	}
	cmd, said := start(t, "polite", 1, func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}, "127.0.0.1:0")
	port := portOf(t, said[0])
	var no *Refusal
	if _, err := Begin(Rules{}, found(t, port), look(port), time.Time{}, 0); !errors.As(err, &no) || !strings.Contains(no.Reason, "it belongs to user nobody") {
		t.Fatalf("refusal %v", err)
	}
	<-time.After(100 * time.Millisecond)
	if !alive(cmd.Process.Pid) {
		t.Fatal("it was ended")
	}
	e, err := Begin(Rules{Force: true}, found(t, port), look(port), time.Time{}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if p := e.Wait(t.Context(), never, func() {}); p != Gone {
		t.Errorf("with force: %s", p)
	}
}

func TestP10_WhoeverWouldComeBackIsLeftToItsKeeper(t *testing.T) {
	self, _ := holder.Process(os.Getpid())
	base := holder.Holder{Pid: 1 << 30, Started: time.Now(), UID: os.Geteuid(), User: "u", Command: "node server.js", Exe: "/usr/bin/node", Unit: self.Unit, Container: self.Container}
	mine := func(int, time.Time) bool { return true }
	for _, c := range []struct {
		name               string
		edit               func(*holder.Holder)
		plain, forced, own string // "" is allowed
	}{
		{"a process of ours", func(*holder.Holder) {}, "", "", ""},
		{"no pid", func(h *holder.Holder) { h.Pid = 0 }, "cannot be seen", "cannot be seen", "cannot be seen"},
		{"process 1", func(h *holder.Holder) { h.Pid = 1 }, "the system", "the system", "the system"},
		{"ourselves", func(h *holder.Holder) { h.Pid = os.Getpid() }, "this program", "this program", "this program"},
		{"our parent", func(h *holder.Holder) { h.Pid = os.Getppid() }, "started by it", "started by it", "started by it"},
		{"another user's", func(h *holder.Holder) { h.UID = 4242; h.User = "ann" }, "belongs to user ann", "", ""},
		{"a service", func(h *holder.Holder) { h.Unit = "nginx.service" }, "systemd runs it as nginx.service", "", ""},
		{"in a session", func(h *holder.Holder) { h.Unit = "user@1000.service" }, "", "", ""},
		{"in a container", func(h *holder.Holder) { h.Container, h.ContainerID = "web", "0123" }, "container web", "container web", ""},
		{"docker-proxy", func(h *holder.Holder) { h.Helper = "docker-proxy" }, "docker-proxy holds", "docker-proxy holds", "docker-proxy holds"},
		{"rootlessport", func(h *holder.Holder) { h.Helper = "rootlessport" }, "rootlessport holds", "rootlessport holds", "rootlessport holds"},
		{"conmon", func(h *holder.Holder) { h.Helper = "conmon" }, "conmon holds", "conmon holds", "conmon holds"},
		{"the manager of a session", func(h *holder.Holder) { h.Exe, h.Unit = "/usr/lib/systemd/systemd", "user@1000.service" }, "systemd holds", "systemd holds", "systemd holds"},
	} {
		for rule, want := range map[*Rules]string{{}: c.plain, {Force: true}: c.forced, {OnlyOwn: true, Own: mine}: c.own, {Own: mine}: c.own} {
			h := base
			c.edit(&h)
			no := rule.Judge(h)
			if want == "" && no != nil || want != "" && (no == nil || !strings.Contains(no.Reason, want)) {
				t.Errorf("%s, force %v, own %v: %v, want %q", c.name, rule.Force, rule.Own != nil, no, want)
			}
		}
	}
	foreign := Rules{OnlyOwn: true, Own: func(int, time.Time) bool { return false }}
	if no := foreign.Judge(base); no == nil || !strings.Contains(no.Error(), "quaymaster did not start it") {
		t.Errorf("a process that is not our own: %v", no)
	}
}

func TestP10_WhatASupervisorRunsNeedsForce(t *testing.T) {
	name := filepath.Join(t.TempDir(), "runsv")
	if err := os.Symlink(os.Args[0], name); err != nil {
		t.Fatal(err)
	}
	_, said := start(t, "runsv", 1, func(c *exec.Cmd) { c.Path = name }, "127.0.0.1:0")
	port := portOf(t, said[0])
	var no *Refusal
	if err := (Rules{}).All(found(t, port)); !errors.As(err, &no) || !strings.Contains(no.Reason, "runsv runs it") || !strings.Contains(no.Remedy, "sv stop") {
		t.Errorf("refusal %v", err)
	}
	if err := (Rules{Force: true}).All(found(t, port)); err != nil {
		t.Errorf("with force: %v", err)
	}
}

// Sockets in TIME_WAIT on the port, without a listener, are nobody's.
func TestP10_TimeWaitIsNoHolder(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s.Close() // first: TIME_WAIT is on the side of the port
	_, _ = io.Copy(io.Discard, c)
	c.Close()
	l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(strings.Split(string(table), "\n"), func(line string) bool {
		f := strings.Fields(line)
		return len(f) > 3 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && f[3] == "06"
	}) {
		t.Fatal("nothing is in TIME_WAIT")
	}
	if list := found(t, port); len(list) != 0 {
		t.Errorf("holders %v", list)
	}
	if err := Probe(plan.Addr{Port: port}); err != nil {
		t.Errorf("the probe: %v", err)
	}
}
