package guard

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lines is a log that can be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// list returns the lines written so far, without their times.
func (l *lines) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() == 0 {
		return nil
	}
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func many() uint64 { return 1 << 20 }

// follow commits a plan with these settings.
func follow(t testing.TB, g *Guard, s plan.Settings, ports ...*plan.Port) {
	t.Helper()
	step, err := g.Prepare(context.Background(), &plan.Plan{Settings: s, Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	step.Commit()
	step.Retire()
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestASlotIsRefusedWhenNoneIsFreeAndFreedAtOnce(t *testing.T) {
	g := New(Options{Limit: many})
	follow(t, g, plan.Settings{MaxConnections: 2})
	for n, want := range []bool{true, true, false, false} {
		if g.Accept() != want {
			t.Fatalf("attempt %d: %t", n, !want)
		}
	}
	g.Leave()
	for n, want := range []bool{true, false} {
		if g.Accept() != want {
			t.Errorf("attempt %d after one left: %t", n, !want)
		}
	}
	if s := g.Status(); s.Active != 2 || s.Max != 2 || s.Wanted != 2 {
		t.Errorf("%+v", s)
	}
}

// race lets many goroutines in and out, and demands that never more than most are in and that none is lost.
func race(t *testing.T, most int64, enter func() bool, leave func()) {
	t.Helper()
	var inside, entered atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range 10_000 {
				if !enter() {
					runtime.Gosched()
					continue
				}
				entered.Add(1)
				if inside.Add(1) > most {
					t.Error("more than the limit are in")
				}
				if n%64 == 0 {
					runtime.Gosched()
				}
				inside.Add(-1)
				leave()
			}
		})
	}
	wg.Wait()
	if entered.Load() < 1000 {
		t.Errorf("only %d came in", entered.Load())
	}
	for range most {
		if !enter() {
			t.Fatal("a slot was lost")
		}
	}
	if enter() {
		t.Error("a slot was won")
	}
}

func TestCountsStayRightUnderRaces(t *testing.T) {
	for _, most := range []int{1, 2, 7} {
		g := New(Options{Limit: many})
		follow(t, g, plan.Settings{MaxConnections: most, MaxPerIP: most})
		gate := NewGate(&plan.Route{Name: "r", Security: plan.Security{MaxConns: most}}, g)
		race(t, int64(most), g.Accept, g.Leave)
		race(t, int64(most), func() bool { _, ok := g.Identify(addr10); return ok }, func() { g.Forget(addr10) })
		race(t, int64(most), func() bool { _, _, ok := gate.Enter(addr10, nil); return ok }, gate.Leave)
		rated := NewGate(&plan.Route{Name: "rated", Security: plan.Security{
			MaxConns: most, Rate: &plan.RateLimit{Requests: 1 << 30, Per: time.Second, Key: "route"},
		}}, g)
		race(t, int64(most), func() bool { _, _, ok := rated.Enter(addr10, nil); return ok }, rated.Leave)
	}
}

// Where nobody is refused nothing slows the counting down, and a lost count shows soonest.
func TestNoCountIsLostAmongThoseWhoComeAndGo(t *testing.T) {
	g := New(Options{Limit: many})
	gate := NewGate(&plan.Route{Name: "r", Security: plan.Security{MaxConns: 1000}}, g)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200_000 {
				g.Accept()
				g.Leave()
				gate.Enter(addr10, nil)
				gate.Leave()
			}
		})
	}
	wg.Wait()
	if n, m := g.Status().Active, gate.Active(); n != 0 || m != 0 {
		t.Errorf("all are gone, and %d connections and %d exchanges are counted", n, m)
	}
}

func TestMaxConnectionsIsClampedToTheOpenFilesAndTheArithmeticIsLogged(t *testing.T) {
	for _, c := range []struct {
		wanted, ports int
		files         uint64
		max           int
		line          string
	}{
		{10_000, 2, 1024, 447, `level=WARN msg="max_connections is more than the open files allow" max=447 wanted=10000 open_files=1024 reserved=130 files_per_connection=2 remedy="raise the limit of open files to 20130 (LimitNOFILE= or ulimit -n), or lower max_connections"`},
		{100, 2, 1024, 100, `level=INFO msg="connection slots" max=100 wanted=100 open_files=1024 reserved=130 files_per_connection=2`},
		{10_000, 0, 64, 16, "max=16 wanted=10000 open_files=64 reserved=32"},
		{10_000, 1, 2, 1, "max=1 "},
		{10_000, 1, 0, 1, "max=1 "},
		{0, 0, ^uint64(0), 1 << 20, "max=1048576"},
	} {
		var log lines
		g := New(Options{Log: log.logger(), Limit: func() uint64 { return c.files }})
		ports := make([]*plan.Port, c.ports)
		for i := range ports {
			ports[i] = &plan.Port{Addr: plan.Addr{Port: uint16(80 + i)}}
		}
		for range 2 { // the second time nothing changed and nothing is said
			follow(t, g, plan.Settings{MaxConnections: c.wanted}, ports...)
		}
		if got := log.list(); g.Status().Max != c.max || len(got) != 1 || !strings.Contains(got[0], c.line) {
			t.Errorf("%d of %d: %d, %q", c.wanted, c.files, g.Status().Max, got)
		}
	}
}

// The remedy must be enough: with that many files nothing is clamped.
func TestTheRemedyForTooFewFilesIsEnough(t *testing.T) {
	for _, ports := range []int{0, 1, 500} {
		for _, wanted := range []int{1, 100, 10_000} {
			for _, files := range []uint64{16, 64, 200, 256, 1024} {
				c := ceilingOf(wanted, files, ports)
				if c.max == wanted {
					continue
				}
				if again := ceilingOf(wanted, c.enough(), ports); again.max != wanted {
					t.Errorf("%d wanted of %d files, %d ports: %d files still hold only %d", wanted, files, ports, c.enough(), again.max)
				}
			}
		}
	}
}

func TestTheProcessesOwnLimitIsAsked(t *testing.T) {
	if n := New(Options{}).Status().Max; n < 1 || n > mostConns {
		t.Error(n)
	}
}

func TestAReloadChangesLimitsForLaterArrivalsAndForgetsNobody(t *testing.T) {
	g := New(Options{Limit: many})
	follow(t, g, plan.Settings{MaxConnections: 3}) // no limit per address yet
	for range 3 {
		if !g.Accept() {
			t.Fatal("refused")
		}
		if _, ok := g.Identify(addr("10.0.0.1")); !ok {
			t.Fatal("refused")
		}
	}
	follow(t, g, plan.Settings{MaxConnections: 2, MaxPerIP: 3})
	if why, ok := g.Identify(addr("10.0.0.1")); ok || why != PerIP {
		t.Error("those who came before the limit were not counted:", why)
	}
	g.Leave()
	if g.Accept() {
		t.Error("two are there, and two is the limit now")
	}
	g.Leave()
	if !g.Accept() {
		t.Error("a slot under the new limit is free")
	}
	step, err := g.Prepare(context.Background(), &plan.Plan{Settings: plan.Settings{MaxConnections: 1}})
	if err != nil {
		t.Fatal(err)
	}
	step.Abort()
	if g.Status().Max != 2 {
		t.Error("an aborted plan left something behind")
	}
}

func TestLimitsThatMakeNoSenseAreErrors(t *testing.T) {
	for _, s := range []plan.Settings{{RatePerIP: -1}, {MaxPerIP: -1}, {MaxConnections: -1}} {
		if _, err := New(Options{}).Prepare(context.Background(), &plan.Plan{Settings: s}); err == nil {
			t.Errorf("%+v was taken", s)
		}
	}
}

func TestAnAddressHasSoManyConnections(t *testing.T) {
	g := New(Options{Limit: many})
	follow(t, g, plan.Settings{MaxPerIP: 1})
	for _, c := range []struct {
		first, second string
		same          bool
	}{
		{"10.0.0.1", "10.0.0.1", true},
		{"10.0.0.1", "::ffff:10.0.0.1", true},
		{"10.0.0.1", "10.0.0.2", false},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true},
		{"2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"0.0.0.0", "::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
	} {
		if _, ok := g.Identify(addr(c.first)); !ok {
			t.Fatal(c.first, "refused")
		}
		why, ok := g.Identify(addr(c.second))
		if ok == c.same || !ok && why != PerIP {
			t.Errorf("%s and %s: %t %s", c.first, c.second, ok, why)
		}
		if ok {
			g.Forget(addr(c.second))
		}
		g.Forget(addr(c.first))
		if known, _ := g.peers.size(); known != 0 {
			t.Errorf("%s: %d addresses remembered without a reason", c.first, known)
		}
	}
	if _, ok := g.Identify(netip.Addr{}); !ok { // a unix socket
		t.Error("a client without an address was refused")
	}
	g.Forget(netip.Addr{})
}

func TestAnAddressMayOpenSoManyAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Limit: many})
		follow(t, g, plan.Settings{RatePerIP: 3})
		come := func() bool {
			why, ok := g.Identify(addr("10.0.0.1"))
			if ok {
				g.Forget(addr("10.0.0.1"))
			} else if why != Rate {
				t.Error(why)
			}
			return ok
		}
		for range 3 {
			if !come() {
				t.Fatal("three may come at once")
			}
		}
		if come() {
			t.Error("the fourth came")
		}
		time.Sleep(19 * time.Second)
		if come() {
			t.Error("one too early")
		}
		time.Sleep(time.Second)
		if !come() || come() {
			t.Error("one in twenty seconds, no more")
		}
		time.Sleep(time.Hour)
		for range 3 {
			if !come() {
				t.Error("after an hour there are three again")
			}
		}
		if come() {
			t.Error("and no more than three")
		}
	})
}

func TestARefusedConnectionCostsNoToken(t *testing.T) {
	g := New(Options{Limit: many})
	follow(t, g, plan.Settings{MaxPerIP: 1, RatePerIP: 2})
	ip := addr("10.0.0.1")
	if _, ok := g.Identify(ip); !ok {
		t.Fatal("refused")
	}
	for range 10 {
		if why, _ := g.Identify(ip); why != PerIP {
			t.Fatal(why)
		}
	}
	g.Forget(ip)
	if why, ok := g.Identify(ip); !ok {
		t.Error(why)
	}
}

func TestMemoryIsBoundedUnderManyAddresses(t *testing.T) {
	g := New(Options{Limit: many})
	follow(t, g, plan.Settings{RatePerIP: 1, MaxPerIP: 1})
	r := rand.New(rand.NewPCG(1, 2))
	held := map[key]netip.Addr{}
	for range 300_000 {
		var b [16]byte
		for i := range 8 {
			b[i] = byte(r.Uint32())
		}
		ip := netip.AddrFrom16(b)
		if _, ok := g.Identify(ip); !ok {
			continue
		}
		if len(held) < 500 {
			held[keyOf(ip)] = ip
			continue
		}
		g.Forget(ip)
	}
	known, idle := g.peers.size()
	if idle > idlePeers || known > idlePeers+len(held) {
		t.Errorf("%d addresses known, %d of them idle", known, idle)
	}
	if idle < idlePeers/2 {
		t.Errorf("only %d idle ones are remembered", idle)
	}
	for _, ip := range held { // whoever is there was not forgotten for it
		if why, ok := g.Identify(ip); ok {
			t.Fatalf("%s came twice (%s)", ip, why)
		}
		g.Forget(ip)
	}
}

func TestTheLongestGoneIsForgottenFirst(t *testing.T) {
	r := newRate(1, time.Minute, 1)
	t.Run("tokens", func(t *testing.T) {
		forgets(t, func(tb *table, k key) bool { return tb.token(k, 0, r) == 0 })
	})
	t.Run("connections", func(t *testing.T) {
		forgets(t, func(tb *table, k key) bool {
			_, ok := tb.enter(k, 0, 0, r)
			if ok {
				tb.leave(k, 0)
			}
			return ok
		})
	})
}

// forgets lets four come of whom three can be remembered.
func forgets(t *testing.T, enter func(*table, key) bool) {
	var tb table
	tb.init(3 * shardCount)
	var keys []key // of one shard
	for n := uint64(0); len(keys) < 4; n++ {
		if k := (key{lo: n}); tb.shard(k) == &tb.shards[0] {
			keys = append(keys, k)
		}
	}
	come := func(n int) bool { return enter(&tb, keys[n]) }
	for n := range 3 {
		if !come(n) {
			t.Fatal("refused")
		}
	}
	if come(0) { // is refused, and is the last that came
		t.Error("0 came twice")
	}
	come(3)
	if come(0) || come(2) {
		t.Error("those who came lately were forgotten")
	}
	if !come(1) {
		t.Error("1 was gone longest and is remembered")
	}
	if s := &tb.shards[0]; len(s.slots) > 4 || s.idle > 3 {
		t.Errorf("%d slots for three", len(s.slots))
	}
}

func TestSlotsOfThoseWhoLeftAreUsedAgain(t *testing.T) {
	g := New(Options{Limit: many})
	for range 5 {
		for n := range 3000 {
			g.Identify(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}))
		}
		for n := range 3000 {
			g.Forget(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}))
		}
	}
	slots := 0
	for i := range g.peers.shards {
		slots += len(g.peers.shards[i].slots)
	}
	if slots > 3000 {
		t.Errorf("%d slots for 3000 addresses", slots)
	}
}

func TestWhatHasNothingToRememberIsSweptAndItsMemoryGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Limit: many})
		follow(t, g, plan.Settings{RatePerIP: 60})
		for n := range uint32(100_000) {
			ip := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
			g.Identify(ip)
			g.Forget(ip)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		time.Sleep(2 * summaryEvery)
		synctest.Wait()
		if known, _ := g.peers.size(); known != 0 {
			t.Errorf("%d addresses are remembered for nothing", known)
		}
		for i := range g.peers.shards {
			if cap(g.peers.shards[i].slots) > 128 {
				t.Fatalf("a shard keeps %d slots", cap(g.peers.shards[i].slots))
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	g := New(Options{Limit: many})
	follow(t, g, plan.Settings{MaxConnections: 100, MaxPerIP: 5, RatePerIP: 1e9}, &plan.Port{Addr: plan.Addr{Port: 80}})
	gate := NewGate(&plan.Route{Name: "r", Security: plan.Security{
		MaxConns: 5, Deny: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")},
		Rate: &plan.RateLimit{Requests: 1 << 30, Per: time.Second, Key: "header:X-Key"},
	}}, g)
	ips := []netip.Addr{addr("10.0.0.1"), addr("2001:db8::1"), addr("10.0.0.3")}
	field := []byte("alice")
	n := 0
	round := func() {
		ip := ips[n%len(ips)]
		n++
		g.Accept()
		g.Arrived(":80")
		g.Identify(ip)
		if _, _, ok := gate.Enter(ip, field); ok {
			gate.Leave()
		}
		g.Forget(ip)
		g.Leave()
	}
	for range 1000 {
		round()
	}
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkConnection(b *testing.B) {
	g := New(Options{Limit: many})
	follow(b, g, plan.Settings{MaxConnections: 100, MaxPerIP: 50, RatePerIP: 1e9})
	ip := addr("10.0.0.1")
	b.ReportAllocs()
	for b.Loop() {
		g.Accept()
		g.Identify(ip)
		g.Forget(ip)
		g.Leave()
	}
}

func BenchmarkEnter(b *testing.B) {
	g := New(Options{Limit: many})
	for name, s := range map[string]plan.Security{
		"free": {}, "rate": {MaxConns: 9, Rate: &plan.RateLimit{Requests: 1 << 30, Per: time.Second, Key: "client_ip"}},
	} {
		gate := NewGate(&plan.Route{Name: name, Security: s}, g)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				gate.Enter(addr10, nil)
				gate.Leave()
			}
		})
	}
}

var addr10 = netip.MustParseAddr("10.0.0.1")

// gathered reads a registry as name{labels} -> value.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
			}
			out[name] = value(m)
		}
	}
	return out
}

func value(m *dto.Metric) float64 {
	if m.Counter != nil {
		return m.Counter.GetValue()
	}
	return m.Gauge.GetValue()
}

func TestEveryReasonIsASeriesFromTheStart(t *testing.T) {
	reg := prometheus.NewRegistry()
	g := New(Options{Limit: many, Registry: reg})
	got := gathered(t, reg)
	for _, r := range strings.Fields("max_connections per_ip per_route rate denied no_route unknown_protocol hello_timeout header_timeout bad_request tls not_allowed private_address loop proxy_header no_fd draining") {
		if v, ok := got[`quaymaster_connections_rejected_total{reason="`+r+`"}`]; !ok || v != 0 {
			t.Errorf("%s: %v %t", r, v, ok)
		}
	}
	follow(t, g, plan.Settings{MaxConnections: 1})
	g.Accept()
	g.Accept()
	g.Reject(Loop, addr("10.0.0.1"), ":80", "")
	got = gathered(t, reg)
	for name, want := range map[string]float64{
		`quaymaster_connections_rejected_total{reason="max_connections"}`: 1, `quaymaster_connections_rejected_total{reason="loop"}`: 1, "quaymaster_connections_active": 1,
	} {
		if got[name] != want {
			t.Errorf("%s: %v", name, got[name])
		}
	}
}

func TestAPortHasASeriesForAsLongAsThePlanHasThePort(t *testing.T) {
	reg := prometheus.NewRegistry()
	g := New(Options{Limit: many, Registry: reg})
	p80, p81 := &plan.Port{Addr: plan.Addr{Port: 80}}, &plan.Port{Addr: plan.Addr{Port: 81}}
	follow(t, g, plan.Settings{}, p80, p81)
	g.Arrived(":80")
	g.Arrived(":81")
	g.Arrived("what a stranger said")
	follow(t, g, plan.Settings{}, p80)
	g.Arrived(":80")
	g.Arrived(":81")
	got := gathered(t, reg)
	if got[`quaymaster_connections_total{port=":80"}`] != 2 {
		t.Error("the count of a port that stayed was lost")
	}
	for name := range got {
		if strings.Contains(name, "connections_total") && !strings.Contains(name, ":80") {
			t.Error(name)
		}
	}
}
