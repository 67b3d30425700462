package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/certs/acme"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// an authority signs certificates for files.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{next: 100}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	return a
}

// pair is a certificate for names and its key, PEM. change may be nil.
func (a *authority) pair(t *testing.T, change func(*x509.Certificate), names ...string) (cert, key []byte) {
	t.Helper()
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.next++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(a.next), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour)}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := x509.MarshalPKCS8PrivateKey(k)
	cert = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), PEM(a.cert)...)
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})
}

// files writes a pair into dir, and returns where.
func (a *authority) files(t *testing.T, dir string, names ...string) plan.CertSource {
	t.Helper()
	src := plan.CertSource{Kind: plan.CertFiles, CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	cert, key := a.pair(t, nil, names...)
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)
	return src
}

// put replaces a file by renaming another one over it.
func put(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// happened is what Events was told.
type happened struct {
	sync.Mutex
	list []string
}

func (h *happened) add(kind, object, _ string) {
	h.Lock()
	defer h.Unlock()
	h.list = append(h.list, kind+" "+object)
}

func (h *happened) has(what string) bool {
	h.Lock()
	defer h.Unlock()
	return slices.Contains(h.list, what)
}

func newCerts(t *testing.T, dir string) (*Certs, *happened) {
	t.Helper()
	st, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	h := &happened{}
	return New(Options{State: st, Events: h.add, Registry: prometheus.NewRegistry(), Every: 20 * time.Millisecond}), h
}

// follow makes the plan of these certificates the one in force.
func (c *Certs) follow(t *testing.T, other *plan.CertSource, list ...*plan.Certificate) {
	t.Helper()
	s, err := c.Prepare(t.Context(), wish(other, list...))
	if err != nil {
		t.Fatal(err)
	}
	s.Commit()
	s.Retire()
}

func wish(other *plan.CertSource, list ...*plan.Certificate) *plan.Plan {
	return &plan.Plan{Certificates: list, Settings: plan.Settings{DefaultCertificate: other}}
}

// running runs c until the test ends.
func (c *Certs) running(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for: %s", what)
		}
	}
}

func internal(name string, users ...string) *plan.Certificate {
	return &plan.Certificate{Names: []string{name}, Source: plan.CertSource{Kind: plan.CertInternal}, Users: users}
}

func hello(name string) *tls.ClientHelloInfo { return &tls.ClientHelloInfo{ServerName: name} }

// local is a hello that came to an address, without a name.
type local struct {
	net.Conn
	addr net.Addr
}

func (l local) LocalAddr() net.Addr { return l.addr }

// serial tells certificates apart.
func serial(c *tls.Certificate) string {
	if c == nil {
		return "none"
	}
	return c.Leaf.SerialNumber.String()
}

func TestT08_FilesThatChangeAreTakenAndBrokenOnesAreNot(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	src := a.files(t, dir, "a.test")
	c, events := newCerts(t, t.TempDir())
	c.follow(t, nil, &plan.Certificate{Source: src, Users: []string{"route a"}})
	c.running(t)
	now := func() string {
		cert, err := c.Get(t.Context(), hello("a.test"), src)
		if err != nil {
			t.Fatal(err)
		}
		return serial(cert)
	}
	status := func() Status { return c.Status()[0] }
	if now() != "101" || status().State != "valid" || status().Name != "a.test" {
		t.Fatalf("%s, %+v", now(), status())
	}

	cert, key := a.pair(t, nil, "a.test")
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)
	until(t, "the new certificate", func() bool { return now() == "102" })
	if !events.has("certificate.renewed a.test") {
		t.Errorf("events: %q", events.list)
	}

	cert, key = a.pair(t, nil, "a.test")
	put(t, src.CertFile, cert) // its key is missing
	until(t, "the fault to be said", func() bool { return status().State == "failing" })
	if !strings.Contains(status().Error, src.KeyFile) || now() != "102" {
		t.Errorf("%+v; serves %s", status(), now())
	}
	if p := c.Problems(); len(p) != 1 || p[0].Object != "a.test" || p[0].Remedy == "" {
		t.Errorf("%+v", p)
	}
	put(t, src.KeyFile, key)
	until(t, "the mended files", func() bool { return now() == "103" && status().State == "valid" })

	for _, text := range []string{"", "hello", string(cert[:200])} {
		put(t, src.CertFile, []byte(text))
		until(t, "the fault to be said", func() bool { return status().State == "failing" })
		put(t, src.CertFile, cert)
		until(t, "it to be well again", func() bool { return status().State == "valid" })
	}
	if err := os.Remove(src.CertFile); err != nil {
		t.Fatal(err)
	}
	until(t, "the fault to be said", func() bool { return status().State == "failing" })
	if now() != "103" {
		t.Errorf("without a file %s serves", now())
	}
}

// Certificate and key are replaced one after the other: a look in between says nothing yet.
func TestT08_HalfAPairIsWaitedFor(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	src := a.files(t, dir, "a.test")
	c, events := newCerts(t, t.TempDir())
	c.follow(t, nil, &plan.Certificate{Source: src})
	cert, key := a.pair(t, nil, "a.test")
	put(t, src.CertFile, cert)
	c.watch(t.Context())
	if s := c.Status()[0]; s.State != "valid" || len(events.list) > 0 {
		t.Errorf("%+v, %q", s, events.list)
	}
	put(t, src.KeyFile, key)
	c.watch(t.Context())
	if got, _ := c.Get(t.Context(), hello(""), src); serial(got) != "102" || !slices.Equal(events.list, []string{"certificate.renewed a.test"}) {
		t.Errorf("%s, %q", serial(got), events.list)
	}
}

// certbot and Kubernetes replace a link, and the files themselves stay as they are.
func TestT08_ALinkThatPointsElsewhereIsAChange(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	link := filepath.Join(dir, "live")
	for _, n := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o700); err != nil {
			t.Fatal(err)
		}
		a.files(t, filepath.Join(dir, n), "a.test")
	}
	if err := os.Symlink("one", link); err != nil {
		t.Fatal(err)
	}
	src := plan.CertSource{Kind: plan.CertFiles, CertFile: link + "/cert.pem", KeyFile: link + "/key.pem"}
	c, _ := newCerts(t, t.TempDir())
	c.follow(t, nil, &plan.Certificate{Source: src})
	c.running(t)
	if err := os.Symlink("two", link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	until(t, "the other certificate", func() bool {
		cert, _ := c.Get(t.Context(), hello(""), src)
		return serial(cert) == "102"
	})
}

func TestPrepare_BrokenFilesAreAnErrorUnlessTheyServe(t *testing.T) {
	a, dir, other := newAuthority(t), t.TempDir(), t.TempDir()
	src := a.files(t, dir, "a.test")
	c, events := newCerts(t, t.TempDir())
	put(t, src.KeyFile, []byte("?"))
	want := &plan.Certificate{Source: src, Users: []string{"route a"}}
	if _, err := c.Prepare(t.Context(), wish(nil, want)); err == nil || !strings.Contains(err.Error(), src.KeyFile) || !strings.Contains(err.Error(), "route a") {
		t.Fatalf("first load: %v", err)
	}
	cert, key := a.pair(t, nil, "a.test")
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)
	c.follow(t, nil, want)
	put(t, src.CertFile, []byte("?"))
	c.follow(t, nil, want) // a reload
	if got, err := c.Get(t.Context(), hello("a.test"), src); err != nil || serial(got) != "102" {
		t.Errorf("%s, %v", serial(got), err)
	}
	if s := c.Status()[0]; s.State != "failing" || !events.has("certificate.failing a.test") {
		t.Errorf("%+v, %q", s, events.list)
	}
	second := a.files(t, other, "b.test")
	if err := os.Remove(second.KeyFile); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Prepare(t.Context(), wish(nil, want, &plan.Certificate{Source: second})); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("new files that are missing: %v", err)
	}
}

func TestPrepare_AnAbortedStepShowsNothing(t *testing.T) {
	a := newAuthority(t)
	src := a.files(t, t.TempDir(), "a.test")
	c, _ := newCerts(t, t.TempDir())
	c.follow(t, nil, &plan.Certificate{Source: src})
	cert, key := a.pair(t, nil, "a.test")
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)
	s, err := c.Prepare(t.Context(), wish(nil, &plan.Certificate{Source: src}, internal("b.test")))
	if err != nil {
		t.Fatal(err)
	}
	s.Abort()
	if got, _ := c.Get(t.Context(), hello("a.test"), src); serial(got) != "101" {
		t.Errorf("the certificate of an aborted step serves: %s", serial(got))
	}
	if got, err := c.Get(t.Context(), hello("b.test"), plan.CertSource{Kind: plan.CertInternal}); !errors.Is(err, ErrNone) {
		t.Errorf("a name of an aborted step: %s, %v", serial(got), err)
	}
}

func TestT09_NeverAnotherNamesCertificate(t *testing.T) {
	a := newAuthority(t)
	src := a.files(t, t.TempDir(), "file.test")
	c, _ := newCerts(t, t.TempDir())
	auto := plan.CertSource{Kind: plan.CertAuto}
	list := []*plan.Certificate{
		internal("a.test"), internal("*.w.test"), internal("**.deep.test"), internal("127.0.0.1"), internal("::1"),
		{Source: src},
		{Names: []string{"later.test"}, Source: auto},
		{Names: []string{"*.later.test"}, Source: auto},
	}
	c.follow(t, nil, list...)
	own := plan.CertSource{Kind: plan.CertInternal}
	for _, q := range []struct {
		hello *tls.ClientHelloInfo
		src   plan.CertSource
		name  string // that the certificate must be for; "" = none
	}{
		{hello("a.test"), own, "a.test"},
		{hello("A.Test."), own, "a.test"},
		{hello("b.test"), own, ""},
		{hello("x.a.test"), own, ""},
		{hello("x.w.test"), own, "x.w.test"},
		{hello("w.test"), own, ""},
		{hello("x.y.w.test"), own, ""},
		{hello("x.y.deep.test"), own, "x.y.deep.test"},
		{hello("deep.test"), own, ""},
		{hello("x/..w.test"), own, ""},
		{hello("*.w.test"), own, ""},
		{hello(""), own, ""},
		{&tls.ClientHelloInfo{Conn: local{addr: &net.TCPAddr{IP: net.ParseIP("127.0.0.1"), Port: 443}}}, own, "127.0.0.1"},
		{&tls.ClientHelloInfo{Conn: local{addr: &net.TCPAddr{IP: net.ParseIP("::ffff:127.0.0.1"), Port: 443}}}, own, "127.0.0.1"},
		{&tls.ClientHelloInfo{Conn: local{addr: &net.TCPAddr{IP: net.ParseIP("::1"), Port: 443}}}, own, "::1"},
		{&tls.ClientHelloInfo{Conn: local{addr: &net.TCPAddr{IP: net.ParseIP("10.0.0.1"), Port: 443}}}, own, ""},
		{hello("later.test"), auto, ""},
		{hello("x.later.test"), auto, ""},
		{hello("a.test"), auto, ""},
		{hello("file.test"), auto, ""},
		{hello("anything"), src, "file.test"}, // as the configuration wants it
		{hello("a.test"), plan.CertSource{Kind: plan.CertFiles, CertFile: "/nowhere"}, ""},
	} {
		got, err := c.Get(t.Context(), q.hello, q.src)
		if q.name == "" {
			if err == nil || got != nil {
				t.Errorf("%q by %s: %v", q.hello.ServerName, q.src.Kind, got.Leaf.DNSNames)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q by %s: %v", q.hello.ServerName, q.src.Kind, err)
		} else if err := got.Leaf.VerifyHostname(q.name); err != nil {
			t.Errorf("%q by %s: %v", q.hello.ServerName, q.src.Kind, err)
		}
	}
	if got := c.Default(hello("later.test")); got != nil {
		t.Errorf("default: %v", got.Leaf.DNSNames)
	}

	c.follow(t, &own, list...) // now the local CA stands in
	for _, name := range []string{"later.test", "x.later.test"} {
		if got, err := c.Get(t.Context(), hello(name), auto); err != nil || got.Leaf.VerifyHostname(name) != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := c.Default(hello("unheard.of")); got == nil || got.Leaf.VerifyHostname("unheard.of") != nil {
		t.Error("no certificate for a name that is not known")
	}
	if c.Default(hello("")) != nil || c.Default(hello("bad name")) != nil {
		t.Error("a certificate for no name")
	}
}

func TestDefault_PrefersTheFileThatIsForTheName(t *testing.T) {
	a := newAuthority(t)
	one, two, other := a.files(t, t.TempDir(), "a.test", "*.w.test"), a.files(t, t.TempDir(), "x.w.test"), a.files(t, t.TempDir(), "else.test")
	c, _ := newCerts(t, t.TempDir())
	c.follow(t, &other, &plan.Certificate{Source: one}, &plan.Certificate{Source: two, Names: []string{"named.test"}}, &plan.Certificate{Source: other})
	for name, want := range map[string]string{"a.test": "101", "y.w.test": "101", "named.test": "102", "x.w.test": "101", "": "103", "b.test": "103"} {
		if got := serial(c.Default(hello(name))); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
	for _, s := range c.Status() {
		if s.Name == "named.test" && !strings.Contains(s.Warning, "named.test") {
			t.Errorf("no warning that the file is not for its name: %+v", s)
		}
	}
	c.follow(t, nil, &plan.Certificate{Source: one})
	if got := c.Default(hello("b.test")); got != nil {
		t.Errorf("a certificate for a name without one: %s", serial(got))
	}
}

func TestT10_LeavesAreRenewedAtTwoThirds(t *testing.T) {
	st, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	var mu sync.Mutex
	now := time.Now()
	h := &happened{}
	c := New(Options{State: st, Events: h.add, Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	pass := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	own := plan.CertSource{Kind: plan.CertInternal}
	c.follow(t, nil, internal("a.test"), internal("*.w.test"))
	got := func(name string) string {
		cert, err := c.Get(t.Context(), hello(name), own)
		if err != nil {
			t.Fatal(err)
		}
		return serial(cert)
	}
	a, w := got("a.test"), got("x.w.test")
	pass(4 * 24 * time.Hour)
	c.tend(t.Context())
	if got("a.test") != a || got("x.w.test") != w {
		t.Error("renewed after four days of seven")
	}
	pass(24 * time.Hour)
	c.tend(t.Context())
	if !h.has("certificate.renewed a.test") {
		t.Errorf("not renewed in time: %q", h.list)
	}
	if got("a.test") == a || got("x.w.test") == w {
		t.Error("the old ones serve")
	}
	a, w = got("a.test"), got("x.w.test")
	pass(30 * 24 * time.Hour) // the machine slept
	if got("a.test") == a || got("x.w.test") == w {
		t.Error("what has ended serves")
	}
}

func TestRenew(t *testing.T) {
	a := newAuthority(t)
	src := a.files(t, t.TempDir(), "file.test")
	c, events := newCerts(t, t.TempDir())
	own := plan.CertSource{Kind: plan.CertInternal}
	c.follow(t, nil, internal("a.test"), &plan.Certificate{Source: src})
	before, _ := c.Get(t.Context(), hello("a.test"), own)
	if err := c.Renew("A.test"); err != nil {
		t.Error(err)
	}
	if after, _ := c.Get(t.Context(), hello("a.test"), own); serial(after) == serial(before) || !events.has("certificate.renewed a.test") {
		t.Error("not renewed")
	}
	cert, key := a.pair(t, nil, "file.test")
	put(t, src.CertFile, cert)
	if err := c.Renew("file.test"); err == nil {
		t.Error("half a pair was taken")
	}
	put(t, src.KeyFile, key)
	if err := c.Renew("file.test"); err != nil {
		t.Error(err)
	}
	if got, _ := c.Get(t.Context(), hello(""), src); serial(got) != "102" {
		t.Errorf("serves %s", serial(got))
	}
	if err := c.Renew("nobody.test"); !errors.Is(err, ErrNone) {
		t.Errorf("a name that nobody wants: %v", err)
	}
}

// What ten thousand names cost at load is their index. Their leaves are made when somebody asks.
func TestPrepare_TenThousandNamesOfTheLocalCA(t *testing.T) {
	var list []*plan.Certificate
	for i := range 10_000 {
		list = append(list, internal(fmt.Sprintf("n%05d.test", i)))
	}
	c, _ := newCerts(t, t.TempDir())
	start := time.Now()
	c.follow(t, nil, list...)
	c.tend(t.Context())
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("%v", took)
	}
	made := 0
	x := c.now.Load()
	for _, s := range x.local {
		made += s.made
	}
	if made != 0 {
		t.Errorf("%d leaves were made that nobody asked for", made)
	}
	own := plan.CertSource{Kind: plan.CertInternal}
	one := x.local["n00007.test"]
	one.mu.Lock() // somebody is making it
	var wg, there sync.WaitGroup
	for range 50 {
		there.Add(1)
		wg.Go(func() {
			there.Done()
			if _, err := c.Get(context.Background(), hello("n00007.test"), own); err != nil {
				t.Error(err)
			}
		})
	}
	there.Wait()
	<-time.After(50 * time.Millisecond) // for most of them to wait
	one.mu.Unlock()
	wg.Wait()
	if n := one.made; n != 1 {
		t.Errorf("fifty handshakes at once made %d leaves", n)
	}
	c.follow(t, nil, list[:9000]...)
	if c.now.Load().local["n00007.test"] != x.local["n00007.test"] {
		t.Error("a leaf was lost at a reload")
	}
}

func TestCrowd_IsBounded(t *testing.T) {
	c, _ := newCerts(t, t.TempDir())
	own := plan.CertSource{Kind: plan.CertInternal}
	c.follow(t, nil, internal("*.w.test"))
	for i := range maxCrowd + 500 {
		if i < 3 || i > maxCrowd {
			if _, err := c.Get(t.Context(), hello(fmt.Sprintf("x%d.w.test", i)), own); err != nil {
				t.Fatal(err)
			}
			continue
		}
		c.now.Load().anon.slot(fmt.Sprintf("x%d.w.test", i), time.Now())
	}
	if n := len(c.now.Load().anon.slots); n > maxCrowd {
		t.Errorf("%d names that clients made up are kept", n)
	}
}

func TestProblems_AreBounded(t *testing.T) {
	st, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	var list []*plan.Certificate
	a := newAuthority(t)
	for range maxProblems + 5 {
		src := a.files(t, t.TempDir(), "a.test")
		cert, key := a.pair(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "a.test")
		put(t, src.CertFile, cert)
		put(t, src.KeyFile, key)
		list = append(list, &plan.Certificate{Source: src})
	}
	c := New(Options{State: st})
	c.follow(t, nil, list...)
	if p := c.Problems(); len(p) != maxProblems+1 || !strings.HasPrefix(p[maxProblems].Message, "5 more") {
		t.Errorf("%d problems, the last: %+v", len(p), p[len(p)-1])
	}
}

func TestStatus_AndMetrics(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	src := plan.CertSource{Kind: plan.CertFiles, CertFile: filepath.Join(dir, "c"), KeyFile: filepath.Join(dir, "k")}
	cert, key := a.pair(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "over.test", "b.test")
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)
	c, _ := newCerts(t, t.TempDir())
	c.follow(t, nil, &plan.Certificate{Source: src, Users: []string{"route o"}}, internal("a.test", "route a"), internal("*.w.test", "route w"))
	c.tend(t.Context())
	var names []string
	for _, s := range c.Status() {
		names = append(names, s.Name+" "+string(s.Source)+" "+s.State)
	}
	if want := []string{"*.w.test internal valid", "a.test internal valid", "over.test files expired"}; !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
	if p := c.Problems(); len(p) != 1 || p[0].Object != "over.test" || !strings.Contains(p[0].Remedy, src.CertFile) {
		t.Errorf("%+v", p)
	}
	got := map[string]float64{}
	families, err := c.o.Registry.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "quaymaster_certificate_not_after_timestamp_seconds" {
			for _, m := range f.GetMetric() {
				got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	if len(got) != 2 || got["over.test"] > float64(time.Now().Unix()) || got["a.test"] < float64(time.Now().Add(6*24*time.Hour).Unix()) {
		t.Errorf("%v", got)
	}
	if acme.Expired != "expired" {
		t.Error("the words of the contract have changed")
	}
}

func TestSuspend_StopsTheWorkUntilItIsResumed(t *testing.T) {
	a := newAuthority(t)
	src := a.files(t, t.TempDir(), "a.test")
	c, _ := newCerts(t, t.TempDir())
	c.follow(t, nil, &plan.Certificate{Source: src})
	c.running(t)
	resume, err := c.Suspend(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cert, key := a.pair(t, nil, "a.test")
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)
	<-time.After(10 * c.o.Every)
	if got, err := c.Get(t.Context(), hello(""), src); err != nil || serial(got) != "101" {
		t.Errorf("suspended: %s, %v", serial(got), err)
	}
	resume()
	until(t, "the new files", func() bool {
		got, _ := c.Get(t.Context(), hello(""), src)
		return serial(got) == "102"
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	idle, _ := newCerts(t, t.TempDir()) // nobody runs it
	if _, err := idle.Suspend(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Leaves that were made while the clock was ahead are replaced once it is right.
func TestT10_ALeafThatHasNotBegunIsMadeAnew(t *testing.T) {
	st, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	now := time.Now()
	c := New(Options{State: st, Now: func() time.Time { return now }})
	c.follow(t, nil, internal("a.test"), internal("b.test"), internal("*.w.test"))
	src := plan.CertSource{Kind: plan.CertInternal}
	get := func(name string) *tls.Certificate {
		t.Helper()
		cert, err := c.Get(t.Context(), hello(name), src)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	now = now.Add(72 * time.Hour)
	for _, name := range []string{"a.test", "b.test", "x.w.test"} {
		if get(name).Leaf.NotBefore.Before(now.Add(-2 * time.Hour)) {
			t.Fatalf("%s: a leaf of another time", name)
		}
	}
	now = now.Add(-72 * time.Hour)
	c.tend(t.Context())
	if l := c.now.Load().local["b.test"].now.Load(); l.begin.After(now) {
		t.Errorf("b.test, which nobody asks for: from %s on at %s", l.begin, now)
	}
	for _, name := range []string{"a.test", "x.w.test"} {
		cert := get(name)
		if cert.Leaf.NotBefore.After(now) {
			t.Errorf("%s: from %s on at %s", name, cert.Leaf.NotBefore, now)
		}
		if again := get(name); serial(again) != serial(cert) {
			t.Errorf("%s: a new leaf for each handshake", name)
		}
	}
}
