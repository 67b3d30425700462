package certs

import (
	"bufio"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/ocsp"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/state"
)

// responder is openssl's, for the certificates of a.
type responder struct {
	t    *testing.T
	a    *authority
	dir  string
	port int
	cmd  *exec.Cmd
}

func newResponder(t *testing.T, a *authority) *responder {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("LOUD SKIP: openssl is not installed")
		}
		t.Fatal("openssl is not installed")
	}
	r := &responder{t: t, a: a, dir: t.TempDir()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	key, _ := x509.MarshalPKCS8PrivateKey(a.key)
	put(t, r.dir+"/ca.pem", PEM(a.cert))
	put(t, r.dir+"/ca.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	put(t, r.dir+"/index.txt.attr", nil)
	t.Cleanup(r.stop)
	return r
}

func (r *responder) url() string { return "http://127.0.0.1:" + strconv.Itoa(r.port) }

// start answers about that serial: V is valid, R is revoked.
func (r *responder) start(state string, serial int64) {
	r.t.Helper()
	r.stop()
	revoked := ""
	if state == "R" {
		revoked = "250101000000Z"
	}
	put(r.t, r.dir+"/index.txt", fmt.Appendf(nil, "%s\t350101000000Z\t%s\t%02X\tunknown\t/CN=x\n", state, revoked, serial))
	r.cmd = exec.Command("openssl", "ocsp", "-port", strconv.Itoa(r.port), "-index", r.dir+"/index.txt", "-CA", r.dir+"/ca.pem",
		"-rsigner", r.dir+"/ca.pem", "-rkey", r.dir+"/ca.key", "-nmin", "60")
	said, err := r.cmd.StderrPipe() // an empty connection is more than it can bear, so nobody knocks
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "waiting for OCSP client") {
			return
		}
	}
	r.t.Fatal("the responder ended")
}

func (r *responder) stop() {
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		r.cmd = nil
	}
}

// stapled is what clients would be sent, judged.
func stapled(t *testing.T, c *Certs, src plan.CertSource) *ocsp.Response {
	t.Helper()
	cert, err := c.Get(t.Context(), hello("a.test"), src)
	if err != nil {
		t.Fatal(err)
	}
	if cert.OCSPStaple == nil {
		return nil
	}
	issuer, _ := x509.ParseCertificate(cert.Certificate[1])
	r, err := ocsp.ParseResponseForCert(cert.OCSPStaple, cert.Leaf, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestT11_OCSPIsStapledKeptAndRefreshed(t *testing.T) {
	a, dir, home := newAuthority(t), t.TempDir(), t.TempDir()
	r := newResponder(t, a)
	src := plan.CertSource{Kind: plan.CertFiles, CertFile: filepath.Join(dir, "c"), KeyFile: filepath.Join(dir, "k")}
	cert, key := a.pair(t, func(c *x509.Certificate) { c.OCSPServer = []string{r.url()} }, "a.test")
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)

	// Nobody is there: the certificate serves at once, without a staple.
	offset := make(chan time.Duration, 1)
	offset <- 0
	now := func() time.Time { d := <-offset; offset <- d; return time.Now().Add(d) }
	begin := func() (*Certs, *happened, func()) {
		st, err := state.Open(home)
		if err != nil {
			t.Fatal(err)
		}
		h := &happened{}
		c := New(Options{State: st, Events: h.add, Registry: prometheus.NewRegistry(), Every: 20 * time.Millisecond, Now: now})
		c.follow(t, nil, &plan.Certificate{Source: src})
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		return c, h, func() {
			stop()
			<-done
			_ = st.Close()
		}
	}
	c, _, end := begin()
	if s := stapled(t, c, src); s != nil {
		t.Errorf("stapled before anybody was asked: %+v", s)
	}
	until(t, "the fault in the status", func() bool { return strings.Contains(c.Status()[0].OCSP, "connection refused") })
	if s := c.Status()[0]; s.State != "valid" {
		t.Errorf("%+v", s)
	}

	r.start("V", 101)
	<-offset
	offset <- time.Minute // the next try
	c.staples.stir()
	until(t, "the staple", func() bool { return stapled(t, c, src) != nil })
	first := stapled(t, c, src)
	if first.Status != ocsp.Good || !strings.HasPrefix(c.Status()[0].OCSP, "good") {
		t.Errorf("%+v, %s", first, c.Status()[0].OCSP)
	}
	end()

	// A restart while the responder is down.
	r.stop()
	c, _, end = begin()
	until(t, "the staple that was kept", func() bool { return stapled(t, c, src) != nil })

	// Half of its life is over, and the responder says something else.
	r.start("R", 101)
	<-offset
	offset <- 35 * time.Minute
	c.staples.stir()
	until(t, "the revocation", func() bool { return c.Status()[0].OCSP == "revoked" })
	if s := stapled(t, c, src); s != nil {
		t.Errorf("a certificate that is revoked has a staple: %+v", s)
	}
	if p := c.Problems(); len(p) != 1 || !strings.Contains(p[0].Message, "revoked") {
		t.Errorf("%+v", p)
	}
	end()
}

// What has ended is no longer stapled, whoever answers.
func TestT11_AnOCSPAnswerThatHasEndedIsTakenOff(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	r := newResponder(t, a)
	src := plan.CertSource{Kind: plan.CertFiles, CertFile: filepath.Join(dir, "c"), KeyFile: filepath.Join(dir, "k")}
	cert, key := a.pair(t, func(c *x509.Certificate) { c.OCSPServer = []string{r.url()} }, "a.test")
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)
	st, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	offset := make(chan time.Duration, 1)
	offset <- 0
	c := New(Options{State: st, Now: func() time.Time { d := <-offset; offset <- d; return time.Now().Add(d) }})
	c.follow(t, nil, &plan.Certificate{Source: src})
	r.start("V", 101)
	c.staples.round(t.Context())
	if stapled(t, c, src) == nil {
		t.Fatal("no staple")
	}
	r.stop()
	<-offset
	offset <- 2 * time.Hour
	c.staples.round(t.Context())
	if stapled(t, c, src) != nil {
		t.Error("an answer that has ended is stapled")
	}
}

// A responder that takes connections and says nothing holds up nobody: neither handshakes nor the end.
func TestT11_ADeadResponderHoldsUpNobody(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	taken := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(taken)
				return
			}
			taken <- c
		}
	}()
	src := plan.CertSource{Kind: plan.CertFiles, CertFile: filepath.Join(dir, "c"), KeyFile: filepath.Join(dir, "k")}
	cert, key := a.pair(t, func(c *x509.Certificate) { c.OCSPServer = []string{"http://" + l.Addr().String()} }, "a.test")
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)
	c, _ := newCerts(t, t.TempDir())
	c.follow(t, nil, &plan.Certificate{Source: src})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	conn := <-taken // it is being asked
	if stapled(t, c, src) != nil {
		t.Error("stapled by nobody")
	}
	cert, key = a.pair(t, nil, "a.test")
	put(t, src.CertFile, cert)
	put(t, src.KeyFile, key)
	until(t, "new files, while the responder is silent", func() bool {
		got, err := c.Get(t.Context(), hello("a.test"), src)
		return err == nil && serial(got) == "102"
	})
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	_ = conn.Close()
}

// An answer counts when the issuer has signed it, or a responder that the issuer lets do so at this time.
func TestT11_OnlyAResponderOfTheIssuerIsBelieved(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		wrong  string
	}{
		"a responder": {change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} }},
		"a server of the same issuer": {
			change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
			wrong:  "which is no responder of the issuer",
		},
		"any usage": {
			change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
			wrong:  "which is no responder of the issuer",
		},
		"a responder that has ended": {
			change: func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
				c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
			},
			wrong: "its own certificate is valid from",
		},
		"a responder that has not begun": {
			change: func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
				c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
			},
			wrong: "its own certificate is valid from",
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t)
			pair := func(change func(*x509.Certificate)) *tls.Certificate {
				cert, key := a.pair(t, change, "a.test")
				out, err := tls.X509KeyPair(cert, key)
				if err != nil {
					t.Fatal(err)
				}
				return &out
			}
			signer := pair(c.change)
			leaf := pair(nil)
			answers := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				der, err := ocsp.CreateResponse(a.cert, signer.Leaf, ocsp.Response{
					Status: ocsp.Good, SerialNumber: leaf.Leaf.SerialNumber, Certificate: signer.Leaf,
					ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
				}, signer.PrivateKey.(crypto.Signer))
				if err != nil {
					t.Error(err)
				}
				_, _ = w.Write(der)
			})
			srv := httptest.NewServer(answers)
			defer srv.Close()
			certs, _ := newCerts(t, t.TempDir())
			_, _, err := certs.staples.fetch(t.Context(), leaf, srv.URL)
			switch {
			case c.wrong == "" && err != nil:
				t.Error(err)
			case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
				t.Errorf("%v, want %q", err, c.wrong)
			}
		})
	}
}
