package pools

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A secure is how the TLS targets of a pool are spoken to, as of one reading of the files. It does not change.
type secure struct {
	set   plan.TargetTLS
	files [3]os.FileInfo // of ca_file, client_cert_file and client_key_file as they were read; nil where none is named
	roots *x509.CertPool // nil: the system's
	own   []tls.Certificate
	era   *era
}

// An era lasts for as long as the same configuration trusts the same CAs. A connection of an older one finishes its
// exchange and carries no other. A client certificate that is renewed in its file begins no era.
type era struct{ _ byte }

const (
	// filesAge is how long files are believed to be as they were.
	filesAge = int64(5 * time.Second)
	// maxPEM bounds what is read of a file.
	maxPEM = 4 << 20
)

// filesOf are the files of set by their keys.
func filesOf(set *plan.TargetTLS) [3]struct{ key, path string } {
	return [3]struct{ key, path string }{
		{"ca_file", set.CAFile}, {"client_cert_file", set.CertFile}, {"client_key_file", set.KeyFile},
	}
}

// A shelf keeps what was read of files for as long as one plan is prepared: many upstreams name the same.
type shelf map[string]*leaf

type leaf struct {
	info  os.FileInfo
	text  []byte
	err   error
	roots *x509.CertPool // of text; nil until it is asked for
}

func (s shelf) read(path string) *leaf {
	if l, ok := s[path]; ok && l.text != nil {
		return l
	}
	l := &leaf{}
	s[path] = l
	f, err := os.Open(path)
	if err != nil {
		l.err = err
		return l
	}
	defer func() { _ = f.Close() }()
	if l.info, l.err = f.Stat(); l.err != nil {
		return l
	}
	if l.text, l.err = io.ReadAll(io.LimitReader(f, maxPEM+1)); l.err == nil && len(l.text) > maxPEM {
		l.err = errors.New("larger than 4 MiB")
	}
	return l
}

func (s shelf) stat(path string) os.FileInfo {
	l, ok := s[path]
	if !ok {
		l = &leaf{}
		l.info, l.err = os.Stat(path)
		s[path] = l
	}
	return l.info
}

// current reports whether the files are still what they were when sec was made.
func (sec *secure) current(files shelf) bool {
	for i, f := range filesOf(&sec.set) {
		if f.path != "" && !same(sec.files[i], files.stat(f.path)) {
			return false
		}
	}
	return true
}

func (sec *secure) hasFiles() bool { return sec.set.CAFile != "" || sec.set.CertFile != "" }

func same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// loadSecure reads what u says about TLS; have, if not nil, is what was in force, and is returned where nothing changed. The
// result is nil when u has no TLS target.
func loadSecure(u *plan.Upstream, have *secure, files shelf) (*secure, error) {
	if !hasTLS(u) {
		return nil, nil //nolint:nilnil // there is nothing to know
	}
	if have != nil && have.set == u.TLS && have.current(files) {
		return have, nil
	}
	sec := &secure{set: u.TLS, era: new(era)}
	for i, f := range filesOf(&u.TLS) {
		if f.path == "" {
			continue
		}
		l := files.read(f.path)
		err := l.err
		if err == nil && f.key == "ca_file" {
			err = l.parse()
			sec.roots = l.roots
		}
		if err != nil {
			return nil, &fileError{u, f.key, f.path, err}
		}
		sec.files[i] = l.info
	}
	if u.TLS.CertFile != "" {
		pair, err := tls.X509KeyPair(files.read(u.TLS.CertFile).text, files.read(u.TLS.KeyFile).text)
		if err != nil {
			return nil, &fileError{u, "client_cert_file", u.TLS.CertFile + " with client_key_file " + u.TLS.KeyFile, err}
		}
		sec.own = []tls.Certificate{pair}
	}
	if have != nil && have.set == sec.set && (sec.roots == nil || sec.roots.Equal(have.roots)) {
		sec.era = have.era
	}
	return sec, nil
}

func hasTLS(u *plan.Upstream) bool {
	for i := range u.Targets {
		if u.Targets[i].TLS {
			return true
		}
	}
	return false
}

// parse takes the certificates out of a ca_file, all or none.
func (l *leaf) parse() error {
	if l.roots != nil {
		return nil
	}
	roots, n := x509.NewCertPool(), 0
	for rest := l.text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		roots.AddCert(c)
		n++
	}
	if n == 0 {
		return errors.New("holds no certificate (PEM is wanted)")
	}
	l.roots = roots
	return nil
}

// A fileError names the key, the file and what is wrong with it.
type fileError struct {
	u         *plan.Upstream
	key, path string
	err       error
}

func (e *fileError) Error() string {
	whose := "upstream "
	if e.u.Inline {
		whose = "route "
	}
	why := e.err
	if path := (*os.PathError)(nil); errors.As(why, &path) {
		why = path.Err
	}
	return whose + e.u.Name + ": target_tls." + e.key + " " + e.path + ": " + why.Error()
}

func (e *fileError) Unwrap() error { return e.err }

// config is for connections to m.
func (sec *secure) config(m *Member) *tls.Config {
	name := sec.set.ServerName
	if name == "" {
		if name = m.target.Host; m.target.Network == plan.Unix {
			name = "localhost"
		}
	}
	return &tls.Config{
		ServerName: name, RootCAs: sec.roots, Certificates: sec.own, InsecureSkipVerify: sec.set.Insecure,
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		ClientSessionCache: tls.NewLRUClientSessionCache(1), // one server, one name
		// Targets are near: small records at the start of a connection would only cost.
		DynamicRecordSizingDisabled: true,
	}
}

// tlsFor is how a new connection to m is made. Files that changed since they were read last are read again; one that is
// broken changes nothing and is logged.
func (p *Pool) tlsFor(m *Member) (*tls.Config, *secure) {
	now := p.ps.now()
	p.mu.Lock()
	sec := p.secure
	if sec == nil { // m left a plan in which it was the last of its kind
		sec = &secure{set: p.want.TLS, era: new(era)}
	}
	due := p.secure != nil && sec.hasFiles() && now-p.looked >= filesAge
	if due {
		p.looked = now
		u := p.want
		p.mu.Unlock()
		p.reread(u, sec)
		p.mu.Lock()
		sec = p.secure
		if sec == nil {
			sec = &secure{set: p.want.TLS, era: new(era)}
		}
	}
	if m.sec != sec {
		m.sec, m.tls = sec, sec.config(m)
	}
	config := m.tls
	p.mu.Unlock()
	return config, sec
}

// reread replaces what was read of the files of u, unless another plan came meanwhile.
func (p *Pool) reread(u *plan.Upstream, have *secure) {
	sec, err := loadSecure(u, have, shelf{})
	var out []*conn
	p.mu.Lock()
	told := err != nil && err.Error() == p.broken
	p.broken = ""
	switch {
	case err != nil:
		p.broken = err.Error()
	case sec != have && p.secure == have:
		out = p.become(sec)
	}
	p.mu.Unlock()
	for _, c := range out {
		p.ps.discard(c)
	}
	switch {
	case err != nil && !told:
		p.ps.log.Warn("cannot read a file again: what was read before stays in force", "upstream", p.name, "err", err)
	case err == nil && sec != have:
		p.ps.log.Info("files of target_tls were read again", "upstream", p.name)
	}
}

// become puts sec in force and returns the idle connections that may not be used any more. mu is held.
func (p *Pool) become(sec *secure) (out []*conn) {
	p.secure = sec
	for _, m := range p.members {
		kept := m.idle[:0]
		for _, c := range m.idle {
			if p.trusts(c) {
				kept = append(kept, c)
			} else {
				out = append(out, c)
			}
		}
		clear(m.idle[len(kept):])
		m.idle = kept
	}
	return out
}

// trusts reports whether what c was made under still holds. mu is held.
func (p *Pool) trusts(c *conn) bool {
	return c.tls == nil || p.secure != nil && c.tls.era == p.secure.era
}
