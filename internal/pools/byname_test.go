package pools

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestByNameAllowlist(t *testing.T) {
	list := []string{"Exact.example", "*.wild.example.", "port.example:443", "192.0.2.1", "[2001:db8::1]", "2001:0db8:0::2"}
	for host, want := range map[string]bool{
		"exact.example": true, "EXACT.Example": true, "exact.example.": true, "exact.example:443": true, "a.exact.example": false, "xexact.example": false,
		"wild.example": true, "a.wild.example": true, "A.WILD.example.": true, "a.b.wild.example": false, "xwild.example": false, "wild.example.com": false,
		"port.example": true, "port.example:80": true,
		"192.0.2.1": true, "::ffff:192.0.2.1": true, "192.0.2.2": false, "2001:db8::1": true, "[2001:DB8:0::1]": true, "[2001:db8::1]:443": true,
		"2001:db8::2": true, "2001:db8::3": false, "": false, ".": false, "*.wild.example": true, "*": false,
	} {
		r := newNameRules(&plan.Settings{ByName: plan.ByNameSettings{Allowlist: list}})
		if _, err := r.admit(host, 443); (err == nil) != want {
			t.Errorf("%q: %v", host, err)
		}
	}
	for _, open := range [][]string{nil, {"*"}} {
		r := newNameRules(&plan.Settings{ByName: plan.ByNameSettings{Allowlist: open}})
		if _, err := r.admit("any.example", 443); err != nil {
			t.Errorf("%q: %v", open, err)
		}
		if _, err := r.admit("any.example", 22); kind(err) != "not_allowed" {
			t.Errorf("port 22: %v", err)
		}
	}
}

func TestAddressesThatByNameMayNotReach(t *testing.T) {
	ps := New(Options{})
	r := newNameRules(&plan.Settings{})
	for _, bad := range []string{
		"0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.255", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.168.1.1", "192.0.0.8", "198.18.0.1", "198.19.255.255", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1",
		"64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1", "2002:7f00:1::1", "2002:808:808::1", "2001::1", "2001:db8::1", "100::1",
	} {
		if err := ps.judge(r, netip.AddrPortFrom(netip.MustParseAddr(bad), 443).String()); kind(err) != "private_address" || status(err) != 403 {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, good := range []string{"1.1.1.1", "8.8.8.8", "100.128.0.1", "172.32.0.1", "192.1.2.3", "::ffff:8.8.8.8", "2606:4700::1111", "2a00:1450::5"} {
		if err := ps.judge(r, netip.AddrPortFrom(netip.MustParseAddr(good), 443).String()); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	list, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !ps.own.has(p.Addr().Unmap()) {
			t.Errorf("%s is ours and not known", p.Addr())
		}
	}
}

// resolver is a DNS server for every name, whose answers the test decides: n counts the questions for an IPv4 address.
func resolver(t *testing.T, answer func(n int) [4]byte) (addr string, asked *atomic.Int64) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	asked = &atomic.Int64{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			out := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true}, Questions: m.Questions}
			if q.Type == dnsmessage.TypeA {
				ip := answer(int(asked.Add(1)))
				out.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: ip},
				}}
			}
			if p, err := out.Pack(); err == nil {
				_, _ = c.WriteTo(p, from)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().String(), asked
}

// named are Pools with these by-name settings.
func named(t *testing.T, o Options, set plan.ByNameSettings) *Pools {
	ps := run(t, o)
	followPlan(t, ps, &plan.Plan{Settings: plan.Settings{ByName: set, Timeouts: plan.Timeouts{Connect: 5 * time.Second}}})
	return ps
}

func TestByNameRefusesPrivateAddressesAlsoBehindDNS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	port := target(t, l.Addr().String()).Port
	server, asked := resolver(t, func(n int) [4]byte { return [][4]byte{{127, 0, 0, 1}, {10, 255, 255, 1}}[n%2] })
	ps := named(t, Options{}, plan.ByNameSettings{Resolver: server, Ports: []uint16{port}})
	for i := range 10 {
		_, to, err := ps.DialName(context.Background(), "Rebind.Example.", port)
		if kind(err) != "private_address" || to != l2(port) {
			t.Fatalf("%s: %v", to, err)
		}
		if n := asked.Load(); n != int64(i+1) {
			t.Fatalf("%d questions for %d dials: what is judged and what is dialled are two answers", n, i+1)
		}
	}
	var s Stream
	if err := ps.OpenName(context.Background(), "rebind.example", port, &Ask{}, &s); kind(err) != "private_address" {
		t.Fatalf("got %v", err)
	}
	s.Close(false)
	for _, literal := range []string{"127.0.0.1", "::1", "[::ffff:127.0.0.1]", "localhost"} {
		if _, _, err := ps.DialName(context.Background(), literal, port); kind(err) != "private_address" {
			t.Fatalf("%s: %v", literal, err)
		}
	}
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Millisecond))
	if c, err := l.Accept(); err == nil {
		c.Close()
		t.Fatal("the private listener was reached")
	}
}

func l2(port uint16) string {
	return net.JoinHostPort("rebind.example", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String()[len("0.0.0.0:"):])
}

func TestByNameRefusesOurOwnPorts(t *testing.T) {
	srv := serve(t, name("us"))
	port := target(t, srv.URL).Port
	server, _ := resolver(t, func(int) [4]byte { return [4]byte{127, 0, 0, 1} })
	ours := func(a netip.AddrPort) bool { return a == loopback(port) }
	ps := named(t, Options{Ours: ours}, plan.ByNameSettings{Resolver: server, AllowPrivate: true, Ports: []uint16{port}})
	_, _, err := ps.DialName(context.Background(), "us.example", port)
	if kind(err) != "loop" || status(err) != 508 {
		t.Fatalf("got %v", err)
	}
}

func TestByNameReachesWhatIsAllowed(t *testing.T) {
	srv := serve(t, name("hello"))
	port := target(t, srv.URL).Port
	server, asked := resolver(t, func(int) [4]byte { return [4]byte{127, 0, 0, 1} })
	set := plan.ByNameSettings{Resolver: server, AllowPrivate: true, Ports: []uint16{port}, Allowlist: []string{"*.ok.example"}}
	ps := named(t, Options{}, set)
	var s Stream
	get := func(host string) (string, error) {
		if err := ps.OpenName(context.Background(), host, port, &Ask{}, &s); err != nil {
			s.Close(false)
			return "", err
		}
		_, body, err := talk(&s)
		s.Close(err == nil)
		return body, err
	}
	for i, host := range []string{"a.ok.example", "A.ok.example.", "b.ok.example", "a.ok.example"} {
		body, err := get(host)
		must(t, err)
		if body != "hello" || s.Reused() != (i == 1 || i == 3) {
			t.Fatalf("%d: %q, reused %v", i, body, s.Reused())
		}
	}
	if asked.Load() != 2 {
		t.Fatalf("%d questions", asked.Load())
	}
	if _, err := get("a.not.example"); kind(err) != "not_allowed" || asked.Load() != 2 {
		t.Fatalf("got %v after %d questions", err, asked.Load())
	}
	c, to, err := ps.DialName(context.Background(), "ok.example", port)
	must(t, err)
	c.Close()
	if want := net.JoinHostPort("ok.example", srv.URL[len("http://127.0.0.1:"):]); to != want {
		t.Fatalf("led to %s", to)
	}
	if ps.conns.Load() != 2 {
		t.Fatalf("%d connections", ps.conns.Load())
	}
	set.Allowlist = []string{"b.ok.example"}
	followPlan(t, ps, &plan.Plan{Settings: plan.Settings{ByName: set}})
	if n := ps.conns.Load(); n != 0 {
		t.Fatalf("%d connections are kept for names that may no longer be reached", n)
	}
	if _, err := get("a.ok.example"); kind(err) != "not_allowed" {
		t.Fatalf("got %v", err)
	}
}
