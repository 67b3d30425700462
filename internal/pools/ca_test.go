package pools

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// An authority signs certificates.
type authority struct {
	t    tb
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate in PEM
}

func newAuthority(t tb, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	must(t, err)
	c, err = x509.ParseCertificate(der)
	must(t, err)
	a := &authority{t: t, cert: c, key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	must(t, os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return a
}

// pem issues a certificate for 127.0.0.1 and localhost, or what change makes of it, and gives it and its key.
func (a *authority) pem(change func(c *x509.Certificate)) (cert, key []byte) {
	a.t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "leaf"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost", "backend.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &priv.PublicKey, a.key)
	must(a.t, err)
	text, err := x509.MarshalECPrivateKey(priv)
	must(a.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: text})
}

func (a *authority) leaf(change func(c *x509.Certificate)) tls.Certificate {
	a.t.Helper()
	cert, err := tls.X509KeyPair(a.pem(change))
	must(a.t, err)
	return cert
}

// clientFiles issues a client certificate into files.
func (a *authority) clientFiles(name string) (cert, key string) {
	a.t.Helper()
	dir := a.t.TempDir()
	cert, key = filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	a.renew(name, cert, key)
	return cert, key
}

func (a *authority) renew(name, cert, key string) {
	a.t.Helper()
	c, k := a.pem(func(c *x509.Certificate) { c.Subject.CommonName = name })
	replace(a.t, cert, c)
	replace(a.t, key, k)
}

// replace changes a file as tools do that renew certificates.
func replace(t tb, path string, text []byte) {
	t.Helper()
	must(t, os.WriteFile(path+".new", text, 0o600))
	must(t, os.Rename(path+".new", path))
}

// serveTLS starts a target with that TLS configuration.
func serveTLS(t tb, config *tls.Config, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = quietLog
	s.TLS = config
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// secureTarget is the plan's for such a server.
func secureTarget(t tb, s *httptest.Server) plan.Target {
	t.Helper()
	tg := target(t, s.Listener.Addr().String())
	tg.TLS, tg.Text = true, "https://"+tg.Text
	return tg
}

// trusting is an upstream that trusts a.
func (a *authority) trusting(targets ...plan.Target) *plan.Upstream {
	u := upstream("web", targets...)
	u.TLS.CAFile = a.file
	return u
}

// eachVersion runs f as a test for TLS 1.2 and 1.3.
func eachVersion(t *testing.T, f func(t *testing.T, version uint16)) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(v), func(t *testing.T) { f(t, v) })
	}
}
