package route

import (
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// field is a header field of a Request.
type field map[string]string

func (f field) Field(name string) ([]byte, bool) { v, ok := f[name]; return []byte(v), ok }

func with(fields ...string) func(*Request) {
	f := field{}
	for i := 0; i < len(fields); i += 2 {
		f[fields[i]] = fields[i+1]
	}
	return func(q *Request) { q.Fields = f }
}

func upgrades(q *Request) { q.Protocols |= plan.ProtoWebSocket }

// shownApp are the routes of a preview as config makes them.
func shownApp(name string) []*plan.Route {
	of := func(from string, alone bool) func(*plan.Route) {
		return func(r *plan.Route) {
			r.Match.Preview = &plan.PreviewMatch{Domain: "localhost", App: name, From: from, Alone: alone}
		}
	}
	return []*plan.Route{
		route(name, paths("/p/"+name+"/*"), priority(1<<30), of("", false)),
		route(name+"/host", hosts(name+".localhost")),
		route(name+"/links", priority(1<<30-1), of("/p/"+name, false)),
		route(name+"/rest", priority(-1<<31), of("", true)),
		route(name+"/sockets", priority(-1<<31), protocols(plan.ProtoWebSocket), of("", true)),
	}
}

func TestPreviewsShareAPortWithRoutes(t *testing.T) {
	list := append(shownApp("web"), shownApp("api")...)
	list = append(list, route("site", hosts("site.test")), route("exact", hosts("localhost"), paths("/own")), route("hmr", hosts("hmr.test"), paths("/hmr")))
	p := portOf(t, list...)
	const at = "127.0.0.1:80"
	from := func(page string) func(*Request) { return with("Referer", "http://"+at+page) }
	open := func(cookie string) func(*Request) {
		return with("Origin", "http://"+at, "Sec-Fetch-Site", "same-origin", "Cookie", "a=b; quaymaster-previews="+cookie)
	}
	for _, c := range []struct {
		question, want string
		options        []func(*Request)
	}{
		{"GET " + at + "/p/web/x", "web", nil},
		{"GET " + at + "/p/web", "web", nil},
		{"GET " + at + "/p/web2/x", "no route", nil},
		{"GET [::1]:80/p/web/", "web", nil},
		{"GET localhost/p/web/", "web", nil},
		{"GET any.localhost:80/p/web/", "web", nil},
		{"GET site.test/p/web/", "web", nil}, // the file names it
		{"GET evil.test/p/web/", "no route", nil},
		{"GET evil.test/main.js", "no route", []func(*Request){with("Referer", "http://evil.test/p/web/")}},
		{"GET web.localhost:80/p/api/x", "api", nil},
		{"GET web.localhost:80/x", "web/host", nil},
		// The pages of a preview ask for what is theirs, whatever else the port has.
		{"GET " + at + "/main.js", "web/links", []func(*Request){from("/p/web/")}},
		{"POST " + at + "/main.js", "api/links", []func(*Request){from("/p/api/a/b?c")}},
		{"GET localhost/own", "exact", []func(*Request){from("/p/web/")}}, // of another host
		{"GET localhost/own", "web/links", []func(*Request){with("Referer", "http://localhost/p/web/")}},
		{"GET " + at + "/p/api/x", "api", []func(*Request){from("/p/web/")}}, // who knows the path means it
		{"GET " + at + "/main.js", "no route", []func(*Request){from("/p/gone/")}},
		// Without a Referer the one preview that is open, and in doubt none.
		{"GET " + at + "/hmr", "web/sockets", []func(*Request){open("web"), upgrades}},
		{"GET " + at + "/hmr", "no route", []func(*Request){open("web.api"), upgrades}},
		{"GET " + at + "/hmr", "web/sockets", []func(*Request){open("web.gone"), upgrades}},
		{"GET " + at + "/hmr", "no route", []func(*Request){with("Origin", "http://evil.test", "Cookie", "quaymaster-previews=web"), upgrades}},
		{"GET " + at + "/hmr", "no route", []func(*Request){with("Cookie", "quaymaster-previews=web"), upgrades}},
		{"GET " + at + "/a", "web/rest", []func(*Request){open("web")}},
		{"GET " + at + "/a", "no route", []func(*Request){open("web.api")}},
		{"GET " + at + "/a", "no route", []func(*Request){with("Sec-Fetch-Site", "none", "Cookie", "quaymaster-previews=web")}}, // typed by hand
		{"GET " + at + "/a", "no route", []func(*Request){with("Sec-Fetch-Site", "same-site", "Cookie", "quaymaster-previews=web")}},
		{"GET localhost/own", "exact", []func(*Request){open("web")}}, // other routes come first
	} {
		if got := ask(p, c.question, c.options...); got != c.want {
			t.Errorf("%s: %s, want %s", c.question, got, c.want)
		}
	}
}

func TestExplainSaysWhyAPreviewDoesNotAnswer(t *testing.T) {
	p := portOf(t, shownApp("web")...)
	q := &Request{Method: []byte("GET"), Host: []byte("evil.test"), Target: []byte("/p/web/"), Client: client, Protocols: plan.ProtoHTTP1}
	var all strings.Builder
	for _, s := range p.ExplainRequest(q) {
		all.WriteString(s.Rule.Route.Name + ": " + s.Reason + "\n")
	}
	q.Host = []byte("localhost")
	q.Target = []byte("/x")
	for _, s := range p.ExplainRequest(q) {
		all.WriteString(s.Rule.Route.Name + ": " + s.Reason + "\n")
	}
	for _, want := range []string{
		`web: host "evil.test" is neither an address nor localhost`, "web/links: no page below /p/web asks", "web/rest: the browser does not say",
	} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("%q is not said:\n%s", want, all.String())
		}
	}
}

// TestPreviewsAllocateNothing holds what every request to the port pays.
func TestPreviewsAllocateNothing(t *testing.T) {
	p := portOf(t, append(shownApp("web"), shownApp("api")...)...)
	q := &Request{Method: []byte("GET"), Target: []byte("/main.js"), Client: client, Protocols: plan.ProtoHTTP1, Fields: &same{}}
	for _, host := range []string{"localhost:80", "127.0.0.1:80", "a.test"} {
		q.Host = []byte(host)
		if n := testing.AllocsPerRun(1000, func() { p.Request(q) }); n > 0 {
			t.Errorf("%s: %v allocations", host, n)
		}
	}
}

// same has one value for every field.
type same struct{}

var sameValue = []byte("http://localhost:80/p/wep/")

func (*same) Field(string) ([]byte, bool) { return sameValue, true }
