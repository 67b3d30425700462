//go:build linux

package load

import (
	"slices"
)

// facts are what was the case at some moment of an exchange.
type facts struct {
	r       *Report
	reached []string // the targets that wrote it down
	values  []Value  // what the configurations in force said about its endpoint, in order
	led     []string // the targets that it may have been led to
	tried   []Value  // the same of configurations that were refused
	ending  bool     // its route ended with on_remove: close

	machineDown, targetDown, taken bool
}

// A rule says how an exchange may end when something was the case. An exchange may end as any rule that holds allows.
type rule struct {
	when    string
	holds   func(f *facts) bool
	allows  []Outcome
	reached bool // also when a target has the request already; without it a route or a port that goes is no excuse
}

// rules is the whole of what is allowed; what is not here is a violation. A reload in which the endpoint keeps a route,
// an upgrade, a port that changes between wildcard and address, other routes that come and go: nothing of that
// stands here, so an exchange must end as if it had not been.
var rules = []rule{
	{"its endpoint has a route", (*facts).routed, []Outcome{Answered}, true},
	{"there is no route, the port has others that take requests", (*facts).unrouted, []Outcome{NotFound}, false},
	{"there is no route, the port has others that take TLS", (*facts).unnamed, []Outcome{Alert}, false},
	{"there is no route, and the port has none that speaks this", (*facts).unspoken, []Outcome{Closed}, false},
	{"the port is not held", (*facts).unheld, []Outcome{Refused}, false},
	{"the port comes or goes, or a reload that wanted it is refused", (*facts).moving, []Outcome{Closed}, false},
	{"its target is killed, until it serves again", func(f *facts) bool { return f.targetDown }, []Outcome{Unavailable, Closed, Cut}, true},
	{"its route ends, on_remove: close", func(f *facts) bool { return f.ending }, []Outcome{Closed, Cut}, true},
	{"quaymaster is killed while its connection is open, or has not served since", func(f *facts) bool { return f.machineDown }, []Outcome{Refused, Closed, Cut}, true},
	{"another process holds the port", func(f *facts) bool { return f.taken }, []Outcome{Refused, Foreign, Closed}, false},
}

// allowed is how the exchange may have ended.
func (f *facts) allowed() (out []Outcome, why []string) {
	for _, x := range rules {
		if x.holds(f) && (x.reached || len(f.reached) == 0) {
			out = append(out, x.allows...)
			why = append(why, x.when)
		}
	}
	return out, why
}

// some reports whether p holds of the endpoint in a configuration that was in force.
func (f *facts) some(p func(*Value) bool) bool {
	return slices.ContainsFunc(f.values, func(v Value) bool { return p(&v) })
}

func (f *facts) routed() bool { return f.some(func(v *Value) bool { return v.Route != "" }) }

// unrouted: a request on a connection that carried others gets a page wherever there is no route, also when its port has
// been given up.
func (f *facts) unrouted() bool {
	return f.r.Endpoint.Class == HTTP && f.some(func(v *Value) bool { return v.Route == "" && (v.Plain || f.r.Reused) })
}

func (f *facts) unnamed() bool {
	return f.r.Endpoint.Class == TLS && f.some(func(v *Value) bool { return v.Route == "" && v.TLS })
}

func (f *facts) unspoken() bool {
	return f.some(func(v *Value) bool {
		switch f.r.Endpoint.Class {
		case HTTP:
			return v.Route == "" && v.Held && !v.Plain && !f.r.Reused
		case TLS:
			return v.Route == "" && v.Held && !v.TLS
		default:
			return v.Route == "" && v.Held
		}
	})
}

func (f *facts) unheld() bool { return !f.r.Reused && f.some(func(v *Value) bool { return !v.Held }) }

func (f *facts) moving() bool {
	held := f.some(func(v *Value) bool { return v.Held }) || slices.ContainsFunc(f.tried, func(v Value) bool { return v.Held })
	return held && f.unheld()
}

// gather finds the facts of a report.
func gather(w *World, r *Report, reached []string) *facts {
	from, opened := r.Began, r.Began
	if r.Opened != 0 {
		opened = min(r.Began, r.Opened)
	}
	if r.Endpoint.Class.tunnelled() {
		from = opened // what was decided when the connection came in goes on
	}
	f := &facts{
		r: r, reached: reached,
		machineDown: w.wasDown(Machine, opened, r.Ended), taken: w.wasTaken(r.Endpoint.Port, r.Began, r.Ended),
	}
	spans := w.in(from, r.Ended)
	for i, s := range spans {
		v := s.config.At(r.Endpoint)
		if s.tried {
			f.tried = append(f.tried, v)
			continue
		}
		f.values = append(f.values, v)
		f.led = append(append(f.led, v.Targets...), becomes(v.Route, spans[i+1:])...)
		f.ending = f.ending || v.Close && ends(r, v, spans[i+1:])
	}
	down := reached
	if len(down) == 0 {
		for _, v := range f.values {
			down = append(down, v.Targets...)
		}
	}
	f.targetDown = slices.ContainsFunc(down, func(id string) bool { return w.wasDown(id, from, r.Ended) })
	return f
}

// becomes are the targets that a route has in later configurations. Targets change before routes do, so whoever was led to
// the route by the last word of a configuration may find those of the next there.
func becomes(route string, later []span) (out []string) {
	for _, s := range later {
		if !s.tried && route != "" {
			ids, _ := s.config.Targets(route)
			out = append(out, ids...)
		}
	}
	return out
}

// ends reports whether the route of v goes away in one of the later configurations: its name for anybody, one of its
// targets for a tunnel.
func ends(r *Report, v Value, later []span) bool {
	if v.Route == "" {
		return false
	}
	for _, s := range later {
		if s.tried {
			continue
		}
		left, there := s.config.Targets(v.Route)
		if !there {
			return true
		}
		gone := func(id string) bool { return !slices.Contains(left, id) }
		if r.Endpoint.Class.tunnelled() && slices.ContainsFunc(v.Targets, gone) {
			return true
		}
	}
	return false
}

// violation judges one report by the rules, and by what is never allowed. It returns the first thing that is wrong.
func (f *facts) violation() string {
	r := f.r
	may, _ := f.allowed()
	switch {
	case !slices.Contains(may, r.Outcome):
		return "an end that nothing allows"
	case r.Outcome == Answered && !slices.Contains(f.reached, r.Target):
		return "an answer that its target did not write down"
	case r.Target != "" && !f.routesTo(r.Target):
		return "an answer of a target that its endpoint never led to"
	case slices.ContainsFunc(f.reached, func(id string) bool { return !f.routesTo(id) }):
		return "a request at a target that its endpoint never led to"
	case len(f.reached) > 1 && !r.Safe:
		return "a request that may not be repeated was sent twice"
	case len(f.reached) > 1 && !f.anyDown():
		return "a request was sent twice although no target went"
	case r.Outcome == Answered && !f.some(func(v *Value) bool { return v.SendProxy == r.Proxied }):
		return "send_proxy_protocol not as configured"
	}
	return ""
}

func (f *facts) anyDown() bool { return f.targetDown }

func (f *facts) routesTo(id string) bool { return slices.Contains(f.led, id) }
