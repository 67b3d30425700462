package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// certFiles writes a certificate for names, signed by itself, and its key. They are replaced as an editor does it.
func certFiles(t testing.TB, dir string, serial int64, names ...string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	putFile(t, dir+"/cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	putFile(t, dir+"/key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func putFile(t testing.TB, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// shownTo is the certificate that a client of that name is shown, whoever signed it.
func shownTo(port int, name string) (*x509.Certificate, error) {
	c, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port), &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

// certOf is what `certs --json` says of a name.
type certState struct {
	Name, Source, State, Error string
	NotAfter                   *time.Time `json:"not_after"`
	RenewAt                    *time.Time `json:"renew_at"`
	Users                      []string
}

func (q *qm) certOf(name string) certState {
	q.t.Helper()
	out, code := q.cli("certs", "--json")
	var list []certState
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 {
		q.t.Fatalf("certs --json: exit %d, %v\n%s", code, err, out)
	}
	for _, c := range list {
		if c.Name == name {
			return c
		}
	}
	q.t.Fatalf("certs --json has no %s:\n%s", name, out)
	return certState{}
}

// root is the root of the daemon's own CA, in a file and in a pool.
func (q *qm) root() (file string, pool *x509.CertPool) {
	q.t.Helper()
	out, code := q.cli("trust", "--print")
	if code != 0 {
		q.t.Fatalf("trust --print: exit %d\n%s", code, out)
	}
	file = filepath.Join(q.dir, "root.pem")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		q.t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(out))
	return file, pool
}

// curlCode runs curl and returns what it printed, and its exit code; 60 is a certificate that it does not trust.
func curlCode(t testing.TB, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command("curl", append([]string{"-sS", "--noproxy", "*", "-m", "20"}, args...)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestT08_NewFilesServeNewHandshakesAndOpenConnectionsLive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := certFiles(t, dir, 1, "a.test")
	port := freePort(t)
	q := start(t, fmt.Sprintf(`
routes:
  - name: a
    match: {ports: [%d], domains: [a.test]}
    action: {respond: {status: 200, body: well}, tls: {certificate: {cert_file: %s/cert.pem, key_file: %[2]s/key.pem}}}
`, port, dir))
	c, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port), &tls.Config{ServerName: "a.test", InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	ask := func() {
		t.Helper()
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("on the connection that was open before: %v, %v", res, err)
		}
		_ = res.Body.Close()
	}
	shown := func() int64 {
		cert, err := shownTo(port, "a.test")
		if err != nil {
			t.Fatal(err)
		}
		return cert.SerialNumber.Int64()
	}
	ask()
	if n := shown(); n != first.SerialNumber.Int64() {
		t.Fatalf("certificate %d is shown", n)
	}
	certFiles(t, dir, 2, "a.test")
	q.until("the new certificate", func() bool { return shown() == 2 })
	ask()

	putFile(t, dir+"/cert.pem", []byte("-----BEGIN CERTIFICATE-----\nbroken\n"))
	q.until("the fault in certs", func() bool { return q.certOf("a.test").State == "failing" })
	if n := shown(); n != 2 {
		t.Errorf("with a broken file, certificate %d is shown", n)
	}
	ask()
	s := q.statusOrNil()
	if text := fmt.Sprint(s["problems"]); s["state"] != "degraded" || !strings.Contains(text, "kind:certificate") || !strings.Contains(text, "cert.pem") {
		t.Errorf("status: %v", s)
	}
	if !strings.Contains(q.log.String(), "certificate files cannot be used") {
		t.Error("the log does not say so")
	}
	if out, code := q.cli("reload"); code != 0 { // it stays what it was
		t.Errorf("reload with a file that broke since: %d\n%s", code, out)
	}
	if n := shown(); n != 2 {
		t.Errorf("after a reload with a broken file, certificate %d is shown", n)
	}
	certFiles(t, dir, 3, "a.test")
	q.until("the mended files", func() bool { return shown() == 3 && q.statusOrNil()["state"] == "serving" })
	ask()
	var told []string
	q.eachEvent(200, func(kind, object string) { told = append(told, kind+" "+object) })
	for _, want := range []string{"certificate.renewed a.test", "certificate.failing a.test"} {
		if !slices.Contains(told, want) {
			t.Errorf("no event %q in %q", want, told)
		}
	}
}

// eachEvent hands over the newest events that are there.
func (q *qm) eachEvent(last int, f func(kind, object string)) {
	q.t.Helper()
	out, err := exec.Command("curl", "-sN", "-m", "2", "--unix-socket", q.sock, "http://localhost/v1/events?last="+strconv.Itoa(last)).Output()
	if len(out) == 0 {
		q.t.Fatalf("no events: %v", err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		var e struct{ Kind, Object string }
		if data, ok := strings.CutPrefix(line, "data: "); ok && json.Unmarshal([]byte(data), &e) == nil {
			f(e.Kind, e.Object)
		}
	}
}

func TestT08_FilesThatAreBrokenAtStartEndIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFiles(t, dir, 1, "a.test")
	putFile(t, dir+"/key.pem", []byte("?"))
	q := prepare(t, fmt.Sprintf(`
routes:
  - match: {ports: [%d], domains: [a.test]}
    action: {respond: {status: 200}, tls: {certificate: {cert_file: %s/cert.pem, key_file: %[2]s/key.pem}}}
`, freePort(t), dir))
	q.run()
	if code := q.wait(20 * time.Second); code == 0 || !strings.Contains(q.log.String(), dir+"/key.pem") {
		t.Errorf("exit %d\n%s", code, q.log)
	}
}

// With a CA that is not there, names of `auto` have no certificate: an alert, and nobody else's certificate.
func TestT09_WithoutACertificateThereIsAnAlert(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFiles(t, dir, 1, "file.test")
	port, plain, dead := freePort(t), freePort(t), freePort(t)
	body := fmt.Sprintf(`
acme: {email: a@example.com, directory: "https://127.0.0.1:%d/dir", http_port: %d, tls_port: %d}
routes:
  - {name: auto, match: {ports: [%[3]d], domains: [auto.example.com]}, action: {respond: {status: 200, body: auto}, tls: {certificate: auto}}}
  - {name: own, match: {ports: [%[3]d], domains: [own.test]}, action: {respond: {status: 200, body: own}, tls: {certificate: internal}}}
  - {name: file, match: {ports: [%[3]d], domains: [file.test]}, action: {respond: {status: 200, body: file}, tls: {certificate: {cert_file: %[4]s/cert.pem, key_file: %[4]s/key.pem}}}}
`, dead, plain, port, dir)
	q := start(t, body)
	alert := func(name string) {
		t.Helper()
		cert, err := shownTo(port, name)
		if err == nil {
			t.Errorf("%q is shown the certificate of %q", name, cert.DNSNames)
		} else if !strings.Contains(err.Error(), "remote error: tls") {
			t.Errorf("%q gets no alert: %v", name, err)
		}
	}
	alert("auto.example.com")
	alert("nobody.test")
	alert("")
	for _, name := range []string{"own.test", "file.test"} {
		if cert, err := shownTo(port, name); err != nil || cert.VerifyHostname(name) != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c := q.certOf("auto.example.com"); c.NotAfter != nil || c.Source != "auto" || c.State == "valid" || !slices.Equal(c.Users, []string{"route auto"}) {
		t.Errorf("%+v", c)
	}

	q.reload("default_certificate: internal\n" + body) // so configured, the local CA stands in, for that very name
	for _, name := range []string{"auto.example.com", "nobody.test"} {
		cert, err := shownTo(port, name)
		if err != nil || cert.VerifyHostname(name) != nil || cert.VerifyHostname("own.test") == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestT10_CurlAcceptsTheLocalCAsRoot(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	body := fmt.Sprintf(`
routes:
  - name: local
    match: {ports: [%d], domains: [localhost, app.test, 127.0.0.1, "*.w.test"]}
    action: {respond: {status: 200, body: well}, tls: {certificate: internal}}
`, port)
	q := start(t, body)
	root, pool := q.root()
	at := strconv.Itoa(port)
	for _, name := range []string{"localhost", "app.test", "127.0.0.1", "x.w.test"} {
		url := "https://" + name + ":" + at + "/"
		if out, code := curlCode(t, "--cacert", root, "--resolve", name+":"+at+":127.0.0.1", url); code != 0 || out != "well" {
			t.Errorf("%s: exit %d: %s", url, code, out)
		}
		if out, code := curlCode(t, "--resolve", name+":"+at+":127.0.0.1", url); code != 60 {
			t.Errorf("%s without the root: exit %d: %s", url, code, out)
		}
	}

	old, err := shownTo(port, "app.test")
	if err != nil {
		t.Fatal(err)
	}
	if life := old.NotAfter.Sub(old.NotBefore); life > 8*24*time.Hour {
		t.Errorf("a leaf lives for %s", life)
	}
	c := q.certOf("app.test")
	if c.State != "valid" || c.Source != "internal" || !c.NotAfter.Equal(old.NotAfter) || !c.RenewAt.Before(*c.NotAfter) {
		t.Errorf("%+v, and clients are shown one until %s", c, old.NotAfter)
	}
	if v := q.metric(`quaymaster_certificate_not_after_timestamp_seconds{name="app.test"}`); int64(v) != old.NotAfter.Unix() {
		t.Errorf("metric %v, want %d", v, old.NotAfter.Unix())
	}
	if out, code := q.cli("certs", "renew", "app.test"); code != 0 {
		t.Errorf("renew: %d\n%s", code, out)
	}
	renewed, err := shownTo(port, "app.test")
	if err != nil || renewed.SerialNumber.Cmp(old.SerialNumber) == 0 {
		t.Errorf("the certificate is the same after certs renew (%v)", err)
	}
	if out, code := q.cli("certs", "renew", "nobody.test"); code != 1 || !strings.Contains(out, "nobody.test") {
		t.Errorf("renew of a name that is not there: %d\n%s", code, out)
	}

	q.signal(os.Interrupt) // the root is the same in the next process
	q.wait(30 * time.Second)
	q.run()
	q.serving()
	cl, err := tls.Dial("tcp", "127.0.0.1:"+at, &tls.Config{ServerName: "localhost", RootCAs: pool})
	if err != nil {
		t.Errorf("after a restart: %v", err)
	} else {
		_ = cl.Close()
	}
}

func TestD02_ALocalCAThatCannotBeReadIsNotReplaced(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := start(t, fmt.Sprintf(`
routes:
  - {name: local, match: {ports: [%d], domains: [localhost]}, action: {respond: {status: 200, body: local}, tls: {certificate: internal}}}
  - {name: plain, match: {ports: [%[1]d], domains: [plain.test]}, action: {respond: {status: 200, body: plain}}}
`, port))
	_, pool := q.root()
	q.signal(os.Interrupt)
	q.wait(30 * time.Second)
	state := q.dir + "/state/"
	whole, err := os.ReadFile(state + "ca-root.pem")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca-root.pem", "ca-intermediate.pem"} {
		putFile(t, state+name, []byte("garbage"))
	}
	q.run()
	q.serving()
	mustFetch(t, port, "plain.test", "/", "plain")
	if cert, err := shownTo(port, "localhost"); err == nil {
		t.Errorf("shown a certificate of a new CA: %s", cert.Issuer)
	}
	if s := q.statusOrNil(); s["state"] != "degraded" || !strings.Contains(fmt.Sprint(s["problems"]), "ca-root.pem") {
		t.Errorf("status: %v", s)
	}
	if now, _ := os.ReadFile(state + "ca-root.pem"); string(now) != "garbage" {
		t.Error("the file was written")
	}
	putFile(t, state+"ca-root.pem", whole) // the backup
	q.until("the root that was put back", func() bool {
		c, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port), &tls.Config{ServerName: "localhost", RootCAs: pool})
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	q.until("it to be well", func() bool { return q.statusOrNil()["state"] == "serving" })
}

// Sessions of the process before are resumed by the one that takes over.
func TestT11_SessionsOutliveAnUpgrade(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := start(t, fmt.Sprintf(`
routes:
  - {name: local, match: {ports: [%d], domains: [localhost]}, action: {respond: {status: 200, body: well}, tls: {certificate: internal}}}
`, port))
	_, pool := q.root()
	sessions := tls.NewLRUClientSessionCache(8)
	resumed := func(version uint16) bool {
		t.Helper()
		c, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port), &tls.Config{
			ServerName: "localhost", RootCAs: pool, ClientSessionCache: sessions, MinVersion: version, MaxVersion: version,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil { // the ticket comes before it
			t.Fatal(err)
		}
		return c.ConnectionState().DidResume
	}
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		sessions = tls.NewLRUClientSessionCache(8)
		if resumed(version) {
			t.Error("the first connection is resumed")
		}
		if !resumed(version) {
			t.Errorf("%s: the second connection is not resumed", tls.VersionName(version))
		}
		q.upgrade()
		if !resumed(version) {
			t.Errorf("%s: not resumed by the new process", tls.VersionName(version))
		}
	}
}
