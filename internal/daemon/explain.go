package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/control"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/route"
)

// explain says what would happen to a request or connection now, or what did happen to a recent request that failed.
func (d *Daemon) explain(_ context.Context, q api.Question) (*api.Explanation, error) {
	if q.RequestID != "" {
		return d.explainPast(q)
	}
	x := &api.Explanation{Question: q.Text, Targets: []api.Target{}, Steps: []api.ExplainStep{}, Certificate: "none"}
	now, table := d.loop.Now(), d.edge.Table()
	if now == nil || table == nil {
		return nil, &api.Problem{Title: "Starting", Status: http.StatusServiceUnavailable, Detail: control.ErrStarting.Error()}
	}
	client, _ := netip.ParseAddr(q.Client)
	local, _ := netip.ParseAddr(q.Host)
	port := portFor(now.Plan, q.Port, local)
	if port == nil {
		x.Outcome = fmt.Sprintf("nothing of ours listens on port %d: no route names it", q.Port)
		return x, nil
	}
	d.explainPort(x, port)
	tp := table.Port(port.Addr, local)
	steps := explainSteps(x, tp, &q, client, local)
	for _, s := range steps {
		x.Steps = append(x.Steps, api.ExplainStep{Route: s.Rule.Route.Name, Matched: s.Matched, Reason: s.Reason})
		if s.Matched {
			d.explainRoute(x, now.Plan, s.Rule.Route, q.Host)
		}
	}
	if x.Outcome == "" {
		x.Outcome = "no route matches: the client gets 404 (HTTP), an alert (TLS) or a close"
	}
	return x, nil
}

// explainSteps judges the question as the stages of a connection would: what starts TLS is a connection first, and a
// request only where its TLS ends here.
func explainSteps(x *api.Explanation, tp *route.Port, q *api.Question, client, local netip.Addr) []route.Step {
	req := route.Request{
		Method: []byte(q.Method), Host: []byte(q.Host), Target: []byte(q.Target), Client: client, Fields: fields(q.Header),
	}
	req.Protocols = route.ProtocolsOf(req.Fields, plan.ProtoHTTP1, req.Method, req.Target, []byte(q.Header["upgrade"]), nil)
	if q.Scheme == "http" {
		x.Stage = "request"
		steps := tp.ExplainRequest(&req)
		if !anyMatch(steps) && tp.TLSOnly(req.Host) {
			x.Outcome = "answered 308 to the https URL: this host has only TLS routes on this port"
		}
		return steps
	}
	x.Stage = "connection"
	cq := route.ConnQuery{Kind: route.ConnTLS, Name: q.Host, Client: client, Local: local}
	if q.Scheme == "" && !tp.HasTLS() {
		cq.Kind = route.ConnOther
	}
	x.Notes = append(x.Notes, "judged as a client whose first bytes are "+cq.Kind.String())
	rule := tp.Conn(&cq)
	if rule == nil || !rule.Route.TLS.Ends() {
		return tp.ExplainConn(&cq)
	}
	x.Stage = "request"
	x.Notes = append(x.Notes, "TLS ends here by the policy of route "+rule.Route.Name)
	req.TLS, req.Conn = rule.Route.TLS, &cq
	return tp.ExplainRequest(&req)
}

func anyMatch(steps []route.Step) bool {
	for _, s := range steps {
		if s.Matched {
			return true
		}
	}
	return false
}

// portFor is the socket that would take a connection to that port, the one for the local address first.
func portFor(p *plan.Plan, number uint16, local netip.Addr) *plan.Port {
	var found *plan.Port
	for _, port := range p.Ports {
		if port.Addr.Port != number || port.Addr.Network != plan.TCP || !port.Addr.Takes(local) {
			continue
		}
		if found == nil || found.Addr.Covers(port.Addr) {
			found = port
		}
	}
	return found
}

func (d *Daemon) explainPort(x *api.Explanation, port *plan.Port) {
	for _, p := range (*portView)(d).Ports() {
		if p.Wanted == port.Addr.String() {
			x.Port = &p
			if p.Error != "" {
				x.Notes = append(x.Notes, "the port itself: "+p.Error)
			}
			return
		}
	}
}

// explainRoute says what the route does and which of its targets are up.
func (d *Daemon) explainRoute(x *api.Explanation, p *plan.Plan, r *plan.Route, host string) {
	x.Route, x.Source = r.Name, string(r.Source)
	if at, ok := p.Where["route/"+r.Name]; ok && at.Line > 0 {
		x.Place = &api.Place{File: at.File, Line: at.Line, Col: at.Col}
	}
	switch {
	case r.TLS.Ends():
		x.Certificate = d.explainCertificate(r.TLS, host)
	case r.TLS != nil:
		x.Certificate = "the target's own: TLS is passed through untouched"
	}
	switch a := r.Action.(type) {
	case plan.Forward:
		x.Action, x.Upstream = "forward", a.Upstream
		d.explainUpstream(x, "forwarded")
	case plan.Tunnel:
		x.Action, x.Upstream = "tunnel", a.Upstream
		d.explainUpstream(x, "tunnelled")
	case plan.Redirect:
		x.Action, x.Outcome = "redirect", fmt.Sprintf("answered %d with a redirect to %s", a.Status, a.To)
	case plan.Respond:
		x.Action, x.Outcome = "respond", fmt.Sprintf("answered %d with fixed content", a.Status)
	case plan.Files:
		x.Action, x.Outcome = "files", "answered from the folder "+a.Root
	case plan.Block:
		x.Action, x.Outcome = "block", fmt.Sprintf("refused: %d for HTTP, an alert for TLS, a close for anything else", a.Status)
	case plan.ByName:
		x.Action, x.Outcome = "by_name", "forwarded to the name the client asks for, if the allowlist and the address table let it"
	case plan.Internal:
		x.Action, x.Outcome = "internal", "answered by quaymaster itself: "+a.Name
	}
}

// explainCertificate says what a client that asks for host is shown, and how that stands.
func (d *Daemon) explainCertificate(t *plan.TLS, host string) string {
	src := t.Certificate
	if src.Kind == plan.CertFiles {
		return "from " + src.CertFile
	}
	what := "by our own CA"
	if src.Kind == plan.CertAuto {
		what = "by ACME"
	}
	_, parent, _ := strings.Cut(host, ".")
	for _, s := range d.certs.Status() {
		if s.Source != src.Kind || s.Name != host && s.Name != "*."+parent {
			continue
		}
		if s.Error != "" {
			return what + ", " + s.State + ": " + s.Error
		}
		return what + ", " + s.State
	}
	return what
}

func (d *Daemon) explainUpstream(x *api.Explanation, verb string) {
	for _, u := range d.upstreams() {
		if u.Name == x.Upstream {
			x.Targets = u.Targets
		}
	}
	var up, down []string
	for _, t := range x.Targets {
		if t.State == "down" {
			down = append(down, t.Target+" ("+t.Reason+")")
		} else {
			up = append(up, t.Target)
		}
	}
	switch {
	case len(up) == 1:
		x.Target, x.Outcome = up[0], verb+" to "+up[0]
	case len(up) > 1:
		x.Outcome = verb + " to one of " + strings.Join(up, ", ")
	default:
		x.Outcome = "refused with 503: every target of " + x.Upstream + " is down: " + strings.Join(down, "; ")
		return
	}
	for _, t := range x.Targets {
		if t.State != "down" && t.Reason != "" {
			x.Notes = append(x.Notes, t.Target+": last failure: "+t.Reason)
		}
	}
	if len(down) > 0 {
		x.Notes = append(x.Notes, "left out because they are down: "+strings.Join(down, "; "))
	}
}

// explainPast finds a recent exchange that failed by its request id.
func (d *Daemon) explainPast(q api.Question) (*api.Explanation, error) {
	line, ok := d.edge.Failure(q.RequestID)
	if !ok {
		return nil, &api.Problem{
			Title: "Unknown request", Status: http.StatusNotFound,
			Detail: "no failed request with the id " + q.RequestID + " is remembered: the last 512 are; the access log has the others",
		}
	}
	var rec struct {
		Route, Upstream, Target, Reason, Detail, Host, Path string
		Status                                              int
	}
	if err := json.NewDecoder(bytes.NewReader(line)).Decode(&rec); err != nil {
		return nil, err
	}
	outcome := fmt.Sprintf("answered %d (%s)", rec.Status, rec.Reason)
	if rec.Detail != "" {
		outcome += ": " + rec.Detail
	}
	return &api.Explanation{
		Question: q.Text, Outcome: outcome, Stage: "request", Route: rec.Route, Upstream: rec.Upstream, Target: rec.Target,
		Certificate: "none", Targets: []api.Target{}, Steps: []api.ExplainStep{}, Notes: []string{string(bytes.TrimSpace(line))},
	}, nil
}

// fields are the request headers of a question.
type fields map[string]string

// Field finds a header; the map has lower-case names.
func (f fields) Field(name string) ([]byte, bool) {
	v, ok := f[strings.ToLower(name)]
	return []byte(v), ok
}
