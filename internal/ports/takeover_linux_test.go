package ports

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// patience is for a slow machine.
const patience = 30 * time.Second

// childHolds is a process that others want to end. It prints its pid and what it listens on.
func childHolds(mode, addr string) {
	asked := make(chan os.Signal, 1)
	switch mode {
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	case "letgo":
		signal.Notify(asked, syscall.SIGTERM)
	case "orphan": // ends, and leaves an echo behind
		childLeaves("echo", addr)
		return
	}
	l, err := net.Listen("tcp", addr)
	for mode == "waiting" && err != nil { // for its turn
		<-time.After(time.Millisecond)
		l, err = net.Listen("tcp", addr)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(os.Getpid(), l.Addr())
	go func() {
		<-asked
		l.Close()
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			select {} // it let go, and serves on
		}
		go func() {
			_, _ = io.Copy(c, c)
			c.Close()
		}()
	}
}

// childLeaves starts a process that outlives us.
func childLeaves(mode, addr string) {
	cmd := exec.Command("/proc/self/exe", addr)
	cmd.Env = append(os.Environ(), "QM_PORTS_CHILD="+mode)
	cmd.Stdout = os.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
	}
}

// A foreigner holds a port, or not any more.
type foreigner struct {
	addr plan.Addr
	pid  int // 0: nobody
}

// holds starts a child that holds 127.0.0.1 and a port of its own, or addr.
func holds(t *testing.T, mode string, uid uint32, addr string) foreigner {
	t.Helper()
	var said []string
	if uid != 0 {
		_, said = childAs(t, uid, mode, 1, addr)
	} else {
		_, said = child(t, mode, 1, addr)
	}
	pid, at, _ := strings.Cut(said[0], " ")
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatalf("the child said %q", said)
	}
	t.Cleanup(func() { // an orphan is nobody's child
		if lives(n) && mode == "orphan" {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	})
	a := netip.MustParseAddrPort(at)
	return foreigner{plan.TCPAddr(a.Addr(), a.Port()), n}
}

// lives reports whether a process of that pid runs; one that nobody has waited for does not.
func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	field := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return field[0] != "Z"
}

// A client talks to an echo.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func connect(t *testing.T, a plan.Addr) *client {
	t.Helper()
	conn, err := net.DialTimeout("tcp", a.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &client{t, conn, bufio.NewReader(conn)}
	c.served("before")
	return c
}

// served demands an echo.
func (c *client) served(when string) {
	c.t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(c, when)
	if line, err := c.r.ReadString('\n'); line != when+"\n" {
		c.t.Errorf("%s: a client of the holder got %q, %v", when, line, err)
	}
}

// over demands that the server has gone.
func (c *client) over() {
	c.t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(c, "still there?")
	if line, err := c.r.ReadString('\n'); err == nil || os.IsTimeout(err) {
		c.t.Errorf("a client of the holder that was ended got %q, %v", line, err)
	}
}

// timeWait is an address with a connection in TIME_WAIT on the side of the port, and nobody who listens.
func timeWait(t *testing.T) plan.Addr {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	_, _ = io.Copy(io.Discard, c)
	c.Close()
	a := l.Addr().(*net.TCPAddr).AddrPort()
	table, _ := os.ReadFile("/proc/net/tcp")
	if !strings.Contains(string(table), fmt.Sprintf("0100007F:%04X ", a.Port())) {
		t.Fatal("nothing is in TIME_WAIT")
	}
	return plan.TCPAddr(a.Addr(), a.Port())
}

// policies is a plan of one port.
func policies(a plan.Addr, onBusy, takeOver string) *plan.Plan {
	p := wants(a)
	p.Ports[0].Policy = plan.PortPolicy{OnBusy: onBusy, TakeOver: takeOver}
	return p
}

// evictions lists the signals that were sent, as the events tell.
func (h *harbour) evictions(a plan.Addr) []string {
	var out []string
	for _, e := range h.History(a.Port) {
		if e.Signal != "" {
			out = append(out, e.Signal)
		}
	}
	return out
}

// attempts waits until so many attempts at a have failed.
func (h *harbour) attempts(a plan.Addr, n float64) {
	h.t.Helper()
	await(h.t, fmt.Sprintf("%v failed attempts", n), func() bool {
		return testutil.ToFloat64(h.metrics.failures.WithLabelValues(a.String(), "in_use")) >= n
	})
}

func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !f(); {
		if time.Now().After(limit) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// Every combination of on_busy, take_over and holder, each with a client connected to the holder.
func TestP11_OnBusyTakeOverAndWhoHoldsThePort(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("LOUD SKIP: needs root to become another user and to run containers")
	}
	box := newPodman(t)
	containers := map[string]foreigner{
		"a container on the host's network":   box.start("--network", "host"),
		"a container with the port published": box.start(),
	}
	type kind struct {
		name string
		make func(t *testing.T) foreigner
		own  bool
		by   map[string]bool // take_over values that get the port
	}
	kinds := []kind{
		{"own orphan", func(t *testing.T) foreigner { return holds(t, "orphan", 0, "127.0.0.1:0") }, true, map[string]bool{"own": true, "any": true}},
		{"same user", func(t *testing.T) foreigner { return holds(t, "echo", 0, "127.0.0.1:0") }, false, map[string]bool{"any": true}},
		{"other user", func(t *testing.T) foreigner { return holds(t, "echo", 65534, "127.0.0.1:0") }, false, nil},
		{"TIME_WAIT only", func(t *testing.T) foreigner { return foreigner{addr: timeWait(t)} }, false, map[string]bool{"never": true, "own": true, "any": true}},
	}
	for name, f := range containers {
		kinds = append(kinds, kind{name, func(*testing.T) foreigner { return f }, false, nil})
	}
	for _, k := range kinds {
		for _, onBusy := range []string{"retry", "fail"} {
			for _, takeOver := range []string{"never", "own", "any"} {
				t.Run(k.name+"/"+onBusy+"/"+takeOver, func(t *testing.T) {
					f := k.make(t)
					started, _ := holder.Process(f.pid)
					h := open(t, Options{Own: func(pid int, at time.Time) bool {
						return k.own && pid == f.pid && at.Equal(started.Started)
					}})
					meets(t, h, f, onBusy, takeOver, k.by[takeOver])
				})
			}
		}
	}
}

// meets starts with one port that f holds, and checks what becomes of both.
func meets(t *testing.T, h *harbour, f foreigner, onBusy, takeOver string, gets bool) {
	t.Helper()
	var c *client
	if f.pid > 0 {
		c = connect(t, f.addr)
	}
	err := h.try(policies(f.addr, onBusy, takeOver))
	if gets {
		if err != nil {
			t.Fatalf("start: %v", err)
		}
		await(t, "the port is bound", func() bool { return h.of(f.addr).State == Bound })
		says(t, f.addr.String(), f.addr)
		want := 1
		if f.pid == 0 {
			want = 0
		} else {
			await(t, "the holder's end", func() bool { return !lives(f.pid) })
			c.over()
		}
		if got := h.evictions(f.addr); len(got) != want || want > 0 && got[0] != "TERM" {
			t.Errorf("signals %v", got)
		}
		return
	}
	var bind *BindError
	switch onBusy {
	case "fail":
		if !errors.As(err, &bind) || bind.Kind != InUse || bind.Holder == nil {
			t.Fatalf("start: %v", err)
		}
	default:
		if err != nil {
			t.Fatalf("start: %v", err)
		}
		h.attempts(f.addr, 2)
		if s := h.of(f.addr); s.State != Retrying || s.Holder == nil || strings.Contains(s.Error, "is not ended") != (takeOver != "never") {
			t.Errorf("status %+v", s)
		} else {
			t.Log(s.Error)
		}
	}
	if !lives(f.pid) {
		t.Error("the holder was ended")
	}
	c.served("after")
	if got := h.evictions(f.addr); len(got) > 0 {
		t.Errorf("signals %v", got)
	}
}

// podman is one with storage, network and settings of its own.
type podman struct {
	t   *testing.T
	dir string
}

const podmanConf = `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "%[1]s/net"
`

// podmanNetwork has a bridge and addresses that belong to this process: other tests, and what a killed one left, have others.
const podmanNetwork = `{"name": "take", "id": "%064x", "driver": "bridge", "network_interface": "qmtake%[1]d",
"subnets": [{"subnet": "10.%[2]d.%[3]d.0/24", "gateway": "10.%[2]d.%[3]d.1"}], "ipam_options": {"driver": "host-local"}}`

// echoProgram is all that the image holds.
const echoProgram = `package main

import (
	"io"
	"net"
	"os"
)

func main() {
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go func() { io.Copy(c, c); c.Close() }()
	}
}
`

func newPodman(t *testing.T) *podman {
	t.Helper()
	for _, name := range []string{"podman", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("LOUD SKIP: %s is missing: apt-get install podman runc", name)
		}
	}
	dir, err := os.MkdirTemp("", "qm-podman-")
	if err != nil {
		t.Fatal(err)
	}
	p := &podman{t, dir}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name, text := range map[string]string{
		"containers.conf": fmt.Sprintf(podmanConf, dir), "main.go": echoProgram, "go.mod": "module echo\n",
		"Containerfile": "FROM scratch\nCOPY echo /echo\nENTRYPOINT [\"/echo\"]\n",
		"net/take.json": fmt.Sprintf(podmanNetwork, os.Getpid()%4096, 200+os.Getpid()%4096/256, os.Getpid()%256),
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", "echo", ".")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	p.run("build", "-q", "-t", "echo", dir)
	t.Cleanup(func() {
		p.run("rm", "-f", "-t", "0", "-a")
		p.run("network", "rm", "-f", "take")
	})
	return p
}

func (p *podman) run(args ...string) string {
	p.t.Helper()
	own := []string{"--root", p.dir + "/root", "--runroot", p.dir + "/run", "--storage-driver", "vfs"}
	cmd := exec.Command("podman", append(own, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+p.dir+"/containers.conf")
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// start runs an echo in a container, on the host's network or with its port published, and says who holds the port.
func (p *podman) start(network ...string) foreigner {
	p.t.Helper()
	a := loopback(freePort(p.t))
	args, inside := append([]string{"run", "-d", "--name", fmt.Sprintf("echo%d", a.Port)}, network...), a.String()
	if len(network) == 0 {
		args, inside = append(args, "--network", "take", "-p", a.String()+":7"), ":7"
	}
	p.run(append(args, "echo", inside)...)
	f := foreigner{addr: a}
	await(p.t, "the container listens", func() bool {
		found, err := Who("tcp", a.Port)
		if err != nil || len(found) == 0 {
			return false
		}
		f.pid = found[0].Pid
		c, err := net.Dial("tcp", a.String())
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		fmt.Fprintln(c, "x")
		line, _ := bufio.NewReader(c).ReadString('\n')
		return line == "x\n"
	})
	return f
}
