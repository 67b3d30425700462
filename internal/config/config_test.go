package config

import (
	"os"
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

func twentyMistakes(t testing.TB) string {
	b, err := os.ReadFile("testdata/twenty.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
