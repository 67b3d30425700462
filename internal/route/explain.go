package route

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A Step is one candidate of a lookup, in the order of precedence.
type Step struct {
	Rule    *Rule
	Matched bool   // this rule is the answer
	Reason  string // why it is not
}

// ExplainRequest answers a request the way Request does, and says of every other rule of the port why it was not it.
func (p *Port) ExplainRequest(q *Request) []Step {
	rule, verdict := p.Request(q)
	host, path := normalise(nil, q.Host), pathOf(q.Target)
	st := plainStage
	if q.TLS != nil {
		st = secureStage
	}
	var out []Step
	for _, m := range p.candidates(st, func(s spot) bool { return s.host.takes(host) && p.takesPath(candidate{s}, path) }) {
		s := Step{Rule: &m[0].rule.Rule}
		switch reason := p.whyNotRequest(q, m); {
		case verdict == Ambiguous:
			s.Reason = "the path can be read in ways that fall under different rules, so the request is refused"
			if reason != "" {
				s.Reason = reason
			}
		case s.Rule == rule:
			s.Matched = true
		case reason != "":
			s.Reason = reason
		case verdict == Misdirected:
			s.Reason = "its host has another TLS policy than the connection's server name, so the request is answered 421"
		case verdict == NoRoute:
			s.Reason = "its host has TLS routes on this port, which are not bypassed by name"
		default:
			s.Reason = "would match, but comes after " + rule.Route.Name
		}
		out = append(out, s)
	}
	return append(out, p.unseen(st)...)
}

// ExplainConn answers a connection the way Conn does, and says of every other rule of the port why it was not it.
func (p *Port) ExplainConn(q *ConnQuery) []Step {
	rule := p.Conn(q)
	host := q.host(nil)
	var out []Step
	for _, m := range p.candidates(connStage, func(s spot) bool { return s.host.takes(host) }) {
		s := Step{Rule: &m[0].rule.Rule}
		switch reason := whyNotConn(q, m); {
		case s.Rule == rule:
			s.Matched = true
		case reason != "":
			s.Reason = reason
		default:
			s.Reason = "would match, but comes after " + rule.Route.Name
		}
		out = append(out, s)
	}
	return append(out, p.unseen(connStage)...)
}

// candidate is a rule of one stage with all of its spots.
type candidate []spot

// candidates lists the rules of a stage in the order of the spots they would match at, or else of their first.
func (p *Port) candidates(st stage, fits func(spot) bool) []candidate {
	b := &builder{table: p.table}
	spots := b.sorted(p.members, st)
	all, fit := map[*rule]candidate{}, map[*rule]int{}
	for i, s := range spots {
		all[s.rule] = append(all[s.rule], s)
		if _, ok := fit[s.rule]; !ok && fits(s) {
			fit[s.rule] = i
		}
	}
	var out []candidate
	for i, s := range spots {
		at, ok := fit[s.rule]
		if ok && at == i || !ok && all[s.rule] != nil {
			out = append(out, all[s.rule])
			all[s.rule] = nil
		}
	}
	return out
}

// unseen lists the rules of the port that have no say in the stage.
func (p *Port) unseen(st stage) []Step {
	var out []Step
	for _, m := range p.members {
		r := &p.table.rules[m.rule]
		if r.in(st) {
			continue
		}
		s := Step{Rule: &r.Rule}
		switch {
		case st == connStage:
			s.Reason = "is for plain requests"
		case st == secureStage && r.Route.TLS == nil && r.requests:
			s.Reason = "is for plain requests, and this one comes over TLS"
		case r.Route.TLS != nil:
			s.Reason = "is for clients that start TLS"
			if st == secureStage {
				s.Reason = "passes TLS through to its target"
			}
		default:
			s.Reason = "is a tunnel for " + strings.Join(r.takes.Names(), ", ")
		}
		out = append(out, s)
	}
	return out
}

func whyNotConn(q *ConnQuery, spots candidate) string {
	r := spots[0].rule
	host := q.host(nil)
	if !takesHost(r, host) {
		return hostReason(r, q.Name)
	}
	switch r.connFault(q, plainAddr(q.Client)) {
	case faultKind:
		return fmt.Sprintf("takes %s, and this is %s", strings.Join(r.takes.Names(), ", "), q.Kind)
	case faultNoName:
		return "forwards by name, and the hello has none"
	case faultALPN:
		return fmt.Sprintf("wants ALPN for %s, and the hello offers %v", strings.Join(r.alpn.Names(), ", "), q.ALPN)
	case faultClient:
		return clientReason(r, q.Client)
	case faultClaim:
		return "our own handler " + r.Route.Action.(plan.Internal).Name + " waits for no such connection"
	}
	return ""
}

func (p *Port) whyNotRequest(q *Request, spots candidate) string {
	r := spots[0].rule
	host := normalise(nil, q.Host)
	if !takesHost(r, host) {
		return hostReason(r, string(q.Host))
	}
	if path := pathOf(q.Target); !p.takesPath(spots, path) {
		return fmt.Sprintf("path %q is not under %s", path, strings.Join(r.Route.Match.Paths, ", "))
	}
	switch f, at := r.requestFault(q, plainAddr(q.Client), p.scratch); f {
	case faultProtocol:
		return fmt.Sprintf("wants %s, and this is %s", strings.Join(r.protocols.Names(), ", "), strings.Join(q.Protocols.Names(), ", "))
	case faultMethod:
		return fmt.Sprintf("method %s is not among %s", q.Method, strings.Join(r.Route.Match.Methods, ", "))
	case faultClient:
		return clientReason(r, q.Client)
	case faultHeader:
		return "header " + r.headers[at].String() + " does not hold"
	case faultQuery:
		return "query parameter " + r.query[at].String() + " does not hold"
	case faultClaim:
		return "our own handler " + r.Route.Action.(plan.Internal).Name + " does not know this request"
	case faultPath:
		return fmt.Sprintf("path %q is not, however it is read, below %s", pathOf(q.Target), r.below)
	case faultForeign, faultPage:
		return r.previewReason(f, q)
	}
	return ""
}

func takesHost(r *rule, host []byte) bool {
	return slices.ContainsFunc(r.hosts, func(h hostPattern) bool { return h.takes(host) })
}

func (h hostPattern) takes(host []byte) bool {
	var set names
	set.add(h)
	return set.any || set.has(host)
}

// takesPath reports whether any spot takes the path under any reading.
func (p *Port) takesPath(spots candidate, path []byte) bool {
	free := rule{parts: &parts{}}
	var x index
	for _, s := range spots {
		x.add(hostPattern{class: anyHost}, s.path, entry{rule: &free, free: true})
	}
	x.link(func() {})
	w := walk{q: &Request{}, scratch: p.scratch, best: noRank}
	return !w.readings(x.any, path) || w.hit != nil
}

func hostReason(r *rule, host string) string {
	if host == "" {
		return "wants a host among " + strings.Join(r.Route.Match.Domains, ", ") + ", and none was named"
	}
	return fmt.Sprintf("host %q is not among %s", host, strings.Join(r.Route.Match.Domains, ", "))
}

func clientReason(r *rule, client netip.Addr) string {
	list := make([]string, len(r.clients))
	for i, c := range r.clients {
		list[i] = c.String()
	}
	return fmt.Sprintf("client %s is not among %s", client, strings.Join(list, ", "))
}
