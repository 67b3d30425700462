package config

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// ordering is a file with a section `acme` and a route whose certificate is ordered.
func ordering(section string) string {
	return "acme: {" + section + "}\n" + one("ports: [443], domains: [a.example.com]", toA+", tls: {certificate: auto}", "")
}

// acmeEffects has a text for each key of acme. The files of dir are those of makeTwins.
func acmeEffects(out map[string][2]string, dir string) {
	hook := filepath.Join(dir, "hook")
	_ = os.WriteFile(hook, []byte("#!/bin/sh\n"), 0o755)
	for key, value := range map[string]string{
		"email": "ann@example.com", "directory": "letsencrypt-staging", "ca_root": dir + "/a.crt", "challenges": "[tls-alpn-01]",
		"tls_port": "8443", "dns.exec": hook, "renew_before": "720h",
	} {
		out["acme."+key] = [2]string{ordering(nest(key, value)), ordering("")}
	}
	set := func(key, block, with, without string) {
		out["acme."+key] = [2]string{ordering(block + ": {" + with + "}"), ordering(block + ": {" + without + "}")}
	}
	set("http_port.port", "http_port", "port: 8080", "port: 80")
	set("http_port.fallback", "http_port", "port: 80, fallback: [8080], forwarded: true", "port: 80, forwarded: true")
	out["acme.http_port.forwarded"] = [2]string{ // without it the fallback is refused
		ordering("http_port: {port: 80, fallback: [8080], forwarded: true}"), ordering("http_port: 80"),
	}
	issuer := func(s string) string { return ordering("issuers: [{" + s + "}]") }
	for key, value := range map[string]string{
		"directory": "https://ca.test/dir", "email": "ann@example.com", "profile": "shortlived",
		"eab.kid": "", "eab.hmac": "",
	} {
		text := "directory: zerossl, eab: {kid: a, hmac: aaaa}"
		switch key {
		case "eab.kid":
			out["acme.issuers."+key] = [2]string{issuer(strings.Replace(text, "kid: a", "kid: b", 1)), issuer(text)}
		case "eab.hmac":
			out["acme.issuers."+key] = [2]string{issuer(strings.Replace(text, "aaaa", "file:testdata/token", 1)), issuer(text)}
		case "directory":
			out["acme.issuers."+key] = [2]string{issuer(key + ": " + value), issuer("directory: letsencrypt")}
		default:
			out["acme.issuers."+key] = [2]string{issuer("directory: letsencrypt, " + key + ": " + value), issuer("directory: letsencrypt")}
		}
	}
	update := "server: \"ns.test:53\", zone: example.com, tsig_key: k, tsig_secret: aaaa"
	for was, now := range map[string]string{"ns.test": "ns2.test", "zone: example.com": "zone: com", "tsig_key: k": "tsig_key: l", "aaaa": "bbbb"} {
		key := map[string]string{"ns.test": "server", "zone: example.com": "zone", "tsig_key: k": "tsig_key", "aaaa": "tsig_secret"}[was]
		with := ordering("dns: {rfc2136: {" + strings.Replace(update, was, now, 1) + "}}")
		out["acme.dns.rfc2136."+key] = [2]string{with, ordering("dns: {rfc2136: {" + update + "}}")}
	}
	for key, with := range map[string]string{"ask": "ask: \"http://a.test/x\", ", "allow": "allow: [b.example.com]", "per_hour": "per_hour: 7, "} {
		text := with + "allow: [a.example.com]"
		if key == "allow" {
			text = with
		}
		set("on_demand."+key, "on_demand", text, "allow: [a.example.com]")
	}
}

// TestChallengeRoutes has the routes that answer challenges, and their ports, for each way of asking for certificates.
func TestChallengeRoutes(t *testing.T) {
	site := "sites: {a.example.com: 1}\n"
	for name, c := range map[string]struct{ text, want string }{
		"no certificate is ordered": {"acme: {email: a@b.c}\nsites: {a.test: 1}\n", ":80[route http://a.test]\n:443[route a.test]\nnone"},
		"both":                      {site, ":80[acme-http-01,route http://a.example.com]\n:443[acme-tls-alpn-01,route a.example.com]\nhttp-01 tls-alpn-01"},
		"one of them": {
			"acme: {challenges: [tls-alpn-01]}\n" + site, ":80[route http://a.example.com]\n:443[acme-tls-alpn-01,route a.example.com]\ntls-alpn-01",
		},
		"a route elsewhere": {
			"routes:\n" + strings.Replace(ends("a", "a.example.com", ""), "443", "8443", 1),
			":80[acme-http-01]\n:443[acme-tls-alpn-01]\n:8443[route a]\nhttp-01 tls-alpn-01",
		},
		"only patterns, which need dns-01": {
			"acme: {dns: {rfc2136: {server: \"ns:53\"}}}\nroutes:\n" + ends("a", "\"*.example.com\"", ""), ":443[route a]\nhttp-01 tls-alpn-01 dns-01",
		},
		"patterns on demand": {
			"acme: {on_demand: {allow: [\"*.example.com\"]}}\nroutes:\n" + ends("a", "\"*.example.com\"", ""),
			":80[acme-http-01]\n:443[acme-tls-alpn-01,route a]\nhttp-01 tls-alpn-01",
		},
		"other ports": {
			"acme: {http_port: {port: \"127.0.0.1:8080\", fallback: [8081], forwarded: true}, tls_port: \"127.0.0.1:8443\"}\n" + site,
			"127.0.0.1:8080[acme-http-01,route http://a.example.com] else [127.0.0.1:8081]\n127.0.0.1:8443[acme-tls-alpn-01,route a.example.com]\nhttp-01 tls-alpn-01",
		},
		"bound on several hosts": {
			"bind: [127.0.0.1, 10.0.0.1]\n" + site,
			"10.0.0.1:80[acme-http-01,route http://a.example.com]\n127.0.0.1:80[acme-http-01,route http://a.example.com]\n" +
				"10.0.0.1:443[acme-tls-alpn-01,route a.example.com]\n127.0.0.1:443[acme-tls-alpn-01,route a.example.com]\nhttp-01 tls-alpn-01",
		},
		"merged into a wildcard, and no tunnel any more": {
			"acme: {http_port: \"127.0.0.1:80\"}\nroutes:\n" + ends("a", "a.example.com", "") +
				"- {name: raw, match: {ports: [80, 443], protocols: [tcp]}, action: {targets: [\"a:1\"]}}\n",
			":80[acme-http-01,route raw]\n:443[acme-tls-alpn-01,route a,route raw]\nhttp-01 tls-alpn-01",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := loadText(t, c.text)
			challenges := "none"
			if set := p.Settings.ACME; set != nil {
				challenges = strings.Join(set.Challenges, " ")
			}
			if got := portsOf(p) + challenges; got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			for _, r := range []*plan.Route{p.Route(plan.HTTPChallenge), p.Route(plan.ALPNChallenge)} {
				if r != nil && (r.Action != plan.Internal{Name: r.Name} || r.Priority != math.MaxInt32 || r.Order == 0 || r.Timeouts.Idle == 0) {
					t.Errorf("%+v", r)
				}
			}
			if r := p.Route(plan.HTTPChallenge); r != nil && (r.TLS != nil || fmt.Sprint(r.Match.Paths, r.Match.Methods) != "[/.well-known/acme-challenge/*] [GET HEAD]") {
				t.Errorf("%+v", r)
			}
			if r := p.Route(plan.ALPNChallenge); r != nil && (r.TLS.Ends() || r.Match.Protocols != plan.ProtoTLS) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestACMESettings(t *testing.T) {
	p := loadText(t, `
bind: ["::1", 10.0.0.1]
acme:
  email: a@b.c
  issuers: [{directory: letsencrypt, profile: shortlived}, {directory: zerossl, email: z@b.c, eab: {kid: k, hmac: "c2VjcmV0"}}, {directory: "https://ca.test/dir"}]
  http_port: {port: 8080, fallback: ["8081-8082"], forwarded: true}
  tls_port: 8443
  dns: {rfc2136: {server: "10.0.0.53:53", zone: Example.Com., tsig_key: "hmac-sha512:k", tsig_secret: c2VjcmV0}}
  renew_before: 720h
  on_demand: {ask: "http://127.0.0.1/x", allow: ["*.c.example.net", a.example.net], per_hour: 3}
sites: {a.example.com: {targets: ["127.0.0.1:1"], tls: {min_version: "1.3"}}}
`)
	set := *p.Settings.ACME
	if got := fmt.Sprint(set.Issuers); got != "[{https://acme-v02.api.letsencrypt.org/directory a@b.c   shortlived} {https://acme.zerossl.com/v2/DV90 z@b.c k *** } {https://ca.test/dir a@b.c   }]" {
		t.Errorf("issuers %s", got)
	}
	if set.Issuers[1].EABKey != "c2VjcmV0" || set.DNS != (plan.DNSProvider{Server: "10.0.0.53:53", Zone: "example.com", TSIGKey: "hmac-sha512:k", TSIGSecret: "c2VjcmV0"}) {
		t.Errorf("%+v", set)
	}
	if got := fmt.Sprint(set.HTTPPort, set.HTTPOthers, set.TLSPort, set.RenewBefore, *set.OnDemand, set.Challenges); got !=
		"[::1]:8080 [[::1]:8081 [::1]:8082 10.0.0.1:8080 10.0.0.1:8081 10.0.0.1:8082] [::1]:8443 720h0m0s {http://127.0.0.1/x [*.c.example.net a.example.net] 3} [http-01 tls-alpn-01 dns-01]" {
		t.Errorf("%s", got)
	}
	if text := string(Expand(p)); strings.Contains(text, "c2VjcmV0") || !strings.Contains(text, "certificates:") || !strings.Contains(text, `min_version: "1.3"`) {
		t.Errorf("expanded:\n%s", text)
	}
}

func TestTheKeyOfAnExternalAccountHasNoPadding(t *testing.T) {
	p := loadText(t, "acme: {email: a@b.c, issuers: [{directory: zerossl, eab: {kid: k, hmac: \"c2VjcmV0MQ==\"}}]}\nsites: {a.example.com: 1}\n")
	if got := string(p.Settings.ACME.Issuers[0].EABKey); got != "c2VjcmV0MQ" {
		t.Errorf("the key is %q", got)
	}
}

// TestACMEWarnings has what is allowed, and will most likely not work.
func TestACMEWarnings(t *testing.T) {
	for text, want := range map[string]string{
		"sites: {a.example.com: 1}\n":                                ":1:24: sites[\"a.example.com\"]: certificates are ordered without an address",
		"acme: {challenges: [http-01]}\nsites: {a.example.com: 1}\n": ":1:7: acme.email: certificates are ordered without an address that the CA could write to; write acme: {email: ops@example.com}",
		"bind: 127.0.0.1\nacme: {email: a@b.c}\nsites: {a.b.c: 1}\n": ":2:7: acme.http_port: only this machine comes to 127.0.0.1:80, and the CA does not",
		"acme: {email: a@b.c}\nsites: {a.b.c: 1}\nroutes:\n- {match: {ports: [{port: 443, fallback: [8443]}]}, action: {block: }}\n": ":443: when it falls back to :8443, no certificate is had by tls-alpn-01: the CA comes to :443",

		"acme: {email: a@b.c, http_port: \"10.0.0.1:80\"}\nsites: {a.b.c: 1}\nroutes:\n- {match: {ports: [{port: 80, fallback: [8080]}]}, action: {block: }}\n": ":80: when it falls back to :8080, no certificate is had by http-01: the CA comes to 10.0.0.1:80",

		"bind: 127.0.0.1\nacme: {directory: \"https://ca.test/dir\"}\nsites: {a.b.c: 1}\n":                                                                  "",
		"acme: {email: a@b.c, challenges: [http-01]}\nsites: {a.b.c: 1}\nroutes:\n- {match: {ports: [{port: 443, fallback: [8443]}]}, action: {block: }}\n": "",
	} {
		_, warnings, err := tryText(t, text)
		switch {
		case err != nil:
			t.Errorf("%s: %v", text, err)
		case want == "" && len(warnings) > 0:
			t.Errorf("%s: %v", text, warnings)
		case want != "" && (len(warnings) != 1 || !strings.Contains(warnings[0].Error.Error(), want) || warnings[0].Line == 0):
			t.Errorf("%s\n  want %s\n  got  %v", text, want, warnings)
		}
	}
}
