// Package labels says which routes the labels of a container ask for.
//
// It promises that the same container always gives the same routes, in the same order, each to the container itself; and
// that a label which is not understood makes no route but a refusal that names it and says why. It never asks an engine,
// a resolver or the disk, and expands nothing: what a label holds is taken as it is written.
package labels

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The bounds of one container.
const (
	maxLabels  = 128  // that begin with ours or with Traefik's word
	maxValue   = 4096 // bytes of one
	maxList    = 64   // hosts or paths in one
	maxRouters = 32
	maxRank    = 1_000_000_000
)

// Enable are the labels that make a container one to be looked at.
const (
	Enable        = "quaymaster.enable"
	EnableTraefik = "traefik.enable"
)

// A Container is a running container as its engine describes it.
type Container struct {
	Name     string // as people call it, fit to be shown
	Engine   string // "podman" or "docker"
	Created  int64  // Unix time, nanoseconds
	Labels   map[string]string
	TooLong  bool      // it has more labels for routes than are kept, and Labels holds none of them
	Shares   bool      // it has the network of this host
	Ports    []Port    // TCP, exposed or published, sorted
	Networks []Network // sorted by name
	Health   string    // of its health check: "", "starting", "healthy", "unhealthy"
}

// A Port is one port that a container exposes.
type Port struct {
	Number uint16
	At     netip.AddrPort // where this host publishes it; the zero AddrPort: nowhere
}

// A Network is one that a container is in.
type Network struct {
	Name string
	IP   netip.Addr
	Near bool // an interface of this host is in it
}

// Source is the container as a source of routes: "container web (podman)".
func (c *Container) Source() string { return "container " + c.Name + " (" + c.Engine + ")" }

// Ours reports whether a label is one that this package reads.
func Ours(label string) bool {
	return strings.HasPrefix(label, "quaymaster.") || strings.HasPrefix(label, "traefik.")
}

// A Route is what labels ask for, before anybody has asked whether they may.
type Route struct {
	Name   string   // unlike that of any other container, file or edit: "web@podman", "web:admin@podman"
	Hosts  []string // as written, lower case; at least one
	Plain  bool     // for clients without TLS
	Port   uint16   // that clients come to; 0: the usual one
	Alone  bool     // plain clients are not sent to it
	Paths  []string // as configuration writes them; none: every path
	Rank   int      // higher comes first among routes of the same host
	Target string   // HOST:PORT

	HostLabel, PathLabel string // where hosts and paths are written
}

// A Refusal is a label that is not followed.
type Refusal struct {
	Container string // as Container.Source has it
	Label     string // "" where no single one is at fault
	Message   string
	Remedy    string
}

func (r *Refusal) String() string {
	s := r.Container + ": "
	if r.Label != "" {
		s += "label " + r.Label + ": "
	}
	return s + r.Message
}

// Read reads the labels of one container. Those of Traefik are read where traefik is set and the container has none of
// our own.
func Read(c *Container, traefik bool) ([]Route, []Refusal) {
	r := &reader{c: c}
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(c.Labels)), func(k string) bool { return !Ours(k) })
	switch {
	case c.TooLong:
		r.refuse("", "write less", "its labels for routes are too long together")
	case len(keys) > maxLabels:
		r.refuse("", "keep "+strconv.Itoa(maxLabels)+" at most", "it has %d labels for routes", len(keys))
	case r.enabled(Enable):
		r.bounded(keys, "quaymaster.")
		if len(r.refused) == 0 {
			r.own(keys)
		}
	case traefik && len(r.refused) == 0 && r.enabled(EnableTraefik):
		r.bounded(keys, "traefik.")
		if len(r.refused) == 0 {
			r.traefik(keys)
		}
	}
	if len(r.routes) == 0 {
		return nil, r.refused
	}
	switch c.Health {
	case "", "healthy":
		return r.routes, r.refused
	case "unhealthy":
		r.refuse("", "see what its health check says; its routes come back with the first good one", "its health check says unhealthy, so it gets no requests")
	}
	return nil, r.refused
}

// reader reads one container.
type reader struct {
	c       *Container
	routes  []Route
	refused []Refusal
}

func (r *reader) refuse(label, remedy, format string, args ...any) {
	r.refused = append(r.refused, Refusal{Container: r.c.Source(), Label: label, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// enabled reads a switch.
func (r *reader) enabled(label string) bool {
	v, ok := r.c.Labels[label]
	if !ok {
		return false
	}
	on, err := strconv.ParseBool(strings.TrimSpace(v))
	if err != nil {
		r.refuse(label, "write true, or leave it out", "%s is neither true nor false", clip(v))
	}
	return on
}

// bounded refuses what no label may hold.
func (r *reader) bounded(keys []string, prefix string) {
	for _, k := range keys {
		if v := r.c.Labels[k]; !strings.HasPrefix(k, prefix) {
			continue
		} else if len(v) > maxValue || len(k) > maxValue {
			r.refuse(clipped(k), "write less", "it has more than %d bytes", maxValue)
		} else if strings.Contains(v, "${") || strings.HasPrefix(strings.TrimSpace(v), "file:") {
			r.refuse(clipped(k), "write the value itself", "labels hold no variables and name no files")
		}
	}
}

// own reads the labels quaymaster.KEY and quaymaster.ROUTER.KEY.
func (r *reader) own(keys []string) {
	type asked struct {
		labels map[string]string // KEY -> the label's name
		bad    bool
	}
	routers := map[string]*asked{}
	router := func(name string) *asked {
		if routers[name] == nil {
			routers[name] = &asked{labels: map[string]string{}}
		}
		return routers[name]
	}
	for _, k := range keys {
		rest, mine := strings.CutPrefix(k, "quaymaster.")
		if !mine || rest == "enable" {
			continue
		}
		name, key := "", rest
		if before, after, two := strings.Cut(rest, "."); two {
			name, key = before, after
		}
		a := router(name)
		switch {
		case name != "" && !isName(name):
			r.refuse(clipped(k), "call it by lower-case letters, digits and dashes", "%s is no name for a route", clip(name))
			a.bad = true
		case !slices.Contains([]string{"host", "port", "path", "network"}, key):
			r.refuse(clipped(k), "write host, port, path or network", "there is no such label")
			a.bad = true
		default:
			a.labels[key] = k
		}
	}
	if len(routers) > maxRouters {
		r.refuse("", "keep "+strconv.Itoa(maxRouters)+" at most", "its labels make %d routes", len(routers))
		return
	}
	common := routers[""]
	if common == nil {
		common = &asked{}
	}
	if _, host := common.labels["host"]; len(routers) > 1 && !host && common.labels["path"] == "" && !common.bad {
		delete(routers, "") // its port and network are those of the others
	} else {
		router("")
	}
	for _, name := range slices.Sorted(maps.Keys(routers)) {
		a := routers[name]
		if a.bad {
			continue
		}
		label := func(key string) string {
			if l := a.labels[key]; l != "" || key == "host" || key == "path" {
				return l
			}
			return common.labels[key]
		}
		r.router(name, label)
	}
}

// router makes the routes of one router. label is the name of the label that holds a key, "" for none.
func (r *reader) router(name string, label func(key string) string) {
	at := label("host")
	if at == "" {
		missing := "quaymaster.host"
		if name != "" {
			missing = "quaymaster." + name + ".host"
		}
		r.refuse(missing, "write "+missing+"=app.example.com", "there is no such label, and without a host there is no route")
		return
	}
	target, ok := r.target(label("port"), r.c.Labels[label("port")], label("network"), false)
	hosts, fine := r.list(at)
	var paths []string
	if l := label("path"); l != "" {
		var well bool
		paths, well = r.list(l)
		fine = fine && well
	}
	if !ok || !fine {
		return
	}
	type door struct {
		plain bool
		port  uint16
	}
	var doors []door
	at2 := map[door][]string{}
	for _, h := range hosts {
		plain, host, port, err := splitHost(h)
		if err != "" {
			r.refuse(at, "write app.example.com, http://app.example.com or app.example.com:8443", "%s", err)
			return
		}
		d := door{plain, port}
		if at2[d] == nil {
			doors = append(doors, d)
		}
		if !slices.Contains(at2[d], host) {
			at2[d] = append(at2[d], host)
		}
	}
	for i, d := range doors {
		r.routes = append(r.routes, Route{
			Name: r.name(name, i), Hosts: at2[d], Plain: d.plain, Port: d.port, Paths: paths, Target: target, HostLabel: at, PathLabel: label("path"),
		})
	}
}

// name is what the i-th route of a router is called.
func (r *reader) name(router string, i int) string {
	s := r.c.Name
	if router != "" {
		s += ":" + router
	}
	if i > 0 {
		s += "." + strconv.Itoa(i+1)
	}
	return s + "@" + r.c.Engine
}

// list splits a value at its commas.
func (r *reader) list(label string) ([]string, bool) {
	var out []string
	for _, s := range strings.Split(r.c.Labels[label], ",") {
		if s = strings.TrimSpace(s); s == "" {
			r.refuse(label, "write one value, or several with a comma between them", "it has an empty entry")
			return nil, false
		}
		out = append(out, s)
	}
	if len(out) > maxList {
		r.refuse(label, "write "+strconv.Itoa(maxList)+" at most", "it lists %d entries", len(out))
		return nil, false
	}
	return out, true
}

// splitHost reads a host as the key of a site is read: NAME, http://NAME, NAME:PORT.
func splitHost(s string) (plain bool, host string, port uint16, err string) {
	rest := s
	if scheme, after, has := strings.Cut(s, "://"); has {
		switch scheme {
		case "http":
			plain = true
		case "https":
		default:
			return false, "", 0, "there is no scheme " + clip(scheme)
		}
		rest = after
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.HasSuffix(rest, "]") {
		n, bad := strconv.ParseUint(rest[i+1:], 10, 16)
		if bad != nil || n == 0 {
			return false, "", 0, clip(rest[i+1:]) + " is no port"
		}
		rest, port = rest[:i], uint16(n)
	}
	return plain, strings.ToLower(rest), port, ""
}

// target is where the container is reached: where this host publishes the port, else its address in a network that this
// host is in.
func (r *reader) target(label, number, network string, lowest bool) (string, bool) {
	port, ok := r.port(label, number, lowest)
	if !ok {
		return "", false
	}
	text := strconv.Itoa(int(port))
	if network != "" {
		return r.inNetwork(network, text)
	}
	for _, p := range r.c.Ports {
		if p.Number != port || !p.At.IsValid() {
			continue
		}
		ip := p.At.Addr().Unmap()
		switch ip {
		case netip.IPv4Unspecified():
			ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		case netip.IPv6Unspecified():
			ip = netip.IPv6Loopback()
		}
		return netip.AddrPortFrom(ip, p.At.Port()).String(), true
	}
	if r.c.Shares {
		return net.JoinHostPort("127.0.0.1", text), true
	}
	for _, n := range r.c.Networks {
		if n.Near && n.IP.IsValid() {
			return net.JoinHostPort(n.IP.String(), text), true
		}
	}
	r.refuse(label, "publish it: -p 127.0.0.1::"+text, "port %s is not published, and this host is in none of the container's networks", text)
	return "", false
}

func (r *reader) inNetwork(label, port string) (string, bool) {
	name := strings.TrimSpace(r.c.Labels[label])
	for _, n := range r.c.Networks {
		if n.Name != name {
			continue
		}
		if !n.Near || !n.IP.IsValid() {
			r.refuse(label, "publish the port instead: -p 127.0.0.1::"+port, "this host is not in network %s", clip(name))
			return "", false
		}
		return net.JoinHostPort(n.IP.String(), port), true
	}
	r.refuse(label, "name one that it is in", "the container is not in network %s", clip(name))
	return "", false
}

// port is the one of the label, else the only one that the container exposes, or the lowest.
func (r *reader) port(label, number string, lowest bool) (uint16, bool) {
	if label != "" {
		n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 16)
		if err != nil || n == 0 {
			r.refuse(label, "write a number from 1 to 65535", "%s is no port", clip(number))
			return 0, false
		}
		return uint16(n), true
	}
	var known []uint16
	for _, p := range r.c.Ports {
		if !slices.Contains(known, p.Number) {
			known = append(known, p.Number)
		}
	}
	switch {
	case len(known) == 0:
		r.refuse("quaymaster.port", "write quaymaster.port=8080", "the container exposes no port, so it must be said")
		return 0, false
	case len(known) > 1 && !lowest:
		r.refuse("quaymaster.port", fmt.Sprintf("write quaymaster.port=%d, or another of them", known[0]), "the container exposes %d ports, so it must be said", len(known))
		return 0, false
	}
	return slices.Min(known), true
}

// isName reports whether s is a DNS label.
func isName(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, b := range []byte(s) {
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' {
			return false
		}
	}
	return true
}

// clip is a text of strangers, quoted and short.
func clip(s string) string { return strconv.QuoteToASCII(clipped(s)) }

func clipped(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:77], "") + "..."
	}
	return s
}
