//go:build linux

package ports

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// soon is a grace that tests can wait for.
const soon = 300 * time.Millisecond

func TestP11_NeverIsTheDefault(t *testing.T) {
	f := holds(t, "echo", 0, "127.0.0.1:0")
	h := open(t, Options{Own: func(int, time.Time) bool { return true }})
	h.apply(wants(f.addr))
	h.attempts(f.addr, 3)
	if !lives(f.pid) || len(h.evictions(f.addr)) > 0 {
		t.Errorf("alive: %v, signals %v", lives(f.pid), h.evictions(f.addr))
	}
}

func TestP11_ReloadEndsAHolderThatObeys(t *testing.T) {
	f := holds(t, "echo", 0, "127.0.0.1:0")
	h := open(t, Options{reload: patience})
	h.apply(wants())
	c := connect(t, f.addr)
	h.apply(policies(f.addr, "retry", "any"))
	c.over()
	if s := h.of(f.addr); s.State != Bound {
		t.Errorf("status %+v", s)
	}
	says(t, f.addr.String(), f.addr)
}

// A reload does not wait for the grace: it is refused, and a later one goes on from there.
func TestP11_ReloadThatIsRefusedIsGoneOnWithByTheNext(t *testing.T) {
	f := holds(t, "stubborn", 0, "127.0.0.1:0")
	h := open(t, Options{grace: 5 * time.Second})
	h.apply(wants())
	c := connect(t, f.addr)
	p := policies(f.addr, "retry", "any")
	p.Ports[0].Fallback = []plan.Addr{}
	began := time.Now()
	var bind *BindError
	if err := h.try(p); !errors.As(err, &bind) || !strings.Contains(err.Error(), errStillThere) || bind.Holder == nil {
		t.Fatalf("the first reload: %v", err)
	}
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("the reload was held up for %v", d)
	}
	c.served("after the refusal")
	if len(h.Status()) != 0 {
		t.Errorf("status %+v", h.Status())
	}
	for limit := time.Now().Add(patience); ; {
		err := h.try(p)
		if err == nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("the last reload: %v", err)
		}
		if time.Since(began) < 5*time.Second && !lives(f.pid) {
			t.Fatal("it was killed within the grace")
		}
	}
	says(t, f.addr.String(), f.addr)
	c.over()
	signals := h.evictions(f.addr)
	if len(signals) < 3 || slices.Contains(signals[:len(signals)-1], "KILL") || signals[len(signals)-1] != "KILL" {
		t.Errorf("signals %v", signals)
	}
	if n := len(h.takeovers[f.addr].began); n != 1 {
		t.Errorf("one holder counts as %d evictions", n)
	}
}

// Nobody is ended for a plan that cannot come true.
func TestP11_NobodyIsEndedForAPlanThatIsRefused(t *testing.T) {
	f := holds(t, "echo", 0, "127.0.0.1:0")
	_, busy := occupy(t, "127.0.0.1:0")
	for name, first := range map[string]bool{"at start": true, "at a reload": false} {
		t.Run(name, func(t *testing.T) {
			h := open(t, Options{})
			if !first {
				h.apply(wants())
			}
			p := wants(f.addr, busy)
			for _, port := range p.Ports {
				port.Policy.OnBusy = "fail"
				if port.Addr == f.addr {
					port.Policy.TakeOver = "any"
				}
			}
			if err := h.try(p); err == nil || !strings.Contains(err.Error(), busy.String()) || !strings.Contains(err.Error(), f.addr.String()) {
				t.Errorf("plan: %v", err)
			}
			if !lives(f.pid) || len(h.evictions(f.addr)) > 0 {
				t.Errorf("alive: %v, signals %v", lives(f.pid), h.evictions(f.addr))
			}
		})
	}
}

func TestP11_AHolderThatDoesNotObeyIsKilledAfterTheGrace(t *testing.T) {
	for _, onBusy := range []string{"retry", "fail"} {
		t.Run(onBusy, func(t *testing.T) {
			f := holds(t, "stubborn", 0, "127.0.0.1:0")
			h := open(t, Options{grace: soon})
			other := loopback(freePort(t))
			p := policies(f.addr, onBusy, "any")
			p.Ports = append(p.Ports, wants(other).Ports...)
			slices.SortFunc(p.Ports, func(a, b *plan.Port) int { return a.Addr.Compare(b.Addr) })
			h.apply(p)
			says(t, other.String(), other)
			await(t, "the port is bound", func() bool { return h.of(f.addr).State == Bound })
			says(t, f.addr.String(), f.addr)
			if got := h.evictions(f.addr); !slices.Equal(got, []string{"TERM", "KILL"}) {
				t.Errorf("signals %v", got)
			}
			told := 0
			for _, line := range h.log.all() {
				if strings.Contains(line, `"msg":"holder told to end"`) && strings.Contains(line, fmt.Sprintf("(pid %d,", f.pid)) && strings.Contains(line, f.addr.String()) {
					told++
				}
			}
			if told != 2 {
				t.Errorf("%d log lines name the holder and the port: %q", told, h.log.all())
			}
			// Polling for its end is no storm of failed attempts.
			if n := testutil.ToFloat64(h.metrics.failures.WithLabelValues(f.addr.String(), "in_use")); n > 3 {
				t.Errorf("%v failed attempts were counted", n)
			}
		})
	}
}

func TestP11_AHolderThatLetsGoServesItsClientsToTheEnd(t *testing.T) {
	f := holds(t, "letgo", 0, "127.0.0.1:0")
	h := open(t, Options{grace: soon})
	c := connect(t, f.addr)
	h.apply(policies(f.addr, "retry", "any"))
	await(t, "the port is bound", func() bool { return h.of(f.addr).State == Bound })
	<-time.After(2 * soon) // KILL would have come
	c.served("after it let go")
	if got := h.evictions(f.addr); !slices.Equal(got, []string{"TERM"}) {
		t.Errorf("signals %v", got)
	}
}

func TestP11_AHolderThatComesBackEachTimeIsNotEndedForEver(t *testing.T) {
	for range 10 { // now and then the port is ours before the next of them has it
		if comesBack(t) {
			return
		}
	}
	t.Error("nobody ever came back")
}

// comesBack ends holders that others replace at once, and reports whether they did so each time.
func comesBack(t *testing.T) bool {
	f := holds(t, "echo", 0, "127.0.0.1:0")
	var waiting []*exec.Cmd
	for range maxTakeovers + 2 { // what a supervisor would start one after the other
		cmd, _ := child(t, "waiting", 0, f.addr.String())
		defer kill(cmd)
		waiting = append(waiting, cmd)
	}
	h := open(t, Options{})
	h.apply(policies(f.addr, "retry", "any"))
	for done := false; !done; {
		select {
		case e := <-h.events:
			done = e.Signal == "" && strings.Contains(e.Reason, errComesBack)
			if e.State == Bound {
				return false
			}
		case <-time.After(patience):
			t.Fatalf("status %+v", h.of(f.addr))
		}
	}
	h.attempts(f.addr, testutil.ToFloat64(h.metrics.failures.WithLabelValues(f.addr.String(), "in_use"))+1)
	if got, s := h.evictions(f.addr), h.of(f.addr); len(got) != maxTakeovers || s.State != Retrying || s.Holder == nil {
		t.Errorf("signals %v, status %+v", got, s)
	}
	alive := 0
	for _, cmd := range waiting {
		if lives(cmd.Process.Pid) {
			alive++
		}
	}
	if alive != len(waiting)-maxTakeovers+1 { // the first to be ended was the one they waited for
		t.Errorf("%d of %d are left", alive, len(waiting))
	}
	return true
}

func TestP11_TakeOverComesBeforeTheFallback(t *testing.T) {
	for _, c := range []struct {
		takeOver string
		first    bool
		state    State
	}{{"any", true, Bound}, {"any", false, Bound}, {"own", true, Fallback}, {"own", false, Fallback}} {
		t.Run(fmt.Sprintf("%s, first %v", c.takeOver, c.first), func(t *testing.T) {
			f := holds(t, "echo", 0, "127.0.0.1:0")
			h := open(t, Options{reload: patience})
			if !c.first {
				h.apply(wants())
			}
			p := policies(f.addr, "retry", c.takeOver)
			p.Ports[0].Fallback = []plan.Addr{loopback(freePort(t))}
			h.apply(p)
			await(t, string(c.state), func() bool { return h.of(f.addr).State == c.state })
			if c.takeOver == "any" {
				await(t, "the holder's end", func() bool { return !lives(f.pid) })
			} else if !lives(f.pid) {
				t.Error("the holder was ended")
			}
		})
	}
}

// A neighbour that listens on the number for IPv6 alone is in nobody's way.
func TestP11_AListenerBesideThePortIsLeftAlone(t *testing.T) {
	n := freePort(t)
	held, _ := child(t, "listen", 1, fmt.Sprintf("0.0.0.0:%d", n))
	six, _ := child(t, "listen", 1, fmt.Sprintf("[::]:%d", n))
	h := open(t, Options{})
	a := plan.TCPAddr(netip.IPv4Unspecified(), n)
	h.apply(policies(a, "fail", "any"))
	says(t, fmt.Sprintf("127.0.0.1:%d", n), a)
	await(t, "the holder's end", func() bool { return !lives(held.Process.Pid) })
	if !lives(six.Process.Pid) {
		t.Error("its neighbour was ended")
	}
}

func TestP11_UnixSocketsAreTakenOverToo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	cmd, _ := child(t, "listen", 1, path)
	a := plan.Addr{Network: plan.Unix, Path: path}
	h := open(t, Options{})
	h.apply(policies(a, "fail", "any"))
	await(t, "the holder's end", func() bool { return !lives(cmd.Process.Pid) })
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestP11_NobodyIsKilledAfterStop(t *testing.T) {
	f := holds(t, "stubborn", 0, "127.0.0.1:0")
	h := open(t, Options{grace: soon})
	h.apply(policies(f.addr, "retry", "any"))
	await(t, "TERM", func() bool { return len(h.evictions(f.addr)) > 0 })
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(h.evictions(f.addr), "KILL") {
		t.Skip("LOUD SKIP: the machine was too slow to stop in time")
	}
	<-time.After(3 * soon)
	if !lives(f.pid) {
		t.Error("it was killed")
	}
}
