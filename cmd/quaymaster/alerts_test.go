package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// alertRule is one of examples/alerts.rules.yml.
type alertRule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	Annotations map[string]string `yaml:"annotations"`
}

func alertRules(t *testing.T) (out []alertRule) {
	t.Helper()
	text, err := os.ReadFile("../../examples/alerts.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []alertRule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		out = append(out, g.Rules...)
	}
	if len(out) < 15 {
		t.Fatalf("%d rules", len(out))
	}
	return out
}

// seriesOf are the values of each label of each metric that a daemon shows.
func (q *qm) seriesOf() map[string]map[string][]string {
	q.t.Helper()
	_, text, err := q.admin("GET", "/metrics", nil)
	if err != nil {
		q.t.Fatal(err)
	}
	out := make(map[string]map[string][]string)
	label := regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
	for line := range strings.Lines(string(text)) {
		name := strings.FieldsFunc(line, func(r rune) bool { return r == '{' || r == ' ' })[0]
		if strings.HasPrefix(line, "#") {
			continue
		}
		if out[name] == nil {
			out[name] = make(map[string][]string)
		}
		for _, m := range label.FindAllStringSubmatch(line, -1) {
			out[name][m[1]] = append(out[name][m[1]], m[2])
		}
	}
	return out
}

var (
	promToken    = regexp.MustCompile(`"[^"]*"|\{[^}]*\}|\[[^\]]*\]|[A-Za-z_:][A-Za-z0-9_:]*(?:\s*\()?`)
	promGroup    = regexp.MustCompile(`\b(by|without|on|ignoring)\s*\(([^)]*)\)`)
	promMatcher  = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	promWords    = []string{"and", "or", "unless", "bool", "group_left", "group_right", "sum", "max", "min"}
	promTemplate = regexp.MustCompile(`\$labels\.(\w+)`)
	promScraped  = []string{"instance", "job"} // labels that Prometheus itself adds
)

// wrongIn says what an expression names that there is not, and which labels its result can have.
func wrongIn(expr string, shown map[string]map[string][]string) (wrong, labels []string) {
	grouped := promGroup.FindAllStringSubmatch(expr, -1)
	rest := promGroup.ReplaceAllString(expr, " ")
	tokens := promToken.FindAllString(rest, -1)
	of := map[string]bool{}
	metrics := 0
	for i, tok := range tokens {
		if strings.ContainsAny(tok[:1], `"{[`) || strings.HasSuffix(tok, "(") || slices.Contains(promWords, tok) {
			continue // a function that does not exist is found by promtool
		}
		metrics++
		has, ok := shown[tok]
		if !ok {
			wrong = append(wrong, "no series "+tok)
			continue
		}
		for name := range has {
			of[name] = true
		}
		if i+1 == len(tokens) || tokens[i+1][0] != '{' {
			continue
		}
		for _, m := range promMatcher.FindAllStringSubmatch(tokens[i+1], -1) {
			if len(has[m[1]]) == 0 {
				wrong = append(wrong, fmt.Sprintf("%s has no label %s", tok, m[1]))
				continue
			}
			if m[2] == "!=" || m[2] == "!~" && m[1] == "target" {
				continue
			}
			for _, value := range strings.Split(m[3], "|") {
				one := regexp.MustCompile("^(?:" + value + ")$")
				if !slices.ContainsFunc(has[m[1]], one.MatchString) {
					wrong = append(wrong, fmt.Sprintf("%s has no %s=%q", tok, m[1], value))
				}
			}
		}
	}
	if metrics == 0 {
		wrong = append(wrong, "no series at all")
	}
	for _, g := range grouped {
		for _, name := range strings.Split(g[2], ",") {
			if name = strings.TrimSpace(name); !of[name] && !slices.Contains(promScraped, name) {
				wrong = append(wrong, "nothing has a label "+name)
			}
		}
	}
	kept := slices.Clone(promScraped)
	if i := slices.IndexFunc(grouped, func(g []string) bool { return g[1] == "by" }); i >= 0 {
		for _, name := range strings.Split(grouped[i][2], ",") {
			kept = append(kept, strings.TrimSpace(name))
		}
		return wrong, kept
	}
	for name := range of {
		kept = append(kept, name)
	}
	return wrong, kept
}

// The rules are held against a daemon that was brought into each of the states they are about.
func TestD09_AlertRulesNameOnlySeriesThatExist(t *testing.T) {
	t.Parallel()
	port, retried, moved, instead, given, acme := freePort(t), freePort(t), freePort(t), freePort(t), freePort(t), freePort(t)
	for _, p := range []int{retried, moved, given} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	dead := freePort(t)
	leases := freePorts(t, 4)
	body := fmt.Sprintf("app_ports: %d-%d\napps:\n", leases, leases+3) +
		appEntry(t, "web", "serve") + appEntry(t, "broken", "crash", "restart: {max: 2, backoff: 50ms, max_backoff: 50ms}") + fmt.Sprintf(`
acme: {directory: "https://127.0.0.1:%[6]d/directory", http_port: %[5]d, tls_port: %[1]d}
upstreams:
  dead: {targets: ["127.0.0.1:%[6]d"], health_check: {tcp: true, interval: 1s}}
routes:
  - {name: dead, match: {ports: ["127.0.0.1:%[1]d"]}, action: {upstream: dead}}
  - {name: web, match: {ports: ["127.0.0.1:%[1]d"], domains: [web.test]}, action: {targets: ["app:web"]}}
  - {name: local, match: {ports: ["127.0.0.1:%[1]d"], domains: [local.test]}, action: {targets: ["app:web"], tls: {certificate: internal}}}
  - {name: public, match: {ports: [%[1]d], domains: [a.example.com]}, action: {targets: ["app:web"], tls: {certificate: auto}}}
  - {name: retried, match: {ports: ["127.0.0.1:%[2]d"]}, action: {respond: {body: "x"}}}
  - {name: moved, match: {ports: [{port: "127.0.0.1:%[3]d", fallback: ["127.0.0.1:%[4]d"]}]}, action: {respond: {body: "x"}}}
  - {name: given, match: {ports: [{port: "127.0.0.1:%[7]d", give_up_after: 100ms}]}, action: {respond: {body: "x"}}}
`, port, retried, moved, instead, acme, dead, given)
	q := startApps(t, body)
	q.appIs("web", "ready")
	q.appIs("broken", "crash-looping")
	if status, _, err := fetch(port, "x.test", "/"); err != nil || status < 500 {
		t.Fatalf("a dead target: %d %v", status, err)
	}
	var shown map[string]map[string][]string
	q.until("every state is there", func() bool {
		shown = q.seriesOf()
		states := shown["quaymaster_port_state"]["state"]
		for _, s := range []string{"bound", "retrying", "fallback", "failed"} {
			if !slices.Contains(states, s) {
				return false
			}
		}
		return slices.Contains(shown["quaymaster_acme_orders_total"]["result"], "failed")
	})
	// What only a CA that answers would show.
	shown["quaymaster_acme_orders_total"]["result"] = append(shown["quaymaster_acme_orders_total"]["result"], "obtained")
	for _, r := range alertRules(t) {
		wrong, labels := wrongIn(r.Expr, shown)
		for _, text := range r.Annotations {
			for _, m := range promTemplate.FindAllStringSubmatch(text, -1) {
				if !slices.Contains(labels, m[1]) {
					wrong = append(wrong, fmt.Sprintf("its result has no label %s", m[1]))
				}
			}
		}
		for _, w := range wrong {
			t.Errorf("%s: %s", r.Alert, w)
		}
	}
	for expr, want := range map[string]string{
		`quaymaster_nothing > 0`:                                "no series quaymaster_nothing",
		`quaymaster_app_state{application="web"} == 1`:          "quaymaster_app_state has no label application",
		`quaymaster_app_state{state=~"ready|broken"} == 1`:      `quaymaster_app_state has no state="broken"`,
		`sum by (application) (rate(quaymaster_app_state[5m]))`: "nothing has a label application",
		`1 > 0`: "no series at all",
	} {
		if wrong, _ := wrongIn(expr, shown); !slices.Contains(wrong, want) {
			t.Errorf("of %s it is said %q, not %q", expr, wrong, want)
		}
	}
}

// Each rule fires when it is to, and not before: examples/alerts.test.yml says when.
func TestD09_AlertRulesFire(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("LOUD SKIP: %v", err)
		}
		t.Fatal(err)
	}
	for _, args := range [][]string{{"check", "rules", "alerts.rules.yml"}, {"test", "rules", "alerts.test.yml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = "../../examples"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	tried, err := os.ReadFile("../../examples/alerts.test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range alertRules(t) {
		if n := strings.Count(string(tried), "alertname: "+r.Alert+"\n"); n < 2 {
			t.Errorf("%s is tried %d times; it wants to be seen firing, and not firing", r.Alert, n)
		}
	}
}
