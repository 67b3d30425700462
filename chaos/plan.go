//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/chaos/load"
)

// role is what a port of the pool is for. A port never changes its role.
type role uint8

const (
	mixed   role = iota // HTTP, TLS and a raw tunnel
	tunnel              // one tunnel, whose target speaks first
	proxied             // HTTP and TLS behind a PROXY header
	roles
)

// pool is the ports that plans choose from, by role.
type pool [roles][]int

// Ports are taken in blocks, below the ephemeral ones and those of this module's other tests. Whoever listens on the
// first port of a block has the rest, so runs that go on at the same time do not meet.
const (
	lowestPort = 10000
	blockSize  = 60
	blockCount = 50
	targetsAt  = 20 // where in a block the ports of targets begin
)

// newPool claims a block of ports that nobody holds.
func newPool(rng *rand.Rand) (p pool, claim net.Listener, err error) {
	for _, i := range rng.Perm(blockCount) {
		first := lowestPort + blockSize*i
		if claim, err = net.Listen("tcp", fmt.Sprintf(":%d", first)); err != nil {
			continue
		}
		if p, ok := poolAt(first + 1); ok {
			return p, claim, nil
		}
		_ = claim.Close()
	}
	return p, nil, fmt.Errorf("no block of free ports from %d to %d", lowestPort, lowestPort+blockSize*blockCount)
}

func poolAt(port int) (p pool, ok bool) {
	for r, n := range [roles]int{mixed: 6, tunnel: 3, proxied: 2} {
		for range n {
			if !free(port) {
				return p, false
			}
			p[r] = append(p[r], port)
			port++
		}
	}
	return p, true
}

func (p pool) all() []int { return slices.Concat(p[:]...) }

func (p pool) role(port int) role {
	for r, ports := range p {
		if slices.Contains(ports, port) {
			return role(r)
		}
	}
	return roles
}

// flips reports whether the port may be written as an address. No route of the API ever stands on such a port, so all
// routes agree on how it is written.
func flips(port int) bool { return port%2 == 0 }

// route is one rule. It is never changed.
type route struct {
	name    string
	class   load.Class
	wild    bool // takes every name of the domain
	port    int
	targets []string
	close   bool
	send    int // PROXY version to targets, 0 = none
	api     bool
}

const domain = "chaos.test"

func (r *route) host() string {
	switch {
	case r.class != load.HTTP && r.class != load.TLS:
		return ""
	case r.wild:
		return "*." + domain
	}
	return r.name + "." + domain
}

// plan is one configuration. It is never changed once it is shared.
type plan struct {
	routes   []*route     // by name
	specific map[int]bool // ports that are written as 127.0.0.1:P
	pool     pool
	targets  []*target
}

func (p *plan) clone() *plan {
	return &plan{routes: slices.Clone(p.routes), specific: maps.Clone(p.specific), pool: p.pool, targets: p.targets}
}

// At is what clients of an endpoint must find: the route of the name, else the wildcard, else, for TLS, the raw tunnel
// of the port.
func (p *plan) At(e load.Endpoint) load.Value {
	var v load.Value
	var best, raw *route
	for _, r := range p.routes {
		if r.port != e.Port {
			continue
		}
		v.Held = true
		v.Plain = v.Plain || r.class == load.HTTP
		v.TLS = v.TLS || r.class == load.TLS
		if r.class == load.Raw {
			raw = r
		}
		if r.class == e.Class && (r.host() == e.Name || r.wild && best == nil) {
			best = r
		}
	}
	if best == nil && e.Class == load.TLS {
		best = raw
	}
	if best != nil {
		v.Route, v.Targets, v.Close, v.SendProxy = best.name, best.targets, best.close, best.send != 0
	}
	return v
}

// Targets are those of a route.
func (p *plan) Targets(name string) ([]string, bool) {
	if r := p.route(name); r != nil {
		return r.targets, true
	}
	return nil, false
}

func (p *plan) route(name string) *route {
	for _, r := range p.routes {
		if r.name == name {
			return r
		}
	}
	return nil
}

// ports are those that some route wants, in order.
func (p *plan) ports() []int {
	var out []int
	for _, r := range p.routes {
		out = append(out, r.port)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// written is how configuration writes a port.
func (p *plan) written(port int) string {
	if p.specific[port] {
		return fmt.Sprintf("127.0.0.1:%d", port)
	}
	return fmt.Sprintf(":%d", port)
}

// users are the routes of a port by name.
func (p *plan) users(port int) []string {
	var out []string
	for _, r := range p.routes {
		if r.port == port {
			out = append(out, r.name)
		}
	}
	slices.Sort(out)
	return out
}

// with puts a route in the place of the one of its name.
func (p *plan) with(r *route) {
	p.routes = append(slices.DeleteFunc(p.routes, func(o *route) bool { return o.name == r.name }), r)
	slices.SortFunc(p.routes, func(a, b *route) int { return strings.Compare(a.name, b.name) })
}

// without takes a route out, and with the last one that takes requests the raw tunnel of its port: alone there, the
// tunnel would take everything that comes, which is right and says nothing.
func (p *plan) without(name string) {
	gone := p.route(name)
	if gone == nil {
		return
	}
	p.routes = slices.DeleteFunc(p.routes, func(r *route) bool { return r.name == name })
	if !p.has(gone.port, load.HTTP) {
		p.routes = slices.DeleteFunc(p.routes, func(r *route) bool { return r.port == gone.port && r.class == load.Raw })
	}
}

func (p *plan) has(port int, c load.Class) bool {
	return slices.ContainsFunc(p.routes, func(r *route) bool { return r.port == port && r.class == c })
}

// yaml is the file's part of the configuration.
func (p *plan) yaml(head string) string {
	var b strings.Builder
	b.WriteString(head)
	if ports := p.proxied(); len(ports) > 0 {
		fmt.Fprintf(&b, "proxy_protocol: {ports: [%s], from: [127.0.0.0/8], policy: require}\n", strings.Join(ports, ", "))
	}
	b.WriteString("routes:\n")
	for _, r := range p.routes {
		if !r.api {
			o := p.body(r)
			o["name"] = r.name
			fmt.Fprintf(&b, "  - %s\n", o)
		}
	}
	return b.String()
}

// proxied are the wanted ports whose clients send a PROXY header.
func (p *plan) proxied() (out []string) {
	for _, port := range p.ports() {
		if p.pool.role(port) == proxied {
			out = append(out, fmt.Sprintf("%q", p.written(port)))
		}
	}
	return out
}

// object is a part of a configuration, in JSON, which is YAML.
type object map[string]any

// body is a route as configuration writes it, without its name.
func (p *plan) body(r *route) object {
	match := object{"ports": []string{p.written(r.port)}}
	if h := r.host(); h != "" {
		match["domains"] = []string{h}
	} else {
		match["protocols"] = []string{"tcp"}
	}
	var targets []string
	for _, id := range r.targets {
		t := p.target(id)
		port := t.shared
		if r.class == load.First {
			port = t.first
		}
		targets = append(targets, fmt.Sprintf("127.0.0.1:%d", port))
	}
	action := object{"targets": targets}
	switch r.class {
	case load.TLS:
		action["tls"] = object{"mode": "passthrough"}
	case load.HTTP:
		action["pool"] = object{"idle": "1s"}
	}
	if r.send > 0 {
		action["send_proxy_protocol"] = fmt.Sprintf("v%d", r.send)
	}
	remove := "drain"
	if r.close {
		remove = "close"
	}
	return object{"match": match, "action": action, "on_remove": remove}
}

func (o object) String() string {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err) // made of text alone
	}
	return string(b)
}

func (p *plan) target(id string) *target {
	i := slices.IndexFunc(p.targets, func(t *target) bool { return t.id == id })
	return p.targets[i]
}
