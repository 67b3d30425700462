package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/api"
)

// TestWordsChild says what it was given, and is no test.
func TestWordsChild(t *testing.T) {
	if os.Getenv("QM_CHILD_LISTEN") != "words" {
		t.Skip("this is an app of other tests")
	}
	at := slices.Index(os.Args, "--")
	text, _ := json.Marshal(append(os.Args[at+1:], os.Getenv("QM_WORD")))
	fmt.Printf("%s\n", text)
	os.Exit(0)
}

// odd are words that a shell, a path or a record of ours could trip over.
func odd() []string {
	return []string{
		"a;b", "../x", " two  blanks ", `"'`, "`id`", "$(id)", "*", "", "-x", "--", "ü", "line\nbreak", "tab\tand\rreturn", "\x1b[2J", "{{x}}", "a: b", "# no", "&a *a !b", "\u2028\U0001f600",
		strings.Repeat("x", 300), strings.Repeat("../", 100), "$PORT", "%PORT%", `\`, `\"`, `C:\x`, "null", "~", "0x10",
	}
}

// words are the keys of an app that is given them.
func words(t *testing.T, list []string) map[string]any {
	t.Helper()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]any{
		"command": append([]string{self, "-test.run=^TestWordsChild$", "--"}, list...), "restart": map[string]any{"policy": "no"},
		"env": map[string]string{"QM_CHILD_LISTEN": "words", "QM_WORD": strings.Join(list, "|")}, "dir": "/",
	}
	if os.Geteuid() == 0 {
		keys["user"] = "root"
	}
	return keys
}

// heard waits for what the app of words has said.
func (q *qm) heard(name string) (list []string) {
	q.t.Helper()
	q.until(name+" has said it", func() bool {
		res, text, err := q.admin("GET", "/v1/apps/"+name+"/logs", nil)
		var lines []api.AppLine
		if err != nil || res.StatusCode != 200 || json.Unmarshal(text, &lines) != nil {
			return false
		}
		for _, l := range lines {
			if l.Stream == "stdout" && json.Unmarshal([]byte(l.Text), &list) == nil {
				return true
			}
		}
		return false
	})
	return list
}

func TestA10_ArgumentsComeAsTheyAreByFileAndAPI(t *testing.T) {
	t.Parallel()
	want := append(odd(), strings.Join(odd(), "|"))
	text, err := json.Marshal(words(t, odd()))
	if err != nil {
		t.Fatal(err)
	}
	leases := freePorts(t, 4)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\napps:\n  file: %s\n", leases, leases+3, text))
	if got := q.heard("file"); !slices.Equal(got, want) {
		t.Errorf("by file:\n%q, want\n%q", got, want)
	}
	res, body, err := q.admin("PUT", "/v1/apps/api", strings.NewReader(string(text)), "If-Match", "*")
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v %s", err, res.Status, body)
	}
	if got := q.heard("api"); !slices.Equal(got, want) {
		t.Errorf("by API:\n%q, want\n%q", got, want)
	}
	for what, part := range map[string]string{"NUL": `"a\u0000b"`, "a byte that is no UTF-8": "\"a\xffb\"", "half a pair": `"\ud800"`, "a number": "1.50", "a list": "[]"} {
		for _, key := range []string{"command", "env"} {
			app := `{"user": "root", "command": ["/bin/true", ` + part + `]}`
			if key == "env" {
				app = `{"user": "root", "command": ["/bin/true"], "env": {"A": ` + part + `}}`
			}
			res, body, err := q.admin("PUT", "/v1/apps/bad", strings.NewReader(app), "If-Match", "*")
			if err != nil || res.StatusCode == 200 && what != "a number" || res.StatusCode >= 500 {
				t.Errorf("%s in %s: %v %v %s", what, key, err, res.Status, body)
			}
			if what == "a number" || what == "half a pair" { // YAML has another opinion of both
				continue
			}
			if err := os.WriteFile(q.dir+"/bad.yaml", []byte("apps: {bad: "+app+"}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, code := cli(t, "check", "-c", q.dir+"/bad.yaml"); code != 2 || !strings.Contains(out, "bad.yaml:") {
				t.Errorf("%s in %s of a file: %d %s", what, key, code, out)
			}
		}
	}
}

func TestA10_NamesAreRefusedByFileAPIAndCommandLine(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 2)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\napps:\n", leases, leases+1)+appEntry(t, "web", "serve"))
	pid := q.appIs("web", "ready").PID
	for _, name := range append(odd(), "WEB", "web.", "we_b", "web/start", "web?x", "web%2e", ".", "..", strings.Repeat("x", 64)) {
		text, _ := json.Marshal(map[string]any{"apps": map[string]any{name: words(t, nil)}})
		if name == "" || name == "-x" || name == "--" || name == "0x10" || name == "null" { // no arguments, or names
			continue
		}
		if err := os.WriteFile(q.dir+"/bad.yaml", text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, code := cli(t, "check", "-c", q.dir+"/bad.yaml"); code != 2 || !strings.Contains(out, "bad.yaml:") || strings.Contains(out, "\x1b") {
			t.Errorf("file with %q: %d %q", name, code, out)
		}
		res, body, err := q.admin("PUT", "/v1/apps/"+url.PathEscape(name), strings.NewReader(`{"command": ["/bin/true"], "user": "root"}`), "If-Match", "*")
		if err != nil || res.StatusCode < 400 || res.StatusCode >= 500 {
			t.Errorf("PUT %q: %v %v %s", name, err, res, body)
		}
		for _, verb := range [][]string{{"apps", "start", name}, {"apps", "stop", name}, {"apps", "restart", name}, {"apps", "logs", name}, {"apps", "remove", name}, {"wait", "app:" + name, "--timeout", "1s"}} {
			out, code := q.cli(verb...)
			if code != 1 || strings.ContainsAny(out, "\x1b") || len(out) > 2000 || strings.Contains(out, "waited") {
				t.Errorf("%q: exit %d %q", verb, code, out)
			}
		}
	}
	for _, path := range []string{"/v1/apps/%00", "/v1/apps/%ff", "/v1/apps/web%0a", "/v1/apps/..%2fstatus", "/v1/apps/web/../x"} {
		if res, body, err := q.admin("PUT", path, strings.NewReader(`{"command": ["/bin/true"]}`), "If-Match", "*"); err != nil || res.StatusCode < 400 || res.StatusCode >= 500 {
			t.Errorf("PUT %s: %v %v %s", path, err, res, body)
		}
	}
	if a := q.app("web"); a.State != "ready" || a.PID != pid {
		t.Errorf("%+v", a)
	}
}

func TestA10_OutputCannotTakeATerminalOver(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"\x1b[1;31mred\x1b[0m":              "\x1b[1;31mred\x1b[0m",
		"\x1b[2J\x1b]0;title\a":             "?[2J?]0;title?",
		"\x1b]52;c;cm0gLXJm\x1b\\ \u009b2J": "?]52;c;cm0gLXJm?\\ ?2J",
		"\r\b\x7ftab\tü \xff":               "???tab\tü \ufffd",
		"\x1b[38;2;1;2;3m\x1b[":             "\x1b[38;2;1;2;3m?[",
	} {
		if got := line(api.AppLine{Stream: "stdout", Text: text}); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}
