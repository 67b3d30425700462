package leases

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A bench is leases with a real folder, and what they say.
type bench struct {
	*Leases
	t     *testing.T
	dir   string
	store *state.Dir
	log   *lines
	reg   *prometheus.Registry
}

type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// open returns leases of a range, with the file of dir. An fsync costs nothing where there is memory to write to.
func open(t *testing.T, dir string, r plan.PortRange, published Published) *bench {
	t.Helper()
	return openPlan(t, dir, &plan.Plan{Settings: plan.Settings{AppPorts: r}}, published)
}

// openPlan does it with a first plan that has more to say.
func openPlan(t *testing.T, dir string, p *plan.Plan, published Published) *bench {
	t.Helper()
	if dir == "" {
		base := "/dev/shm"
		if _, err := os.Stat(base); err != nil {
			base = ""
		}
		var err error
		if dir, err = os.MkdirTemp(base, "qm-leases-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	store, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir, store: store, log: &lines{}, reg: prometheus.NewRegistry()}
	b.Leases = New(Options{
		Store: store, Published: published, Registry: b.reg,
		Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	t.Cleanup(b.stop)
	b.follow(p)
	return b
}

// follow makes a plan the one in force.
func (b *bench) follow(p *plan.Plan) {
	b.t.Helper()
	step, err := b.Prepare(b.t.Context(), p)
	if err != nil {
		b.t.Fatal(err)
	}
	step.Commit()
	step.Retire()
}

// stop ends it as the daemon does at stop. A second time does nothing.
func (b *bench) stop() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = b.Run(ctx)
	_ = b.store.Close()
}

// one asks for one port and commits it.
func (b *bench) one(w Want) *Lease {
	b.t.Helper()
	c, err := b.Ask(b.t.Context(), w)
	if err != nil {
		b.t.Fatal(err)
	}
	c.Commit()
	return c.Leases()[0]
}

// file is what is on the disk: "web 32100, db 32101".
func (b *bench) file() string {
	b.t.Helper()
	list, err := b.read()
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprintf("%s %d", r.Name, r.Port))
	}
	return strings.Join(out, ", ")
}

// memory is what Status lists, as file writes it, by name.
func (b *bench) memory() string {
	var out []string
	for _, s := range b.Status() {
		out = append(out, fmt.Sprintf("%s %d", s.Name, s.Port))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// taken keeps ranges of tests that run at once apart.
var taken atomic.Int32

// free is a range of n ports that nobody listens on, below the ephemeral ones.
func free(t *testing.T, n int) plan.PortRange {
	t.Helper()
next:
	for range 200 {
		lo := 14000 + (int(taken.Add(int32(n)))-n+os.Getpid()*7)%5500
		for p := lo; p < lo+n; p++ {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", p))
			if err != nil {
				continue next
			}
			_ = l.Close()
		}
		return plan.PortRange{Lo: uint16(lo), Hi: uint16(lo + n - 1)}
	}
	t.Fatal("no free range")
	return plan.PortRange{}
}

// listen takes a port as a stranger would.
func listen(t *testing.T, ip string, port uint16) net.Listener {
	t.Helper()
	network := "tcp4"
	if netip.MustParseAddr(ip).Is6() {
		network = "tcp6"
	}
	l, err := net.Listen(network, net.JoinHostPort(ip, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// everywhere are the addresses on which a port can be busy.
var everywhere = []string{"0.0.0.0", "127.0.0.1", "::", "::1"}

// heldEverywhere fails where somebody else could have the port.
func heldEverywhere(t *testing.T, port uint16) {
	t.Helper()
	for _, ip := range everywhere {
		network := "tcp4"
		if strings.Contains(ip, ":") {
			network = "tcp6"
		}
		if l, err := net.Listen(network, net.JoinHostPort(ip, fmt.Sprint(port))); err == nil {
			_ = l.Close()
			t.Errorf("port %d is held, and %s of it could be had", port, ip)
		}
	}
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestP13_FiftyAtOnceGetFiftyPortsLowestFirst(t *testing.T) {
	t.Parallel()
	r := free(t, 60)
	b := open(t, "", r, nil)
	var wg sync.WaitGroup
	got := make([]uint16, 50)
	for i := range got {
		wg.Go(func() {
			c, err := b.Ask(t.Context(), Want{Name: fmt.Sprintf("app-%d", i), Promise: i%2 == 0})
			if err != nil {
				t.Error(err)
				return
			}
			c.Commit()
			got[i] = c.Leases()[0].Port()
		})
	}
	wg.Wait()
	slices.Sort(got)
	for i, port := range got {
		if port != r.Lo+uint16(i) {
			t.Fatalf("the ports are %v, want %d and the 49 after it", got, r.Lo)
		}
	}
	if b.file() != b.memory() {
		t.Errorf("on the disk: %s\nin memory: %s", b.file(), b.memory())
	}
}

func TestP13_BusyPortsArePassedOverAndTheirHoldersNamed(t *testing.T) {
	t.Parallel()
	r := free(t, 8)
	for i, ip := range everywhere {
		listen(t, ip, r.Lo+uint16(i))
	}
	b := open(t, "", r, func(context.Context) (map[uint16]string, error) {
		return map[uint16]string{r.Lo + 4: "container db (podman)"}, nil
	})
	b.follow(&plan.Plan{Settings: plan.Settings{AppPorts: r}, Ports: []*plan.Port{
		{Addr: plan.Addr{Port: r.Lo + 5}, Users: []string{"route api"}},
	}})
	l := b.one(Want{Name: "web"})
	if l.Port() != r.Lo+6 {
		t.Errorf("leased %d, want %d, the first that is free", l.Port(), r.Lo+6)
	}
	b.one(Want{Name: "again"}) // says nothing new
	log := b.log.String()
	for i, ip := range everywhere {
		port := r.Lo + uint16(i)
		want := fmt.Sprintf("(pid %d", os.Getpid())
		if n := strings.Count(log, fmt.Sprintf("passed over for leases\" port=%d", port)); n != 1 {
			t.Errorf("port %d (%s) is named in %d lines", port, ip, n)
		}
		if !strings.Contains(log, want) || !strings.Contains(log, netip.AddrPortFrom(netip.MustParseAddr(ip), port).String()) {
			t.Errorf("the holder of %s:%d is not named in\n%s", ip, port, log)
		}
	}
	if !strings.Contains(log, fmt.Sprintf("port=%d reason=\"published by container db (podman)\"", r.Lo+4)) {
		t.Errorf("the container is not named in\n%s", log)
	}
}

func TestP13_ConnectionsInTimeWaitDoNotMakeAPortBusy(t *testing.T) {
	t.Parallel()
	r := free(t, 1)
	l := listen(t, "127.0.0.1", r.Lo)
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = server.Close() // the side that closes first waits
	_, _ = client.Read(make([]byte, 1))
	_ = client.Close()
	_ = l.Close()
	if got := open(t, "", r, nil).one(Want{Name: "web"}).Port(); got != r.Lo {
		t.Errorf("leased %d", got)
	}
}

func TestSilentEngineIsOneWarningAndBindDecides(t *testing.T) {
	t.Parallel()
	r := free(t, 4)
	answer := errors.New("no answer within 1s")
	b := open(t, "", r, func(context.Context) (map[uint16]string, error) { return nil, answer })
	listen(t, "127.0.0.1", r.Lo)
	if b.one(Want{Name: "a"}).Port() != r.Lo+1 || b.one(Want{Name: "b"}).Port() != r.Lo+2 {
		t.Errorf("leases %s", b.memory())
	}
	if n := strings.Count(b.log.String(), "container engine does not answer"); n != 1 {
		t.Errorf("%d warnings", n)
	}
	answer = nil
	b.one(Want{Name: "a", New: true})
	answer = errors.New("again")
	b.one(Want{Name: "b", New: true})
	if n := strings.Count(b.log.String(), "container engine does not answer"); n != 2 {
		t.Errorf("%d warnings after an answer in between", n)
	}
}

func TestP15_ExhaustedRangeNamesEveryHolderAndOneReleaseIsEnough(t *testing.T) {
	t.Parallel()
	r := free(t, 4)
	listen(t, "::1", r.Lo+1)
	b := open(t, "", r, func(context.Context) (map[uint16]string, error) {
		return map[uint16]string{r.Lo + 3: "container db (docker)"}, nil
	})
	b.one(Want{Name: "web"})
	b.one(Want{Name: "api"})
	_, err := b.Ask(t.Context(), Want{Name: "late"})
	var full *ExhaustedError
	if !errors.As(err, &full) || full.Range != r || len(full.Who) != 4 {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{
		r.String(), fmt.Sprintf("%d leased to web", r.Lo), fmt.Sprintf("(pid %d", os.Getpid()), fmt.Sprintf("%d leased to api", r.Lo+2),
		fmt.Sprintf("%d published by container db (docker)", r.Lo+3), "quaymaster ports release NAME",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if ok, err := b.Release(t.Context(), "web"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if got := b.one(Want{Name: "late"}).Port(); got != r.Lo {
		t.Errorf("leased %d after the release of %d", got, r.Lo)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	b := open(t, "", free(t, 5), nil)
	for name, ok := range map[string]bool{
		"web": true, "a": true, "web-2": true, "2": true, strings.Repeat("a", 63): true,
		"": false, "Web": false, "-web": false, "web-": false, "we b": false, "a.b": false, "../x": false, "wéb": false, strings.Repeat("a", 64): false,
	} {
		_, err := b.Ask(t.Context(), Want{Name: name})
		var bad *NameError
		if ok != (err == nil) || !ok && !errors.As(err, &bad) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := b.Release(t.Context(), name); !ok && !errors.As(err, &bad) {
			t.Errorf("release %q: %v", name, err)
		}
	}
	if _, err := b.Ask(t.Context(), Want{Name: "x"}, Want{Name: "x"}); err == nil {
		t.Error("one name twice in a claim was taken")
	}
}
