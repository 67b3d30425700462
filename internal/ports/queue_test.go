package ports

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// dialMany makes n connections.
func dialMany(t *testing.T, addr string, n int) []net.Conn {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.DialTimeout(network, addr, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c
	}
	return conns
}

// allSaid demands that every connection was answered and ended in order.
func allSaid(t *testing.T, conns []net.Conn, want string) {
	t.Helper()
	bad := 0
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(c); err != nil || strings.TrimSpace(string(b)) != want {
			if bad++; bad < 4 {
				t.Errorf("a queued client got %q, %v; want %q", b, err, want)
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d of %d clients were lost", bad, len(conns))
	}
}

func TestClientsQueuedInTheKernelAreServedWhenThePortGoes(t *testing.T) {
	end := map[string]func(*harbour){
		"Retire": func(h *harbour) { h.apply(wants()) },
		"Stop": func(h *harbour) {
			if err := h.Stop(h.t.Context()); err != nil {
				h.t.Error(err)
			}
		},
	}
	for name, end := range end {
		t.Run(name, func(t *testing.T) {
			h := open(t, Options{})
			a := loopback(freePort(t))
			step, err := h.Prepare(t.Context(), wants(a))
			if err != nil {
				t.Fatal(err)
			}
			conns := dialMany(t, a.String(), 200) // nobody accepts yet
			step.Commit()
			step.Retire()
			end(h)
			if _, err := net.DialTimeout("tcp", a.String(), time.Second); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("afterwards a client gets %v, want a refusal", err)
			}
			allSaid(t, conns, a.String())
		})
	}
}

// However a connection races with the end of its port, a client that the kernel let in is served.
func TestNoClientIsResetWhileAPortComesAndGoes(t *testing.T) {
	h := open(t, Options{})
	a := loopback(freePort(t))
	var lost, served atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.DialTimeout("tcp", a.String(), 50*time.Millisecond)
				if err != nil {
					continue // refused, or no answer in the instant before
				}
				c.SetReadDeadline(time.Now().Add(5 * time.Second))
				if b, err := io.ReadAll(c); err != nil || len(b) == 0 {
					t.Logf("lost: %q, %v", b, err)
					lost.Add(1)
				} else {
					served.Add(1)
				}
				c.Close()
			}
		})
	}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		h.apply(wants(a))
		for n := served.Load(); served.Load() < n+20 && time.Now().Before(end); {
			<-time.After(time.Millisecond)
		}
		h.apply(wants())
	}
	close(stop)
	wg.Wait()
	t.Logf("%d served", served.Load())
	if lost.Load() > 0 || served.Load() == 0 {
		t.Errorf("%d clients lost, %d served", lost.Load(), served.Load())
	}
}

func TestOverlappingBindsChangeInOneReload(t *testing.T) {
	n := freePort(t)
	wild, v4, v6only := plan.Addr{Port: n}, plan.TCPAddr(netip.IPv4Unspecified(), n), plan.TCPAddr(netip.IPv6Unspecified(), n)
	one, six := loopback(n), plan.TCPAddr(netip.MustParseAddr("::1"), n)
	pairs := [][2]plan.Addr{{wild, one}, {one, wild}, {wild, six}, {six, wild}, {v4, one}, {one, v4}, {wild, v4}, {v4, wild}, {wild, v6only}, {v6only, wild}}
	for _, p := range pairs {
		from, to := p[0], p[1]
		t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
			h := open(t, Options{})
			h.apply(wants(from))
			h.apply(wants(to))
			dest := map[plan.Addr]string{wild: one.String(), v4: one.String(), v6only: six.String(), one: one.String(), six: six.String()}[to]
			says(t, dest, to)
			if s := h.Status(); len(s) != 1 || s[0].State != Bound || s[0].Wanted != to.String() {
				t.Errorf("status %+v", s)
			}
			if foreignCanShare(t, to) {
				t.Error("SO_REUSEPORT was left on: another process could bind the port beside us")
			}
		})
	}
	t.Run("several beside one", func(t *testing.T) {
		h := open(t, Options{})
		two := plan.TCPAddr(netip.MustParseAddr("127.0.0.2"), n)
		h.apply(wants(one, two))
		h.apply(wants(wild))
		says(t, two.String(), wild)
		h.apply(wants(one, two))
		says(t, one.String(), one)
		says(t, two.String(), two)
	})
}

// foreignCanShare reports whether a socket with SO_REUSEPORT, as any process of this user could make it, gets in.
func foreignCanShare(t *testing.T, a plan.Addr) bool {
	t.Helper()
	s, err := listen.Bind(a, true)
	if err == nil {
		s.Stop(listen.Drop)
	}
	return err == nil
}

func TestP18_WhenTheNewOverlappingBindFailsTheOldIsBack(t *testing.T) {
	_, busy := occupy(t, "127.0.0.1:0")
	n := freePort(t)
	wild, one := plan.Addr{Port: n}, loopback(n)
	for _, p := range [][2]plan.Addr{{wild, one}, {one, wild}} {
		from, to := p[0], p[1]
		t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
			h := open(t, Options{})
			h.apply(wants(from))
			was := inode(t, h, from)
			if err := h.try(wants(to, busy)); err == nil {
				t.Fatal("the plan was not refused")
			}
			says(t, one.String(), from)
			if is := inode(t, h, from); is != was {
				t.Errorf("the socket was replaced: inode %d, then %d", was, is)
			}
			if foreignCanShare(t, from) {
				t.Error("SO_REUSEPORT was left on")
			}
			h.apply(wants(to))
			says(t, one.String(), to)
		})
	}
}

// Clients queued on the old socket belong to the new port that takes their address.
func TestQueueOfAnOverlappingSocketGoesToItsHeir(t *testing.T) {
	n := freePort(t)
	wild, one, two := plan.Addr{Port: n}, loopback(n), plan.TCPAddr(netip.MustParseAddr("127.0.0.2"), n)
	entered, gate := make(chan struct{}), make(chan struct{})
	var h *harbour
	var once sync.Once
	h = open(t, Options{Serve: func(c net.Conn, l *Listener) {
		once.Do(func() { // holds the accept loop up, so that those behind it are queued when the change comes
			close(entered)
			<-gate
		})
		h.serve(c, l)
	}})
	h.apply(wants(wild))
	plug := dialMany(t, one.String(), 1)
	<-entered
	toOne, toTwo := dialMany(t, one.String(), 5), dialMany(t, two.String(), 5)
	step, err := h.Prepare(t.Context(), wants(one, two))
	if err != nil {
		t.Fatal(err)
	}
	step.Commit()
	retired := make(chan struct{})
	go func() { defer close(retired); step.Retire() }()
	for h.waitingSince(wild) {
		<-time.After(time.Millisecond)
	}
	close(gate)
	<-retired
	allSaid(t, plug, wild.String())
	allSaid(t, toOne, one.String())
	allSaid(t, toTwo, two.String())
}

// While a plan is tried, a socket bound for it may stand before one of a port in force. When it is refused, those who came
// in there belong to that port, as if nothing had been tried.
func TestClientsOfARefusedOverlappingBindAreServed(t *testing.T) {
	for _, to := range []string{"wild to one", "one to wild"} {
		t.Run(to, func(t *testing.T) {
			n := freePort(t)
			from, next := plan.Addr{Port: n}, loopback(n)
			if to == "one to wild" {
				from, next = next, from
			}
			h := open(t, Options{})
			h.apply(wants(from))
			step, err := h.Prepare(t.Context(), wants(next))
			if err != nil {
				t.Fatal(err)
			}
			conns := dialMany(t, loopback(n).String(), 50)
			step.Abort()
			allSaid(t, conns, from.String())
			says(t, loopback(n).String(), from)
		})
	}
	t.Run("nobody's", func(t *testing.T) {
		n := freePort(t)
		h := open(t, Options{})
		h.apply(wants(loopback(n)))
		step, err := h.Prepare(t.Context(), wants(plan.Addr{Port: n}))
		if err != nil {
			t.Fatal(err)
		}
		conns := dialMany(t, plan.TCPAddr(netip.MustParseAddr("127.0.0.2"), n).String(), 3)
		step.Abort()
		allSaid(t, conns, "")
	})
}

// waitingSince reports whether a is still listed.
func (h *harbour) waitingSince(a plan.Addr) bool { return h.of(a).Wanted != "" }

func TestRefusedSlotClosesTheConnection(t *testing.T) {
	var full atomic.Bool
	h := open(t, Options{Accept: func() bool { return !full.Load() }})
	a := mustAddr("127.0.0.1:0")
	h.apply(wants(a))
	full.Store(true)
	if got, err := dial(h.bound(a)); got != "" {
		t.Errorf("answered %q, %v", got, err)
	}
	full.Store(false)
	says(t, h.bound(a), a)
}

func TestStopIsForGood(t *testing.T) {
	h := open(t, Options{})
	a := mustAddr("127.0.0.1:0")
	h.apply(wants(a))
	metrics, err := h.ListenTCP("metrics", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := h.bound(a)
	for range 2 {
		if err := h.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	silent(t, at)
	if err := h.try(wants(a)); !errors.Is(err, errStopped) {
		t.Errorf("a plan after Stop: %v", err)
	}
	if s := h.Status(); len(s) != 1 || s[0].Source != "metrics" {
		t.Errorf("status %+v, want metrics to stay", s)
	}
	if c, err := net.Dial("tcp", metrics.Addr().String()); err != nil {
		t.Errorf("metrics are gone: %v", err)
	} else {
		c.Close()
	}
	metrics.Close()
	metrics.Close()
	silent(t, metrics.Addr().String())
	if _, err := metrics.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

// Whoever forgets Stop still leaves nothing behind, not even with a change under way.
func TestRunEndsEverything(t *testing.T) {
	a, b := loopback(freePort(t)), loopback(freePort(t))
	ps := New(Options{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- ps.Run(ctx) }()
	step, err := ps.Prepare(t.Context(), wants(a))
	if err != nil {
		t.Fatal(err)
	}
	step.Commit()
	step.Retire()
	step, err = ps.Prepare(t.Context(), wants(a, b))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
	step.Commit()
	step.Retire()
	silent(t, a.String())
	silent(t, b.String())
}

func TestOursKnowsOurListeners(t *testing.T) {
	h := open(t, Options{})
	n, m := freePort(t), freePort(t)
	wild, one := plan.TCPAddr(netip.IPv4Unspecified(), n), loopback(m)
	h.apply(wants(wild, one))
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.8.8.8": true, "::ffff:127.0.0.1": true, "0.0.0.0": true, "::1": false, "192.0.2.7": false,
	} {
		if got := h.Ours(netip.AddrPortFrom(netip.MustParseAddr(addr), n)); got != want {
			t.Errorf("Ours(%s, port of 0.0.0.0) = %v", addr, got)
		}
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		ip, _ := netip.ParsePrefix(a.String())
		if got := h.Ours(netip.AddrPortFrom(ip.Addr(), n)); got != ip.Addr().Is4() {
			t.Errorf("Ours(%s) = %v", a, got)
		}
	}
	if !h.Ours(netip.AddrPortFrom(one.IP, m)) || h.Ours(netip.MustParseAddrPort("127.0.0.2:1")) || h.Ours(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), m)) {
		t.Error("a specific address is not told from others")
	}
	h.apply(wants())
	if h.Ours(netip.AddrPortFrom(one.IP, m)) {
		t.Error("a released port is still ours")
	}
}

func TestListeningNamesWhatIsNear(t *testing.T) {
	h := open(t, Options{})
	cmd, said := child(t, "listen", 1, "[::1]:0")
	at := netip.MustParseAddrPort(said[0])
	if got := h.Listening("127.0.0.1", at.Port()); !strings.Contains(got, "listens on "+said[0]) || !strings.Contains(got, "ports.test (pid ") {
		t.Errorf("near 127.0.0.1:%d: %q", at.Port(), got)
	}
	if got := h.Listening("localhost", at.Port()); got == "" {
		t.Error("localhost is not taken for this host")
	}
	if got := h.Listening("192.0.2.7", at.Port()) + h.Listening("example.com", at.Port()); got != "" {
		t.Errorf("another host: %q", got)
	}
	kill(cmd)
	if got := h.Listening("127.0.0.2", at.Port()); got != "" {
		t.Errorf("nothing listens, yet %q", got)
	}
}
