package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const linux = runtime.GOOS == "linux"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// environ is an environment of its own.
func environ(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

// A manager reads what is said.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	name string
}

func newManager(t *testing.T, name string) *manager {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &manager{t, c, name}
}

// read is the next message, and the descriptors that came with it.
func (m *manager) read() (string, []int) {
	m.t.Helper()
	_ = m.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	b, oob := make([]byte, 8192), make([]byte, 1024)
	n, on, _, _, err := m.conn.ReadMsgUnix(b, oob)
	if err != nil {
		m.t.Fatal(err)
	}
	var fds []int
	if list, err := unix.ParseSocketControlMessage(oob[:on]); err == nil {
		for i := range list {
			got, _ := unix.ParseUnixRights(&list[i])
			fds = append(fds, got...)
		}
	}
	return string(b[:n]), fds
}

func (m *manager) want(text string) {
	m.t.Helper()
	got, fds := m.read()
	for _, fd := range fds {
		unix.Close(fd)
	}
	if got != text {
		m.t.Errorf("said %q, want %q", got, text)
	}
}

// shared is a buffer that is read while it is written.
type shared struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *shared) lines() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), "\n")
}

func open(t *testing.T, pairs ...string) (*Notifier, *shared) {
	t.Helper()
	log := &shared{}
	n := New(Options{Env: environ(pairs...), PID: 7, Log: slog.New(slog.NewTextHandler(log, nil))})
	t.Cleanup(n.Close)
	return n, log
}

func TestEverythingSaidArrivesInOrder(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@quaymaster-test-%d", os.Getpid())} {
		if name[0] == '@' && !linux {
			continue
		}
		m := newManager(t, name)
		n, log := open(t, "NOTIFY_SOCKET", name)
		n.Status("starting")
		n.Ready("serving 3 ports, 12 routes")
		n.MainPID(812)
		n.Alive()
		n.Forget(Name(":443"))
		n.Draining("draining: 5 connections", 15*time.Second)
		n.Stopping("")
		for _, want := range []string{
			"STATUS=starting", "READY=1\nSTATUS=serving 3 ports, 12 routes", "MAINPID=812", "WATCHDOG=1",
			"FDSTOREREMOVE=1\nFDNAME=quaymaster=%3A443", "EXTEND_TIMEOUT_USEC=15000000\nSTATUS=draining: 5 connections", "STOPPING=1\n",
		} {
			m.want(want)
		}
		if log.lines() > 0 {
			t.Errorf("log: %s", log.b.String())
		}
	}
}

func TestReloadingCarriesTheTimeOfNow(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	n, _ := open(t, "NOTIFY_SOCKET", m.name)
	before := monotonic()
	n.Reloading("loading a configuration")
	got, _ := m.read()
	after := monotonic()
	lines := strings.Split(got, "\n")
	us, ok := strings.CutPrefix(lines[1], "MONOTONIC_USEC=")
	at, err := strconv.ParseInt(us, 10, 64)
	if lines[0] != "RELOADING=1" || !ok || err != nil || at < before.Microseconds() || at > after.Microseconds() {
		t.Errorf("said %q between %v and %v", got, before, after)
	}
	if linux && at == 0 {
		t.Error("no time")
	}
}

func TestStoredSocketGoesOverAndOursStays(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	n, _ := open(t, "NOTIFY_SOCKET", m.name)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	name := Name(l.Addr().String())
	_ = raw.Control(func(fd uintptr) { n.Store(name, int(fd)) })
	got, fds := m.read()
	if got != "FDSTORE=1\nFDNAME="+name+"\nFDPOLL=0" || len(fds) != 1 {
		t.Fatalf("said %q with descriptors %v", got, fds)
	}
	defer unix.Close(fds[0])
	l.Close() // as when we die: the manager's copy goes on listening
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Error("storing a socket has made it blocking, on our side too")
	}
}

func TestAManagerThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	n, log := open(t, "NOTIFY_SOCKET", m.name)
	before := descriptors(t)
	start := time.Now()
	for range 3 * maxQueue {
		n.Alive()
	}
	_ = m.conn.SetReadBuffer(1)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		n.Store("x", int(w.Fd()))
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %v to say nothing", took)
	}
	n.Close()
	r.Close()
	w.Close()
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("Close after %v", took)
	}
	if log.lines() != 1 {
		t.Errorf("%d log lines, want 1", log.lines())
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	n.Ready("after the end") // harmless
}

func descriptors(t *testing.T) int {
	list, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestAManagerThatComesBackIsHeardAgain(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	m := newManager(t, name)
	n, log := open(t, "NOTIFY_SOCKET", name)
	n.Alive()
	m.want("WATCHDOG=1")
	m.conn.Close()
	_ = os.Remove(name)
	n.Status("nobody hears this")
	n.Status("nor this")
	for end := time.Now().Add(20 * time.Second); log.lines() == 0; {
		if time.Now().After(end) {
			t.Fatal("nothing logged")
		}
		<-time.After(time.Millisecond)
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if err := n.Sync(ctx); err == nil {
		t.Error("Sync without a manager went well")
	}
	m = newManager(t, name)
	n.Alive()
	m.want("WATCHDOG=1")
	if log.lines() != 1 {
		t.Errorf("%d log lines, want 1", log.lines())
	}
}

func TestSyncWaitsUntilTheManagerHasRead(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	n, _ := open(t, "NOTIFY_SOCKET", m.name)
	n.MainPID(812)
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := n.Sync(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Sync without a reader: %v", err)
	}
	synced := make(chan error)
	go func() { synced <- n.Sync(t.Context()) }()
	m.want("MAINPID=812")
	m.want("BARRIER=1")
	select {
	case err := <-synced:
		t.Errorf("Sync returned before its barrier was read: %v", err)
	default:
	}
	m.want("BARRIER=1")
	if err := <-synced; err != nil {
		t.Error(err)
	}
}

func TestHeldBackUntilWeAreHeard(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	n := New(Options{Env: environ("NOTIFY_SOCKET", m.name), Hold: true})
	t.Cleanup(n.Close)
	n.Ready("first")
	n.Alive()
	_ = m.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if k, err := m.conn.Read(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes said too early", k)
	}
	n.Begin()
	n.Status("third")
	for _, want := range []string{"READY=1\nSTATUS=first", "WATCHDOG=1", "STATUS=third"} {
		m.want(want)
	}
}

func TestWithoutAManagerNothingIsSaid(t *testing.T) {
	for _, pairs := range [][]string{{}, {"NOTIFY_SOCKET", ""}, {"NOTIFY_SOCKET", "vsock:2:1"}, {"NOTIFY_SOCKET", "/" + strings.Repeat("x", 200)}} {
		n, _ := open(t, pairs...)
		if n != nil {
			t.Errorf("%v: a notifier", pairs)
		}
		n.Ready("x")
		n.Reloading("x")
		n.Draining("x", 1)
		n.Store("x", 0)
		n.Forget("x")
		n.Alive()
		if n.Watchdog() != 0 || n.Env() != nil || n.Sync(t.Context()) != nil {
			t.Errorf("%v: it does something", pairs)
		}
	}
}

func TestWatchdogIsForUsOrForNobodyInParticular(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"30000000", "7", 15 * time.Second},
		{"30000000", "", 0},
		{"30000000", "8", 0},
		{"0", "7", 0},
		{"-1", "7", 0},
		{"99999999999999999999", "7", 0},
		{"soon", "7", 0},
	} {
		n, _ := open(t, "NOTIFY_SOCKET", m.name, "WATCHDOG_USEC", c.usec, "WATCHDOG_PID", c.pid)
		if got := n.Watchdog(); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	n, _ := open(t, "NOTIFY_SOCKET", m.name, "WATCHDOG_USEC", "2000000")
	if got := n.Watchdog(); got != time.Second {
		t.Errorf("without WATCHDOG_PID: %v", got)
	}
	if got := strings.Join(n.Env(), " "); got != "NOTIFY_SOCKET="+m.name+" WATCHDOG_USEC=2000000" {
		t.Errorf("for the next process: %s", got)
	}
}

func TestStatusIsOneBoundedLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "",
		"a\nREADY=1\tb":                      "STATUS=a READY=1 b",
		"\xff ü":                             "STATUS=? ü",
		strings.Repeat("ü", maxStatus):       "STATUS=" + strings.Repeat("ü", maxStatus/2),
		"x" + strings.Repeat("ü", maxStatus): "STATUS=x" + strings.Repeat("ü", maxStatus/2-1),
	} {
		if got := line(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestSocketsAreForOurProcessAlone(t *testing.T) {
	for _, pairs := range [][]string{
		{},
		{"LISTEN_FDS", "1"},
		{"LISTEN_PID", "1", "LISTEN_FDS", "1"},
		{"LISTEN_PID", "7", "LISTEN_FDS", "x"},
		{"LISTEN_PID", "7", "LISTEN_FDS", "-1"},
		{"LISTEN_PID", "7", "LISTEN_FDS", "99999999"},
	} {
		if got := Sockets(environ(pairs...), 7); got != nil {
			t.Errorf("%v: %v", pairs, got)
		}
	}
}

func TestSocketsKnowWhatWeHaveStored(t *testing.T) {
	env := environ("LISTEN_PID", "7", "LISTEN_FDS", "3", "LISTEN_FDNAMES", "https:"+Name("[::]:443"))
	got := fmt.Sprintf("%+v", Sockets(env, 7))
	if want := "[{FD:3 Name:https Stored:false} {FD:4 Name:quaymaster=[%3A%3A]%3A443 Stored:true} {FD:5 Name: Stored:false}]"; got != want {
		t.Errorf("%s", got)
	}
}

func TestNamesAreValidAndDiffer(t *testing.T) {
	seen := map[string]string{}
	long := strings.Repeat("ü", 300)
	for _, address := range []string{":443", "0.0.0.0:443", "[::]:443", "[fe80::1%eth0]:443", "unix:/run/a b", "unix:/run/a%20b", "unix:/ü\n", "unix:" + long, "unix:" + long + "x"} {
		name := Name(address)
		if other, ok := seen[name]; ok {
			t.Errorf("%q and %q have one name", address, other)
		}
		seen[name] = address
		if len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
			t.Errorf("%q: %q is no name", address, name)
		}
	}
}
