// Package terminate is the TLS side of one client connection whose TLS ends here.
//
// It promises that a policy which did not change between two plans keeps what it has promised its clients, their session
// tickets above all; that no client is shown a certificate of another policy than the one it fell under; and that an idle
// connection holds no buffer. It opens no port, keeps no certificate, and does not know what is said inside.
package terminate

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Options are what all policies share.
type Options struct {
	// Certificate is what a client is shown that fell under a policy with that source. ctx ends with the time that a
	// handshake may take. An error is the alert internal_error, nothing at all the alert unrecognized_name.
	Certificate func(ctx context.Context, hello *tls.ClientHelloInfo, src plan.CertSource) (*tls.Certificate, error)
	// Default is the certificate for clients that name nobody known, Challenge the one for tls-alpn-01 (RFC 8737).
	Default   func(hello *tls.ClientHelloInfo) *tls.Certificate
	Challenge func(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	Tickets   *Tickets
	Protocols []string // ALPN names of what can be spoken inside, whatever a policy offers
}

// suites are what TLS 1.2 is spoken with: forward secrecy and AEAD only. Those of TLS 1.3 cannot be chosen.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// A Policy is how TLS is spoken with the clients of some routes. It is safe for use by many goroutines.
type Policy struct {
	// TLS is the policy as a route of some plan has it.
	TLS *plan.TLS

	config  *tls.Config
	tickets *Tickets
	id      [sha256.Size]byte // the same in every process for the same policy
	ca      [sha256.Size]byte // of what stood in the CA file; zero: clients show no certificate
	ring    atomic.Pointer[ring]
	mu      sync.Mutex // guards the change of keys
}

// key is what makes two policies one.
type key struct {
	cert plan.CertSource
	min  uint16
	auth plan.ClientAuth
	ca   [sha256.Size]byte // of what stands in the CA file
	alpn string
}

// sum names the policy in whatever process.
func (k *key) sum() [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d %q %q %x %q",
		k.cert.Kind, k.cert.CertFile, k.cert.KeyFile, k.min, k.auth.Mode, k.auth.CAFile, k.ca, k.alpn))
}

// Policies are those of one plan.
type Policies struct {
	byRoute   []*Policy // nil where TLS does not end
	byKey     map[key]*Policy
	fallback  *Policy // for clients that name nobody known; nil: there is none
	challenge *Policy
}

// Vouches reports whether a client of p has been asked for what o asks: by no CA, or by those of the same file with the
// same content.
func (p *Policy) Vouches(o *Policy) bool {
	return p == o || o.ca == [sha256.Size]byte{} || o.ca == p.ca
}

// Prepare makes the policies of a plan. Those of old that did not change are used again. The error names the route and
// the file that cannot be used.
func Prepare(o *Options, old *Policies, p *plan.Plan) (*Policies, error) {
	ps := &Policies{byRoute: make([]*Policy, len(p.Routes)), byKey: map[key]*Policy{}}
	m := maker{o: o, old: old, next: ps, files: map[string]*authority{}}
	var breath plan.Breath
	defer breath.End()
	for i, r := range p.Routes {
		breath.Take()
		if !r.TLS.Ends() {
			continue
		}
		var err error
		if ps.byRoute[i], err = m.policy(r.TLS); err != nil {
			return nil, fmt.Errorf("route %s: %w", r.Name, err)
		}
	}
	if old != nil {
		ps.challenge = old.challenge
	} else {
		ps.challenge = &Policy{config: &tls.Config{
			MinVersion: tls.VersionTLS12, CipherSuites: suites, NextProtos: []string{plan.ALPNProtocol},
			SessionTicketsDisabled: true, GetCertificate: o.Challenge,
		}}
	}
	if src := p.Settings.DefaultCertificate; src != nil {
		ps.fallback = m.fallback(*src)
	} else if slices.ContainsFunc(p.Certificates, named) {
		ps.fallback = m.fallback(plan.CertSource{})
	}
	return ps, nil
}

// named reports whether a certificate is there for names of its own.
func named(c *plan.Certificate) bool { return c.Source.Kind == plan.CertFiles && len(c.Names) > 0 }

// Of is the policy of the plan's route at that index, nil where TLS does not end.
func (ps *Policies) Of(index int) *Policy { return ps.byRoute[index] }

// Default is for clients that name nobody known, nil if there is no certificate for them.
func (ps *Policies) Default() *Policy { return ps.fallback }

// Challenge is for a CA that validates a name by tls-alpn-01. A connection under it ends with its handshake.
func (ps *Policies) Challenge() *Policy { return ps.challenge }

// maker makes the policies of one plan.
type maker struct {
	o     *Options
	old   *Policies
	next  *Policies
	files map[string]*authority
	last  *plan.TLS // most routes have the policy of the one before
	lastP *Policy
}

func (m *maker) policy(t *plan.TLS) (*Policy, error) {
	if m.last == t || m.last.SamePolicy(t) {
		return m.lastP, nil
	}
	var ca *authority
	if t.ClientAuth.Mode == "required" || t.ClientAuth.Mode == "optional" {
		var err error
		if ca, err = m.authority(t.ClientAuth.CAFile); err != nil {
			return nil, err
		}
	}
	p := m.take(t, ca)
	m.last, m.lastP = t, p
	return p, nil
}

// take finds the policy in this plan or the one before, or makes it.
func (m *maker) take(t *plan.TLS, ca *authority) *Policy {
	k := key{cert: t.Certificate, min: uint16(t.MinVersion), auth: t.ClientAuth, alpn: strings.Join(t.ALPN, ",")}
	if ca != nil {
		k.ca = ca.sum
	}
	p := m.next.byKey[k]
	if p == nil && m.old != nil {
		p = m.old.byKey[k]
	}
	if p == nil {
		p = newPolicy(m.o, t, k, ca)
		p.config.GetCertificate = p.certificate(m.o)
	}
	m.next.byKey[k] = p
	return p
}

// fallback is the policy for clients that name nobody known. Only the certificate is not a route's.
func (m *maker) fallback(src plan.CertSource) *Policy {
	if m.old != nil && m.old.fallback != nil && m.old.fallback.TLS.Certificate == src {
		return m.old.fallback
	}
	t := &plan.TLS{
		Mode: plan.Terminate, Certificate: src, MinVersion: tls.VersionTLS12, ALPN: m.o.Protocols,
		ClientAuth: plan.ClientAuth{Mode: "none"},
	}
	p := newPolicy(m.o, t, key{cert: src, alpn: "default"}, nil)
	p.config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return m.o.Default(hello), nil }
	return p
}

func newPolicy(o *Options, t *plan.TLS, k key, ca *authority) *Policy {
	p := &Policy{TLS: t, tickets: o.Tickets, id: k.sum()}
	p.config = &tls.Config{
		MinVersion: max(uint16(t.MinVersion), tls.VersionTLS12), CipherSuites: suites,
		NextProtos: slices.DeleteFunc(slices.Clone(t.ALPN), func(a string) bool { return !slices.Contains(o.Protocols, a) }),
		// Whole records from the start: small ones help pages to paint on slow lines, and cost a system call each.
		DynamicRecordSizingDisabled: true,
	}
	if ca != nil {
		p.ca = ca.sum
		p.config.ClientCAs, p.config.ClientAuth = ca.pool, tls.RequireAndVerifyClientCert
		if t.ClientAuth.Mode == "optional" {
			p.config.ClientAuth = tls.VerifyClientCertIfGiven
		}
	}
	return p
}

var errNone = errors.New("there is no certificate for it")

// certificate asks for the certificate of the policy.
func (p *Policy) certificate(o *Options) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	src := p.TLS.Certificate
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		ctx := hello.Context()
		if f, ok := hello.Conn.(*feed); ok {
			ctx = f.ctx
			if !f.until.IsZero() {
				var stop context.CancelFunc
				ctx, stop = context.WithDeadline(f.ctx, f.until)
				defer stop()
			}
		}
		cert, err := o.Certificate(ctx, hello, src)
		if cert == nil && err == nil {
			err = errNone // nil alone would tell the client that its name is unknown
		}
		return cert, err
	}
}

// settle has the config seal tickets with the keys of now.
func (p *Policy) settle() {
	if p.tickets == nil || p.config.SessionTicketsDisabled {
		return
	}
	r := p.tickets.now()
	if p.ring.Load() == r {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r = p.tickets.now(); p.ring.Load() == r {
		return
	}
	keys := make([][32]byte, len(r.masters))
	for i := range r.masters {
		k, err := hkdf.Key(sha256.New, r.masters[i].secret[:], p.id[:], "quaymaster session tickets", 32)
		if err != nil {
			return // never: the length is one SHA-256 can give
		}
		keys[i] = [32]byte(k)
	}
	p.config.SetSessionTicketKeys(keys)
	p.ring.Store(r)
}

// authority is what a CA file held.
type authority struct {
	pool *x509.CertPool
	sum  [sha256.Size]byte
}

// maxCAFile bounds what is read of a CA file; the roots of the whole web take a quarter of a megabyte.
const maxCAFile = 8 << 20

// authority reads a CA file, once for a plan.
func (m *maker) authority(file string) (*authority, error) {
	if a, ok := m.files[file]; ok {
		return a, nil
	}
	if file == "" {
		return nil, errors.New("client_auth: no ca_file says whose certificates are taken: write one")
	}
	a, err := readAuthority(file)
	if err != nil {
		return nil, fmt.Errorf("client_auth: ca_file %s: %w", file, err)
	}
	m.files[file] = a
	return a, nil
}

func readAuthority(file string) (*authority, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCAFile+1))
	switch {
	case err != nil:
		return nil, bare(err)
	case len(text) > maxCAFile:
		return nil, fmt.Errorf("more than %d bytes: only the CA's own certificates belong there", maxCAFile)
	}
	a := &authority{pool: x509.NewCertPool(), sum: sha256.Sum256(text)}
	n := 0
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if bytes.Contains(rest, []byte("-----BEGIN")) {
				return nil, fmt.Errorf("what follows certificate %d is no PEM", n)
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		n++
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in it cannot be read: %w", n, err)
		}
		a.pool.AddCert(cert)
	}
	if n == 0 {
		return nil, errors.New("no certificate in it: the CA's certificate is wanted, as PEM")
	}
	return a, nil
}

// bare takes the name of the file out of an error, which says it already.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
