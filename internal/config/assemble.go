package config

import (
	"cmp"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// ByNameRoute is the route that listen_addrs become. No route of a file can have its name.
const ByNameRoute = "by_name"

// assemble puts the items together and finds where they contradict each other.
func (l *load) assemble() *plan.Plan {
	p := &plan.Plan{Where: map[string]plan.Pos{}}
	l.older()
	l.byName()
	l.redirects()
	l.previews()
	l.containers()
	routes, upstreams := l.names(p)
	l.shared(upstreams)
	routes = l.twins(p, routes)
	l.settings(&p.Settings)
	challenges := l.certificates(p, routes)
	l.policies(routes)
	routes = append(routes, challenges...)
	l.listen(p, routes)
	l.strays(p)
	l.apps(p)
	if len(l.errs) > 0 {
		return nil
	}
	l.order(routes)
	for _, r := range routes {
		l.breathe()
		p.Routes = append(p.Routes, r.route)
		if r.upstream != nil {
			p.Upstreams = append(p.Upstreams, l.sameUpstream(r))
		}
	}
	for _, u := range upstreams {
		l.breathe()
		p.Upstreams = append(p.Upstreams, l.sameUpstream(u))
	}
	slices.SortFunc(p.Routes, func(a, b *plan.Route) int {
		l.breathe()
		return strings.Compare(a.Name, b.Name)
	})
	slices.SortFunc(p.Upstreams, func(a, b *plan.Upstream) int {
		l.breathe()
		return strings.Compare(a.Name, b.Name)
	})
	return p
}

// sameUpstream is the upstream of the last plan if it is equal, so that what did not change is the same pointer.
func (l *load) sameUpstream(r *ref) *plan.Upstream {
	if old := l.upstreams[r.upstream.Name]; old != nil && old != r.upstream && reflect.DeepEqual(old, r.upstream) {
		r.upstream = old
	}
	return r.upstream
}

// names finds each name's only bearer. A route of the API gives way to one of a file.
func (l *load) names(p *plan.Plan) (routes []*ref, upstreams map[string]*ref) {
	seen := map[string]*ref{} // the maps grow by pieces: thousands of places at once would be a stretch without a yield
	upstreams = map[string]*ref{}
	for i := range l.refs {
		l.breathe()
		r := &l.refs[i]
		switch {
		case r.route != nil:
			first := seen[r.name]
			switch {
			case first == nil:
				seen[r.name] = r
				routes = append(routes, r)
				p.Where["route/"+r.name] = r.pos(r.at)
			case r.implied:
			case r.layer == plan.FromAPI:
				l.warnings = append(l.warnings, Warning{Conflict: r.name, Error: l.at(r, r.at, "delete the one of the API",
					"route %q is also written in %s, which wins", r.name, place(first.pos(first.at)))})
			default:
				l.errs = append(l.errs, l.at(r, r.at, "give one of them another name", "route %q is also at %s", r.name, place(first.pos(first.at))))
			}
		case r.upstream != nil:
			if first := upstreams[r.name]; first != nil {
				l.errs = append(l.errs, l.at(r, r.at, "give one of them another name", "upstream %q is also at %s", r.name, place(first.pos(first.at))))
				continue
			}
			upstreams[r.name] = r
			p.Where["upstream/"+r.name] = r.pos(r.at)
		}
	}
	for _, r := range routes {
		l.breathe()
		if r.upstream == nil {
			continue
		}
		if u := upstreams[r.name]; u != nil {
			l.errs = append(l.errs, l.at(r, r.at, "write upstream: "+r.name+", or give one of them another name",
				"route %q has targets of its own, which bear its name, and there is an upstream of that name at %s", r.name, place(u.pos(u.at))))
		}
		p.Where["upstream/"+r.name] = p.Where["route/"+r.name]
	}
	return routes, upstreams
}

// place is a position as a person reads it.
func place(p plan.Pos) string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}

// at makes a mistake at a place of an item.
func (l *load) at(r *ref, s spot, remedy, format string, args ...any) Error {
	return l.below(r, nil, s, remedy, format, args...)
}

// atCert makes a mistake at the certificate of an item.
func (l *load) atCert(r *ref, remedy, format string, args ...any) Error {
	return l.below(r, r.certPath, r.certAt, remedy, format, args...)
}

func (l *load) below(r *ref, keys []string, s spot, remedy, format string, args ...any) Error {
	pos := r.pos(s)
	reader := strict.NewReader(strict.Options{Types: l.types})
	var path string
	reader.Under(append(r.path(), keys...), func() { path = reader.Path() })
	return Error{File: pos.File, Line: pos.Line, Col: pos.Col, Path: path, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// shared lets routes take over what the upstream they use says, where they say nothing themselves.
func (l *load) shared(upstreams map[string]*ref) {
	for i := range l.refs {
		l.breathe()
		r := &l.refs[i]
		if r.uses == "" {
			continue
		}
		u := upstreams[r.uses]
		if u == nil {
			known := make([]string, 0, len(upstreams))
			for name := range upstreams {
				known = append(known, name)
			}
			slices.Sort(known)
			remedy := "write it under upstreams"
			if near := strict.Nearest(r.uses, known); near != "" {
				remedy = "write " + near
			}
			l.errs = append(l.errs, l.at(r, r.usesAt, remedy, "there is no upstream %q", r.uses))
			continue
		}
		l.reach(r, u)
		if merged := r.merged(u.shared); merged != nil {
			route := *r.route
			route.Action = merged
			copied := *r.item // the item itself stays as it was read: its upstream may change alone
			copied.route = &route
			r.item = &copied
		}
	}
}

// reach finds targets that a route cannot use the way it treats TLS.
func (l *load) reach(r, u *ref) {
	for _, t := range u.upstream.Targets {
		switch {
		case t.TLS && r.route != nil && tunnel(r.route):
			l.errs = append(l.errs, l.at(r, r.usesAt, "use an upstream without https://",
				"a tunnel relays bytes as they are, and target %s of upstream %q begins TLS", t.Text, r.uses))
		case !t.TLS && r.route != nil && r.route.TLS != nil && r.route.TLS.Mode == plan.Reencrypt:
			l.errs = append(l.errs, l.at(r, r.usesAt, "write https:// before it in the upstream, or mode: terminate here",
				"TLS is to begin anew, and target %s of upstream %q is reached without", t.Text, r.uses))
		default:
			continue
		}
		return
	}
}

// merged is the action with what the upstream adds, nil if it adds nothing.
func (it *item) merged(s *plan.Forward) plan.Action {
	switch a := it.route.Action.(type) {
	case plan.Tunnel:
		if !it.own.proxy && s.SendProxy != a.SendProxy {
			a.SendProxy = s.SendProxy
			return a
		}
	case plan.Forward:
		was := a
		if !it.own.proxy {
			a.SendProxy = s.SendProxy
		}
		if !it.own.rewrite {
			a.Rewrite = s.Rewrite
		}
		if !it.own.request {
			a.RequestHeaders = s.RequestHeaders
		}
		if !it.own.response {
			a.ResponseHeaders = s.ResponseHeaders
		}
		if !it.own.retries {
			a.Retries = s.Retries
		}
		if !reflect.DeepEqual(a, was) {
			return a
		}
	}
	return nil
}

// twins finds routes that match the same set on one port. It returns the routes without those that nobody wrote and that
// have a twin.
func (l *load) twins(p *plan.Plan, routes []*ref) []*ref {
	first := make(map[string]int, len(routes))
	again := map[string][]*ref{}
	for i, r := range routes {
		l.breathe()
		if r.key == "" { // by_name
			continue
		}
		key := r.key
		if r.route.TLS != nil {
			key += " tls"
		}
		if j, ok := first[key]; !ok {
			first[key] = i
			continue
		} else if again[key] == nil {
			again[key] = []*ref{routes[j]}
		}
		again[key] = append(again[key], r)
	}
	twice := map[*ref]bool{}
	for _, like := range again {
		l.twinsOf(like, twice)
	}
	for r := range twice {
		delete(p.Where, "route/"+r.name)
	}
	return slices.DeleteFunc(routes, func(r *ref) bool { return twice[r] })
}

func (l *load) twinsOf(like []*ref, twice map[*ref]bool) {
	owner := map[plan.Addr]*ref{}
	slices.SortStableFunc(like, func(a, b *ref) int { // what somebody wrote first
		return strings.Compare(fmt.Sprint(a.implied), fmt.Sprint(b.implied))
	})
	for _, r := range like {
		told := false
		for _, w := range r.wishes {
			first := owner[w.addr]
			if first == nil {
				owner[w.addr] = r
			} else if r.implied && first != r {
				twice[r] = true
			} else if first != r && !told {
				told = true
				l.errs = append(l.errs, l.at(r, w.at, "remove one, or give one another match or priority",
					"routes %q and %q match the same on %s; the other one is at %s", r.name, first.name, w.addr, place(first.pos(first.at))))
			}
		}
	}
}

// older makes routes of ssh_routes.
func (l *load) older() {
	for i, s := range l.file.SSHRoutes {
		path := fmt.Sprintf("ssh_routes[%d]", i)
		at := l.placeOf(path + ".listen_port")
		if s.ListenPort == 0 || s.DestinationHost == "" || s.DestinationPort == 0 {
			if len(l.errs) == 0 {
				at = l.placeOf(path + ".destination_host")
				l.errs = append(l.errs, Error{
					File: at.File, Line: at.Line, Col: at.Col, Path: path, Message: "the SSH route is not complete",
					Remedy: "write {listen_port: 2222, destination_host: 10.0.0.5, destination_port: 22}",
				})
			}
			continue
		}
		r := ref{file: at.File, layer: plan.FromFile, piece: strict.Piece{Section: "ssh_routes", Index: i}, item: &item{}}
		target := net.JoinHostPort(string(s.DestinationHost), strconv.Itoa(int(s.DestinationPort)))
		f := form.Route{Name: form.Name(fmt.Sprintf("ssh-%d", s.ListenPort))}
		f.Defaults()
		f.Match.Protocols = []string{"ssh"}
		f.Match.Ports = l.sshPorts(uint16(s.ListenPort))
		f.Action = &form.Action{Targets: make([]form.Target, 1)}
		_ = f.Action.Targets[0].ReadText(target, nil) // of parts that were read before
		b := &builder{scope: &l.scope, r: strict.NewReader(l.options(at.File)), root: emptyNode, it: r.item}
		b.route(&f, plan.FromFile)
		r.at = spot{at.Line, at.Col}
		for j := range r.wishes {
			r.wishes[j].at = r.at
		}
		l.refs = append(l.refs, r)
	}
}

// sshPorts are the addresses of listen_addrs with that port, else the port itself.
func (l *load) sshPorts(port uint16) []form.Port {
	var out []form.Port
	for _, p := range l.file.ListenAddrs {
		if p.Port.Lo <= port && port <= p.Port.Hi {
			one := p.Port
			one.Lo, one.Hi = port, port
			out = append(out, form.Port{PortObject: form.PortObject{Port: one}})
		}
	}
	if out == nil {
		one := form.PortText{Text: strconv.Itoa(int(port)), Bare: true, Lo: port, Hi: port}
		out = []form.Port{{PortObject: form.PortObject{Port: one}}}
	}
	return out
}

// byName makes the route of listen_addrs.
func (l *load) byName() {
	if len(l.file.ListenAddrs) == 0 {
		return
	}
	at := l.placeOf("listen_addrs[0]")
	it := &item{name: ByNameRoute, user: ByNameRoute, at: spot{at.Line, at.Col}}
	b := &builder{scope: &l.scope, it: it}
	for i := range l.file.ListenAddrs {
		path := fmt.Sprintf("listen_addrs[%d]", i)
		where := l.placeOf(path)
		it.wishes = b.expand(it.wishes, &l.file.ListenAddrs[i], spot{where.Line, where.Col}, l.faultAt(path, where))
	}
	it.route = &plan.Route{
		Name: ByNameRoute, Source: plan.FromFile, Action: plan.ByName{}, Timeouts: globalClocks(&l.file.Timeouts), OnRemove: plan.DrainOnRemove,
	}
	for _, w := range it.wishes {
		it.route.Match.Ports = append(it.route.Match.Ports, w.addr)
	}
	it.route.Match.Ports = sorted(it.route.Match.Ports, plan.Addr.Compare)
	l.refs = append(l.refs, ref{file: at.File, layer: plan.FromFile, piece: strict.Piece{Section: "listen_addrs"}, item: it})
}

// placeOf is where a key of the form was written, or the nearest around it.
func (l *load) placeOf(path string) strict.Place {
	for {
		for _, p := range []string{path, path + ".port"} {
			if at, ok := l.places[p]; ok {
				return at
			}
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return strict.Place{}
		}
		path = path[:i]
	}
}

// faultAt notes mistakes at one place of the form.
func (l *load) faultAt(path string, at strict.Place) func(remedy, format string, args ...any) {
	return func(remedy, format string, args ...any) {
		l.errs = append(l.errs, Error{
			File: at.File, Line: at.Line, Col: at.Col, Path: path, Message: fmt.Sprintf(format, args...), Remedy: remedy,
		})
	}
}

// fault notes a mistake at a key of the form.
func (l *load) fault(path, remedy, format string, args ...any) {
	l.faultAt(path, l.placeOf(path))(remedy, format, args...)
}

// order gives the routes numbers that rise in the order they are written. A route that stays where it was among the
// others keeps its number, and with it its pointer: only what is new or has moved is numbered anew, into the gaps.
func (l *load) order(routes []*ref) {
	const gap = 1 << 20
	was := make([]int, len(routes))
	for i, r := range routes {
		l.breathe()
		if was[i] = r.route.Order; was[i] == 0 && l.routes[r.name] != nil {
			was[i] = l.routes[r.name].Order
		}
	}
	now := l.renumber(was, gap)
	for i, r := range routes {
		l.breathe()
		old := l.routes[r.name]
		if r.route.Order == now[i] && (old == r.route || old == nil) {
			continue
		}
		route := r.route
		if route.Order != now[i] {
			copied := *route
			copied.Order = now[i]
			route = &copied
		}
		if old != nil && old != route && reflect.DeepEqual(old, route) {
			route = old
		}
		r.route = route
	}
}

// renumber keeps the longest rising run of the old numbers (0 is none) and fits the others in between; where there is no
// room it starts from the beginning.
func (l *load) renumber(was []int, gap int) []int {
	keep := l.rising(was)
	now := make([]int, len(was))
	last, from := 0, 0 // the number before the open places, and where they begin
	for i := 0; i <= len(was); i++ {
		if i < len(was) && !keep[i] {
			continue
		}
		open := i - from
		next := last + (open+1)*gap
		if i < len(was) {
			next = was[i]
		}
		step := (next - last) / (open + 1)
		if step == 0 {
			return l.renumber(make([]int, len(was)), gap)
		}
		for j := range open {
			now[from+j] = last + (j+1)*step
		}
		if i < len(was) {
			now[i] = was[i]
		}
		last, from = next, i+1
	}
	return now
}

// rising marks a longest strictly rising run of the numbers above 0.
func (l *load) rising(was []int) []bool {
	var tails, before []int // tails[k]: where a run of k+1 ends lowest
	before = make([]int, len(was))
	for i, w := range was {
		l.breathe()
		if w <= 0 {
			continue
		}
		k, _ := slices.BinarySearchFunc(tails, w, func(j, w int) int { return cmp.Compare(was[j], w) })
		before[i] = -1
		if k > 0 {
			before[i] = tails[k-1]
		}
		if k == len(tails) {
			tails = append(tails, i)
		} else {
			tails[k] = i
		}
	}
	keep := make([]bool, len(was))
	if len(tails) > 0 {
		for i := tails[len(tails)-1]; i >= 0; i = before[i] {
			keep[i] = true
		}
	}
	return keep
}
