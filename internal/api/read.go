package api

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func (a *API) status(w http.ResponseWriter, _ *request) error {
	if a.o.Status == nil {
		return missing("a status")
	}
	s := a.o.Status()
	s.Problems, s.Config.Files = solid(s.Problems), solid(s.Config.Files)
	return reply(w, http.StatusOK, &s)
}

// solid keeps an empty list from being written as null.
func solid[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (a *API) ports(w http.ResponseWriter, _ *request) error {
	if a.o.Ports == nil {
		return missing("a list of ports")
	}
	return reply(w, http.StatusOK, a.portList())
}

func (a *API) portList() []Port {
	if a.o.Ports == nil {
		return []Port{}
	}
	list := solid(a.o.Ports.Ports())
	for i := range list {
		list[i].Routes = solid(list[i].Routes)
	}
	return list
}

func (a *API) port(w http.ResponseWriter, r *request) error {
	if a.o.Ports == nil {
		return missing("a list of ports")
	}
	n, err := strconv.ParseUint(r.arg, 10, 16)
	if err != nil || n == 0 {
		return problem(http.StatusBadRequest, "not a port number: "+clip(r.arg))
	}
	var d PortDetail
	found := false
	for _, p := range a.portList() {
		switch {
		case p.Port != int(n):
		case !found:
			d.Port, found = p, true
		default:
			d.Others = append(d.Others, p)
		}
	}
	d.History = solid(a.o.Ports.History(uint16(n)))
	if !found && len(d.History) == 0 {
		return problem(http.StatusNotFound, "port "+r.arg+` is not ours; "quaymaster ports who `+r.arg+`" says who listens there`)
	}
	if !found {
		last := d.History[len(d.History)-1]
		d.Port = Port{Proto: "tcp", Port: int(n), Address: last.Address, State: "released", Since: last.Time, Routes: []string{}}
	}
	return reply(w, http.StatusOK, &d)
}

func (a *API) routes(w http.ResponseWriter, _ *request) error {
	if a.o.Control == nil {
		return missing("a list of routes")
	}
	p, revision := a.o.Control.Plan()
	w.Header().Set("ETag", etag(revision))
	return reply(w, http.StatusOK, Routes(p, a.upstreams()))
}

func (a *API) upstreams() []Upstream {
	if a.o.Upstreams == nil {
		return nil
	}
	return a.o.Upstreams()
}

// Routes are the routes of a plan in its order, with the state of their targets where ups tells it.
func Routes(p *plan.Plan, ups []Upstream) []Route {
	live := make(map[string][]Target, len(ups))
	for _, u := range ups {
		live[u.Name] = u.Targets
	}
	for _, u := range p.Upstreams {
		if _, ok := live[u.Name]; !ok {
			live[u.Name] = wished(u)
		}
	}
	out := make([]Route, 0, len(p.Routes))
	for _, r := range p.Routes {
		out = append(out, describe(p, r, live))
	}
	return out
}

// wished are the targets of an upstream of which nothing is known yet.
func wished(u *plan.Upstream) []Target {
	out := make([]Target, 0, len(u.Targets))
	for _, t := range u.Targets {
		out = append(out, Target{Target: t.Text, State: "unknown", Weight: t.Weight})
	}
	return out
}

func describe(p *plan.Plan, r *plan.Route, live map[string][]Target) Route {
	d := Route{
		Name: r.Name, Source: string(r.Source), Place: place(p, "route/"+r.Name), Priority: r.Priority + r.Rank,
		Match: conditions(&r.Match), OnRemove: string(r.OnRemove),
	}
	if r.TLS != nil {
		d.TLS = string(r.TLS.Mode)
	}
	d.Action, d.Detail, d.Upstream = action(r.Action)
	d.Targets = solid(live[d.Upstream])
	if d.Upstream == "" {
		d.Targets = []Target{}
	}
	if d.Detail == "" && d.Upstream != "" {
		var names []string
		for _, t := range d.Targets {
			names = append(names, t.Target)
		}
		d.Detail = strings.Join(names, ", ")
	}
	return d
}

// place is where an object is written; nil for what came by API.
func place(p *plan.Plan, key string) *Place {
	pos, ok := p.Where[key]
	if !ok || pos.File == "" || pos.Line == 0 { // a container has no lines
		return nil
	}
	return &Place{File: pos.File, Line: pos.Line, Col: pos.Col}
}

// action gives the word, the gist and the upstream of an action.
func action(act plan.Action) (word, gist, upstream string) {
	switch x := act.(type) {
	case plan.Tunnel:
		return "tunnel", "", x.Upstream
	case plan.Forward:
		return "forward", "", x.Upstream
	case plan.Redirect:
		return "redirect", strconv.Itoa(x.Status) + " to " + x.To, ""
	case plan.Respond:
		return "respond", "status " + strconv.Itoa(x.Status), ""
	case plan.Files:
		return "files", x.Root, ""
	case plan.Block:
		return "block", "status " + strconv.Itoa(x.Status), ""
	case plan.ByName:
		return "by_name", "to the name the client asks for", ""
	case plan.Internal:
		return "internal", x.Name, ""
	}
	return "unknown", "", ""
}

func conditions(m *plan.Match) Match {
	out := Match{
		Ports: make([]string, 0, len(m.Ports)), Domains: solid(m.Domains), Path: solid(m.Paths), Methods: m.Methods,
		Headers: fields(m.Headers), Query: fields(m.Query), Protocols: m.Protocols.Names(),
	}
	if m.Preview != nil {
		out.Preview = m.Preview.String()
	}
	for _, a := range m.Ports {
		out.Ports = append(out.Ports, a.String())
	}
	for _, c := range m.Clients {
		out.ClientIPs = append(out.ClientIPs, c.String())
	}
	return out
}

// fields writes conditions as configuration does; a regular expression stands between slashes.
func fields(list []plan.FieldMatch) map[string]string {
	if len(list) == 0 {
		return nil
	}
	out := make(map[string]string, len(list))
	for _, f := range list {
		out[f.Name] = f.Value
		if f.Regex != "" {
			out[f.Name] = "/" + f.Regex + "/"
		}
	}
	return out
}

func (a *API) connections(w http.ResponseWriter, _ *request) error {
	if a.o.Connections == nil {
		return missing("a list of connections")
	}
	return reply(w, http.StatusOK, solid(a.o.Connections()))
}

func (a *API) config(w http.ResponseWriter, r *request) error {
	if a.o.Configs == nil {
		return missing("the configuration")
	}
	v, err := a.o.Configs.Config(r.Context())
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(v.Revision))
	return reply(w, http.StatusOK, v)
}

func (a *API) metrics(w http.ResponseWriter, r *request) error {
	if a.o.Metrics == nil {
		return problem(http.StatusNotFound, "metrics are switched off (metrics.enabled)")
	}
	a.o.Metrics.ServeHTTP(w, r.Request)
	return nil
}

func (a *API) health(w http.ResponseWriter, _ *request) error {
	return reply(w, http.StatusOK, map[string]string{"status": "alive"})
}

func (a *API) ready(w http.ResponseWriter, _ *request) error {
	if a.o.Ready == nil || !a.o.Ready() {
		return problem(http.StatusServiceUnavailable, "not serving: starting or draining")
	}
	return reply(w, http.StatusOK, map[string]string{"status": "ready"})
}

func (a *API) explain(w http.ResponseWriter, r *request) error {
	if a.o.Explain == nil {
		return missing("explain")
	}
	ask := r.URL.Query()
	q, err := Ask(ask.Get("url"))
	if err != nil {
		return problem(http.StatusBadRequest, err.Error())
	}
	if m := ask.Get("method"); m != "" {
		q.Method = strings.ToUpper(m)
	}
	q.Client = ask.Get("client")
	for _, h := range ask["header"] {
		name, value, _ := strings.Cut(h, ":")
		if q.Header == nil {
			q.Header = make(map[string]string)
		}
		q.Header[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
	}
	e, err := a.o.Explain(r.Context(), q)
	if err != nil {
		return err
	}
	if e == nil {
		return problem(http.StatusNotFound, "nothing is known of "+clip(q.Text))
	}
	e.Steps, e.Targets = solid(e.Steps), solid(e.Targets)
	return reply(w, http.StatusOK, e)
}

// etag is a revision as a strong entity tag (RFC 9110, section 8.8.3).
func etag(revision string) string { return `"` + revision + `"` }

// matched takes the revision out of an If-Match: "*" or one entity tag, quoted or not.
func matched(r *request) (string, error) {
	v := strings.TrimSpace(strings.Join(r.Header.Values("If-Match"), ","))
	switch {
	case v == "":
		return "", problem(http.StatusPreconditionRequired, "send If-Match with the revision you saw (the ETag of GET /v1/routes), or * to edit whatever is in force")
	case v == "*", v == `"*"`: // the second is the tag of no revision, and never matches
		return v, nil
	}
	return strings.Trim(strings.TrimPrefix(v, "W/"), `"`), nil
}
