package ports

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// A chest is a safe that writes down what goes in and out, and keeps copies.
type chest struct {
	t     *testing.T
	lines []string
	fds   map[plan.Addr]int
}

func newChest(t *testing.T) *chest {
	c := &chest{t: t, fds: make(map[plan.Addr]int)}
	t.Cleanup(func() {
		for _, fd := range c.fds {
			unix.Close(fd)
		}
	})
	return c
}

func (c *chest) Store(a plan.Addr, fd int) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		c.t.Error(err)
	}
	if _, ok := c.fds[a]; ok {
		c.t.Errorf("%s stored twice", a)
	}
	c.fds[a] = own
	c.lines = append(c.lines, "+"+a.String())
}

func (c *chest) Forget(a plan.Addr) {
	if fd, ok := c.fds[a]; ok {
		unix.Close(fd)
		delete(c.fds, a)
	}
	c.lines = append(c.lines, "-"+a.String())
}

func (c *chest) did() string {
	slices.Sort(c.lines)
	defer func() { c.lines = nil }()
	return strings.Join(c.lines, " ")
}

// orphaned is a socket as it comes out of the safe: bound, listening, and with nobody who accepts.
func orphaned(t *testing.T, a plan.Addr) (in listen.Inherited, copied int) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(t.Context(), "tcp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fds [2]int
	_ = raw.Control(func(fd uintptr) {
		for i := range fds {
			if fds[i], err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Cleanup(func() { unix.Close(fds[1]) })
	return listen.Inherited{Name: "quaymaster=x", FD: fds[0], Stored: true}, fds[1]
}

func TestTheSafeHasWhatThePlanHas(t *testing.T) {
	c := newChest(t)
	a, b := loopback(freePort(t)), loopback(freePort(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	l.Close()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(f.Fd()))
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	theirs := mustAddr(l.Addr().String())
	h := open(t, Options{Safe: c, Inherited: []listen.Inherited{{FD: fd, Name: "x", Systemd: true}}})
	for _, step := range []struct {
		want []plan.Addr
		did  string
	}{
		{[]plan.Addr{a, theirs}, "+" + a.String()}, // that of systemd is safe already
		{[]plan.Addr{a, theirs}, ""},
		{[]plan.Addr{a, b, theirs}, "+" + b.String()},
		{[]plan.Addr{b}, "-" + a.String()},
		{[]plan.Addr{a}, "+" + a.String() + " -" + b.String()},
	} {
		h.apply(wants(step.want...))
		if got := c.did(); got != step.did {
			t.Errorf("plan %v: %q, want %q", step.want, got, step.did)
		}
	}
	busy, held := occupy(t, "127.0.0.1:0")
	if err := h.try(wants(a, held)); err == nil {
		t.Fatal("a held port was had")
	}
	kill(busy)
	if got := c.did(); got != "" {
		t.Errorf("a plan that was refused: %q", got)
	}
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.did(); got != "-"+a.String() {
		t.Errorf("stop: %q", got)
	}
}

func TestThePortOfALaterAttemptIsStoredToo(t *testing.T) {
	c := newChest(t)
	cmd, held := occupy(t, "127.0.0.1:0")
	h := open(t, Options{Safe: c})
	h.apply(wants(held))
	kill(cmd)
	h.await(held, Bound, 30*time.Second)
	if err := h.Stop(t.Context()); err != nil { // afterwards nobody else touches the chest
		t.Fatal(err)
	}
	if got := c.did(); got != "+"+held.String()+" -"+held.String() {
		t.Errorf("%q", got)
	}
}

func TestASocketOutOfTheSafeIsOursAsIfWeHadBoundIt(t *testing.T) {
	a := loopback(freePort(t))
	in, _ := orphaned(t, a)
	// Its process died while it closed the socket, and while it bound another beside it.
	deaf := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	if err := unix.SetsockoptSockFprog(in.FD, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &deaf[0]}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(in.FD, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		t.Fatal(err)
	}
	h := open(t, Options{Safe: newChest(t), Inherited: []listen.Inherited{in}})
	h.apply(wants(a))
	if s := h.of(a); s.State != Bound || s.Origin != "systemd" {
		t.Errorf("status %+v", s)
	}
	if got, err := dial(a.String()); err != nil || got != a.String() {
		t.Errorf("it answers %q, %v", got, err)
	}
	if foreignCanShare(t, a) {
		t.Error("SO_REUSEPORT is still on")
	}
	h.apply(wants())
	if _, err := dial(a.String()); err == nil {
		t.Error("a port that nobody wants still listens")
	}
}

func TestASocketOutOfTheSafeThatNobodyWantsIsClosed(t *testing.T) {
	a, b := loopback(freePort(t)), loopback(freePort(t))
	in, theirs := orphaned(t, a)
	unix.Close(theirs)
	client, err := net.Dial("tcp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c := newChest(t)
	h := open(t, Options{Safe: c, Inherited: []listen.Inherited{in}})
	if got, err := func() (string, error) { h.apply(wants(b)); return dial(b.String()) }(); err != nil || got != b.String() {
		t.Errorf("%q %v", got, err)
	}
	if got := c.did(); got != fmt.Sprintf("+%s -%s", b, a) {
		t.Errorf("the safe: %q", got)
	}
	_ = client.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := client.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a client that waited sees %v", err)
	}
	if _, err := dial(a.String()); err == nil {
		t.Error("it still listens")
	}
	h.apply(wants(a, b)) // and may be had like any other
	if s := h.of(a); s.State != Bound || s.Origin != "own" {
		t.Errorf("status %+v", s)
	}
}

func TestWithoutAPlanTheSafeAndItsSocketsAreLeftAlone(t *testing.T) {
	a := loopback(freePort(t))
	in, theirs := orphaned(t, a)
	client, err := net.Dial("tcp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c := newChest(t)
	func() {
		h := &harbour{t: t, log: &logLines{}}
		h.Ports = New(Options{Safe: c, Inherited: []listen.Inherited{in}, Strict: true})
		_, held := occupy(t, "127.0.0.1:0")
		if err := h.try(wants(a, held)); err == nil {
			t.Fatal("a held port was had")
		}
		h.close()
	}()
	if got := c.did(); got != "" {
		t.Errorf("the safe: %q", got)
	}
	if err := unix.SetNonblock(theirs, true); err != nil {
		t.Fatal(err)
	}
	fd, _, err := unix.Accept(theirs)
	if err != nil {
		t.Fatalf("the client that waited is gone: %v", err)
	}
	unix.Close(fd)
}

func TestAConnectionThatNobodyTakesIsSeen(t *testing.T) {
	free := make(chan struct{})
	entered := make(chan struct{}, 10)
	a, b := loopback(freePort(t)), loopback(freePort(t))
	h := open(t, Options{Serve: func(c net.Conn, l *Listener) {
		c.Close()
		if l.Want == a {
			entered <- struct{}{}
			<-free // as a server would that forgets to start a goroutine
		}
	}})
	h.apply(wants(a, b))
	stuck := func() string { return fmt.Sprint(h.Stuck()) }
	if got := stuck() + stuck(); got != "[][]" {
		t.Errorf("with nothing to do: %s", got)
	}
	dialMany(t, a.String(), 1)
	<-entered
	if got := stuck() + stuck(); got != "[][]" {
		t.Errorf("with nobody waiting: %s", got)
	}
	dialMany(t, a.String(), 3)
	for range 3 {
		if _, err := dial(b.String()); err != nil { // and is done
			t.Fatal(err)
		}
	}
	if got := stuck(); got != "[]" {
		t.Errorf("at the first look: %s", got)
	}
	if got, want := stuck(), fmt.Sprintf("[%s]", a); got != want {
		t.Errorf("at the second look: %s, want %s", got, want)
	}
	close(free)
	for limit := time.Now().Add(20 * time.Second); stuck() != "[]"; {
		if time.Now().After(limit) {
			t.Fatal("still stuck")
		}
		<-time.After(time.Millisecond)
	}
	h.apply(wants(b))
	dialMany(t, b.String(), 1)
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := stuck() + stuck(); got != "[][]" {
		t.Errorf("after Stop: %s", got)
	}
}
