//go:build linux

package load

import (
	"math"
	"testing"
)

// told is a configuration that says the same about every endpoint.
type told struct {
	Value
	routes map[string][]string
}

func (c told) At(Endpoint) Value                           { return c.Value }
func (c told) Targets(name string) (ids []string, ok bool) { ids, ok = c.routes[name]; return ids, ok }

// over is a configuration in which the endpoint has route r to targets t1 and t2, with changes.
func over(change ...func(*told)) told {
	c := told{
		Value:  Value{Route: "r", Targets: []string{"t1", "t2"}, Held: true, Plain: true},
		routes: map[string][]string{"r": {"t1", "t2"}, "other": {"t3"}},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// without takes the route away; the port stays for others if plain.
func without(plain bool) func(*told) {
	return func(c *told) {
		c.Value = Value{Held: plain, Plain: plain}
		delete(c.routes, "r")
	}
}

func closes(c *told) { c.Close = true }

// history is a World in which the configurations follow each other every 100 ticks from 0 on.
func history(all ...told) *World {
	w := NewWorld(all[0])
	w.spans[0].from = 0
	for i, c := range all[1:] {
		at := int64(i+1) * 100
		w.spans[i].until = at
		w.spans = append(w.spans, span{window: window{at, math.MaxInt64}, config: c})
	}
	return w
}

// from10to50 is an exchange that took place in the first configuration.
func from10to50(o Outcome, change ...func(*Report)) Report {
	r := Report{Endpoint: Endpoint{Class: HTTP, Port: 1}, Opened: 10, Began: 10, Ended: 50, Outcome: o}
	if o == Answered {
		r.Target = "t1"
	}
	for _, f := range change {
		f(&r)
	}
	return r
}

// moved takes the route elsewhere, and gives it another target.
func moved(c *told) {
	without(true)(c)
	c.routes["r"] = []string{"t3"}
}

func raw(r *Report)      { r.Endpoint.Class = Raw }
func safe(r *Report)     { r.Safe = true }
func until150(r *Report) { r.Ended = 150 }
func byT3(r *Report)     { r.Target = "t3" }
func reused(r *Report)   { r.Reused = true }
func at(t int64) func(*Report) {
	return func(r *Report) { r.Opened, r.Began, r.Ended = t, t, t+40 }
}

const (
	noEnd    = "an end that nothing allows"
	twice    = "a request that may not be repeated was sent twice"
	needless = "a request was sent twice although no target went"
)

// TestChaos_RulesExcuseTheirOwnCaseAlone holds each rule, and what is never allowed, against a case on either side of it.
func TestChaos_RulesExcuseTheirOwnCaseAlone(t *testing.T) {
	t1 := []string{"t1"}
	killed := func(w *World) { w.down[Machine] = []window{{20, 30}} }
	targetKilled := func(w *World) { w.down["t1"] = []window{{20, 30}} }
	taken := func(w *World) { w.taken[1] = []window{{0, 60}} }
	for name, c := range map[string]struct {
		world   *World
		change  func(*World)
		r       Report
		reached []string
		want    string
	}{
		"answered":                             {world: history(over()), r: from10to50(Answered), reached: t1},
		"answered, not written down":           {world: history(over()), r: from10to50(Answered), want: "an answer that its target did not write down"},
		"answered by a stranger":               {world: history(over()), r: from10to50(Answered, byT3), reached: []string{"t3"}, want: "an answer of a target that its endpoint never led to"},
		"the target its route gets":            {world: history(over(), over(moved)), r: from10to50(Answered, byT3, until150), reached: []string{"t3"}},
		"the target its route got":             {world: history(over(), over(moved)), r: from10to50(Answered, byT3, at(150)), reached: []string{"t3"}, want: noEnd},
		"the target its route is to get":       {world: history(over(), over(moved)), r: from10to50(Answered, byT3), reached: []string{"t3"}, want: "an answer of a target that its endpoint never led to"},
		"reached a stranger":                   {world: history(over()), change: killed, r: from10to50(Cut), reached: []string{"t3"}, want: "a request at a target that its endpoint never led to"},
		"nobody heard of a PROXY header":       {world: history(over(func(c *told) { c.SendProxy = true })), r: from10to50(Answered), reached: t1, want: "send_proxy_protocol not as configured"},
		"wrong":                                {world: history(over()), change: killed, r: from10to50(Wrong), want: noEnd},
		"silence":                              {world: history(over()), change: killed, r: from10to50(TimedOut), want: noEnd},
		"closed without a reason":              {world: history(over()), r: from10to50(Closed), want: noEnd},
		"refused in a reload that keeps it":    {world: history(over(), over()), r: from10to50(Refused, until150), want: noEnd},
		"cut in a reload that keeps it":        {world: history(over(closes), over(closes)), r: from10to50(Cut, raw, until150), reached: t1, want: noEnd},
		"cut in a kill":                        {world: history(over()), change: killed, r: from10to50(Cut), reached: t1},
		"refused after a kill":                 {world: history(over()), change: killed, r: from10to50(Refused, at(40)), want: noEnd},
		"a connection from before a kill":      {world: history(over()), change: killed, r: from10to50(Closed, at(40), reused, func(r *Report) { r.Opened = 10 })},
		"502 for a target that is killed":      {world: history(over()), change: targetKilled, r: from10to50(Unavailable), reached: t1},
		"502 for another target":               {world: history(over()), change: targetKilled, r: from10to50(Unavailable), reached: []string{"t2"}, want: noEnd},
		"502 without a reason":                 {world: history(over()), r: from10to50(Unavailable), want: noEnd},
		"refused when its target is killed":    {world: history(over()), change: targetKilled, r: from10to50(Refused), want: noEnd},
		"sent twice":                           {world: history(over()), change: targetKilled, r: from10to50(Answered), reached: []string{"t2", "t1"}, want: twice},
		"sent twice, and may be":               {world: history(over()), change: targetKilled, r: from10to50(Answered, safe), reached: []string{"t2", "t1"}},
		"sent twice for nothing":               {world: history(over()), r: from10to50(Answered, safe), reached: []string{"t2", "t1"}, want: needless},
		"cut when its route closes":            {world: history(over(closes), over(without(true))), r: from10to50(Cut, until150), reached: t1},
		"cut when its route drains":            {world: history(over(), over(without(true))), r: from10to50(Cut, until150), reached: t1, want: noEnd},
		"cut when another route closes":        {world: history(over(closes), over(closes, func(c *told) { delete(c.routes, "other") })), r: from10to50(Cut, until150), reached: t1, want: noEnd},
		"a tunnel whose target goes":           {world: history(over(closes), over(closes, func(c *told) { c.routes["r"] = []string{"t2"} })), r: from10to50(Cut, raw, until150), reached: t1},
		"a request whose target goes":          {world: history(over(closes), over(closes, func(c *told) { c.routes["r"] = []string{"t2"} })), r: from10to50(Cut, until150), reached: t1, want: noEnd},
		"404 where there is a route":           {world: history(over()), r: from10to50(NotFound), want: noEnd},
		"404 where there is none":              {world: history(over(without(true))), r: from10to50(NotFound)},
		"404 for a request that a target got":  {world: history(over(), over(without(true))), r: from10to50(NotFound, until150), reached: t1, want: noEnd},
		"refused where nobody listens":         {world: history(over(without(false))), r: from10to50(Refused)},
		"refused on an old connection":         {world: history(over(without(false))), r: from10to50(Refused, reused), want: noEnd},
		"closed where nobody listens":          {world: history(over(without(false))), r: from10to50(Closed), want: noEnd},
		"closed while the port goes":           {world: history(over(), over(without(false))), r: from10to50(Closed, until150)},
		"closed while the port goes, received": {world: history(over(), over(without(false))), r: from10to50(Closed, until150), reached: t1, want: noEnd},
		"somebody else answers":                {world: history(over()), r: from10to50(Foreign), want: noEnd},
		"somebody else answers on his port":    {world: history(over()), change: taken, r: from10to50(Foreign)},
	} {
		if c.change != nil {
			c.change(c.world)
		}
		if got := gather(c.world, &c.r, c.reached).violation(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
