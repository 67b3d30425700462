package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

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

func certsOf(p *plan.Plan) string {
	var b strings.Builder
	for _, c := range p.Certificates {
		fmt.Fprintf(&b, "%s", c.Source.Kind)
		if c.Source.CertFile != "" {
			fmt.Fprintf(&b, " %s", filepath.Base(c.Source.CertFile))
		}
		fmt.Fprintf(&b, " %s", c.Names)
		if c.OnDemand {
			b.WriteString(" on demand")
		}
		fmt.Fprintf(&b, " for %s\n", strings.Join(c.Users, ", "))
	}
	return b.String()
}
