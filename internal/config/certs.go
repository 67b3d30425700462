package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// wanted is a certificate that routes want, while it is put together.
type wanted struct {
	plan.Certificate
	path string // where it stands outside of routes,
	ref  *ref   // or the first route that wants it
}

// wantKey is what certificates are told apart by: all that the internal CA or one of ACME makes has one name each.
type wantKey struct {
	source plan.CertSource
	name   string
}

// filed is one of `certificates` with the names that it is for.
type filed struct {
	source plan.CertSource
	names  []string
	path   string
}

// files reads `certificates` and default_certificate.
func (l *load) files(s *plan.Settings, byKey map[wantKey]*wanted) []filed {
	var list []filed
	for i := range l.file.Certificates {
		c := &l.file.Certificates[i]
		f := filed{source: plan.CertSource{Kind: plan.CertFiles, CertFile: c.CertFile, KeyFile: c.KeyFile}, path: fmt.Sprintf("certificates[%d]", i)}
		if !l.both(f.path, c.CertFile, c.KeyFile) {
			continue
		}
		key := wantKey{f.source, ""}
		if first := byKey[key]; first != nil {
			l.fault(f.path, "write it once, with the names of both", "the same files stand at %s", first.path)
			continue
		}
		w := &wanted{path: f.path, Certificate: plan.Certificate{Source: f.source, Names: texts(c.Names), Users: []string{"certificates"}}}
		byKey[key] = w
		if f.names = w.Names; len(f.names) == 0 {
			f.names = l.namesIn(f.source)
		}
		list = append(list, f)
	}
	l.fallbackCert(s, byKey)
	return list
}

// fallbackCert reads default_certificate.
func (l *load) fallbackCert(s *plan.Settings, byKey map[wantKey]*wanted) {
	const path = "default_certificate"
	c := l.file.DefaultCertificate
	switch {
	case c == nil || c.Kind == "":
		return
	case c.Kind == "auto":
		l.fault(path, "write internal, or {cert_file: PATH, key_file: PATH}", "no CA gives a certificate for a name that is not known")
		return
	case c.Kind == "internal":
		s.DefaultCertificate = &plan.CertSource{Kind: plan.CertInternal}
		return
	case c.CertFile == "" || c.KeyFile == "":
		return // found when it was read
	}
	src := plan.CertSource{Kind: plan.CertFiles, CertFile: c.CertFile, KeyFile: c.KeyFile}
	s.DefaultCertificate = &src
	w := byKey[wantKey{src, ""}]
	if w == nil {
		w = &wanted{path: path, Certificate: plan.Certificate{Source: src}}
		byKey[wantKey{src, ""}] = w
	}
	w.Users = append(w.Users, path)
}

// both notes when one of two files is missing.
func (l *load) both(path, certFile, keyFile string) bool {
	if certFile != "" && keyFile != "" {
		return true
	}
	if len(l.errs) == 0 {
		l.fault(path, "write cert_file: PATH and key_file: PATH", "a certificate needs both files")
	}
	return false
}

// namesIn are the names in a certificate file; those of the last load when it cannot be read now.
func (l *load) namesIn(src plan.CertSource) []string {
	leaf, err := pairIn(src.CertFile, src.KeyFile)
	if err != nil {
		return l.named[src]
	}
	var names []string
	for _, n := range leaf.DNSNames {
		names = append(names, strings.ToLower(n))
	}
	for _, ip := range leaf.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			names = append(names, a.Unmap().String())
		}
	}
	names = sorted(names, strings.Compare)
	l.named[src] = names
	return names
}

// adopt gives routes that say nothing about their certificate the one of `certificates` that has all their domains.
func (l *load) adopt(list []filed, routes []*ref) {
	if len(list) == 0 {
		return
	}
	byName := map[string][]int{}
	for i, f := range list {
		for _, n := range f.names {
			l.breathe()
			byName[n] = append(byName[n], i)
		}
	}
	for _, r := range routes {
		l.breathe()
		if !r.certOpen || len(r.route.Match.Domains) == 0 {
			continue
		}
		src, ok := covered(list, byName, r.route.Match.Domains)
		if !ok {
			continue
		}
		route, policy := *r.route, *r.route.TLS
		policy.Certificate = src
		route.TLS = &policy
		copied := *r.item // the item itself stays as it was read
		copied.route = &route
		r.item = &copied
	}
}

// covered is the first source that has all domains.
func covered(list []filed, byName map[string][]int, domains []string) (plan.CertSource, bool) {
	count := map[int]int{}
	for _, d := range domains {
		found := slices.Clone(byName[d])
		if _, parent, ok := strings.Cut(d, "."); ok && !plan.IsIP(d) && !strings.HasPrefix(d, "*") {
			found = append(found, byName["*."+parent]...)
		}
		for _, i := range sorted(found, cmp.Compare[int]) {
			count[i]++
		}
	}
	for _, i := range slices.Sorted(maps.Keys(count)) {
		if count[i] == len(domains) {
			return list[i].source, true
		}
	}
	return plan.CertSource{}, false
}

// certificates lists what clients are shown. It returns the routes that answer challenges of those that are ordered.
func (l *load) certificates(p *plan.Plan, routes []*ref) []*ref {
	byKey := map[wantKey]*wanted{}
	l.adopt(l.files(&p.Settings, byKey), routes)
	for _, r := range routes {
		l.breathe()
		if !r.route.TLS.Ends() || r.route.TLS.Certificate.Kind == "" {
			continue
		}
		src, names := r.route.TLS.Certificate, r.route.Match.Domains
		if src.Kind == plan.CertFiles {
			names = []string{""}
		}
		for _, name := range names {
			l.breathe()
			key := wantKey{src, name}
			w := byKey[key]
			if w == nil {
				w = &wanted{Certificate: plan.Certificate{Source: src}, ref: r}
				if name != "" {
					w.Names = []string{name}
				}
				byKey[key] = w
			}
			w.Users = append(w.Users, r.user)
		}
	}
	list := make([]*wanted, 0, len(byKey))
	for _, w := range byKey {
		l.breathe()
		w.Users = sorted(w.Users, strings.Compare)
		list = append(list, w)
	}
	slices.SortFunc(list, func(a, b *wanted) int {
		l.breathe()
		return cmp.Or(cmp.Compare(a.Source.Kind, b.Source.Kind), cmp.Compare(a.Source.CertFile, b.Source.CertFile),
			cmp.Compare(a.Source.KeyFile, b.Source.KeyFile), slices.Compare(a.Names, b.Names))
	})
	challenges := l.orders(p, list)
	for _, w := range list {
		l.breathe()
		c := &w.Certificate
		old := l.certs[certKey(c)]
		if old == nil && c.Source.Kind == plan.CertFiles {
			l.pair(w)
		}
		if old != nil && reflect.DeepEqual(old, c) {
			c = old
		}
		p.Certificates = append(p.Certificates, c)
	}
	return challenges
}

// pair notes what is wrong with two files that no earlier plan had. What a running plan has may break and be mended: it
// is then the business of those who watch it.
func (l *load) pair(w *wanted) {
	_, err := pairIn(w.Source.CertFile, w.Source.KeyFile)
	if err == nil {
		return
	}
	message, remedy := strict.Say(err)
	if w.path != "" {
		l.fault(w.path+".cert_file", remedy, "%s", message)
		return
	}
	l.errs = append(l.errs, l.atCert(w.ref, remedy, "%s", message))
}

func certKey(c *plan.Certificate) wantKey {
	if c.Source.Kind == plan.CertFiles {
		return wantKey{c.Source, ""}
	}
	return wantKey{c.Source, c.Names[0]}
}
