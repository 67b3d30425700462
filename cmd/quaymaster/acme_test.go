package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/acmetest"
)

// A site is a Pebble that comes to two ports of ours.
type site struct {
	*acmetest.Pebble
	http, tls int
	pool      *x509.CertPool
}

func newSite(t *testing.T, o acmetest.Options) *site {
	t.Helper()
	s := &site{http: freePort(t), tls: freePort(t), pool: x509.NewCertPool()}
	if o.HTTPPort == 0 {
		o.HTTPPort = s.http
	}
	if o.TLSPort == 0 {
		o.TLSPort = s.tls
	}
	s.Pebble = acmetest.Start(t, o)
	s.pool.AppendCertsFromPEM(s.Issuer)
	return s
}

// acme is the section of the configuration.
func (s *site) acme(more string) string {
	return fmt.Sprintf("acme: {email: ops@example.com, directory: %q, ca_root: %q, http_port: %d, tls_port: %d%s}\n", s.Directory, s.Root, s.http, s.tls, more)
}

// route ends TLS for a name, with a certificate of the CA's.
func (s *site) route(name, body string) string {
	id := strings.NewReplacer(".", "-", "*", "any").Replace(name)
	return fmt.Sprintf("  - {name: %s, match: {ports: [%d], domains: [%q]}, action: {respond: {body: %q}, tls: {certificate: auto}}}\n", id, s.tls, name, body)
}

// user is a route of the user's own on the port of the challenge.
func (s *site) user(body string) string {
	return fmt.Sprintf("  - {name: user, match: {ports: [%d]}, action: {respond: {body: %q}}}\n", s.http, body)
}

// serial is that of the certificate which a name is served with; "" when it is served with none that the CA made for it.
func (s *site) serial(name string) string {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", fmt.Sprintf("127.0.0.1:%d", s.tls), &tls.Config{ServerName: name, RootCAs: s.pool})
	if err != nil {
		return ""
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// certificate is a row of `certs --json`.
type certificate struct {
	Name, State, Issuer, Challenge, Error string
	Attempts                              int
	NextTry                               time.Time `json:"next_try"`
	NotAfter                              time.Time `json:"not_after"`
	RenewAt                               time.Time `json:"renew_at"`
	File                                  string
}

func (q *qm) certificates() map[string]certificate {
	out, code := q.cli("certs", "--json")
	if code != 0 {
		q.t.Fatalf("certs --json: %d\n%s", code, out)
	}
	var list []certificate
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		q.t.Fatalf("%v\n%s", err, out)
	}
	all := map[string]certificate{}
	for _, c := range list {
		all[c.Name] = c
	}
	return all
}

// within is until with a bound of one's own.
func within(t testing.TB, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !f(); {
		if time.Now().After(end) {
			t.Fatalf("waited %v for: %s", limit, what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func httpGet(t testing.TB, url string) (int, string, error) {
	t.Helper()
	res, err := (&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// challengeRoutes are the listed rules of challenges by port.
func (q *qm) challengeRoutes() map[string]int {
	var list []struct {
		Name  string
		Match struct{ Ports []string }
	}
	q.get("/v1/routes", &list)
	all := map[string]int{}
	for _, r := range list {
		if r.Name == "acme-http-01" || r.Name == "acme-tls-alpn-01" {
			for _, p := range r.Match.Ports {
				all[p]++
			}
		}
	}
	return all
}

func TestT01_TwentyNamesOverAPortSharedWithUserRoutesAndReloads(t *testing.T) {
	s := newSite(t, acmetest.Options{RejectNonces: 15})
	var names []string
	config := func(n int) string {
		text := s.acme("") + "routes:\n" + s.user(fmt.Sprintf("user %d", n))
		for _, name := range names {
			text += s.route(name, name)
		}
		return text
	}
	for i := range 20 {
		names = append(names, fmt.Sprintf("n%d.example.com", i))
	}
	began := time.Now()
	q := start(t, config(0))
	socket := inode(t, s.http)
	ctx, cancel := context.WithCancel(t.Context())
	var polls atomic.Int64
	var poller sync.WaitGroup
	poller.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			code, body, err := httpGet(t, fmt.Sprintf("http://127.0.0.1:%d/", s.http))
			if err != nil || code != 200 || !strings.HasPrefix(body, "user ") {
				t.Errorf("the user's route on the challenge's port: %d %q %v", code, body, err)
				return
			}
			polls.Add(1)
		}
	})
	for n := 1; n <= 5; n++ {
		q.reload(config(n))
		if got := q.challengeRoutes(); len(got) != 2 {
			t.Errorf("challenge routes by port: %v", got)
		}
	}
	within(t, 40*time.Second-time.Since(began), "twenty certificates", func() bool {
		for _, c := range q.certificates() {
			if c.State != "valid" {
				return false
			}
		}
		return true
	})
	t.Logf("20 certificates in %v, %d polls", time.Since(began), polls.Load())
	cancel()
	poller.Wait()
	for _, name := range names {
		if s.serial(name) == "" {
			t.Errorf("%s is not served with its certificate", name)
		}
	}
	if now := inode(t, s.http); now != socket {
		t.Errorf("the port was bound anew: socket %d, then %d", socket, now)
	}
	if log := q.log.String(); strings.Contains(log, "address already in use") || strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("the log has errors:\n%s", log)
	}
	for _, l := range strings.Split(q.log.String(), "\n") {
		if strings.Contains(l, "a challenge did not succeed") {
			t.Errorf("T02: a validation met something else: %s", l)
		}
	}
}

func TestT02_TheFirstValidationNeverMeetsAClosedPort(t *testing.T) {
	t.Parallel()
	s := newSite(t, acmetest.Options{})
	q := start(t, s.acme("")+"routes:\n"+s.route("a.example.com", "a"))
	q.until("the certificate", func() bool { return q.certificates()["a.example.com"].State == "valid" })
	if c := q.certificates()["a.example.com"]; c.Attempts != 0 || c.Challenge != "http-01" || strings.Contains(q.log.String(), "did not succeed") {
		t.Errorf("%+v\n%s", c, q.log)
	}
	if info, err := os.Stat(q.certificates()["a.example.com"].File); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestT02_StopDuringIssuanceLeavesNothingCorrupt(t *testing.T) {
	t.Parallel()
	reached, free := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	s := newSite(t, acmetest.Options{Before: func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/finalize-order/") && first.CompareAndSwap(false, true) {
			close(reached)
			<-free
		}
		return false
	}})
	defer close(free)
	config := s.acme("") + "routes:\n" + s.route("a.example.com", "a")
	q := start(t, config)
	<-reached
	q.reload(config + s.user("user")) // does not disturb the order
	if st := q.certificates()["a.example.com"]; st.State != "ordering" {
		t.Errorf("%+v", st)
	}
	q.signal(syscall.SIGTERM)
	if code := q.wait(10 * time.Second); code != 0 {
		t.Errorf("exit %d\n%s", code, q.log)
	}
	for _, port := range []int{s.http, s.tls} {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Errorf("the port is not released: %v", err)
			continue
		}
		_ = l.Close()
	}
	if files, _ := filepath.Glob(q.dir + "/state/*a.example.com*"); len(files) > 0 {
		t.Errorf("left behind: %q", files)
	}
	q.run()
	q.serving()
	q.until("the certificate", func() bool { return s.serial("a.example.com") != "" })
	old := s.serial("a.example.com")
	if out, code := q.cli("certs", "renew", "a.example.com"); code != 0 {
		t.Errorf("certs renew: %d\n%s", code, out)
	}
	q.until("another certificate", func() bool { now := s.serial("a.example.com"); return now != "" && now != old })
}

func TestT03_BothPortsChallengesAndTheOneThatIsBlocked(t *testing.T) {
	for _, challenge := range []string{"http-01", "tls-alpn-01"} {
		t.Run(challenge, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, acmetest.Options{RejectNonces: 10})
			q := start(t, s.acme(", challenges: ["+challenge+"]")+"routes:\n"+s.user("user")+s.route("a.example.com", "a"))
			q.until("the certificate", func() bool { return s.serial("a.example.com") != "" })
			q.until("how it was proved", func() bool { return q.certificates()["a.example.com"].Challenge == challenge })
		})
	}
	t.Run("blocked", func(t *testing.T) {
		t.Parallel()
		other := httptest.NewServer(http.NotFoundHandler()) // has the CA's port 80
		defer other.Close()
		s := newSite(t, acmetest.Options{HTTPPort: other.Listener.Addr().(*net.TCPAddr).Port})
		q := start(t, s.acme("")+"routes:\n"+s.route("a.example.com", "a"))
		q.until("the certificate", func() bool { return s.serial("a.example.com") != "" })
		if log := q.log.String(); !strings.Contains(log, "a challenge did not succeed, another is tried") || !strings.Contains(log, `"challenge":"http-01"`) {
			t.Errorf("the log does not say why:\n%s", log)
		}
	})
}

func TestT03_DNS01ByHookAndByUpdatesWithWildcard(t *testing.T) {
	t.Parallel()
	primary := acmetest.NewPrimary(t, "example.com")
	s := newSite(t, acmetest.Options{DNS: primary.Addr})
	update := fmt.Sprintf(", challenges: [dns-01], dns: {rfc2136: {server: %q, zone: example.com, tsig_key: %q, tsig_secret: %q}}",
		primary.Addr, strings.TrimSuffix(acmetest.KeyName, "."), acmetest.KeySecret)
	config := "routes:\n" + s.route("*.example.com", "any") + s.route("example.com", "one")
	q := start(t, s.acme(update)+config)
	q.until("both certificates", func() bool { return s.serial("x.example.com") != "" && s.serial("example.com") != "" })
	q.until("no record is left", func() bool { return len(primary.TXT("_acme-challenge.example.com")) == 0 })
	if n := len(primary.Seen()); n != 4 {
		t.Errorf("updates: %q", primary.Seen())
	}

	hook := filepath.Join(t.TempDir(), "hook.sh")
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >> %s.log\nexec env QM_CHILD_LISTEN=- QM_HOOK=%s %s -test.run='^TestChildHook$' \"$@\"\n", hook, primary.Addr, os.Args[0])
	if err := os.WriteFile(hook, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	q.reload(s.acme(fmt.Sprintf(", challenges: [dns-01], dns: {exec: %q}", hook)) + config + s.route("*.sub.example.com", "sub"))
	q.until("the certificate by the hook", func() bool { return s.serial("x.sub.example.com") != "" })
	q.until("no record is left", func() bool { return len(primary.TXT("_acme-challenge.sub.example.com")) == 0 })
	calls, err := os.ReadFile(hook + ".log")
	if err != nil || !strings.HasPrefix(string(calls), "present _acme-challenge.sub.example.com ") || !strings.Contains(string(calls), "\ncleanup _acme-challenge.sub.example.com ") {
		t.Errorf("%v: the hook was called with\n%s", err, calls)
	}
}

// TestChildHook is what the hook of a test runs.
func TestChildHook(t *testing.T) {
	server := os.Getenv("QM_HOOK")
	if server == "" {
		t.Skip("a child of another test")
	}
	args := os.Args[len(os.Args)-3:]
	if err := acmetest.Update(server, args[0] == "present", args[1], args[2]); err != nil {
		t.Fatal(err)
	}
}

func TestT04_WhatIsNotOursFallsThrough(t *testing.T) {
	t.Parallel()
	s := newSite(t, acmetest.Options{})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "the target"}, DNSNames: []string{"own.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	target, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{"acme-tls/1"}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	q := start(t, s.acme("")+"routes:\n"+s.user("user")+s.route("a.example.com", "a")+
		fmt.Sprintf("  - {name: own, match: {ports: [%d], domains: [own.example.com]}, action: {targets: [%q], tls: {mode: passthrough}}}\n", s.tls, target.Addr()))
	q.until("the certificate", func() bool { return s.serial("a.example.com") != "" })
	code, body, err := httpGet(t, fmt.Sprintf("http://127.0.0.1:%d/.well-known/acme-challenge/unknown", s.http))
	if err != nil || code != 200 || body != "user" {
		t.Errorf("an unknown token: %d %q %v", code, body, err)
	}
	alpn := func(name string) (*tls.Conn, error) {
		return tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", fmt.Sprintf("127.0.0.1:%d", s.tls),
			&tls.Config{ServerName: name, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true})
	}
	c, err := alpn("own.example.com")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); n != 77 {
		t.Errorf("acme-tls/1 for a name of the target's met certificate %d", n)
	}
	if c, err := alpn("a.example.com"); err == nil {
		if c.ConnectionState().NegotiatedProtocol == "acme-tls/1" {
			t.Error("acme-tls/1 is answered for a name that nobody validates")
		}
		_ = c.Close()
	}
}

func TestT05_ACAThatRefusesIsAskedByTheScheduleOverRestarts(t *testing.T) {
	t.Parallel()
	stub := acmetest.NewStub(t, func(path string, _ int) *acmetest.Refusal {
		if path == "order" {
			return &acmetest.Refusal{Status: 429, Type: "rateLimited", Detail: "too many new orders", RetryAfter: "3600"}
		}
		return nil
	})
	s := &site{http: freePort(t), tls: freePort(t), Pebble: &acmetest.Pebble{Directory: stub.Directory, Root: stub.Root}}
	q := start(t, s.acme("")+"routes:\n"+s.route("a.example.com", "a")+s.route("b.example.com", "b"))
	q.until("both are refused", func() bool {
		all := q.certificates()
		return all["a.example.com"].State == "failing" && all["b.example.com"].State == "failing"
	})
	c := q.certificates()["a.example.com"]
	if wait := time.Until(c.NextTry); wait < 55*time.Minute || wait > 70*time.Minute || !strings.Contains(c.Error, "rateLimited: too many new orders") {
		t.Errorf("%+v", c)
	}
	asked := stub.Count("order")
	for range 3 {
		q.signal(syscall.SIGTERM)
		q.wait(10 * time.Second)
		q.run()
		q.serving()
		q.until("the schedule is there", func() bool { return q.certificates()["a.example.com"].State == "failing" })
	}
	if now := stub.Count("order"); now != asked {
		t.Errorf("%d orders, and %d after three restarts", asked, now)
	}
	if got := q.certificates()["a.example.com"]; got.Attempts != 1 || !got.NextTry.Equal(c.NextTry) {
		t.Errorf("%+v, then %+v", c, got)
	}
	if _, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.tls), &tls.Config{ServerName: "a.example.com", InsecureSkipVerify: true}); err == nil {
		t.Error("a name without a certificate is served with another's")
	}
}

func TestT06_APortThatIsTakenAndTheOtherChallenge(t *testing.T) {
	t.Parallel()
	s := newSite(t, acmetest.Options{})
	holder, err := net.Listen("tcp", fmt.Sprintf(":%d", s.http))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	q := start(t, s.acme("")+"routes:\n"+s.route("a.example.com", "a"))
	q.until("the certificate", func() bool { return s.serial("a.example.com") != "" })
	q.until("how it was proved", func() bool { return q.certificates()["a.example.com"].Challenge == "tls-alpn-01" })
	if out, _ := q.cli("ports"); !strings.Contains(out, "retrying") || !strings.Contains(out, fmt.Sprint(s.http)) {
		t.Errorf("ports:\n%s", out)
	}
	if log := q.log.String(); !strings.Contains(log, "a challenge cannot be used, another is") {
		t.Errorf("the log does not say why:\n%s", log)
	}
}

func TestT07_OnDemand(t *testing.T) {
	t.Parallel()
	var orders atomic.Int64
	s := newSite(t, acmetest.Options{Before: func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/order-plz" {
			orders.Add(1)
		}
		return false
	}})
	ask := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains([]string{"a.customer.example", "b.customer.example", "c.customer.example"}, r.URL.Query().Get("domain")) {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer ask.Close()
	config := "routes:\n" + s.route("*.customer.example", "customer")
	if out, code := cli(t, "check", "-c", prepare(t, s.acme("")+config).file); code == 0 || !strings.Contains(out, "dns-01") {
		t.Errorf("a pattern without dns-01 and on_demand: %d\n%s", code, out)
	}
	q := start(t, s.acme(fmt.Sprintf(`, on_demand: {ask: "%s/allowed", allow: ["*.customer.example"], per_hour: 2}`, ask.URL))+config)
	q.until("the port answers", func() bool { return s.serial("a.customer.example") != "" })
	orders.Store(0)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if s.serial("b.customer.example") == "" {
				t.Error("b.customer.example has no certificate")
			}
		})
	}
	all.Wait()
	if n := orders.Load(); n != 1 {
		t.Errorf("%d orders for one name", n)
	}
	for _, name := range []string{"x.customer.example", "c.customer.example" /* over the budget */, "a.elsewhere.example"} {
		if s.serial(name) != "" {
			t.Errorf("%s has a certificate", name)
		}
	}
	if n := orders.Load(); n != 1 {
		t.Errorf("%d orders after names that may not", n)
	}
	if c := q.certificates()["b.customer.example"]; c.State != "valid" {
		t.Errorf("%+v", c)
	}
	q.signal(syscall.SIGTERM)
	q.wait(10 * time.Second)
	q.run()
	q.serving()
	if s.serial("b.customer.example") == "" || s.serial("c.customer.example") != "" {
		t.Error("after a restart b is not served, or c is")
	}
	if n := orders.Load(); n != 1 {
		t.Errorf("%d orders after a restart", n)
	}
}

func TestT13_OneChallengeRouteAPortAndNoTokenLeftBehind(t *testing.T) {
	t.Parallel()
	var bad atomic.Bool
	s := newSite(t, acmetest.Options{SlowValidation: 2, Before: func(w http.ResponseWriter, r *http.Request) bool {
		if bad.Load() && strings.HasPrefix(r.URL.Path, "/finalize-order/") {
			http.Error(w, "no", http.StatusForbidden)
			return true
		}
		return false
	}})
	config := func(names ...string) string {
		text := s.acme(", challenges: [http-01]") + "routes:\n" + s.user("user")
		for _, n := range names {
			text += s.route(n, n)
		}
		return text
	}
	q := start(t, config("a.example.com"))
	for i, names := range [][]string{{"a.example.com", "b.example.com"}, {"a.example.com", "b.example.com", "c.example.com"}, {"a.example.com", "c.example.com"}} {
		q.reload(config(names...))
		got := q.challengeRoutes()
		if len(got) != 1 {
			t.Errorf("reload %d: challenge routes on %v", i, got)
		}
		for port, n := range got {
			if n != 1 {
				t.Errorf("reload %d: %d challenge routes on %s", i, n, port)
			}
		}
	}
	within(t, 40*time.Second, "the certificates", func() bool { return s.serial("a.example.com") != "" && s.serial("c.example.com") != "" })
	bad.Store(true)
	q.reload(config("a.example.com", "c.example.com", "d.example.com"))
	within(t, 40*time.Second, "an order that fails", func() bool { return q.certificates()["d.example.com"].State == "failing" })
	if n := q.metric("quaymaster_acme_challenges_open"); n != 0 {
		t.Errorf("%v tokens are left", n)
	}
	code, body, err := httpGet(t, fmt.Sprintf("http://127.0.0.1:%d/.well-known/acme-challenge/x", s.http))
	if err != nil || code != 200 || body != "user" {
		t.Errorf("%d %q %v", code, body, err)
	}
}

func TestExamplesOfACMEServeHTTPS(t *testing.T) {
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "target of "+r.Host) }))
	t.Cleanup(target.Close)
	for example, names := range map[string][]string{
		"acme-http01.yaml":     {"app.example.com", "admin.app.example.com"},
		"acme-alpn.yaml":       {"app.example.com"},
		"acme-private-ca.yaml": {"wiki.internal"},
	} {
		t.Run(example, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile("../../examples/" + example)
			if err != nil {
				t.Fatal(err)
			}
			s := newSite(t, acmetest.Options{RejectNonces: 10})
			q := prepare(t, string(text))
			q.runEnv([]string{
				"ACME_DIRECTORY=" + s.Directory, "ACME_CA_ROOT=" + s.Root, "SITE=" + names[0], "TARGET=" + target.Listener.Addr().String(),
				fmt.Sprintf("HTTP_PORT=%d", s.http), fmt.Sprintf("HTTPS_PORT=%d", s.tls),
			})
			q.serving()
			for _, name := range names {
				q.until(name+" is served with its certificate", func() bool { return s.serial(name) != "" })
				client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
					TLSClientConfig: &tls.Config{ServerName: name, RootCAs: s.pool}, DisableKeepAlives: true,
					DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
						return (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.tls))
					},
				}}
				res, err := client.Get("https://" + name + "/")
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err != nil || res.StatusCode != 200 || !strings.HasPrefix(string(body), "target of ") {
					t.Errorf("%s: %d %q %v", name, res.StatusCode, body, err)
				}
			}
		})
	}
}
