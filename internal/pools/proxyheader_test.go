package pools

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestProxyHeadersAreWhatOthersRead(t *testing.T) {
	for _, c := range []struct{ name, src, dst, wantSrc, wantDst string }{
		{"v4", "192.0.2.1:1111", "192.0.2.2:443", "192.0.2.1:1111", "192.0.2.2:443"},
		{"v6", "[2001:db8::1]:1111", "[2001:db8::2]:443", "[2001:db8::1]:1111", "[2001:db8::2]:443"},
		{"mapped", "[::ffff:192.0.2.1]:1111", "192.0.2.2:443", "192.0.2.1:1111", "192.0.2.2:443"},
		{"mixed", "192.0.2.1:1111", "[2001:db8::2]:443", "192.0.2.1:1111", "[2001:db8::2]:443"},
		{"zone", "[fe80::1%eth0]:1111", "[fe80::2]:443", "[fe80::1]:1111", "[fe80::2]:443"},
		{"unix", "", "192.0.2.2:443", "", ""},
	} {
		for version := 1; version <= 2; version++ {
			src, _ := netip.ParseAddrPort(c.src)
			dst := netip.MustParseAddrPort(c.dst)
			b := append(appendProxy(nil, version, src, dst), "rest"...)
			r := bufio.NewReader(bytes.NewReader(b))
			h, err := proxyproto.Read(r)
			if err != nil {
				t.Fatalf("%s version %d: %v: %q", c.name, version, err, b)
			}
			if int(h.Version) != version {
				t.Errorf("%s: version %d read as %d", c.name, version, h.Version)
			}
			if rest, _ := io.ReadAll(r); string(rest) != "rest" {
				t.Errorf("%s version %d: %q is left", c.name, version, rest)
			}
			if c.wantSrc == "" {
				if h.SourceAddr != nil && version == 1 || version == 2 && !h.Command.IsLocal() {
					t.Errorf("%s version %d: %+v", c.name, version, h)
				}
				continue
			}
			if got := addrPort(h.SourceAddr); got != netip.MustParseAddrPort(c.wantSrc) {
				t.Errorf("%s version %d: source %v", c.name, version, got)
			}
			if got := addrPort(h.DestinationAddr); got != netip.MustParseAddrPort(c.wantDst) {
				t.Errorf("%s version %d: destination %v", c.name, version, got)
			}
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// heard is what a target that reads PROXY headers was told, and what came behind.
type heard struct {
	header *proxyproto.Header
	err    error
	rest   []byte
}

// listener accepts connections and reports the header and the first n bytes of each; HTTP is answered.
func listener(t *testing.T, n int) (addr string, said chan heard) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	said = make(chan heard, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			r := bufio.NewReader(c)
			var w heard
			if w.header, w.err = proxyproto.Read(r); w.err == nil {
				w.rest = make([]byte, n)
				_, _ = io.ReadFull(r, w.rest)
				if n > 0 {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			}
			c.Close()
			said <- w
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), said
}

func TestProxyHeadersGoToTargetsAndHealthChecks(t *testing.T) {
	client, local := netip.MustParseAddrPort("203.0.113.9:5555"), netip.MustParseAddrPort("198.51.100.1:443")
	for version := 1; version <= 2; version++ {
		t.Run("exchange", func(t *testing.T) {
			addr, said := listener(t, 3)
			p := run(t, Options{}, upstream("web", target(t, addr))).Pool("web")
			var s Stream
			for range 2 {
				_, _, err := exchange(p, &Ask{Client: client, Local: local, SendProxy: version}, &s)
				must(t, err)
				w := <-said
				if w.err != nil || addrPort(w.header.SourceAddr) != client || addrPort(w.header.DestinationAddr) != local || string(w.rest) != "GET" {
					t.Fatalf("heard %+v %q", w.header, w.rest)
				}
				if s.Reused() {
					t.Fatal("a connection that speaks for one client was used for another")
				}
			}
		})
		t.Run("tunnel", func(t *testing.T) {
			addr, said := listener(t, 0)
			p := run(t, Options{}, upstream("web", target(t, addr))).Pool("web")
			c, m, err := p.Dial(context.Background(), &Ask{Client: client, Local: local, SendProxy: version})
			must(t, err)
			if w := <-said; w.err != nil || addrPort(w.header.SourceAddr) != client {
				t.Fatalf("heard %+v", w)
			}
			c.Close()
			m.Release(true)
		})
		for _, path := range []string{"", "/up"} {
			t.Run("check "+path, func(t *testing.T) {
				addr, said := listener(t, len(path))
				u := upstream("web", target(t, addr))
				u.Health = &plan.Health{Path: path, StatusMin: 200, StatusMax: 299, Interval: time.Hour, Timeout: 5 * time.Second, Rise: 1, Fall: 1, SendProxy: version}
				p := run(t, Options{}, u).Pool("web")
				w := <-said
				if w.err != nil || version == 2 && !w.header.Command.IsLocal() {
					t.Fatalf("heard %+v", w)
				}
				if st := p.status(); st.Targets[0].State != Up {
					t.Fatalf("%+v", st)
				}
			})
		}
	}
}
