package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// portsOf prints the ports of a plan: address and users.
func portsOf(p *plan.Plan) string {
	var b strings.Builder
	for _, port := range p.Ports {
		fmt.Fprintf(&b, "%s[%s]", port.Addr, strings.Join(port.Users, ","))
		if len(port.Fallback) > 0 {
			fmt.Fprintf(&b, " else %v", port.Fallback)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestPorts(t *testing.T) {
	tunnel := func(name, match string) string {
		return fmt.Sprintf("- {name: %s, match: {%s}, action: {targets: [\"a:1\"]}}\n", name, match)
	}
	web := func(name, ports string) string {
		return fmt.Sprintf("- {name: %s, match: {ports: [%s], path: [/%s]}, action: {block: }}\n", name, ports, name)
	}
	for name, c := range map[string]struct{ text, want string }{
		"kinds of addresses": {
			"routes:\n" + web("a", `80, ":81", "0.0.0.0:82", "[::]:83", "127.0.0.1:84", "[::1]:85", "[::ffff:10.0.0.1]:86", "unix:/run/x.sock", "fd:https"`),
			"fd:https[route a]\n:80[route a]\n:81[route a]\n0.0.0.0:82[route a]\n[::]:83[route a]\n127.0.0.1:84[route a]\n[::1]:85[route a]\n10.0.0.1:86[route a]\nunix:/run/x.sock[route a]\n",
		},
		"bind is for bare numbers": {
			"bind: [127.0.0.1, \"::1\"]\nroutes:\n" + web("a", `80, ":81"`),
			"127.0.0.1:80[route a]\n[::1]:80[route a]\n:81[route a]\n",
		},
		"a range": {"routes:\n" + web("a", `"127.0.0.1:8000-8002"`), "127.0.0.1:8000[route a]\n127.0.0.1:8001[route a]\n127.0.0.1:8002[route a]\n"},
		"shared by all that want it": {
			"listen_addrs: [80]\nsites: {\"http://x.y\": 1}\nroutes:\n" + web("b", "80") + web("a", "80"),
			":80[by_name,route a,route b,route http://x.y]\n",
		},
		"the wildcard swallows, in its family": {
			"routes:\n" + web("a", `"127.0.0.1:80"`) + web("b", "80") + web("c", `"[::1]:81", "0.0.0.0:81", "127.0.0.1:81"`),
			":80[route a,route b]\n0.0.0.0:81[route c]\n[::1]:81[route c]\n",
		},
		"both wildcards of a port beside each other": {"routes:\n" + web("a", `"0.0.0.0:80", "[::]:80"`), "0.0.0.0:80[route a]\n[::]:80[route a]\n"},
		"fallbacks stay on the host": {
			"routes:\n" + web("a", `{port: "127.0.0.1:80", fallback: ["8080-8081", "0.0.0.0:9090"]}`),
			"127.0.0.1:80[route a] else [127.0.0.1:8080 127.0.0.1:8081 0.0.0.0:9090]\n",
		},
		"nothing but tcp":          {"routes:\n" + tunnel("a", "ports: [80], protocols: [tcp]"), ":80[route a]\n"},
		"tcp split by client":      {"routes:\n" + tunnel("a", "ports: [80], protocols: [tcp], client_ips: [10.0.0.1]") + tunnel("b", "ports: [80], protocols: [tcp]"), ":80[route a,route b]\n"},
		"nothing but ssh":          {"routes:\n" + tunnel("a", "ports: [80], protocols: [ssh]"), ":80[route a]\n"},
		"ssh and tcp must be told": {"routes:\n" + tunnel("a", "ports: [80], protocols: [ssh]") + tunnel("b", "ports: [80], protocols: [tcp]"), ":80[route a,route b]\n"},
		"tls shows its name":       {"routes:\n" + tunnel("a", "ports: [80], protocols: [tls], domains: [a.b]"), ":80[route a]\n"},
		"tls for any name":         {"routes:\n- {name: a, match: {ports: [80]}, action: {targets: [\"a:1\"], tls: {mode: passthrough}}}\n", ":80[route a]\n"},
		"tcp beside tcp that is blocked": {
			"routes:\n" + tunnel("a", "ports: [80], protocols: [tcp]") + "- {name: b, match: {ports: [\"127.0.0.1:80\"], protocols: [tcp]}, action: {block: }}\n",
			":80[route a,route b]\n",
		},
		"tcp beside http":    {"routes:\n" + tunnel("a", "ports: [80], protocols: [tcp]") + web("b", "80"), ":80[route a,route b]\n"},
		"tcp beside by-name": {"listen_addrs: [80]\nroutes:\n" + tunnel("a", "ports: [80], protocols: [tcp]"), ":80[by_name,route a]\n"},
		"tcp beside http on one address": {
			"routes:\n" + tunnel("a", "ports: [80], protocols: [tcp]") + web("b", `"127.0.0.1:80"`), ":80[route a,route b]\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := portsOf(loadText(t, c.text)); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

func TestARangeThatPreservesThePort(t *testing.T) {
	p := loadText(t, "routes: [{name: r, match: {ports: [\"9000-9099\"], protocols: [tcp]}, action: {targets: [{host: h, port: preserve}]}}]\n")
	target := p.Upstream("r").Targets[0]
	if len(p.Ports) != 100 || len(p.Routes[0].Match.Ports) != 100 || !target.PreservePort || target.Text != "h:preserve" {
		t.Errorf("%d ports, target %+v", len(p.Ports), target)
	}
}

func TestPortPolicyAndProxyProtocol(t *testing.T) {
	p := loadText(t, `
trusted_proxies: [10.0.0.0/8]
proxy_protocol: {ports: [443, "127.0.0.1:444"]}
port_policy: {give_up_after: 5m, reuse_port: true}
routes:
- {name: a, match: {ports: [{port: "127.0.0.1:443", on_busy: fail}, 444, 445]}, action: {block: }}
`)
	if got := p.Ports[0].Policy; got != (plan.PortPolicy{OnBusy: "fail", GiveUpAfter: 5 * time.Minute, TakeOver: "never", ReusePort: true}) {
		t.Errorf("policy %+v", got)
	}
	want := &plan.ProxyProtocol{From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Require: true}
	for i, w := range []*plan.ProxyProtocol{want, want, nil} {
		if !reflect.DeepEqual(p.Ports[i].Proxy, w) {
			t.Errorf("%s: %+v", p.Ports[i].Addr, p.Ports[i].Proxy)
		}
	}
}

// TestTheOlderFlatForm loads the form of the by-name forwarder exactly as it is written there.
func TestTheOlderFlatForm(t *testing.T) {
	p, warnings, err := tryText(t, `
listen_addrs: ["0.0.0.0:80", "0.0.0.0:443", "0.0.0.0:2222"]
timeouts: {connect: 10, client_hello: 5, idle: 300}
metrics: {enabled: true, address: "127.0.0.1:9000"}
max_connections: 10000
shutdown_timeout: 30
allowlist: ["*.Example.com", "api.example.org.:443", "[2001:DB8::1]:443"]
connection_pool: {enabled: true, max_per_host: 100}
udp_listen_addrs: ["0.0.0.0:443"]
quic_config: {max_concurrent_streams: 100}
http3_config: {max_field_section_size: 8192}
protocol_routing: {socketio: {enabled: true}}
ssh_routes:
  - {listen_port: 22, destination_host: gate.internal, destination_port: 2200}
  - {listen_port: 2222, destination_host: 10.0.0.5}
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 5 {
		t.Errorf("%d warnings: %v", len(warnings), warnings)
	}
	for _, w := range warnings {
		if w.Line == 0 || w.Remedy == "" {
			t.Errorf("incomplete: %+v", w)
		}
	}
	want := "0.0.0.0:80[by_name]\n0.0.0.0:443[by_name]\n0.0.0.0:2222[by_name,route ssh-2222]\n"
	if got := portsOf(p); got != ":22[route ssh-22]\n"+want {
		t.Errorf("ports\n%s", got)
	}
	if _, ok := p.Route(ByNameRoute).Action.(plan.ByName); !ok {
		t.Error("listen_addrs did not become a by-name route")
	}
	ssh := p.Route("ssh-2222")
	if ssh.Match.Protocols != plan.ProtoSSH || p.Upstream("ssh-2222").Targets[0].Text != "10.0.0.5:22" || p.Where["route/ssh-2222"].Line != 15 {
		t.Errorf("%+v %+v %+v", ssh, p.Upstream("ssh-2222"), p.Where["route/ssh-2222"])
	}
	s := p.Settings
	if s.Timeouts.Connect != 10*time.Second || s.Timeouts.Idle != 5*time.Minute || s.Metrics.Address != "127.0.0.1:9000" ||
		!reflect.DeepEqual(s.ByName.Allowlist, []string{"*.example.com", "2001:db8::1", "api.example.org"}) {
		t.Errorf("settings %+v", s)
	}
}

func TestMatchesAndActionsAreNormal(t *testing.T) {
	p := loadText(t, `
routes:
- name: 56
  match:
    ports: [8080, 80, 80]
    domains: ["B.example.com.", "*.a.example.com", b.example.com]
    client_ips: ["::ffff:10.0.0.1", 10.1.2.3/8]
    headers: {x-b: "1", X-A: {regex: "^z"}}
    protocols: [soap, http1]
  action: {targets: ["a:1", "unix:/run/a.sock"], request_headers: {set: {x-b: "2", X-A: "1"}, remove: [x-z, X-C]}}
- match: {ports: [81], protocols: [tls]}
  action: {targets: ["a:1"]}
`)
	r := route(t, p, "56")
	m := r.Match
	if fmt.Sprint(m.Ports, m.Domains, m.Clients, m.Headers, m.Protocols.Names()) !=
		"[:80 :8080] [*.a.example.com b.example.com] [10.0.0.0/8 10.0.0.1/32] [{X-A  ^z} {X-B 1 }] [http1 soap]" {
		t.Errorf("match %+v", m)
	}
	f := r.Action.(plan.Forward)
	if fmt.Sprint(f.RequestHeaders) != "{[{X-A 1} {X-B 2}] [] [X-C X-Z]}" || f.Upstream != "56" {
		t.Errorf("action %+v", f)
	}
	if u := p.Upstream("56"); !u.Inline || u.Targets[1].Network != plan.Unix || u.Targets[1].Host != "/run/a.sock" || u.Passive.Fails != 0 || u.Pool.MaxIdle != 128 {
		t.Errorf("upstream %+v", u)
	}
	if unnamed := p.Routes[1]; !strings.HasPrefix(unnamed.Name, "route-") || unnamed.TLS == nil || unnamed.TLS.Mode != plan.Passthrough {
		t.Errorf("the route without a name is %+v", unnamed)
	}
}

// TestANameFromTheMatchStaysWhenOtherThingsChange keeps metrics and API names of unnamed routes.
func TestANameFromTheMatchStaysWhenOtherThingsChange(t *testing.T) {
	a := loadText(t, "routes: [{match: {ports: [80], path: [/a]}, action: {block: }}]\n").Routes[0].Name
	b := loadText(t, "# moved\nroutes: [{action: {respond: }, match: {path: [/a], ports: [80]}}]\n").Routes[0].Name
	c := loadText(t, "routes: [{match: {ports: [81], path: [/a]}, action: {block: }}]\n").Routes[0].Name
	if a != b || a == c {
		t.Errorf("names %s, %s and %s", a, b, c)
	}
}

func TestVariablesAreReadAsWhatTheKeyWants(t *testing.T) {
	p := loadText(t, `
max_connections: ${PORT}
metrics: {enabled: "${YES}"}
state_dir: "${EMPTY:-/a}/$${PORT}/${UNSET:-b}/$5"
log: {format: "${UNSET:-json}"}
sites: {"http://${NAME}.example.com": "${PORT}"}
upstreams: {"${NAME}": {targets: ["${NAME}:${PORT}"]}}
routes:
- {name: "${NAME}", match: {ports: ["${PORT}-8125"]}, action: {upstream: "${NAME}"}}
`)
	s := p.Settings
	if s.MaxConnections != 8123 || s.StateDir != "/a/${PORT}/b/$5" || s.LogFormat != "json" || len(p.Ports) != 4 {
		t.Errorf("settings %+v, ports %s", s, portsOf(p))
	}
	if p.Upstream("web").Targets[0].Text != "web:8123" || p.Upstream("http://web.example.com").Targets[0].Text != "localhost:8123" {
		t.Error("targets are not what the variables say")
	}
}

func TestExpandHidesSecretsAndShowsDefaults(t *testing.T) {
	l := NewLoader()
	l.Env = testEnv
	p, _, err := l.Load([]Source{{Name: "q.yaml", Bytes: []byte("admin: {address: \":9\", token_file: testdata/token}\n" + item3("a"))}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.Settings.Admin.Token != "secret" {
		t.Errorf("the token is %#v", string(p.Settings.Admin.Token))
	}
	got := string(Expand(p))
	for _, want := range []string{"token: '***'", "max_connections: 10000", "policy: round_robin", "type: forward", "keep_alive: 1m15s", "addr: :80"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in\n%s", want, got)
		}
	}
	if strings.Contains(got, "secret") {
		t.Error("the secret is shown")
	}
}

// TestLeaseRangeNotWrittenGivesWay keeps a configuration that never heard of leases valid.
func TestLeaseRangeNotWrittenGivesWay(t *testing.T) {
	p := loadText(t, one("ports: [32100]", toA, ""))
	if p.Settings.AppPorts != (plan.PortRange{Lo: 32100, Hi: 32200}) {
		t.Errorf("app_ports %v", p.Settings.AppPorts)
	}
	if _, _, err := tryText(t, one("ports: [32100]", toA, "app_ports: 32100-32200\n")); err == nil {
		t.Error("the same range, written, covers a route's port and was taken")
	}
}
