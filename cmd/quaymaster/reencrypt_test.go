package main

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// httpsTarget is an HTTP server over TLS that says which client certificate it saw, and how many requests came.
func httpsTarget(t testing.TB, config *tls.Config) (addr string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		who := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			who = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-Proto")+" from "+who)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = config
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), requests
}

func TestT12_TargetsAreVerified(t *testing.T) {
	t.Parallel()
	a, rogue := newAuthority(t), newAuthority(t)
	good, _ := httpsTarget(t, &tls.Config{Certificates: []tls.Certificate{*a.server("target.test")}})
	unknown, seenByUnknown := httpsTarget(t, &tls.Config{Certificates: []tls.Certificate{*rogue.server("target.test")}})
	expired := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "target.test"}, DNSNames: []string{"target.test"}})
	plain := httpTarget(t, "plain", nil)
	// An expired one is signed again with another end.
	old := *expired.Leaf
	old.NotAfter = time.Now().Add(-time.Minute)
	der, err := x509.CreateCertificate(nil, &old, a.cert, expired.Leaf.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	late, _ := httpsTarget(t, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: expired.PrivateKey}}})
	p := freePort(t)
	route := func(name, addr, more string) string {
		return fmt.Sprintf("  - {name: %s, match: {ports: [%d], domains: [%s.test]}, action: {targets: [\"https://%s\"], tls: {mode: reencrypt, certificate: %s}, target_tls: {ca_file: %s%s}, health_check: {http: /, interval: 100ms, fall: 1}}}\n",
			name, p, name, addr, a.files(name+".test"), a.file, more)
	}
	body := "routes:\n" + route("good", good, ", server_name: target.test") + route("rogue", unknown, ", server_name: target.test") +
		route("other", good, ", server_name: elsewhere.test") + route("late", late, ", server_name: target.test") + route("plain", plain, "")
	q := start(t, body)
	ask := func(name string) (int, string) {
		t.Helper()
		status, text, err := askOnce(t, p, a.config(name+".test"), name+".test")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return status, text
	}
	if status, text := ask("good"); status != 200 || text != "https from nobody" {
		t.Errorf("a good target: %d %q", status, text)
	}
	for name, want := range map[string]string{
		"rogue": "is signed by an unknown authority (CN=test authority), none of target_tls.ca_file " + a.file,
		"other": "is for target.test and not for elsewhere.test: write the name it has as target_tls.server_name",
		"late":  "has expired on " + old.NotAfter.UTC().Format(time.RFC3339) + ": renew it on the target",
		"plain": "the target speaks plain HTTP: write http:// or leave https:// out",
	} {
		// Where the check was first every target is down: 503. It is never an answer of the target.
		if status, text := ask(name); status != 502 && status != 503 || strings.Contains(text, "target_tls") {
			t.Errorf("%s: %d %q", name, status, text)
		}
		q.until("the log names the reason of "+name, func() bool { return strings.Contains(q.log.String(), want) })
		q.until("status names the reason of "+name, func() bool {
			out, _ := q.cli("status")
			return strings.Contains(out, want)
		})
	}
	if n := seenByUnknown.Load(); n != 0 {
		t.Errorf("%d requests reached a target that nobody vouches for", n)
	}

	// Each is mended by what its error says.
	q.reload("routes:\n" + strings.ReplaceAll(route("rogue", unknown, ""), "ca_file: "+a.file, "insecure_skip_verify: true") +
		route("other", good, ", server_name: target.test") + strings.NewReplacer("https://", "", "reencrypt", "terminate", ", target_tls: {ca_file: "+a.file+"}", "").Replace(route("plain", plain, "")))
	for _, name := range []string{"rogue", "other", "plain"} {
		q.until(name+" is mended", func() bool { status, _ := ask(name); return status == 200 })
	}
}

func TestT12_TargetsAreShownACertificate(t *testing.T) {
	t.Parallel()
	a, clients := newAuthority(t), newAuthority(t)
	addr, _ := httpsTarget(t, &tls.Config{
		Certificates: []tls.Certificate{*a.server("target.test")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients.pool,
	})
	p := freePort(t)
	body := func(more string) string {
		return fmt.Sprintf("routes:\n  - {name: api, match: {ports: [%d]}, action: {targets: [\"https://%s\"], target_tls: {ca_file: %s, server_name: target.test%s}, pool: {max_idle: 1, max_age: 1s}}}\n",
			p, addr, a.file, more)
	}
	q := start(t, body(""))
	if status, _, err := fetch(p, "x", "/"); err != nil || status != 502 {
		t.Errorf("without a certificate: %d %v", status, err)
	}
	q.until("the log names the key", func() bool { return strings.Contains(q.out.String()+q.log.String(), "target_tls.client_cert_file") })

	cert, key := clients.write("client", clients.client("the first"))
	q.reload(body(fmt.Sprintf(", client_cert_file: %s, client_key_file: %s", cert, key)))
	mustFetch(t, p, "x", "/", "http from the first")
	clients.write("client", clients.client("the second")) // nobody reloads
	q.until("the renewed certificate is shown", func() bool {
		status, text, err := fetch(p, "x", "/")
		if err != nil || status != 200 {
			t.Fatalf("%d %v", status, err)
		}
		return text == "http from the second"
	})

	// A broken file refuses a reload that reads it anew, by name, and what was in force stays.
	if err := os.WriteFile(key, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	q.write(body(fmt.Sprintf(", client_cert_file: %s, client_key_file: %s", cert, key)) + "max_connections: 500\n")
	if out, code := q.cli("reload"); code != 1 || !strings.Contains(out, "route api: target_tls.client_cert_file "+cert+" with client_key_file "+key) {
		t.Errorf("exit %d: %s", code, out)
	}
	mustFetch(t, p, "x", "/", "http from the second")
}

// nginx is a real server over TLS with those lines in its server block.
func nginx(t testing.TB, cert, key, lines string) (addr string, reload func()) {
	t.Helper()
	path := "/usr/sbin/nginx" // where Debian has it, and where not everybody's PATH looks
	if _, err := os.Stat(path); err != nil {
		path = installed(t, "nginx")
	}
	dir, port := t.TempDir(), freePort(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
  access_log %[1]s/access.log; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server { listen 127.0.0.1:%[2]d ssl; ssl_certificate %[3]s; ssl_certificate_key %[4]s; %[5]s
    location / { return 200 "$ssl_protocol $ssl_session_reused $connection_requests"; } }
}
`, dir, port, cert, key, lines)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-p", dir, "-c", file, "-e", dir+"/error.log")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	until(t, "nginx listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return addr, func() {
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
}

// A server by others: connections are kept, sessions resumed, and a restart of its workers is not seen by anybody.
func TestH05_KeepAliveToARealTLSServer(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	cert, key := a.write("target.test", a.server("target.test"))
	for _, protocol := range []string{"TLSv1.2", "TLSv1.3"} {
		t.Run(protocol, func(t *testing.T) {
			addr, again := nginx(t, cert, key, "ssl_protocols "+protocol+"; ssl_session_cache shared:s:1m; keepalive_requests 20;")
			p := freePort(t)
			start(t, fmt.Sprintf("routes:\n  - {name: api, match: {ports: [%d]}, action: {targets: [\"https://%s\"], target_tls: {ca_file: %s, server_name: target.test}}}\n", p, addr, a.file))
			kept, resumed := 0, 0
			for i := range 200 {
				if i == 100 {
					again()
				}
				status, text, err := fetch(p, "x", "/")
				if err != nil || status != 200 || !strings.HasPrefix(text, protocol) {
					t.Fatalf("request %d: %d %q %v", i, status, text, err)
				}
				if !strings.HasSuffix(text, " 1") {
					kept++
				}
				if strings.Contains(text, " r ") {
					resumed++
				}
			}
			if kept < 180 {
				t.Errorf("%d of 200 requests went over a connection that was kept", kept)
			}
			if resumed == 0 {
				t.Error("no session was resumed")
			}
		})
	}
}
