package edge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/proxy"
)

// quietTarget answers every request with the same bytes and allocates nothing while it does.
func quietTarget(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nhello")
				buf := make([]byte, 4096)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// certificate is one that nobody signed.
func certificate(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"a.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// allocations serves one route to a target over a kept connection and counts what an exchange allocates, everything in
// this process included.
func allocations(t *testing.T, access plan.AccessLog, rules plan.HeaderRules, secure *plan.TLS) float64 {
	t.Helper()
	host, port, err := net.SplitHostPort(quietTarget(t))
	if err != nil {
		t.Fatal(err)
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	clocks := plan.Timeouts{Connect: time.Second, RequestHeader: time.Minute, KeepAlive: time.Minute, BodyStall: time.Minute, Idle: time.Minute}
	listen := plan.Addr{Port: 1}
	p := &plan.Plan{
		Settings: plan.Settings{Timeouts: clocks, MaxConnections: 100, MaxHeaderBytes: 64 << 10, AccessLog: access},
		Ports:    []*plan.Port{{Addr: listen, Users: []string{"web"}}},
		Upstreams: []*plan.Upstream{{
			Name: "web", Inline: true, Connect: time.Second, Balance: plan.Balance{Policy: "round_robin"},
			Targets: []plan.Target{{Text: host + ":" + port, Host: host, Port: uint16(number), Weight: 1}},
			Pool:    plan.PoolSettings{MaxIdle: 8, Idle: time.Minute, MaxAge: time.Hour},
		}},
		Routes: []*plan.Route{{
			Name: "web", Match: plan.Match{Ports: []plan.Addr{listen}}, Timeouts: clocks, TLS: secure,
			Action: plan.Forward{Upstream: "web", RequestHeaders: rules},
		}},
	}
	registry := prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	g := guard.New(guard.Options{Log: log, Registry: registry})
	ps := pools.New(pools.Options{Log: log, Registry: registry})
	cert := certificate(t)
	e := New(Options{
		Log: log, Guard: g, Pools: ps, Access: io.Discard, Proxy: &proxy.Options{Log: log, Registry: registry, Pools: ps, Guard: g},
		Certificate: func(context.Context, *tls.ClientHelloInfo, plan.CertSource) (*tls.Certificate, error) {
			return cert, nil
		},
	})
	for _, f := range []plan.Follower{g, ps, e} {
		step, err := f.Prepare(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		step.Commit()
		step.Retire()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if !g.Accept() {
		t.Fatal("no slot")
	}
	e.Serve(server, p.Ports[0])
	if secure != nil {
		client = tls.Client(client, &tls.Config{InsecureSkipVerify: true, ServerName: "a.test"})
	}
	request := []byte("GET /path?query=1 HTTP/1.1\r\nHost: a.test\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 4096)
	n := testing.AllocsPerRun(500, func() {
		if _, err := client.Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(buf); err != nil {
			t.Fatal(err)
		}
	})
	_ = client.Close()
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	if cut := e.Drain(ctx); cut != 0 {
		t.Errorf("%d connections had to be cut", cut)
	}
	return n
}

func TestExchangeAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	if n := allocations(t, plan.AccessLog{}, plan.HeaderRules{}, nil); n > 0 {
		t.Errorf("plain: %v allocations per exchange, want 0", n)
	}
	// The client's TLS is in the same process. Each side allocates for the record that it reads, and nothing besides.
	if n := allocations(t, plan.AccessLog{}, plan.HeaderRules{}, &plan.TLS{Mode: plan.Terminate}); n > 2 {
		t.Errorf("TLS: %v allocations per exchange on both sides, want 2", n)
	}
	rules := plan.HeaderRules{Set: []plan.Header{{Name: "X-Client", Value: "{client_ip} via {route}"}}}
	if n := allocations(t, plan.AccessLog{Enabled: true, Format: "json"}, rules, nil); n > 2 {
		t.Errorf("with access log and a header rule: %v allocations per exchange, want 2 at most", n)
	}
}
