package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// makePair writes NAME.crt and NAME.key, a certificate of its own for the names, into dir.
func makePair(t testing.TB, dir, name string, names ...string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return makeCert(t, key, dir, name, names...)
}

func makeCert(t testing.TB, key *ecdsa.PrivateKey, dir, name string, names ...string) (certFile, keyFile string) {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// makeTwins writes two pairs, a and b, of one key: each certificate goes with the other's key.
func makeTwins(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	makeCert(t, key, dir, "a", "a.test")
	makeCert(t, key, dir, "b", "b.test")
	return dir
}

// tlsEffects has a text for each key about TLS. The files of dir are those of makeTwins.
func tlsEffects(out map[string][2]string, dir string) {
	ends := func(inner string) string { return one("ports: [443], domains: [a.test]", toA+", tls: {"+inner+"}", "") }
	for key, value := range map[string]string{"mode": "passthrough", "certificate": "auto", "min_version": "1.3"} {
		out["routes.action.tls."+key] = [2]string{ends(key + ": " + value), ends("")}
	}
	pair := func(cert, key string) string {
		return fmt.Sprintf("{cert_file: %s/%s.crt, key_file: %s/%s.key}", dir, cert, dir, key)
	}
	for key, with := range map[string]string{"cert_file": pair("b", "a"), "key_file": pair("a", "b")} {
		out["routes.action.tls.certificate."+key] = [2]string{ends("certificate: " + with), ends("certificate: " + pair("a", "a"))}
		for before, after := range map[string]string{"default_certificate": "", "certificates": "]"} {
			head := before + ": " + map[string]string{"]": "["}[after]
			out[before+"."+key] = [2]string{head + with + after + "\n", head + pair("a", "a") + after + "\n"}
		}
	}
	out["certificates.names"] = [2]string{"certificates: [{names: [b.test], " + pair("a", "a")[1:] + "]\n", "certificates: [" + pair("a", "a") + "]\n"}
	auth := func(mode, file string) string {
		return ends("client_auth: {mode: " + mode + ", ca_file: " + dir + "/" + file + ".crt}")
	}
	out["routes.action.tls.client_auth.mode"] = [2]string{auth("optional", "a"), auth("required", "a")}
	out["routes.action.tls.client_auth.ca_file"] = [2]string{auth("required", "b"), auth("required", "a")}
	target := func(s string) string { return one(port80, "targets: [\"https://a:1\"], target_tls: {"+s+"}", "") }
	for key, value := range map[string]string{"server_name": "x", "ca_file": dir + "/a.crt", "insecure_skip_verify": "true"} {
		out["routes.action.target_tls."+key] = [2]string{target(key + ": " + value), target("")}
	}
	client := func(cert, key string) string {
		return target(fmt.Sprintf("client_cert_file: %s/%s.crt, client_key_file: %s/%s.key", dir, cert, dir, key))
	}
	out["routes.action.target_tls.client_cert_file"] = [2]string{client("b", "a"), client("a", "a")}
	out["routes.action.target_tls.client_key_file"] = [2]string{client("a", "b"), client("a", "a")}
}
