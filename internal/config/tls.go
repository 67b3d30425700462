package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// tls is what a route does with TLS, nil for a route of plain clients.
func (b *builder) tls(f *form.TLS, m *plan.Match) *plan.TLS {
	if f == nil {
		if m.Protocols == plan.ProtoTLS {
			return &plan.TLS{Mode: plan.Passthrough}
		}
		return nil
	}
	switch f.Mode {
	case "passthrough":
		for _, k := range []string{"certificate", "min_version", "client_auth", "alpn"} {
			if strict.Find(b.node("action", "tls"), k) != nil {
				b.fault([]string{"action", "tls", k}, "leave it out, or write mode: terminate", "it has no effect on TLS that is not opened")
			}
		}
		return &plan.TLS{Mode: plan.Passthrough}
	case "terminate-and-reencrypt":
		f.Mode = "reencrypt"
	}
	t := &plan.TLS{Mode: plan.TLSMode(f.Mode), MinVersion: tls.VersionTLS12, ALPN: f.ALPN, Certificate: b.certificate(f, m.Domains)}
	if f.MinVersion == "1.3" {
		t.MinVersion = tls.VersionTLS13
	}
	at := []string{"action", "tls", "alpn"}
	if len(f.ALPN) == 0 {
		b.fault(at, "write [http/1.1], or leave it out", "no protocol is offered")
	}
	for i, p := range f.ALPN {
		if contains(f.ALPN[:i], p) {
			b.fault(append(at, index(i)), "leave it out", "%s stands here twice", p)
		}
	}
	t.ClientAuth = b.clientAuth(&f.ClientAuth)
	return t
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// certificate is where the certificate of a route comes from.
func (b *builder) certificate(f *form.TLS, domains []string) plan.CertSource {
	at := []string{"action", "tls", "certificate"}
	b.it.certAt = b.spot(at...)
	if f.Certificate.Kind != "" {
		b.it.certPath = at
		if b.site {
			b.it.certPath = at[1:]
		}
	}
	kind := plan.CertKind(f.Certificate.Kind)
	if kind == "" {
		b.it.certOpen = true
		kind = b.ownKind(domains)
	}
	switch {
	case kind == plan.CertFiles:
		src := plan.CertSource{Kind: kind}
		src.CertFile = b.file(append(at, "cert_file"), f.Certificate.CertFile)
		src.KeyFile = b.file(append(at, "key_file"), f.Certificate.KeyFile)
		return src
	case len(domains) == 0 && kind != "":
		b.fault(at, "write match: {domains: [app.example.com]}, or {cert_file, key_file} here",
			"certificate: %s needs domains, which say for what names", kind)
	}
	return plan.CertSource{Kind: kind}
}

// ownKind is the kind of a certificate for domains whose route says none.
func (b *builder) ownKind(domains []string) plan.CertKind {
	kind := plan.CertAuto
	for i, d := range domains {
		k := plan.CertAuto
		if local(d) {
			k = plan.CertInternal
		}
		if i > 0 && k != kind {
			b.fault([]string{"action", "tls"}, "write certificate: auto or internal, or two routes",
				"%s would get a certificate from a CA, and %s from the internal one", pick(k == plan.CertAuto, d, domains[0]), pick(k == plan.CertAuto, domains[0], d))
			return ""
		}
		kind = k
	}
	return kind
}

func pick(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

// local reports whether no public CA knows the domain: localhost and what is below it, *.test, *.internal and addresses.
func local(d string) bool {
	if plan.IsIP(d) || d == "localhost" {
		return true
	}
	for _, top := range []string{".localhost", ".test", ".internal"} {
		if strings.HasSuffix(d, top) {
			return true
		}
	}
	return false
}

// file makes the path of a file absolute.
func (b *builder) file(at []string, p string) string {
	if p == "" {
		return ""
	}
	path, ok := b.path(p)
	if !ok {
		b.fault(at, "write an absolute path", "%q is relative, and there is no file it could be relative to", p)
	}
	return path
}

func (b *builder) clientAuth(f *form.ClientAuth) plan.ClientAuth {
	at := []string{"action", "tls", "client_auth"}
	switch {
	case f.Mode == "none" && f.CAFile != "":
		b.fault(append(at, "ca_file"), "write mode: required, or optional", "no client is asked for a certificate")
	case f.Mode != "none" && f.CAFile == "" && len(b.r.Problems) == 0:
		b.fault(at, "write ca_file: PATH", "clients are asked for a certificate, and no CA is named whose certificates are taken")
	case f.Mode == "none":
		return plan.ClientAuth{Mode: f.Mode}
	}
	out := plan.ClientAuth{Mode: f.Mode, CAFile: b.file(append(at, "ca_file"), f.CAFile)}
	b.roots(append(at, "ca_file"), out.CAFile)
	return out
}

// roots checks a file with CAs.
func (b *builder) roots(at []string, path string) {
	if path == "" {
		return
	}
	if err := rootsIn(path); err != nil {
		b.faulty(at, err)
	}
}

// maxPEM bounds what is read of one file with certificates.
const maxPEM = 16 << 20

// rootsIn says what is wrong with a file that should hold CAs.
func rootsIn(path string) error {
	text, err := readPEM(path)
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(text) {
		return strict.Faultf("name a PEM file that holds the CA", "%s holds no certificate", path)
	}
	return nil
}

func readPEM(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && (info.Size() > maxPEM || !info.Mode().IsRegular()) {
		err = fmt.Errorf("it is no file of at most %d bytes", maxPEM)
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, strict.Faultf("name a file that this user can read", "%s cannot be read: %v", path, reason(err))
	}
	return text, nil
}

// pairIn says what is wrong with a certificate and its key, and which names they are for.
func pairIn(certFile, keyFile string) (*x509.Certificate, error) {
	cert, err := readPEM(certFile)
	if err != nil {
		return nil, err
	}
	key, err := readPEM(keyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		var plain error = err
		if u := errors.Unwrap(err); u != nil {
			plain = u
		}
		return nil, strict.Faultf("name a certificate in PEM and the key that belongs to it", "%s and %s are no pair: %s",
			certFile, keyFile, strings.TrimPrefix(plain.Error(), "tls: "))
	}
	return pair.Leaf, nil
}

// targetTLS is how the targets of an action are reached by TLS.
func (b *builder) targetTLS(a *form.Action, u *plan.Upstream) plan.TargetTLS {
	any := false
	for i, t := range u.Targets {
		any = any || t.TLS
		if t.TLS && t.Network == plan.Unix && (a.TargetTLS == nil || a.TargetTLS.ServerName == "") {
			b.fault([]string{"action", "targets", index(i)}, "write target_tls: {server_name: NAME}", "a unix socket has no name that its certificate could have")
		}
	}
	f := a.TargetTLS
	if f == nil {
		return plan.TargetTLS{}
	}
	at := []string{"action", "target_tls"}
	if !any && len(b.r.Problems) == 0 {
		b.fault(at, "write https:// before a target, or tls: {mode: reencrypt}", "it has no effect: no target is reached by TLS")
	}
	out := plan.TargetTLS{ServerName: strings.ToLower(string(f.ServerName)), Insecure: f.InsecureSkipVerify}
	out.CAFile = b.file(append(at, "ca_file"), f.CAFile)
	out.CertFile = b.file(append(at, "client_cert_file"), f.ClientCertFile)
	out.KeyFile = b.file(append(at, "client_key_file"), f.ClientKeyFile)
	switch {
	case f.InsecureSkipVerify && f.CAFile != "":
		b.fault(append(at, "ca_file"), "keep one of them", "with insecure_skip_verify no CA is looked at")
	case (out.CertFile == "") != (out.KeyFile == ""):
		b.fault(at, "write client_cert_file and client_key_file", "a client certificate needs both files")
	case out.CertFile != "":
		if _, err := pairIn(out.CertFile, out.KeyFile); err != nil {
			b.faulty(append(at, "client_cert_file"), err)
		}
	}
	b.roots(append(at, "ca_file"), out.CAFile)
	return out
}

// agreeTLS finds conditions that exclude the way TLS is treated.
func (b *builder) agreeTLS(f *form.Route, r *plan.Route, protocols []string) {
	switch {
	case f.Action.TLS == nil:
	case !r.TLS.Ends() && r.Match.Protocols&^plan.ProtoTLS != 0:
		b.fault(protocols, "leave protocols out, or the tls block", "passthrough relays TLS and nothing else")
	case r.TLS.Ends() && r.Match.Protocols&plan.ConnProtocols != 0:
		b.fault(protocols, "leave tcp, ssh and tls out, or write tls: {mode: passthrough}",
			"TLS that ends here carries HTTP; raw bytes inside it are not in this version")
	}
	if d, ok := r.Action.(plan.Redirect); ok && d.To == "https" && r.TLS.Ends() {
		b.fault([]string{"action", "redirect", "to"}, "leave tls out of this route, or name another place", "it would send clients of https to https, forever")
	}
}
