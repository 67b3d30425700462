package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
)

// twenty has twenty mistakes of twenty kinds, each marked with the line it stands in by its #N.
const twenty = `listen_adrs: ["0.0.0.0:80"]                                  #1 unknown key
timeouts: {connect: ten}                                     #2 no duration
max_connections: lots                                        #3 no number
max_header_bytes: 64Kib                                      #4 no size
trusted_proxies: [10.0.0.0/33]                               #5 no network
log: {level: verbose}                                        #6 no such word
dashboard: {enabled: true}                                   #7 not in this version
metrics: {enabled: maybe}                                    #8 no yes or no
bind: everywhere                                             #9 no address
routes:
  - name: a
    match: {ports: [70000]}                                  #10 no such port
    action: {targets: ["10.0.0.5:80"]}
  - name: b
    match: {ports: [8081], path: [v1/*]}                     #11 path without /
    action: {targets: ["10.0.0.5:80"]}
  - name: c
    match: {ports: [8082]}
    action: {targets: ["10.0.0.5"]}                          #12 target without port
  - name: d
    match: {ports: [8083], methods: [get]}                   #13 method in lower case
    action: {targets: ["10.0.0.5:80"]}
  - name: e
    match: {ports: [8084], domains: [a.*.b]}                 #14 * in the middle
    action: {targets: ["10.0.0.5:80"]}
  - name: f
    match: {ports: [8085]}
    action: {respond: {status: 99}}                          #15 no status
  - name: g
    match: {ports: [8086]}
    action: {redirect: {to: https}, block: {status: 403}}    #16 two actions
  - name: h
    match: {ports: [8087], headers: {X: {regex: "("}}}       #17 no expression
    action: {targets: ["10.0.0.5:80"]}
  - name: i
    match: {ports: [8088], client_ips: [10.0.0.256]}         #18 no address
    action: {targets: ["10.0.0.5:80"]}
  - name: j
    match: {ports: [8089], prots: [http1]}                   #19 unknown key
    action: {targets: ["10.0.0.5:80"]}
  - name: K                                                  #20 no name
    match: {ports: [8090]}
    action: {targets: ["10.0.0.5:80"]}
`

func TestD01_CheckFindsEveryMistake(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "twenty.yaml")
	if err := os.WriteFile(file, []byte(twenty), 0o600); err != nil {
		t.Fatal(err)
	}
	out, code := cli(t, "check", "-c", file)
	if code != 2 {
		t.Errorf("exit %d, want 2", code)
	}
	said := map[int]string{}
	for _, line := range strings.Split(out, "\n") {
		m := regexp.MustCompile(`^` + regexp.QuoteMeta(file) + `:(\d+):(\d+): (.*)`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		said[n] = m[3]
	}
	for i, line := range strings.Split(twenty, "\n") {
		if !strings.Contains(line, "#") {
			if text, ok := said[i+1]; ok {
				t.Errorf("line %d has no mistake and is blamed: %s", i+1, text)
			}
			continue
		}
		text, ok := said[i+1]
		if !ok {
			t.Errorf("not found: %s", line)
			continue
		}
		if !strings.Contains(text, "; ") {
			t.Errorf("no remedy: %s", text)
		}
	}
	if len(said) != 20 || !strings.Contains(out, "mend 20 mistakes") {
		t.Errorf("%d mistakes told, want 20:\n%s", len(said), out)
	}
	var v struct {
		Errors []struct {
			File, Path, Message, Remedy string
			Line, Col                   int
		}
	}
	out, code = cli(t, "check", "-c", file, "--json")
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != 2 || len(v.Errors) != 20 {
		t.Fatalf("check --json: exit %d, %d errors, %v", code, len(v.Errors), err)
	}
	for _, e := range v.Errors {
		if e.File != file || e.Line == 0 || e.Col == 0 || e.Path == "" || e.Message == "" || e.Remedy == "" {
			t.Errorf("incomplete: %+v", e)
		}
	}
	// The same text kept a running daemon from starting, and says the same.
	if out, code = cli(t, "run", "-c", file); code != 2 || strings.Count(out, file+":") != 20 {
		t.Errorf("run: exit %d\n%s", code, out)
	}
}

// exampleOnFreePorts copies an example with each port it listens on replaced by a free one, and the ports so far.
func exampleOnFreePorts(t *testing.T, name, dir string) (file string, moved map[int]int) {
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	moved = map[int]int{}
	width := map[int]int{}
	rng := regexp.MustCompile(`\b(8\d{3}|18\d{3}|3306|27\d{3})(?:-(\d+))?\b`)
	s := rng.ReplaceAllStringFunc(string(text), func(found string) string {
		m := rng.FindStringSubmatch(found)
		first, _ := strconv.Atoi(m[1])
		n := 1
		if m[2] != "" {
			last, _ := strconv.Atoi(m[2])
			n = last - first + 1
		}
		if moved[first] == 0 || width[first] < n {
			moved[first], width[first] = freePorts(t, n), n
		}
		if n == 1 {
			return strconv.Itoa(moved[first])
		}
		return fmt.Sprintf("%d-%d", moved[first], moved[first]+n-1)
	})
	file = filepath.Join(dir, filepath.Base(name))
	if !strings.Contains(s, "state_dir:") {
		s += fmt.Sprintf("\nstate_dir: %s/state\nadmin: {socket: %s/a.sock}\n", dir, dir)
	}
	if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, moved
}

func TestD01_EveryExampleChecksAndRuns(t *testing.T) {
	names, _ := filepath.Glob("../../examples/*.yaml")
	if len(names) < 5 {
		t.Fatalf("examples: %v", names)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("QUAYMASTER", binary) // what the apps of the quickstart are
	t.Setenv("QUICKSTART_USER", me.Username)
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			if out, code := cli(t, "check", "-c", name); code != 0 || strings.Contains(out, "warning") {
				t.Fatalf("check: exit %d\n%s", code, out)
			}
			q := prepare(t, "")
			if err := os.CopyFS(q.dir+"/public", os.DirFS("../../examples/public")); err != nil {
				t.Fatal(err)
			}
			copyFile(t, "../../examples/acme-dns-hook.sh", q.dir+"/acme-dns-hook.sh")
			q.file, _ = exampleOnFreePorts(t, name, q.dir)
			t.Cleanup(func() { // of a daemon that was killed
				for _, pid := range q.recorded() {
					_ = syscall.Kill(-pid, syscall.SIGKILL)
				}
			})
			// No CA is asked from here: nobody answers at this one.
			q.runEnv([]string{"QUICKSTART_STATE=" + q.dir + "/state", "ACME_DIRECTORY=https://127.0.0.1:1/dir"}, "--socket", q.sock)
			q.serving()
			if out, code := q.cli("status", "--ready"); code != 0 && !strings.HasPrefix(filepath.Base(name), "acme-") {
				t.Errorf("status --ready: exit %d\n%s", code, out)
			}
			for _, p := range q.ports() {
				if p.Wanted != "" && p.Source == "file" && p.State != "bound" {
					t.Errorf("%+v", p)
				}
			}
			q.signal(os.Interrupt)
			if code := q.wait(10 * time.Second); code != 0 {
				t.Errorf("exit %d", code)
			}
		})
	}
}

// tcpAdmin asks the API on its TCP address.
func tcpAdmin(t *testing.T, port int, method, path, body string, head ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(head); i += 2 {
		if head[i] == "Host" {
			req.Host = head[i+1]
			continue
		}
		req.Header.Set(head[i], head[i+1])
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// withTCP starts a daemon whose admin API is on TCP too, with the token "sesame" and admin.allow as given.
func withTCP(t *testing.T, allow, routes string) (q *qm, port int) {
	t.Helper()
	port = freePort(t)
	q = prepare(t, "")
	if err := os.WriteFile(q.dir+"/token", []byte("sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("state_dir: %s/state\nadmin: {socket: %s, address: \"127.0.0.1:%d\", token_file: %s/token%s}\n%s",
		q.dir, q.sock, port, q.dir, allow, routes)
	if err := os.WriteFile(q.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	q.run()
	q.serving()
	return q, port
}

func TestD03_SocketIsForItsOwnerAlone(t *testing.T) {
	q := prepare(t, "")
	q.sock = q.dir + "/run/admin.sock" // a folder that the daemon has to make
	q.write(fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", freePort(t)))
	q.run()
	q.serving()
	for path, want := range map[string]os.FileMode{q.sock: 0o600, filepath.Dir(q.sock): 0o700, q.dir + "/state": 0o700} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v %v, want %v", path, info.Mode().Perm(), err, want)
		}
	}
	q.signal(os.Interrupt)
	q.wait(10 * time.Second)
	if _, err := os.Stat(q.sock); err == nil {
		t.Error("the socket is left behind")
	}
}

func TestD03_TCPWantsTokenHostAndOrigin(t *testing.T) {
	q, port := withTCP(t, "", fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", freePort(t)))
	auth := []string{"Authorization", "Bearer sesame"}
	own := fmt.Sprintf("127.0.0.1:%d", port)
	big := strings.Repeat(" ", 2<<20)
	for _, x := range []struct {
		name, method, path, body string
		head                     []string
		want                     int
	}{
		{"no token", "GET", "/v1/status", "", nil, 401},
		{"another token", "GET", "/v1/status", "", []string{"Authorization", "Bearer sesam"}, 401},
		{"another scheme", "GET", "/v1/status", "", []string{"Authorization", "Basic sesame"}, 401},
		{"token in the query", "GET", "/v1/status?token=sesame", "", nil, 401},
		{"metrics without token", "GET", "/metrics", "", nil, 401},
		{"unknown path without token tells nothing", "GET", "/v1/secret", "", nil, 404},
		{"token", "GET", "/v1/status", "", auth, 200},
		{"health for anybody", "GET", "/health", "", nil, 200},
		{"wrong Host", "GET", "/v1/status", "", append([]string{"Host", "evil.test"}, auth...), 403},
		{"own Host, wrong port", "GET", "/v1/status", "", append([]string{"Host", "127.0.0.1:1"}, auth...), 403},
		{"wrong Origin", "GET", "/v1/status", "", append([]string{"Origin", "http://evil.test"}, auth...), 403},
		{"null Origin", "GET", "/v1/status", "", append([]string{"Origin", "null"}, auth...), 403},
		{"own Origin", "GET", "/v1/status", "", append([]string{"Origin", "http://" + own}, auth...), 200},
		{"writing", "POST", "/v1/reload", "", auth, 403},
		{"stopping", "POST", "/v1/stop", "", auth, 403},
		{"editing", "PUT", "/v1/routes/x", "{}", append([]string{"If-Match", "*"}, auth...), 403},
		{"a large body", "POST", "/v1/check", big, auth, 413},
	} {
		if got, body := tcpAdmin(t, port, x.method, x.path, x.body, x.head...); got != x.want {
			t.Errorf("%s: %d, want %d: %s", x.name, got, x.want, body)
		} else if strings.Contains(body, "sesame") {
			t.Errorf("%s: the token is told", x.name)
		}
	}
	_, b, _ := q.admin("GET", "/v1/config", nil)
	if strings.Contains(string(b), "sesame") || strings.Contains(q.log.String(), "sesame") {
		t.Error("the token is shown")
	}
}

func TestD03_TCPWritesWhereAllowed(t *testing.T) {
	_, port := withTCP(t, ", allow: [read, write]", fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", freePort(t)))
	if got, body := tcpAdmin(t, port, "POST", "/v1/reload", "", "Authorization", "Bearer sesame"); got != 200 {
		t.Errorf("reload: %d %s", got, body)
	}
	if got, _ := tcpAdmin(t, port, "POST", "/v1/reload", ""); got != 401 {
		t.Errorf("reload without token: %d", got)
	}
}

// respond is a route of one host with a fixed answer, as configuration and API write it.
func respond(port int, host, body string) string {
	return fmt.Sprintf(`{"match":{"ports":[%d],"domains":[%q]},"action":{"respond":{"status":200,"body":%q}}}`, port, host, body)
}

func fileRoute(name string, port int, host, body string) string {
	return fmt.Sprintf("  - {name: %s, match: {ports: [%d], domains: [%s]}, action: {respond: {status: 200, body: %s}}}\n", name, port, host, body)
}

func TestD03_EditsAreGuarded(t *testing.T) {
	p := freePort(t)
	q := start(t, "routes:\n"+fileRoute("held", p, "held.test", "file"))
	put := func(name, body string, head ...string) (*http.Response, string) {
		t.Helper()
		res, b, err := q.admin("PUT", "/v1/routes/"+name, strings.NewReader(body), head...)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(b)
	}
	if res, b := put("x", respond(p, "x.test", "x")); res.StatusCode != 428 {
		t.Errorf("without If-Match: %d %s", res.StatusCode, b)
	}
	res, _, _ := q.admin("GET", "/v1/routes", nil)
	tag := res.Header.Get("ETag")
	first, b := put("x", respond(p, "x.test", "x"), "If-Match", tag)
	if first.StatusCode != 200 || first.Header.Get("ETag") == tag {
		t.Fatalf("with If-Match: %d %s", first.StatusCode, b)
	}
	mustFetch(t, p, "x.test", "/", "x")
	if res, b := put("y", respond(p, "y.test", "y"), "If-Match", tag); res.StatusCode != 412 || !strings.Contains(b, "changed since") {
		t.Errorf("stale: %d %s", res.StatusCode, b)
	}
	res, b = put("held", respond(p, "held.test", "api"), "If-Match", "*")
	if res.StatusCode != 409 || !strings.Contains(b, q.file+`:4`) || !strings.Contains(b, `"line":4`) {
		t.Errorf("a route of a file: %d %s, want 409 with file and line", res.StatusCode, b)
	}
	if res, b := put("bad", `{"match":{"prots":[1]},"action":{"respond":{"status":200}}}`, "If-Match", "*"); res.StatusCode != 422 || !strings.Contains(b, "remedy") {
		t.Errorf("a broken route: %d %s", res.StatusCode, b)
	}
	if res, b := put("env", strings.Replace(respond(p, "e.test", "${HOME}"), `"e.test"`, `"${HOME}"`, 1), "If-Match", "*"); res.StatusCode != 422 {
		t.Errorf("a variable in an edit: %d %s", res.StatusCode, b)
	}
	if res, b := put("big", strings.Repeat("x", 2<<20), "If-Match", "*"); res.StatusCode != 413 {
		t.Errorf("a large edit: %d %s", res.StatusCode, b)
	}
	if res, b, _ := q.admin("DELETE", "/v1/routes/held", nil, "If-Match", "*"); res.StatusCode != 409 {
		t.Errorf("delete of a route of a file: %d %s", res.StatusCode, b)
	}
	if res, b, _ := q.admin("DELETE", "/v1/routes/none", nil, "If-Match", "*"); res.StatusCode != 404 {
		t.Errorf("delete of nothing: %d %s", res.StatusCode, b)
	}
	mustFetch(t, p, "held.test", "/", "file")
	mustFetch(t, p, "x.test", "/", "x")
}

func TestD05_ExplainSaysWhichRouteAndWhyNotTheOthers(t *testing.T) {
	p, other := freePort(t), freePort(t)
	target, dead := httpTarget(t, "up", nil), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	q := start(t, "routes:\n"+route("api", p, "a.test", target)+
		fmt.Sprintf("  - {name: post, match: {ports: [%d], domains: [a.test], path: [/form], methods: [POST]}, action: {targets: [%q]}}\n", p, target)+
		route("elsewhere", p, "b.test", target)+route("dead", p, "dead.test", dead)+
		fmt.Sprintf("  - {name: tun, match: {ports: [%d], domains: [t.test]}, action: {targets: [%q], tls: {mode: passthrough}}}\n", other, target))
	say := func(want []string, args ...string) string {
		t.Helper()
		out, code := q.cli(append([]string{"explain"}, args...)...)
		if code != 0 {
			t.Fatalf("explain %v: exit %d\n%s", args, code, out)
		}
		for _, w := range want {
			if !regexp.MustCompile("(?m)" + w).MatchString(out) {
				t.Errorf("explain %v does not say %q:\n%s", args, w, out)
			}
		}
		return out
	}
	url := fmt.Sprintf("http://a.test:%d/form?x=1", p)
	say([]string{`^route +api \(.*q.yaml:4\)$`, `^outcome +forwarded to ` + target, `^target +` + target, `^post +no +.*method`, `^elsewhere +no +.*`, `^certificate +none`}, url)
	say([]string{`^route +post `}, url, "-X", "POST")
	say([]string{`^outcome +no route matches`}, fmt.Sprintf("http://nobody.test:%d/", p))
	say([]string{`^outcome +nothing of ours listens on port 1:`}, "http://a.test:1/")
	say([]string{`^stage +connection`, `^route +tun `, `^certificate +the target's own`}, fmt.Sprintf("https://t.test:%d/", other))
	say([]string{`^route +tun `, `^port +:` + strconv.Itoa(other) + ` bound`}, fmt.Sprintf("t.test:%d", other))

	// What explain says is what happens.
	mustFetch(t, p, "a.test", "/form?x=1", "up")

	id := failedRequest(t, p, "/x?token=secret-word")
	if out := say([]string{`^route +dead`, `^target +` + dead, `^outcome +answered 50[23] `, `refused`}, id); strings.Contains(out, "secret-word") {
		t.Errorf("a secret is told:\n%s", out)
	}
	if out, code := q.cli("explain", "00000000000000000000000000000000"); code != 1 || !strings.Contains(out, "no failed request") {
		t.Errorf("an unknown id: exit %d\n%s", code, out)
	}
	if out := say([]string{`^outcome +`}, fmt.Sprintf("http://dead.test:%d/", p)); !strings.Contains(out, "refused") {
		t.Errorf("the last failure of the target is not told:\n%s", out)
	}
}

// failedRequest asks for what nobody answers and returns the request id on the error page.
func failedRequest(t *testing.T, port int, path string) string {
	t.Helper()
	req, _ := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	req.Host = "dead.test"
	req.Header.Set("Accept", "application/json")
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	id := regexp.MustCompile(`[0-9a-f]{16,}`).FindString(string(b))
	if res.StatusCode < 502 || id == "" {
		t.Fatalf("%d %s", res.StatusCode, b)
	}
	return id
}

func TestD10_TheGraphShowsWhatWouldBeOrphaned(t *testing.T) {
	p, shared := freePort(t), freePort(t)
	q := start(t, fmt.Sprintf(`upstreams:
  both: {targets: ["127.0.0.1:7001", "127.0.0.1:7002"]}
routes:
  - {name: one, match: {ports: [%d], domains: [one.test]}, action: {upstream: both}}
  - {name: two, match: {ports: [%d, %d], domains: [two.test]}, action: {upstream: both}}
  - {name: own, match: {ports: [%d], domains: [own.test]}, action: {targets: ["127.0.0.1:7003"]}}
`, p, p, shared, p))
	var g api.Graph
	q.get("/v1/graph", &g)
	nodes := map[string]api.Node{}
	for _, n := range g.Nodes {
		nodes[n.ID] = n
	}
	edges := map[string]bool{}
	for _, e := range g.Edges {
		edges[e.From+" "+e.To] = true
	}
	port := func(n int) string { return "port/:" + strconv.Itoa(n) }
	for _, e := range []string{
		port(p) + " route/one", port(p) + " route/two", port(shared) + " route/two", "route/one upstream/both", "upstream/both target/127.0.0.1:7002",
	} {
		if !edges[e] {
			t.Errorf("no edge %s", e)
		}
	}
	own := nodes["route/own"].Orphans
	if len(own) != 2 || !strings.HasSuffix(own[1], "127.0.0.1:7003") {
		t.Errorf("without route own: %v, want its upstream and its target", own)
	}
	if got := nodes["route/one"].Orphans; len(got) != 0 {
		t.Errorf("without route one: %v, want nothing: two uses the same", got)
	}
	if got := strings.Join(nodes[port(p)].Orphans, " "); strings.Contains(got, "route/two") || !strings.Contains(got, "route/one") || !strings.Contains(got, "7003") {
		t.Errorf("without the port: %s", got)
	}
	if got := strings.Join(nodes["target/127.0.0.1:7003"].Breaks, " "); !strings.Contains(got, "route/own") {
		t.Errorf("without the target: %s breaks", got)
	}

	out, code := q.cli("routes", "--tree")
	want := regexp.MustCompile(`(?m)^port :\d+, bound.*\n├─ route one, forward.*\n│  └─ upstream both.*\n│     ├─ target 127.0.0.1:7001, up.*\n│     └─ target 127.0.0.1:7002`)
	if code != 0 || !want.MatchString(out) || !strings.Contains(out, "[orphans ") {
		t.Errorf("--tree: exit %d\n%s", code, out)
	}
	out, code = q.cli("routes", "--dot")
	if code != 0 || !strings.HasPrefix(out, "digraph") || !strings.Contains(out, `"upstream/both" -> "target/127.0.0.1:7001";`) {
		t.Errorf("--dot: exit %d\n%s", code, out)
	}
}

func TestD10_DryRunSaysWhatChangesAndWhomItTouches(t *testing.T) {
	p := freePort(t)
	hang := make(chan struct{})
	target := httpTarget(t, "t", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		<-hang
	})
	defer close(hang)
	body := "routes:\n" + route("busy", p, "busy.test", target) + route("quiet", p, "quiet.test", target)
	q := start(t, body)
	for range 3 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: busy.test\r\n\r\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("%q %v", line, err)
		}
	}
	before := q.statusOrNil()["config"].(map[string]any)["revision"]
	dry := func(want ...string) {
		t.Helper()
		out, code := q.cli("reload", "--dry-run")
		for _, w := range want {
			if code != 0 || !strings.Contains(out, w) {
				t.Errorf("dry run: exit %d, want %q:\n%s", code, w, out)
			}
		}
	}
	q.write(body + route("more", p, "more.test", target))
	dry("route more added", "0 connections would be touched")
	q.write(strings.Replace(body, "[busy.test]", "[busy.test, also.test]", 1))
	dry("route busy changed", "3 connections would be touched")
	q.write("routes:\n" + route("busy", p, "busy.test", target))
	dry("route quiet removed", "0 connections would be touched")
	q.write(body)
	dry("nothing changes")
	if now := q.statusOrNil()["config"].(map[string]any)["revision"]; now != before {
		t.Errorf("a dry run made revision %v of %v", now, before)
	}
}

func TestD10_UnconfirmedReloadGoesBack(t *testing.T) {
	p, more := freePort(t), freePort(t)
	body := "routes:\n" + fileRoute("a", p, "a.test", "old")
	q := start(t, body)
	q.write("routes:\n" + fileRoute("a", p, "a.test", "new") + fileRoute("b", more, "b.test", "b"))
	if out, code := q.cli("reload", "--confirm", "1s"); code != 0 || !strings.Contains(out, "quaymaster confirm") {
		t.Fatalf("exit %d\n%s", code, out)
	}
	mustFetch(t, p, "a.test", "/", "new")
	mustFetch(t, more, "b.test", "/", "b")
	if out, _ := q.cli("status"); !strings.Contains(out, "goes back in") {
		t.Errorf("status does not say that it goes back:\n%s", out)
	}
	q.until("it goes back", func() bool { _, b, _ := fetch(p, "a.test", "/"); return b == "old" })
	q.until("the new port is free", func() bool { return inode(t, more) == 0 })
	if out, code := q.cli("confirm"); code != 1 || !strings.Contains(out, "nothing to confirm") {
		t.Errorf("confirm: exit %d\n%s", code, out)
	}
	if out, _ := q.cli("status"); !strings.Contains(out, "not confirmed in time") {
		t.Errorf("status does not say what happened:\n%s", out)
	}

	if out, code := q.cli("reload", "--confirm", "1s"); code != 0 {
		t.Fatalf("exit %d\n%s", code, out)
	}
	// An edit by API is not the confirmation; confirm is.
	if res, b, err := q.admin("PUT", "/v1/routes/x", strings.NewReader(respond(p, "x.test", "x")), "If-Match", "*"); err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %s", err, b)
	}
	if q.statusOrNil()["config"].(map[string]any)["confirm_by"] == nil {
		t.Error("an edit confirmed the reload")
	}
	if out, code := q.cli("confirm"); code != 0 {
		t.Fatalf("confirm: exit %d\n%s", code, out)
	}
	<-time.After(1200 * time.Millisecond) // the promise is that nothing happens when the second is over
	mustFetch(t, p, "a.test", "/", "new")
	mustFetch(t, p, "x.test", "/", "x")
}
