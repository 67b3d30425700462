package config

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// leaves lists every key that a file may hold, as "routes.match.domains". Long forms stand under the key that takes them.
func leaves(t reflect.Type, path string, seen []reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	for short, long := range map[reflect.Type]reflect.Type{
		reflect.TypeFor[form.Port](): reflect.TypeFor[form.PortObject](), reflect.TypeFor[form.Target](): reflect.TypeFor[form.TargetObject](),
		reflect.TypeFor[form.Want](): reflect.TypeFor[form.WantObject](), reflect.TypeFor[form.Site](): reflect.TypeFor[form.Action](),
		reflect.TypeFor[form.AppEntry]():          reflect.TypeFor[form.App](),
		reflect.TypeFor[form.CertificateChoice](): reflect.TypeFor[form.KeyPair](), reflect.TypeFor[form.ChallengePort](): reflect.TypeFor[form.ChallengePortObject](),
	} {
		if t == short {
			t = long
		}
	}
	var out []string
	if t.Kind() == reflect.Struct && !slices.Contains(seen, t) {
		for i := range t.NumField() {
			if key := strict.Key(t.Field(i)); key != "" {
				out = append(out, leaves(t.Field(i).Type, strings.TrimPrefix(path+"."+key, "."), append(seen, t))...)
			}
		}
	}
	if out == nil {
		return []string{path}
	}
	return out
}

// noEffect are keys that change nothing, and why that is right.
var noEffect = map[string]string{
	"apps.ready.tcp":                     "it is the default, in words",
	"routes.action.type":                 "says in words what the block says",
	"routes.action.protocol":             "both values are HTTP/1.1 in this version; the others are refused",
	"routes.action.tls.alpn":             "http/1.1 is the only one in this version; others are refused",
	"connection_pool":                    "older form, warned about",
	"udp_listen_addrs":                   "older form, warned about",
	"quic_config":                        "older form, warned about",
	"http3_config":                       "older form, warned about",
	"protocol_routing":                   "older form, warned about",
	"proxy_protocol.ports.on_busy":       "refused there",
	"proxy_protocol.ports.take_over":     "refused there",
	"proxy_protocol.ports.reuse_port":    "refused there",
	"proxy_protocol.ports.fallback":      "refused there",
	"proxy_protocol.ports.port":          "refused there",
	"proxy_protocol.ports.give_up_after": "refused there",
}

func one(match, action, rest string) string {
	return fmt.Sprintf("routes:\n- name: a\n  match: {%s}\n  action: {%s}\n%s", match, action, rest)
}

const (
	port80 = "ports: [80]"
	toA    = `targets: ["a:1"]`
)

// effects has for each key a text in which it has a value that is not its default, and, where the one with only port 80
// and target a:1 will not do, a text to compare with.
func effects(dir string) map[string][2]string {
	out := map[string][2]string{}
	top := func(key, value string) { out[key] = [2]string{topLevel(key, value), ""} }
	for key, value := range map[string]string{
		"listen_addrs": "[81]", "allowlist": "[a.b]", "by_name.allow_private": "true", "by_name.resolver": "\"1.1.1.1:53\"", "by_name.ports": "[8443]",
		"bind": "127.0.0.1", "timeouts.connect": "1", "timeouts.client_hello": "1", "timeouts.tls_handshake": "1", "timeouts.sniff": "1", "timeouts.request_header": "1",
		"timeouts.keep_alive": "1", "timeouts.response_header": "1", "timeouts.body_stall": "1", "timeouts.idle": "1",
		"max_connections": "1", "max_connections_per_ip": "1", "connection_rate_per_ip": "1", "max_header_bytes": "2KiB",
		"shutdown_timeout": "1", "shutdown_delay": "1", "drain_timeout": "1", "trusted_proxies": "[10.0.0.0/8]",
		"metrics.enabled": "false", "metrics.address": "\":9000\"", "admin.socket": "/run/x.sock", "admin.mode": "\"0660\"", "admin.group": "x",
		"admin.allow": "[write]", "log.level": "debug", "log.format": "json", "log.access.enabled": "false", "log.access.format": "text",
		"log.access.sample": "2", "log.access.file": "/x", "state_dir": "/x", "app_ports": "4000-4100", "engine.kind": "docker", "engine.socket": "unix:///x", "engine.labels": "false", "engine.ports": "[8443]", "engine.domains": "[x.test]", "engine.import_traefik": "true", "port_policy.on_busy": "fail", "port_policy.give_up_after": "1",
		"port_policy.reuse_port": "true", "port_policy.take_over": "own", "sites": "{\"http://x.y\": 1}", "upstreams": "{x: {targets: [\"a:1\"]}}",
	} {
		top(key, value)
	}
	for key, value := range map[string]string{"fallback": "[81]", "on_busy": "fail", "give_up_after": "1", "reuse_port": "true", "take_over": "any", "port": "82"} {
		object := "{port: 80, " + key + ": " + value + "}"
		if key == "port" {
			object = "{port: 82}"
		}
		out["listen_addrs."+key] = [2]string{"listen_addrs: [" + object + "]\n", "listen_addrs: [80]\n"}
		out["routes.match.ports."+key] = [2]string{one("ports: ["+object+"]", toA, ""), ""}
	}
	proxy := "proxy_protocol: {ports: [80], from: [10.0.0.0/8], policy: %s}\n" + one(port80, toA, "")
	out["proxy_protocol.ports"] = [2]string{fmt.Sprintf(proxy, "require"), ""}
	out["proxy_protocol.from"] = [2]string{strings.Replace(fmt.Sprintf(proxy, "require"), "10.", "11.", 1), fmt.Sprintf(proxy, "require")}
	out["proxy_protocol.policy"] = [2]string{fmt.Sprintf(proxy, "accept"), fmt.Sprintf(proxy, "require")}
	out["admin.address"] = [2]string{"admin: {address: \":9\", token_file: testdata/token}\n" + one(port80, toA, ""), ""}
	out["admin.token_file"] = [2]string{out["admin.address"][0], "admin: {address: \":9\", token_file: testdata/token2}\n" + one(port80, toA, "")}
	ssh := "ssh_routes: [{listen_port: 2222, destination_host: h, destination_port: 23}]\n"
	for key, was := range map[string]string{"listen_port": "2222", "destination_host": " h,", "destination_port": "23}"} {
		out["ssh_routes."+key] = [2]string{ssh, strings.Replace(ssh, was, strings.NewReplacer("2222", "2223", "h", "i", "23}", "24}").Replace(was), 1)}
	}
	tlsEffects(out, dir)
	acmeEffects(out, dir)
	routeEffects(out)
	actionEffects(out)
	appEffects(out)
	return out
}

func topLevel(key, value string) string {
	parts := strings.Split(key, ".")
	text := value
	for i := len(parts) - 1; i > 0; i-- {
		text = "{" + parts[i] + ": " + text + "}"
	}
	return parts[0] + ": " + text + "\n" + one(port80, toA, "")
}

func routeEffects(out map[string][2]string) {
	for key, value := range map[string]string{
		"domains": "[a.b]", "path": "[/x]", "methods": "[GET]", "headers": "{X: y}", "query": "{x: y}", "client_ips": "[10.0.0.0/8]", "protocols": "[websocket]",
	} {
		out["routes.match."+key] = [2]string{one(port80+", "+key+": "+value, toA, ""), ""}
	}
	for _, key := range []string{"headers", "query"} {
		out["routes.match."+key+".regex"] = [2]string{one(port80+", "+key+": {X: {regex: y}}", toA, ""), one(port80+", "+key+": {X: y}", toA, "")}
	}
	for key, value := range map[string]string{
		"priority": "1", "on_remove": "close", "timeouts.connect": "1", "timeouts.response_header": "1", "timeouts.body_stall": "1", "timeouts.idle": "1",
		"security.allow": "[10.0.0.0/8]", "security.deny": "[10.0.0.0/8]", "security.max_connections": "1", "security.max_body": "1",
	} {
		block, inner, nested := strings.Cut(key, ".")
		if nested {
			value = "{" + inner + ": " + value + "}"
		}
		out["routes."+key] = [2]string{one(port80, toA, "  "+block+": "+value+"\n"), ""}
	}
	limit := func(s string) string { return one(port80, toA, "  security: {rate_limit: {"+s+"}}\n") }
	for key, value := range map[string]string{"requests": "2", "per": "2", "burst": "7", "key": "route"} {
		with := "requests: 1, " + key + ": " + value
		if key == "requests" {
			with = "requests: 2"
		}
		out["routes.security.rate_limit."+key] = [2]string{limit(with), limit("requests: 1")}
	}
	out["routes.name"] = [2]string{strings.Replace(one(port80, toA, ""), "name: a", "name: b", 1), ""}
}

func actionEffects(out map[string][2]string) {
	for key, value := range map[string]string{
		"load_balance.policy": "ip_hash", "load_balance.slow_start": "1", "load_balance.sticky.cookie": "x",
		"passive_health.fails": "1", "passive_health.within": "1", "passive_health.out": "1",
		"pool.max_per_target": "1", "pool.max_idle": "1", "pool.idle": "1", "pool.max_age": "1", "pool.queue": "1", "pool.queue_timeout": "1",
		"retries.attempts": "3", "retries.on": "[502]", "retries.budget": "1%", "send_proxy_protocol": "v1",
		"rewrite.strip_prefix": "/x", "rewrite.add_prefix": "/x", "rewrite.set_host": "target", "rewrite.path": "/x",
		"request_headers.set": "{X: y}", "request_headers.add": "{X: y}", "request_headers.remove": "[X]",
		"response_headers.set": "{X: y}", "response_headers.add": "{X: y}", "response_headers.remove": "[X]",
	} {
		with, without := nest(key, value), ""
		if block, _, _ := strings.Cut(key, "."); block == "passive_health" || block == "pool" || block == "retries" { // else the block itself makes the difference
			without = one(port80, toA+", "+block+": {}", "")
		}
		out["routes.action."+key] = [2]string{one(port80, toA+", "+with, ""), without}
	}
	for key, value := range map[string]string{
		"http": "/y", "host": "x", "status": "200", "interval": "1", "timeout": "1", "rise": "1", "fall": "1",
	} {
		with := "health_check: {http: /x, " + key + ": " + value + "}"
		if key == "http" {
			with = "health_check: {http: /y}"
		}
		out["routes.action.health_check."+key] = [2]string{one(port80, toA+", "+with, ""), one(port80, toA+", health_check: {http: /x}", "")}
	}
	out["routes.action.health_check.tcp"] = [2]string{one(port80, toA+", health_check: {tcp: true}", ""), one(port80, toA, "")}
	for key, value := range map[string]string{"host": "b", "port": "2", "weight": "2", "max_connections": "2", "tls": "true"} {
		object := map[string]string{"host": "a", "port": "1"}
		object[key] = value
		text := fmt.Sprint(object)
		text = strings.NewReplacer("map[", "{", "]", "}", ":", ": ", " ", ", ").Replace(text)
		out["routes.action.targets."+key] = [2]string{one(port80, "targets: ["+text+"]", ""), one(port80, "targets: [{host: a, port: 1}]", "")}
	}
	out["routes.action.upstream"] = [2]string{
		"upstreams: {x: {targets: [\"a:1\"]}, y: {targets: [\"a:1\"]}}\n" + one(port80, "upstream: x", ""),
		"upstreams: {x: {targets: [\"a:1\"]}, y: {targets: [\"a:1\"]}}\n" + one(port80, "upstream: y", ""),
	}
	for key, value := range map[string]string{
		"redirect.to": "/x", "redirect.status": "301", "respond.status": "201", "respond.body": "x", "respond.headers": "{X: y}",
		"files.root": "testdata", "files.browse": "true", "files.index": "[x]", "files.spa": "true", "block.status": "404",
	} {
		block, inner, _ := strings.Cut(key, ".")
		base := map[string]string{"redirect": "to: https", "files": "root: ."}[block]
		with := base + ", " + inner + ": " + value
		if base == "" || strings.HasPrefix(base, inner+":") {
			with = inner + ": " + value
		}
		out["routes.action."+key] = [2]string{one(port80, block+": {"+with+"}", ""), one(port80, block+": {"+base+"}", "")}
	}
}

func appEffects(out map[string][2]string) {
	app := func(keys string) string {
		return "apps: {db: {command: y}, web: {command: x" + keys + "}}\n" + one(port80, toA, "")
	}
	for key, value := range map[string]string{
		"dir": "sub", "user": "nobody", "env": "{A: b}", "env_required": "[A]", "inherit_env": "true", "port": "3000", "socket": "fd", "on_port_busy": "fail",
		"ready.http": "/x", "ready.log": "x", "ready.timeout": "1", "restart.policy": "no", "restart.backoff": "2", "restart.max_backoff": "40", "restart.max": "2",
		"restart.within": "1", "restart.min_uptime": "1", "stop.signal": "INT", "stop.timeout": "1", "start": "on_request", "idle_stop": "1", "depends_on": "[db]",
		"limits.nofile": "10", "limits.cpu": "0.5", "limits.memory": "1GiB", "logs.lines": "1", "logs.files": "1",
	} {
		out["apps."+key] = [2]string{app(", " + nest(key, value)), app("")}
	}
	for key, value := range map[string]string{"http": "/x", "interval": "1", "timeout": "1", "fall": "1", "on_unhealthy": "nothing"} {
		out["apps.health."+key] = [2]string{app(", " + nest("health."+key, value)), app(", health: {}")}
	}
	shown := app(", preview: true")
	out["apps.preview"] = [2]string{shown, app("")}
	for key, value := range map[string]string{"bind": "127.0.0.2", "port": "8081", "path": "/p", "domain": "x.test", "base_href": "true"} {
		out["previews."+key] = [2]string{"previews: {" + key + ": " + value + "}\n" + shown, shown}
	}
	boxed := app(", image: a")
	out["apps.image"] = [2]string{boxed, app("")}
	out["apps.container_port"] = [2]string{app(", image: a, container_port: 80"), boxed}
	out["engine.pull"] = [2]string{"engine: {pull: never}\n" + boxed, boxed}
	out["apps.command"] = [2]string{strings.Replace(app(""), "command: x", "command: z", 1), app("")}
}

func nest(key, value string) string {
	parts := strings.Split(key, ".")
	for i := len(parts) - 1; i > 0; i-- {
		value = "{" + parts[i] + ": " + value + "}"
	}
	return parts[0] + ": " + value
}

// TestEveryKeyHasAnEffect walks the types of a file and demands of every key that it changes the plan, so that nothing is
// ever accepted and dropped.
func TestEveryKeyHasAnEffect(t *testing.T) {
	if err := os.WriteFile("testdata/token2", []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove("testdata/token2")
	load := func(text string) *plan.Plan {
		l := NewLoader()
		l.Env = testEnv
		p, _, err := l.Load([]Source{{Name: "q.yaml", Bytes: []byte(text)}}, nil)
		if err != nil {
			t.Errorf("%v\n%s", err, text)
			return &plan.Plan{}
		}
		return p
	}
	known := effects(makeTwins(t))
	all := leaves(reflect.TypeFor[form.File](), "", nil)
	for _, key := range all {
		text, ok := known[key]
		switch {
		case strings.HasPrefix(key, "sites.") || strings.HasPrefix(key, "upstreams."): // read by the same code as an action
			continue
		case noEffect[key] != "":
			if ok {
				t.Errorf("%s has an effect and is listed as having none", key)
			}
			continue
		case !ok:
			if strings.HasSuffix(key, ".port") || !slices.ContainsFunc(all, func(k string) bool { return strings.HasPrefix(k, key+".") }) {
				t.Errorf("%s: no text shows its effect", key)
			}
			continue
		}
		if text[1] == "" {
			text[1] = one(port80, toA, "")
		}
		with, without := load(text[0]), load(text[1])
		if len(plan.Diff(without, with)) == 0 {
			t.Errorf("%s changes nothing:\n%s", key, text[0])
		}
	}
	for key := range known {
		if !slices.Contains(all, key) && !slices.ContainsFunc(all, func(k string) bool { return strings.HasPrefix(k, key+".") }) {
			t.Errorf("%s is no key", key)
		}
	}
}

// TestEveryActionKeyIsReadInUpstreamsAndSites shows that both use the whole of an action.
func TestEveryActionKeyIsReadInUpstreamsAndSites(t *testing.T) {
	p := loadText(t, `
upstreams:
  web:
    targets: [{host: a, port: 1, weight: 3}]
    load_balance: {policy: random_two}
    health_check: {tcp: true}
    send_proxy_protocol: v2
    response_headers: {remove: [server]}
sites:
  http://x.y: {upstream: web, request_headers: {set: {x-a: "{route}"}}}
`)
	u := p.Upstream("web")
	if u.Targets[0].Weight != 3 || u.Balance.Policy != "random_two" || u.Health == nil || u.Health.SendProxy != 2 {
		t.Errorf("upstream %+v", u)
	}
	f := route(t, p, "http://x.y").Action.(plan.Forward)
	if f.SendProxy != 2 || f.ResponseHeaders.Remove[0] != "Server" || f.RequestHeaders.Set[0] != (plan.Header{Name: "X-A", Value: "{route}"}) {
		t.Errorf("action %+v", f)
	}
}

// TestWhatIsNotInThisVersionIsRefused writes each line of the table and sees it named.
func TestWhatIsNotInThisVersionIsRefused(t *testing.T) {
	where := map[string]string{
		"File": "%s\n", "Engine": "engine: {%s}\n", "Timeouts": "timeouts: {%s}\n", "PortPolicy": "port_policy: {%s}\n",
		"PortObject":  "routes: [{match: {ports: [{port: 80, %s}]}, action: {block: }}]\n",
		"Match":       "routes: [{match: {ports: [80], %s}, action: {block: }}]\n",
		"Action":      "routes: [{match: {ports: [80]}, action: {targets: [\"a:1\"], %s}}]\n",
		"App":         "apps: {web: {command: x, %s}}\n",
		"Target":      "routes: [{match: {ports: [80]}, action: {targets: [\"%s://a:1\"]}}]\n",
		"TLS":         "routes: [{match: {ports: [80]}, action: {targets: [\"a:1\"], tls: {%s}}}]\n",
		"HealthCheck": "routes: [{match: {ports: [80]}, action: {targets: [\"a:1\"], health_check: {http: /x, %s}}}]\n",
		"Security":    "routes: [{match: {ports: [80]}, action: {block: }, security: {%s}}]\n",
	}
	for owner, list := range notYet {
		for _, key := range list {
			text := key + ": {}"
			name, value, isValue := strings.Cut(key, "=")
			switch {
			case owner == "Target":
				text = key
			case name == "protocols" || name == "alpn":
				text = name + ": [" + value + "]"
			case isValue:
				text = name + ": " + value
			}
			if isValue {
				name = value
			}
			_, _, err := tryText(t, fmt.Sprintf(where[owner], text))
			if err == nil || !strings.Contains(err.Error(), "not in this version") || !strings.Contains(err.Error(), name) {
				t.Errorf("%s %s: %v", owner, key, err)
			}
		}
	}
}
