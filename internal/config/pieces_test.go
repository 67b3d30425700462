package config

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

func show(p *plan.Plan) string {
	if p == nil {
		return "none"
	}
	return string(Expand(p))
}

// both loads a text in pieces and whole, and fails the test unless both give the same.
func both(t *testing.T, text string) (*plan.Plan, error) {
	t.Helper()
	load := func(whole bool) (*plan.Plan, []Warning, error) {
		l := NewLoader()
		l.Env, l.whole = testEnv, whole
		return l.Load([]Source{{Name: "/q.yaml", Bytes: []byte(text)}}, nil)
	}
	p, warnings, err := load(false)
	wantP, wantWarnings, wantErr := load(true)
	if !reflect.DeepEqual(p, wantP) {
		t.Fatalf("in pieces another plan (-whole +pieces):\n%s\n%v\n%v\n%s", cmp.Diff(show(wantP), show(p)), p, wantP, text)
	}
	if d := cmp.Diff(fmt.Sprint(wantErr), fmt.Sprint(err)); d != "" {
		t.Fatalf("in pieces other errors (-whole +pieces):\n%s\n%s", d, text)
	}
	if !reflect.DeepEqual(warnings, wantWarnings) {
		t.Fatalf("in pieces other warnings:\n%v\n%v\n%s", wantWarnings, warnings, text)
	}
	return p, err
}

// writer writes random configurations in random styles.
type writer struct {
	*rand.Rand
	n int
}

func (w *writer) one(of ...string) string { return of[w.IntN(len(of))] }

func (w *writer) text() string {
	var b strings.Builder
	b.WriteString(w.one("", "---\n", "# a comment\n\n", "\n"))
	sections := []func() string{w.routes, w.routes, w.upstreams, w.sites, w.single, w.single}
	w.Shuffle(len(sections), func(i, j int) { sections[i], sections[j] = sections[j], sections[i] })
	for _, s := range sections[:1+w.IntN(len(sections))] {
		b.WriteString(s())
	}
	text := b.String()
	switch w.IntN(8) {
	case 0:
		text = strings.ReplaceAll(text, "\n", "\r\n")
	case 1:
		text = strings.TrimRight(text, "\n")
	case 2:
		text += "# the end"
	}
	for range w.IntN(3) {
		text = w.spoil(text)
	}
	return text
}

// spoil changes a line of a text, so that most results are still nearly right.
func (w *writer) spoil(text string) string {
	lines := strings.Split(text, "\n")
	i := w.IntN(len(lines))
	switch w.IntN(12) {
	case 0:
		lines[i] = "\t" + lines[i]
	case 1:
		lines[i] = " " + lines[i]
	case 2:
		lines[i] = strings.TrimPrefix(lines[i], " ")
	case 3:
		lines = append(lines[:i], lines[i+1:]...)
	case 4:
		lines[i] += " # comment"
	case 5:
		lines[i] = strings.Replace(lines[i], ": ", ": \"", 1)
	case 6:
		lines = append(lines[:i+1], append([]string{w.one("# comment", "  # comment", "", "   ", "\t", "...", "---", "- x", "  - x", "x: y", "%TAG")}, lines[i+1:]...)...)
	case 7:
		lines[i] = strings.Replace(lines[i], ": ", ": &anchor ", 1)
	case 8:
		lines[i] = strings.Replace(lines[i], ": ", ": *anchor ", 1)
	case 9:
		lines[i] = strings.Replace(lines[i], "- ", w.one("-\t", "-   ", "-\n    ", "- - "), 1)
	case 10:
		lines[i] += w.one("\u0085", "\u2028", "\r", "'", "{", "]")
	}
	return strings.Join(lines, "\n")
}

func (w *writer) routes() string {
	in := w.one("", "  ", "    ")
	var b strings.Builder
	b.WriteString("routes:" + w.one("\n", " # all of them\n", "  \n"))
	for range w.IntN(5) {
		w.n++
		name := fmt.Sprintf("r%d", w.IntN(w.n+2))
		switch w.IntN(6) {
		case 5:
			fmt.Fprintf(&b, "%s- name: %s\n%s  match: {ports: [%d], domains: [%s]}\n%s  action:\n%s    tls:\n%s      certificate: %s\n%s    block:\n", in, name, in, 8000+w.n, w.one("a.test", "b.example.com", "\"*.a.test\""), in, in, in, w.one("auto", "internal", "none"), in)
		case 0:
			fmt.Fprintf(&b, "%s- {name: %s, match: {ports: [%d]}, action: {targets: [\"a:%d\"]}}\n", in, name, 8000+w.n, w.n)
		case 1:
			fmt.Fprintf(&b, "%s- name: %s\n%s  match:\n%s    ports:\n%s    - %d\n%s  action: {respond: {status: 200}}\n", in, name, in, in, in, 8000+w.n, in)
		case 2: // a text that looks like the file around it
			fmt.Fprintf(&b, "%s- name: %s\n%s  match: {ports: [%d]}\n%s  action:\n%s    respond:\n%s      body: %s\n%s        routes:\n%s        - name: x\n\n%s          more\n", in, name, in, 8000+w.n, in, in, in, w.one("|", ">", "|+", "|-", ">-"), in, in, in)
		case 3: // a quoted text over lines that look like items
			fmt.Fprintf(&b, "%s- name: %s\n%s  match: {ports: [%d]}\n%s  action: {respond: {body: \"a\n%s- name: b\nroutes:\n\n  c: d\"}}\n", in, name, in, 8000+w.n, in, in)
		case 4:
			fmt.Fprintf(&b, "%s-\n%s  name: %s   # this one\n\n%s  match: {ports: [%d],\n%s    domains: [%q,\n  \"*.x\"]}\n%s  action: {redirect: {to: https}}\n", in, in, name, in, 8000+w.n, in, name+".example.com", in)
		}
		b.WriteString(w.one("", "", "\n", in+"# between\n", "# far left\n"))
	}
	return b.String()
}

func (w *writer) upstreams() string {
	return "upstreams:\n" + w.one(
		"  web:\n    targets:\n    - a:80\n  # comment\n  db: {targets: [\"b:80\"]}\n",
		"  web: {targets: [\"a:80\",\n  \"b:80\"]}\n  web: {targets: [\"c:80\"]}\n",
		"  \"web\":\n    targets: [\"a:80\"]\n  web:\n    targets: [\"b:80\"]\n",
		"  {web: {targets: [\"a:80\"]}, db: {targets: [\"a:80\"]}}\n",
		"", "  nothing\n", "- a\n",
	)
}

func (w *writer) sites() string {
	return "sites:" + w.one(
		"\n  http://a.example.com: a:80\n  http://b.example.com:\n  - b:80\n  - c:80\n",
		" {http://a.example.com: a:80, http://b.example.com: 3000}\n",
		"\n    http://a.example.com:8080: {respond: {body: x}}\n    http://a.example.com: x\n",
		"\n  ? http://a.example.com\n  : a:80\n",
		"\n  a.test: a:80\n  b.example.com: {targets: [\"https://b\"], tls: {min_version: \"1.3\"}}\n",
		"\n  http://a.test: 1\n  a.test: {upstream: u0}\n  a.test:8443: ./\n",
	)
}

func (w *writer) single() string {
	return w.one(
		"max_connections: 5\n", "timeouts: {idle: 5s}\n", "timeouts:\n  idle: 5\n  connect: 1s # short\n", "bind:\n- 127.0.0.1\n",
		"trusted_proxies:\n  - 10.0.0.0/8\n", "log:\n  level: |\n    info\n", "state_dir: /x # \"\n", "allowlist: [a.b,\nc.d]\n", "connection_pool:\n  enabled: true\n",
		"state_dir: \"x\nroutes:\n- y\nbind: z\"\n", "unknown: 1\n", "\"max_connections\": 7\n", "drain_timeout: ${PORT}\n",
		"acme: {email: a@b.c, tls_port: ${PORT}}\n", "acme:\n  http_port:\n    port: 8000\n  challenges:\n  - http-01\n", "default_certificate: internal\n",
	)
}

// TestPiecesGiveWhatTheWholeGives compares both ways to read on random texts, good and bad.
func TestPiecesGiveWhatTheWholeGives(t *testing.T) {
	w := &writer{Rand: rand.New(rand.NewPCG(1, 2))}
	good, inPieces := 0, 0
	for range 6000 {
		w.n = 0
		text := w.text()
		if _, ok := strict.Cut([]byte(text), sections, func() {}); ok {
			inPieces++
		}
		if _, err := both(t, text); err == nil {
			good++
		}
	}
	if good < 1000 || inPieces < 1200 {
		t.Errorf("of 6000 texts only %d are good and %d are cut: the test shows too little", good, inPieces)
	}
}

// TestOddTextsAreReadWhole lists what may not be cut.
func TestOddTextsAreReadWhole(t *testing.T) {
	route := "- {match: {ports: [1]}, action: {block: }}\n"
	for name, text := range map[string]string{
		"anchor": "routes:\n- &a {match: {ports: [1]}, action: {block: }}\n", "byte order mark": "\ufeffroutes:\n" + route,
		"carriage return alone": "routes:\r" + route, "line separator": "routes: # \u2028\n" + route, "tab": "routes:\n\t" + route,
		"second document": "routes:\n" + route + "---\nroutes:\n", "directive": "%YAML 1.2\n---\nroutes:\n" + route, "same key twice": "routes:\nroutes:\n" + route,
		"quoted key": "\"routes\":\n" + route, "flow": "{routes: []}\n", "uneven items": "routes:\n  " + route + route,
	} {
		t.Run(name, func(t *testing.T) {
			if _, ok := strict.Cut([]byte(text), sections, func() {}); ok {
				t.Errorf("was cut: %q", text)
			}
			both(t, text)
		})
	}
}

// TestTextsThatPiecesAloneWouldTake are mistakes that no piece shows by itself.
func TestTextsThatPiecesAloneWouldTake(t *testing.T) {
	for _, text := range []string{
		"sites:\n {\"http://a.b\": 1}0\n", "# \xff\nmax_connections: 1\n", "routes: # \x01\n", "# \x7f\n", "---\n---\nmax_connections: 1\n", "# a\n\t\nmax_connections: 1\n",
	} {
		if _, err := both(t, text); err == nil {
			t.Errorf("loaded: %q", text)
		}
	}
}

func TestAnchorsAliasesAndMergesAreFollowed(t *testing.T) {
	p, err := both(t, `
upstreams:
  web: &web
    targets: ["a:80"]
    pool: &pool {queue: 7}
  db:
    <<: *web
    pool: {<<: *pool, max_idle: 3}
routes:
  - match: &m {ports: [80]}
    action: &act {upstream: web}
  - match: {<<: *m, path: [/x]}
    action: *act
`)
	if err != nil {
		t.Fatal(err)
	}
	db := p.Upstreams[0]
	if db.Name != "db" || db.Targets[0].Text != "a:80" || db.Pool.Queue != 7 || db.Pool.MaxIdle != 3 {
		t.Errorf("db is %+v", db)
	}
	if len(p.Routes) != 2 {
		t.Errorf("%d routes", len(p.Routes))
	}
}

// TestAliasesCannotBlowUp holds the bound on what a small text can become.
func TestAliasesCannotBlowUp(t *testing.T) {
	text := "x: &a [" + strings.Repeat("GET,", 3000) + "]\nroutes:\n"
	for range 3000 {
		text += "- {match: {ports: [80], methods: *a}, action: {block: }}\n"
	}
	_, _, err := tryText(t, text)
	if err == nil {
		t.Fatal("loaded")
	}
	_, _, err = tryText(t, "a: &a [*a]\nroutes: *a\nsites: &b {<<: *b}\n")
	if err == nil {
		t.Fatal("loaded")
	}
}

// FuzzLoad looks for texts that panic, or that pieces read in another way than the whole.
func FuzzLoad(f *testing.F) {
	w := &writer{Rand: rand.New(rand.NewPCG(3, 4))}
	for range 40 {
		w.n = 0
		f.Add(w.text())
	}
	f.Add(twentyMistakes(f))
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "fallback") && len(text) > 4000 {
			t.Skip("large on purpose")
		}
		if p, err := both(t, text); err == nil {
			Expand(p)
		}
	})
}
