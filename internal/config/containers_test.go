package config

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/engine/labels"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// box is a container that publishes its port 80 at 127.0.0.1:8000 + its age.
func box(name string, age int, with ...string) labels.Container {
	c := labels.Container{
		Name: name, Engine: "podman", Created: int64(age), Labels: map[string]string{},
		Ports: []labels.Port{{Number: 80, At: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(8000+age))}},
	}
	for _, l := range with {
		k, v, _ := strings.Cut(l, "=")
		c.Labels[k] = v
	}
	if c.Labels[labels.EnableTraefik] == "" {
		c.Labels[labels.Enable] = "true"
	}
	return c
}

func host(name string, age int, hosts string, with ...string) labels.Container {
	return box(name, age, append([]string{"quaymaster.host=" + hosts}, with...)...)
}

func loadWith(t *testing.T, l *Loader, text string, layer *Layer, list ...labels.Container) (*plan.Plan, []Refusal) {
	t.Helper()
	p, _, refused, err := l.LoadWith([]Source{{Name: "/q.yaml", Bytes: []byte(text)}}, layer, list)
	if err != nil {
		t.Fatal(err)
	}
	return p, refused
}

func said(refused []Refusal) string {
	var out []string
	for i := range refused {
		out = append(out, refused[i].String()+"; "+refused[i].Remedy)
	}
	return strings.Join(out, "\n")
}

// TestLabelsMakeTheRoutesOfASite shows that a host in a label is what it is as the key of a site.
func TestLabelsMakeTheRoutesOfASite(t *testing.T) {
	p, refused := loadWith(t, NewLoader(), "", nil, host("web", 1, "app.test", "quaymaster.path=/v1/*, /v2"))
	if len(refused) > 0 {
		t.Fatal(said(refused))
	}
	r := route(t, p, "web@podman")
	if r.TLS == nil || r.TLS.Certificate.Kind != plan.CertInternal || r.Source != "container web (podman)" || !r.Source.Container() ||
		!slices.Equal(r.Match.Domains, []string{"app.test"}) || !slices.Equal(r.Match.Paths, []string{"/v1/*", "/v2"}) || r.Match.Ports[0].Port != 443 {
		t.Errorf("%+v", r)
	}
	if u := p.Upstream("web@podman"); u.Targets[0].Text != "127.0.0.1:8001" {
		t.Errorf("%+v", u)
	}
	to := route(t, p, "http://app.test")
	if a := to.Action.(plan.Redirect); a.To != "https" || to.Match.Ports[0].Port != 80 || to.Source != r.Source {
		t.Errorf("%+v", to)
	}
	if len(p.Certificates) != 1 || len(p.Ports) != 2 {
		t.Errorf("%d certificates, %d ports", len(p.Certificates), len(p.Ports))
	}
}

// TestWhatLabelsMayHave is the table of what `engine` allows.
func TestWhatLabelsMayHave(t *testing.T) {
	const sites = "sites: {\"http://a.test:8081\": 1, b.test: 1}\n"
	for _, c := range []struct{ name, file, host, want string }{
		{"the usual ports", "", "x.test", ":443"},
		{"the plain one", "", "http://x.test", ":80"},
		{"a port of sites", sites, "http://x.test:8081", ":8081"},
		{"no port of sites", sites, "http://x.test:8082", "engine.ports, by default the ports of sites, does not let labels have port 8082"},
		{"a port of routes is none of sites", "routes: [{name: a, match: {ports: [9000]}, action: {block: {}}}]\n", "http://x.test:9000", "does not let labels have port 9000"},
		{"a port that is written", "engine: {ports: [8443]}\n", "x.test:8443", ":8443"},
		{"the first that is written", "engine: {ports: [8443, 9443]}\n", "x.test", ":8443"},
		{"a range", "engine: {ports: [443, \"9000-9010\"]}\n", "x.test:9005", ":9005"},
		{"with an address", "engine: {ports: [\"127.0.0.1:9000\"]}\n", "http://x.test", "127.0.0.1:9000"},
		{"443 not", "engine: {ports: [8443]}\n", "x.test:443", "engine.ports does not let labels have port 443"},
		{"TLS on the plain port", "engine: {ports: [80]}\n", "x.test", "engine.ports does not let labels have port 443"},
		{"plain on 443", "", "http://x.test:443", "port 443 is for clients with TLS"},
		{"TLS on 80", "", "x.test:80", "port 80 is for clients without TLS"},
		{"acme's own ports", "acme: {http_port: 8080, tls_port: 8443}\n", "x.test", ":8443"},
		{"a domain", "engine: {domains: [\"*.test\"]}\n", "x.test", ":443"},
		{"another domain", "engine: {domains: [\"*.test\"]}\n", "x.y.test", "engine.domains does not let labels have x.y.test"},
		{"a deep domain", "engine: {domains: [\"**.test\"]}\n", "x.y.test", ":443"},
		{"its end", "engine: {domains: [\"**.test\"]}\n", "http://test", "engine.domains does not let labels have test"},
		{"an exact one", "engine: {domains: [x.test]}\n", "xx.test", "engine.domains does not let labels have xx.test"},
		{"a pattern", "", "http://*.test", "labels may not have *.test"},
		{"a pattern that is written", "engine: {domains: [\"*.test\"]}\n", "http://*.test", ":80"},
		{"a pattern below one", "engine: {domains: [\"**.test\"]}\n", "http://*.a.test", ":80"},
		{"a wider pattern", "engine: {domains: [\"*.a.test\"]}\n", "http://**.a.test", "engine.domains does not let labels have **.a.test"},
		{"no domain", "", "http://x_y..test", "is no domain"},
		{"a variable", "", "${HOST}", "labels hold no variables"},
		{"a file", "", "file:/etc/passwd", "labels hold no variables"},
		{"a host of the file", sites, "b.test", `b.test on port 443 is route "b.test" at /q.yaml:1`},
		{"a host of the file, in another spelling", sites, "B.test.", `b.test on port 443 is route "b.test" at /q.yaml:1`},
		{"the redirect of a site", sites, "http://b.test", `b.test on port 80 is route "http://b.test" at /q.yaml:1`},
		{"a host of the file on another port", sites, "http://a.test", ":80"},
		{"no certificate", "acme: {email: a@b.c}\nengine: {domains: [\"*.example.com\"]}\n", "*.example.com", "dns-01"},
		{"a port that is leased", "engine: {ports: [\"9000-9100\"]}\napp_ports: 9050-9060\n", "http://x.test:9055", "port 9055 is one of app_ports 9050-9060"},
		{"the port of an app", "engine: {ports: [\"9000-9100\"]}\napps: {web: {command: x, user: root, port: 9001}}\n", "http://x.test:9001", "port 9001 is the port of app web"},
		{"two kinds of certificate", "", "x.test, x.example.com", "would get a certificate from a CA"},
		{"labels off", "engine: {labels: false}\n", "x.test", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, refused := loadWith(t, NewLoader(), c.file, nil, host("web", 1, c.host), host("well", 2, "http://well.test:80"))
			r := p.Route("web@podman")
			switch {
			case c.want == "":
				if r != nil || len(refused) > 0 || p.Route("well@podman") != nil {
					t.Errorf("%+v %s", r, said(refused))
				}
			case strings.Contains(c.want, " ") || c.want == "dns-01":
				var mine []Refusal
				for _, f := range refused {
					if f.Container == "container web (podman)" {
						mine = append(mine, f)
					}
				}
				if r != nil || len(mine) != 1 || !strings.Contains(mine[0].Message, c.want) || mine[0].Remedy == "" || mine[0].Label != "quaymaster.host" {
					t.Errorf("%+v\n got %s\nwant %s", r, said(refused), c.want)
				}
			case r == nil || len(r.Match.Ports) != 1 || r.Match.Ports[0].String() != c.want:
				t.Errorf("%+v %s", r, said(refused))
			}
		})
	}
}

// TestABadLabelIsRefusedAlone mixes well and bad ones: each bad one is named, and nothing else changes.
func TestABadLabelIsRefusedAlone(t *testing.T) {
	l := NewLoader()
	const file = "sites: {file.test: 1}\nupstreams: {u: {targets: [\"a:1\"]}}\n"
	well := []labels.Container{host("one", 1, "one.test"), host("two", 2, "two.test, http://two.test:80")}
	before, refused := loadWith(t, l, file, nil, well...)
	if len(refused) > 0 {
		t.Fatal(said(refused))
	}
	bad := []labels.Container{
		host("none", 3, "no domain"), host("same", 4, "one.test"), host("file", 5, "file.test"), box("mute", 6),
		host("port", 7, "p.test", "quaymaster.port=http"), host("half", 8, "half.test", "quaymaster.admin.host=two.test", "quaymaster.ok.host=ok.test"),
	}
	after, refused := loadWith(t, l, file, nil, append(well, bad...)...)
	text := said(refused)
	for _, want := range []string{
		`container none (podman): label quaymaster.host: "no domain" is no domain`,
		`container same (podman): label quaymaster.host: routes "same@podman" and "one@podman" match the same on :443; the other one is at container one (podman)`,
		`container file (podman): label quaymaster.host: file.test on port 443 is route "file.test"`,
		`container mute (podman): label quaymaster.host: there is no such label`,
		`container port (podman): label quaymaster.port: "http" is no port`,
		`container half (podman): label quaymaster.admin.host: routes "half:admin@podman" and "two@podman" match the same`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("not said: %s", want)
		}
	}
	if len(refused) != len(bad) {
		t.Errorf("%d refusals:\n%s", len(refused), text)
	}
	for _, name := range []string{"half@podman", "half:ok@podman"} {
		if after.Route(name) == nil {
			t.Errorf("route %s is not there", name)
		}
	}
	for _, r := range before.Routes {
		if after.Route(r.Name) != r {
			t.Errorf("route %s is another one", r.Name)
		}
	}
	for _, u := range before.Upstreams {
		if after.Upstream(u.Name) != u {
			t.Errorf("upstream %s is another one", u.Name)
		}
	}
}

// TestTwoContainersOfOneName are of two engines. The older one has the name.
func TestTwoContainersOfOneName(t *testing.T) {
	p, refused := loadWith(t, NewLoader(), "", nil, host("web", 1, "http://a.test"), host("web", 2, "http://b.test"))
	if r := p.Route("web@podman"); r == nil || r.Match.Domains[0] != "a.test" || len(refused) != 1 || !strings.Contains(said(refused), `another container of this name makes the route "web@podman"`) {
		t.Errorf("%+v %s", r, said(refused))
	}
}

// TestNothingMovesWhenContainersComeAndGo compares pointers over many loads.
func TestNothingMovesWhenContainersComeAndGo(t *testing.T) {
	l := NewLoader()
	const file = "sites: {b.test: 1}\nroutes: [{name: z, match: {ports: [80]}, action: {block: {}}}]\n"
	layer := &Layer{}
	if err := layer.Put("a", []byte(`{"match": {"ports": [80], "domains": ["api.test"]}, "action": {"block": {}}}`)); err != nil {
		t.Fatal(err)
	}
	first, _ := loadWith(t, l, file, layer, host("m", 10, "m.test"))
	for i := range 50 {
		list := []labels.Container{host("a", i%3, "a.test"), host("m", 10, "m.test"), host("z", 20+i, "z.test")}
		if i%2 == 0 {
			list = list[1:2:2]
		}
		p, refused := loadWith(t, l, file, layer, list...)
		if len(refused) > 0 {
			t.Fatal(said(refused))
		}
		for _, r := range first.Routes {
			if p.Route(r.Name) != r {
				t.Fatalf("load %d: route %s is another one", i, r.Name)
			}
		}
		if want := map[bool]int{true: len(first.Routes), false: len(first.Routes) + 4}[i%2 == 0]; len(p.Routes) != want {
			t.Fatalf("load %d: %d routes, want %d", i, len(p.Routes), want)
		}
	}
}

// TestAPIWinsOverContainers: an edit takes a host from a container, which is told.
func TestAPIWinsOverContainers(t *testing.T) {
	l := NewLoader()
	web := host("web", 1, "http://x.test")
	if p, _ := loadWith(t, l, "", nil, web); p.Route("web@podman") == nil {
		t.Fatal("no route")
	}
	layer := &Layer{}
	if err := layer.Put("mine", []byte(`{"match": {"ports": [80], "domains": ["x.test"], "path": ["/part"]}, "action": {"block": {}}}`)); err != nil {
		t.Fatal(err)
	}
	p, refused := loadWith(t, l, "", layer, web)
	if p.Route("web@podman") != nil || p.Route("mine") == nil || len(refused) != 1 || !strings.Contains(said(refused), `x.test on port 80 is route "mine" at api`) {
		t.Errorf("%s", said(refused))
	}
}

// TestMistakesOfTheFileStayItsOwn: labels neither hide them nor are blamed for them.
func TestMistakesOfTheFileStayItsOwn(t *testing.T) {
	_, _, _, err := NewLoader().LoadWith([]Source{{Name: "/q.yaml", Bytes: []byte("bind: [x]\n")}}, nil, []labels.Container{host("web", 1, "x.test")})
	if err == nil || !strings.Contains(err.Error(), "/q.yaml:1:8") || strings.Contains(err.Error(), "container") {
		t.Errorf("error: %v", err)
	}
}

// TestALabelThatNobodyIsBlamedForIsFound: its port is that of the metrics, which is said of the file's key, and the label is
// refused all the same.
func TestALabelThatNobodyIsBlamedForIsFound(t *testing.T) {
	const file = "engine: {ports: [80, \"9000-9100\"]}\nmetrics: {address: 127.0.0.1:9055}\n"
	p, refused := loadWith(t, NewLoader(), file, nil, host("a", 1, "http://a.test"), host("b", 2, "http://b.test:9055"), host("c", 3, "http://c.test:9001"))
	if p.Route("a@podman") == nil || p.Route("b@podman") != nil || p.Route("c@podman") == nil || len(refused) != 1 || !strings.Contains(said(refused), "container b (podman): label quaymaster.host: 127.0.0.1:9055 is also") {
		t.Errorf("%s", said(refused))
	}
}

// TestManyThatNobodyIsBlamedForAreBounded: the work of finding them is, and whoever is not found out is refused.
func TestManyThatNobodyIsBlamedForAreBounded(t *testing.T) {
	const file = "engine: {ports: [80, \"9000-9200\"]}\nmetrics: {address: 127.0.0.1:9055}\n"
	list := make([]labels.Container, 0, 300)
	for i := range 300 {
		at := ""
		if i%2 == 0 {
			at = ":9055"
		}
		list = append(list, host("c"+strconv.Itoa(i), i, "http://h"+strconv.Itoa(i)+".test"+at))
	}
	p, refused := loadWith(t, NewLoader(), file, nil, list...)
	if n := len(p.Routes); n+len(refused) != 300 || n < 40 || n > 150 || !strings.Contains(said(refused), "within 200 tries") {
		t.Errorf("%d routes, %d refused", n, len(refused))
	}
}

// TestTooManyContainersAreSaid bounds what labels can make us do.
func TestTooManyContainersAreSaid(t *testing.T) {
	list := make([]labels.Container, 0, maxLabelled+5)
	for i := range maxLabelled + 5 {
		list = append(list, host("c"+strings.Repeat("x", i%7), i, "http://h"+strings.Repeat("a", i%50)+".test"))
		list[i].Name += string(rune('a'+i%26)) + strings.Repeat("y", i/26)
	}
	p, refused := loadWith(t, NewLoader(), "", nil, list...)
	if len(p.Routes) != 50 || !strings.Contains(said(refused), "1005 containers have labels for routes, and 1000 are followed") {
		t.Errorf("%d routes, %d refused", len(p.Routes), len(refused))
	}
}
