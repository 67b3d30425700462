package pools

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/quaymaster/quaymaster/internal/plan"
)

var quietLog = log.New(io.Discard, "", 0)

func TestTargetsAreReachedByTLS(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t, "Test CA")
		var conns sync.Map
		var resumed atomic.Int64
		srv := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.leaf(nil)}, MaxVersion: version}, func(w http.ResponseWriter, r *http.Request) {
			conns.Store(r.RemoteAddr, true)
			if r.TLS.DidResume {
				resumed.Add(1)
			}
			_, _ = io.WriteString(w, r.TLS.NegotiatedProtocol+" "+tls.VersionName(r.TLS.Version))
		})
		ps := run(t, Options{}, ca.trusting(secureTarget(t, srv)))
		p := ps.Pool("web")
		var s Stream
		for range 50 {
			status, body, err := exchange(p, &Ask{}, &s)
			must(t, err)
			if status != 200 || body != "http/1.1 "+tls.VersionName(version) {
				t.Fatalf("%d %q", status, body)
			}
		}
		n := 0
		conns.Range(func(any, any) bool { n++; return true })
		if n != 1 {
			t.Errorf("%d connections for 50 exchanges", n)
		}
		for range 3 {
			_, _, err := exchange(p, &Ask{Fresh: true}, &s)
			must(t, err)
		}
		if n := resumed.Load(); n != 3 {
			t.Errorf("%d of 3 later handshakes were resumed", n)
		}
	})
}

// What a target whose certificate is no good gets is not a byte of the request, and everybody is told why.
func TestT12_ATargetWhoseCertificateIsNoGoodGetsNothing(t *testing.T) {
	ca, other := newAuthority(t, "Test CA"), newAuthority(t, "Rogue CA")
	day := 24 * time.Hour
	for _, c := range []struct {
		name  string
		ca    *authority
		leaf  func(*x509.Certificate)
		set   func(*plan.TargetTLS)
		words []string // nil: it is good
	}{
		{name: "good", ca: ca},
		{name: "its name", ca: ca, set: func(s *plan.TargetTLS) { s.ServerName = "backend.example" }},
		{name: "not looked at", ca: other, set: func(s *plan.TargetTLS) { s.Insecure = true }},
		{name: "unknown authority", ca: other, words: []string{"unknown authority", "Rogue CA", "target_tls.ca_file " + ca.file}},
		{name: "unknown to the system", ca: other, set: func(s *plan.TargetTLS) { s.CAFile = "" }, words: []string{"unknown authority", "Rogue CA", "target_tls.ca_file", "insecure_skip_verify"}},
		{name: "another name", ca: ca, set: func(s *plan.TargetTLS) { s.ServerName = "api.example" }, words: []string{"is for localhost, backend.example, 127.0.0.1", "not for api.example", "target_tls.server_name"}},
		{name: "another address", ca: ca, leaf: func(c *x509.Certificate) { c.IPAddresses = nil }, words: []string{"is for localhost, backend.example", "not for 127.0.0.1", "target_tls.server_name"}},
		{name: "no name", ca: ca, leaf: func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, nil }, words: []string{"names nobody", "subject alternative name"}},
		{name: "expired", ca: ca, leaf: func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(-3*day), time.Now().Add(-2*day) }, words: []string{"has expired on " + time.Now().Add(-2*day).UTC().Format("2006-01-02"), "renew it"}},
		{name: "not yet", ca: ca, leaf: func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(day), time.Now().Add(2*day) }, words: []string{"is not valid before", "clock"}},
		{name: "for clients", ca: ca, leaf: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, words: []string{"cannot be verified", "incompatible key usage"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var requests atomic.Int64
			srv := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{c.ca.leaf(c.leaf)}}, func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				_, _ = io.WriteString(w, "hello")
			})
			u := ca.trusting(secureTarget(t, srv))
			if c.set != nil {
				c.set(&u.TLS)
			}
			u.Health = &plan.Health{Path: "/", StatusMin: 200, StatusMax: 399, Interval: 5 * time.Millisecond, Timeout: 10 * time.Second, Rise: 1, Fall: 1}
			lines := &logLines{}
			ps := run(t, Options{Log: lines.logger()}, u)
			p := ps.Pool("web")
			var s Stream
			_, body, err := exchange(p, &Ask{}, &s)
			if c.words == nil {
				must(t, err)
				if body != "hello" {
					t.Errorf("got %q", body)
				}
				return
			}
			if kind(err) == "down" { // the check was first
				err = errors.Unwrap(err)
			} else if kind(err) != "tls" || status(err) != 502 {
				t.Fatalf("%v", err)
			}
			until(t, "down", func() bool { return strings.Contains(lines.String(), "target is down") })
			for where, text := range map[string]string{"error": err.Error(), "status": ps.Status()[0].Targets[0].Reason, "log": lines.String()} {
				for _, w := range append(c.words, "cannot speak TLS: the target's certificate") {
					if !strings.Contains(text, w) {
						t.Errorf("the %s does not say %q: %s", where, w, text)
					}
				}
			}
			if n := requests.Load(); n != 0 {
				t.Errorf("%d requests got through", n)
			}
		})
	}
}

// talker is a target that says something to whoever connects, reads what it gets, and ends.
func talker(t tb, said string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, said)
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

func TestT12_ATargetThatSpeaksNoTLSIsToldApart(t *testing.T) {
	plain := serve(t, name("hello"))
	for _, c := range []struct{ name, addr, want string }{
		{"plain HTTP under reencrypt", plain.Listener.Addr().String(), "cannot speak TLS: the target speaks plain HTTP: write tls mode terminate, not reencrypt"},
		{"plain HTTP", plain.Listener.Addr().String(), "cannot speak TLS: the target speaks plain HTTP: write http:// or leave https:// out"},
		{"SSH", talker(t, "SSH-2.0-OpenSSH_9.2\r\n"), `cannot speak TLS: the target does not speak TLS, its first bytes are "SSH-2"`},
		{"nothing", talker(t, ""), "cannot speak TLS: the target ended the connection in the handshake"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tg := target(t, c.addr)
			tg.TLS = true
			if !strings.Contains(c.name, "reencrypt") {
				tg.Text = "https://" + tg.Text
			}
			u := upstream("web", tg)
			u.TLS.Insecure = true // nor by those who check nothing
			ps := run(t, Options{}, u)
			var s Stream
			_, _, err := exchange(ps.Pool("web"), &Ask{}, &s)
			if kind(err) != "tls" || status(err) != 502 || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if got := ps.Status()[0].Targets[0].Reason; !strings.Contains(got, c.want) {
				t.Errorf("status says %q", got)
			}
		})
	}
}

func TestT12_TheHandshakeIsWithinTheConnectClock(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	must(t, err)
	defer l.Close()
	tg := target(t, l.Addr().String())
	tg.TLS = true
	u := upstream("web", tg)
	u.Connect = 100 * time.Millisecond
	ps := run(t, Options{}, u)
	var s Stream
	err = ps.Pool("web").Open(&Ask{}, &s)
	if kind(err) != "timeout" || status(err) != 504 || !strings.Contains(err.Error(), "the TLS handshake did not end in time") {
		t.Errorf("got %v", err)
	}

	u.Connect = time.Minute
	follow(t, ps, u)
	done := make(chan error, 1)
	go func() { done <- ps.Pool("web").Open(&Ask{}, &s) }()
	until(t, "dialled", func() bool { return ps.Status()[0].Targets[0].Active == 1 })
	s.Abort()
	select {
	case err := <-done:
		if kind(err) != "aborted" {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a handshake cannot be aborted")
	}
}

func TestT12_TargetsAreShownOurCertificate(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		ca, clients := newAuthority(t, "Test CA"), newAuthority(t, "Client CA")
		trusted := x509.NewCertPool()
		trusted.AddCert(clients.cert)
		srv := serveTLS(t, &tls.Config{
			Certificates: []tls.Certificate{ca.leaf(nil)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted, MaxVersion: version,
		}, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
		})
		u := ca.trusting(secureTarget(t, srv))
		ps := run(t, Options{}, u)
		p := ps.Pool("web")
		var s Stream
		_, _, err := exchange(p, &Ask{}, &s)
		if k := kind(err); k != "tls" && k != "reset" || status(err) != 502 {
			t.Errorf("without one: %v", err)
		} else if k == "tls" && !strings.Contains(err.Error(), "target_tls.client_cert_file") {
			t.Errorf("the error does not name the key: %v", err)
		}

		with := *u
		with.TLS.CertFile, with.TLS.KeyFile = clients.clientFiles("the proxy")
		follow(t, ps, &with)
		_, body, err := exchange(p, &Ask{}, &s)
		must(t, err)
		if body != "the proxy" {
			t.Errorf("the target saw %q", body)
		}

		// A renewed file is read again with the next plan, and by itself.
		old := p.members[0].idle[0]
		clients.renew("the proxy renewed", with.TLS.CertFile, with.TLS.KeyFile)
		follow(t, ps, &with)
		if len(p.members[0].idle) != 1 || p.members[0].idle[0] != old {
			t.Error("a renewed certificate ended a connection")
		}
		_, body, err = exchange(p, &Ask{Fresh: true}, &s)
		must(t, err)
		if body != "the proxy renewed" {
			t.Errorf("the target saw %q after a reload", body)
		}
		clients.renew("the proxy renewed twice", with.TLS.CertFile, with.TLS.KeyFile)
		p.looked = -filesAge // as if a while had passed
		_, body, err = exchange(p, &Ask{Fresh: true}, &s)
		must(t, err)
		if body != "the proxy renewed twice" {
			t.Errorf("the target saw %q without a reload", body)
		}
		replace(t, with.TLS.KeyFile, []byte("garbage"))
		p.looked = -filesAge
		_, body, err = exchange(p, &Ask{Fresh: true}, &s)
		must(t, err)
		if body != "the proxy renewed twice" {
			t.Errorf("the target saw %q after the file broke", body)
		}
	})
}

// Whom a connection leads to was judged when it was made: where the judgement changes it carries no more requests.
func TestT12_OtherTrustOtherConnections(t *testing.T) {
	ca, next := newAuthority(t, "Test CA"), newAuthority(t, "Next CA")
	srv := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.leaf(nil)}}, name("hello"))
	u := ca.trusting(secureTarget(t, srv))
	u.TLS.Insecure = true
	ps := run(t, Options{}, u)
	p := ps.Pool("web")
	var s, under Stream
	must(t, p.Open(&Ask{}, &under))
	_, _, err := exchange(p, &Ask{}, &s)
	must(t, err)

	strict := *u
	strict.TLS.Insecure, strict.TLS.CAFile = false, next.file
	follow(t, ps, &strict)
	if n := len(p.members[0].idle); n != 0 {
		t.Errorf("%d idle connections are left", n)
	}
	if status, body, err := talk(&under); err != nil || status != 200 || body != "hello" {
		t.Errorf("the exchange under way: %d %q %v", status, body, err)
	}
	under.Close(true)
	if n := len(p.members[0].idle); n != 0 {
		t.Error("its connection was kept")
	}
	if _, _, err := exchange(p, &Ask{}, &s); kind(err) != "tls" {
		t.Errorf("the next exchange: %v", err)
	}

	// The same when the file changes under the same name.
	text, err := os.ReadFile(ca.file)
	must(t, err)
	replace(t, next.file, text)
	p.looked = -filesAge
	_, _, err = exchange(p, &Ask{}, &s)
	must(t, err)
	if n := len(p.members[0].idle); n != 1 {
		t.Fatalf("%d idle connections", n)
	}
	text, err = os.ReadFile(newAuthority(t, "Third CA").file)
	must(t, err)
	replace(t, next.file, text)
	p.looked = -filesAge
	if _, _, err = exchange(p, &Ask{Fresh: true}, &s); kind(err) != "tls" {
		t.Errorf("with a new ca_file: %v", err)
	}
	if n := len(p.members[0].idle); n != 0 {
		t.Error("a connection under the old ca_file is left")
	}
}

func TestT12_BrokenFilesAreErrorsThatNameThem(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	cert, key := ca.clientFiles("a")
	_, otherKey := ca.clientFiles("b")
	dir := t.TempDir()
	empty, garbled := filepath.Join(dir, "empty.pem"), filepath.Join(dir, "garbled.pem")
	must(t, os.WriteFile(empty, []byte("nothing here\n"), 0o600))
	must(t, os.WriteFile(garbled, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600))
	for _, c := range []struct {
		name string
		set  plan.TargetTLS
		want []string
	}{
		{"missing", plan.TargetTLS{CAFile: dir + "/none.pem"}, []string{"upstream web: target_tls.ca_file " + dir + "/none.pem: no such file"}},
		{"empty", plan.TargetTLS{CAFile: empty}, []string{"target_tls.ca_file " + empty, "holds no certificate"}},
		{"garbled", plan.TargetTLS{CAFile: garbled}, []string{"target_tls.ca_file " + garbled, "x509"}},
		{"directory", plan.TargetTLS{CAFile: dir}, []string{"target_tls.ca_file " + dir, "is a directory"}},
		{"no key", plan.TargetTLS{CertFile: cert, KeyFile: dir + "/none.key"}, []string{"target_tls.client_key_file " + dir + "/none.key: no such file"}},
		{"another key", plan.TargetTLS{CertFile: cert, KeyFile: otherKey}, []string{"target_tls.client_cert_file " + cert, "client_key_file " + otherKey, "does not match"}},
		{"good", plan.TargetTLS{CAFile: ca.file, CertFile: cert, KeyFile: key}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := upstream("web", plan.Target{Text: "https://10.0.0.1", Host: "10.0.0.1", Port: 443, Weight: 1, TLS: true})
			u.TLS = c.set
			ps := New(Options{})
			st, err := ps.Prepare(context.Background(), &plan.Plan{Upstreams: []*plan.Upstream{u}})
			if c.want == nil {
				must(t, err)
				st.Abort()
				return
			}
			if err == nil {
				t.Fatal("it was taken")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if ps.Pool("web") != nil {
				t.Error("the plan is still there")
			}
			plain := *u
			plain.Targets = []plan.Target{{Text: "10.0.0.1", Host: "10.0.0.1", Port: 80, Weight: 1}}
			follow(t, ps, &plain) // nobody reads the files of a pool without TLS
		})
	}
}

// sealedScript is a TLS target whose every step the test takes itself.
func sealedScript(t *testing.T, version uint16) (*Pools, func() *tls.Conn) {
	t.Helper()
	ca := newAuthority(t, "Test CA")
	sc := script(t)
	tg := target(t, sc.addr)
	tg.TLS = true
	ps := run(t, Options{}, ca.trusting(tg))
	// A server that asks for a certificate sends its session tickets when the client's handshake is over.
	config := &tls.Config{Certificates: []tls.Certificate{ca.leaf(nil)}, MaxVersion: version, ClientAuth: tls.RequestClientCert}
	return ps, func() *tls.Conn {
		c := tls.Server(<-sc.conns, config)
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func serveOne(t *testing.T, c net.Conn, answer string) {
	t.Helper()
	if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
		t.Error(err)
		return
	}
	if _, err := io.WriteString(c, answer); err != nil {
		t.Error(err)
	}
}

// An idle TLS connection is stale when its target ended it or said something. What TLS says on its own does not count.
func TestH05_StaleTLSConnections(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		for _, c := range []struct {
			name   string
			idle   func(c *tls.Conn)
			reused bool
		}{
			{"left alone", func(*tls.Conn) {}, true},
			{"ended with a word", func(c *tls.Conn) { _ = c.CloseWrite() }, false},
			{"ended", func(c *tls.Conn) { _ = c.NetConn().Close() }, false},
			{"reset", func(c *tls.Conn) { _ = c.NetConn().(*net.TCPConn).SetLinger(0); _ = c.NetConn().Close() }, false},
			{"said something", func(c *tls.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\n\r\n") }, false},
			{"said something unsealed", func(c *tls.Conn) { _, _ = io.WriteString(c.NetConn(), "garbage") }, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				ps, accept := sealedScript(t, version)
				p := ps.Pool("web")
				first := make(chan *tls.Conn, 1)
				go func() {
					srv := accept()
					serveOne(t, srv, okAnswer)
					first <- srv
				}()
				var s Stream
				_, _, err := exchange(p, &Ask{}, &s)
				must(t, err)
				srv := <-first
				defer srv.NetConn().Close()
				c.idle(srv)
				idle := p.members[0].idle[0]
				idle.idle -= 2 * stalePeek // long enough to be asked
				want := idle
				if !c.reused {
					until(t, "noticed", func() bool { return !idle.alive() })
					want = nil
					go func() {
						srv := accept()
						serveOne(t, srv, okAnswer)
						first <- srv
					}()
				} else {
					go serveOne(t, srv, okAnswer)
				}
				must(t, p.Open(&Ask{}, &s))
				if s.Reused() != c.reused || want != nil && s.c != want {
					t.Errorf("reused: %v", s.Reused())
				}
				if status, body, err := talk(&s); err != nil || status != 200 || body != "ok" {
					t.Errorf("%d %q %v", status, body, err)
				}
				s.Close(true)
				if !c.reused {
					_ = (<-first).NetConn().Close()
				}
			})
		}
	})
}

// Session tickets come behind the handshake, when nobody reads: they are no answer that nobody asked for.
func TestH05_SessionTicketsDoNotMakeAConnectionStale(t *testing.T) {
	ps, accept := sealedScript(t, tls.VersionTLS13)
	srv := make(chan *tls.Conn, 1)
	go func() {
		c := accept()
		if err := c.Handshake(); err != nil {
			t.Error(err)
		}
		srv <- c
	}()
	var s Stream
	must(t, ps.Pool("web").Open(&Ask{}, &s))
	defer s.Close(false)
	c := s.c
	raw, err := c.tls.under.SyscallConn()
	must(t, err)
	waiting := func() (n int) {
		must(t, raw.Control(func(fd uintptr) {
			n, _, _ = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		}))
		return n
	}
	until(t, "tickets came", func() bool { return waiting() > 0 })
	for range 2 {
		if !c.alive() {
			t.Fatal("tickets were taken for rubbish")
		}
	}
	if waiting() > 0 {
		t.Error("they were not read")
	}
	if _, err := io.WriteString(<-srv, "rubbish"); err != nil {
		t.Fatal(err)
	}
	until(t, "rubbish is noticed", func() bool { return !c.alive() })
}

func TestT12_ProxyHeadersStandBeforeTheHandshake(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	cert := ca.leaf(nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	pl := &proxyproto.Listener{Listener: l, ReadHeaderTimeout: 10 * time.Second, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
		return proxyproto.REQUIRE, nil
	}}
	srv := &http.Server{ErrorLog: quietLog, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.RemoteAddr)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.ServeTLS(pl, "", "") })
	defer func() { _ = srv.Close(); wg.Wait() }()
	tg := target(t, l.Addr().String())
	tg.TLS = true
	u := ca.trusting(tg)
	u.Health = &plan.Health{Path: "/", StatusMin: 200, StatusMax: 200, Interval: 5 * time.Millisecond, Timeout: 10 * time.Second, Rise: 1, Fall: 1, SendProxy: 2}
	ps := run(t, Options{}, u)
	p := ps.Pool("web")
	p.mu.Lock()
	p.members[0].down = true // so that a check must turn it
	p.mu.Unlock()
	until(t, "the check passed", func() bool { return ps.Status()[0].Targets[0].State == Up })
	for version := 1; version <= 2; version++ {
		var s Stream
		ask := &Ask{SendProxy: version, Client: netip.MustParseAddrPort("192.0.2.7:1234"), Local: netip.MustParseAddrPort("192.0.2.1:443")}
		_, body, err := exchange(p, ask, &s)
		must(t, err)
		if body != "192.0.2.7:1234" {
			t.Errorf("version %d: the target saw %s", version, body)
		}
	}
	if n := ps.Status()[0].Targets[0].Idle; n != 0 {
		t.Error("a connection that speaks for one client was kept")
	}
}

// A check without a path only connects; one with a path goes through TLS.
func TestHealthChecksOfTLSTargets(t *testing.T) {
	addr := talker(t, "")
	tg := target(t, addr)
	tg.TLS = true
	u := upstream("web", tg)
	u.Health = &plan.Health{Interval: 5 * time.Millisecond, Timeout: 10 * time.Second, Rise: 1, Fall: 1}
	ps := run(t, Options{}, u)
	p := ps.Pool("web")
	p.mu.Lock()
	p.members[0].down = true
	p.mu.Unlock()
	until(t, "up by a connect", func() bool { return ps.Status()[0].Targets[0].State == Up })
	http := *u
	set := *u.Health
	set.Path, set.StatusMin, set.StatusMax = "/", 200, 399
	http.Health = &set
	follow(t, ps, &http)
	until(t, "down by a handshake", func() bool { return ps.Status()[0].Targets[0].State == Down })
	if r := ps.Status()[0].Targets[0].Reason; !strings.Contains(r, "ended the connection in the handshake") {
		t.Errorf("reason %q", r)
	}
}

func TestTunnelsAreNotEncryptedAgain(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	srv := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.leaf(nil)}}, name("hello"))
	ps := run(t, Options{}, ca.trusting(secureTarget(t, srv)))
	nc, m, err := ps.Pool("web").Dial(context.Background(), &Ask{})
	must(t, err)
	defer m.Release(true)
	defer nc.Close()
	if _, ok := nc.(*net.TCPConn); !ok {
		t.Fatalf("a tunnel got a %T", nc)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	must(t, tls.Client(nc, &tls.Config{RootCAs: roots, ServerName: "localhost"}).Handshake())
}

// An answer that has no other end than the connection's is whole only when the target said so.
func TestAnAnswerCutShortIsNotWhole(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\n\r\nok"
	eachVersion(t, func(t *testing.T, version uint16) {
		for _, said := range []bool{true, false} {
			ps, accept := sealedScript(t, version)
			done := make(chan struct{})
			go func() {
				defer close(done)
				srv := accept()
				serveOne(t, srv, answer)
				if said {
					_ = srv.CloseWrite()
				}
				_ = srv.NetConn().Close()
			}()
			var s Stream
			_, body, err := exchange(ps.Pool("web"), &Ask{}, &s)
			<-done
			if said && (err != nil || body != "ok") || !said && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("said %v: %q, %v", said, body, err)
			}
		}
	})
}

func TestAReusedTLSExchangeAllocatesLittle(t *testing.T) {
	if raced {
		t.Skip("allocations are not counted under the race detector")
	}
	ca := newAuthority(t, "Test CA")
	tg := target(t, rawTLSTarget(t, ca, okAnswer))
	tg.TLS = true
	ps := run(t, Options{}, ca.trusting(tg))
	x := newExchanger(ps.Pool("web"))
	must(t, x.once())
	n := testing.AllocsPerRun(200, func() { must(t, x.once()) })
	t.Logf("%v allocations an exchange, the target's among them", n)
	if n > 6 {
		t.Errorf("%v allocations", n)
	}
}

// Waiting without a buffer ends with bytes of the target's own, its end, or a deadline; nothing is lost by it.
func TestWaitingForATLSTarget(t *testing.T) {
	ps, accept := sealedScript(t, tls.VersionTLS13)
	srv := make(chan *tls.Conn, 1)
	go func() {
		c := accept()
		if err := c.Handshake(); err != nil {
			t.Error(err)
		}
		srv <- c
	}()
	var s Stream
	must(t, ps.Pool("web").Open(&Ask{}, &s))
	defer s.Close(false)
	c, far := s.c.tls, <-srv

	must(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if err := c.Await(); !errors.Is(err, os.ErrDeadlineExceeded) { // session tickets came, and are nothing to read
		t.Fatalf("waited for nothing: %v", err)
	}
	must(t, c.SetReadDeadline(time.Time{}))
	for _, text := range []string{"x", "hello", strings.Repeat("many records ", 10_000)} {
		go func() { _, _ = io.WriteString(far, text) }()
		got := make([]byte, len(text))
		for n := 0; n < len(got); {
			must(t, c.Await())
			must(t, c.Await()) // twice is no harm
			m, err := c.Read(got[n:])
			must(t, err)
			n += m
		}
		if string(got) != text {
			t.Fatalf("other bytes came for %d", len(text))
		}
	}
	must(t, far.Close())
	must(t, c.Await())
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
}
