package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestPreviewsAreRoutes(t *testing.T) {
	p := loadText(t, "previews: {port: 8081}\napps: {web: {command: x, preview: true}, db: {command: y}}\nsites: {\"http://a.test:8081\": 1}\n")
	var names []string
	for _, r := range p.Routes {
		names = append(names, r.Name)
	}
	if got := strings.Join(names, " "); got != "http://a.test:8081 preview/web preview/web/host preview/web/links preview/web/rest preview/web/sockets" {
		t.Errorf("routes %s", got)
	}
	web := route(t, p, "preview/web")
	if a := web.Action.(plan.Forward); a.Upstream != "preview/web" || a.Rewrite.StripPrefix != "/app/preview/web" || a.Preview != (plan.PreviewOf{App: "web", Prefix: "/app/preview/web"}) ||
		web.Match.Paths[0] != "/app/preview/web/*" || web.Match.Ports[0].String() != "127.0.0.1:8081" || web.Source != plan.FromFile {
		t.Errorf("%+v", web)
	}
	if h := route(t, p, "preview/web/host"); h.Match.Domains[0] != "web.localhost" || h.Action.(plan.Forward).Preview.Prefix != "" {
		t.Errorf("%+v", h)
	}
	if len(p.Ports) != 1 || p.Ports[0].Addr.String() != ":8081" || strings.Join(p.Ports[0].Users, ",") != "previews,route http://a.test:8081" {
		t.Errorf("the port is shared: %+v", p.Ports[0])
	}
	if u := p.Upstream("preview/web"); u.Targets[0].App != "web" || u.Pool.MaxIdle == 0 || u.Connect == 0 {
		t.Errorf("%+v", u)
	}
	if at := p.Where["route/preview/web/links"]; at.Line != 2 {
		t.Errorf("written at %+v", at)
	}
	if p.Settings.Previews.Domain != "localhost" || loadText(t, "apps: {db: {command: y}}\n").Settings.Previews != nil {
		t.Error("without an app that has one there are no previews")
	}
}

func TestPreviewsOfAppsOfTheAPI(t *testing.T) {
	layer := &Layer{}
	for _, name := range []string{"web", "db"} {
		if err := layer.PutApp(name, []byte(`{"command": ["x"], "preview": true}`)); err != nil {
			t.Fatal(err)
		}
	}
	p, _, err := NewLoader().Load([]Source{{Name: "/q.yaml", Bytes: []byte("previews: {path: /p/, domain: Dev.Example.com., bind: [\"::1\", 127.0.0.1]}\napps: {web: {command: file}}\n")}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	if r := route(t, p, "preview/db"); r.Source != plan.FromAPI || r.Match.Paths[0] != "/p/db/*" || len(r.Match.Ports) != 2 {
		t.Errorf("%+v", r)
	}
	if r := route(t, p, "preview/db/host"); r.Match.Domains[0] != "db.dev.example.com" {
		t.Errorf("%+v", r)
	}
	for _, r := range p.Routes {
		if strings.Contains(r.Name, "web") {
			t.Errorf("the app of the file wins, and has no preview: %s", r.Name)
		}
	}
}

func TestARouteOfOnesOwnForTheHostOfAPreview(t *testing.T) {
	p := loadText(t, "apps: {web: {command: x, preview: true}}\nroutes: [{name: own, match: {ports: [\"127.0.0.1:8080\"], domains: [web.localhost]}, action: {respond: {body: x}}}]\n")
	for _, r := range p.Routes {
		if r.Name == "preview/web/host" {
			t.Error("the route that somebody wrote is to stand alone")
		}
	}
}

func TestAPreviewThatDidNotChangeIsTheSamePointer(t *testing.T) {
	l := NewLoader()
	load := func(apps string) *plan.Plan {
		p, _, err := l.Load([]Source{{Name: "/q.yaml", Bytes: []byte("apps: {" + apps + "}\n")}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a := load("web: {command: x, preview: true}")
	b := load("app: {command: z, preview: true}, web: {command: other, preview: true}")
	for _, name := range []string{"preview/web", "preview/web/host", "preview/web/links", "preview/web/rest", "preview/web/sockets"} {
		if route(t, a, name) != route(t, b, name) {
			t.Errorf("%s is another one", name)
		}
	}
	if a.Upstream("preview/web") != b.Upstream("preview/web") {
		t.Error("the upstream is another one")
	}
}

func TestPreviewMistakes(t *testing.T) {
	const app = "apps: {web: {command: x, preview: true%s}}\n"
	for text, want := range map[string]string{
		"previews: {path: /}\n" + fmt.Sprintf(app, ""):                                      "cannot stand before the names of apps",
		"previews: {path: /a/../b}\n" + fmt.Sprintf(app, ""):                                "cannot stand before",
		"previews: {path: \"/:x\"}\n" + fmt.Sprintf(app, ""):                                "cannot stand before",
		"previews: {path: \"/a;b\"}\n" + fmt.Sprintf(app, ""):                               "cannot stand before",
		"previews: {path: /é}\n" + fmt.Sprintf(app, ""):                                     "cannot stand before",
		"previews: {path: /" + strings.Repeat("x", 255) + "}\n" + fmt.Sprintf(app, ""):      "cannot stand before",
		"previews: {domain: " + strings.Repeat("x.", 95) + "test}\n" + fmt.Sprintf(app, ""): "nothing can stand below",
		"previews: {path: app}\n" + fmt.Sprintf(app, ""):                                    "does not begin with a slash",
		"previews: {domain: 127.0.0.1}\n" + fmt.Sprintf(app, ""):                            "nothing can stand below",
		"previews: {bind: localhost}\n" + fmt.Sprintf(app, ""):                              "is no IP address",
		"previews: {port: 0}\n" + fmt.Sprintf(app, ""):                                      "port",
		fmt.Sprintf(app, ", port: 8080"):                                                    "8080 is the port of previews at",
		"metrics: {address: \"127.0.0.1:8080\"}\n" + fmt.Sprintf(app, ""):                   "is also the port of previews",
	} {
		_, _, err := tryText(t, text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nwant %s\ngot  %v", text, want, err)
		}
	}
}
