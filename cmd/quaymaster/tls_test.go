package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// An authority signs the certificates of a test.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	file string // its certificate, PEM
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), pool: x509.NewCertPool()}
	c := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
	a.cert, a.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	a.pool.AddCert(a.cert)
	a.file, _ = a.write("ca", c)
	return a
}

func (a *authority) sign(template *x509.Certificate) *tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial := make([]byte, 16)
	_, _ = rand.Read(serial)
	template.SerialNumber = new(big.Int).SetBytes(serial)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(240*time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) server(names ...string) *tls.Certificate {
	return a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

func (a *authority) client(name string) *tls.Certificate {
	return a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// write puts a certificate and its key into files, at once, and returns where.
func (a *authority) write(name string, c *tls.Certificate) (cert, key string) {
	a.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key
}

// files makes a certificate for the names and is what configuration says of it.
func (a *authority) files(names ...string) string {
	cert, key := a.write(names[0], a.server(names...))
	return fmt.Sprintf("{cert_file: %s, key_file: %s}", cert, key)
}

// secureRoute is a route whose TLS ends here. more stands in its tls block.
func secureRoute(name string, port int, domain, target, certificate, more string) string {
	return fmt.Sprintf("  - {name: %s, match: {ports: [%d], domains: [%q]}, action: {targets: [%q], tls: {mode: terminate, certificate: %s%s}}}\n",
		name, port, domain, target, certificate, more)
}

// handshake begins TLS with the port; the error is what the client sees of a refusal.
func handshake(t testing.TB, port int, config *tls.Config) (*tls.Conn, error) {
	t.Helper()
	raw := dial(t, port)
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	c := tls.Client(raw, config)
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	return c, nil
}

func mustHandshake(t testing.TB, port int, config *tls.Config) *tls.Conn {
	t.Helper()
	c, err := handshake(t, port, config)
	if err != nil {
		t.Fatalf("handshake for %s: %v", config.ServerName, err)
	}
	return c
}

// exchange asks over a TLS connection that is kept.
func exchange(c net.Conn, r *bufio.Reader, host string) (*http.Response, string, error) {
	if _, err := fmt.Fprintf(c, "GET /x HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		return nil, "", err
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(res.Body)
	return res, string(b), err
}

// askOnce makes a connection for name and asks it for host.
func askOnce(t testing.TB, port int, config *tls.Config, host string) (int, string, error) {
	t.Helper()
	c, err := handshake(t, port, config)
	if err != nil {
		return 0, "", err
	}
	defer c.Close()
	res, body, err := exchange(c, bufio.NewReader(c), host)
	if err != nil {
		return 0, "", err
	}
	return res.StatusCode, body, nil
}

func (a *authority) config(name string) *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: name}
}

// installed is the path of a program the tests need.
func installed(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func runProgram(t testing.TB, in string, path string, args ...string) string {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 60*time.Second)
	defer stop()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(in)
	out, _ := cmd.CombinedOutput() // what it printed tells
	return string(out)
}

func TestTLSEndsHere(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := freePort(t)
	web := httpTarget(t, "web", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s proto=%s host=%s", r.URL.Path, r.Header.Get("X-Forwarded-Proto"), r.Host)
	})
	other := httpTarget(t, "other", nil)
	passed := tcpTarget(t, func(c net.Conn) {
		k := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*a.server("p.test")}})
		if k.Handshake() == nil {
			_, _ = k.Write([]byte("the target's own"))
		}
	})
	body := "log: {access: {enabled: true}}\nroutes:\n" +
		secureRoute("a", p, "a.test", web, a.files("a.test"), "") +
		secureRoute("b", p, "b.test", other, a.files("b.test"), "") +
		fmt.Sprintf("  - {name: p, match: {ports: [%d], domains: [p.test]}, action: {targets: [%q], tls: {mode: passthrough}}}\n", p, passed) +
		route("plain", p, "plain.test", other)
	q := start(t, body)

	status, text, err := askOnce(t, p, a.config("a.test"), "a.test")
	if err != nil || status != 200 || text != "/x proto=https host=a.test" {
		t.Errorf("a.test: %d %q %v", status, text, err)
	}
	c := mustHandshake(t, p, a.config("p.test"))
	if b, _ := io.ReadAll(c); string(b) != "the target's own" {
		t.Errorf("passed through: %q", b)
	}
	mustFetch(t, p, "plain.test", "/", "other GET plain.test /")
	lost := dial(t, p)
	res, _ := say(t, lost, bufio.NewReader(lost), fmt.Sprintf("GET /y HTTP/1.1\r\nHost: a.test:%d\r\n\r\n", p))
	if want := fmt.Sprintf("https://a.test:%d/y", p); res.StatusCode != 308 || res.Header.Get("Location") != want {
		t.Errorf("a plain client of a TLS-only host gets %d %q, want 308 and %s", res.StatusCode, res.Header.Get("Location"), want)
	}
	for _, host := range []string{"b.test", "p.test"} {
		if status, _, err := askOnce(t, p, a.config("a.test"), host); status != 421 {
			t.Errorf("%s on a connection for a.test: %d %v, want 421", host, status, err)
		}
	}
	if status, _, err := askOnce(t, p, a.config("a.test"), "plain.test"); status != 404 {
		t.Errorf("a plain host over TLS: %d %v, want 404", status, err)
	}

	k := mustHandshake(t, p, a.config("a.test"))
	if _, _, err := exchange(k, bufio.NewReader(k), "a.test"); err != nil {
		t.Fatal(err)
	}
	var list []struct {
		State, TLS string
		Name       string `json:"server_name"`
	}
	q.get("/v1/connections", &list)
	if len(list) == 0 || list[0].TLS != "1.3" || list[0].Name != "a.test" { // the newest is the first
		t.Errorf("/v1/connections: %+v", list)
	}
	q.until("the access log tells the version", func() bool { return strings.Contains(q.out.String(), `"tls":"1.3"`) })
	for url, want := range map[string]string{"https://a.test": "forwarded to " + web, "https://none.test": "no route matches", "https://p.test": "tunnelled to " + passed} {
		out, code := q.cli("explain", fmt.Sprintf("%s:%d/x", url, p))
		if code != 0 || !strings.Contains(out, want) || strings.Contains(want, web) && !strings.Contains(out, filepath.Join(a.dir, "a.test.pem")) {
			t.Errorf("explain %s: exit %d\n%s", url, code, out)
		}
	}
}

func TestT08_HotReplacement(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := freePort(t)
	web := httpTarget(t, "web", nil)
	body := "routes:\n" + secureRoute("a", p, "a.test", web, a.files("a.test"), "")
	q := start(t, body)
	open := mustHandshake(t, p, a.config("a.test"))
	r := bufio.NewReader(open)
	still := func() {
		t.Helper()
		if res, text, err := exchange(open, r, "a.test"); err != nil || res.StatusCode != 200 || text != "web GET a.test /x" {
			t.Fatalf("the open connection: %v %q", err, text)
		}
	}
	still()
	shown := func() string {
		c := mustHandshake(t, p, a.config("a.test"))
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := shown()
	next := a.server("a.test")
	a.write("a.test", next)
	q.until("new handshakes get the new certificate", func() bool { return shown() == next.Leaf.SerialNumber.String() })
	if next.Leaf.SerialNumber.String() == first {
		t.Fatal("the certificate is not another one")
	}
	still()

	cert, _ := a.write("a.test", next)
	if err := os.WriteFile(cert, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	q.until("the status says that the file is broken", func() bool {
		out, _ := q.cli("certs", "--json")
		return strings.Contains(out, cert) && strings.Contains(out, `"error"`)
	})
	if got := shown(); got != next.Leaf.SerialNumber.String() {
		t.Errorf("a broken file: serial %s is shown, want %s", got, next.Leaf.SerialNumber)
	}
	q.reload(body + route("more", freePort(t), "x.test", web))
	still()
	if got := shown(); got != next.Leaf.SerialNumber.String() {
		t.Errorf("after a reload with a broken file: serial %s, want %s", got, next.Leaf.SerialNumber)
	}
	last := a.server("a.test")
	a.write("a.test", last)
	q.until("the mended file is used", func() bool { return shown() == last.Leaf.SerialNumber.String() })
	still()
}

func TestT09_NameWithoutCertificate(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := freePort(t)
	web := httpTarget(t, "web", nil)
	// Nobody answers at the directory, so no certificate ever comes.
	body := fmt.Sprintf("acme: {email: ops@a.test, directory: 'https://127.0.0.1:%d/dir', challenges: [tls-alpn-01], tls_port: %d}\nroutes:\n", freePort(t), p) +
		secureRoute("a", p, "a.test", web, a.files("a.test"), "") + secureRoute("pending", p, "pending.test", web, "auto", "")
	q := start(t, body)
	if _, err := handshake(t, p, a.config("pending.test")); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("a name without a certificate yet: %v, want the alert internal_error", err)
	}
	q.until("it is counted as tls", func() bool { return q.rejected("tls") == 1 })
	if _, err := handshake(t, p, a.config("unknown.test")); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a name that nobody knows: %v, want the alert unrecognized_name", err)
	}
	any := &tls.Config{InsecureSkipVerify: true}
	if _, err := handshake(t, p, any); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("no name: %v, want the alert unrecognized_name", err)
	}
	config := a.config("unknown.test")
	config.NextProtos = []string{"acme-tls/1"}
	if _, err := handshake(t, p, config); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a challenge for a name without an order: %v", err)
	}
	if status, _, err := askOnce(t, p, a.config("a.test"), "a.test"); status != 200 {
		t.Errorf("its neighbour: %d %v", status, err)
	}
	q.reload(strings.Replace(body, "routes:", "default_certificate: "+a.files("default.test")+"\nroutes:", 1))
	for _, config := range []*tls.Config{any, {InsecureSkipVerify: true, ServerName: "unknown.test"}} {
		c, err := handshake(t, p, config)
		if err != nil {
			t.Errorf("with a default certificate: %v", err)
			continue
		}
		if name := c.ConnectionState().PeerCertificates[0].Subject.CommonName; name != "default.test" {
			t.Errorf("%q is shown the certificate of %s", config.ServerName, name)
		}
	}
	if status, _, err := askOnce(t, p, any, "a.test"); status != 200 {
		t.Errorf("a client that says no name, under the default certificate: %d %v", status, err)
	}
	if status, _, err := askOnce(t, p, &tls.Config{InsecureSkipVerify: true, ServerName: "unknown.test"}, "a.test"); status != 421 {
		t.Errorf("a client that said another name: %d %v, want 421", status, err)
	}
	if _, err := handshake(t, p, a.config("pending.test")); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("a known name is not shown the default certificate: %v", err)
	}
}

func TestT11_VersionsSuitesAndTickets(t *testing.T) {
	t.Parallel()
	openssl := installed(t, "openssl")
	a := newAuthority(t)
	p := freePort(t)
	web := httpTarget(t, "web", nil)
	body := "routes:\n" + secureRoute("a", p, "a.test", web, a.files("a.test"), "") +
		secureRoute("new", p, "new.test", web, a.files("new.test"), `, min_version: "1.3"`)
	q := start(t, body)
	client := func(more ...string) string {
		args := append([]string{"s_client", "-connect", at(p), "-servername", "a.test", "-CAfile", a.file, "-ign_eof"}, more...)
		return runProgram(t, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", openssl, args...)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-tls1_3"}, "TLSv1.3, Cipher is TLS_"},
		{[]string{"-tls1_2"}, "TLSv1.2, Cipher is ECDHE-ECDSA-"},
		{[]string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, "alert protocol version"},
		{[]string{"-tls1", "-cipher", "ALL:@SECLEVEL=0"}, "alert protocol version"},
		{[]string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"}, "alert handshake failure"},
		{[]string{"-tls1_2", "-servername", "new.test"}, "alert protocol version"},
	} {
		out := client(c.args...)
		if !strings.Contains(out, c.want) {
			t.Errorf("s_client %v: %q is not in\n%s", c.args, c.want, tail(out, 30))
		}
		if good := strings.Contains(c.want, "Cipher"); good && !(strings.Contains(out, "Verify return code: 0") && strings.Contains(out, "web GET a.test /")) {
			t.Errorf("s_client %v:\n%s", c.args, tail(out, 30))
		}
	}
	if st := mustHandshake(t, p, a.config("a.test")).ConnectionState(); st.CurveID != tls.X25519MLKEM768 {
		t.Errorf("keys were exchanged by %v", st.CurveID)
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		session := filepath.Join(t.TempDir(), "session")
		if out := client(version, "-sess_out", session); !strings.Contains(out, "New, TLS") {
			t.Fatalf("%s: the first connection:\n%s", version, tail(out, 30))
		}
		q.reload(body + route("more", freePort(t), "x.test", web))
		if out := client(version, "-sess_in", session); !strings.Contains(out, "Reused, TLS") {
			t.Errorf("%s: not resumed over a reload:\n%s", version, tail(out, 30))
		}
		other := runProgram(t, "", openssl, "s_client", "-connect", at(p), "-servername", "new.test", "-tls1_3", "-sess_in", session)
		if strings.Contains(other, "Reused") {
			t.Errorf("%s: a ticket of a.test opened a session of another policy", version)
		}
		q.reload(body)
	}
}

// TestT11_TestSSL has testssl.sh look at a policy as it comes. Its findings are kept beside the test's output.
func TestT11_TestSSL(t *testing.T) {
	path := installed(t, "testssl")
	if testing.Short() {
		t.Skip("takes a minute or more")
	}
	a := newAuthority(t)
	p := freePort(t)
	cert := a.files("a.test")
	start(t, "default_certificate: "+cert+"\nroutes:\n"+secureRoute("a", p, "a.test", httpTarget(t, "web", nil), cert, ""))
	dir := os.Getenv("QM_TEST_OUTPUT")
	if dir == "" {
		dir = t.TempDir()
	}
	file := filepath.Join(dir, "testssl.json")
	_ = os.Remove(file)
	ctx, stop := context.WithTimeout(context.Background(), 8*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, path, "--quiet", "--color", "0", "--warnings", "batch", "--ip", "127.0.0.1", "--add-ca", a.file,
		"--protocols", "--std", "--fs", "--server-preference", "--server-defaults", "--vulnerable", "--jsonfile", file, fmt.Sprintf("a.test:%d", p))
	out, _ := cmd.CombinedOutput()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var findings []struct{ ID, Severity, Finding string }
	if err := json.Unmarshal(b, &findings); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	seen := 0
	for _, f := range findings {
		switch f.Severity {
		case "OK", "INFO", "DEBUG":
			seen++
			continue
		}
		if own[f.ID] {
			continue
		}
		t.Errorf("%s %s: %s", f.Severity, f.ID, f.Finding)
	}
	if seen < 50 {
		t.Errorf("only %d findings: did it look at all?\n%s", seen, out)
	}
}

// own are findings on the certificate of the test, which says nothing of how it may be revoked or was logged; and on the
// week that crypto/tls says a TLS 1.3 ticket may be kept, which cannot be told otherwise. Its keys are gone in 32 hours.
var own = map[string]bool{
	"TLS_session_ticket": true,

	"cert_revocation": true, "cert_crlDistributionPoints": true, "cert_ocspURL": true, "OCSP_stapling": true, "DNS_CAArecord": true,
	"cert_chain_of_trust": true, "cert_expirationStatus": true, "cert_extlifeSpan": true, "certificate_transparency": true,
	"scanProblem": true, "engine_problem": true, "cert_notAfter": true,
}

func TestT12_ClientCertificates(t *testing.T) {
	t.Parallel()
	curl := installed(t, "curl")
	a, stranger := newAuthority(t), newAuthority(t)
	p := freePort(t)
	web := httpTarget(t, "web", nil)
	auth := func(mode string) string { return fmt.Sprintf(", client_auth: {mode: %s, ca_file: %s}", mode, a.file) }
	start(t, "routes:\n"+secureRoute("required", p, "required.test", web, a.files("required.test"), auth("required"))+
		secureRoute("optional", p, "optional.test", web, a.files("optional.test"), auth("optional"))+
		secureRoute("none", p, "none.test", web, a.files("none.test"), ""))
	cert, key := a.write("ann", a.client("ann"))
	badCert, badKey := stranger.write("bob", stranger.client("bob"))
	none, ours, theirs := []string{}, []string{"--cert", cert, "--key", key}, []string{"--cert", badCert, "--key", badKey}
	for _, c := range []struct {
		host string
		with []string
		ok   bool
	}{
		{"required.test", none, false},
		{"required.test", ours, true},
		{"required.test", theirs, false},
		{"optional.test", none, true},
		{"optional.test", ours, true},
		{"optional.test", theirs, false},
		{"none.test", none, true},
		{"none.test", theirs, true},
	} {
		for _, version := range []string{"1.2", "1.3"} {
			args := append([]string{"-sS", "--cacert", a.file, "--resolve", fmt.Sprintf("%s:%d:127.0.0.1", c.host, p), "--tls-max", version}, c.with...)
			out := runProgram(t, "", curl, append(args, fmt.Sprintf("https://%s:%d/x", c.host, p))...)
			if ok := strings.HasPrefix(out, "web GET "); ok != c.ok {
				t.Errorf("curl %v %s with TLS %s: %q, want success %v", c.with, c.host, version, out, c.ok)
			}
		}
	}
	// The certificate that one host demands is not got round by way of another.
	if status, _, err := askOnce(t, p, a.config("none.test"), "required.test"); status != 421 {
		t.Errorf("required.test on a connection for none.test: %d %v, want 421", status, err)
	}
}

func TestT12_BrokenAuthorityIsNamed(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	file := filepath.Join(a.dir, "broken.pem")
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := freePort(t)
	web := httpTarget(t, "web", nil)
	good := "routes:\n" + secureRoute("a", p, "a.test", web, a.files("a.test"), fmt.Sprintf(", client_auth: {mode: required, ca_file: %s}", a.file))
	q := start(t, good)
	q.write(strings.ReplaceAll(good, a.file, file))
	if out, code := q.cli("reload"); code == 0 || !strings.Contains(out, file) || !strings.Contains(out, "no certificate") {
		t.Errorf("reload: exit %d\n%s", code, out)
	}
	if _, err := handshake(t, p, a.config("a.test")); err != nil && !strings.Contains(err.Error(), "certificate") {
		t.Errorf("what was before is gone: %v", err)
	}
}

func TestT04_ChallengeOfAStrangerIsPassedOn(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := freePort(t)
	theirs := a.server("p.test")
	passed := tcpTarget(t, func(c net.Conn) {
		k := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*theirs}, NextProtos: []string{"acme-tls/1"}})
		_ = k.Handshake()
		_, _ = io.Copy(io.Discard, k)
	})
	start(t, fmt.Sprintf("acme: {email: ops@a.test, directory: 'https://127.0.0.1:%d/dir', challenges: [tls-alpn-01], tls_port: %d}\nroutes:\n", freePort(t), p)+
		secureRoute("auto", p, "auto.test", httpTarget(t, "web", nil), "auto", "")+
		fmt.Sprintf("  - {name: p, match: {ports: [%d], domains: [p.test]}, action: {targets: [%q], tls: {mode: passthrough}}}\n", p, passed))
	config := a.config("p.test")
	config.NextProtos = []string{"acme-tls/1"}
	c := mustHandshake(t, p, config)
	if st := c.ConnectionState(); st.NegotiatedProtocol != "acme-tls/1" || st.PeerCertificates[0].SerialNumber.Cmp(theirs.Leaf.SerialNumber) != 0 {
		t.Errorf("protocol %q, serial %v", st.NegotiatedProtocol, st.PeerCertificates[0].SerialNumber)
	}
}

func TestC03_CapsOnTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	g := slowTarget(t)
	defer close(g.let)
	for _, c := range []struct{ name, settings, security, reason string }{
		{"all", "max_connections: 4\n", "", "max_connections"},
		{"per ip", "max_connections_per_ip: 4\n", "", "per_ip"},
		{"per route", "", ", security: {max_connections: 4}", "per_route"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := freePort(t)
			r := secureRoute("a", p, "a.test", g.addr, a.files("a.test"), "")
			q := start(t, "log: {access: {enabled: true}}\n"+c.settings+"routes:\n"+strings.TrimSuffix(r, "}\n")+c.security+"}\n")
			path := "/quick"
			if c.name == "per route" {
				path = "/slow" // only what is under way counts
			}
			open := func() *tls.Conn {
				k, err := handshake(t, p, a.config("a.test"))
				if err != nil {
					return nil
				}
				_, _ = io.WriteString(k, "GET "+path+" HTTP/1.1\r\nHost: a.test\r\n\r\n")
				res, err := http.ReadResponse(bufio.NewReader(k), nil)
				if err != nil || res.StatusCode != 200 {
					_ = k.Close()
					return nil
				}
				return k
			}
			var conns []*tls.Conn
			for i := range 4 {
				k := open()
				if k == nil {
					t.Fatalf("connection %d of 4 was refused", i+1)
				}
				conns = append(conns, k)
			}
			if open() != nil {
				t.Fatal("the fifth was let in")
			}
			q.until("it is counted", func() bool {
				return q.rejected(c.reason) > 0 || strings.Contains(q.out.String(), `"reason":"`+c.reason+`"`)
			})
			for i, reset := range []bool{false, true} { // a slot freed by close_notify, then by RST
				if reset || c.name == "per route" { // an exchange goes on for a client that has only ended its own direction
					_ = conns[i].NetConn().(*net.TCPConn).SetLinger(0)
					_ = conns[i].NetConn().Close()
				} else {
					_ = conns[i].Close()
				}
				until(t, "the freed slot is usable", func() bool { conns[i] = open(); return conns[i] != nil })
			}
		})
	}
}

func TestC11_WebSocketOverTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p, ping := freePort(t), make(chan struct{}, 100)
	target := httpTarget(t, "ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{
			InsecureSkipVerify: true,
			OnPingReceived:     func(context.Context, []byte) bool { ping <- struct{}{}; return true },
		})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		for {
			kind, msg, err := c.Read(context.Background())
			if err != nil || c.Write(context.Background(), kind, msg) != nil {
				return
			}
		}
	})
	passed := tcpTarget(t, func(c net.Conn) {
		k := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*a.server("p.test")}})
		up, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer up.Close()
		go func() {
			_, _ = io.Copy(up, k)
			_ = up.Close()
		}()
		_, _ = io.Copy(k, up)
	})
	tlsTarget := a.tlsFront(t, target)
	body := func(more string) string {
		return "timeouts: {keep_alive: 300ms, request_header: 300ms, tls_handshake: 5s}\nroutes:\n" +
			secureRoute("t", p, "t.test", target, a.files("t.test"), "") +
			fmt.Sprintf("  - {name: p, match: {ports: [%d], domains: [p.test]}, action: {targets: [%q], tls: {mode: passthrough}}}\n", p, passed) +
			fmt.Sprintf("  - {name: r, match: {ports: [%d], domains: [r.test]}, action: {targets: [%q], tls: {mode: reencrypt, certificate: %s}, target_tls: {server_name: target.test, ca_file: %s}, pool: {idle: 200ms, max_age: 300ms}}}\n",
				p, tlsTarget, a.files("r.test"), a.file) + more
	}
	q := start(t, body(""))
	conns := map[string]*websocket.Conn{}
	for _, host := range []string{"t.test", "p.test", "r.test"} {
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig: a.config(host),
			DialContext:     func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", at(p)) },
		}}
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		c, _, err := websocket.Dial(ctx, "wss://"+host+"/chat", &websocket.DialOptions{HTTPClient: client})
		stop()
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		t.Cleanup(func() { _ = c.CloseNow() })
		c.SetReadLimit(1 << 20)
		conns[host] = c
	}
	big := strings.Repeat("0123456789abcdef", 30_000) // many records
	for i := range 4 {
		rest := time.NewTimer(400 * time.Millisecond) // longer than keep_alive and the pools
		<-rest.C
		for host, c := range conns {
			wsEcho(t, c, fmt.Sprintf("%s %d", host, i))
			wsEcho(t, c, big)
			ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
			if err := pingOnce(ctx, c); err != nil {
				t.Errorf("%s: ping: %v", host, err)
			}
			stop()
			<-ping
		}
		q.reload(body(route("more", freePort(t), fmt.Sprintf("x%d.test", i), target)))
	}
	q.signal(syscall.SIGTERM)
	for _, host := range []string{"t.test", "r.test"} {
		wsEcho(t, conns[host], "while it drains")
	}
	for _, c := range conns {
		_ = c.Close(websocket.StatusNormalClosure, "")
	}
	if code := q.wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// pingOnce sends a ping and has its pong read. What it reads besides is the echo of a message of its own: reading cannot
// be given up without ending the connection.
func pingOnce(ctx context.Context, c *websocket.Conn) error {
	over := make(chan error, 1)
	go func() {
		_, _, err := c.Read(ctx)
		over <- err
	}()
	if err := c.Ping(ctx); err != nil {
		return err
	}
	if err := c.Write(ctx, websocket.MessageText, []byte("enough")); err != nil {
		return err
	}
	return <-over
}

// tlsFront speaks TLS as target.test and passes what is inside on.
func (a *authority) tlsFront(t testing.TB, target string) string {
	cert := a.server("target.test")
	return tcpTarget(t, func(c net.Conn) {
		k := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}})
		up, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer up.Close()
		go func() {
			_, _ = io.Copy(up, k)
			_ = up.Close()
		}()
		_, _ = io.Copy(k, up)
	})
}

func TestC01_DrainOnTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := freePort(t)
	g := slowTarget(t)
	q := start(t, "routes:\n"+secureRoute("a", p, "a.test", g.addr, a.files("a.test"), ""))
	idle, busy := mustHandshake(t, p, a.config("a.test")), mustHandshake(t, p, a.config("a.test"))
	if _, text, err := exchange(idle, bufio.NewReader(idle), "a.test"); err != nil || text != "quick" {
		t.Fatal(text, err)
	}
	_, _ = io.WriteString(busy, "GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n")
	r := bufio.NewReader(busy)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	q.signal(syscall.SIGTERM)
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection ends with %v, want close_notify", err)
	}
	close(g.let)
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "halfdone" {
		t.Errorf("the transfer ends with %q, %v", b, err)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("its connection ends with %v, want close_notify", err)
	}
	if code := q.wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestHandshakeClock(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := freePort(t)
	q := start(t, "timeouts: {tls_handshake: 300ms}\nroutes:\n"+secureRoute("a", p, "a.test", httpTarget(t, "web", nil), a.files("a.test"), ""))
	c := dial(t, p)
	if _, err := c.Write(hello("a.test")); err != nil { // and nothing more
		t.Fatal(err)
	}
	_ = untilEnd(t, c, 10*time.Second)
	q.until("it is counted as tls", func() bool { return q.rejected("tls") == 1 })
}
