package ports

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// TestMain lets the test binary be a foreign process: QM_PORTS_CHILD says which.
func TestMain(m *testing.M) {
	switch os.Getenv("QM_PORTS_CHILD") {
	case "":
		goleak.VerifyTestMain(m)
	case "listen":
		childListen(os.Args[1:])
	case "reuse":
		childReuse(os.Args[1])
	case "nofile":
		childNoFile()
	case "adopt":
		childAdopt()
	case "bind":
		childBind(os.Args[1])
	case "echo", "stubborn", "letgo", "orphan", "waiting":
		childHolds(os.Getenv("QM_PORTS_CHILD"), os.Args[1])
	}
}

// childListen holds the addresses until it is killed.
func childListen(addrs []string) {
	for _, a := range addrs {
		network := "tcp"
		if strings.HasPrefix(a, "/") {
			network = "unix"
		} else if h, _, _ := net.SplitHostPort(a); net.ParseIP(h) != nil {
			network = "tcp4"
			if strings.Contains(h, ":") {
				network = "tcp6"
			}
		}
		ln, err := net.Listen(network, a)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(ln.Addr())
	}
	select {}
}

// child starts this test binary in the mode and reads as many lines as asked for.
func child(t *testing.T, mode string, lines int, args ...string) (*exec.Cmd, []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "QM_PORTS_CHILD="+mode)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	r := bufio.NewReader(out)
	var said []string
	for range lines {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("child said %q: %v", line, err)
		}
		said = append(said, strings.TrimSpace(line))
	}
	return cmd, said
}

func kill(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

// occupy starts a foreign process that listens on addr ("127.0.0.1:0" for any port).
func occupy(t *testing.T, addr string) (*exec.Cmd, plan.Addr) {
	t.Helper()
	cmd, said := child(t, "listen", 1, addr)
	at, err := netip.ParseAddrPort(said[0])
	if err != nil {
		t.Fatalf("the other process said %q", said[0])
	}
	return cmd, plan.TCPAddr(at.Addr(), at.Port())
}

// A harbour is Ports with a server that answers every connection with the wish it came in on.
type harbour struct {
	*Ports
	t      *testing.T
	log    *logLines
	served sync.WaitGroup
	events chan Event
}

// open starts Ports and stops them with the test.
func open(t *testing.T, o Options) *harbour {
	t.Helper()
	h := &harbour{t: t, log: &logLines{}, events: make(chan Event, 100_000)}
	if o.Serve == nil {
		o.Serve = h.serve
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewJSONHandler(h.log, nil))
	}
	o.Events = func(e Event) { h.events <- e }
	h.Ports = New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		h.served.Wait()
	})
	return h
}

// serve answers with the wish of the listener.
func (h *harbour) serve(c net.Conn, l *Listener) {
	h.served.Add(1)
	go func() {
		defer h.served.Done()
		defer c.Close()
		fmt.Fprintln(c, l.Want)
	}()
}

// apply brings a plan in.
func (h *harbour) apply(p *plan.Plan) {
	h.t.Helper()
	if err := h.try(p); err != nil {
		h.t.Fatalf("plan refused: %v", err)
	}
}

func (h *harbour) try(p *plan.Plan) error {
	step, err := h.Prepare(h.t.Context(), p)
	if err != nil {
		return err
	}
	step.Commit()
	step.Retire()
	return nil
}

// await waits for the event of a port that reaches the state.
func (h *harbour) await(a plan.Addr, s State, d time.Duration) Event {
	h.t.Helper()
	limit := time.After(d)
	for {
		select {
		case e := <-h.events:
			if e.Port == a && e.State == s {
				return e
			}
		case <-limit:
			h.t.Fatalf("port %s did not become %s within %v; it is %+v", a, s, d, h.of(a))
		}
	}
}

// of is the first status of the wish.
func (h *harbour) of(a plan.Addr) Status {
	for _, s := range h.Status() {
		if s.Wanted == a.String() {
			return s
		}
	}
	return Status{}
}

// bound is the address that the wish is really bound to.
func (h *harbour) bound(a plan.Addr) string {
	h.t.Helper()
	s := h.of(a)
	host := s.Address
	if host == "*" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, fmt.Sprint(s.Port))
}

type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	return len(b), nil
}

func (l *logLines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

func mustAddr(s string) plan.Addr {
	a, err := parseAddress(s)
	if err != nil {
		panic(err)
	}
	return a
}

// wants is a plan of ports that a route called r uses.
func wants(addrs ...plan.Addr) *plan.Plan {
	p := &plan.Plan{}
	for _, a := range addrs {
		p.Ports = append(p.Ports, &plan.Port{Addr: a, Users: []string{"route r"}})
	}
	slices.SortFunc(p.Ports, func(a, b *plan.Port) int { return a.Addr.Compare(b.Addr) })
	return p
}

// freePort is a number that was free a moment ago on every address, below the ephemeral range, so that no outgoing
// connection takes it.
func freePort(t *testing.T) uint16 {
	t.Helper()
	portMu.Lock()
	defer portMu.Unlock()
	for ; nextPort < 32000; nextPort++ {
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", nextPort))
		if err != nil {
			continue
		}
		ln.Close()
		nextPort++
		return nextPort - 1
	}
	t.Fatal("no free port")
	return 0
}

var (
	portMu   sync.Mutex
	nextPort = uint16(20000 + os.Getpid()%10000)
)

// dial connects and reads the line the server says.
func dial(addr string) (string, error) {
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	c, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	return strings.TrimSpace(string(b)), err
}

// says demands that addr answers for the wish.
func says(t *testing.T, addr string, want plan.Addr) {
	t.Helper()
	if got, err := dial(addr); err != nil || got != want.String() {
		t.Errorf("%s answers %q, %v; want %q", addr, got, err, want)
	}
}

// silent demands that nobody listens on addr.
func silent(t *testing.T, addr string) {
	t.Helper()
	if got, err := dial(addr); err == nil {
		t.Errorf("%s answers %q, want it to refuse", addr, got)
	}
}

func TestPortIsBoundBeforeItIsPromisedAndFreeAfterItsLastUse(t *testing.T) {
	h := open(t, Options{})
	a := mustAddr("127.0.0.1:0")
	step, err := h.Prepare(t.Context(), wants(a))
	if err != nil {
		t.Fatal(err)
	}
	if got := h.Status(); len(got) != 0 {
		t.Errorf("before Commit Status shows %+v", got)
	}
	step.Commit()
	step.Retire()
	at := h.bound(a)
	says(t, at, a)
	h.apply(wants())
	silent(t, at)
	if got := h.Status(); len(got) != 0 {
		t.Errorf("after the last use Status shows %+v", got)
	}
}

func TestUnchangedPortKeepsItsSocketAndLearnsItsNewPlan(t *testing.T) {
	got := make(chan *Listener, 1)
	h := open(t, Options{Serve: func(c net.Conn, l *Listener) { c.Close(); got <- l }})
	a := mustAddr("127.0.0.1:0")
	h.apply(wants(a))
	at, since := h.bound(a), h.of(a).Since
	for range 5 {
		p := wants(a)
		h.apply(p)
		dial(at)
		if l := <-got; l.Plan != p.Ports[0] || l.Want != a || l.Addr.Port == 0 {
			t.Fatalf("connection came with %+v, want the latest plan", l)
		}
		if s := h.of(a); h.bound(a) != at || !s.Since.Equal(since) {
			t.Fatalf("the port moved to %s, since %v", h.bound(a), s.Since)
		}
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	h := open(t, Options{Serve: func(c net.Conn, l *Listener) { t.Error("a connection was served"); c.Close() }})
	a := plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), freePort(t))
	step, err := h.Prepare(t.Context(), wants(a))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.Port)) // queued in the kernel
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	step.Abort()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the queued client sees %v, want an orderly end", err)
	}
	silent(t, c.RemoteAddr().String())
	if len(h.Status())+len(h.History(a.Port))+len(h.log.all()) != 0 {
		t.Errorf("traces: %v %v %v", h.Status(), h.History(a.Port), h.log.all())
	}
	h.apply(wants(a)) // the right to change was given back
	says2 := h.of(a)
	if says2.State != Bound {
		t.Errorf("the port is %s", says2.State)
	}
	h.apply(wants())
}

func TestSecondPrepareWaitsForTheFirst(t *testing.T) {
	h := open(t, Options{})
	step, err := h.Prepare(t.Context(), wants(mustAddr("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := h.Prepare(ctx, wants()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second Prepare: %v, want it to wait", err)
	}
	step.Abort()
	h.apply(wants())
}

func TestConcurrentChangesEndAsOneOfThem(t *testing.T) {
	h := open(t, Options{})
	a, b := plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), freePort(t)), plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), freePort(t))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 25 {
				if err := h.try([]*plan.Plan{wants(a), wants(b), wants(a, b), wants()}[i%4]); err != nil {
					t.Errorf("change refused: %v", err)
				}
			}
		})
	}
	wg.Wait()
	table := map[string]bool{}
	for _, s := range h.Status() {
		table[s.Wanted] = true
	}
	for _, x := range []plan.Addr{a, b} {
		if table[x.String()] {
			says(t, x.String(), x)
		} else {
			silent(t, x.String())
		}
	}
}

func TestP22_ThousandPortsBoundAndReleasedLeaveNothing(t *testing.T) {
	h := open(t, Options{})
	h.apply(wants())
	port := freePort(t)
	count := func() (fds, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("LOUD SKIP: no /proc/self/fd")
		}
		return len(entries), len(goroutineList())
	}
	for range 10 {
		h.apply(wants(plan.Addr{Port: port}))
		h.apply(wants())
	}
	fds, goroutines := count()
	began := time.Now()
	for range 1000 {
		h.apply(wants(plan.Addr{Port: port}))
		h.apply(wants())
		for len(h.events) > 0 {
			<-h.events
		}
	}
	t.Logf("1,000 cycles took %v", time.Since(began))
	if f, g := count(); f != fds || g > goroutines+2 { // a loop that has ended may still be on its way out
		t.Errorf("from %d fds and %d goroutines to %d and %d", fds, goroutines, f, g)
	}
}

func TestRangeOfHundredsIsPreparedQuickly(t *testing.T) {
	h := open(t, Options{})
	var addrs []plan.Addr
	for i := range 500 {
		addrs = append(addrs, plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), uint16(10000+i)))
	}
	began := time.Now()
	step, err := h.Prepare(t.Context(), wants(addrs...))
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	step.Commit()
	step.Retire()
	t.Logf("500 ports prepared in %v", took)
	if took > 3*time.Second {
		t.Errorf("500 ports took %v to prepare", took)
	}
	for _, a := range []int{0, 250, 499} {
		if s := h.of(addrs[a]); s.State == Bound {
			says(t, addrs[a].String(), addrs[a])
		}
	}
	began = time.Now()
	h.apply(wants())
	t.Logf("500 ports released in %v", time.Since(began))
	if d := time.Since(began); d > time.Second {
		t.Errorf("500 ports took %v to be released", d)
	}
}

func TestStatusIsTheJSONOfTheReference(t *testing.T) {
	h := open(t, Options{})
	a := plan.Addr{Port: freePort(t)}
	p := wants(a)
	p.Ports[0].Users = []string{"by_name", "route api", "route web"}
	p.Where = map[string]plan.Pos{"port/" + a.String(): {File: "q.yaml", Line: 3}}
	h.apply(p)
	b, err := json.Marshal(h.Status())
	if err != nil {
		t.Fatal(err)
	}
	since, _ := h.of(a).Since.MarshalJSON()
	want := fmt.Sprintf(`[{"proto":"tcp","address":"*","port":%d,"wanted":":%d","state":"bound","since":%s,"source":"file","origin":"own","routes":["by_name","api","web"]}]`, a.Port, a.Port, since)
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}
