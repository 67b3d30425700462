package config

import (
	"maps"
	"math"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// previewFirst is the priority of what lies below previews.path, and of what pages there ask for: it comes before other
// routes of the port that write none as high.
const previewFirst = 1 << 30

// The bounds of where previews are: with the longest name of an app behind or before it, either is still a path or a name.
const (
	maxPreviewPath   = 255
	maxPreviewDomain = 189
)

// strange reports whether a character of a path has a meaning of its own somewhere: to the matching of paths, in a cookie or
// in a Location.
func strange(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("/-._~@+=", c)
}

// previewBalance is how the upstream of a preview is used: an app has one instance.
var previewBalance = plan.Balance{Policy: "round_robin"}

// previews makes the routes of apps with `preview: true`, and notes where they are shown.
func (l *load) previews() {
	layers := map[string]plan.Source{}
	for name, f := range l.apiApps {
		if f.Preview {
			layers[name] = plan.FromAPI
		}
	}
	for name, f := range l.file.Apps {
		delete(layers, name)
		if f.Preview {
			layers[name] = plan.FromFile
		}
	}
	set := l.previewPlace()
	if set == nil || len(layers) == 0 {
		return
	}
	l.shown = set
	for _, name := range slices.Sorted(maps.Keys(layers)) {
		l.breathe()
		var n form.Name
		if n.ReadText(name) == nil { // else it is found wrong with the apps
			l.preview(set, name, layers[name])
		}
	}
}

// previewPlace reads `previews`, nil if it is wrong.
func (l *load) previewPlace() *plan.Previews {
	f := &l.file.Previews
	set := &plan.Previews{Base: f.BaseHref, Path: strings.TrimRight(string(f.Path), "/"), Domain: strings.ToLower(strings.TrimSuffix(string(f.Domain), "."))}
	hosts := f.Bind
	if len(hosts) == 0 {
		hosts = form.Hosts{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	for _, ip := range hosts {
		set.Addrs = append(set.Addrs, plan.TCPAddr(ip, uint16(f.Port)))
	}
	set.Addrs = sorted(set.Addrs, plan.Addr.Compare)
	before := len(l.errs)
	if text := set.Path; text == "" || text != path.Clean(text) || len(text) > maxPreviewPath || strings.IndexFunc(text, strange) >= 0 {
		l.fault("previews.path", "write a path such as /app/preview", "%q cannot stand before the names of apps", string(f.Path))
	}
	if plan.IsIP(set.Domain) || set.Domain == "" || len(set.Domain) > maxPreviewDomain {
		l.fault("previews.domain", "write localhost, or a name of your own", "nothing can stand below %q", string(f.Domain))
	}
	if len(l.errs) > before {
		return nil
	}
	return set
}

// preview makes the routes of one app. They share the upstream of the first.
func (l *load) preview(set *plan.Previews, name string, layer plan.Source) {
	base, prefix := "preview/"+name, set.Path+"/"+name
	from := func(page string, alone bool) *plan.PreviewMatch {
		return &plan.PreviewMatch{Domain: set.Domain, App: name, From: page, Alone: alone}
	}
	up := &plan.Upstream{
		Name: base, Inline: true, Targets: []plan.Target{{Text: "app:" + name, App: name, Weight: 1}}, Balance: previewBalance,
		Connect: globalClocks(&l.file.Timeouts).Connect, Pool: previewPool(),
	}
	under := plan.Forward{Upstream: base, Rewrite: plan.Rewrite{StripPrefix: prefix}, Preview: plan.PreviewOf{App: name, Prefix: prefix, Base: set.Base}}
	whole := plan.Forward{Upstream: base, Preview: plan.PreviewOf{App: name}}
	back := plan.Redirect{To: prefix + "{path}?{query}", Status: http.StatusTemporaryRedirect}
	at := l.previewAt(name, layer)

	r := l.previewRoute(base, set, at, plan.Route{Priority: previewFirst, Match: plan.Match{Paths: []string{prefix + "/*"}, Preview: from("", false)}, Action: under})
	r.upstream = up
	host := l.previewRoute(base+"/host", set, at, plan.Route{Rank: math.MinInt32, Match: plan.Match{Domains: []string{name + "." + set.Domain}}, Action: whole})
	host.key, host.implied = matchKey(&host.route.Match, 0), true // a route that somebody wrote for this name is what he wants
	links := l.previewRoute(base+"/links", set, at, plan.Route{Priority: previewFirst - 1, Match: plan.Match{Preview: from(prefix, false)}, Action: back})
	rest := l.previewRoute(base+"/rest", set, at, plan.Route{Priority: math.MinInt32, Match: plan.Match{Preview: from("", true)}, Action: back})
	sockets := l.previewRoute(base+"/sockets", set, at, plan.Route{
		Priority: math.MinInt32, Match: plan.Match{Protocols: plan.ProtoWebSocket, Preview: from("", true)}, Action: whole,
	})
	for _, ref := range []*ref{r, host, links, rest, sockets} {
		ref.layer = layer
		ref.route.Source = layer
		l.refs = append(l.refs, *ref)
	}
}

// previewAt is where an app says that it has a preview.
func (l *load) previewAt(name string, layer plan.Source) strict.Place {
	if layer == plan.FromAPI {
		return strict.Place{File: "api"}
	}
	return l.placeOf("apps." + name + ".preview")
}

// previewRoute is one route of a preview, at the addresses of all.
func (l *load) previewRoute(name string, set *plan.Previews, at strict.Place, r plan.Route) *ref {
	r.Name, r.Timeouts, r.OnRemove = name, globalClocks(&l.file.Timeouts), plan.DrainOnRemove
	r.Match.Ports = set.Addrs
	it := &item{name: name, user: "previews", at: spot{at.Line, at.Col}, route: &r}
	for _, a := range set.Addrs {
		it.wishes = append(it.wishes, wish{addr: a, at: it.at})
	}
	return &ref{file: at.File, piece: strict.Piece{Section: "apps"}, item: it}
}

// previewPool are the settings of connections to an app, as an action without `pool` has them.
func previewPool() plan.PoolSettings {
	var f form.Pool
	f.Defaults()
	return poolSettings(&f)
}
