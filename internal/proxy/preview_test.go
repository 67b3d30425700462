package proxy

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// shownAt is a forward to the preview of web under /p/web.
func shownAt(target string) *wish {
	w := forwardTo(target)
	w.action = plan.Forward{Upstream: "api", Rewrite: plan.Rewrite{StripPrefix: "/p/web"}, Preview: plan.PreviewOf{App: "web", Prefix: "/p/web"}}
	return w
}

func TestPreviewPutsLocationsBelowItsPath(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.Header.Get("X-To"))
		w.WriteHeader(302)
	})
	h := build(t, shownAt(tg.URL))
	for to, want := range map[string]string{
		"/": "/p/web/", "/a/b?c#d": "/p/web/a/b?c#d", "http://www.example.com/a": "http://www.example.com/p/web/a", "https://WWW.example.com/a": "https://WWW.example.com/p/web/a",
		"http://www.example.com": "http://www.example.com/p/web/", "http://www.example.com?x": "http://www.example.com/p/web/?x", "//www.example.com/a": "//www.example.com/p/web/a",
		"next": "/p/web/dir/next", "../up": "/p/web/up", "../../../up?x=%2F": "/p/web/up?x=%2F", "./": "/p/web/dir/", "?q": "/p/web/dir/page?q", "#frag": "#frag",
		"/p/web": "/p/web", "/p/web/a": "/p/web/a", "http://www.example.com/p/web/a": "http://www.example.com/p/web/a", "/p/web2/a": "/p/web/p/web2/a",
		"http://other.example/a": "http://other.example/a", "//other.example/a": "//other.example/a", "http://www.example.com:81/a": "http://www.example.com:81/a",
		"http://www.example.com.evil/a": "http://www.example.com.evil/a", "http://www.example.com@evil/a": "http://www.example.com@evil/a",
		"mailto:a@b": "mailto:a@b", "": "", "%zz": "%zz", "/\\evil": "/p/web/\\evil",
	} {
		if got := h.ask("GET", "/p/web/dir/page?x=y", "X-To: "+to).Header.Get("Location"); got != want {
			t.Errorf("%q becomes %q, want %q", to, got, want)
		}
	}
}

func TestPreviewPutsCookiesBelowItsPath(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) { w.Header()["Set-Cookie"] = r.Header["X-Set"] })
	h := build(t, shownAt(tg.URL))
	for set, want := range map[string]string{
		"a=b; Path=/": "a=b; Path=/p/web", "a=b; path = /x/y ; HttpOnly": "a=b; path = /p/web/x/y ; HttpOnly", "a=b;PATH=/;Secure": "a=b;PATH=/p/web;Secure",
		"a=b": "a=b", "a=b; Path=": "a=b; Path=", "a=b; Path": "a=b; Path", "a=b; Path=rel": "a=b; Path=rel", "a=/; Pathx=/": "a=/; Pathx=/",
		"a=b; Path=/x; Path=/y": "a=b; Path=/x; Path=/p/web/y", "a=b; Path=/p/web/x": "a=b; Path=/p/web/x", "__Host-a=b; Path=/; Secure": "__Host-a=b; Path=/; Secure",
		"path=/; Max-Age=0": "path=/; Max-Age=0",
	} {
		if got := h.ask("GET", "/p/web/x", "X-Set: "+set).Header.Get("Set-Cookie"); got != want {
			t.Errorf("%q becomes %q, want %q", set, got, want)
		}
	}
	if got := h.ask("GET", "/p/web", "X-Set: a=b").Header.Get("Set-Cookie"); got != "a=b; Path=/p/web" {
		t.Errorf("asked without the slash: %q", got)
	}
}

func TestPreviewTellsTheAppItsPath(t *testing.T) {
	tg := newTarget(t, nil)
	h := build(t, shownAt(tg.URL))
	h.ask("GET", "/p/web/a%20b//c?d", "X-Forwarded-Prefix: /spoofed", "X_Forwarded_Prefix: /spoofed")
	r := tg.last(t)
	if got := strings.Join(r.Header["X-Forwarded-Prefix"], "|"); got != "/p/web" || r.RequestURI != "/a%20b//c?d" || r.Header["X_forwarded_prefix"] != nil {
		t.Errorf("%s with prefix %q, %v", r.RequestURI, got, r.Header)
	}
	w := shownAt(tg.URL)
	w.settings.TrustedProxies = loopback
	h = build(t, w)
	h.ask("GET", "/p/web/", "X-Forwarded-Prefix: /front")
	if got := strings.Join(tg.last(t).Header["X-Forwarded-Prefix"], "|"); got != "/front/p/web" {
		t.Errorf("behind a trusted proxy: %q", got)
	}
}

func TestPreviewWithoutItsSlash(t *testing.T) {
	tg := newTarget(t, nil)
	h := build(t, shownAt(tg.URL))
	if a := h.ask("GET", "/p/web?x=%0dy", "Accept: text/html"); a.StatusCode != 308 || a.Header.Get("Location") != "/p/web/?x=%0dy" {
		t.Errorf("a browser: %d %s", a.StatusCode, a.Header.Get("Location"))
	}
	if h.ask("GET", "/p/web?x"); tg.last(t).RequestURI != "/?x" {
		t.Errorf("a program: %s", tg.last(t).RequestURI)
	}
}

func TestPreviewTakesAnUploadBeforeItSendsItElsewhere(t *testing.T) {
	w := &wish{action: plan.Redirect{To: "/p/web{path}?{query}", Status: 307}}
	h := build(t, w)
	h.route.Plan.Match.Preview = &plan.PreviewMatch{App: "web"}
	c := h.dial()
	body := strings.Repeat("x", 8<<20)
	for range 2 { // on one connection
		c.say("POST /a?b HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
		if a := c.answer("POST"); a.StatusCode != 307 || a.Header.Get("Location") != "/p/web/a?b" {
			t.Fatalf("%d %v", a.StatusCode, a.Header)
		}
	}
	c.say("POST /a HTTP/1.1\r\nHost: www.example.com\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
	if a := c.answer("POST"); a.StatusCode != 307 {
		t.Errorf("who waits: %d", a.StatusCode)
	}
}

func TestPreviewNotesThatItIsOpen(t *testing.T) {
	tg := newTarget(t, nil)
	h := build(t, shownAt(tg.URL))
	const opened = "quaymaster-previews=web; Path=/; HttpOnly; SameSite=Strict"
	for _, c := range []struct {
		want string
		more []string
	}{
		{opened, []string{"Accept: text/html"}},
		{opened, []string{"Accept: text/html", "Sec-Fetch-Dest: iframe"}},
		{"", []string{"Accept: text/html", "Cookie: quaymaster-previews=api.web"}},
		{"", []string{"Accept: text/html", "Sec-Fetch-Dest: empty"}},
		{"", []string{"Accept: */*"}},
	} {
		if got := h.ask("GET", "/p/web/", c.more...).Header.Get("Set-Cookie"); got != c.want {
			t.Errorf("%v: %q", c.more, got)
		}
	}
}

// TestPreviewSaysWhyThereIsNoAnswer asks for an app that is gone; an ordinary route says nothing of it.
func TestPreviewSaysWhyThereIsNoAnswer(t *testing.T) {
	w := shownAt("127.0.0.1:1")
	h := build(t, w)
	h.options.App = func(name string, lines int) App {
		return App{State: "ready", Lines: []string{name + " said <b>\x1b[1mthis</b>"}[:min(lines, 1)]}
	}
	a := h.ask("GET", "/p/web/", "Accept: text/html")
	if a.StatusCode != 502 || !strings.Contains(a.body, "web said &lt;b&gt;this&lt;/b&gt;") || !strings.Contains(a.body, "connection refused") || a.Header.Get("Refresh") != "" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	a = h.ask("GET", "/p/web/")
	if a.StatusCode != 502 || a.Header.Get("Content-Type") != "text/plain; charset=utf-8" || !strings.Contains(a.body, "web said <b>this</b>\n") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	w = forwardTo("127.0.0.1:1")
	h = build(t, w)
	h.options.App = func(string, int) App { t.Error("an ordinary route asks for lines"); return App{} }
	a = h.ask("GET", "/", "Accept: text/html")
	if a.StatusCode != 502 || strings.Contains(a.body, "refused") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

func TestPreviewPutsTheBaseOfPagesBelowItsPath(t *testing.T) {
	long := strings.Repeat("<p>x</p>\n", 10_000)
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("X-Type"))
		if coding := r.Header.Get("X-Coding"); coding != "" {
			w.Header().Set("Content-Encoding", coding)
		}
		page := `<html><head><base href="/">` + long
		if r.URL.Path == "/late" {
			page = long + `<base href="/">`
		}
		parts := []string{page[:18], page[18:24], page[24:]}
		if r.URL.Path == "/bytes" {
			parts = append(strings.Split(page[:60], ""), page[60:])
		}
		for _, part := range parts {
			_, _ = w.Write([]byte(part))
			if r.URL.Path == "/parts" || r.URL.Path == "/bytes" {
				_ = http.NewResponseController(w).Flush()
			}
		}
	})
	w := shownAt(tg.URL)
	a, _ := w.action.(plan.Forward)
	for _, on := range []bool{true, false} {
		a.Preview.Base = on
		w.action = a
		h := build(t, w)
		for _, c := range []struct {
			method, path, kind, coding string
			changed                    bool
		}{
			{"GET", "/", "text/html", "", true},
			{"GET", "/parts", "Text/HTML; charset=utf-8", "", true},
			{"GET", "/bytes", "text/html", "", true},
			{"GET", "/", "text/plain", "", false},
			{"GET", "/", "text/html", "br", false},
			{"GET", "/late", "text/html", "", false},
			{"HEAD", "/", "text/html", "", false},
		} {
			want := `<html><head><base href="/">` + long
			switch {
			case c.changed && on:
				want = `<html><head><base href="/p/web/">` + long
			case c.path == "/late":
				want = long + `<base href="/">`
			case c.method == "HEAD":
				want = ""
			}
			if got := h.ask(c.method, "/p/web"+c.path, "X-Type: "+c.kind, "X-Coding: "+c.coding); got.StatusCode != 200 || got.body != want {
				t.Errorf("base_href %v, %+v: %d, %d bytes of %.60q", on, c, got.StatusCode, len(got.body), got.body)
			}
		}
	}
}
