package ports

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func loopback(port uint16) plan.Addr { return plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), port) }

func TestBusyPortComesUpWhenItsHolderLeavesAndStopsNoOther(t *testing.T) {
	cmd, busy := occupy(t, "127.0.0.1:0")
	h := open(t, Options{})
	free := loopback(freePort(t))
	h.apply(wants(busy, free))
	says(t, h.bound(free), free)

	s := h.of(busy)
	if s.State != Retrying || s.NextTry.Before(time.Now()) || s.Holder == nil || s.Holder.Pid != cmd.Process.Pid || s.Holder.User == "" {
		t.Fatalf("the busy port is %+v, holder %+v; want it retrying, held by pid %d", s, s.Holder, cmd.Process.Pid)
	}
	if !strings.Contains(s.Error, fmt.Sprintf("cannot bind tcp %s: held by ", busy)) || !strings.Contains(s.Error, fmt.Sprintf("(pid %d, user ", cmd.Process.Pid)) || !strings.Contains(s.Error, ": next try in ") {
		t.Errorf("error %q", s.Error)
	}
	// A reload of something else does not touch it, and is not refused by it.
	if err := h.try(wants(busy)); err != nil {
		t.Errorf("a port already retrying refused a plan: %v", err)
	}
	kill(cmd)
	left := time.Now()
	e := h.await(busy, Bound, 3*time.Second)
	if wait := e.Time.Sub(left); wait > time.Second {
		t.Errorf("it came up %v after its holder left, more than a back-off step", wait)
	}
	says(t, busy.String(), busy)
	if s := h.of(busy); s.State != Bound || s.Error != "" || s.Holder != nil || !s.NextTry.IsZero() {
		t.Errorf("afterwards the port is %+v", s)
	}
}

func TestReloadIsRefusedByAPortItNewlyWants(t *testing.T) {
	_, one := occupy(t, "127.0.0.1:0")
	_, two := occupy(t, "127.0.0.1:0")
	h := open(t, Options{})
	a, fresh := loopback(freePort(t)), loopback(freePort(t))
	h.apply(wants(a))
	before, _ := json.Marshal(h.Status())
	err := h.try(wants(fresh, one, two))
	var bind *BindError
	if !errors.As(err, &bind) || bind.Kind != InUse || bind.Holder == nil || bind.Next != 0 {
		t.Fatalf("reload: %v, want a BindError", err)
	}
	for _, busy := range []plan.Addr{one, two} {
		if !strings.Contains(err.Error(), busy.String()) {
			t.Errorf("%q does not name %s", err, busy)
		}
	}
	if after, _ := json.Marshal(h.Status()); string(after) != string(before) {
		t.Errorf("Status was %s, is %s", before, after)
	}
	says(t, h.bound(a), a)
	silent(t, fresh.String())
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("the error hides its cause: %v", err)
	}
}

func TestStartFailsOnABusyPortWhereToldSo(t *testing.T) {
	_, busy := occupy(t, "127.0.0.1:0")
	for name, c := range map[string]struct {
		strict bool
		onBusy string
	}{"strict": {strict: true}, "policy": {onBusy: "fail"}} {
		t.Run(name, func(t *testing.T) {
			h := open(t, Options{Strict: c.strict})
			p := wants(busy)
			p.Ports[0].Policy.OnBusy = c.onBusy
			p.Ports[0].Fallback = []plan.Addr{}
			if c.strict {
				p.Ports[0].Fallback = []plan.Addr{loopback(freePort(t))} // P12: strict takes no fallback
			}
			var bind *BindError
			if err := h.try(p); !errors.As(err, &bind) {
				t.Errorf("start: %v, want a BindError", err)
			}
			if len(h.Status()) != 0 {
				t.Errorf("Status %+v", h.Status())
			}
		})
	}
}

func TestBindErrorKindsAreToldApart(t *testing.T) {
	h := open(t, Options{})
	mine := plan.Addr{Port: freePort(t)}
	h.apply(wants(mine))
	admin, err := h.ListenTCP("admin", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	adminPort := uint16(admin.Addr().(*net.TCPAddr).Port)

	refuse := func(t *testing.T, a plan.Addr, kind Kind, words ...string) {
		t.Helper()
		p := wants(mine, a)
		var bind *BindError
		if err := h.try(p); !errors.As(err, &bind) || bind.Kind != kind {
			t.Fatalf("port %s: %v, want kind %s", a, err, kind)
		}
		for _, w := range words {
			if !strings.Contains(bind.Error(), w) {
				t.Errorf("%q does not say %q", bind, w)
			}
		}
		t.Log(bind)
	}
	t.Run("in use", func(t *testing.T) {
		cmd, busy := occupy(t, "127.0.0.1:0")
		refuse(t, busy, InUse, "cannot bind tcp "+busy.String()+": held by ports.test (pid "+fmt.Sprint(cmd.Process.Pid), "choose another address")
		// The holder of any overlapping address is named.
		refuse(t, plan.Addr{Port: busy.Port}, InUse, fmt.Sprint(cmd.Process.Pid))
	})
	t.Run("in use, told from a neighbour", func(t *testing.T) {
		n := freePort(t)
		neighbour, _ := occupy(t, fmt.Sprintf("127.0.0.2:%d", n))
		cmd, busy := occupy(t, fmt.Sprintf("127.0.0.3:%d", n))
		refuse(t, busy, InUse, fmt.Sprintf("(pid %d,", cmd.Process.Pid))
		kill(cmd)
		refuse(t, plan.TCPAddr(netip.MustParseAddr("127.0.0.2"), n), InUse, fmt.Sprintf("(pid %d,", neighbour.Process.Pid))
		h.apply(wants(mine, busy)) // no holder of this one: a neighbour on the same number is none
		h.apply(wants(mine))
	})
	t.Run("address not on this host", func(t *testing.T) {
		refuse(t, plan.TCPAddr(netip.MustParseAddr("192.0.2.7"), 8080), NoAddress, "this host has no address 192.0.2.7 (it has 127.0.0.1")
	})
	t.Run("our own", func(t *testing.T) {
		refuse(t, loopback(adminPort), Own, "quaymaster itself holds", "for admin; choose another port")
		refuse(t, plan.Addr{Port: adminPort}, Own)
	})
	t.Run("permission", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("LOUD SKIP: needs root to become a user without rights")
		}
		present, _ := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
		cmd, said := childAs(t, 65534, "bind", 1, "127.0.0.1:81")
		kill(cmd)
		for _, w := range []string{"permission: cannot bind tcp 127.0.0.1:81: permission denied", "CAP_NET_BIND_SERVICE", "ip_unprivileged_port_start", "ports below " + strings.TrimSpace(string(present)) + " "} {
			if !strings.Contains(said[0], w) {
				t.Errorf("%q does not say %q", said[0], w)
			}
		}
		t.Log(said[0])
	})
	t.Run("holder that may not be looked at", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("LOUD SKIP: needs root to become a user without rights")
		}
		_, busy := occupy(t, "127.0.0.1:0")
		cmd, said := childAs(t, 65534, "bind", 1, busy.String())
		kill(cmd)
		if !strings.HasPrefix(said[0], "in_use: ") || !strings.Contains(said[0], "held by a process of user root (uid 0); run as root to see who; find it with") {
			t.Errorf("said %q", said[0])
		}
		t.Log(said[0])
	})
	says(t, h.bound(mine), mine)
}

func TestOnlyAnOverlappingListenerIsBlamed(t *testing.T) {
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	for _, c := range []struct {
		wish    string
		holders []string
		blamed  string
	}{
		{"127.0.0.1:80", []string{"127.0.0.2:80", "[::1]:80"}, ""},
		{"127.0.0.1:80", []string{"0.0.0.0:80"}, "0.0.0.0:80"},
		{"127.0.0.1:80", []string{"[::]:80"}, "[::]:80"},
		{"127.0.0.1:80", []string{"[::]:80", "127.0.0.1:80"}, "127.0.0.1:80"},
		{"[::1]:80", []string{"0.0.0.0:80"}, ""},
		{":80", []string{"[2001:db8::1]:80"}, "[2001:db8::1]:80"},
	} {
		e := &BindError{Kind: InUse, Addr: mustAddr(c.wish)}
		var holders []Holder
		for _, h := range c.holders {
			holders = append(holders, Holder{Pid: 2, Addr: at(h)})
		}
		e.blame(holders, nil)
		got := ""
		if e.Holder != nil {
			got = e.Holder.Addr.String()
		}
		if got != c.blamed {
			t.Errorf("%s beside %v: blamed %q, want %q", c.wish, c.holders, got, c.blamed)
		}
	}
}

func TestBackoffGrowsToItsCapWithJitter(t *testing.T) {
	p := &port{plan: &plan.Port{Addr: loopback(1)}}
	now := time.Unix(1e9, 0)
	for n := 1; n <= 2000; n++ {
		p.busy(&BindError{Kind: InUse}, now)
		step := min(minBackoff<<min(n-1, 20), maxBackoff)
		if wait := p.next.Sub(now); wait > step || wait < step*3/4 || p.state != Retrying {
			t.Fatalf("attempt %d: wait %v, want 3/4 to 1 of %v", n, wait, step)
		}
		now = p.next
	}
}

func TestGiveUpAfterStopsTryingAndSaysSo(t *testing.T) {
	cmd, busy := occupy(t, "127.0.0.1:0")
	h := open(t, Options{})
	p := wants(busy)
	p.Ports[0].Policy.GiveUpAfter = 700 * time.Millisecond
	began := time.Now()
	h.apply(p)
	e := h.await(busy, Failed, 5*time.Second)
	if d := e.Time.Sub(began); d < 700*time.Millisecond || d > 2*time.Second {
		t.Errorf("given up after %v", d)
	}
	if s := h.of(busy); s.State != Failed || !s.NextTry.IsZero() || !strings.Contains(s.Error, fmt.Sprint(cmd.Process.Pid)) || strings.Contains(s.Error, "next try") || !strings.Contains(s.Error, ", and reload: gave up after ") {
		t.Errorf("status %+v", s)
	}
	kill(cmd)
	h.apply(wants(busy)) // a reload starts over
	h.await(busy, Bound, 2*time.Second)
}

// Two log lines at most tell of a port that stays busy; the state does not flicker; little CPU is used.
func TestPortThatStaysBusyCostsLittle(t *testing.T) {
	_, busy := occupy(t, "127.0.0.1:0")
	reg := prometheus.NewRegistry()
	h := open(t, Options{Registry: reg})
	h.apply(wants(busy))
	before := cpu()
	for end := time.After(4 * time.Second); ; {
		select {
		case e := <-h.events:
			if e.State != Retrying || e.After != 1 {
				t.Errorf("event %+v", e)
			}
			continue
		case <-end:
		}
		break
	}
	if used := cpu() - before; used > 400*time.Millisecond {
		t.Errorf("%v of CPU in 4 s", used)
	}
	if n := len(h.log.all()); n != 1 {
		t.Errorf("%d log lines: %q", n, h.log.all())
	}
	// 0, 0.25, 0.5, 1, 2 s less jitter: five or six attempts.
	n := testutil.ToFloat64(h.metrics.failures.WithLabelValues(busy.String(), "in_use"))
	if n < 4 || n > 7 {
		t.Errorf("%v attempts in 4 s", n)
	}
	want := fmt.Sprintf(`
# HELP quaymaster_port_state 1 for the state that a wanted port is in.
# TYPE quaymaster_port_state gauge
quaymaster_port_state{port="%s",state="retrying"} 1
`, busy)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "quaymaster_port_state"); err != nil {
		t.Error(err)
	}
	h.apply(wants())
	if n, err := testutil.GatherAndCount(reg); n != 0 || err != nil {
		t.Errorf("%d series are left of a port that is gone, %v", n, err)
	}
}

// cpu is what this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestFallbackMovesToTheFirstFreeOneAndBackAtAReload(t *testing.T) {
	first, busy := occupy(t, "127.0.0.1:0")
	_, second := occupy(t, "127.0.0.1:0")
	h := open(t, Options{})
	free := loopback(freePort(t))
	p := func() *plan.Plan {
		p := wants(busy)
		p.Ports[0].Fallback = []plan.Addr{second, free, loopback(freePort(t))}
		return p
	}
	h.apply(p())
	s := h.of(busy)
	if s.State != Fallback || s.Port != free.Port || s.Holder == nil || s.Holder.Pid != first.Process.Pid || !strings.Contains(s.Error, busy.String()) {
		t.Errorf("status %+v", s)
	}
	says(t, free.String(), busy) // it is the wish that routes are found by
	if lines := h.log.all(); len(lines) != 1 || !strings.Contains(lines[0], `"state":"fallback"`) || !strings.Contains(lines[0], `"address":"`+free.String()) {
		t.Errorf("log %q", lines)
	}
	if n := testutil.ToFloat64(h.metrics.states.WithLabelValues(busy.String(), "fallback")); n != 1 {
		t.Errorf("metric %v", n)
	}
	h.apply(p())
	if s := h.of(busy); s.State != Fallback || s.Port != free.Port {
		t.Errorf("after a reload with the port still busy: %+v", s)
	}
	says(t, free.String(), busy)
	kill(first)
	h.apply(p())
	if s := h.of(busy); s.State != Bound || s.Port != busy.Port || s.Error != "" {
		t.Errorf("after a reload with the port free: %+v", s)
	}
	says(t, busy.String(), busy)
	silent(t, free.String())
}

func TestFallbackThatLeavesTheListIsLeft(t *testing.T) {
	cmd, busy := occupy(t, "127.0.0.1:0")
	h := open(t, Options{})
	old := loopback(freePort(t))
	p := wants(busy)
	p.Ports[0].Fallback = []plan.Addr{old}
	h.apply(p)
	says(t, old.String(), busy)
	h.apply(wants(busy)) // no fallback any more: not refused, since the running plan wants the port
	if s := h.of(busy); s.State != Retrying {
		t.Errorf("status %+v", s)
	}
	silent(t, old.String())
	kill(cmd)
	h.await(busy, Bound, 3*time.Second)
}

// A port that another one had as its fallback is taken over with its socket.
func TestPortTakesTheSocketOfAFallbackThatLeaves(t *testing.T) {
	_, busy := occupy(t, "127.0.0.1:0")
	h := open(t, Options{})
	b := loopback(freePort(t))
	p := wants(busy)
	p.Ports[0].Fallback = []plan.Addr{b}
	h.apply(p)
	was := inode(t, h, b)
	h.apply(wants(b))
	if is := inode(t, h, b); is != was {
		t.Errorf("the socket was replaced: inode %d, then %d", was, is)
	}
	says(t, b.String(), b)
}

// inode is the identity of the socket bound to a.
func inode(t *testing.T, h *harbour, a plan.Addr) uint64 {
	t.Helper()
	socks, err := h.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	var ino uint64
	for _, s := range socks {
		var st unix.Stat_t
		if err := unix.Fstat(s.FD, &st); err != nil {
			t.Fatal(err)
		}
		if s.Addr == a {
			ino = st.Ino
		}
		unix.Close(s.FD)
	}
	return ino
}

func TestUnixListeners(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "app.sock")
	a := plan.Addr{Network: plan.Unix, Path: path}
	h := open(t, Options{})

	t.Run("a stale socket is replaced", func(t *testing.T) {
		cmd, _ := child(t, "listen", 1, path)
		h.apply(wants())
		var bind *BindError
		if err := h.try(wants(a)); !errors.As(err, &bind) || bind.Kind != InUse || bind.Holder == nil || bind.Holder.Pid != cmd.Process.Pid {
			t.Fatalf("a live socket: %v", err)
		} else if want := fmt.Sprintf("cannot bind unix %s: held by ports.test (pid %d", path, cmd.Process.Pid); !strings.Contains(err.Error(), want) {
			t.Errorf("%q, want %q", err, want)
		}
		kill(cmd)
		if _, err := os.Lstat(path); err != nil {
			t.Fatalf("the dead process left no socket: %v", err)
		}
		h.apply(wants(a))
		says(t, path, a)
		if s := h.of(a); s.Proto != "unix" || s.Address != path || s.State != Bound {
			t.Errorf("status %+v", s)
		}
		h.apply(wants())
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file is still there: %v", err)
		}
	})
	t.Run("a file that is no socket stays", func(t *testing.T) {
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
		if err := h.try(wants(a)); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("bind on a file: %v", err)
		}
		if b, _ := os.ReadFile(path); string(b) != "precious" {
			t.Errorf("the file holds %q", b)
		}
	})
	t.Run("a socket that somebody put in our place stays", func(t *testing.T) {
		h.apply(wants(a))
		os.Remove(path)
		other, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		h.apply(wants())
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the other's file is gone: %v", err)
		}
	})
	t.Run("queued clients are served at the end", func(t *testing.T) {
		step, err := h.Prepare(t.Context(), wants(a))
		if err != nil {
			t.Fatal(err)
		}
		conns := dialMany(t, path, 20)
		step.Commit()
		step.Retire()
		h.apply(wants())
		allSaid(t, conns, a.String())
	})
	t.Run("admin", func(t *testing.T) {
		path := filepath.Join(dir, "run", "admin.sock")
		for range 2 {
			l, err := h.ListenAdmin(path, "0600", "")
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v", info, err)
			}
			if dir, _ := os.Stat(filepath.Dir(path)); dir.Mode().Perm() != 0o700 {
				t.Errorf("folder mode %v", dir.Mode())
			}
			if s := h.Status(); len(s) != 1 || s[0].Source != "admin" || s[0].Address != path {
				t.Errorf("status %+v", s)
			}
			if _, err := h.ListenAdmin(path, "0600", ""); err == nil {
				t.Error("the admin socket could be opened twice")
			} else {
				t.Log(err)
			}
			l.Close()
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file is still there: %v", err)
			}
		}
		if l, err := h.ListenAdmin(path, "0660", "0"); err != nil {
			t.Error(err)
		} else {
			if info, _ := os.Stat(path); info.Mode().Perm() != 0o660 {
				t.Errorf("mode %v", info.Mode())
			}
			l.Close()
		}
		for _, mode := range []string{"", "rw", "0", "01777"} {
			if _, err := h.ListenAdmin(path, mode, ""); err == nil {
				t.Errorf("mode %q was taken", mode)
			}
		}
		if _, err := h.ListenAdmin(path, "0600", "no such group"); err == nil {
			t.Error("an unknown group was taken")
		}
		if len(h.Status()) != 0 {
			t.Errorf("status %+v", h.Status())
		}
	})
}
