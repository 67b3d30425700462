package proxy

import (
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// sampleTurn is a turn in the middle of GET /a/b?x=1 for www.example.com:8080.
func sampleTurn() *turn {
	t := newTurn()
	t.r = &Route{Plan: &plan.Route{Name: "api"}}
	t.ex = &wire.Exchange{Conn: &wire.ConnInfo{}}
	t.ex.Req.Authority = []byte("www.example.com:8080")
	t.ex.Req.Target = []byte("/a/b?x=1")
	t.ex.Log.ID = []byte("0123456789abcdef")
	t.clientText = []byte("192.0.2.7")
	return t
}

func TestTemplateFillsPlaceholders(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                        "plain",
		"{client_ip}":                  "192.0.2.7",
		"a{host}b":                     "awww.example.comb",
		"{path}|{query}":               "/a/b|x=1",
		"{request_id} {route}":         "0123456789abcdef api",
		"{scheme}://{host}":            "http://www.example.com",
		`{"json": {"route":"{route}"}`: `{"json": {"route":"api"}`,
		"{unknown} {":                  "{unknown} {",
		"{{route}}":                    "{api}",
		"":                             "",
	} {
		tp := compile(in)
		if got := string(tp.value(sampleTurn())); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestTemplateNeverYieldsControlBytes(t *testing.T) {
	turn := sampleTurn()
	turn.ex.Req.Target = []byte("/a\r\nX: y\x00?\x01\n")
	turn.ex.Req.Authority = []byte("h\r\nX-Evil: 1")
	for _, in := range []string{"a\r\nX-Evil: 1", "\x00{path}\x7f", "{query}\n{host}\r", "\ta"} {
		tp := compile(in)
		if got := string(tp.value(turn)); strings.ContainsAny(got, "\r\n\x00\x01\x7f\t") {
			t.Errorf("%q became %q", in, got)
		}
	}
}

func TestRulesCannotTouchFraming(t *testing.T) {
	r := compileRules(&plan.HeaderRules{
		Set:    []plan.Header{{Name: "Content-Length", Value: "5"}, {Name: "transfer-encoding", Value: "chunked"}, {Name: "X\r\nY", Value: "1"}, {Name: "", Value: "1"}, {Name: "X-Ok", Value: "1"}},
		Add:    []plan.Header{{Name: "Connection", Value: "close"}, {Name: "a b", Value: "1"}},
		Remove: []string{"Host", "X-Gone"},
	})
	if len(r.set) != 1 || r.set[0].key != "X-Ok" || len(r.add) != 0 || len(r.remove) != 1 {
		t.Fatalf("kept %+v", r)
	}
}

func TestRewriteKeepsWhatItDoesNotName(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		rw             plan.Rewrite
	}{
		{"none", "/a%20b/../c?q=%2f", "/a%20b/../c?q=%2f", plan.Rewrite{}},
		{"strip", "/v1/users?q=1", "/users?q=1", plan.Rewrite{StripPrefix: "/v1"}},
		{"strip all", "/v1", "/", plan.Rewrite{StripPrefix: "/v1/"}},
		{"strip all with query", "/v1?x", "/?x", plan.Rewrite{StripPrefix: "/v1"}},
		{"strip at a border only", "/v1x/a", "/v1x/a", plan.Rewrite{StripPrefix: "/v1"}},
		{"strip encoded", "/%761/a%2fb", "/a%2fb", plan.Rewrite{StripPrefix: "/v1"}},
		{"strip longer than path", "/v", "/v", plan.Rewrite{StripPrefix: "/v1"}},
		{"add", "/a?b", "/api/a?b", plan.Rewrite{AddPrefix: "/api"}},
		{"add without slashes", "/a", "/api/a", plan.Rewrite{AddPrefix: "api/"}},
		{"strip and add", "/v1/a", "/v2/a", plan.Rewrite{StripPrefix: "v1", AddPrefix: "/v2"}},
		{"path", "/x?q=1", "/fixed?q=1", plan.Rewrite{Path: "/fixed"}},
		{"path with query", "/x?q=1", "/fixed?a=2", plan.Rewrite{Path: "/fixed?a=2"}},
		{"control bytes", "/x", "/a%0D%0AX:%20y/x", plan.Rewrite{AddPrefix: "/a\r\nX: y"}},
		{"asterisk", "*", "*", plan.Rewrite{AddPrefix: "/api"}},
	} {
		w := compileRewrite(&c.rw)
		turn := sampleTurn()
		turn.ex.Req.Target = []byte(c.in)
		if got := string(w.apply(turn)); got != c.want {
			t.Errorf("%s: %q becomes %q, want %q", c.name, c.in, got, c.want)
		}
	}
}

func TestAliasesOfOurFieldsAreKnown(t *testing.T) {
	ruled := []string{"Remote-User", "X_Odd"}
	for name, want := range map[string]bool{
		"X_Forwarded_For": true, "x.forwarded.host": true, "X-Forwarded_Anything": true, "X_Real_IP": true,
		"X.Request.Id": true, "Content_Length": true, "Transfer.Encoding": true, "Remote_User": true, "remote.user": true,
		"X-Odd": false, "X.Odd": true, "My_Header": false, "Accept": false, "Remote-User": false, "X_Forwarded": false,
	} {
		if got := isAlias([]byte(name), ruled); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestRequestIDsAreBelievedOnlyWhenSane(t *testing.T) {
	for id, want := range map[string]bool{
		"abc-123": true, "": false, "a b": false, "<script>": false, "a\"b": false, strings.Repeat("x", 129): false,
		"Root=1-5759e988-bd862e3fe1be46a994272793": true,
	} {
		if got := saneID([]byte(id)); got != want {
			t.Errorf("%q: %v", id, got)
		}
	}
}

func TestHTMLIsGivenToThoseWhoAskForIt(t *testing.T) {
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "text/html": true, "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": true,
		"application/json": false, "application/json, text/html": true, "application/json, text/html;q=0.5": false,
		"text/html;q=0": false, "TEXT/HTML ; q=0.8": true, "text/html;q=x": false, "application/problem+json;q=0.1, text/html;q=0.2": true,
		"text/html;q=NaN": false,
	} {
		h := wire.Head{Fields: []wire.Field{{Name: []byte("accept"), Value: []byte(accept)}}}
		if got := wantsHTML(&h); got != want {
			t.Errorf("Accept: %s: %v", accept, got)
		}
	}
}

func TestLocationsStayOnOurHost(t *testing.T) {
	for in, want := range map[string]string{"/a": "/a", "//evil.test/": "/evil.test/", `/\evil.test`: "/evil.test", `\\/x`: "/x", "": ""} {
		if got := string(rooted([]byte(in))); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestFileNames(t *testing.T) {
	for in, want := range map[string]string{
		"/": ".", "/a": "a", "/a/b/": "a/b", "/a%20b?x": "a b", "/.well-known/security.txt": ".well-known/security.txt",
		"//a//b": "a/b",
		"/..":    "!", "/a/../b": "!", "/%2e%2e/x": "!", "/.env": "!", "/a/.git/config": "!", `/a\b`: "!", "/a%5c..%5cb": "!",
		"/a%00b": "!", "/%zz": "!", "": "!", "*": "!", "/a/.well-known/x": "!", "/.": "!", "/..%2f..%2fetc/passwd": "!",
	} {
		name, _, ok := fileName(in)
		if !ok {
			name = "!"
		}
		if name != want {
			t.Errorf("%q is %q, want %q", in, name, want)
		}
	}
}

func FuzzFileNameStaysInside(f *testing.F) {
	for _, s := range []string{"/a/b", "/../x", "/%2e%2e/", "//", "/a/%2e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		name, _, ok := fileName(target)
		if !ok {
			return
		}
		for i, seg := range strings.Split(name, "/") {
			if strings.HasPrefix(seg, ".") && name != "." && (i != 0 || seg != ".well-known") {
				t.Fatalf("%q leads to %q", target, name)
			}
		}
	})
}
