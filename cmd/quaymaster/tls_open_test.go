package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
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
