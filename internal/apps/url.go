package apps

import (
	"net"
	"strconv"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// urls finds for each app where a browser on this machine reaches it: by the route that asks least besides a name, the
// app's own before another, else by its preview.
func urls(p *plan.Plan) map[string]string {
	byUpstream := make(map[string]string)
	for _, u := range p.Upstreams {
		for _, t := range u.Targets {
			if t.App != "" && byUpstream[u.Name] == "" {
				byUpstream[u.Name] = t.App
			}
		}
	}
	out, best := make(map[string]string), make(map[string]int)
	for _, r := range p.Routes {
		upstream, cost := "", 0
		switch f := r.Action.(type) {
		case plan.Forward:
			upstream = f.Upstream
			if f.Preview.App != "" {
				cost = 32
			}
		case plan.Tunnel:
			if r.TLS == nil {
				continue
			}
			upstream, cost = f.Upstream, 16 // of which only the name is known
		}
		app := byUpstream[upstream]
		url, more := urlOf(r)
		if app == "" || url == "" || cost > 0 && len(r.Match.Domains) == 0 {
			continue // the preview by path needs one who knows of the path
		}
		cost += more
		if _, host, _ := strings.Cut(url, "://"); !strings.HasPrefix(host, app+".") {
			cost++
		}
		if had, ok := best[app]; !ok || cost < had {
			out[app], best[app] = url, cost
		}
	}
	return out
}

// urlOf is the address of a route, and how much it asks besides a name of its own.
func urlOf(r *plan.Route) (url string, cost int) {
	scheme, usual := "http", uint16(80)
	if r.TLS != nil {
		scheme, usual = "https", 443
	}
	host, path := "", ""
	for _, d := range r.Match.Domains {
		if !strings.Contains(d, "*") {
			host = d
			break
		}
	}
	if host == "" {
		host, cost = "localhost", 2
	}
	m := &r.Match
	if len(m.Paths) > 0 {
		path = strings.TrimSuffix(m.Paths[0], "*")
		if i := strings.Index(path, "/:"); i >= 0 {
			path = path[:i+1]
		}
		cost += 4
	}
	if len(m.Methods)+len(m.Headers)+len(m.Query)+len(m.Clients) > 0 || m.Protocols != 0 {
		cost += 8
	}
	for _, at := range m.Ports {
		if at.Network != plan.TCP || at.Port == 0 {
			continue
		}
		if at.Port != usual {
			host = net.JoinHostPort(host, strconv.Itoa(int(at.Port)))
		}
		return scheme + "://" + host + path, cost
	}
	return "", 0
}
