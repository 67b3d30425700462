package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
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

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/api"
)

// TestChildHolder is no test: it is a process that holds a port, or talks to one that does. QM_HOLDER says which, and
// where. It prints its pid.
func TestChildHolder(t *testing.T) {
	mode, addr, _ := strings.Cut(os.Getenv("QM_HOLDER"), " ")
	switch mode {
	case "":
		t.Skip("runs as a child of other tests")
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	case "client":
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(os.Getpid(), c.LocalAddr())
		_, _ = io.Copy(io.Discard, c)
		select {}
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		if mode != "reuse" {
			return nil
		}
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	l, err := lc.Listen(t.Context(), "tcp", addr)
	for mode == "waiting" && err != nil { // for its turn
		<-time.After(time.Millisecond)
		l, err = lc.Listen(t.Context(), "tcp", addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(os.Getpid(), l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(c, c) }()
	}
}

// holderOf starts one, as the user given, and waits until it says that it is ready.
func holderOf(t *testing.T, mode string, port, uid int) *exec.Cmd {
	t.Helper()
	self, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3", "-test.run=^TestChildHolder$") // another user may not read it where it lies
	cmd.ExtraFiles, cmd.Dir = []*os.File{self}, "/"
	cmd.Env = append(os.Environ(), fmt.Sprintf("QM_HOLDER=%s 127.0.0.1:%d", mode, port), "QM_CHILD_LISTEN=-")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if mode == "waiting" {
		return cmd
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, strconv.Itoa(cmd.Process.Pid)+" ") {
		t.Fatalf("the child said %q, %v", line, err)
	}
	return cmd
}

// runs reports whether a process runs; one that nobody has waited for does not.
func runs(cmd *exec.Cmd) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
	return err == nil && strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[0] != "Z"
}

// free runs `ports free`, and demands the exit code and the words.
func free(t *testing.T, code int, args []string, words ...string) string {
	t.Helper()
	out, got := cli(t, append([]string{"ports", "free", "--socket", "/nowhere/admin.sock"}, args...)...)
	if got != code {
		t.Errorf("ports free %v: exit %d, want %d\n%s", args, got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("ports free %v does not say %q:\n%s", args, w, out)
		}
	}
	return out
}

func TestP10_PortsFreeEndsTheHolderAndNoClient(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	port := strconv.Itoa(p)
	free(t, 0, []string{port}, "port "+port+" is free: nobody listens on it")
	cmd := holderOf(t, "echo", p, 0)
	client := holderOf(t, "client", p, 0)
	is := fmt.Sprintf("(pid %d", cmd.Process.Pid)

	free(t, 2, []string{port}, "127.0.0.1:"+port+" is held by ", is, "not a terminal", "--yes")
	free(t, 2, []string{port, "--json"}, "--yes")
	if !runs(cmd) {
		t.Fatal("the holder was ended without a word")
	}
	free(t, 0, []string{port, "--yes"}, is, "asked ", " to end (TERM)", "port "+port+" is free")
	_ = cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGTERM {
		t.Errorf("the holder ended with %v", cmd.ProcessState)
	}
	if !runs(client) {
		t.Error("the client was ended")
	}
	// A client alone is in nobody's way and holds nothing.
	free(t, 0, []string{port, "--yes"}, "is free")
	if !runs(client) {
		t.Error("the client was ended")
	}
}

func TestP10_PortsFreeKillsWhoDoesNotObey(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	cmd := holderOf(t, "stubborn", p, 0)
	out := free(t, 0, []string{strconv.Itoa(p), "--yes", "--json"})
	var r freed
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !r.Free || r.Port != p || r.Error != "" || len(r.Holders) != 1 || r.Holders[0].Holder.PID != cmd.Process.Pid ||
		!slices.Equal(r.Ended, []freeEnded{{cmd.Process.Pid, "KILL"}}) {
		t.Errorf("result %s", out)
	}
	if runs(cmd) {
		t.Error("the holder runs")
	}
}

func TestP10_PortsFreeAsksAtATerminal(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	cmd := holderOf(t, "echo", p, 0)
	for answer, code := range map[string]int{"n": 1, "": 1} {
		if out, got := atTerminal(t, answer, "ports", "free", strconv.Itoa(p)); got != code || !strings.Contains(out, "end it? [y/N]") || !strings.Contains(out, "nothing was ended") {
			t.Errorf("answer %q: exit %d\n%s", answer, got, out)
		}
		if !runs(cmd) {
			t.Fatal("the holder was ended")
		}
	}
	if out, code := atTerminal(t, "y", "ports", "free", strconv.Itoa(p)); code != 0 || runs(cmd) {
		t.Errorf("answer y: exit %d, the holder runs: %v\n%s", code, runs(cmd), out)
	}
}

// atTerminal runs a verb at a terminal, and answers when it is asked.
func atTerminal(t *testing.T, answer string, args ...string) (string, int) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("LOUD SKIP: no terminals here:", err)
	}
	defer ours.Close()
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("LOUD SKIP: no terminals here:", err)
	}
	defer theirs.Close()
	said := &lockedBuffer{}
	cmd := exec.Command(binary, append(args, "--socket", "/nowhere/admin.sock")...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "it asks", func() bool { return strings.Contains(said.String(), "[y/N]") })
	if _, err := ours.WriteString(answer + "\n"); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return said.String(), cmd.ProcessState.ExitCode()
}

func TestP10_PortsFreeLeavesOtherUsersAlone(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("LOUD SKIP: needs root to become another user")
	}
	p := freePort(t)
	port := strconv.Itoa(p)
	cmd := holderOf(t, "echo", p, 65534)
	free(t, 1, []string{port, "--yes"}, "is not ended: it belongs to user nobody", "or add --force")
	if !runs(cmd) {
		t.Fatal("another user's process was ended")
	}
	free(t, 0, []string{port, "--yes", "--force"}, "port "+port+" is free")

	// The other way round, without the right: told so, and nobody is ended.
	root := holderOf(t, "echo", p, 0)
	copied := filepath.Join(t.TempDir(), "quaymaster")
	copyFile(t, binary, copied)
	for dir := filepath.Dir(copied); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, flags := range [][]string{{"--yes"}, {"--yes", "--force"}} {
		nobody := exec.Command(copied, append([]string{"ports", "free", port, "--socket", "/nowhere/admin.sock"}, flags...)...)
		nobody.Dir, nobody.SysProcAttr = "/", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := nobody.CombinedOutput()
		if nobody.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "run as root") {
			t.Errorf("%v: exit %d\n%s", flags, nobody.ProcessState.ExitCode(), out)
		}
	}
	if !runs(root) {
		t.Error("it was ended")
	}
}

func TestP10_PortsFreeSaysThatItIsHeldAgain(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	cmd := holderOf(t, "echo", p, 0)
	next := holderOf(t, "waiting", p, 0)
	out, code := cli(t, "ports", "free", strconv.Itoa(p), "--yes", "--socket", "/nowhere/admin.sock")
	if code == 0 && runs(next) { // the bind came first: the port was free
		return
	}
	if code != 1 || !strings.Contains(out, "is held again, by") || !strings.Contains(out, fmt.Sprintf("(pid %d", next.Process.Pid)) {
		t.Errorf("exit %d\n%s", code, out)
	}
	if runs(cmd) || !runs(next) {
		t.Errorf("the first runs: %v, the next: %v", runs(cmd), runs(next))
	}
}

func TestP10_PortsFreeLeavesTheDaemonToItsConfiguration(t *testing.T) {
	t.Parallel()
	p, m := freePort(t), freePort(t)
	a := httpTarget(t, "a", nil)
	q := start(t, fmt.Sprintf("metrics: {address: \"127.0.0.1:%d\"}\nroutes:\n%s%s", m, route("one", p, "a.test", a), route("two", p, "b.test", a)))
	pid := fmt.Sprintf("(pid %d)", q.cmd.Process.Pid)
	for _, force := range [][]string{nil, {"--force"}} {
		out, code := q.cli(append([]string{"ports", "free", strconv.Itoa(p), "--yes"}, force...)...)
		if code != 1 || !strings.Contains(out, "held by quaymaster itself "+pid+" for one, two") || !strings.Contains(out, "quaymaster reload") {
			t.Errorf("exit %d\n%s", code, out)
		}
		out, code = q.cli(append([]string{"ports", "free", strconv.Itoa(m), "--yes"}, force...)...)
		if code != 1 || !strings.Contains(out, "for metrics; change metrics.address") {
			t.Errorf("exit %d\n%s", code, out)
		}
		// One whose socket is not known is still known by its program.
		free(t, 1, append([]string{strconv.Itoa(p), "--yes"}, force...), "held by a quaymaster "+pid, "take the port out of its configuration")
	}
	mustFetch(t, p, "a.test", "/", "a")
}

func TestP10_PortsFreeNamesTheCommandThatStopsAContainer(t *testing.T) {
	p := freePort(t)
	podman(t, p)
	for _, flags := range [][]string{{"--yes"}, {"--yes", "--force"}} {
		free(t, 1, append([]string{strconv.Itoa(p)}, flags...), "is not ended", `stop it with "podman stop db"`)
	}
	if got, code := cli(t, "ports", "who", strconv.Itoa(p)); code != 0 {
		t.Errorf("nobody holds it any more: %s", got)
	}
}

// port1 is one TCP route on a port with a policy.
func port1(p int, policy, target string) string {
	return fmt.Sprintf("routes:\n  - {name: a, match: {ports: [{port: \"127.0.0.1:%d\", %s}], domains: [a.test]}, action: {targets: [%q]}}\n", p, policy, target)
}

func (q *qm) wantedAt(p int) *api.Port {
	q.t.Helper()
	var list []api.Port
	q.get("/v1/ports", &list)
	for i := range list {
		if list[i].Wanted == fmt.Sprintf("127.0.0.1:%d", p) {
			return &list[i]
		}
	}
	return &api.Port{}
}

func TestP11_TakeOverOfTheRealDaemon(t *testing.T) {
	t.Parallel()
	a := httpTarget(t, "a", nil)
	t.Run("never, and own, leave a foreign process alone", func(t *testing.T) {
		for _, policy := range []string{"on_busy: retry", "take_over: never", "take_over: own"} {
			p := freePort(t)
			cmd := holderOf(t, "echo", p, 0)
			q := start(t, port1(p, policy, a))
			series := fmt.Sprintf(`quaymaster_port_bind_failures_total{kind="in_use",port="127.0.0.1:%d"}`, p)
			q.until("three attempts", func() bool { return q.metric(series) >= 3 })
			row := q.wantedAt(p)
			if row.State != "retrying" || !runs(cmd) || strings.Contains(row.Error, "quaymaster did not start it") != (policy == "take_over: own") {
				t.Errorf("%s: the holder runs: %v, %+v", policy, runs(cmd), row)
			}
		}
	})
	t.Run("any, at start and at a reload", func(t *testing.T) {
		p, r := freePort(t), freePort(t)
		first, second := holderOf(t, "echo", p, 0), holderOf(t, "echo", r, 0)
		q := start(t, "port_policy: {take_over: any}\n"+port1(p, "on_busy: retry", a))
		q.until("it is bound", func() bool { return q.wantedAt(p).State == "bound" })
		mustFetch(t, p, "a.test", "/", "a")
		until(t, "the holder's end", func() bool { return !runs(first) })
		q.write(port1(r, "take_over: any", a))
		q.until("a reload is taken", func() bool { // the first may be refused, when the holder takes its time
			_, code := q.cli("reload")
			return code == 0
		})
		mustFetch(t, r, "a.test", "/", "a")
		until(t, "the holder's end", func() bool { return !runs(second) })
		for port, cmd := range map[int]*exec.Cmd{p: first, r: second} {
			is := fmt.Sprintf("(pid %d,", cmd.Process.Pid)
			if out, _ := q.cli("ports", "history", strconv.Itoa(port)); !strings.Contains(out, "take_over: asked to end (TERM): ") || !strings.Contains(out, is) {
				t.Errorf("history of %d:\n%s", port, out)
			}
			if log := q.log.String(); !strings.Contains(log, "holder told to end") || !strings.Contains(log, is) {
				t.Errorf("the log does not name %s", is)
			}
		}
	})
	t.Run("any, of another user", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("LOUD SKIP: needs root to become another user")
		}
		p := freePort(t)
		cmd := holderOf(t, "echo", p, 65534)
		w := prepare(t, port1(p, "take_over: any, on_busy: fail", a))
		w.run()
		if code := w.wait(20 * time.Second); code != 3 || !strings.Contains(w.log.String(), "it belongs to user nobody") || !runs(cmd) {
			t.Errorf("exit %d, the holder runs: %v\n%s", code, runs(cmd), w.log)
		}
	})
}

func TestP09_ABusyPortCostsUnderOnePercent(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	holderOf(t, "echo", p, 0)
	q := start(t, port1(p, "take_over: own", httpTarget(t, "a", nil)))
	series := fmt.Sprintf(`quaymaster_port_bind_failures_total{kind="in_use",port="127.0.0.1:%d"}`, p)
	q.until("the pauses have grown", func() bool { return q.metric(series) >= 5 })
	if row := q.wantedAt(p); row.Holder == nil || row.NextTry == nil || time.Until(*row.NextTry) < 2*time.Second {
		t.Errorf("after five attempts: %+v", row)
	}
	before := cpu(t, q.cmd.Process.Pid)
	<-time.After(10 * time.Second) // the promise is about time
	if used := cpu(t, q.cmd.Process.Pid) - before; used > 100*time.Millisecond {
		t.Errorf("%v of CPU in 10 s", used)
	}
	if n := q.metric(series); n > 8 {
		t.Errorf("%v attempts", n)
	}
}

func TestP25_OnlyOursShareAPortAndOnlyByChoice(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := start(t, port1(p, "reuse_port: true", httpTarget(t, "one", nil)))
	other := start(t, port1(p, "reuse_port: true", httpTarget(t, "two", nil)))
	for _, d := range []*qm{q, other} {
		if row := d.wantedAt(p); row.State != "bound" {
			t.Errorf("%+v", row)
		}
	}
	seen := map[string]bool{}
	until(t, "both answer", func() bool {
		if status, body, err := fetch(p, "a.test", "/"); err == nil && status == 200 {
			seen[strings.Fields(body)[0]] = true
		}
		return seen["one"] && seen["two"]
	})
	// One of ours that does not choose to is refused.
	w := prepare(t, port1(p, "on_busy: fail", httpTarget(t, "three", nil)))
	w.run()
	if code := w.wait(20 * time.Second); code != 3 || !strings.Contains(w.log.String(), "held by another quaymaster") {
		t.Errorf("without reuse_port: exit %d\n%s", code, w.log)
	}
	// A foreign holder is an error, even if it shares; and no port is shared with it by a reload.
	r := freePort(t)
	cmd := holderOf(t, "reuse", r, 0)
	q.write(port1(p, "reuse_port: true", "127.0.0.1:9") + strings.TrimPrefix(port1(r, "reuse_port: true", "127.0.0.1:9"), "routes:\n"))
	q.write(strings.Replace(readFile(t, q.file), "name: a,", "name: b,", 1)[len(fmt.Sprintf("state_dir: %s/state\nadmin: {socket: %s}\n", q.dir, q.sock)):])
	if out, code := q.cli("reload"); code != 1 || !strings.Contains(out, fmt.Sprintf("(pid %d,", cmd.Process.Pid)) {
		t.Errorf("a foreign holder: exit %d\n%s", code, out)
	}
	// Either may leave, and the other answers alone.
	q.signal(syscall.SIGTERM)
	q.wait(20 * time.Second)
	for range 10 {
		mustFetch(t, p, "a.test", "/", "two")
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
