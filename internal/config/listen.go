package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// listener is one socket that routes want, while it is put together.
type listener struct {
	addr     plan.Addr
	users    []string
	ref      *ref // the first that wants it
	at       spot
	object   *form.PortObject // the policy, and who wrote it
	objectBy *ref
	objectAt spot
	fallback []plan.Addr
}

// listen makes the ports of what routes want.
func (l *load) listen(p *plan.Plan, routes []*ref) {
	byAddr := map[plan.Addr]*listener{}
	named := slices.Clone(routes)
	slices.SortFunc(named, func(a, b *ref) int {
		l.breathe()
		return strings.Compare(a.user, b.user)
	})
	for _, r := range named {
		l.breathe()
		for i := range r.wishes {
			l.want(byAddr, r, &r.wishes[i])
		}
	}
	list := make([]*listener, 0, len(byAddr))
	for _, ln := range byAddr {
		list = append(list, ln)
	}
	slices.SortFunc(list, func(a, b *listener) int {
		l.breathe()
		return a.addr.Compare(b.addr)
	})
	if len(list) > maxRange {
		ln := list[maxRange]
		l.errs = append(l.errs, l.at(ln.ref, ln.at, "write fewer", "the configuration wants %d ports, more than %d", len(list), maxRange))
	}
	list = l.swallow(byAddr, list)
	for _, ln := range list {
		l.breathe()
		p.Ports = append(p.Ports, l.port(ln))
		p.Where["port/"+ln.addr.String()] = ln.ref.pos(ln.at)
	}
	l.headers(p)
	l.busyWithUs(byAddr, list)
	l.ownAddresses(list)
	for i, port := range p.Ports {
		l.breathe()
		if old := l.ports[port.Addr]; old != nil && reflect.DeepEqual(old, port) {
			p.Ports[i] = old
		}
	}
}

// want adds one wish to its listener.
func (l *load) want(byAddr map[plan.Addr]*listener, r *ref, w *wish) {
	ln := byAddr[w.addr]
	if ln == nil {
		ln = &listener{addr: w.addr, ref: r, at: w.at}
		byAddr[w.addr] = ln
	}
	if n := len(ln.users); n == 0 || ln.users[n-1] != r.user {
		ln.users = append(ln.users, r.user)
	}
	if w.object != nil {
		l.policy(ln, r, w.at, w.object, w.fallback)
	}
}

// policy gives a listener the policy of a port object. Two that differ are a contradiction.
func (l *load) policy(ln *listener, r *ref, at spot, o *form.PortObject, fallback []plan.Addr) {
	if ln.object == nil {
		ln.object, ln.objectBy, ln.objectAt, ln.fallback = o, r, at, fallback
		return
	}
	a, b := *ln.object, *o
	a.Port, b.Port = form.PortText{}, form.PortText{}
	a.Fallback, b.Fallback = nil, nil
	if !reflect.DeepEqual(a, b) || !slices.Equal(ln.fallback, fallback) {
		l.errs = append(l.errs, l.at(r, at, "write the same, or a bare port in one of them", "port %s has another policy at %s",
			ln.addr, place(ln.objectBy.pos(ln.objectAt))))
	}
}

// swallow merges each address into the wildcard that covers it. The rest is returned in order.
func (l *load) swallow(byAddr map[plan.Addr]*listener, list []*listener) []*listener {
	var out []*listener
	for _, ln := range list {
		into := covering(byAddr, ln.addr)
		if into == nil {
			out = append(out, ln)
			continue
		}
		into.users = sorted(append(into.users, ln.users...), strings.Compare)
		if ln.object != nil {
			l.policy(into, ln.objectBy, ln.objectAt, ln.object, ln.fallback)
		}
	}
	return out
}

func covering(byAddr map[plan.Addr]*listener, a plan.Addr) *listener {
	if a.Network != plan.TCP || a.Name != "" {
		return nil
	}
	for _, wild := range []plan.Addr{
		plan.TCPAddr(netip.Addr{}, a.Port), plan.TCPAddr(netip.IPv4Unspecified(), a.Port), plan.TCPAddr(netip.IPv6Unspecified(), a.Port),
	} {
		if ln := byAddr[wild]; ln != nil && wild != a && wild.Covers(a) {
			return ln
		}
	}
	return nil
}

func (l *load) port(ln *listener) *plan.Port {
	g := &l.file.PortPolicy
	port := &plan.Port{
		Addr: ln.addr, Fallback: ln.fallback, Users: ln.users,
		Policy: plan.PortPolicy{OnBusy: g.OnBusy, GiveUpAfter: time.Duration(g.GiveUpAfter), TakeOver: g.TakeOver, ReusePort: g.ReusePort},
	}
	if o := ln.object; o != nil {
		if o.OnBusy != nil {
			port.Policy.OnBusy = *o.OnBusy
		}
		if o.GiveUpAfter != nil {
			port.Policy.GiveUpAfter = time.Duration(*o.GiveUpAfter)
		}
		if o.TakeOver != nil {
			port.Policy.TakeOver = *o.TakeOver
		}
		if o.ReusePort != nil {
			port.Policy.ReusePort = *o.ReusePort
		}
	}
	return port
}

// headers puts proxy_protocol on its ports.
func (l *load) headers(p *plan.Plan) {
	f := l.file.ProxyProtocol
	if f == nil {
		return
	}
	from := networks(f.From)
	if len(f.From) == 0 {
		from = networks(l.file.TrustedProxies)
	}
	if len(from) == 0 && len(l.errs) == 0 {
		l.fault("proxy_protocol", "write from: [10.0.0.0/8], or trusted_proxies", "nobody may send a PROXY header")
	}
	if len(f.Ports) == 0 && len(l.errs) == 0 {
		l.fault("proxy_protocol", "write ports: [443]", "proxy_protocol says no port")
	}
	read := &plan.ProxyProtocol{From: from, Require: f.Policy == "require"}
	b := &builder{scope: &l.scope, it: &item{}}
	for i := range f.Ports {
		path := fmt.Sprintf("proxy_protocol.ports[%d]", i)
		found := false
		if f.Ports[i].Object {
			l.fault(path, "write the number alone", "the policy of a port is written where it is listened on")
		}
		for _, w := range b.expand(nil, &f.Ports[i], spot{}, l.faultAt(path, l.placeOf(path))) {
			for _, port := range p.Ports {
				bare := f.Ports[i].Port.Bare && w.addr.Network == port.Addr.Network && w.addr.Port == port.Addr.Port && port.Addr.Name == ""
				if bare || port.Addr.Overlaps(w.addr) {
					port.Proxy, found = read, true
				}
			}
		}
		if at := l.placeOf(path); !found && len(l.errs) == 0 {
			l.warnings = append(l.warnings, Warning{Error: Error{
				File: at.File, Line: at.Line, Col: at.Col, Path: path,
				Message: "nothing listens on port " + f.Ports[i].Port.Text, Remedy: "leave it out, or write a route for it",
			}})
		}
	}
}

// busyWithUs finds fallbacks that a port of our own makes busy.
func (l *load) busyWithUs(byAddr map[plan.Addr]*listener, list []*listener) {
	for _, ln := range list {
		for _, fb := range ln.fallback {
			other := byAddr[fb]
			if other == nil {
				other = covering(byAddr, fb)
			}
			if other != nil {
				l.errs = append(l.errs, l.at(ln.objectBy, ln.objectAt, "choose another fallback",
					"the fallback %s is a port of its own, wanted at %s", fb, place(other.ref.pos(other.at))))
			}
		}
	}
}

// leased finds ports that app_ports, where it is written, would lease away. The default range gives way to any port.
func (l *load) leased(own map[string]plan.Addr, list []*listener) {
	if l.places["app_ports"].File == "" {
		return
	}
	leases := plan.PortRange{Lo: l.file.AppPorts.Lo, Hi: l.file.AppPorts.Hi}
	for _, ln := range list {
		for _, a := range append([]plan.Addr{ln.addr}, ln.fallback...) {
			if a.Network == plan.TCP && leases.Has(a.Port) {
				l.fault("app_ports", "choose another range, or another port there", "%s covers %s, the port of %s at %s",
					leases, a, ln.users[0], place(ln.ref.pos(ln.at)))
				break
			}
		}
	}
	for _, path := range []string{"admin.address", "metrics.address"} {
		if a, ok := own[path]; ok && leases.Has(a.Port) {
			at := l.placeOf(path)
			l.fault("app_ports", "choose another range, or another port there", "%s covers %s, which is %s at %s:%d:%d",
				leases, a, path, at.File, at.Line, at.Col)
		}
	}
}

// ownAddresses finds ports of routes that metrics and admin want, too, and both wanting the same.
func (l *load) ownAddresses(list []*listener) {
	own := map[string]plan.Addr{}
	for _, o := range []struct{ path, address string }{
		{"metrics.address", string(l.file.Metrics.Address)}, {"admin.address", string(l.file.Admin.Address)},
	} {
		if o.address == "" {
			continue
		}
		var text form.PortText
		if text.ReadText(o.address) != nil {
			continue // found wrong when it was read
		}
		own[o.path] = plan.TCPAddr(text.IP, text.Lo)
	}
	if l.file.Admin.Socket != "" {
		own["admin.socket"] = plan.Addr{Network: plan.Unix, Path: l.file.Admin.Socket}
	}
	l.leased(own, list)
	for path, addr := range own {
		for _, ln := range list {
			if ln.addr.Overlaps(addr) {
				l.fault(path, "choose another port", "%s is also the port of %s at %s", addr, ln.users[0], place(ln.ref.pos(ln.at)))
			}
		}
	}
	if m, ok := own["metrics.address"]; ok {
		if a, ok := own["admin.address"]; ok && m.Overlaps(a) {
			at := l.placeOf("metrics.address")
			l.fault("admin.address", "choose another port", "%s is also metrics.address at %s:%d:%d", a, at.File, at.Line, at.Col)
		}
	}
}
