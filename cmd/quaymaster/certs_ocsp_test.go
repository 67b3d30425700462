package main

import (
	"bufio"
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
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

func TestT11_AStapleReachesClients(t *testing.T) {
	t.Parallel()
	dir, port, asked := t.TempDir(), freePort(t), freePort(t)
	caKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(7), DNSNames: []string{"a.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		OCSPServer: []string{"http://127.0.0.1:" + strconv.Itoa(asked)},
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	private := func(k *ecdsa.PrivateKey) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return text("PRIVATE KEY", der)
	}
	putFile(t, dir+"/cert.pem", append(text("CERTIFICATE", leafDER), text("CERTIFICATE", rootDER)...))
	putFile(t, dir+"/key.pem", private(key))
	putFile(t, dir+"/ca.pem", text("CERTIFICATE", rootDER))
	putFile(t, dir+"/ca.key", private(caKey))
	putFile(t, dir+"/index.txt", []byte("V\t350101000000Z\t\t07\tunknown\t/CN=x\n"))
	putFile(t, dir+"/index.txt.attr", nil)
	responder := exec.Command("openssl", "ocsp", "-port", strconv.Itoa(asked), "-index", dir+"/index.txt", "-CA", dir+"/ca.pem",
		"-rsigner", dir+"/ca.pem", "-rkey", dir+"/ca.key", "-nmin", "60")
	said, err := responder.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := responder.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
			t.Skip("LOUD SKIP: openssl is not installed")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = responder.Process.Kill(); _ = responder.Wait() })
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.Contains(lines.Text(), "waiting for OCSP client") {
		continue
	}

	q := start(t, fmt.Sprintf(`
routes:
  - name: a
    match: {ports: [%d], domains: [a.test]}
    action: {respond: {status: 200, body: well}, tls: {certificate: {cert_file: %s/cert.pem, key_file: %[2]s/key.pem}}}
`, port, dir))
	issuer, _ := x509.ParseCertificate(rootDER)
	q.until("a client to be sent the staple", func() bool {
		c, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port), &tls.Config{ServerName: "a.test", InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s := c.ConnectionState()
		if s.OCSPResponse == nil {
			return false
		}
		r, err := ocsp.ParseResponseForCert(s.OCSPResponse, s.PeerCertificates[0], issuer)
		if err != nil || r.Status != ocsp.Good {
			t.Fatalf("%+v, %v", r, err)
		}
		return true
	})
}
