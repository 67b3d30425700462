package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the recorded outputs anew")

// TestMistakesAreAllFoundAtOnce compares what is said about each file of testdata with what is recorded beside it: every
// mistake with its place, what is wrong and what to write instead.
func TestMistakesAreAllFoundAtOnce(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			l := NewLoader()
			l.Env = testEnv
			_, _, err = l.Load([]Source{{Name: name, Bytes: text}}, nil)
			var errs Errors
			if !errors.As(err, &errs) {
				t.Fatalf("loaded, or another error: %v", err)
			}
			for _, e := range errs {
				if e.File == "" || e.Line == 0 || e.Col == 0 || e.Message == "" || e.Remedy == "" {
					t.Errorf("incomplete: %+v", e)
				}
			}
			want := regexp.MustCompile(`(?m)#! *(\d+)`).FindSubmatch(text) // the file says how many there are
			if want != nil && string(want[1]) != itoa(len(errs)) {
				t.Errorf("%d mistakes found, the file has %s", len(errs), want[1])
			}
			compareGolden(t, strings.TrimSuffix(name, ".yaml")+".golden", noPaths(err.Error())+"\n")
		})
	}
}

func itoa(n int) string { return strings.TrimPrefix(index(n), "[")[:len(index(n))-2] }

// noPaths takes this machine's folders out of a text.
func noPaths(s string) string {
	wd, _ := os.Getwd()
	return strings.ReplaceAll(s, wd, "DIR")
}

func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("other output than recorded (-recorded +now; -update records):\n%s", d)
	}
}

// TestOneMistakeAtATime has one line for each rule that the recorded files do not show.
func TestOneMistakeAtATime(t *testing.T) {
	head := "routes:\n- name: a\n  match: {ports: [80]}\n  action: {targets: [\"a:1\"]}\n"
	for text, want := range map[string]string{
		"a: b: c\n":                                                                 "1:1: this is not YAML: mapping values are not allowed in this context",
		"routes:\n\t- a\n":                                                          "2:2: the line is indented with a tab; indent with spaces",
		"- a\n":                                                                     "1:1: a list stands where the keys of a configuration are wanted",
		"max_connections: 1\n---\nbind: x\n":                                        "there is a second document in the file",
		"max_connections:\n":                                                        "1:17: max_connections: there is no value; write a value or leave the key out",
		"max_connections: 0\n":                                                      "0 is out of range; write a number from 1 to 10000000",
		"max_connections: !!int 5\n":                                                "the YAML tag !!int is not understood",
		"max_connections: [1]\n":                                                    "a list stands where a single value is wanted",
		"metrics: {enabled: yes}\n":                                                 `"yes" is not a yes or no; write true or false`,
		"bind: everywhere\n":                                                        `bind[0]: "everywhere" is no IP address`,
		"routes: {a: b}\n":                                                          "routes: a map stands where a list is wanted",
		"upstreams: [a]\n":                                                          "upstreams: a list stands where a map is wanted",
		"upstreams: {Web: {targets: [\"a:1\"]}}\n":                                  `"Web" is no name`,
		"drain_timeout: -5\n":                                                       "-5 is negative",
		"drain_timeout: 99999h\n":                                                   "longer than ten years",
		"sites: {\"http://a.b/x\": 3000}\n":                                         "the path under match.path",
		"sites: {\"http://a.b\": public}\n":                                         `target "public" has no port`,
		"sites: {\"http://a.b\": 70000}\n":                                          "there is no port 70000",
		"sites: {\"http://a.b\": \"app:web\"}\n":                                    "there is no app \"web\"",
		"max_header_bytes: 10\n":                                                    "10 bytes are out of range",
		"admin: {address: \"127.0.0.1:1\"}\n":                                       "TCP clients would need no token",
		"admin: {mode: \"0666\"}\n":                                                 "lets every user of this machine in",
		"admin: {socket: /" + strings.Repeat("x", 110) + "}\n":                      "the path of the unix socket has 111 bytes, more than 104",
		"admin: {address: \"127.0.0.1:1\", token_file: /nowhere}\n":                 "/nowhere cannot be read: no such file or directory",
		"state_dir: ${UNSET}\n":                                                     "the variable UNSET is not set; set it, or write ${UNSET:-default}",
		"state_dir: ${A B}\n":                                                       `"A B" is not the name of a variable`,
		"state_dir: ${A\n":                                                          "${ has no end",
		"proxy_protocol: {ports: [80]}\n" + head:                                    "nobody may send a PROXY header",
		"trusted_proxies: [10.0.0.0/8]\nproxy_protocol: {}\n":                       "proxy_protocol says no port",
		"ssh_routes: [{listen_port: 22}]\n":                                         "the SSH route is not complete",
		"http3: {enabled: true}\n":                                                  "http3 is not in this version",
		"port_policy: {take_over: all}\n":                                           `"all" is not known here; write never, own or any`,
		"timeout: {idle: 5}\n":                                                      `there is no key "timeout" here; write timeouts`,
		"targets: [a]\n":                                                            `there is no key "targets" here`,
		head + "  targets: [\"a:1\"]\n":                                             `there is no key "targets" here; write it under action`,
		head + "  security: {basic_auth: {}}\n":                                     "basic_auth is not in this version",
		strings.Replace(head, "80", "\"localhost:80\"", 1):                          "write 127.0.0.1 or [::1] instead of localhost",
		strings.Replace(head, "80", "\"::1:80\"", 1):                                "write the address in [ ]",
		strings.Replace(head, "80", "\"unix:\"", 1):                                 "the path of the unix socket is missing",
		strings.Replace(head, "80", "{fallback: [81]}", 1):                          "the object names no port",
		strings.Replace(head, "80", "{port: \"80-82\", fallback: [90]}", 1):         "a range cannot have a fallback",
		strings.Replace(head, "80", "{port: \"unix:/x\", fallback: [90]}", 1):       "fallback is for numbered ports only",
		strings.Replace(head, "[\"a:1\"]", "[\"http://a:1/\"]", 1):                  `a target is written without http://; write a:1`,
		strings.Replace(head, "[\"a:1\"]", "[8080]", 1):                             "target 8080 has no host; write localhost:8080",
		strings.Replace(head, "[\"a:1\"]", "[{host: a}]", 1):                        "the target has no port",
		strings.Replace(head, "[\"a:1\"]", "[\"a:1\", \"a:1\"]", 1):                 "target a:1 stands here twice",
		strings.Replace(head, "[\"a:1\"]", "[]", 1):                                 "there is no target; write targets: [HOST:PORT]",
		strings.Replace(head, "[\"a:1\"]", "[\"a:1\"], health_check: {}", 1):        "the check says neither http nor tcp",
		strings.Replace(head, "[\"a:1\"]", "[\"a:1\"], health_check: {grpc: x}", 1): "grpc is not in this version",
		strings.Replace(head, "[\"a:1\"]", "[\"a:1\"], request_headers: {set: {X: \"{clientip}\"}}", 1): "there is no placeholder {clientip}; write {client_ip}",
		strings.Replace(head, "[\"a:1\"]", "[\"a:1\"], request_headers: {set: {Connection: x}}", 1):     "Connection belongs to the connection",
		strings.Replace(head, "[\"a:1\"]", "[\"a:1\"], retries: {budget: 20}", 1):                       `"20" is no share; write a share from 0% to 100%, such as 20%`,
		strings.Replace(head, "[\"a:1\"]", "[\"a:1\"], type: files", 1):                                 "type files does not agree with targets",
		strings.Replace(head, "[80]", "[80], domains: [\"*\"]", 1):                                      "a route without domains matches any name",
		strings.Replace(head, "[80]", "[80], domains: [a.*.b]", 1):                                      "has its * at a place that means nothing",
		strings.Replace(head, "[80]", "[80], methods: [get]", 1):                                        "write GET",
		strings.Replace(head, "[80]", "[80], path: [/a/*/b]", 1):                                        "a * stands for the rest of a path",
		strings.Replace(head, "[80]", "[80], path: [/a/../b]", 1):                                       "is not a clean path",
		strings.Replace(head, "[80]", "[80], headers: {X: {regex: \"(\"}}", 1):                          "the expression cannot be read",
		strings.Replace(head, "[80]", "[80], headers: {X: a, x: b}", 1):                                 "X stands here twice",
		strings.Replace(head, "[80]", "[80], protocols: [tcp], domains: [a.b]", 1):                      "raw tcp and ssh carry no name",
		strings.Replace(head, "[80]", "[80], protocols: [tcp, http1]", 1):                               "tcp, ssh and tls are kinds of connections",
	} {
		_, _, err := tryText(t, text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n  want %s\n  got  %v", text, want, err)
			continue
		}
		var errs Errors
		_ = errors.As(err, &errs)
		for _, e := range errs {
			if e.Line == 0 || e.Col == 0 || e.Remedy == "" {
				t.Errorf("%s: incomplete: %+v", text, e)
			}
		}
	}
}
