package labels

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// router is one router of Traefik: the labels that describe it, by what they say.
type router map[string]string

// traefik reads the labels of Traefik. They describe one thing together, such as a route and who may use it, so one that
// is not understood makes all of them count for nothing.
func (r *reader) traefik(keys []string) {
	routers, services, network := r.sort(keys)
	if len(r.refused) > 0 {
		return
	}
	switch {
	case len(routers) == 0:
		r.refuse("traefik.http.routers.NAME.rule", "write one: Host(`app.example.com`)", "there is no such label, and without a rule there is no route")
		return
	case len(routers) > maxRouters:
		r.refuse("", "keep "+strconv.Itoa(maxRouters)+" at most", "its labels make %d routers", len(routers))
		return
	}
	for _, name := range slices.Sorted(maps.Keys(routers)) {
		r.routed(name, routers[name], services, network)
	}
	if len(r.refused) > 0 {
		r.routes = nil
	}
}

// sort puts each label where it belongs.
func (r *reader) sort(keys []string) (routers map[string]router, services map[string]string, network string) {
	routers, services = map[string]router{}, map[string]string{}
	for _, k := range keys {
		rest, theirs := strings.CutPrefix(k, "traefik.")
		if !theirs || rest == "enable" {
			continue
		}
		parts := strings.Split(rest, ".")
		low := strings.Split(strings.ToLower(rest), ".")
		value := strings.TrimSpace(r.c.Labels[k])
		switch {
		case slices.Equal(low, []string{"docker", "network"}):
			network = k
		case len(low) >= 4 && low[0] == "http" && low[1] == "routers" && routerKey(strings.Join(low[3:], ".")):
			if routers[parts[2]] == nil {
				routers[parts[2]] = router{}
			}
			routers[parts[2]][strings.Join(low[3:], ".")] = k
		case len(low) == 6 && low[0] == "http" && low[1] == "services" && low[3] == "loadbalancer" && low[4] == "server" && low[5] == "port":
			services[parts[2]] = k
		case len(low) == 6 && low[0] == "http" && low[1] == "services" && low[3] == "loadbalancer" && low[4] == "server" && low[5] == "scheme":
			if !strings.EqualFold(value, "http") {
				r.refuse(clipped(k), "write the route in the file, with the target https://HOST:PORT", "a target by %s cannot be had from labels", clip(value))
			} else if services[parts[2]] == "" {
				services[parts[2]] = ""
			}
		default:
			remedy := "take it out, or write the route in the file"
			if len(low) > 1 && low[0] == "http" && low[1] == "middlewares" || low[len(low)-1] == "middlewares" {
				remedy = "write the route in the file: rewrite, headers, limits and redirects are keys of a route there"
			}
			r.refuse(clipped(k), remedy, "this label of Traefik is not known here")
		}
	}
	return routers, services, network
}

func routerKey(key string) bool {
	return slices.Contains([]string{"rule", "entrypoints", "tls", "tls.certresolver", "priority", "service"}, key)
}

// routed makes the routes of one router.
func (r *reader) routed(name string, with router, services map[string]string, network string) {
	if !isRouter(name) {
		r.refuse("traefik.http.routers."+clipped(name)+".rule", "call it by letters, digits, dashes and underscores", "%s is no name for a route", clip(name))
		return
	}
	if with["rule"] == "" {
		r.refuse("traefik.http.routers."+name+".rule", "write Host(`app.example.com`)", "the router has no rule")
		return
	}
	text := r.c.Labels[with["rule"]]
	hosts, paths, err := Rule(text)
	if err != nil {
		r.refuse(with["rule"], "write Host(`app.example.com`) && PathPrefix(`/api`), or the route in the file", "%s", err)
		return
	}
	rank, ok := r.rank(with["priority"], len(text))
	plain, secure, fine := r.doors(name, with)
	port, well := r.service(name, with["service"], services)
	if !ok || !fine || !well {
		return
	}
	target, ok := r.target(port, r.c.Labels[port], network, true)
	if !ok {
		return
	}
	for i := range hosts {
		route := Route{Hosts: hosts[i], Paths: paths[i], Alone: true, Rank: rank, Target: target, HostLabel: with["rule"], PathLabel: with["rule"]}
		for _, door := range []struct{ plain, open bool }{{false, secure}, {true, plain}} {
			if door.open {
				route.Plain, route.Name = door.plain, r.name(name, r.count(name))
				r.routes = append(r.routes, route)
			}
		}
	}
}

// count is how many routes of a router there are.
func (r *reader) count(name string) (n int) {
	for _, have := range r.routes {
		if have.Name == r.name(name, n) {
			n++
		}
	}
	return n
}

// rank is the priority as Traefik has it: the one written, else the length of the rule.
func (r *reader) rank(label string, length int) (int, bool) {
	if label == "" {
		return length, true
	}
	n, err := strconv.Atoi(strings.TrimSpace(r.c.Labels[label]))
	if err != nil || n < -maxRank || n > maxRank {
		r.refuse(label, "write a number", "%s is no priority", clip(r.c.Labels[label]))
		return 0, false
	}
	if n == 0 { // which is none
		return length, true
	}
	return n, true
}

// doors are how clients come to a router: plain, by TLS or both.
func (r *reader) doors(name string, with router) (plain, secure, ok bool) {
	tls := with["tls.certresolver"] != ""
	if label := with["tls"]; label != "" {
		on, err := strconv.ParseBool(strings.TrimSpace(r.c.Labels[label]))
		if err != nil {
			r.refuse(label, "write true, or leave it out", "%s is neither true nor false", clip(r.c.Labels[label]))
			return false, false, false
		}
		if !on && tls {
			r.refuse(label, "write true, or take the certificate resolver out", "router %s has a certificate resolver and no TLS", name)
			return false, false, false
		}
		tls = on
	}
	label := with["entrypoints"]
	if label == "" {
		return !tls, tls, true
	}
	entries, ok := r.list(label)
	if !ok {
		return false, false, false
	}
	for _, e := range entries {
		switch e {
		case "web", "http":
			if plain = true; tls {
				r.refuse(label, "write websecure alone", "%s is for clients without TLS, and router %s is for those with TLS", e, name)
				return false, false, false
			}
		case "websecure", "https":
			secure = true
		default:
			r.refuse(label, "write web or websecure", "the entry point %s is not known here", clip(e))
			return false, false, false
		}
	}
	return plain, secure, true
}

// service is the label with the port of a router's service, "" where none says one.
func (r *reader) service(name, label string, services map[string]string) (string, bool) {
	if label != "" {
		port, known := services[strings.TrimSpace(r.c.Labels[label])]
		if !known {
			r.refuse(label, "name one that the labels of this container describe", "this container has no service %s", clip(r.c.Labels[label]))
		}
		return port, known
	}
	if len(services) > 1 {
		r.refuse("traefik.http.routers."+name+".service", "write which one", "the container has %d services", len(services))
		return "", false
	}
	for _, port := range services {
		return port, true
	}
	return "", true
}

// isRouter reports whether s may be part of a route's name.
func isRouter(s string) bool { return isName(strings.ToLower(strings.ReplaceAll(s, "_", "x"))) }
