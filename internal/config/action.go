package config

import (
	"errors"
	"maps"
	"net"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

func canonical(name string) string { return textproto.CanonicalMIMEHeaderKey(name) }

// has reports whether a key of the action is written.
func (b *builder) has(key string) bool {
	n := b.root
	if !b.site {
		n = strict.Find(n, "action")
	}
	return n != nil && strict.Find(n, key) != nil
}

// kind is the one thing that an action does, "" after a fault.
func (b *builder) kind(a *form.Action) string {
	var kinds []string
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"targets", a.Targets != nil || b.has("targets")},
		{"upstream", a.Upstream != "" || b.has("upstream")},
		{"redirect", a.Redirect != nil},
		{"respond", a.Respond != nil},
		{"files", a.Files != nil},
		{"block", a.Block != nil},
	} {
		if k.set {
			kinds = append(kinds, k.name)
		}
	}
	switch len(kinds) {
	case 0:
		b.fault([]string{"action"}, "write targets, upstream, redirect, respond, files or block", "the action does nothing")
		return ""
	case 1:
	default:
		b.fault([]string{"action", kinds[1]}, "keep one of them", "%s are two actions; a route has one", strings.Join(kinds[:2], " and "))
		return ""
	}
	kind := kinds[0]
	if kind == "targets" || kind == "upstream" {
		kind = "forward"
	}
	if a.Type != "" && a.Type != kind {
		b.fault([]string{"action", "type"}, "write type: "+kind+" or leave it out", "type %s does not agree with %s", a.Type, kinds[0])
	}
	return kind
}

var forwardKeys = []string{
	"load_balance", "health_check", "passive_health", "pool", "retries", "send_proxy_protocol", "rewrite",
	"request_headers", "response_headers", "protocol", "target_tls",
}

// upstreamKeys belong to the targets, not to one use of them.
var upstreamKeys = []string{"load_balance", "health_check", "passive_health", "pool", "target_tls"}

// requestKeys mean nothing to a tunnel, which does not see requests.
var requestKeys = []string{"retries", "rewrite", "request_headers", "response_headers", "protocol"}

func (b *builder) refuse(keys []string, remedy, why string) {
	for _, k := range keys {
		if b.has(k) {
			b.fault([]string{"action", k}, remedy, "%s", why)
		}
	}
}

func (b *builder) action(a *form.Action, r *plan.Route) plan.Action {
	r.TLS = b.tls(a.TLS, &r.Match)
	kind := b.kind(a)
	if kind != "forward" {
		b.refuse(forwardKeys, "leave it out", "it has no effect without targets")
	}
	switch kind {
	case "forward":
		return b.forward(a, r)
	case "redirect":
		if a.Redirect.To == "" {
			b.fault([]string{"action", "redirect"}, "write to: https, or to: URL", "the redirect says no place")
		}
		if !slices.Contains([]int{301, 302, 303, 307, 308}, a.Redirect.Status) && len(b.r.Problems) == 0 {
			b.fault([]string{"action", "redirect", "status"}, "write 301, 302, 303, 307 or 308", "%d is no redirect", a.Redirect.Status)
		}
		return plan.Redirect{To: string(a.Redirect.To), Status: a.Redirect.Status}
	case "respond":
		if len(a.Respond.Body) > 1<<20 {
			b.fault([]string{"action", "respond", "body"}, "serve it with files", "the body is longer than 1MiB")
		}
		return plan.Respond{Status: a.Respond.Status, Body: a.Respond.Body, Headers: b.headers(a.Respond.Headers, "respond", "headers")}
	case "files":
		return b.files(a.Files)
	case "block":
		return plan.Block{Status: a.Block.Status}
	}
	return nil
}

func (b *builder) files(f *form.Files) plan.Action {
	at := []string{"action", "files", "root"}
	root, ok := b.path(f.Root)
	info, err := os.Stat(root)
	switch {
	case f.Root == "":
		b.fault(at, "write root: ./public", "the folder is not named")
	case !ok:
		b.fault(at, "write an absolute path", "%q is relative, and there is no file it could be relative to", f.Root)
	case err != nil:
		b.fault(at, "make it, or name another", "the folder %s cannot be read: %v", root, reason(err))
	case !info.IsDir():
		b.fault(at, "name its folder", "%s is a file", root)
	}
	out := plan.Files{Root: root, Browse: f.Browse, SPA: f.SPA}
	for _, name := range f.Index {
		out.Index = append(out.Index, string(name))
	}
	return out
}

// reason is the cause of a file error without the path, which the message has.
func reason(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func (b *builder) headers(f map[string]form.HeaderValue, path ...string) []plan.Header {
	var out []plan.Header
	at := append([]string{"action"}, path...)
	for _, name := range slices.Sorted(maps.Keys(f)) {
		var t form.Token
		if err := t.ReadText(name); err != nil {
			b.faulty(at, err)
		}
		if framing[canonical(name)] {
			b.fault(append(at, name), "leave it out", "%s belongs to the connection and cannot be set", name)
		}
		out = append(out, plan.Header{Name: canonical(name), Value: string(f[name])})
	}
	slices.SortFunc(out, func(a, b plan.Header) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(out); i++ {
		if out[i].Name == out[i-1].Name {
			b.fault(at, "keep one of the two: case does not count", "%s stands here twice", out[i].Name)
		}
	}
	return out
}

// framing are the fields that say where a message ends or what becomes of its connection.
var framing = map[string]bool{
	"Connection": true, "Content-Length": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true,
}

func (b *builder) rules(f *form.Headers, key string) plan.HeaderRules {
	if f == nil {
		return plan.HeaderRules{}
	}
	out := plan.HeaderRules{Set: b.headers(f.Set, key, "set"), Add: b.headers(f.Add, key, "add")}
	for _, name := range f.Remove {
		out.Remove = append(out.Remove, canonical(string(name)))
	}
	out.Remove = sorted(out.Remove, strings.Compare)
	return out
}

// forward builds a Forward or, for the connection stage, a Tunnel, and the upstream if it stands in the action itself.
func (b *builder) forward(a *form.Action, r *plan.Route) plan.Action {
	up := string(a.Upstream)
	if up == "" {
		up = r.Name
		b.it.upstream = b.targets(a, r.Name, r.Timeouts.Connect, r.TLS != nil && r.TLS.Mode == plan.Reencrypt)
		b.it.upstream.Inline = true
	} else {
		b.it.uses, b.it.usesAt = up, b.spot("action", "upstream")
		b.refuse(upstreamKeys, "write it under upstreams."+up, "it belongs to the shared targets")
	}
	if a.Targets != nil && r.Match.Ports != nil {
		b.preserve(a, r)
	}
	if tunnel(r) {
		for i, t := range a.Targets {
			if t.TLS {
				b.fault([]string{"action", "targets", index(i)}, "write it without https", "a tunnel relays bytes as they are, so it begins no TLS")
			}
		}
		b.refuse(requestKeys, "leave it out", "it has no effect on a tunnel, which does not see requests")
		if a.LoadBalance != nil && a.LoadBalance.Sticky.Cookie != "" {
			b.fault([]string{"action", "load_balance", "sticky"}, "write policy: ip_hash", "a tunnel has no cookies")
		}
		b.it.own.proxy = a.SendProxyProtocol != ""
		return plan.Tunnel{Upstream: up, SendProxy: proxyVersion(a.SendProxyProtocol)}
	}
	f := b.use(a)
	f.Upstream = up
	return *f
}

// tunnel reports whether the route relays connections unseen.
func tunnel(r *plan.Route) bool {
	return r.Match.Protocols&plan.ConnProtocols != 0 || r.TLS != nil && !r.TLS.Ends()
}

// use is how one route uses an upstream: everything of a forward action but the targets.
func (b *builder) use(a *form.Action) *plan.Forward {
	b.it.own = ownKeys{
		proxy: a.SendProxyProtocol != "", rewrite: a.Rewrite != nil, request: a.RequestHeaders != nil,
		response: a.ResponseHeaders != nil, retries: a.Retries != nil,
	}
	f := &plan.Forward{
		SendProxy:      proxyVersion(a.SendProxyProtocol),
		RequestHeaders: b.rules(a.RequestHeaders, "request_headers"), ResponseHeaders: b.rules(a.ResponseHeaders, "response_headers"),
	}
	if w := a.Rewrite; w != nil {
		f.Rewrite = plan.Rewrite{StripPrefix: string(w.StripPrefix), AddPrefix: string(w.AddPrefix), Path: string(w.Path), SetHost: w.SetHost}
		b.rewrite(w)
	}
	if t := a.Retries; t != nil {
		f.Retries = plan.Retries{Attempts: t.Attempts, Budget: float64(t.Budget)}
		for _, on := range t.On {
			if on.Connect {
				f.Retries.Connect = true
			} else {
				f.Retries.Statuses = append(f.Retries.Statuses, on.Status)
			}
		}
		f.Retries.Statuses = sorted(f.Retries.Statuses, func(a, b int) int { return a - b })
	}
	return f
}

func (b *builder) rewrite(w *form.Rewrite) {
	if w.Path != "" && (w.StripPrefix != "" || w.AddPrefix != "") {
		b.fault([]string{"action", "rewrite", "path"}, "keep path, or the prefixes", "path replaces the whole path, prefixes and all")
	}
	var d form.HostName
	if host := w.SetHost; host != "" && host != "target" {
		if h, port, err := net.SplitHostPort(host); err == nil {
			if _, err := strconv.ParseUint(port, 10, 16); err == nil {
				host = h
			}
		}
		if d.ReadText(host) != nil {
			b.fault([]string{"action", "rewrite", "set_host"}, "write target, or a name", "%q is no host", w.SetHost)
		}
	}
}

func proxyVersion(s string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(s, "v"))
	return n
}

func (b *builder) preserve(a *form.Action, r *plan.Route) {
	for i := range a.Targets {
		for _, p := range r.Match.Ports {
			if a.Targets[i].Port.Preserve && p.Port == 0 {
				b.fault([]string{"action", "targets", index(i)}, "write a port number", "%s has no port that could be preserved", p)
				break
			}
		}
	}
}

// targets builds the upstream of an action.
func (b *builder) targets(a *form.Action, name string, connect time.Duration, reencrypt bool) *plan.Upstream {
	u := &plan.Upstream{Name: name, Connect: connect, Balance: plan.Balance{Policy: "round_robin"}}
	if len(a.Targets) == 0 {
		b.fault([]string{"action", "targets"}, "write targets: [HOST:PORT]", "there is no target")
	}
	seen := map[string]bool{}
	for i, t := range a.Targets {
		at := func() []string { return []string{"action", "targets", index(i)} }
		if seen[t.Text] && t.Text != "" {
			b.fault(at(), "write it once, with a weight if it is to get more", "target %s stands here twice", t.Text)
		}
		seen[t.Text] = true
		pt := plan.Target{
			Text: t.Text, Host: string(t.Host), Port: t.Port.Number, PreservePort: t.Port.Preserve, Weight: t.Weight, MaxConns: t.MaxConnections,
			TLS: t.TLS || reencrypt,
		}
		if t.Unix != "" {
			path, ok := b.path(t.Unix)
			if !ok {
				b.fault(at(), "write an absolute path", "%q is relative, and there is no file it could be relative to", t.Unix)
			}
			pt.Network, pt.Host = plan.Unix, path
		}
		if t.App != "" {
			pt.App = string(t.App)
			b.it.apps = append(b.it.apps, appUse{pt.App, b.spot(at()...)})
		}
		u.Targets = append(u.Targets, pt)
	}
	if l := a.LoadBalance; l != nil {
		u.Balance = plan.Balance{Policy: l.Policy, SlowStart: time.Duration(l.SlowStart), StickyCookie: string(l.Sticky.Cookie)}
	}
	u.TLS = b.targetTLS(a, u)
	u.Health = b.health(a.HealthCheck, proxyVersion(a.SendProxyProtocol))
	if p := a.PassiveHealth; p != nil {
		u.Passive = plan.Passive{Fails: p.Fails, Within: time.Duration(p.Within), Out: time.Duration(p.Out)}
	}
	pool := a.Pool
	if pool == nil {
		pool = &form.Pool{}
		pool.Defaults()
	}
	u.Pool = poolSettings(pool)
	return u
}

func poolSettings(f *form.Pool) plan.PoolSettings {
	return plan.PoolSettings{
		MaxPerTarget: f.MaxPerTarget, MaxIdle: f.MaxIdle, Idle: time.Duration(f.Idle), MaxAge: time.Duration(f.MaxAge),
		Queue: f.Queue, QueueTimeout: time.Duration(f.QueueTimeout),
	}
}

func (b *builder) health(h *form.HealthCheck, sendProxy int) *plan.Health {
	if h == nil {
		return nil
	}
	at := []string{"action", "health_check"}
	switch {
	case h.HTTP != "" && h.TCP:
		b.fault(at, "keep one of them", "http and tcp are two checks")
	case h.HTTP == "" && !h.TCP && len(b.r.Problems) == 0:
		b.fault(at, "write http: /healthz, or tcp: true", "the check says neither http nor tcp")
	case h.TCP && h.Host != "":
		b.fault(append(at, "host"), "leave it out", "it has no effect on a tcp check")
	case h.TCP && b.has("health_check") && strict.Find(b.node(at...), "status") != nil:
		b.fault(append(at, "status"), "leave it out", "it has no effect on a tcp check")
	case h.HTTP != "" && !strings.HasPrefix(h.HTTP, "/"):
		b.fault(append(at, "http"), "write /"+h.HTTP, "%q does not begin with a slash", h.HTTP)
	case h.Interval < form.Duration(10*time.Millisecond):
		b.fault(append(at, "interval"), "write 10s", "the interval is too short")
	case h.Timeout == 0:
		b.fault(append(at, "timeout"), "write 2s", "a check needs a timeout")
	}
	out := &plan.Health{
		Path: h.HTTP, Host: h.Host, Interval: time.Duration(h.Interval), Timeout: time.Duration(h.Timeout),
		Rise: h.Rise, Fall: h.Fall, SendProxy: sendProxy,
	}
	if h.HTTP != "" {
		out.StatusMin, out.StatusMax = h.Status.Min, h.Status.Max
	}
	return out
}

// agree finds conditions and actions of one route that exclude each other.
func (b *builder) agree(f *form.Route, r *plan.Route) {
	conn := r.Match.Protocols & plan.ConnProtocols
	protocols := []string{"match", "protocols"}
	if conn != 0 && conn != r.Match.Protocols {
		b.fault(protocols, "write two routes", "tcp, ssh and tls are kinds of connections, the others of requests")
	}
	b.agreeTLS(f, r, protocols)
	if !tunnel(r) || r.TLS.Ends() {
		return
	}
	switch r.Action.(type) {
	case plan.Redirect, plan.Respond, plan.Files:
		b.fault([]string{"action"}, "leave protocols tcp, ssh, tls and passthrough out of this route", "a tunnel is not opened, so it cannot be answered")
	}
	for _, c := range []struct {
		key string
		set bool
	}{{"path", len(f.Match.Path) > 0}, {"methods", len(f.Match.Methods) > 0}, {"headers", len(f.Match.Headers) > 0}, {"query", len(f.Match.Query) > 0}} {
		if c.set {
			b.fault([]string{"match", c.key}, "leave it out", "a tunnel is not opened, so its requests have no %s", c.key)
		}
	}
	if conn != 0 && conn&plan.ProtoTLS == 0 && len(f.Match.Domains) > 0 && r.TLS == nil {
		b.fault([]string{"match", "domains"}, "leave them out, or write tls: {mode: passthrough}", "raw tcp and ssh carry no name")
	}
	if f.Security.MaxBody > 0 {
		b.fault([]string{"security", "max_body"}, "leave it out", "a tunnel has no bodies")
	}
	if f.Timeouts.ResponseHeader != nil {
		b.fault([]string{"timeouts", "response_header"}, "leave it out", "a tunnel has no responses")
	}
	if l := f.Security.RateLimit; l != nil && strings.HasPrefix(string(l.Key), "header:") {
		b.fault([]string{"security", "rate_limit", "key"}, "write client_ip or route", "a tunnel has no header fields")
	}
}
