package edge

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/proxy"
)

// TestAClientOfAPortThatIsGivenUpIsToldAtOnce: he came in the last moment of the port, and the plan of now has nothing for
// him, whatever he says. A client who expects the server to speak first says nothing.
func TestAClientOfAPortThatIsGivenUpIsToldAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	log, registry := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	g := guard.New(guard.Options{Log: log, Registry: registry})
	ps := pools.New(pools.Options{Log: log, Registry: registry})
	e := New(Options{Log: log, Guard: g, Pools: ps, Access: io.Discard, Proxy: &proxy.Options{Log: log, Registry: registry, Pools: ps, Guard: g}})
	p := &plan.Plan{Settings: plan.Settings{
		MaxConnections: 10, Timeouts: plan.Timeouts{ClientHello: time.Hour, Sniff: time.Hour, RequestHeader: time.Hour},
	}}
	for _, f := range []plan.Follower{g, ps, e} {
		step, err := f.Prepare(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		step.Commit()
		step.Retire()
	}
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if !g.Accept() {
		t.Fatal("no slot")
	}
	e.Serve(server, &plan.Port{Addr: plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), 1)})
	_ = client.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the client got %v, want the end", err)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			client.Close()
		}
	}
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	if cut := e.Drain(ctx); cut > 0 {
		t.Errorf("%d connections had to be cut", cut)
	}
}
