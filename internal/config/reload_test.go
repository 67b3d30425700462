package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// reloader loads one text after the other with one loader.
type reloader struct {
	t *testing.T
	l *Loader
}

func newReloader(t *testing.T) *reloader {
	l := NewLoader()
	l.Env = testEnv
	return &reloader{t: t, l: l}
}

func (r *reloader) load(text string, layer *Layer) (*plan.Plan, []Warning) {
	r.t.Helper()
	p, w, err := r.l.Load([]Source{{Name: "/q.yaml", Bytes: []byte(text)}}, layer)
	if err != nil {
		r.t.Fatal(err)
	}
	return p, w
}

func item3(names ...string) string {
	text := "routes:\n"
	for _, n := range names {
		text += fmt.Sprintf("  - name: %s\n    match: {ports: [80], domains: [%s.example.com]}\n    action: {targets: [\"%s:80\"]}\n", n, n, n)
	}
	return text
}

// inOrder are the routes' names by their Order.
func inOrder(p *plan.Plan) string {
	rs := slices.Clone(p.Routes)
	slices.SortFunc(rs, func(a, b *plan.Route) int { return a.Order - b.Order })
	var names []string
	for i, r := range rs {
		names = append(names, r.Name)
		if i > 0 && rs[i-1].Order >= r.Order {
			return "two routes of one order"
		}
	}
	return strings.Join(names, " ")
}

func TestWhatDidNotChangeIsTheSamePointer(t *testing.T) {
	r := newReloader(t)
	first, _ := r.load(item3("a", "b", "c"), nil)
	for _, step := range []struct {
		what, text string
		order      string
		same       string // routes that are still the first pointers
	}{
		{"a comment above", "# moved\n\n\n" + item3("a", "b", "c"), "a b c", "abc"},
		{"one before all", item3("z", "a", "b", "c"), "z a b c", "abc"},
		{"one in between, one gone", item3("a", "y", "c"), "a y c", "ac"},
		{"back again", item3("a", "b", "c"), "a b c", "abc"},
		{"another setting", "max_connections: 5\n" + item3("a", "b", "c"), "a b c", "abc"},
		{"the first to the end", item3("b", "c", "a"), "b c a", "bc"},
		{"written in flow style", "routes: [" + flow("b") + ", " + flow("c") + "]\n", "b c", "bc"},
	} {
		p, _ := r.load(step.text, nil)
		if got := inOrder(p); got != step.order {
			t.Errorf("%s: order %s", step.what, got)
		}
		for _, name := range step.same {
			n := string(name)
			if first.Route(n) != p.Route(n) {
				t.Errorf("%s: route %s is another pointer: %v", step.what, n, plan.Diff(first, p))
			}
			if first.Upstream(n) != p.Upstream(n) {
				t.Errorf("%s: upstream %s is another pointer", step.what, n)
			}
		}
	}
}

func flow(n string) string {
	return fmt.Sprintf("{name: %s, match: {ports: [80], domains: [%s.example.com]}, action: {targets: [\"%s:80\"]}}", n, n, n)
}

func TestPlacesFollowLines(t *testing.T) {
	r := newReloader(t)
	r.load(item3("a", "b"), nil)
	p, _ := r.load("# one\n# two\n"+item3("a", "b"), nil)
	if got := p.Where["route/b"]; got != (plan.Pos{File: "/q.yaml", Line: 7, Col: 11}) {
		t.Errorf("route/b is at %+v", got)
	}
	if got := p.Where["port/:80"]; got.Line != 5 {
		t.Errorf("port/:80 is at %+v", got)
	}
}

func TestAPortThatDidNotChangeIsTheSamePointer(t *testing.T) {
	r := newReloader(t)
	a, _ := r.load(item3("a"), nil)
	b, _ := r.load(item3("a")+"    timeouts: {idle: 5s}\n", nil)
	if a.Ports[0] != b.Ports[0] || a.Routes[0] == b.Routes[0] {
		t.Error("the port is new, or the route is not")
	}
}

func TestAVariableThatChangesIsReadAnew(t *testing.T) {
	r := newReloader(t)
	target := "a"
	r.l.Env = func(name string) (string, bool) { return target, name == "TARGET" }
	text := item3("x") + "  - name: v\n    match: {ports: [81]}\n    action: {targets: [\"${TARGET}:80\"]}\n"
	first, _ := r.load(text, nil)
	target = "b"
	p, _ := r.load(text, nil)
	if got := p.Upstream("v").Targets[0].Text; got != "b:80" {
		t.Errorf("the target is %s", got)
	}
	if first.Upstream("x") != p.Upstream("x") {
		t.Error("what has no variable is another pointer")
	}
}

func TestGlobalTimeoutsReachEveryRoute(t *testing.T) {
	r := newReloader(t)
	r.load(item3("a"), nil)
	p, _ := r.load("timeouts: {idle: 7s}\n"+item3("a"), nil)
	if p.Routes[0].Timeouts.Idle.Seconds() != 7 {
		t.Errorf("idle is %v", p.Routes[0].Timeouts.Idle)
	}
}

// TestAFailedLoadForgetsNothing keeps the pointers of the running plan over a load with mistakes.
func TestAFailedLoadForgetsNothing(t *testing.T) {
	r := newReloader(t)
	first, _ := r.load(item3("a", "b"), nil)
	if _, _, err := r.l.Load([]Source{{Name: "/q.yaml", Bytes: []byte(item3("a", "b", "a"))}}, nil); err == nil {
		t.Fatal("loaded two routes of one name")
	}
	p, _ := r.load(item3("a", "b"), nil)
	if first.Routes[0] != p.Routes[0] || first.Routes[1] != p.Routes[1] {
		t.Error("other pointers")
	}
}

func TestRoutesUseWhatTheirUpstreamSays(t *testing.T) {
	r := newReloader(t)
	text := "upstreams:\n  web: {targets: [\"a:80\"], rewrite: {add_prefix: /%s}, retries: {attempts: 3}}\n" +
		"routes:\n- {name: own, match: {ports: [80]}, action: {upstream: web, retries: {attempts: 5}}}\n"
	p, _ := r.load(fmt.Sprintf(text, "x"), nil)
	f := p.Route("own").Action.(plan.Forward)
	if f.Rewrite.AddPrefix != "/x" || f.Retries.Attempts != 5 {
		t.Errorf("the action is %+v", f)
	}
	q, _ := r.load("# moved\n"+fmt.Sprintf(text, "x"), nil)
	if p.Route("own") != q.Route("own") {
		t.Error("the route is another pointer though nothing changed")
	}
	q, _ = r.load(fmt.Sprintf(text, "y"), nil)
	if got := q.Route("own").Action.(plan.Forward).Rewrite.AddPrefix; got != "/y" {
		t.Errorf("the prefix is still %s", got)
	}
}

func TestTheFileWinsOverTheAPI(t *testing.T) {
	r := newReloader(t)
	layer := &Layer{}
	body := []byte("{\n \"match\": {\"ports\": [90]},\n \"action\": {\"targets\": [\"api:80\"]}}")
	for _, name := range []string{"a", "n"} {
		if err := layer.Put(name, body); err != nil {
			t.Fatal(err)
		}
		body = []byte(`{"name": "n", "match": {"ports": [91]}, "action": {"respond": {"body": "${HOME} \ud83d\ude00 \/"}}}`)
	}
	p, warnings := r.load(item3("a"), layer)
	if p.Route("a").Source != plan.FromFile || p.Route("n").Source != plan.FromAPI {
		t.Errorf("sources: %+v %+v", p.Route("a"), p.Route("n"))
	}
	if len(warnings) != 1 || warnings[0].Conflict != "a" || !strings.Contains(warnings[0].Message, "/q.yaml:2:11") {
		t.Errorf("warnings: %+v", warnings)
	}
	if got := p.Route("n").Action.(plan.Respond).Body; got != "${HOME} \U0001F600 /" {
		t.Errorf("the body is %q", got)
	}
	var held *Conflict
	if err := FileHolds(p, "a"); !errors.As(err, &held) || held.Where.Line != 2 || !strings.Contains(err.Error(), "/q.yaml:2") {
		t.Errorf("FileHolds: %v", err)
	}
	if err := FileHolds(p, "n"); err != nil {
		t.Errorf("FileHolds: %v", err)
	}
	if q, _ := r.load("\n"+item3("a"), layer); q.Route("n") != p.Route("n") {
		t.Error("a route of the API is another pointer")
	}
	if !layer.Delete("a") || layer.Delete("a") {
		t.Error("Delete is wrong about what there is")
	}
}

func TestAnAPIRouteThatContradictsTheFileIsAnError(t *testing.T) {
	r := newReloader(t)
	layer := &Layer{}
	if err := layer.Put("n", []byte(`{"match": {"ports": [80], "domains": ["a.example.com"]}, "action": {"block": {}}}`)); err != nil {
		t.Fatal(err)
	}
	_, _, err := r.l.Load([]Source{{Name: "/q.yaml", Bytes: []byte(item3("a"))}}, layer)
	if err == nil || !strings.Contains(err.Error(), `routes "n" and "a" match the same on :80; the other one is at /q.yaml:2:11`) {
		t.Errorf("error: %v", err)
	}
}

func TestParseRouteRefusesWhatOnlyFilesMay(t *testing.T) {
	for body, want := range map[string]string{
		`{`:  "the body is not JSON",
		`[]`: "a list stands where a map is wanted",
		`{"name": "b", "match": {"ports": [80]}, "action": {"block": {}}}`:              "the route is called b here and a in the address",
		`{"match": {"ports": [80]}, "action": {"files": {"root": "public"}}}`:           "relative, and there is no file",
		`{"match": {"ports": [80]}, "action": {"targets": ["unix:x.sock"]}}`:            "relative, and there is no file",
		`{"match": {"ports": ["${PORT}"]}, "action": {"block": {}}}`:                    `"${PORT}" is no port`,
		`{"match": {"ports": [80]}, "match": {"ports": [81]}, "action": {"block": {}}}`: "also set at line 1",
		`{"match": {"ports": [80]}, "action": {"block": {"status": 200}}}`:              "200 is out of range",
	} {
		_, err := ParseRoute("a", []byte(body))
		var errs Errors
		if !errors.As(err, &errs) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n  want %s\n  got  %v", body, want, err)
		}
	}
	if _, err := ParseRoute("Bad Name", []byte(`{"match": {"ports": [80]}, "action": {"block": {}}}`)); err == nil {
		t.Error("a bad name is taken")
	}
}

func TestAFolderIsReadInNameOrder(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"20.yaml": "routes:\n- {name: b, match: {ports: [80], path: [/b]}, action: {files: {root: sub}}}\ntrusted_proxies: [10.0.0.0/8]\ntimeouts: {idle: 7s}\nallowlist: [b.c]\n",
		"10.yaml": "routes:\n- {name: a, match: {ports: [80]}, action: {block: }}\nmetrics: {enabled: false}\ntrusted_proxies: [192.168.0.0/16]\ntimeouts: {connect: 3s}\n",
		"note.md": "nothing", ".hidden.yaml": "x: [",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := FindFiles(dir)
	if err != nil || len(files) != 2 {
		t.Fatalf("%v %v", files, err)
	}
	sources, err := ReadFiles(files)
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := newReloader(t).l.Load(sources, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &p.Settings
	if inOrder(p) != "a b" || len(s.TrustedProxies) != 2 || s.Timeouts.Idle.Seconds() != 7 || s.Timeouts.Connect.Seconds() != 3 || s.Metrics.Enabled {
		t.Errorf("%s %+v", inOrder(p), s)
	}
	if got := p.Route("b").Action.(plan.Files).Root; got != filepath.Join(dir, "sub") {
		t.Errorf("root is %s", got)
	}
	sources = append(sources, Source{Name: "/z/30.yaml", Bytes: []byte("timeouts: {idle: 8s}\n")})
	_, _, err = newReloader(t).l.Load(sources, nil)
	if err == nil || !strings.Contains(err.Error(), "/z/30.yaml:1:18: timeouts.idle: also set at "+dir+"/20.yaml:4:18") {
		t.Errorf("error: %v", err)
	}
}

func TestMissingFilesAreNamed(t *testing.T) {
	if _, err := ReadFiles([]string{"/nowhere/a.yaml", "/nowhere/b.yaml"}); err == nil || strings.Count(err.Error(), "there is no such file") != 2 {
		t.Errorf("error: %v", err)
	}
	if _, err := FindFiles("/nowhere"); err == nil || !strings.Contains(err.Error(), "/nowhere: there is no such file; write it, or name another with -c FILE") {
		t.Errorf("error: %v", err)
	}
	if _, err := FindFiles(t.TempDir()); err == nil || !strings.Contains(err.Error(), "holds no *.yaml") {
		t.Errorf("error: %v", err)
	}
	t.Chdir(t.TempDir())
	if files, err := FindFiles(""); err == nil && files[0] != "/etc/quaymaster/quaymaster.yaml" {
		t.Errorf("found %v", files)
	}
	if err := os.WriteFile("quaymaster.yaml", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if files, err := FindFiles(""); err != nil || files[0] != "quaymaster.yaml" {
		t.Errorf("found %v %v", files, err)
	}
}
