package terminate

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// an issuer signs certificates for tests.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial atomic.Int64

func newIssuer(t testing.TB, name string) *issuer {
	t.Helper()
	ca := &issuer{}
	c := ca.leaf(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	ca.cert, ca.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	return ca
}

func (ca *issuer) leaf(t testing.TB, template *x509.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(serial.Add(1))
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(1000*time.Hour)
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (ca *issuer) server(t testing.TB, names ...string) *tls.Certificate {
	return ca.leaf(t, &x509.Certificate{DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
}

func (ca *issuer) client(t testing.TB, name string) *tls.Certificate {
	return ca.leaf(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// file writes the issuer's certificate and returns where.
func (ca *issuer) file(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func (ca *issuer) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

// policy is what a route says that ends TLS with the files of that name.
func policy(files string, options ...func(*plan.TLS)) *plan.TLS {
	t := &plan.TLS{
		Mode: plan.Terminate, MinVersion: tls.VersionTLS12, ALPN: []string{"h2", "http/1.1"}, ClientAuth: plan.ClientAuth{Mode: "none"},
		Certificate: plan.CertSource{Kind: plan.CertFiles, CertFile: files, KeyFile: files},
	}
	for _, o := range options {
		o(t)
	}
	return t
}

func planOf(list ...*plan.TLS) *plan.Plan {
	p := &plan.Plan{}
	for _, t := range list {
		p.Routes = append(p.Routes, &plan.Route{Name: "r", TLS: t})
	}
	return p
}

// options show the certificate that is filed under the policy's CertFile.
func options(certs map[string]*tls.Certificate) *Options {
	return &Options{
		Certificate: func(_ context.Context, _ *tls.ClientHelloInfo, src plan.CertSource) (*tls.Certificate, error) {
			return certs[src.CertFile], nil
		},
		Tickets: new(Tickets), Protocols: []string{"http/1.1"},
	}
}

func prepare(t testing.TB, o *Options, old *Policies, list ...*plan.TLS) *Policies {
	t.Helper()
	ps, err := Prepare(o, old, planOf(list...))
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

// sockets are two ends of one TCP connection.
func sockets(t testing.TB) (server, client *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Close()
		_ = c.Close()
	})
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

// shake joins a client with the policy. Both results are final when it returns.
func shake(t testing.TB, p *Policy, config *tls.Config) (server *Conn, client *tls.Conn, serverErr, clientErr error) {
	t.Helper()
	s, c := sockets(t)
	client = tls.Client(c, config)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server, serverErr = p.Handshake(context.Background(), s, nil, nil, 20*time.Second)
		if serverErr != nil {
			_ = s.CloseWrite()
		}
	}()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	clientErr = client.Handshake()
	<-done
	if clientErr == nil && serverErr != nil { // in TLS 1.3 a client hears of a refusal when it reads
		_, clientErr = client.Read(make([]byte, 1))
	}
	return server, client, serverErr, clientErr
}

func talk(t testing.TB, s *Conn, c *tls.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(s, got); err != nil || string(got) != "ping" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := s.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "pong" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestBytesReadBeforeAreReplayed(t *testing.T) {
	ca := newIssuer(t, "ca")
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil, policy("a"))
	s, c := sockets(t)
	client := tls.Client(c, &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"})
	over := make(chan error, 1)
	go func() { over <- client.Handshake() }()
	head := make([]byte, 4096)
	n, err := io.ReadAtLeast(s, head, 700) // part of the hello, or all of it
	if err != nil {
		t.Fatal(err)
	}
	k, err := ps.Of(0).Handshake(context.Background(), s, nil, head[:n], time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	clear(head)
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	talk(t, k, client)
	_ = k.Close()
}

// TestNothingIsHeldBack: whatever the records are like, Await never waits for what has come already.
func TestNothingIsHeldBack(t *testing.T) {
	ca := newIssuer(t, "ca")
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil, policy("a"))
	for _, max := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s, c, err, cerr := shake(t, ps.Of(0), &tls.Config{RootCAs: ca.pool(), ServerName: "a.test", MaxVersion: max})
		if err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		_ = s.SetReadDeadline(time.Now().Add(20 * time.Second))
		text := bytes.Repeat([]byte("0123456789"), 10_000)
		for _, size := range []int{1, 7, 100, 1000, 16 << 10, 40_000} {
			go func() {
				for rest := text; len(rest) > 0; {
					n := min(size, len(rest))
					if size < 7 {
						n = min(len(rest), 4000)
					}
					if _, err := c.Write(rest[:n]); err != nil {
						return
					}
					rest = rest[n:]
				}
			}()
			var got []byte
			p := make([]byte, min(size, 5000))
			for len(got) < len(text) {
				if err := s.Await(); err != nil {
					t.Fatalf("size %d: after %d bytes: %v", size, len(got), err)
				}
				n, err := s.Read(p)
				if err != nil {
					t.Fatalf("size %d: after %d bytes: %v", size, len(got), err)
				}
				got = append(got, p[:n]...)
			}
			if !bytes.Equal(got, text) {
				t.Fatalf("size %d: bytes are changed", size)
			}
			if s.f.more != 0 || s.f.b != nil || s.f.own != nil {
				t.Errorf("size %d, version %x: %d bytes are thought to be there, %d are held", size, max, s.f.more, len(s.f.b))
			}
		}
		_ = s.Close()
	}
}

func TestReadGoesOnAfterADeadline(t *testing.T) {
	ca := newIssuer(t, "ca")
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil, policy("a"))
	s, c, err, cerr := shake(t, ps.Of(0), &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"})
	if err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if err := s.Await(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	_ = s.SetReadDeadline(time.Time{})
	talk(t, s, c)
	_ = s.Close()
}

func TestCloseSaysSoAndWaitsForNobody(t *testing.T) {
	ca := newIssuer(t, "ca")
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil, policy("a"))
	config := &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"}
	s, c, _, _ := shake(t, ps.Of(0), config)
	talk(t, s, c)
	raw := &watched{Conn: c.NetConn()}
	_ = s.Close()
	rest, err := io.ReadAll(raw)
	if err != nil || len(rest) < 20 || rest[0] != 23 { // an alert looks like data in TLS 1.3
		t.Errorf("the last words are %x, %v", rest, err)
	}
	// A client that takes nothing does not hold the close up.
	s, c, _, _ = shake(t, ps.Of(0), config)
	talk(t, s, c)
	below := s.NetConn().(*wire.Carrier).Conn
	for _, size := range []int{64 << 10, 1} { // until not one byte more is taken
		for n := 1; n > 0; {
			_ = below.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			n, _ = below.Write(make([]byte, size))
		}
	}
	_ = below.SetWriteDeadline(time.Time{})
	over := make(chan struct{})
	go func() {
		_ = s.Close()
		close(over)
	}()
	select {
	case <-over:
	case <-time.After(20 * time.Second):
		t.Error("the close waits for the client")
		_ = below.Close()
		<-over
	}
	// An unfinished message is no clean end.
	s, c, _, _ = shake(t, ps.Of(0), config)
	talk(t, s, c)
	_ = s.SetLinger(0)
	_ = s.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the client sees %v", err)
	}
}

type watched struct{ net.Conn }

func TestHalfClose(t *testing.T) {
	ca := newIssuer(t, "ca")
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil, policy("a"))
	s, c, _, _ := shake(t, ps.Of(0), &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"})
	if _, err := c.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "last" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := s.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Error(err)
	}
	got, err = io.ReadAll(c)
	if err != nil || string(got) != "answer" {
		t.Errorf("%q, %v", got, err)
	}
	_ = s.Close()
}

// TestWriteOutlivesAnEarlyDeadline: a BodyWriter keeps a deadline that moves without telling the connection, which for
// crypto/tls would be the end.
func TestWriteOutlivesAnEarlyDeadline(t *testing.T) {
	ca := newIssuer(t, "ca")
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil, policy("a"))
	s, c, _, _ := shake(t, ps.Of(0), &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"})
	text := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB: more than any socket buffers
	var w wire.BodyWriter
	w.Start(s, []byte("head "), wire.ByClose, -1)
	w.Deadline(time.Now().Add(50 * time.Millisecond))
	w.Deadline(time.Now().Add(time.Minute))
	over := make(chan error, 1)
	go func() {
		_, err := w.Write(text)
		if err == nil {
			err = w.Close(nil)
		}
		over <- err
	}()
	pause := time.NewTimer(200 * time.Millisecond) // the deadline that the connection was told strikes
	<-pause.C
	got, err := io.ReadAll(c)
	if err != nil || len(got) != len(text)+5 || !bytes.Equal(got[5:], text) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	_ = s.Close()
}

func TestHandshakeHasItsTime(t *testing.T) {
	ca := newIssuer(t, "ca")
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil, policy("a"))
	s, _ := sockets(t)
	_, err := ps.Of(0).Handshake(context.Background(), s, nil, nil, 50*time.Millisecond)
	if !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "not complete") {
		t.Error(err)
	}
}

func TestIdleConnectionIsSmall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes memory of its own")
	}
	const n, limit = 200, 16 << 10
	ca := newIssuer(t, "ca")
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil, policy("a"))
	config := &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"}
	servers, clients := make([]*Conn, n), make([]*tls.Conn, n)
	var served sync.WaitGroup
	request := []byte("GET /path?query=1 HTTP/1.1\r\nHost: a.test\r\nUser-Agent: " + strings.Repeat("x", 200) + "\r\n\r\n")
	open := func(i int) {
		s, c := sockets(t)
		served.Add(1)
		ready := make(chan struct{})
		go func() {
			defer served.Done()
			defer s.Close()
			k, err := ps.Of(0).Handshake(context.Background(), s, nil, nil, time.Minute)
			servers[i] = k
			close(ready)
			if err != nil {
				t.Error(err)
				return
			}
			idle(k)
		}()
		clients[i] = tls.Client(c, config)
		if err := clients[i].Handshake(); err != nil {
			t.Fatal(err)
		}
		<-ready
		if _, err := clients[i].Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(clients[i]).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	open(0)
	before := memory()
	for i := 1; i < n; i++ {
		open(i)
	}
	both := (memory() - before) / (n - 1)
	// The clients' part is measured by what stays when the servers have gone.
	for _, k := range servers {
		_ = k.NetConn().(*wire.Carrier).Conn.(*net.TCPConn).CloseRead()
	}
	served.Wait()
	clear(servers)
	rest := (memory() - before) / (n - 1)
	per := both - rest
	t.Logf("%d bytes for one idle connection, %d for its client", per, rest)
	if per > limit {
		t.Errorf("%d bytes for one idle connection, want at most %d", per, limit)
	}
	runtime.KeepAlive(clients)
}

// idle answers requests as http1 does, without its memory.
func idle(k *Conn) {
	for k.Await() == nil {
		if !answer(k) {
			return
		}
	}
}

func answer(k *Conn) bool {
	p := plains.Get().(*[4096]byte)
	defer plains.Put(p)
	n, err := k.Read(p[:])
	if err != nil || n == 0 {
		return false
	}
	_, err = k.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
	return err == nil
}

var plains = sync.Pool{New: func() any { return new([4096]byte) }}

func memory() int {
	var m runtime.MemStats
	for range 4 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

func TestVersionsAndSuites(t *testing.T) {
	ca := newIssuer(t, "ca")
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil,
		policy("a"), policy("a", func(t *plan.TLS) { t.MinVersion = tls.VersionTLS13 }))
	try := func(p *Policy, c *tls.Config) (tls.ConnectionState, error) {
		c.RootCAs, c.ServerName = ca.pool(), "a.test"
		s, k, _, err := shake(t, p, c)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer s.Close()
		return k.ConnectionState(), nil
	}
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		if _, err := try(ps.Of(0), &tls.Config{MinVersion: v, MaxVersion: v}); err == nil || !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("version %x: %v", v, err)
		}
	}
	if _, err := try(ps.Of(1), &tls.Config{MaxVersion: tls.VersionTLS12}); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("1.2 where 1.3 is demanded: %v", err)
	}
	all := append(tls.CipherSuites(), tls.InsecureCipherSuites()...)
	for _, suite := range all {
		if slices.Contains(suite.SupportedVersions, tls.VersionTLS13) {
			continue
		}
		_, err := try(ps.Of(0), &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite.ID}})
		if want := strings.HasPrefix(suite.Name, "TLS_ECDHE_ECDSA") && (strings.Contains(suite.Name, "GCM") || strings.Contains(suite.Name, "CHACHA")); (err == nil) != want {
			t.Errorf("%s: %v", suite.Name, err)
		}
	}
	st, err := try(ps.Of(0), &tls.Config{NextProtos: []string{"h2", "http/1.1"}})
	if err != nil || st.Version != tls.VersionTLS13 || st.CurveID != tls.X25519MLKEM768 || st.NegotiatedProtocol != "http/1.1" {
		t.Errorf("version %x, curve %v, protocol %q, %v", st.Version, st.CurveID, st.NegotiatedProtocol, err)
	}
	if _, err := try(ps.Of(0), &tls.Config{NextProtos: []string{"h2"}}); err == nil || !strings.Contains(err.Error(), "application protocol") {
		t.Errorf("what is not spoken: %v", err)
	}
}

func TestNoCertificateIsAnAlert(t *testing.T) {
	ca := newIssuer(t, "ca")
	o := options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")})
	ps := prepare(t, o, nil, policy("missing"))
	_, _, err, cerr := shake(t, ps.Of(0), &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"})
	if err == nil || cerr == nil || !strings.Contains(cerr.Error(), "internal error") {
		t.Errorf("server %v, client %v", err, cerr)
	}
	o.Default = func(*tls.ClientHelloInfo) *tls.Certificate { return nil }
	p := planOf()
	p.Settings.DefaultCertificate = &plan.CertSource{Kind: plan.CertInternal}
	ps, err = Prepare(o, nil, p)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err, cerr = shake(t, ps.Default(), &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"})
	if err == nil || cerr == nil || !strings.Contains(cerr.Error(), "unrecognized name") {
		t.Errorf("server %v, client %v", err, cerr)
	}
}

func TestCertificateIsWaitedForUnderTheClock(t *testing.T) {
	ca := newIssuer(t, "ca")
	o := options(nil)
	o.Certificate = func(ctx context.Context, _ *tls.ClientHelloInfo, _ plan.CertSource) (*tls.Certificate, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ps := prepare(t, o, nil, policy("a"))
	s, c := sockets(t)
	go func() { _ = tls.Client(c, &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"}).Handshake() }()
	if _, err := ps.Of(0).Handshake(context.Background(), s, nil, nil, 100*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	_ = s.Close()
	_ = c.Close()
}

// A handshake without a deadline ends with the context that it began under, not with the client alone.
func TestCertificateIsWaitedForUnderTheContext(t *testing.T) {
	ca := newIssuer(t, "ca")
	for _, d := range []time.Duration{0, time.Minute} {
		o := options(nil)
		waits := make(chan struct{})
		o.Certificate = func(ctx context.Context, _ *tls.ClientHelloInfo, _ plan.CertSource) (*tls.Certificate, error) {
			close(waits)
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(10 * time.Second):
				return nil, errors.New("nobody gave it up")
			}
		}
		ps := prepare(t, o, nil, policy("a"))
		s, c := sockets(t)
		ctx, cancel := context.WithCancel(context.Background())
		over := make(chan error, 1)
		go func() {
			_, err := ps.Of(0).Handshake(ctx, s, nil, nil, d)
			over <- err
		}()
		go func() { _ = tls.Client(c, &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"}).Handshake() }()
		<-waits
		cancel()
		if err := <-over; !errors.Is(err, context.Canceled) {
			t.Errorf("for %s: %v", d, err)
		}
		_ = s.Close()
		_ = c.Close()
	}
}

func TestClientCertificates(t *testing.T) {
	ca, other := newIssuer(t, "ca"), newIssuer(t, "other")
	file := ca.file(t)
	auth := func(mode string) func(*plan.TLS) {
		return func(t *plan.TLS) { t.ClientAuth = plan.ClientAuth{Mode: mode, CAFile: file} }
	}
	ps := prepare(t, options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")}), nil,
		policy("a", auth("required")), policy("a", auth("optional")), policy("a"))
	ours, theirs := ca.client(t, "ann"), other.client(t, "bob")
	for i, want := range [][]bool{{false, true, false}, {true, true, false}, {true, true, true}} {
		for j, cert := range []*tls.Certificate{nil, ours, theirs} {
			for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				config := &tls.Config{RootCAs: ca.pool(), ServerName: "a.test", MaxVersion: v}
				if cert != nil {
					config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
				}
				s, _, err, cerr := shake(t, ps.Of(i), config)
				if ok := err == nil; ok != want[j] || (cerr == nil) != want[j] {
					t.Errorf("policy %d, certificate %d, version %x: server %v, client %v", i, j, v, err, cerr)
				}
				if s != nil {
					_ = s.Close()
				}
			}
		}
	}
}

func TestFileOfAnAuthority(t *testing.T) {
	ca := newIssuer(t, "ca")
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	whole := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
	for name, want := range map[string]string{
		filepath.Join(dir, "none.pem"): "no such file",
		write("empty.pem", ""):         "no certificate in it",
		write("key.pem", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"):    "no certificate in it",
		write("cut.pem", whole+whole[:len(whole)/2]):                                          "no PEM",
		write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"): "certificate 1 in it cannot be read",
		dir: "is a directory",
		"":  "write one",
	} {
		p := planOf(policy("a", func(t *plan.TLS) { t.ClientAuth = plan.ClientAuth{Mode: "required", CAFile: name} }))
		p.Routes[0].Name = "api"
		_, err := Prepare(options(nil), nil, p)
		if err == nil || !strings.Contains(err.Error(), "route api: client_auth") || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", name, err, want)
		}
	}
}
