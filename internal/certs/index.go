package certs

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// index says which certificate is whose, for one plan. It does not change; the certificates behind it do.
type index struct {
	plan   *plan.Plan
	files  map[plan.CertSource]*file
	named  map[string]*file // by the names that files are for: exact, "*.d"
	local  map[string]*slot // names of the local CA
	wild   map[string]bool  // patterns of the local CA: a leaf for each name under them
	auto   map[string]bool  // names that are ordered
	demand map[string]bool  // patterns of names that are ordered when they are asked for
	anon   *crowd           // leaves of names that no plan spells out
	other  *plan.CertSource // for names that nothing is known of
}

// index compiles the plan, with what the index in force has already.
func (s *step) index(ctx context.Context, p *plan.Plan) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	old := s.c.now.Load()
	x := &index{
		plan: p, files: map[plan.CertSource]*file{}, named: map[string]*file{}, local: map[string]*slot{}, wild: map[string]bool{},
		auto: map[string]bool{}, demand: map[string]bool{}, anon: old.anon, other: p.Settings.DefaultCertificate,
	}
	var breath plan.Breath
	defer breath.End()
	for _, cert := range p.Certificates {
		breath.Take()
		if err := ctx.Err(); err != nil {
			return err
		}
		switch cert.Source.Kind {
		case plan.CertFiles:
			if err := s.addFile(x, old, cert.Source, cert); err != nil {
				return err
			}
		case plan.CertInternal:
			x.addLocal(old, cert)
		default:
			s.acme = append(s.acme, cert)
			for _, n := range cert.Names {
				if cert.OnDemand {
					x.demand[n] = true
				} else {
					x.auto[n] = true
				}
			}
		}
	}
	if d := x.other; d != nil && d.Kind == plan.CertFiles && x.files[*d] == nil {
		if err := s.addFile(x, old, *d, &plan.Certificate{Source: *d, Users: []string{"default_certificate"}}); err != nil {
			return err
		}
	}
	s.next = x
	return nil
}

// addFile reads the files of a source, unless the index in force has them as they are.
func (s *step) addFile(x, old *index, src plan.CertSource, cert *plan.Certificate) error {
	f, known := old.files[src]
	if f == nil {
		f = x.files[src] // of another entry with the same files
	}
	if f == nil {
		f = &file{src: src}
	}
	if x.files[src] == nil {
		l, err := f.read()
		switch {
		case err != nil && !known:
			return fmt.Errorf("certificate of %s: %w", strings.Join(cert.Users, ", "), err)
		case err != nil:
			s.wrong[f] = err
		case l != nil:
			s.fresh[f] = l
		}
		x.files[src] = f
	}
	names := cert.Names
	if len(names) == 0 {
		l := s.fresh[f]
		if l == nil {
			l = f.now.Load()
		}
		names = l.names
	}
	for _, n := range names {
		if x.named[n] == nil {
			x.named[n] = f
		}
	}
	return nil
}

func (x *index) addLocal(old *index, cert *plan.Certificate) {
	for _, n := range cert.Names {
		if strings.HasPrefix(n, "*") {
			x.wild[n] = true
			continue
		}
		n = canonical(n)
		if x.local[n] = old.local[n]; x.local[n] == nil {
			x.local[n] = &slot{name: n}
		}
	}
}

// strangers reports whether names that nothing is known of get a leaf of the local CA.
func (x *index) strangers() bool { return x.other != nil && x.other.Kind == plan.CertInternal }

// Get is the certificate for a connection that begins with hello, of a policy whose certificate is src; ErrNone when
// there is none. Files serve whatever name their policy was written for, as the configuration wants it.
func (c *Certs) Get(ctx context.Context, hello *tls.ClientHelloInfo, src plan.CertSource) (*tls.Certificate, error) {
	cert, err := c.find(ctx, hello, src)
	if err != nil {
		return nil, err
	}
	return c.staples.with(cert), nil
}

func (c *Certs) find(ctx context.Context, hello *tls.ClientHelloInfo, src plan.CertSource) (*tls.Certificate, error) {
	x := c.now.Load()
	if src.Kind == plan.CertFiles {
		if f := x.files[src]; f != nil {
			return f.certificate(), nil
		}
		return nil, ErrNone
	}
	name := nameOf(hello)
	if name == "" {
		return nil, ErrNone
	}
	if src.Kind == plan.CertInternal {
		if s := x.local[name]; s != nil {
			return s.get(c)
		}
		if under(x.wild, name) {
			return x.anon.slot(name, c.o.Now()).get(c)
		}
		return nil, ErrNone
	}
	cert, err := c.ordered(ctx, x, name)
	if cert == nil && x.strangers() && isHost(name) {
		return x.anon.slot(name, c.o.Now()).get(c)
	}
	return cert, err
}

// ordered is the certificate that was ordered for a name.
func (c *Certs) ordered(ctx context.Context, x *index, name string) (*tls.Certificate, error) {
	if x.auto[name] {
		if cert := c.auto.Get(name); cert != nil {
			return cert, nil
		}
	}
	if _, rest, ok := strings.Cut(name, "."); ok && x.auto["*."+rest] {
		if cert := c.auto.Get("*." + rest); cert != nil {
			return cert, nil
		}
	}
	if !x.auto[name] && under(x.demand, name) {
		return c.auto.OnDemand(ctx, name)
	}
	return nil, ErrNone
}

// Default is the certificate for a name that nothing is known of: one in a file that is for that name, else the default
// one. It is nil when there is none.
func (c *Certs) Default(hello *tls.ClientHelloInfo) *tls.Certificate {
	return c.staples.with(c.fallback(hello))
}

func (c *Certs) fallback(hello *tls.ClientHelloInfo) *tls.Certificate {
	x := c.now.Load()
	name := nameOf(hello)
	if f := x.named[name]; f != nil {
		return f.certificate()
	}
	if _, rest, ok := strings.Cut(name, "."); ok {
		if f := x.named["*."+rest]; f != nil {
			return f.certificate()
		}
	}
	switch {
	case x.other == nil:
		return nil
	case x.other.Kind == plan.CertFiles:
		return x.files[*x.other].certificate()
	case x.strangers() && isHost(name):
		cert, err := x.anon.slot(name, c.o.Now()).get(c)
		if err == nil {
			return cert
		}
	}
	return nil
}

// nameOf is whom a client wants: what it says, or else the address that it came to.
func nameOf(hello *tls.ClientHelloInfo) string {
	if name := canonical(hello.ServerName); name != "" {
		return name
	}
	if hello.Conn == nil {
		return ""
	}
	if a, ok := hello.Conn.LocalAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("").String()
	}
	return ""
}

// canonical is a name as the plan writes it.
func canonical(name string) string {
	name = strings.TrimSuffix(name, ".")
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip.Unmap().WithZone("").String()
	}
	return strings.ToLower(name)
}

// under reports whether one of the patterns covers the name, which a client has spelt.
func under(patterns map[string]bool, name string) bool {
	if len(patterns) == 0 || !isHost(name) || plan.IsIP(name) {
		return false
	}
	_, rest, ok := strings.Cut(name, ".")
	if ok && patterns["*."+rest] {
		return true
	}
	for ok {
		if patterns["**."+rest] {
			return true
		}
		_, rest, ok = strings.Cut(rest, ".")
	}
	return false
}

// isHost reports whether a name can stand in a certificate: letters, digits, dots and dashes, or an address.
func isHost(name string) bool {
	if name == "" || len(name) > 253 || name[0] == '.' || strings.Contains(name, "..") {
		return false
	}
	for i := range len(name) {
		switch b := name[i]; {
		case 'a' <= b && b <= 'z', '0' <= b && b <= '9', b == '-', b == '.', b == '_', b == ':':
		default:
			return false
		}
	}
	return true
}
