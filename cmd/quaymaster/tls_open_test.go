package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Behind a balancer that says where clients came to, one that names no server gets the certificate of that address: the
// same that its route goes by.
func TestT10_TheCertificateIsThatOfTheAddressInTheProxyHeader(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := start(t, fmt.Sprintf(`proxy_protocol: {ports: [%d], from: [127.0.0.0/8]}
routes:
  - {name: there, match: {ports: [%[1]d], domains: [192.0.2.7]}, action: {respond: {body: there}, tls: {mode: terminate, certificate: internal}}}
  - {name: here, match: {ports: [%[1]d], domains: [127.0.0.1]}, action: {respond: {body: here}, tls: {mode: terminate, certificate: internal}}}
`, p))
	_, pool := q.root()
	for _, c := range []struct{ header, address, body string }{
		{fmt.Sprintf("PROXY TCP4 198.51.100.9 192.0.2.7 4711 %d\r\n", p), "192.0.2.7", "there"},
		{"PROXY UNKNOWN\r\n", "127.0.0.1", "here"},
	} {
		conn, err := net.Dial("tcp", at(p))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(conn, c.header); err != nil {
			t.Fatal(err)
		}
		s := tls.Client(conn, &tls.Config{RootCAs: pool, ServerName: c.address}) // an address is not said
		if _, err := fmt.Fprintf(s, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", c.address); err != nil {
			t.Errorf("%q: %v", c.header, err)
		} else if res, err := io.ReadAll(s); err != nil || !strings.HasSuffix(string(res), "\r\n\r\n"+c.body) {
			t.Errorf("%q: %v, want %q\n%s", c.header, err, c.body, res)
		}
		_ = conn.Close()
	}
}

// A ca_file with other content counts for connections that are open, too: a client of a CA that is not taken any more has
// to begin anew, and cannot.
func TestT12_AnotherCAInTheSameFileReachesOpenConnections(t *testing.T) {
	t.Parallel()
	a, before, after := newAuthority(t), newAuthority(t), newAuthority(t)
	file := filepath.Join(t.TempDir(), "clients.pem")
	trust := func(ca *authority) {
		text, err := os.ReadFile(ca.file)
		if err != nil {
			t.Fatal(err)
		}
		putFile(t, file, text)
	}
	trust(before)
	p := freePort(t)
	web := httpTarget(t, "web", nil)
	body := "routes:\n" + secureRoute("a", p, "a.test", web, a.files("a.test"), fmt.Sprintf(", client_auth: {mode: required, ca_file: %s}", file)) +
		secureRoute("free", p, "free.test", web, a.files("free.test"), "")
	q := start(t, body)
	with := func(name string, client *tls.Certificate) *tls.Config {
		c := a.config(name)
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return client, nil }
		return c
	}
	ann := before.client("ann")
	open, idle, free := mustHandshake(t, p, with("a.test", ann)), mustHandshake(t, p, with("a.test", ann)), mustHandshake(t, p, a.config("free.test"))
	r, f := bufio.NewReader(open), bufio.NewReader(free)
	ask := func(c *tls.Conn, r *bufio.Reader, host string, want int) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		res, text, err := exchange(c, r, host)
		if err != nil || res.StatusCode != want {
			t.Fatalf("%s: %v, %q, want %d", host, err, text, want)
		}
		if res.Close != (want == 421) {
			t.Errorf("%s: the answer %d says close: %v", host, want, res.Close)
		}
	}
	ask(open, r, "a.test", 200)
	ask(free, f, "free.test", 200)
	q.reload(body + route("more", freePort(t), "x.test", web))
	ask(open, r, "a.test", 200) // the same file with the same content

	trust(after)
	if out, code := q.cli("reload"); code != 0 { // of the same configuration
		t.Fatalf("reload: exit %d\n%s", code, out)
	}
	ask(open, r, "a.test", 421)
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the 421: %v, want the end", err)
	}
	ask(idle, bufio.NewReader(idle), "a.test", 421) // it has never asked before
	ask(free, f, "free.test", 200)
	if status, _, err := askOnce(t, p, with("a.test", ann), "a.test"); err == nil {
		t.Errorf("a client of the CA before: %d, want no handshake", status)
	}
	if status, _, err := askOnce(t, p, with("a.test", after.client("eve")), "a.test"); err != nil || status != 200 {
		t.Errorf("a client of the CA of now: %d, %v", status, err)
	}
}
