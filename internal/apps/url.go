package apps

import (
	"net"
	"strconv"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// urls finds for each app where a browser on this machine reaches it: by the route that asks least besides a name, the
// app's own before another, else by its preview.
func urls(p *plan.Plan) map[string]*address {
	byUpstream := make(map[string]string)
	for _, u := range p.Upstreams {
		for _, t := range u.Targets {
			if t.App != "" && byUpstream[u.Name] == "" {
				byUpstream[u.Name] = t.App
			}
		}
	}
	out, best := make(map[string]*address), make(map[string]int)
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
		if app == "" || url == nil || cost > 0 && len(r.Match.Domains) == 0 {
			continue // the preview by path needs one who knows of the path
		}
		cost += more
		if !strings.HasPrefix(url.host, app+".") {
			cost++
		}
		if had, ok := best[app]; !ok || cost < had {
			out[app], best[app] = url, cost
		}
	}
	return out
}

// address is where a route is reached.
type address struct {
	scheme, host, path string
	at                 plan.Addr // of the plan
}

// text is the address as it is at the moment: served says where a port of the plan is served in truth.
func (a *address) text(served func(plan.Addr) plan.Addr) string {
	if a == nil {
		return ""
	}
	at := a.at
	if served != nil {
		at = served(at)
	}
	host := a.host
	if usual := map[string]uint16{"http": 80, "https": 443}[a.scheme]; at.Port != usual {
		host = net.JoinHostPort(host, strconv.Itoa(int(at.Port)))
	}
	return a.scheme + "://" + host + a.path
}

// urlOf is the address of a route, and how much it asks besides a name of its own. nil: it has none that a browser knows.
func urlOf(r *plan.Route) (url *address, cost int) {
	url = &address{scheme: "http"}
	if r.TLS != nil {
		url.scheme = "https"
	}
	for _, d := range r.Match.Domains {
		if !strings.Contains(d, "*") {
			url.host = d
			break
		}
	}
	if url.host == "" {
		url.host, cost = "localhost", 2
	}
	m := &r.Match
	if len(m.Paths) > 0 {
		url.path = strings.TrimSuffix(m.Paths[0], "*")
		if i := strings.Index(url.path, "/:"); i >= 0 {
			url.path = url.path[:i+1]
		}
		cost += 4
	}
	if len(m.Methods)+len(m.Headers)+len(m.Query)+len(m.Clients) > 0 || m.Protocols != 0 {
		cost += 8
	}
	for _, at := range m.Ports {
		if at.Network == plan.TCP && at.Port != 0 {
			url.at = at
			return url, cost
		}
	}
	return nil, 0
}
