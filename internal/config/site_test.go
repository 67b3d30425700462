package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// routesOf prints the routes of a plan but for those of challenges.
func routesOf(p *plan.Plan) string {
	var b strings.Builder
	for _, r := range p.Routes {
		if r.Priority > 1_000_000 {
			continue
		}
		fmt.Fprintf(&b, "%s %v%v", r.Name, r.Match.Ports, r.Match.Domains)
		if r.TLS != nil {
			fmt.Fprintf(&b, " %s %s", r.TLS.Mode, r.TLS.Certificate.Kind)
		}
		switch a := r.Action.(type) {
		case plan.Forward:
			b.WriteString(" ->")
			for _, t := range p.Upstream(a.Upstream).Targets {
				b.WriteString(" " + t.Text)
			}
		case plan.Redirect:
			fmt.Fprintf(&b, " %d %s", a.Status, a.To)
		default:
			fmt.Fprintf(&b, " %T", a)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestSites(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a name":     {"a.example.com: localhost:3000", "a.example.com [:443][a.example.com] terminate auto -> localhost:3000\nhttp://a.example.com [:80][a.example.com] 308 https\n"},
		"its scheme": {"\"https://A.example.com\": 3000", "A.example.com [:443][a.example.com] terminate auto -> localhost:3000\nhttp://A.example.com [:80][a.example.com] 308 https\n"},
		"plain":      {"\"http://a.example.com\": [3000, \"b:1\"]", "http://a.example.com [:80][a.example.com] -> localhost:3000 b:1\n"},
		"a port":     {"\"a.example.com:8443\": \"https://b\"", "a.example.com:8443 [:8443][a.example.com] terminate auto -> https://b\n"},
		"both, and a port": {
			"{a.test: 1, \"http://a.test\": 2, \"http://a.test:8443\": 3, \"a.test:8443\": 4}",
			"a.test [:443][a.test] terminate internal -> localhost:1\na.test:8443 [:8443][a.test] terminate internal -> localhost:4\n" +
				"http://a.test [:80][a.test] -> localhost:2\nhttp://a.test:8443 [:8443][a.test] -> localhost:3\n",
		},
		"addresses": {
			"{127.0.0.1: 1, \"[::1]\": ./, localhost: 3}",
			"127.0.0.1 [:443][127.0.0.1] terminate internal -> localhost:1\n[::1] [:443][::1] terminate internal plan.Files\nhttp://127.0.0.1 [:80][127.0.0.1] 308 https\n" +
				"http://[::1] [:80][::1] 308 https\nhttp://localhost [:80][localhost] 308 https\nlocalhost [:443][localhost] terminate internal -> localhost:3\n",
		},
		"actions": {
			"{www.test: {redirect: {to: \"https://a.test{path}\"}}, pass.test: {targets: [\"b:443\"], tls: {mode: passthrough}}}",
			"http://pass.test [:80][pass.test] 308 https\nhttp://www.test [:80][www.test] 308 https\npass.test [:443][pass.test] passthrough  plan.Tunnel\n" +
				"www.test [:443][www.test] terminate internal 308 https://a.test{path}\n",
		},
		"a redirect that somebody wrote": {
			"{a.test: 1}\nroutes: [{name: mine, match: {ports: [80], domains: [a.test]}, action: {block: }}]",
			"a.test [:443][a.test] terminate internal -> localhost:1\nmine [:80][a.test] plan.Block\n",
		},
		"ports of a trial": {
			"{a.test: 1, a.example.com: 2}\nacme: {http_port: 8080, tls_port: 8443}",
			"a.example.com [:8443][a.example.com] terminate auto -> localhost:2\na.test [:8443][a.test] terminate internal -> localhost:1\n" +
				"http://a.example.com [:8080][a.example.com] 308 https\nhttp://a.test [:8080][a.test] 308 https://{host}:8443{path}?{query}\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			text := c.text
			if !strings.HasPrefix(text, "{") {
				text = "{" + text + "}"
			}
			p := loadText(t, "sites: "+text+"\n")
			if got := routesOf(p); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
			for _, r := range p.Routes {
				if at := p.Where["route/"+r.Name]; at.Line == 0 && r.Priority < 1_000_000 {
					t.Errorf("nobody knows where %s is written", r.Name)
				}
			}
			for at := range p.Where {
				if name, ok := strings.CutPrefix(at, "route/"); ok && p.Route(name) == nil {
					t.Errorf("%s is nowhere", at)
				}
			}
		})
	}
}

// TestSitesFollowTheirPorts loads anew what has not changed in its own text.
func TestSitesFollowTheirPorts(t *testing.T) {
	r := newReloader(t)
	const text = "sites:\n  a.test: 1\n  b.test: 2\n"
	first, _ := r.load(text, nil)
	p, _ := r.load("acme: {tls_port: 8443}\n"+text, nil)
	if got := fmt.Sprint(p.Route("a.test").Match.Ports); got != "[:8443]" {
		t.Errorf("ports %s", got)
	}
	if first.Upstream("a.test") != p.Upstream("a.test") {
		t.Error("the upstream is another pointer")
	}
	first, _ = r.load(text, nil)
	p, _ = r.load(text+"  c.test: 3\n", nil)
	for _, name := range []string{"a.test", "http://a.test", "b.test", "http://b.test"} {
		if first.Route(name) != p.Route(name) {
			t.Errorf("%s is another pointer: %v", name, plan.Diff(first, p))
		}
	}
}
