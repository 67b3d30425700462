package pools

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// echoAt accepts connections and holds them open.
func echoAt(t *testing.T) plan.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}()
	at := netip.MustParseAddrPort(l.Addr().String())
	return plan.TCPAddr(at.Addr(), at.Port())
}

func appPools(t *testing.T, wake func(context.Context, string) error) *Pools {
	t.Helper()
	ps := New(Options{Wake: wake})
	st, err := ps.Prepare(context.Background(), &plan.Plan{Upstreams: []*plan.Upstream{{
		Name: "u", Connect: 5 * time.Second, Balance: plan.Balance{Policy: "round_robin"},
		Targets: []plan.Target{{Text: "app:web", App: "web", Weight: 1, MaxConns: 1}}, Pool: plan.PoolSettings{Queue: 1, QueueTimeout: 10 * time.Second},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	st.Commit()
	st.Retire()
	return ps
}

func TestAppsAreReachedWhereTheyAreAtThisMoment(t *testing.T) {
	ps := appPools(t, nil)
	p := ps.Pool("u")
	one, two := echoAt(t), echoAt(t)
	if s := ps.Status()[0].Targets; len(s) != 1 || s[0].State != Away {
		t.Errorf("%+v", s)
	}
	for _, at := range []plan.Addr{one, two} {
		ps.SetMembers("web", []plan.Addr{at})
		c, m, err := p.Dial(context.Background(), &Ask{})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().String(); got != netip.AddrPortFrom(at.IP, at.Port).String() {
			t.Errorf("dialled %s, want %s", got, at)
		}
		if m.Target() != "app:web" {
			t.Errorf("target %s", m.Target())
		}
		_ = c.Close()
		m.Release(true)
	}
	ps.SetMembers("web", nil)
	var e *Error
	if _, _, err := p.Dial(context.Background(), &Ask{}); !errors.As(err, &e) || e.Kind != "no_targets" {
		t.Errorf("%v", err)
	}
}

func TestAppInUseIsCountedToItsLastConnection(t *testing.T) {
	ps := appPools(t, nil)
	at := echoAt(t)
	ps.SetMembers("web", []plan.Addr{at})
	if n, last := ps.Use("web"); n != 0 || !last.IsZero() {
		t.Errorf("%d %v", n, last)
	}
	c, m, err := ps.Pool("u").Dial(context.Background(), &Ask{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ps.SetMembers("web", nil)
	if n, last := ps.Use("web"); n != 1 || last.IsZero() || !m.Retired() {
		t.Errorf("%d %v", n, last)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := ps.Unused(short, "web", at); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("unused with a connection: %v", err)
	}
	quiet := make(chan error, 1)
	go func() { quiet <- ps.Unused(context.Background(), "web", at) }()
	m.Release(true)
	select {
	case err := <-quiet:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it is not told that nobody uses it")
	}
	if n, _ := ps.Use("web"); n != 0 {
		t.Errorf("%d", n)
	}
	ps.SetMembers("web", []plan.Addr{echoAt(t)})
	ps.roster.mu.Lock()
	defer ps.roster.mu.Unlock()
	if len(ps.roster.seats) != 1 {
		t.Errorf("%d instances are remembered", len(ps.roster.seats))
	}
}

type late struct{}

func (late) Error() string { return "still starting" }
func (late) Timeout() bool { return true }

func TestAnAppIsWokenAndItsReasonKept(t *testing.T) {
	at := echoAt(t)
	var ps *Pools
	var fate atomic.Pointer[error]
	ps = appPools(t, func(ctx context.Context, app string) error {
		if err := fate.Load(); err != nil {
			return *err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		ps.SetMembers(app, []plan.Addr{at})
		return nil
	})
	c, m, err := ps.Pool("u").Dial(context.Background(), &Ask{})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	m.Release(true)
	ps.SetMembers("web", nil)
	for want, err := range map[int]error{504: late{}, 503: errors.New("it is stopped")} {
		fate.Store(&err)
		var e *Error
		if _, _, got := ps.Pool("u").Dial(context.Background(), &Ask{}); !errors.As(got, &e) || e.Status() != want || !errors.Is(got, err) {
			t.Errorf("%v: want status %d", got, want)
		}
	}
}

func TestAPlanThatWasPreparedBeforeAnAppMovedFollowsIt(t *testing.T) {
	ps := appPools(t, nil)
	one, two := echoAt(t), echoAt(t)
	ps.SetMembers("web", []plan.Addr{one})
	st, err := ps.Prepare(context.Background(), &plan.Plan{Upstreams: []*plan.Upstream{{
		Name: "u", Connect: time.Second, Balance: plan.Balance{Policy: "least_connections"}, Targets: []plan.Target{{Text: "app:web", App: "web", Weight: 1}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ps.SetMembers("web", []plan.Addr{two})
	st.Commit()
	st.Retire()
	c, m, err := ps.Pool("u").Dial(context.Background(), &Ask{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release(true)
	defer func() { _ = c.Close() }()
	if got := c.RemoteAddr().String(); got != netip.AddrPortFrom(two.IP, two.Port).String() {
		t.Errorf("dialled %s, want %s", got, two)
	}
}

func TestWhoHasNoPatienceIsToldThatAnAppIsBeingStarted(t *testing.T) {
	var asked atomic.Int32
	at := echoAt(t)
	var ps *Pools
	ps = appPools(t, func(ctx context.Context, _ string) error {
		if asked.Add(1) > 1 {
			ps.SetMembers("web", []plan.Addr{at})
			return nil
		}
		<-ctx.Done() // it takes longer
		return ctx.Err()
	})
	p := ps.Pool("u")
	if !p.HasApps() {
		t.Error("a target is an app")
	}
	var s Stream
	var e *Error
	if err := p.Open(&Ask{Patience: time.Millisecond}, &s); !errors.As(err, &e) || e.Kind != "app_starting" || e.Target != "app:web" || e.Status() != 503 {
		t.Fatalf("%v", err)
	}
	if err := p.Open(&Ask{}, &s); err != nil { // the same stream, which waits
		t.Fatal(err)
	}
	s.Close(false)
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}
