package ports

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
	"github.com/quaymaster/quaymaster/internal/systemd"
)

// childAs is child as another user, from a copy of the test binary that this user may read.
func childAs(t *testing.T, uid uint32, mode string, lines int, args ...string) (*exec.Cmd, []string) {
	t.Helper()
	f, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/fd/3", args...)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "QM_PORTS_CHILD="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	return cmd, readLines(t, out, lines)
}

func readLines(t *testing.T, r interface{ Read([]byte) (int, error) }, n int) []string {
	t.Helper()
	b := bufio.NewReader(r)
	var said []string
	for range n {
		line, err := b.ReadString('\n')
		if err != nil {
			t.Fatalf("child said %q: %v", line, err)
		}
		said = append(said, strings.TrimSpace(line))
	}
	return said
}

// childBind tries to start with one port and prints what became of it.
func childBind(addr string) {
	a, err := parseAddress(addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	ps := New(Options{Strict: true})
	_, err = ps.Prepare(context.Background(), wants(a))
	var bind *BindError
	if errors.As(err, &bind) {
		fmt.Printf("%s: %v\n", bind.Kind, bind)
		return
	}
	fmt.Println("no BindError:", err)
}

// childReuse listens with SO_REUSEPORT until it is killed.
func childReuse(addr string) {
	a, err := parseAddress(addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := listen.Bind(a, true); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("listening")
	select {}
}

func TestReusePortStillRefusesAForeignHolder(t *testing.T) {
	plain := func(a plan.Addr) *plan.Plan {
		p := wants(a)
		p.Ports[0].Policy = plan.PortPolicy{ReusePort: true, OnBusy: "fail"}
		return p
	}
	t.Run("another program", func(t *testing.T) {
		copied := filepath.Join(t.TempDir(), "intruder")
		b, err := os.ReadFile(os.Args[0])
		if err == nil {
			err = os.WriteFile(copied, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		h := open(t, Options{})
		a := loopback(freePort(t))
		cmd := exec.Command(copied, a.String())
		cmd.Env = append(os.Environ(), "QM_PORTS_CHILD=reuse")
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer kill(cmd)
		if said := readLines(t, out, 1); said[0] != "listening" {
			t.Fatalf("the intruder said %q", said)
		}
		var bind *BindError
		if err := h.try(plain(a)); !errors.As(err, &bind) || bind.Kind != InUse || bind.Holder == nil || bind.Holder.Pid != cmd.Process.Pid {
			t.Errorf("a port shared with another program: %v", err)
		}
		if err := h.try(plain(plan.Addr{Port: a.Port})); !errors.As(err, &bind) || bind.Kind != InUse {
			t.Errorf("a port that overlaps another program's: %v", err)
		}
	})
	t.Run("two of ours", func(t *testing.T) {
		h := open(t, Options{})
		a := loopback(freePort(t))
		if _, said := child(t, "reuse", 1, a.String()); said[0] != "listening" {
			t.Fatalf("the other said %q", said)
		}
		h.apply(plain(a))
		if s := h.of(a); s.State != Bound {
			t.Errorf("status %+v", s)
		}
		h.apply(wants(a)) // from now on alone
		if foreignCanShare(t, a) {
			t.Error("a socket without reuse_port can still be joined")
		}
	})
}

// childNoFile is a server that may have 40 descriptors. Every connection is kept until its client leaves.
func childNoFile() {
	unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 40, Max: 40})
	var dropped atomic.Int64
	var open sync.WaitGroup
	ps := New(Options{
		Serve: func(c net.Conn, _ *Listener) {
			open.Go(func() {
				defer c.Close()
				c.Write([]byte("hello\n"))
				c.Read(make([]byte, 1))
			})
		},
		Dropped: func(client netip.AddrPort, l *Listener) {
			if !client.IsValid() || l == nil {
				fmt.Println("a connection was dropped without a name")
			}
			dropped.Add(1)
		},
	})
	step, err := ps.Prepare(context.Background(), wants(mustAddr("127.0.0.1:0")))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	step.Commit()
	step.Retire()
	fmt.Println(ps.Status()[0].Address+":"+fmt.Sprint(ps.Status()[0].Port), "ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println(dropped.Load(), cpu().Milliseconds())
	}
}

func TestWithoutDescriptorsConnectionsAreClosedAndTheLoopDoesNotSpin(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "QM_PORTS_CHILD=nofile")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer kill(cmd)
	r := bufio.NewReader(out)
	said, _ := r.ReadString('\n')
	addr, _, ok := strings.Cut(strings.TrimSpace(said), " ")
	if !ok {
		t.Fatalf("child said %q", said)
	}
	numbers := func() (dropped, ms int) {
		fmt.Fprintln(in)
		if _, err := fmt.Fscanln(r, &dropped, &ms); err != nil {
			t.Fatal(err)
		}
		return dropped, ms
	}
	// 80 clients for fewer than 40 descriptors: some are served, every other is told at once that it is not.
	var live []net.Conn
	closed := 0
	for _, c := range dialMany(t, addr, 80) {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		switch n, err := c.Read(make([]byte, 10)); {
		case n > 0:
			live = append(live, c)
		case os.IsTimeout(err):
			t.Fatal("a client was left waiting")
		default:
			closed++
		}
	}
	if len(live) < 10 || closed < 40 {
		t.Errorf("%d served, %d closed", len(live), closed)
	}
	dropped, before := numbers()
	for end := time.Now().Add(5 * time.Second); dropped < closed && time.Now().Before(end); { // counted after the close
		dropped, before = numbers()
	}
	if dropped != closed {
		t.Errorf("%d clients saw a close, %d were counted", closed, dropped)
	}
	<-time.After(time.Second) // with nothing to do, at the limit
	if _, after := numbers(); after-before > 100 {
		t.Errorf("%d ms of CPU in a second of waiting at the limit", after-before)
	}
	for _, c := range live {
		c.Close()
	}
	limit := time.Now().Add(5 * time.Second)
	for {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, _ := c.Read(make([]byte, 10))
		c.Close()
		if n > 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatal("it does not recover")
		}
	}
}

// childAdopt is a daemon started by systemd with sockets. It applies three plans and prints what became of each.
func childAdopt() {
	var served sync.WaitGroup
	var inherited []listen.Inherited
	for _, s := range systemd.Sockets(os.LookupEnv, os.Getpid()) {
		inherited = append(inherited, listen.Inherited{Name: s.Name, FD: s.FD, Systemd: true})
	}
	ps := New(Options{Inherited: inherited, Serve: func(c net.Conn, l *Listener) {
		served.Go(func() { fmt.Fprintln(c, l.Want); c.Close() })
	}})
	addr := plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), 0)
	fmt.Sscan(os.Getenv("QM_BY_ADDR"), &addr.Port)
	named := plan.Addr{Name: "https"}
	apply := func(p *plan.Plan) {
		step, err := ps.Prepare(context.Background(), p)
		if err != nil {
			fmt.Println("refused:", err)
			return
		}
		step.Commit()
		step.Retire()
		var out []string
		for _, s := range ps.Status() {
			out = append(out, fmt.Sprintf("%s=%s@%d", s.Wanted, s.State, s.Port))
		}
		slices.Sort(out)
		fmt.Println(strings.Join(out, " "), "")
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "both":
			apply(wants(named, addr))
		case "none":
			apply(wants())
		case "unknown":
			apply(wants(plan.Addr{Name: "nosuch"}))
		case "stop":
			ps.Stop(context.Background())
			served.Wait()
			fmt.Println("stopped")
		}
	}
}

func TestP19_SocketsOfSystemdAreUsedByNameAndAddressAndKept(t *testing.T) {
	var files []*os.File
	var addrs []string
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // plain TCP, as systemd makes them
	for range 3 {
		l, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, addrs = append(files, f), append(addrs, l.Addr().String())
	}
	port := func(i int) string { _, p, _ := net.SplitHostPort(addrs[i]); return p }
	// LISTEN_PID is the child's own: a shell sets it and becomes the child.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), "QM_PORTS_CHILD=adopt", "LISTEN_FDS=3", "LISTEN_FDNAMES=https:http:https", "QM_BY_ADDR="+port(1))
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer kill(cmd)
	r := bufio.NewReader(out)
	ask := func(what string) string {
		fmt.Fprintln(in, what)
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	a, b := port(0), port(2)
	if a > b {
		a, b = b, a
	}
	all := []string{"fd:https=activated@" + a, "fd:https=activated@" + b, addrs[1] + "=activated@" + port(1)}
	slices.Sort(all)
	want := strings.Join(all, " ")
	for range 2 { // the second is a reload after a plan without them
		if got := ask("both"); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		for i, wish := range []string{"fd:https", addrs[1], "fd:https"} {
			if got, err := dial(addrs[i]); got != wish {
				t.Errorf("%s answers %q, %v; want %q", addrs[i], got, err, wish)
			}
		}
		if got := ask("both"); got != want {
			t.Errorf("after a reload that changes nothing: %q", got)
		}
		if got := ask("none"); got != "" {
			t.Errorf("after a plan without ports: %q", got)
		}
		// The socket is not closed: a client waits for whoever accepts next.
		c := dialMany(t, addrs[0], 1)[0]
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !os.IsTimeout(err) {
			t.Errorf("a client of a socket nobody wants sees %v, want it to wait", err)
		}
	}
	if got := ask("unknown"); !strings.Contains(got, "systemd passed no socket called nosuch (it passed http, https)") {
		t.Errorf("an unknown name: %q", got)
	}
	ask("both")
	if got := ask("stop"); got != "stopped" {
		t.Errorf("stop: %q", got)
	}
	c := dialMany(t, addrs[1], 1)[0]
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Errorf("a client after Stop sees %v, want it to wait", err)
	}
}

func TestInheritedDescriptorThatIsNoListenerIsLeftOut(t *testing.T) {
	log := &harbour{t: t, log: &logLines{}}
	var fds [2]int
	if err := unix.Pipe(fds[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	h := open(t, Options{Inherited: []listen.Inherited{{Name: "pipe", FD: fds[0]}, {Name: "closed", FD: 1 << 20}}})
	log.log = h.log
	if lines := log.log.all(); len(lines) != 2 || !strings.Contains(lines[0], "not a listening socket") {
		t.Errorf("log %q", lines)
	}
	h.apply(wants())
}
