package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// makePair writes NAME.crt and NAME.key, a certificate of its own for the names, into dir.
func makePair(t testing.TB, dir, name string, names ...string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return makeCert(t, key, dir, name, names...)
}

func makeCert(t testing.TB, key *ecdsa.PrivateKey, dir, name string, names ...string) (certFile, keyFile string) {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// makeTwins writes two pairs, a and b, of one key: each certificate goes with the other's key.
func makeTwins(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	makeCert(t, key, dir, "a", "a.test")
	makeCert(t, key, dir, "b", "b.test")
	return dir
}

// tlsEffects has a text for each key about TLS. The files of dir are those of makeTwins.
func tlsEffects(out map[string][2]string, dir string) {
	ends := func(inner string) string { return one("ports: [443], domains: [a.test]", toA+", tls: {"+inner+"}", "") }
	for key, value := range map[string]string{"mode": "passthrough", "certificate": "auto", "min_version": "1.3"} {
		out["routes.action.tls."+key] = [2]string{ends(key + ": " + value), ends("")}
	}
	pair := func(cert, key string) string {
		return fmt.Sprintf("{cert_file: %s/%s.crt, key_file: %s/%s.key}", dir, cert, dir, key)
	}
	for key, with := range map[string]string{"cert_file": pair("b", "a"), "key_file": pair("a", "b")} {
		out["routes.action.tls.certificate."+key] = [2]string{ends("certificate: " + with), ends("certificate: " + pair("a", "a"))}
		for before, after := range map[string]string{"default_certificate": "", "certificates": "]"} {
			head := before + ": " + map[string]string{"]": "["}[after]
			out[before+"."+key] = [2]string{head + with + after + "\n", head + pair("a", "a") + after + "\n"}
		}
	}
	out["certificates.names"] = [2]string{"certificates: [{names: [b.test], " + pair("a", "a")[1:] + "]\n", "certificates: [" + pair("a", "a") + "]\n"}
	auth := func(mode, file string) string {
		return ends("client_auth: {mode: " + mode + ", ca_file: " + dir + "/" + file + ".crt}")
	}
	out["routes.action.tls.client_auth.mode"] = [2]string{auth("optional", "a"), auth("required", "a")}
	out["routes.action.tls.client_auth.ca_file"] = [2]string{auth("required", "b"), auth("required", "a")}
	target := func(s string) string { return one(port80, "targets: [\"https://a:1\"], target_tls: {"+s+"}", "") }
	for key, value := range map[string]string{"server_name": "x", "ca_file": dir + "/a.crt", "insecure_skip_verify": "true"} {
		out["routes.action.target_tls."+key] = [2]string{target(key + ": " + value), target("")}
	}
	client := func(cert, key string) string {
		return target(fmt.Sprintf("client_cert_file: %s/%s.crt, client_key_file: %s/%s.key", dir, cert, dir, key))
	}
	out["routes.action.target_tls.client_cert_file"] = [2]string{client("b", "a"), client("a", "a")}
	out["routes.action.target_tls.client_key_file"] = [2]string{client("a", "b"), client("a", "a")}
}

// TestOneMistakeAboutTLSAtATime has one line for each rule about TLS and certificates.
func TestOneMistakeAboutTLSAtATime(t *testing.T) {
	dir := makeTwins(t)
	makePair(t, dir, "other")
	for name, text := range map[string]string{"empty": "", "hook": "#!/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	route := func(match, action string) string {
		if match != "" {
			match = ", " + match
		}
		return "routes:\n- name: a\n  match: {ports: [443]" + match + "}\n  action: {" + action + "}\n"
	}
	tls := func(domains, s string) string { return route("domains: ["+domains+"]", "block: , tls: {"+s+"}") }
	acme := func(s string) string { return "acme: {" + s + "}\nsites: {a.example.com: 1}\n" }
	https := func(s string) string { return route("", "targets: [\"https://a:1\"], target_tls: {"+s+"}") }
	for text, want := range map[string]string{
		route("", "block: , tls: {}"):                                                                                ":4:26: routes[0].action.tls.certificate: certificate: auto needs domains, which say for what names; write match: {domains: [app.example.com]}, or {cert_file, key_file} here",
		route("", "block: , tls: {certificate: internal}"):                                                           "certificate: internal needs domains",
		tls("a.test, a.example.com", ""):                                                                             "a.example.com would get a certificate from a CA, and a.test from the internal one; write certificate: auto or internal, or two routes",
		tls("a.test", "mode: open"):                                                                                  `"open" is not known here; write terminate, reencrypt, terminate-and-reencrypt or passthrough`,
		tls("a.test", "certificate: interna"):                                                                        `"interna" is no certificate; write internal`,
		tls("a.test", "certificate: {cert_file: a.crt}"):                                                             "a certificate needs both files",
		tls("a.test", "certificate: {cert_file: a.crt, key_file: nothing.key}"):                                      ":4:40: routes[0].action.tls.certificate: DIR/nothing.key cannot be read: no such file or directory; name a file that this user can read",
		tls("a.test", "certificate: {cert_file: a.crt, key_file: other.key}"):                                        "DIR/a.crt and DIR/other.key are no pair: private key does not match public key",
		tls("a.test", "certificate: {cert_file: empty, key_file: a.key}"):                                            "DIR/empty and DIR/a.key are no pair: failed to find any PEM data in certificate input",
		tls("a.test", "min_version: \"1.1\""):                                                                        `"1.1" is not known here; write 1.2`,
		tls("a.test", "alpn: []"):                                                                                    "no protocol is offered; write [http/1.1]",
		tls("a.test", "alpn: [h2, http/1.1]"):                                                                        "h2 is not in this version; write http/1.1",
		tls("a.test", "alpn: [http/1.1, http/1.1]"):                                                                  "http/1.1 stands here twice",
		tls("a.test", "client_auth: {mode: required}"):                                                               "clients are asked for a certificate, and no CA is named",
		tls("a.test", "client_auth: {ca_file: a.crt}"):                                                               "no client is asked for a certificate; write mode: required",
		tls("a.test", "client_auth: {mode: optional, ca_file: empty}"):                                               "tls.client_auth.ca_file: DIR/empty holds no certificate",
		tls("a.test", "client_auth: {mode: optional, ca_file: nothing}"):                                             "DIR/nothing cannot be read: no such file or directory",
		tls("a.test", "client_auth: {mode: optional, ca_file: .}"):                                                   "it is no file of at most",
		route("", "targets: [\"a:1\"], tls: {mode: passthrough, min_version: \"1.3\"}"):                              "tls.min_version: it has no effect on TLS that is not opened",
		route("", "targets: [\"a:1\"], tls: {mode: passthrough, certificate: auto}"):                                 "tls.certificate: it has no effect on TLS that is not opened",
		route("domains: [a.test], protocols: [tcp]", "targets: [\"a:1\"], tls: {}"):                                  "raw bytes inside it are not in this version",
		route("domains: [a.test]", "redirect: {to: https}, tls: {}"):                                                 "it would send clients of https to https, forever",
		route("protocols: [tcp]", "targets: [\"https://a:1\"]"):                                                      "a tunnel relays bytes as they are, so it begins no TLS",
		route("", "targets: [\"a:1\"], target_tls: {server_name: b}"):                                                "it has no effect: no target is reached by TLS; write https:// before a target",
		route("", "block: , target_tls: {server_name: b}"):                                                           "it has no effect without targets",
		route("", "targets: [\"https://a/x\"]"):                                                                      "is more than a host and a port",
		route("", "targets: [\"ftp://a:1\"]"):                                                                        "there is no scheme ftp",
		route("", "targets: [\"https://a:0\"]"):                                                                      "there is no port 0",
		route("domains: [a.test]", "targets: [\"unix:/x\"], tls: {mode: reencrypt}"):                                 "a unix socket has no name that its certificate could have",
		https("client_cert_file: a.crt"):                                                                             "a client certificate needs both files",
		https("client_cert_file: a.crt, client_key_file: other.key"):                                                 "target_tls.client_cert_file: DIR/a.crt and DIR/other.key are no pair",
		https("ca_file: a.crt, insecure_skip_verify: true"):                                                          "with insecure_skip_verify no CA is looked at",
		https("ca_file: empty"):                                                                                      "target_tls.ca_file: DIR/empty holds no certificate",
		"upstreams: {x: {targets: [\"a:1\"]}}\n" + route("domains: [a.test]", "upstream: x, tls: {mode: reencrypt}"): `target a:1 of upstream "x" is reached without; write https:// before it in the upstream`,
		"upstreams: {x: {targets: [\"https://a\"]}}\n" + route("", "upstream: x, tls: {mode: passthrough}"):          `target https://a of upstream "x" begins TLS`,
		"upstreams: {x: {targets: [\"https://a\"]}}\n" + route("", "upstream: x, target_tls: {server_name: b}"):      "it belongs to the shared targets",
		"default_certificate: auto\n":                                                                                "no CA gives a certificate for a name that is not known; write internal",
		"default_certificate: {cert_file: a.crt}\n":                                                                  "a certificate needs both files",
		"default_certificate: {cert_file: a.crt, key_file: x}\n":                                                     ":1:34: default_certificate.cert_file: DIR/x cannot be read",
		"certificates: [{cert_file: a.crt}]\n":                                                                       "certificates[0]: a certificate needs both files",
		"certificates: [{names: [\"**.a\"], cert_file: a.crt, key_file: a.key}]\n":                                   "a certificate has names one label deep",
		"certificates: [{cert_file: a.crt, key_file: a.key}, {cert_file: ./a.crt, key_file: a.key}]\n":               "the same files stand at certificates[0]",
		"certificates: [{cert_file: a.crt, key_file: other.key}]\n":                                                  "certificates[0].cert_file: DIR/a.crt and DIR/other.key are no pair",
		"routes: [{name: acme-http-01, match: {ports: [80]}, action: {block: }}]\n":                                  "acme-http-01 is the route that answers challenges of ACME; give it another name",
		"sites: {\"ftp://a.test\": 1}\n":                                                                             "there is no scheme ftp; write a.test, or http://a.test",
		"sites: {\"a.test:x\": 1}\n":                                                                                 `"x" is no port`,
		"sites: {\"http://a.test\": {targets: [\"a:1\"], tls: {}}}\n":                                                "http:// is a site without TLS; write a.test as the key",
		"sites: {a.test: 1, \"https://a.test\": 2}\n":                                                                `route "a.test" is also at`,
		"sites: {a.test: \"app:web\"}\n":                                                                             "there is no app \"web\"",
		"sites: {\"*.example.com\": 1}\n":                                                                            "a certificate for *.example.com is given only to who proves it by dns-01; write acme: {dns: {exec: PATH}}, or acme: {on_demand: {allow: [\"*.example.com\"]}}",
		"sites: {\"**.example.com\": 1}\n":                                                                           "no certificate is for **.example.com, which is many labels deep",
		"sites: {intranet: 1}\n":                                                                                     "no public CA gives a certificate for intranet; write certificate: internal, or acme: {directory: URL}",
		tls("10.0.0.1", "certificate: auto"):                                                                         "no public CA gives a certificate for 10.0.0.1",
		acme("email: ops"):                                                                                           `"ops" is no address of mail`,
		acme("directory: letsencript"):                                                                               `"letsencript" is no directory of a CA; write letsencrypt, letsencrypt-staging, zerossl or https://HOST/DIRECTORY`,
		acme("directory: \"http://ca.test/dir\""):                                                                    "a CA is reached by https; write https://ca.test/dir",
		acme("directory: letsencrypt, issuers: [{directory: letsencrypt-staging}]"):                                  "directory and issuers are two ways to say the same",
		acme("directory: zerossl"):                                                                                   "zerossl wants the key of an account there",
		acme("issuers: []"):                                                                                          "there is no issuer",
		acme("issuers: [{email: a@b.c}]"):                                                                            "the issuer has no directory",
		acme("issuers: [{directory: letsencrypt}, {directory: letsencrypt}]"):                                        "acme.issuers[1]: the issuer stands here twice",
		acme("issuers: [{directory: letsencrypt, eab: {kid: a}}]"):                                                   "an external account has an id and a key",
		acme("issuers: [{directory: letsencrypt, eab: {kid: a, hmac: \"!\"}}]"):                                      "eab.hmac: the key is not base64url",
		acme("issuers: [{directory: letsencrypt, eab: {kid: a, hmac: \"file:nothing\"}}]"):                           "the secret cannot be read: no such file or directory",
		acme("ca_root: empty"):                                                                                       "acme.ca_root: DIR/empty holds no certificate",
		acme("challenges: []"):                                                                                       "without a challenge no name can be proved",
		acme("challenges: [http-01, http-01]"):                                                                       "http-01 stands here twice",
		acme("challenges: [dns-01]"):                                                                                 "dns-01 needs a way to set records",
		acme("challenges: [http-01], dns: {rfc2136: {server: \"a:53\"}}"):                                            "it has no effect without dns-01",
		acme("challenges: [dns-01], dns: {rfc2136: {server: \"a:53\", zone: example.org}}"):                          "dns-01 cannot prove a.example.com, which is not in the zone example.org",
		acme("dns: {}"): "dns says no way to set records",
		acme("dns: {exec: hook, rfc2136: {server: \"a:53\"}}"):                             "two ways to set records",
		acme("dns: {exec: hook}"):                                                          "DIR/hook cannot be run: it is not executable; make it a program with chmod +x",
		acme("dns: {exec: nothing}"):                                                       "DIR/nothing cannot be run: no such file or directory",
		acme("dns: {rfc2136: {zone: a.b}}"):                                                "no name server is named",
		acme("dns: {rfc2136: {server: \"a:53\", tsig_key: k}}"):                            "a TSIG key has a name and a secret",
		acme("dns: {rfc2136: {server: \"a:53\", tsig_key: k, tsig_secret: \"!\"}}"):        "the secret is not base64",
		acme("dns: {rfc2136: {server: \"a:53\", tsig_key: \"md5:k\", tsig_secret: aaaa}}"): "names no algorithm that is known",
		acme("http_port: {port: 80, fallback: [8080]}"):                                    "acme.http_port.fallback: the CA comes to port 80 and to no other; a fallback serves only where port 80 is forwarded to it, too; write forwarded: true if that is so, or leave the fallback out",
		acme("http_port: \"80-81\""):                                                       "the CA comes to one port, not to 80-81",
		acme("renew_before: 0"):                                                            "a certificate is not renewed at its very end",
		acme("on_demand: {ask: \"http://a/x\"}"):                                           "no name is admitted: what is not under allow is refused",
		acme("on_demand: {ask: a, allow: [a.b]}"):                                          "is no URL that could be asked",
	} {
		_, _, err := loadIn(t, NewLoader(), dir, text)
		if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), dir, "DIR"), want) {
			t.Errorf("%s\n  want %s\n  got  %v", text, want, err)
			continue
		}
		var errs Errors
		if errors.As(err, &errs); len(errs) != 1 {
			t.Errorf("%s: %d mistakes instead of one: %v", text, len(errs), err)
		}
		for _, e := range errs {
			if e.Line == 0 || e.Col == 0 || e.Remedy == "" {
				t.Errorf("%s: incomplete: %+v", text, e)
			}
		}
	}
	if _, err := ParseRoute("a", []byte(`{"match": {"ports": [443], "domains": ["a.test"]}, "action": {"block": {}, "tls": {"certificate": {"cert_file": "a.crt", "key_file": "a.key"}}}}`)); err == nil || !strings.Contains(err.Error(), "relative, and there is no file") {
		t.Errorf("a relative path in a route of the API: %v", err)
	}
}
