package config

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// siteItem makes the routes of a site: its own, and for HTTPS on the usual port one that sends plain clients there.
func (b *builder) siteItem(key *yaml.Node) {
	text, ok := b.r.Text(key)
	if !ok {
		return
	}
	f, usual, ok := b.siteMatch(key, text)
	if !ok {
		return
	}
	plain := strings.HasPrefix(text, "http://")
	site := form.Site{}
	before := len(b.r.Problems)
	b.r.Read(b.root, &site)
	if len(b.r.Problems) > before && site.Targets == nil && site.Files == nil && b.root.Kind != yaml.MappingNode {
		return
	}
	b.site = true
	f.Action = &site.Action
	switch {
	case plain && site.TLS != nil:
		b.fault([]string{"action", "tls"}, "write "+strings.TrimPrefix(text, "http://")+" as the key, or leave tls out", "http:// is a site without TLS")
		return
	case !plain && site.TLS == nil:
		site.TLS = &form.TLS{}
		site.TLS.Defaults()
	}
	b.route(f, plan.FromFile)
	b.it.at = spot{key.Line, key.Column}
	for i := range b.it.wishes {
		b.it.wishes[i].at = b.it.at
	}
	if usual && !plain && len(b.r.Problems) == before {
		b.redirect(string(f.Match.Domains[0]))
	}
}

// siteMatch reads the key of a site. It reports whether the port is the usual one.
func (b *builder) siteMatch(key *yaml.Node, text string) (f *form.Route, usual, ok bool) {
	rest, at := text, b.secure
	scheme, after, has := strings.Cut(text, "://")
	switch {
	case has && scheme == "http":
		rest, at = after, b.web
	case has && scheme == "https":
		rest = after
	case has:
		b.r.Problem(key, "write "+after+", or http://"+after, "there is no scheme %s", scheme)
		return nil, false, false
	}
	name, usual := rest, true
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.HasSuffix(rest, "]") {
		name, usual = rest[:i], false
		at = form.Port{}
		if !b.r.Fault(key, at.Port.ReadText(rest[i+1:])) {
			return nil, false, false
		}
	}
	var domain form.Domain
	if !b.r.Fault(key, domain.ReadText(name)) {
		return nil, false, false
	}
	f = &form.Route{Name: form.Name(strings.TrimPrefix(text, "https://"))}
	f.Defaults()
	f.Match.Domains, f.Match.Ports = []form.Domain{domain}, []form.Port{at}
	return f, usual, true
}

// redirect is the route that sends plain clients of a site to https. For a name that only this machine and its
// neighbours know, the port is the one we listen on; the others come by 443, wherever that is forwarded to.
func (b *builder) redirect(name string) {
	to := form.RedirectTo("https")
	if p := b.secure.Port; local(name) && p.Lo != 443 && p.Lo != 0 {
		to = form.RedirectTo("https://{host}:" + strconv.Itoa(int(p.Lo)) + "{path}?{query}")
	}
	f := &form.Route{Name: form.Name("http://" + b.it.name)}
	f.Defaults()
	f.Match.Domains, f.Match.Ports = []form.Domain{form.Domain(name)}, []form.Port{b.web}
	f.Action = &form.Action{Redirect: &form.Redirect{To: to, Status: 308}}
	other := &builder{scope: b.scope, r: b.r, root: emptyNode, site: true, it: &item{at: b.it.at, implied: true}}
	other.route(f, plan.FromFile)
	for i := range other.it.wishes {
		other.it.wishes[i].at = b.it.at
	}
	b.it.redirect = other.it
}

// redirects adds the routes that sites bring with them.
func (l *load) redirects() {
	for i := range l.refs {
		l.breathe()
		if r := l.refs[i]; r.item != nil && r.redirect != nil {
			r.item = r.redirect
			l.refs = append(l.refs, r)
		}
	}
}
