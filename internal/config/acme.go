package config

import (
	"encoding/base64"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// section is `acme`, or what holds without it.
func (l *load) section() *form.ACME {
	if l.file.ACME != nil {
		return l.file.ACME
	}
	f := &form.ACME{}
	f.Defaults()
	return f
}

// acme makes the plan's value of the section. The wishes are for the CA's ports 80 and 443.
func (l *load) acme() (set *plan.ACME, web, tls []wish) {
	f := l.section()
	set = &plan.ACME{CARoot: f.CARoot, RenewBefore: time.Duration(f.RenewBefore.Duration)}
	l.issuers(set, f)
	if f.CARoot != "" {
		if err := rootsIn(f.CARoot); err != nil {
			message, remedy := strict.Say(err)
			l.fault("acme.ca_root", remedy, "%s", message)
		}
	}
	l.dns(set, f.DNS)
	l.challenges(set, f)
	if o := f.OnDemand; o != nil {
		set.OnDemand = &plan.OnDemand{Ask: string(o.Ask), Allow: texts(o.Allow), PerHour: o.PerHour}
		if len(o.Allow) == 0 {
			l.fault("acme.on_demand", `write allow: ["*.example.com"]`, "no name is admitted: what is not under allow is refused")
		}
	}
	web = l.arrive("acme.http_port", webPort(f))
	tls = l.arrive("acme.tls_port", tlsPort(f))
	if len(f.HTTPPort.Fallback) > 0 && !f.HTTPPort.Forwarded {
		l.fault("acme.http_port.fallback", "write forwarded: true if that is so, or leave the fallback out",
			"the CA comes to port 80 and to no other; a fallback serves only where port 80 is forwarded to it, too")
	}
	for i, w := range web {
		if i > 0 {
			set.HTTPOthers = append(set.HTTPOthers, w.addr)
		} else {
			set.HTTPPort = w.addr
		}
		set.HTTPOthers = append(set.HTTPOthers, w.fallback...)
	}
	if len(tls) > 0 {
		set.TLSPort = tls[0].addr
	}
	return set, web, tls
}

// webPort is http_port as a route would write it.
func webPort(f *form.ACME) form.Port {
	p := &f.HTTPPort
	return form.Port{PortObject: form.PortObject{Port: p.Port, Fallback: p.Fallback}, Object: len(p.Fallback) > 0}
}

// tlsPort is tls_port as a route would write it.
func tlsPort(f *form.ACME) form.Port { return form.Port{PortObject: form.PortObject{Port: f.TLSPort}} }

// arrive are the addresses that the CA comes to.
func (l *load) arrive(path string, p form.Port) []wish {
	if p.Port.Lo != p.Port.Hi {
		l.fault(path, "write one port", "the CA comes to one port, not to %s", p.Port.Text)
		return nil
	}
	at := l.placeOf(path)
	b := &builder{scope: &l.scope, it: &item{}}
	return b.expand(nil, &p, spot{at.Line, at.Col}, l.faultAt(path, at))
}

// issuers are the CAs that are asked.
func (l *load) issuers(set *plan.ACME, f *form.ACME) {
	list, path := f.Issuers, "acme.issuers"
	_, several := l.places[path]
	if !several {
		list, path = []form.Issuer{{Directory: f.Directory}}, "acme.directory"
	} else if at, ok := l.places["acme.directory"]; ok {
		l.faultAt("acme.directory", at)("write it among the issuers", "directory and issuers are two ways to say the same")
	}
	if len(list) == 0 {
		l.fault(path, "leave it out, or write [{directory: letsencrypt}]", "there is no issuer")
	}
	for i, is := range list {
		at := path
		if several {
			at = fmt.Sprintf("%s[%d]", path, i)
		}
		out := plan.Issuer{Directory: is.Directory.URL(), Email: string(is.Email), Profile: is.Profile}
		if out.Email == "" {
			out.Email = string(f.Email)
		}
		switch e := is.EAB; {
		case is.Directory == "" && len(l.errs) == 0:
			l.fault(at, "write directory: letsencrypt, or another", "the issuer has no directory")
		case e == nil && is.Directory == "zerossl":
			l.fault(at, "write issuers: [{directory: zerossl, eab: {kid: ..., hmac: ...}}]", "zerossl wants the key of an account there")
		case e != nil:
			l.eab(&out, e, at+".eab")
		}
		if slices.Contains(set.Issuers, out) {
			l.fault(at, "leave it out", "the issuer stands here twice")
		}
		set.Issuers = append(set.Issuers, out)
	}
}

func (l *load) eab(out *plan.Issuer, e *form.EAB, path string) {
	key := strings.TrimRight(string(e.HMAC), "=") // some CAs show it with padding
	out.EABKeyID, out.EABKey = e.KID, plan.Secret(key)
	switch _, err := base64.RawURLEncoding.DecodeString(key); {
	case len(l.errs) > 0:
	case e.KID == "" || key == "":
		l.fault(path, "write {kid: ..., hmac: ...}", "an external account has an id and a key")
	case err != nil:
		l.fault(path+".hmac", "copy the key as the CA shows it", "the key is not base64url")
	}
}

// dns is how records are set.
func (l *load) dns(set *plan.ACME, f *form.DNS) {
	switch {
	case f == nil:
		return
	case f.Exec != "" && f.RFC2136 != nil:
		l.fault("acme.dns.rfc2136", "keep one of them", "exec and rfc2136 are two ways to set records")
	case f.Exec != "":
		if err := runnable(f.Exec); err != nil {
			message, remedy := strict.Say(err)
			l.fault("acme.dns.exec", remedy, "%s", message)
		}
		set.DNS.Exec = f.Exec
	case f.RFC2136 == nil:
		l.fault("acme.dns", "write exec: PATH, or rfc2136: {server: HOST:PORT}", "dns says no way to set records")
	default:
		u := f.RFC2136
		set.DNS = plan.DNSProvider{
			Server: string(u.Server), Zone: strings.ToLower(strings.TrimSuffix(string(u.Zone), ".")),
			TSIGKey: string(u.TSIGKey), TSIGSecret: plan.Secret(u.TSIGSecret),
		}
		switch _, err := base64.StdEncoding.DecodeString(string(u.TSIGSecret)); {
		case len(l.errs) > 0:
		case u.Server == "":
			l.fault("acme.dns.rfc2136", "write server: HOST:53", "no name server is named")
		case (u.TSIGKey == "") != (u.TSIGSecret == ""):
			l.fault("acme.dns.rfc2136", "write tsig_key and tsig_secret, or neither", "a TSIG key has a name and a secret")
		case err != nil:
			l.fault("acme.dns.rfc2136.tsig_secret", "copy it as tsig-keygen shows it", "the secret is not base64")
		}
	}
}

// runnable says what is wrong with a program.
func runnable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return strict.Faultf("write the path of a program", "%s cannot be run: %v", path, reason(err))
	case info.IsDir() || info.Mode()&0o111 == 0:
		return strict.Faultf("make it a program with chmod +x", "%s cannot be run: it is not executable", path)
	}
	return nil
}

// challenges are the ways to prove a name.
func (l *load) challenges(set *plan.ACME, f *form.ACME) {
	set.Challenges = f.Challenges
	if _, written := l.places["acme.challenges"]; !written {
		set.Challenges = []string{"http-01", "tls-alpn-01"}
		if f.DNS != nil {
			set.Challenges = append(set.Challenges, "dns-01")
		}
	}
	const path = "acme.challenges"
	for i, c := range set.Challenges {
		if slices.Contains(set.Challenges[:i], c) {
			l.fault(path, "write it once", "%s stands here twice", c)
		}
	}
	switch dns := slices.Contains(set.Challenges, "dns-01"); {
	case len(set.Challenges) == 0 && len(l.errs) == 0:
		l.fault(path, "write [http-01, tls-alpn-01], or leave it out", "without a challenge no name can be proved")
	case dns && f.DNS == nil:
		l.fault(path, "write dns: {exec: PATH}, or dns: {rfc2136: {server: HOST:PORT}}", "dns-01 needs a way to set records")
	case !dns && f.DNS != nil && len(l.errs) == 0:
		l.fault("acme.dns", "write dns-01 among the challenges, or leave dns out", "it has no effect without dns-01")
	}
}

// orders decides for each certificate that is to be ordered whether it can be had and how, and sets Settings.ACME if
// there is one. The routes that answer challenges are returned.
func (l *load) orders(p *plan.Plan, list []*wanted) []*ref {
	set, web, tls := l.acme()
	var first *wanted
	direct := false
	public := !slices.ContainsFunc(set.Issuers, func(i plan.Issuer) bool { return !publicCA(i.Directory) })
	for _, w := range list {
		l.breathe()
		if w.Source.Kind != plan.CertAuto {
			continue
		}
		if first == nil {
			first = w
		}
		l.orderable(set, w, public)
		direct = direct || w.OnDemand || !strings.HasPrefix(w.Names[0], "*")
	}
	if first == nil || len(l.errs) > 0 {
		return nil
	}
	p.Settings.ACME = set
	l.doubts(set, web, public, first)
	var out []*ref
	if direct && slices.Contains(set.Challenges, "http-01") {
		m := plan.Match{Paths: []string{"/.well-known/acme-challenge/*"}, Methods: []string{"GET", "HEAD"}}
		out = append(out, l.challenge(plan.HTTPChallenge, "acme.http_port", web, m, nil))
	}
	if direct && slices.Contains(set.Challenges, "tls-alpn-01") {
		m := plan.Match{Protocols: plan.ProtoTLS}
		out = append(out, l.challenge(plan.ALPNChallenge, "acme.tls_port", tls, m, &plan.TLS{Mode: plan.Passthrough}))
	}
	for _, r := range out {
		p.Where["route/"+r.name] = r.pos(r.at)
	}
	return out
}

// challenge is the route that answers one kind of challenge. It comes before all others, and claims only what is ours.
func (l *load) challenge(name, path string, wishes []wish, m plan.Match, policy *plan.TLS) *ref {
	at := l.placeOf(path)
	it := &item{name: name, user: name, at: spot{at.Line, at.Col}, wishes: wishes}
	for _, w := range wishes {
		m.Ports = append(m.Ports, w.addr)
	}
	m.Ports = sorted(m.Ports, plan.Addr.Compare)
	it.route = &plan.Route{
		Name: name, Source: plan.FromFile, Priority: math.MaxInt32, Match: m, TLS: policy, Action: plan.Internal{Name: name},
		Timeouts: globalClocks(&l.file.Timeouts), OnRemove: plan.DrainOnRemove,
	}
	return &ref{file: at.File, layer: plan.FromFile, piece: strict.Piece{Section: "acme"}, item: it}
}

// orderable notes why no CA could give a certificate, and whether it is made when somebody asks.
func (l *load) orderable(set *plan.ACME, w *wanted, public bool) {
	name, dns := w.Names[0], slices.Contains(set.Challenges, "dns-01")
	inZone := set.DNS.Zone == "" || name == set.DNS.Zone || strings.HasSuffix(name, "."+set.DNS.Zone)
	fault := func(remedy, format string, args ...any) {
		l.errs = append(l.errs, l.atCert(w.ref, remedy, format, args...))
	}
	base := strings.TrimLeft(name, "*.")
	switch {
	case public && (unknown(base) || !strings.Contains(base, ".") && !plan.IsIP(base)):
		fault("write certificate: internal, or acme: {directory: URL} of a CA that knows it", "no public CA gives a certificate for %s", name)
	case strings.HasPrefix(name, "*"):
		if dns && inZone && !strings.HasPrefix(name, "**") {
			return // one certificate for all of them
		}
		if w.OnDemand = set.OnDemand != nil && slices.ContainsFunc(set.OnDemand.Allow, func(a string) bool { return covers(a, name) }); w.OnDemand {
			return
		}
		if strings.HasPrefix(name, "**") {
			fault("write acme: {on_demand: {allow: [\""+name+"\"]}}, or names one label deep", "no certificate is for %s, which is many labels deep", name)
			return
		}
		fault("write acme: {dns: {exec: PATH}}, or acme: {on_demand: {allow: [\""+name+"\"]}}",
			"a certificate for %s is given only to who proves it by dns-01%s", name, pick(dns, ", and the zone "+set.DNS.Zone+" does not have it", ""))
	case dns && len(set.Challenges) == 1 && (plan.IsIP(name) || !inZone):
		fault("add http-01 or tls-alpn-01 to acme.challenges", "dns-01 cannot prove %s%s", name, pick(inZone, "", ", which is not in the zone "+set.DNS.Zone))
	}
}

// unknown reports whether no public CA can know the name.
func unknown(name string) bool {
	if ip, err := netip.ParseAddr(name); err == nil {
		return !ip.IsGlobalUnicast() || ip.IsPrivate()
	}
	return local(name) || name == "test" || name == "internal" || strings.HasSuffix(name, ".local") || strings.HasSuffix(name, ".home.arpa")
}

// covers reports whether every name under a pattern is also under another.
func covers(a, pattern string) bool {
	if a == pattern {
		return true
	}
	deep, ok := strings.CutPrefix(a, "**.")
	return ok && strings.HasSuffix(pattern, "."+deep)
}

// publicCA reports whether the CA is one of those that browsers trust.
func publicCA(directory string) bool {
	u, err := url.Parse(directory)
	if err != nil {
		return false
	}
	for _, d := range []string{"letsencrypt.org", "zerossl.com", "pki.goog", "ssl.com", "buypass.com"} {
		if h := u.Hostname(); h == d || strings.HasSuffix(h, "."+d) {
			return true
		}
	}
	return false
}

// doubts warns about what may keep a public CA from giving certificates.
func (l *load) doubts(set *plan.ACME, web []wish, public bool, first *wanted) {
	warn := func(path, remedy, format string, args ...any) {
		w := l.atCert(first.ref, remedy, format, args...)
		if at := l.placeOf(path); at.File != "" {
			w.File, w.Line, w.Col, w.Path = at.File, at.Line, at.Col, path
		}
		l.warnings = append(l.warnings, Warning{Error: w})
	}
	if public && set.Issuers[0].Email == "" {
		warn("acme.email", "write acme: {email: ops@example.com}", "certificates are ordered without an address that the CA could write to")
	}
	if public && !l.section().HTTPPort.Forwarded && !slices.ContainsFunc(web, func(w wish) bool { return !w.addr.IP.IsLoopback() }) &&
		slices.Contains(set.Challenges, "http-01") {
		warn("acme.http_port", "write http_port: 80, or {port: "+set.HTTPPort.String()+", forwarded: true} if port 80 is forwarded to it",
			"only this machine comes to %s, and the CA does not", set.HTTPPort)
	}
}

// strays warns about fallbacks that routes wrote for a port to which the CA comes.
func (l *load) strays(p *plan.Plan) {
	set := p.Settings.ACME
	if set == nil {
		return
	}
	for _, c := range []struct {
		challenge string
		addr      plan.Addr
		known     []plan.Addr
	}{{"http-01", set.HTTPPort, set.HTTPOthers}, {"tls-alpn-01", set.TLSPort, nil}} {
		if !slices.Contains(set.Challenges, c.challenge) {
			continue
		}
		for _, port := range p.Ports {
			if !port.Addr.Covers(c.addr) {
				continue
			}
			for _, fb := range port.Fallback {
				if slices.Contains(c.known, fb) {
					continue
				}
				at := p.Where["port/"+port.Addr.String()]
				l.warnings = append(l.warnings, Warning{Error: Error{
					File: at.File, Line: at.Line, Col: at.Col, Path: "port " + port.Addr.String(),
					Message: fmt.Sprintf("when it falls back to %s, no certificate is had by %s: the CA comes to %s", fb, c.challenge, c.addr),
					Remedy:  "leave the fallback out, or write it in acme.http_port with forwarded: true",
				}})
			}
		}
	}
}
