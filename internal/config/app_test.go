package config

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestAppAsAllItsDefaultsMakeIt(t *testing.T) {
	p := loadText(t, "apps:\n  56: {command: 'npm run \"my dev\" --port ${PORT} a\\ b $${X}', start: on_request, env: {B: 2, A: \"${HOST}\"}}\n"+
		"routes: [{name: r, match: {ports: [80]}, action: {targets: [\"app:56\"]}}]\n")
	want := &plan.App{
		Name: "56", Source: plan.FromFile, Command: []string{"npm", "run", "my dev", "--port", "${PORT}", "a b", "${X}"}, Dir: p.Apps[0].Dir,
		Env: []plan.EnvVar{{Name: "A", Value: "${HOST}"}, {Name: "B", Value: "2"}}, Socket: "tcp", OnPortBusy: "next", Start: "on_request",
		IdleStop: 10 * time.Minute, Ready: plan.Ready{Timeout: 30 * time.Second},
		Restart: plan.Restart{Policy: "always", Backoff: time.Second, MaxBackoff: 30 * time.Second, Max: 5, Within: 5 * time.Minute, MinUptime: 10 * time.Second},
		Stop:    plan.AppStop{Signal: "TERM", Timeout: 10 * time.Second}, Logs: plan.AppLogs{Lines: 1000, Files: 20},
	}
	if d := cmp.Diff(want, p.Apps[0]); d != "" {
		t.Error(d)
	}
	if u := p.Upstream("r").Targets[0]; u.App != "56" || u.Text != "app:56" || u.Host != "" || u.Port != 0 {
		t.Errorf("%+v", u)
	}
	if text := string(Expand(p)); strings.Contains(text, "${HOST}") || !strings.Contains(text, `name: A`) {
		t.Errorf("values of env are not hidden:\n%s", text)
	}
}

func TestOneMistakeAboutAnAppAtATime(t *testing.T) {
	app := func(keys string) string { return "apps: {web: {command: x, " + keys + "}}\n" }
	for text, want := range map[string]string{
		"apps: {web: {}}\n":                                            "the app says nothing that could be run",
		"apps: {web: {command: []}}\n":                                 "the command names no program",
		"apps: {Web: {command: x}}\n":                                  `"Web" is no name`,
		"apps: {../x: {command: x}}\n":                                 "is no name",
		"apps: {web: {command: 'a \"b'}}\n":                            "a quote in the command has no end",
		"apps: {web: {command: 'a; rm -rf /'}}\n":                      `";" means something to a shell alone`,
		"apps: {web: {command: 'a | b'}}\n":                            "[sh, -c,",
		"apps: {web: {command: [\"a\\0b\"]}}\n":                        "NUL",
		app("port: 0"):                                                 `"0" is no port`,
		app("port: auto, socket: udp"):                                 `"udp" is not known here`,
		app("port: 3000, socket: unix"):                                "an app with a unix socket has no port",
		app("port: 3000, on_port_busy: next"):                          "port 3000 is fixed",
		app("port: 32150"):                                             "32150 is one of app_ports 32100-32200",
		app("on_port_busy: take_over, socket: unix"):                   "an app with a unix socket has no port",
		app("image: \"-x y\""):                                         "is no name of an image",
		app("image: " + strings.Repeat("x", 513)):                      "is no name of an image",
		app("image: x, dir: /srv"):                                     "does not see the folders of this machine",
		app("image: x, inherit_env: true"):                             "does not get the environment of the daemon",
		app("image: x, socket: fd"):                                    "not on a socket of ours",
		app("container_port: 80"):                                      "an app without an image has no container",
		app("env: {PORT: 1}"):                                          "PORT is what quaymaster tells the app",
		app("env: {\"A=B\": 1}"):                                       `"A=B" is not the name of a variable`,
		app("env: {A: \"${NOT_SET_AT_ALL}\"}"):                         "the variable NOT_SET_AT_ALL is not set",
		app("env_required: [a-b]"):                                     "is not the name of a variable",
		app("depends_on: [db]"):                                        `there is no app "db"`,
		app("depends_on: [wep]"):                                       "write web",
		app("depends_on: [web]"):                                       "web waits for itself: web -> web",
		app("ready: {http: /x, log: y}"):                               "three ways to be ready",
		app("ready: {log: \"(\"}"):                                     "RE2",
		app("ready: {http: x}"):                                        "does not begin with a slash",
		app("ready: {timeout: 0}"):                                     "an app needs some time",
		app("health: {interval: 0}"):                                   "the interval is too short",
		app("health: {timeout: 0}"):                                    "a check needs a timeout",
		app("restart: {backoff: 10, max_backoff: 1}"):                  "it is shorter than backoff, 10s",
		app("stop: {signal: CHLD}"):                                    "is no signal that ends a program",
		app("limits: {cpu: many}"):                                     "no number of processors",
		app("port: 80") + one(port80, toA, ""):                         "80 is the port of route a at",
		"metrics: {address: \":81\"}\n" + app("port: 81"):              "81 is metrics.address at",
		"apps: {a: {command: x, port: 1}, b: {command: x, port: 1}}\n": "1 is the port of app a at",
		one(port80, `targets: ["app:web"]`, ""):                        `there is no app "web"`,
		one(port80, `targets: ["app:"]`, ""):                           "is no name",
		"apps:\n  a: {command: x, depends_on: [b]}\n  b: {command: x, depends_on: [a]}\n": "a waits for itself: a -> b -> a",
	} {
		_, _, err := tryText(t, text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nwant %s\ngot  %v", text, want, err)
		}
	}
}

func TestAnAppThatDidNotChangeIsTheSamePointer(t *testing.T) {
	l := NewLoader()
	load := func(text string) *plan.Plan {
		p, _, err := l.Load([]Source{{Name: "/q.yaml", Bytes: []byte(text)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a := load("apps: {a: {command: x}, b: {command: x}}\n")
	b := load("# another line\napps: {a: {command: x}, b: {command: y}}\n")
	if a.Apps[0] != b.Apps[0] || a.Apps[1] == b.Apps[1] {
		t.Error("a was to be the same, and b another one")
	}
	changes := plan.Diff(a, b)
	if len(changes) != 1 || changes[0].Kind != "app" || changes[0].Name != "b" {
		t.Errorf("%v", changes)
	}
}

func TestTwoFilesCannotShareAnApp(t *testing.T) {
	_, _, err := NewLoader().Load([]Source{
		{Name: "/a.yaml", Bytes: []byte("apps: {web: {command: x}}\n")}, {Name: "/b.yaml", Bytes: []byte("apps: {web: {dir: /}, db: {command: y}}\n")},
	}, nil)
	if err == nil || !strings.Contains(err.Error(), "the app is also at /a.yaml:1:13") {
		t.Errorf("%v", err)
	}
}

func TestAnAppOfTheFileWinsOverTheAPI(t *testing.T) {
	layer := &Layer{}
	for _, name := range []string{"web", "db"} {
		if err := layer.PutApp(name, []byte(`{"command": ["api", "${PORT}"], "dir": "/tmp"}`)); err != nil {
			t.Fatal(err)
		}
	}
	p, warnings, err := NewLoader().Load([]Source{{Name: "/q.yaml", Bytes: []byte("apps: {web: {command: file}}\n")}}, layer)
	if err != nil || len(warnings) != 1 || warnings[0].Conflict != "web" {
		t.Fatalf("%v %v", warnings, err)
	}
	if db, web := p.Apps[0], p.Apps[1]; db.Source != plan.FromAPI || db.Command[1] != "${PORT}" || web.Source != plan.FromFile || web.Command[0] != "file" {
		t.Errorf("%+v %+v", db, web)
	}
	for body, want := range map[string]string{
		`{"command": ["x"], "dir": "rel"}`: "there is no file it could be relative to", `{"comand": []}`: "write command", `{`: "not JSON",
	} {
		name := "new"
		next := layer.Clone()
		err := next.PutApp(name, []byte(body))
		if err == nil {
			_, _, err = NewLoader().Load(nil, next)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", body, err)
		}
	}
	if text, err := json.Marshal(layer); err != nil || !strings.Contains(string(text), `"apps":{"db":`) {
		t.Errorf("%s %v", text, err)
	}
}
