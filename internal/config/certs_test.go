package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// loadIn loads a text that stands in a folder.
func loadIn(t *testing.T, l *Loader, dir, text string) (*plan.Plan, []Warning, error) {
	t.Helper()
	l.Env = testEnv
	return l.Load([]Source{{Name: filepath.Join(dir, "quaymaster.yaml"), Bytes: []byte(text)}}, nil)
}

func certsOf(p *plan.Plan) string {
	var b strings.Builder
	for _, c := range p.Certificates {
		b.WriteString(string(c.Source.Kind))
		if c.Source.CertFile != "" {
			b.WriteString(" " + filepath.Base(c.Source.CertFile))
		}
		fmt.Fprintf(&b, " %s", c.Names)
		if c.OnDemand {
			b.WriteString(" on demand")
		}
		fmt.Fprintf(&b, " for %s\n", strings.Join(c.Users, ", "))
	}
	return b.String()
}

// ends is a route that ends TLS on 443.
func ends(name, domains, tls string) string {
	return fmt.Sprintf("- {name: %s, match: {ports: [443], domains: [%s], path: [/%s]}, action: {block: , tls: {%s}}}\n", name, domains, name, tls)
}

func TestCertificatesOfThePlan(t *testing.T) {
	dir := t.TempDir()
	makePair(t, dir, "one", "one.example.com", "*.wild.example.com", "10.0.0.1")
	makePair(t, dir, "two", "two.example.com")
	const mail = "acme: {email: a@example.com%s}\n"
	acme := fmt.Sprintf(mail, "")
	for name, c := range map[string]struct{ text, want string }{
		"one for each name, whoever wants it": {
			acme + "routes:\n" + ends("a", "x.example.com, y.example.com", "") + ends("b", "y.example.com", "certificate: auto"),
			"auto [x.example.com] for route a\nauto [y.example.com] for route a, route b\n",
		},
		"names that no CA knows": {
			"routes:\n" + ends("a", "localhost, \"*.localhost\", a.test, b.internal, 127.0.0.1, \"::1\"", ""),
			"internal [*.localhost] for route a\ninternal [127.0.0.1] for route a\ninternal [::1] for route a\ninternal [a.test] for route a\ninternal [b.internal] for route a\ninternal [localhost] for route a\n",
		},
		"the internal one where it is written": {
			"routes:\n" + ends("a", "x.example.com", "certificate: internal"), "internal [x.example.com] for route a\n",
		},
		"a pair of files is one, whatever the names": {
			"routes:\n" + ends("a", "x.example.com, y.example.com", "certificate: {cert_file: one.crt, key_file: one.key}") +
				ends("b", "z.example.com", "certificate: {cert_file: ./one.crt, key_file: one.key}") +
				"- {name: c, match: {ports: [444]}, action: {block: , tls: {certificate: {cert_file: one.crt, key_file: one.key}}}}\n",
			"files one.crt [] for route a, route b, route c\n",
		},
		"a filed one for whom it has all names": {
			acme + "certificates: [{cert_file: one.crt, key_file: one.key}, {names: [Three.Example.com], cert_file: two.crt, key_file: two.key}]\nroutes:\n" +
				ends("a", "one.example.com, x.wild.example.com", "") + ends("b", "three.example.com", "") + ends("c", "y.wild.example.com, two.example.com", "") +
				ends("d", "x.y.wild.example.com", "") + ends("e", "10.0.0.1", ""),
			"auto [two.example.com] for route c\nauto [x.y.wild.example.com] for route d\nauto [y.wild.example.com] for route c\n" +
				"files one.crt [] for certificates, route a, route e\nfiles two.crt [three.example.com] for certificates, route b\n",
		},
		"a filed one is one label deep": {
			fmt.Sprintf(mail, ", on_demand: {allow: [\"**.wild.example.com\"]}") + "certificates: [{cert_file: one.crt, key_file: one.key}]\nroutes:\n" +
				ends("a", "\"**.wild.example.com\"", "") + ends("b", "\"*.wild.example.com\"", ""),
			"auto [**.wild.example.com] on demand for route a\nfiles one.crt [] for certificates, route b\n",
		},
		"a filed one gives way to what is written": {
			"certificates: [{cert_file: one.crt, key_file: one.key}]\nroutes:\n" + ends("a", "one.example.com", "certificate: internal"),
			"files one.crt [] for certificates\ninternal [one.example.com] for route a\n",
		},
		"the default one": {
			"default_certificate: {cert_file: one.crt, key_file: one.key}\ncertificates: [{names: [x.y], cert_file: one.crt, key_file: one.key}]\n",
			"files one.crt [x.y] for certificates, default_certificate\n",
		},
		"patterns by dns-01": {
			fmt.Sprintf(mail, ", dns: {rfc2136: {server: \"127.0.0.1:53\", zone: example.com}}, on_demand: {allow: [\"*.customer.example\"]}") + "routes:\n" +
				ends("a", "\"*.example.com\", \"*.a.example.com\", example.com, \"*.customer.example\"", ""),
			"auto [*.a.example.com] for route a\nauto [*.customer.example] on demand for route a\nauto [*.example.com] for route a\nauto [example.com] for route a\n",
		},
		"patterns on demand": {
			fmt.Sprintf(mail, ", on_demand: {allow: [\"**.customer.example\"]}") + "routes:\n" + ends("a", "\"*.b.customer.example\", \"**.customer.example\"", ""),
			"auto [**.customer.example] on demand for route a\nauto [*.b.customer.example] on demand for route a\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, warnings, err := loadIn(t, NewLoader(), dir, c.text)
			if err != nil || len(warnings) > 0 {
				t.Fatal(err, warnings)
			}
			if got := certsOf(p); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

// TestCertificatesAreTheSamePointers keeps those that did not change over a reload, and a broken file that serves already
// from being in the way of another change.
func TestCertificatesAreTheSamePointers(t *testing.T) {
	dir := t.TempDir()
	certFile, _ := makePair(t, dir, "one", "one.example.com")
	text := "acme: {email: a@example.com}\ncertificates: [{cert_file: one.crt, key_file: one.key}]\nroutes:\n" +
		ends("a", "x.example.com", "") + ends("b", "one.example.com", "") + ends("c", "c.test", "")
	l := NewLoader()
	first, _, err := loadIn(t, l, dir, text)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(certFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, more := range []string{"", "max_connections: 7\n", "timeouts: {idle: 7s}\n"} {
		p, _, err := loadIn(t, l, dir, more+text)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range p.Certificates {
			if c != first.Certificates[i] {
				t.Errorf("%q: %s is another pointer", more, c.Label())
			}
		}
		if same := p.Route("b") == first.Route("b"); same != !strings.HasPrefix(more, "timeouts") {
			t.Errorf("%q: route b is the same pointer: %v", more, same)
		}
		if p.Route(plan.HTTPChallenge) == nil || p.Ports[0] != first.Ports[0] {
			t.Errorf("%q: port %s is another pointer", more, p.Ports[0].Addr)
		}
	}
	p, _, err := loadIn(t, l, dir, text+ends("d", "d.test, c.test", ""))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range plan.Diff(first, p) {
		got = append(got, c.String())
	}
	if want := "certificate d.test (internal) added\nroute d added"; strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if _, _, err := loadIn(t, NewLoader(), dir, text); err == nil || !strings.Contains(err.Error(), "one.crt and "+dir+"/one.key are no pair") {
		t.Errorf("a broken file is taken at first load: %v", err)
	}
}

// TestHostsAgreeAboutTLS has pairs of routes for one host on one port, and what they disagree about.
func TestHostsAgreeAboutTLS(t *testing.T) {
	dir := makeTwins(t)
	pass := "action: {targets: [\"a:1\"], tls: {mode: passthrough}}"
	block := func(tls string) string { return "action: {block: , tls: {" + tls + "}}" }
	for _, c := range []struct {
		name, a, b string // match and action, ports and domains of a.test left out where they are the same
		want       string
	}{
		{"modes", "ports: [443], domains: [a.test]; " + pass, "ports: [443], domains: [a.test], path: [/x]; " + block(""), "tls.mode of a.test on :443"},
		{"any name", "ports: [443]; " + pass, "ports: [443], protocols: [websocket]; " + block("certificate: {cert_file: DIR/a.crt, key_file: DIR/a.key}"), "tls.mode of any host on :443"},
		{"certificates", "ports: [443], domains: [a.test]; " + block(""), "ports: [443], domains: [a.test], path: [/x]; " + block("certificate: {cert_file: DIR/a.crt, key_file: DIR/a.key}"), "tls.certificate of a.test on :443"},
		{"clients", "ports: [443], domains: [a.test]; " + block(""), "ports: [443], domains: [b.test, a.test]; " + block("client_auth: {mode: required, ca_file: DIR/a.crt}"), "tls.client_auth of a.test on :443"},
		{"versions", "ports: [443], domains: [a.test]; " + block(""), "ports: [443], domains: [a.test], path: [/x]; " + block("min_version: \"1.3\""), "tls.min_version of a.test on :443"},
		{"one address among all", "ports: [443], domains: [a.test]; " + pass, "ports: [\"127.0.0.1:443\"], domains: [a.test], path: [/x]; " + block(""), "tls.mode of a.test on 127.0.0.1:443"},
		{"all addresses, and one", "ports: [\"127.0.0.1:443\"], domains: [a.test]; " + pass, "ports: [443], domains: [a.test], path: [/x]; " + block(""), "tls.mode of a.test on :443"},

		{"split by client", "ports: [443], domains: [a.test], client_ips: [10.0.0.0/8]; " + pass, "ports: [443], domains: [a.test]; " + block(""), ""},
		{"other names", "ports: [443], domains: [\"*.test\"]; " + pass, "ports: [443], domains: [a.test]; " + block(""), ""},
		{"other ports", "ports: [443], domains: [a.test]; " + pass, "ports: [444], domains: [a.test]; " + block(""), ""},
		{"other addresses", "ports: [\"127.0.0.2:443\"], domains: [a.test]; " + pass, "ports: [\"127.0.0.1:443\"], domains: [a.test]; " + block(""), ""},
		{"one plain", "ports: [443], domains: [a.test]; action: {block: }", "ports: [443], domains: [a.test]; " + block(""), ""},
		{"how targets are reached does not count", "ports: [443], domains: [a.test]; " + block(""), "ports: [443], domains: [a.test], path: [/x]; action: {targets: [\"a:1\"], tls: {mode: terminate-and-reencrypt}}", ""},
	} {
		text := "routes:\n"
		for i, r := range []string{c.a, c.b} {
			match, action, _ := strings.Cut(r, "; ")
			text += fmt.Sprintf("- {name: %s, match: {%s}, %s}\n", string("ab"[i]), match, action)
		}
		text = strings.ReplaceAll(text, "DIR", dir)
		_, _, err := tryText(t, text)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), `routes "b" and "a" disagree about `+c.want+"; the other one is at ") || !strings.Contains(err.Error(), ":2:10;")):
			t.Errorf("%s: %v", c.name, err)
		}
		var errs Errors
		if errors.As(err, &errs) && len(errs) != 1 {
			t.Errorf("%s: %d errors, want one: %v", c.name, len(errs), err)
		}
	}
}

// TestHostsAgreeOnEveryAddress has a wildcard that agrees with one address and disagrees with another.
func TestHostsAgreeOnEveryAddress(t *testing.T) {
	text := "routes:\n" +
		"- {name: a, match: {ports: [\"127.0.0.1:443\"], domains: [a.test]}, action: {block: , tls: {}}}\n" +
		"- {name: b, match: {ports: [443], domains: [a.test], path: [/b]}, action: {block: , tls: {}}}\n" +
		"- {name: c, match: {ports: [\"127.0.0.2:443\"], domains: [a.test]}, action: {targets: [\"a:1\"], tls: {mode: passthrough}}}\n"
	_, _, err := tryText(t, text)
	if err == nil || !strings.Contains(err.Error(), `routes "c" and "b" disagree about tls.mode of a.test on 127.0.0.2:443`) {
		t.Errorf("%v", err)
	}
	twins := "routes:\n- {name: a, match: {ports: [443], domains: [a.test]}, action: {block: , tls: {}}}\n" +
		"- {name: b, match: {ports: [443], domains: [a.test]}, action: {block: , tls: {min_version: \"1.3\"}}}\n"
	if _, _, err = tryText(t, twins); err == nil || strings.Contains(err.Error(), "disagree") || !strings.Contains(err.Error(), "match the same on :443") {
		t.Errorf("twins are to be told once: %v", err)
	}
}

func TestReencryptReachesEveryTargetByTLS(t *testing.T) {
	p := loadText(t, `
upstreams: {both: {targets: ["https://[2001:db8::1]", "https://B.test:8443"], target_tls: {server_name: Web.Test}}}
routes:
- {name: a, match: {ports: [443], domains: [a.test]}, action: {targets: ["a:1", "https://b", {host: c, port: 3, tls: true}], tls: {mode: terminate-and-reencrypt}}}
- {name: b, match: {ports: [443], domains: [b.test]}, action: {upstream: both, tls: {mode: reencrypt}}}
- {name: c, match: {ports: [80]}, action: {targets: ["a:1", "https://b:2"]}}
`)
	var got []string
	for _, u := range p.Upstreams {
		for _, target := range u.Targets {
			got = append(got, fmt.Sprintf("%s %s %s:%d %v %s", u.Name, target.Text, target.Host, target.Port, target.TLS, u.TLS.ServerName))
		}
	}
	want := "a a:1 a:1 true \na https://b b:443 true \na https://c:3 c:3 true \nboth https://[2001:db8::1] 2001:db8::1:443 true web.test\n" +
		"both https://B.test:8443 B.test:8443 true web.test\nc a:1 a:1 false \nc https://b:2 b:2 true "
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if tls := p.Route("a").TLS; tls.Mode != plan.Reencrypt || fmt.Sprintf("%v %d %s %s", tls.ALPN, tls.MinVersion, tls.ClientAuth.Mode, tls.Certificate.Kind) != "[http/1.1] 771 none internal" {
		t.Errorf("tls %+v", tls)
	}
	if _, ok := p.Route("a").Action.(plan.Forward); !ok {
		t.Errorf("the action is %T", p.Route("a").Action)
	}
}
