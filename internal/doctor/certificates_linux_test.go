package doctor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/ca"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/state"
)

// pairOf writes a certificate that lasts until end, and its key.
func pairOf(t *testing.T, end time.Time) plan.CertSource {
	t.Helper()
	dir := t.TempDir()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	src := plan.CertSource{Kind: plan.CertFiles, CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	text, _ := x509.MarshalPKCS8PrivateKey(key)
	for name, block := range map[string]*pem.Block{
		src.CertFile: {Type: "CERTIFICATE", Bytes: der}, src.KeyFile: {Type: "PRIVATE KEY", Bytes: text},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return src
}

func TestD11_CertificatesInFiles(t *testing.T) {
	good, short, over := pairOf(t, time.Now().Add(60*24*time.Hour)), pairOf(t, time.Now().Add(time.Hour)), pairOf(t, time.Now().Add(-time.Minute))
	loose, gone, empty := pairOf(t, time.Now().Add(60*24*time.Hour)), pairOf(t, time.Now()), pairOf(t, time.Now())
	if err := errors.Join(os.Chmod(loose.KeyFile, 0o644), os.Remove(gone.KeyFile), os.WriteFile(empty.CertFile, []byte("?"), 0o600)); err != nil {
		t.Fatal(err)
	}
	p := wanting(t)
	for _, src := range []plan.CertSource{good, short, over, loose, gone, empty} {
		p.Certificates = append(p.Certificates, &plan.Certificate{Source: src})
	}
	found := Examine(Subject{Plan: p, Root: machine(t, nil), Probe: nothingHeld})
	says(t, find(t, found, OK, good.CertFile), "a.test")
	says(t, find(t, found, Warn, short.CertFile), "ends on", "renew")
	says(t, find(t, found, Fail, over.CertFile), "ended on")
	says(t, find(t, found, Warn, loose.KeyFile), "0644", "chmod o-rwx")
	says(t, find(t, found, Fail, gone.KeyFile), "cannot be read")
	says(t, find(t, found, Fail, empty.CertFile), "no certificate")
}

func TestD11_TheLocalCA(t *testing.T) {
	p := wanting(t)
	p.Certificates = []*plan.Certificate{{Names: []string{"a.test"}, Source: plan.CertSource{Kind: plan.CertInternal}}}
	look := func() []Finding { return Examine(Subject{Plan: p, Root: machine(t, nil), Probe: nothingHeld}) }
	says(t, find(t, look(), OK, "local CA"), "made when quaymaster starts")
	st, err := state.Open(p.Settings.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	local := ca.New(ca.Options{Store: st})
	if err := errors.Join(local.Open(), local.Tend(), st.Close()); err != nil {
		t.Fatal(err)
	}
	says(t, find(t, look(), OK, "local CA"), "does not trust it", "sudo quaymaster trust")
	name := filepath.Join(p.Settings.StateDir, ca.RootFile)
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	says(t, find(t, look(), Warn, "local CA"), "chmod 600")
	if err := os.WriteFile(name, []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, find(t, look(), Fail, "local CA"), "backup", name)
}

func TestD11_NamesThatAreOrderedAreLookedUp(t *testing.T) {
	p := wanting(t)
	p.Settings.ACME = &plan.ACME{Issuers: []plan.Issuer{{Directory: "https://ca.example/dir"}}, Challenges: []string{"http-01", "dns-01"}}
	for _, n := range []string{"good.example", "none.example", "inside.example", "broken.example", "*.wild.example"} {
		p.Certificates = append(p.Certificates, &plan.Certificate{Names: []string{n}, Source: plan.CertSource{Kind: plan.CertAuto}})
	}
	lookup := func(_ context.Context, host string) ([]string, error) {
		switch host {
		case "good.example.":
			return []string{"10.0.0.1", "192.0.2.1"}, nil
		case "inside.example.":
			return []string{"10.0.0.1", "fd00::1"}, nil
		case "none.example.":
			return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
		}
		return nil, &net.DNSError{Err: "server misbehaving", IsTemporary: true}
	}
	found := Examine(Subject{Plan: p, Root: machine(t, nil), Probe: nothingHeld, Lookup: lookup})
	says(t, find(t, found, OK, "acme"), "5 names", "ca.example")
	says(t, find(t, found, OK, "good.example"), "192.0.2.1")
	says(t, find(t, found, Warn, "none.example"), "no address", "A or AAAA")
	says(t, find(t, found, Warn, "inside.example"), "no public CA", "dns-01")
	says(t, find(t, found, Warn, "broken.example"), "server misbehaving", "getent hosts broken.example")
	p.Settings.ACME.Challenges = []string{"dns-01"}
	for _, f := range Examine(Subject{Plan: p, Root: machine(t, nil), Probe: nothingHeld, Lookup: lookup}) {
		if f.Area == "dns" {
			t.Errorf("looked up for dns-01: %+v", f)
		}
	}
}

func TestD11_TheClock(t *testing.T) {
	for _, f := range Examine(Subject{Plan: wanting(t), Probe: nothingHeld}) {
		if f.Object == "clock" {
			if f.Level == Fail || f.Level == Warn && f.Remedy == "" {
				t.Errorf("%+v", f)
			}
			return
		}
	}
	t.Error("nothing is said of the clock")
}
