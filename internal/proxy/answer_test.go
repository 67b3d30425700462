package proxy

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

func TestRedirectLeadsWhereItSays(t *testing.T) {
	for _, c := range []struct {
		to, target, want string
		status, code     int
	}{
		{"https", "/a%20b?x=1", "https://www.example.com/a%20b?x=1", 0, 308},
		{"https://new.example.com{path}?{query}", "/a?x=1", "https://new.example.com/a?x=1", 301, 301},
		{"https://new.example.com{path}?{query}", "/a", "https://new.example.com/a", 302, 302},
		{"https://{host}/fixed", "/a", "https://www.example.com/fixed", 307, 307},
		{"{path}", "//evil.test/", "/evil.test/", 308, 308},
		{"/{path}", "/a", "/a", 308, 308},
		{"https://x.test/\r\nX-Evil: 1", "/", "https://x.test/X-Evil: 1", 308, 308},
	} {
		h := build(t, &wish{action: plan.Redirect{To: c.to, Status: c.status}})
		a := h.ask("GET", c.target)
		if got := a.Header.Get("Location"); a.StatusCode != c.code || got != c.want || a.Header.Get("X-Evil") != "" || a.Header.Get("Date") == "" {
			t.Errorf("%s of %s: %d %q, want %d %q", c.to, c.target, a.StatusCode, got, c.code, c.want)
		}
	}
}

func TestRedirectTLSKeepsTheURL(t *testing.T) {
	h := build(t, &wish{action: plan.Block{}})
	h.route.act = actorFunc(func(t *turn) { RedirectTLS(t.ex) })
	c := h.dial()
	c.say("GET /a?b HTTP/1.1\r\nHost: www.example.com.:8080\r\n\r\n")
	if a := c.answer("GET"); a.StatusCode != 308 || a.Header.Get("Location") != "https://www.example.com:8080/a?b" {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	c.say("OPTIONS * HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n")
	if a := c.answer("GET"); a.StatusCode != 308 || a.Header.Get("Location") != "https://[2001:db8::1]/" {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
}

// actorFunc lets a test act an exchange out.
type actorFunc func(*turn)

func (f actorFunc) serve(t *turn) { f(t) }

func TestRespondAnswersAsConfigured(t *testing.T) {
	h := build(t, &wish{action: plan.Respond{Status: 201, Body: "hello", Headers: []plan.Header{
		{Name: "Content-Length", Value: "99"}, {Name: "X-Client", Value: "{client_ip}\n"}, {Name: "Transfer-Encoding", Value: "chunked"},
	}}})
	c := h.dial()
	for _, method := range []string{"GET", "HEAD", "POST"} {
		c.say(method + " / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
		a := c.answer(method)
		if a.StatusCode != 201 || a.ContentLength != 5 || a.Header.Get("X-Client") != "127.0.0.1" || a.TransferEncoding != nil ||
			a.Header.Get("Content-Type") != "text/plain; charset=utf-8" || (a.body != "hello") != (method == "HEAD") {
			t.Errorf("%s: %d %v %q", method, a.StatusCode, a.Header, a.body)
		}
	}
	typed := build(t, &wish{action: plan.Respond{Body: "<p>", Headers: []plan.Header{{Name: "content-type", Value: "text/html"}}}})
	if a := typed.ask("GET", "/"); a.StatusCode != 200 || strings.Join(a.Header["Content-Type"], "|") != "text/html" {
		t.Errorf("%d %v", a.StatusCode, a.Header)
	}
	empty := build(t, &wish{action: plan.Respond{Status: 204, Body: "nothing"}})
	if a := empty.ask("GET", "/"); a.StatusCode != 204 || a.body != "" || a.Header["Content-Length"] != nil {
		t.Errorf("%d %v", a.StatusCode, a.Header)
	}
}

func TestBlockRefuses(t *testing.T) {
	for status, want := range map[int]int{0: 403, 451: 451, 404: 404} {
		h := build(t, &wish{action: plan.Block{Status: status}})
		if a := h.ask("GET", "/"); a.StatusCode != want {
			t.Errorf("%d: %d", status, a.StatusCode)
		}
		if rec := h.record(); rec.Reason != "blocked" || rec.Status != want {
			t.Errorf("record %+v", rec)
		}
	}
}

func TestPagesNameRouteAndRequestAndNothingElse(t *testing.T) {
	for _, status := range []int{400, 404, 413, 421, 429, 431, 502, 503, 504, 508} {
		h := build(t, &wish{action: plan.Block{}})
		h.route.act = actorFunc(func(t *turn) { Refuse(t.ex, status, "secret-reason", "secret-detail 10.0.0.1:99", 7) })
		a := h.ask("GET", "/")
		var p struct {
			Type, Title, Detail, Route string
			Status                     int
			RequestID                  string `json:"request_id"`
		}
		if err := json.Unmarshal([]byte(a.body), &p); err != nil {
			t.Fatalf("%d: %v in %s", status, err, a.body)
		}
		rec := h.record()
		if a.StatusCode != status || p.Status != status || p.Route != "api" || p.RequestID != string(rec.ID) || p.Title == "Error" || p.Detail == "" ||
			a.Header.Get("Content-Type") != "application/problem+json" || a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Retry-After") != "7" {
			t.Errorf("%d: %v %s", status, a.Header, a.body)
		}
		page := h.ask("GET", "/", "Accept: text/html,*/*;q=0.8")
		rec = h.record()
		if !strings.HasPrefix(page.Header.Get("Content-Type"), "text/html") || !strings.Contains(page.body, "<code>api</code>") ||
			!strings.Contains(page.body, string(rec.ID)) || !strings.Contains(page.body, "light dark") || strings.Contains(page.body, "http://") ||
			strings.Contains(page.body, "https://") || len(page.body) > 2000 {
			t.Errorf("%d: %v %s", status, page.Header, page.body)
		}
		for _, body := range []string{a.body, page.body} {
			if strings.Contains(body, "secret") || strings.Contains(body, "10.0.0.1") {
				t.Errorf("%d leaks: %s", status, body)
			}
		}
	}
}

func TestPagesEscapeWhatTheyName(t *testing.T) {
	w := &wish{action: plan.Block{}}
	w.settings.TrustedProxies = loopback
	h := build(t, w)
	a := h.ask("GET", "/", "Accept: text/html", "X-Request-Id: <script>alert(1)</script>")
	if strings.Contains(a.body, "<script") || len(h.record().ID) != 16 {
		t.Fatalf("%s", a.body)
	}
	ex := wire.Exchange{Log: wire.Record{Route: `<b>"&'`, ID: []byte(`"<x>\`)}}
	var p page
	p.html(404, &ex)
	if s := string(p.body); strings.Contains(s, "<b>") || strings.Contains(s, "<x>") || !strings.Contains(s, "&lt;b&gt;&#34;&amp;&#39;") {
		t.Errorf("%s", s)
	}
	p.body = nil
	p.problem(404, &ex)
	var out map[string]any
	if err := json.Unmarshal(p.body, &out); err != nil || out["route"] != ex.Log.Route || out["request_id"] != string(ex.Log.ID) {
		t.Errorf("%v %s", err, p.body)
	}
}

func TestPagesHaveNoBodyForHEAD(t *testing.T) {
	h := build(t, &wish{action: plan.Block{}})
	c := h.dial()
	c.say("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
	head := c.answer("HEAD")
	get := c.answer("GET")
	if head.StatusCode != 403 || get.StatusCode != 403 || head.ContentLength != get.ContentLength || get.ContentLength < 1 {
		t.Fatalf("%v %v", head.Response, get.Response)
	}
	if h.record().Out != 0 || h.record().Out != get.ContentLength {
		t.Fatal("bytes are counted that were not sent")
	}
}
