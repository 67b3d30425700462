package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/engine/labels"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// A Refusal is a label that is not followed, alone: everything else is.
type Refusal = labels.Refusal

// The bounds of what labels may ask for, and of the work of finding out which of them cannot be had.
const (
	maxLabelled = 1000 // containers
	maxRounds   = 10   // in which routes are taken out that contradict something
	maxSingly   = 200  // loads in which routes are tried where nobody can be named
)

// labelled is what one load knows of the routes of containers.
type labelled struct {
	list    []labels.Container
	out     map[string]bool // routes left out, by name
	refs    map[string]int  // the errors of a route: where they stand -> its number in asked
	asked   []labels.Route
	sources []string // of asked
	refused []Refusal
}

// LoadWith makes one plan of the files, the API layer and what the labels of containers ask for. Labels that are wrong,
// that ask for more than `engine` allows or that contradict the files, the API layer or an older container are refused
// alone. The error is Errors, and of the files or the API layer.
func (l *Loader) LoadWith(sources []Source, layer *Layer, list []labels.Container) (*plan.Plan, []Warning, []Refusal, error) {
	l.loads++
	asked := &labelled{list: list, out: map[string]bool{}}
	var refused []Refusal
	for range maxRounds {
		p, warnings, err := l.once(sources, layer, asked)
		if err == nil {
			return p, warnings, append(asked.refused, refused...), nil
		}
		more := asked.blame(err)
		if len(more) == 0 {
			break
		}
		refused = append(refused, more...)
	}
	p, warnings, err := l.once(sources, layer, &labelled{})
	if err != nil || len(asked.asked) == 0 {
		return p, warnings, asked.refused, err
	}
	return l.singly(sources, layer, asked, refused)
}

// singly adds the routes of containers by halves: together they make a mistake at which none of them is named.
func (l *Loader) singly(sources []Source, layer *Layer, asked *labelled, refused []Refusal) (*plan.Plan, []Warning, []Refusal, error) {
	all, from := asked.asked, asked.sources
	for i := range all {
		asked.out[all[i].Name] = true
	}
	loads := 0
	var add func(lo, hi int)
	add = func(lo, hi int) {
		if lo == hi {
			return
		}
		message, remedy := fmt.Sprintf("it was not found out within %d tries what it contradicts", maxSingly), "mend the labels that are named first"
		if loads++; loads <= maxSingly {
			for i := lo; i < hi; i++ {
				delete(asked.out, all[i].Name)
			}
			_, _, err := l.once(sources, layer, asked)
			if err == nil {
				return
			}
			for i := lo; i < hi; i++ {
				asked.out[all[i].Name] = true
			}
			if hi-lo > 1 {
				add(lo, (lo+hi)/2)
				add((lo+hi)/2, hi)
				return
			}
			message, remedy = reasonOf(err)
		}
		for i := lo; i < hi; i++ {
			refused = append(refused, Refusal{Container: from[i], Label: all[i].HostLabel, Message: message, Remedy: remedy})
		}
	}
	add(0, len(all))
	p, warnings, err := l.once(sources, layer, asked)
	return p, warnings, append(asked.refused, refused...), err
}

// reasonOf is the first mistake and its remedy.
func reasonOf(err error) (message, remedy string) {
	var errs Errors
	if errors.As(err, &errs) && len(errs) > 0 {
		return errs[0].Message, errs[0].Remedy
	}
	return err.Error(), ""
}

// blame finds the routes of containers that mistakes stand at, and leaves them out from now on.
func (k *labelled) blame(err error) (refused []Refusal) {
	var errs Errors
	_ = errors.As(err, &errs)
	for _, e := range errs {
		i, known := k.refs[e.File+"\n"+e.Path]
		if !known {
			continue
		}
		if r := &k.asked[i]; !k.out[r.Name] {
			k.out[r.Name] = true
			refused = append(refused, Refusal{Container: k.sources[i], Label: r.HostLabel, Message: e.Message, Remedy: e.Remedy})
		}
	}
	return refused
}

// containers adds the routes that labels ask for. It comes after everything that files and the API layer hold.
func (l *load) containers() {
	k := l.labelled
	k.refs, k.asked, k.sources, k.refused = map[string]int{}, nil, nil, nil
	if !l.file.Engine.Labels || len(k.list) == 0 || len(l.errs) > 0 {
		return
	}
	held, names := l.held(), map[string]bool{}
	for i := range k.list {
		l.breathe()
		c := &k.list[i]
		if i == maxLabelled {
			k.refused = append(k.refused, Refusal{
				Container: c.Source(), Message: fmt.Sprintf("%d containers have labels for routes, and %d are followed", len(k.list), maxLabelled),
				Remedy: "stop some, or take their labels off",
			})
			return
		}
		routes, refused := labels.Read(c, l.file.Engine.ImportTraefik)
		k.refused = append(k.refused, refused...)
		for j := range routes {
			r := &routes[j]
			if k.out[r.Name] {
				continue
			}
			message, remedy := "another container of this name makes the route "+strconv.Quote(r.Name), "rename one of them"
			if !names[r.Name] {
				names[r.Name] = true
				message, remedy = l.ask(c.Source(), r, held)
			}
			if message != "" {
				k.refused = append(k.refused, Refusal{Container: c.Source(), Label: r.HostLabel, Message: message, Remedy: remedy})
			}
		}
	}
}

// seat is a host on a port.
type seat struct {
	host string
	port uint16
}

// held are the hosts that routes of files and of the API layer spell out, with the ports they do so on.
func (l *load) held() map[seat]*ref {
	out := map[seat]*ref{}
	for i := range l.refs {
		r := &l.refs[i]
		if r.item == nil || r.route == nil {
			continue
		}
		for _, d := range r.route.Match.Domains {
			for _, a := range r.route.Match.Ports {
				l.breathe()
				if at := (seat{d, a.Port}); out[at] == nil {
					out[at] = r
				}
			}
		}
	}
	return out
}

// ask adds one route. The message is why it may not be had, "" if it may.
func (l *load) ask(source string, r *labels.Route, held map[seat]*ref) (message, remedy string) {
	domains, paths, message, remedy := l.words(r)
	if message != "" {
		return message, remedy
	}
	port, message, remedy := l.labelPort(r)
	if message != "" {
		return message, remedy
	}
	if of := l.leasedTo(port.Port.Lo); of != "" {
		return fmt.Sprintf("port %d is %s", port.Port.Lo, of), "choose another port, or take this one out of engine.ports"
	}
	for _, d := range domains {
		if by := held[seat{string(d), port.Port.Lo}]; by != nil {
			return fmt.Sprintf("%s on port %d is route %q at %s", d, port.Port.Lo, by.name, place(by.pos(by.at))),
				"choose another host, or take it out there: what a file or the API holds, a container cannot have a part of"
		}
	}
	f := &form.Route{Name: form.Name(r.Name)}
	f.Defaults()
	f.Match.Domains, f.Match.Path, f.Match.Ports = domains, paths, []form.Port{port}
	f.Action = &form.Action{Targets: make([]form.Target, 1)}
	if err := f.Action.Targets[0].ReadText(r.Target, nil); err != nil {
		return strict.Say(err)
	}
	if !r.Plain {
		f.Action.TLS = &form.TLS{}
		f.Action.TLS.Defaults()
	}
	number := len(l.labelled.asked)
	at, message, remedy := l.labelItem(source, f)
	if message != "" {
		return message, remedy
	}
	at.route.Rank = r.Rank
	l.labelled.asked, l.labelled.sources = append(l.labelled.asked, *r), append(l.labelled.sources, source)
	l.place(at, number)
	if !r.Plain && !r.Alone {
		l.sendThere(source, domains, &port, held, number)
	}
	return "", ""
}

// leasedTo says whose a port is that apps have or may be given; "" if it is nobody's. It is asked before the whole is judged,
// where the mistake would be one of the file.
func (l *load) leasedTo(port uint16) string {
	if r := (plan.PortRange{Lo: l.file.AppPorts.Lo, Hi: l.file.AppPorts.Hi}); l.places["app_ports"].File != "" && r.Has(port) {
		return "one of app_ports " + r.String()
	}
	for name := range l.file.Apps {
		if uint16(l.file.Apps[name].Port) == port {
			return "the port of app " + name
		}
	}
	for name := range l.apiApps {
		if uint16(l.apiApps[name].Port) == port {
			return "the port of app " + name
		}
	}
	return ""
}

// words reads hosts and paths.
func (l *load) words(r *labels.Route) (domains []form.Domain, paths []form.PathPattern, message, remedy string) {
	for _, h := range r.Hosts {
		var d form.Domain
		if err := d.ReadText(h); err != nil {
			message, _ = strict.Say(err)
			return nil, nil, message, "write a name such as app.example.com"
		}
		allowed := l.file.Engine.Domains
		switch {
		case len(allowed) == 0 && strings.HasPrefix(string(d), "*"):
			return nil, nil, "labels may not have " + string(d), "name the host, or write engine: {domains: [\"" + string(d) + "\"]} in the file"
		case len(allowed) > 0 && !slices.ContainsFunc(allowed, func(a form.Domain) bool { return within(string(a), string(d)) }):
			return nil, nil, "engine.domains does not let labels have " + string(d), "choose a host it allows, or add this one to it"
		}
		domains = append(domains, d)
	}
	for _, t := range r.Paths {
		var p form.PathPattern
		if err := p.ReadText(t); err != nil {
			message, remedy = strict.Say(err)
			return nil, nil, message, remedy
		}
		paths = append(paths, p)
	}
	return domains, paths, "", ""
}

// within reports whether a pattern takes all that a domain takes.
func within(pattern, domain string) bool {
	if pattern == domain {
		return true
	}
	if below, ok := strings.CutPrefix(pattern, "**."); ok {
		name := strings.TrimLeft(domain, "*")
		return strings.HasSuffix(name, "."+below) || strings.HasPrefix(domain, "*") && name == "."+below
	}
	below, ok := strings.CutPrefix(pattern, "*.")
	if !ok || strings.HasPrefix(domain, "*") {
		return false
	}
	_, parent, _ := strings.Cut(domain, ".")
	return parent == below
}

// labelPort is the port of a route: the one it names, else the one of sites, else the first that labels may have.
func (l *load) labelPort(r *labels.Route) (port form.Port, message, remedy string) {
	usual, other := l.scope.secure, l.scope.web
	if r.Plain {
		usual, other = other, usual
	}
	allowed, why := l.labelPorts()
	find := func(n uint16) (form.Port, bool) {
		for _, a := range allowed {
			if a.Lo <= n && n <= a.Hi {
				a.Lo, a.Hi = n, n
				return form.Port{PortObject: form.PortObject{Port: a}}, true
			}
		}
		return form.Port{}, false
	}
	switch {
	case r.Port == usual.Port.Lo || r.Port == 0:
		if p, ok := find(usual.Port.Lo); ok {
			if p.Port.IP == usual.Port.IP {
				return usual, "", ""
			}
			return p, "", ""
		}
		if r.Port == 0 && len(allowed) > 0 && allowed[0].Lo != other.Port.Lo {
			p, _ := find(allowed[0].Lo)
			return p, "", ""
		}
		return form.Port{}, fmt.Sprintf("%s does not let labels have port %d", why, usual.Port.Lo), "write http://NAME or NAME:PORT for one it allows, or add this port to engine.ports"
	default:
		if p, ok := find(r.Port); ok {
			if n := usual.Port.Lo; r.Port == other.Port.Lo && n != r.Port {
				return form.Port{}, fmt.Sprintf("port %d is for clients %s", r.Port, pick(r.Plain, "with TLS", "without TLS")), "write " + pick(r.Plain, "the name without http://", "http:// before the name")
			}
			return p, "", ""
		}
		return form.Port{}, fmt.Sprintf("%s does not let labels have port %d", why, r.Port), "choose a port it allows, or add this one to engine.ports"
	}
}

// labelPorts are the ports that labels may have: those of engine.ports, else those where sites are.
func (l *load) labelPorts() (list []form.PortText, why string) {
	if len(l.file.Engine.Ports) > 0 {
		return l.file.Engine.Ports, "engine.ports"
	}
	list = []form.PortText{l.scope.secure.Port, l.scope.web.Port}
	for i := range l.refs {
		l.breathe()
		r := &l.refs[i]
		if r.item == nil || r.piece.Section != "sites" {
			continue
		}
		for _, w := range r.wishes {
			known := slices.ContainsFunc(list, func(p form.PortText) bool { return p.Lo == w.addr.Port })
			if n := w.addr.Port; n != 0 && !known {
				list = append(list, form.PortText{Text: strconv.Itoa(int(n)), Bare: true, Lo: n, Hi: n})
			}
		}
	}
	return list, "engine.ports, by default the ports of sites,"
}

// labelItem builds a route of a container.
func (l *load) labelItem(source string, f *form.Route) (r *ref, message, remedy string) {
	o := l.options(source)
	o.Env, o.Secret = nil, nil
	name := string(f.Name)
	reader := strict.NewReader(o)
	r = &ref{file: source, layer: plan.Source(source), piece: strict.Piece{Section: "labels", Key: &yaml.Node{Kind: yaml.ScalarNode, Value: name}}, item: &item{used: l.loads}}
	b := &builder{scope: &l.scope, r: reader, root: emptyNode, site: true, it: r.item}
	b.route(f, r.layer)
	for i := range r.wishes {
		r.wishes[i].at = spot{}
	}
	r.certAt, r.certPath, r.usesAt = spot{}, nil, spot{}
	if len(reader.Problems) > 0 {
		return nil, reader.Problems[0].Message, reader.Problems[0].Remedy
	}
	return r, "", ""
}

// place puts a route of a container among the others. number is that of the asked route it belongs to.
func (l *load) place(r *ref, number int) {
	l.refs = append(l.refs, *r)
	e := l.at(r, spot{}, "", "")
	l.labelled.refs[e.File+"\n"+e.Path] = number
}

// sendThere sends plain clients of the hosts to TLS, as a site does, where labels may have the plain port and nobody has
// the host there.
func (l *load) sendThere(source string, domains []form.Domain, port *form.Port, held map[seat]*ref, number int) {
	web, _, _ := l.labelPort(&labels.Route{Plain: true})
	if port.Port.Lo != l.scope.secure.Port.Lo || web.Port.Lo != l.scope.web.Port.Lo {
		return
	}
	for _, d := range domains {
		if held[seat{string(d), web.Port.Lo}] != nil {
			continue
		}
		to := form.RedirectTo("https")
		if n := port.Port.Lo; local(string(d)) && n != 443 {
			to = form.RedirectTo("https://{host}:" + strconv.Itoa(int(n)) + "{path}?{query}")
		}
		f := &form.Route{Name: form.Name("http://" + string(d))}
		f.Defaults()
		f.Match.Domains, f.Match.Ports = []form.Domain{d}, []form.Port{web}
		f.Action = &form.Action{Redirect: &form.Redirect{To: to, Status: 308}}
		if r, message, _ := l.labelItem(source, f); message == "" {
			r.implied = true
			l.place(r, number)
		}
	}
}
