//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/quaymaster/quaymaster/chaos/load"
)

// A gardener makes plans out of plans.
type gardener struct {
	rng  *rand.Rand
	next int
	bars func(port int) bool // ports that may not be wanted now
}

const (
	fewest = 8
	most   = 20
)

// first is the plan to begin with: something of every class.
func (g *gardener) first(p *plan) *plan {
	p = p.clone()
	for range 2 {
		for _, c := range []load.Class{load.HTTP, load.HTTP, load.TLS, load.Raw, load.First} {
			g.add(p, c, false)
		}
	}
	return p
}

// change returns p with a few things different.
func (g *gardener) change(p *plan) *plan {
	p = p.clone()
	for range 1 + g.rng.IntN(4) {
		g.step(p)
	}
	return p
}

func (g *gardener) step(p *plan) {
	own := slices.DeleteFunc(slices.Clone(p.routes), func(r *route) bool { return r.api })
	if len(own) < fewest {
		g.add(p, g.class(), false)
		return
	}
	r := *own[g.rng.IntN(len(own))]
	switch g.rng.IntN(8) {
	case 0, 1:
		if len(p.routes) < most {
			g.add(p, g.class(), false)
		}
	case 2:
		p.without(r.name)
	case 3:
		g.move(p, &r)
	case 4, 5:
		r.targets = g.choose(p)
		p.with(&r)
	case 6:
		r.close, r.send = g.rng.IntN(2) == 0, g.rng.IntN(3)
		p.with(&r)
	case 7:
		if flips(r.port) && !g.bars(r.port) {
			p.specific[r.port] = !p.specific[r.port]
		}
	}
}

// move puts a route on another port.
func (g *gardener) move(p *plan, r *route) {
	port, ok := g.port(p, r.class, r.wild, false)
	if !ok || port == r.port {
		return
	}
	p.without(r.name)
	r.port = port
	p.with(r)
}

func (g *gardener) class() load.Class {
	return []load.Class{load.HTTP, load.HTTP, load.HTTP, load.TLS, load.TLS, load.Raw, load.First}[g.rng.IntN(7)]
}

// add puts in a route of a class, if there is room for one.
func (g *gardener) add(p *plan, c load.Class, api bool) *route {
	r := &route{class: c, api: api, targets: g.choose(p), close: g.rng.IntN(3) == 0, wild: c == load.HTTP && !api && g.rng.IntN(6) == 0}
	if g.rng.IntN(4) == 0 {
		r.send = 1 + g.rng.IntN(2)
	}
	var ok bool
	if r.port, ok = g.port(p, c, r.wild, api); !ok {
		return nil
	}
	g.next++
	r.name = fmt.Sprintf("%s%d", c, g.next)
	p.with(r)
	return r
}

// port chooses one on which a route of the class can stand.
func (g *gardener) port(p *plan, c load.Class, wild, api bool) (int, bool) {
	from := slices.Concat(p.pool[mixed], p.pool[proxied])
	switch c {
	case load.Raw:
		from = slices.Clone(p.pool[mixed])
	case load.First:
		from = slices.Clone(p.pool[tunnel])
	}
	from = slices.DeleteFunc(from, func(port int) bool {
		return g.bars(port) || api && flips(port) ||
			c == load.Raw && (p.has(port, load.Raw) || !p.has(port, load.HTTP)) ||
			c == load.First && p.has(port, load.First) ||
			wild && slices.ContainsFunc(p.routes, func(r *route) bool { return r.port == port && r.wild })
	})
	if len(from) == 0 {
		return 0, false
	}
	return from[g.rng.IntN(len(from))], true
}

// choose takes one or two targets.
func (g *gardener) choose(p *plan) []string {
	order := g.rng.Perm(len(p.targets))
	out := []string{p.targets[order[0]].id}
	if g.rng.IntN(4) == 0 {
		out = append(out, p.targets[order[1]].id)
	}
	slices.Sort(out)
	return out
}

// guide tells clients where to go: mostly to what is there, now and then to what is not.
type guide struct{ world *load.World }

func (g *guide) plan() *plan {
	p, _ := g.world.Now().(*plan)
	return p
}

// Pick chooses an endpoint for a client.
func (g *guide) Pick(rng *rand.Rand, c load.Class) (load.Endpoint, bool) {
	p := g.plan()
	if rng.IntN(12) == 0 {
		return g.absent(p, rng, c), true
	}
	return pickOf(p, rng, func(r *route) bool { return r.class == c })
}

// Beside chooses another name on the same port.
func (g *guide) Beside(rng *rand.Rand, e load.Endpoint) (load.Endpoint, bool) {
	return pickOf(g.plan(), rng, func(r *route) bool { return r.class == load.HTTP && r.port == e.Port })
}

func pickOf(p *plan, rng *rand.Rand, fits func(*route) bool) (load.Endpoint, bool) {
	var some []*route
	for _, r := range p.routes {
		if fits(r) {
			some = append(some, r)
		}
	}
	if len(some) == 0 {
		return load.Endpoint{}, false
	}
	r := some[rng.IntN(len(some))]
	e := endpoint(p, rng, r.class, r.port, r.host())
	if r.wild {
		e.Name = fmt.Sprintf("any%d.%s", rng.IntN(100), domain)
	}
	return e, true
}

// absent is a name or a port that there may be no route for.
func (g *guide) absent(p *plan, rng *rand.Rand, c load.Class) load.Endpoint {
	from := slices.Concat(p.pool[mixed], p.pool[proxied])
	name := fmt.Sprintf("%s%d.%s", c, 1+rng.IntN(40), domain)
	switch c {
	case load.Raw:
		from, name = p.pool[mixed], ""
	case load.First:
		from, name = p.pool[tunnel], ""
	}
	return endpoint(p, rng, c, from[rng.IntN(len(from))], name)
}

func endpoint(p *plan, rng *rand.Rand, c load.Class, port int, name string) load.Endpoint {
	e := load.Endpoint{Class: c, Port: port, Name: name}
	if p.pool.role(port) == proxied {
		e.Proxy = 1 + rng.IntN(2)
	}
	return e
}
