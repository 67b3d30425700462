package config

import (
	"os"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// loadText loads one file and fails the test on errors.
func loadText(t *testing.T, text string) *plan.Plan {
	t.Helper()
	p, _, err := tryText(t, text)
	if err != nil {
		t.Fatalf("load: %v\n%s", err, text)
	}
	return p
}

func tryText(t *testing.T, text string) (*plan.Plan, []Warning, error) {
	t.Helper()
	l := NewLoader()
	l.Env = testEnv
	return l.Load([]Source{{Name: t.TempDir() + "/quaymaster.yaml", Bytes: []byte(text)}}, nil)
}

// testEnv is an environment of its own, so that tests do not depend on the machine.
func testEnv(name string) (string, bool) {
	v, ok := map[string]string{"STATE_DIRECTORY": "/var/lib/quaymaster", "PORT": "8123", "EMPTY": "", "NAME": "web", "YES": "true"}[name]
	return v, ok
}

func route(t *testing.T, p *plan.Plan, name string) *plan.Route {
	t.Helper()
	for _, r := range p.Routes {
		if r.Name == name {
			return r
		}
	}
	t.Fatalf("no route %s", name)
	return nil
}

func TestSmoke(t *testing.T) {
	p := loadText(t, strings.TrimSpace(`
listen_addrs: ["0.0.0.0:80", "0.0.0.0:443"]
timeouts: {connect: 10, client_hello: 5, idle: 300}
metrics: {enabled: true, address: "127.0.0.1:9000"}
max_connections: 10000
shutdown_timeout: 30
allowlist: ["*.example.com"]
sites:
  http://a.example.com: localhost:3000
routes:
  - name: x
    match: {ports: [8080]}
    action: {targets: ["10.0.0.1:80"]}
`))
	t.Logf("%+v", p)
	for _, r := range p.Routes {
		t.Logf("%+v", *r)
	}
	for _, r := range p.Ports {
		t.Logf("%+v", *r)
	}
}

func twentyMistakes(t testing.TB) string {
	b, err := os.ReadFile("testdata/twenty.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
