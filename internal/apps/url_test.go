package apps

import (
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestTheURLOfAnAppIsOfTheRouteThatAsksLeast(t *testing.T) {
	t.Parallel()
	at := func(port uint16) []plan.Addr { return []plan.Addr{plan.TCPAddr(loopback, port)} }
	to := plan.Forward{Upstream: "web"}
	p := &plan.Plan{Upstreams: []*plan.Upstream{{Name: "web", Targets: []plan.Target{{App: "web"}}}}}
	for _, c := range []struct {
		want  string
		route plan.Route
	}{ // each is better than those before it
		{"", plan.Route{Match: plan.Match{Ports: at(5432)}, Action: plan.Tunnel{Upstream: "web"}}},
		{"http://web.localhost:8080", plan.Route{
			Match: plan.Match{Ports: at(8080), Domains: []string{"web.localhost"}}, Action: plan.Forward{Upstream: "web", Preview: plan.PreviewOf{App: "web"}},
		}},
		{"https://in.test:8080", plan.Route{
			Match: plan.Match{Ports: at(8080), Domains: []string{"in.test"}}, TLS: &plan.TLS{Mode: plan.Passthrough}, Action: plan.Tunnel{Upstream: "web"},
		}},
		{"http://localhost:8080/api/", plan.Route{Match: plan.Match{Ports: at(8080), Paths: []string{"/api/*"}, Methods: []string{"POST"}}, Action: to}},
		{"http://localhost:8080/users/", plan.Route{Match: plan.Match{Ports: at(8080), Paths: []string{"/users/:id"}}, Action: to}},
		{"http://any.test/api/", plan.Route{Match: plan.Match{Ports: at(80), Domains: []string{"any.test"}, Paths: []string{"/api/*"}}, Action: to}},
		{"http://localhost:8080", plan.Route{Match: plan.Match{Ports: at(8080), Domains: []string{"*.test"}}, Action: to}},
		{"https://own.test", plan.Route{Match: plan.Match{Ports: at(443), Domains: []string{"*.test", "own.test"}}, TLS: &plan.TLS{}, Action: to}},
		{"http://web.test:8080", plan.Route{Match: plan.Match{Ports: at(8080), Domains: []string{"web.test"}}, Action: to}},
	} {
		p.Routes = append(p.Routes, &c.route)
		if got := urls(p)["web"].text(nil); got != c.want {
			t.Errorf("with %+v: %q, not %q", c.route.Match, got, c.want)
		}
	}
	elsewhere := func(plan.Addr) plan.Addr { return plan.TCPAddr(loopback, 80) }
	if got := urls(p)["web"].text(elsewhere); got != "http://web.test" {
		t.Errorf("on another port: %q", got)
	}
}
