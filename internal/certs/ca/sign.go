package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"time"
)

// pair is a certificate of the CA and its key.
type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// parse reads a certificate and its key. What could be read is returned beside an error.
func parse(text []byte) (*pair, error) {
	p := &pair{}
	for len(text) > 0 {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		var err error
		switch block.Type {
		case "CERTIFICATE":
			p.cert, err = x509.ParseCertificate(block.Bytes)
		case "PRIVATE KEY":
			var key any
			if key, err = x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
				p.key, _ = key.(crypto.Signer)
			}
		}
		if err != nil {
			return p, err
		}
	}
	switch {
	case p.cert == nil:
		return p, errors.New("there is no certificate in it")
	case p.key == nil:
		return p, errors.New("there is no private key in it")
	}
	if pub, ok := p.key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(p.cert.PublicKey) {
		return p, errors.New("key and certificate do not belong together")
	}
	return p, nil
}

// isRoot says why the pair cannot be our root.
func (p *pair) isRoot(now time.Time) error {
	switch {
	case !p.cert.IsCA:
		return errors.New("its certificate is not a CA's")
	case p.cert.CheckSignatureFrom(p.cert) != nil:
		return errors.New("its certificate is not signed by itself")
	case now.After(p.cert.NotAfter):
		return fmt.Errorf("it ended on %s", p.cert.NotAfter.Format(time.DateOnly))
	}
	return nil
}

func (p *pair) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
}

// pem is what parse reads.
func (p *pair) pem() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		panic("ca: " + err.Error()) // every key of a pair came from parse or from ecdsa
	}
	return append(p.certPEM(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
}

// issue signs a certificate with a new key; by itself when by is nil.
func issue(tmpl *x509.Certificate, by *pair) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if by == nil {
		by = &pair{cert: tmpl, key: key}
	}
	if tmpl.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &pair{cert: cert, key: key}, err
}

func makeRoot(now time.Time) (*pair, error) {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "this machine"
	}
	// The time tells the roots of one machine apart in a trust store.
	name := fmt.Sprintf("Quaymaster %.30s %s", host, now.UTC().Format("2006-01-02 150405"))
	return issue(&x509.Certificate{
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Quaymaster local CA"}},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(RootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
	}, nil)
}

func (p *pair) intermediate(now time.Time) (*pair, error) {
	return issue(&x509.Certificate{
		Subject:               pkix.Name{CommonName: p.cert.Subject.CommonName + " intermediate", Organization: p.cert.Subject.Organization},
		NotBefore:             now.Add(-backdated),
		NotAfter:              earlier(now.Add(IntermediateLife), p.cert.NotAfter),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, p)
}

func (p *pair) leaf(name string, now time.Time) (*tls.Certificate, error) {
	tmpl := &x509.Certificate{
		NotBefore:             now.Add(-backdated),
		NotAfter:              earlier(now.Add(LeafLife), p.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(name); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{name}
	}
	l, err := issue(tmpl, p)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", name, err)
	}
	return &tls.Certificate{Certificate: [][]byte{l.cert.Raw, p.cert.Raw}, PrivateKey: l.key, Leaf: l.cert}, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Fingerprint is the SHA-256 of a certificate as browsers and openssl show it.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	text := strings.ToUpper(hex.EncodeToString(sum[:]))
	var b strings.Builder
	for i := 0; i < len(text); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(text[i : i+2])
	}
	return b.String()
}
