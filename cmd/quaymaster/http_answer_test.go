package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// inside is what no page may tell: addresses, ports, words of Go and of the kernel.
var inside = regexp.MustCompile(`127\.0\.0\.1|\[::1\]|dial |connect:|refused|reset by|goroutine|upstream|\.go:|/tmp/|quaymaster`)

func TestH08_ErrorsAreTypedPages(t *testing.T) {
	t.Parallel()
	silent := tcpTarget(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	breaks := tcpTarget(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
	echo := httpTarget(t, "e", nil)
	p := freePort(t)
	one := func(name, target, more string) string {
		return fmt.Sprintf("  - {name: %s, match: {ports: [%d], domains: [%s.test]}, action: {targets: [%q]}%s}\n", name, p, name, target, more)
	}
	q := start(t, "timeouts: {connect: 500ms}\nroutes:\n"+
		one("large", echo, ", security: {max_body: 10}")+one("busy", echo, ", security: {rate_limit: {requests: 1, per: 1h, burst: 1}}")+
		one("dead", at(freePort(t)), "")+one("breaks", breaks, "")+one("late", silent, ", timeouts: {response_header: 300ms}")+
		one("loop", at(p), "")+one("hole", blackHole(t), "")+
		fmt.Sprintf("  - {name: down, match: {ports: [%d], domains: [down.test]}, action: {targets: [%q], health_check: {tcp: true, interval: 20ms, fall: 1}}}\n", p, at(freePort(t)))+
		fmt.Sprintf("  - {name: path, match: {ports: [%d], domains: [path.test], path: [/a/*]}, action: {targets: [%q]}}\n", p, echo)+
		fmt.Sprintf("  - {name: other, match: {ports: [%d], domains: [path.test], path: [/b/*]}, action: {targets: [%q]}}\n", p, echo))
	if status, _, _ := fetch(p, "busy.test", "/"); status != 200 {
		t.Fatal(status)
	}
	q.until("the target is known to be down", func() bool { status, _, _ := fetch(p, "down.test", "/"); return status == 503 })
	many := strings.Repeat("A: b\r\n", 200)
	for _, x := range []struct {
		status            int
		route, text, body string
	}{
		{400, "", "GET / HTTP/1.1\r\nHost: dead.test\r\n%sContent-Length: x\r\n\r\n", ""},
		{400, "", "GET /a/..%%2fb/x HTTP/1.1\r\nHost: path.test\r\n%s\r\n", ""},
		{404, "", "GET / HTTP/1.1\r\nHost: none.test\r\n%s\r\n", ""},
		{413, "large", "POST / HTTP/1.1\r\nHost: large.test\r\n%sContent-Length: 11\r\n\r\n", "hello world"},
		{413, "large", "POST / HTTP/1.1\r\nHost: large.test\r\n%sTransfer-Encoding: chunked\r\n\r\n", "b\r\nhello world\r\n0\r\n\r\n"},
		{429, "busy", "GET / HTTP/1.1\r\nHost: busy.test\r\n%s\r\n", ""},
		{431, "", "GET / HTTP/1.1\r\nHost: dead.test\r\n%s" + many + "\r\n", ""},
		{502, "dead", "GET / HTTP/1.1\r\nHost: dead.test\r\n%s\r\n", ""},
		{502, "breaks", "GET / HTTP/1.1\r\nHost: breaks.test\r\n%s\r\n", ""},
		{503, "down", "GET / HTTP/1.1\r\nHost: down.test\r\n%s\r\n", ""},
		{504, "late", "GET / HTTP/1.1\r\nHost: late.test\r\n%s\r\n", ""},
		{504, "hole", "GET / HTTP/1.1\r\nHost: hole.test\r\n%s\r\n", ""},
		{508, "loop", "GET / HTTP/1.1\r\nHost: loop.test\r\n%s\r\n", ""},
	} {
		for accept, kind := range map[string]string{
			"": "application/problem+json", "Accept: */*\r\n": "application/problem+json", "Accept: application/json, text/html;q=0.5\r\n": "application/problem+json",
			"Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n": "text/html; charset=utf-8",
		} {
			c := dial(t, p)
			res, body := say(t, c, bufio.NewReader(c), fmt.Sprintf(x.text, accept)+x.body)
			_ = c.Close()
			id := res.Header.Get("X-Request-Id")
			where := fmt.Sprintf("%d %s %q", x.status, x.route, accept)
			if res.StatusCode != x.status || res.Header.Get("Content-Type") != kind || len(id) < 16 || res.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %d %v", where, res.StatusCode, res.Header)
				continue
			}
			if !strings.Contains(body, id) || x.route != "" && !strings.Contains(body, x.route) || !strings.Contains(body, fmt.Sprint(x.status)) {
				t.Errorf("%s: the page does not name status, route and request: %s", where, body)
			}
			if found := inside.FindString(body); found != "" || len(res.Header["Server"])+len(res.Header["Via"]) > 0 {
				t.Errorf("%s: the page says %q: %s %v", where, found, body, res.Header)
			}
			if (x.status == 429 || x.status == 503) && res.Header.Get("Retry-After") == "" {
				t.Errorf("%s: no Retry-After", where)
			}
			if kind == "application/problem+json" {
				var page struct {
					Type, Title, Detail, Route, RequestID string
					Status                                int
				}
				page.RequestID = id
				if err := json.Unmarshal([]byte(body), &page); err != nil || page.Status != x.status || page.Title == "" || page.Route != x.route {
					t.Errorf("%s: %v %s", where, err, body)
				}
			} else if !strings.HasPrefix(body, "<!doctype html>") || res.Header.Get("Content-Security-Policy") == "" {
				t.Errorf("%s: %s", where, body)
			}
			if x.status >= 500 { // whoever is given the id finds the reason
				q.until("the access log has "+id, func() bool { return strings.Contains(q.out.String(), id) })
			}
		}
	}
	// A page of ours is never a way to put markup into a browser.
	c := dial(t, p)
	_, body := say(t, c, bufio.NewReader(c), "GET /<script>alert(1)</script> HTTP/1.1\r\nHost: none.test\r\nAccept: text/html\r\nX-Request-Id: <b>\r\n\r\n")
	if strings.Contains(body, "<script") || strings.Contains(body, "<b>") {
		t.Errorf("the page repeats what came: %s", body)
	}
	c = dial(t, p)
	_, _ = io.WriteString(c, "HEAD / HTTP/1.1\r\nHost: none.test\r\n\r\nGET / HTTP/1.1\r\nHost: none.test\r\nConnection: close\r\n\r\n")
	got := string(untilEnd(t, c, 5*time.Second))
	if head, rest, err := readLetter(got, "HEAD"); err != nil || !strings.HasPrefix(head.start, "HTTP/1.1 404") || head.one("Content-Length") == "" {
		t.Errorf("HEAD: %q", got)
	} else if second := letters(t, rest, "GET"); len(second) != 1 || !strings.HasPrefix(second[0].start, "HTTP/1.1 404") {
		t.Errorf("behind HEAD: %q", rest)
	}
}

// folder writes files; names that end in a slash are folders.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			continue
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestH09_Files(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{
		"public/index.html": "<p>home</p>", "public/a.txt": "0123456789", "public/sub/index.html": "<p>sub</p>", "public/.env": "secret",
		"public/.git/config": "secret", "public/bare/x.txt": "x", "secret.txt": "secret", "public/.well-known/x": "known", "public/sp ace%.txt": "space",
	})
	if err := os.Symlink("../secret.txt", dir+"/public/link.txt"); err != nil {
		t.Fatal(err)
	}
	p, browse := freePort(t), freePort(t)
	start(t, fmt.Sprintf("routes:\n  - {name: f, match: {ports: [%d]}, action: {files: {root: %s/public}}}\n", p, dir)+
		fmt.Sprintf("  - {name: b, match: {ports: [%d]}, action: {files: {root: %s/public, browse: true}}}\n", browse, dir))
	ask := func(port int, method, target string, fields ...string) (*http.Response, string) {
		t.Helper()
		c := dial(t, port)
		defer c.Close()
		_, _ = io.WriteString(c, method+" "+target+" HTTP/1.1\r\nHost: x\r\n"+strings.Join(fields, "\r\n")+strings.Repeat("\r\n", min(len(fields), 1))+"\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(b)
	}
	res, body := ask(p, "GET", "/a.txt")
	tag, changed := res.Header.Get("ETag"), res.Header.Get("Last-Modified")
	if res.StatusCode != 200 || body != "0123456789" || tag == "" || changed == "" || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") || res.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("a file: %d %q %v", res.StatusCode, body, res.Header)
	}
	for _, x := range []struct {
		method, target, field string
		status                int
		body                  string
	}{
		{"HEAD", "/a.txt", "A: b", 200, ""},
		{"GET", "/a.txt", "Range: bytes=2-4", 206, "234"},
		{"GET", "/a.txt", "Range: bytes=-3", 206, "789"},
		{"GET", "/a.txt", "Range: bytes=7-", 206, "789"},
		{"GET", "/a.txt", "Range: bytes=20-30", 416, ""},
		{"GET", "/a.txt", "Range: bytes=2-4\r\nIf-Range: " + tag, 206, "234"},
		{"GET", "/a.txt", "Range: bytes=2-4\r\nIf-Range: \"old\"", 200, "0123456789"},
		{"GET", "/a.txt", "If-None-Match: " + tag, 304, ""},
		{"GET", "/a.txt", "If-None-Match: \"old\"", 200, "0123456789"},
		{"GET", "/a.txt", "If-Modified-Since: " + changed, 304, ""},
		{"GET", "/a.txt", "If-Match: \"old\"", 412, ""},
		{"GET", "/", "A: b", 200, "<p>home</p>"},
		{"GET", "/sub/", "A: b", 200, "<p>sub</p>"},
		{"GET", "/sp%20ace%25.txt?x=y", "A: b", 200, "space"},
		{"GET", "/.well-known/x", "A: b", 200, "known"},
	} {
		res, body := ask(p, x.method, x.target, x.field)
		if res.StatusCode != x.status || x.body != "" && body != x.body || (x.method == "HEAD" || x.status == 304) && body != "" {
			t.Errorf("%s %s %s: %d %q, want %d %q", x.method, x.target, x.field, res.StatusCode, body, x.status, x.body)
		}
	}
	if res, body := ask(p, "GET", "/a.txt", "Range: bytes=0-1,8-9"); res.StatusCode != 206 || !strings.HasPrefix(res.Header.Get("Content-Type"), "multipart/byteranges") || !strings.Contains(body, "89") {
		t.Errorf("two ranges: %d %v %q", res.StatusCode, res.Header, body)
	}
	if res, _ := ask(p, "GET", "/sub?x=y"); res.StatusCode != 308 || res.Header.Get("Location") != "/sub/?x=y" {
		t.Errorf("a folder without a slash: %d %v", res.StatusCode, res.Header)
	}
	if res, _ := ask(p, "POST", "/a.txt", "Content-Length: 0"); res.StatusCode != 405 || res.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d %v", res.StatusCode, res.Header)
	}
	if res, _ := ask(p, "GET", "/bare/"); res.StatusCode != 404 {
		t.Errorf("a folder without an index: %d", res.StatusCode)
	}
	if res, body := ask(browse, "GET", "/bare/"); res.StatusCode != 200 || !strings.Contains(body, "x.txt") {
		t.Errorf("browse: %d %q", res.StatusCode, body)
	}
	for _, port := range []int{p, browse} {
		if _, body := ask(port, "GET", "/"); strings.Contains(body, ".env") || strings.Contains(body, ".git") {
			t.Errorf("a list shows dotfiles: %q", body)
		}
		for _, target := range []string{
			"/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/%2e%2e%2fsecret.txt", "/sub/../../secret.txt", "/sub/%2e%2e/%2e%2e/secret.txt",
			"/..%5csecret.txt", `/..\secret.txt`, "/%252e%252e/secret.txt", "//secret.txt", "/sub//../../secret.txt", "/./../secret.txt", "/..;/secret.txt",
			"/a.txt/../../secret.txt", "/a.txt%00.html", "/.env", "/%2eenv", "/.git/config", "/sub/../.env", "/.git/", "/link.txt", "/.", "/..", "/...",
			"/" + strings.Repeat("../", 50) + "etc/passwd", "/%c0%ae%c0%ae/secret.txt", "/.well-known/../.env", "/.well-known/.env",
		} {
			res, body := ask(port, "GET", target)
			if strings.Contains(body, "secret") && res.StatusCode == 200 || strings.Contains(body, "root:") || res.StatusCode == 200 {
				t.Errorf("GET %s: %d %q", target, res.StatusCode, body)
			}
		}
	}
}

func TestH09_RedirectRespondBlock(t *testing.T) {
	t.Parallel()
	p, m := freePort(t), freePort(t)
	line := func(name, action string) string {
		return fmt.Sprintf("  - {name: %s, match: {ports: [%d], domains: [%s.test]}, action: {%s}}\n", name, p, name, action)
	}
	q := start(t, "routes:\n"+line("https", "redirect: {to: https, status: 301}")+line("plain", "redirect: {to: https}")+
		line("url", "redirect: {to: 'https://{host}.example{path}?from={query}', status: 302}")+line("path", "redirect: {to: '{path}', status: 307}")+
		line("say", "respond: {status: 418, body: 'hello {host}', headers: {X-A: 'for {host}', Content-Type: text/x}}")+
		line("no", "block: {status: 410}")+line("deny", "block: {}")+
		fmt.Sprintf("  - {name: tls, match: {ports: [%d], domains: [no.test], protocols: [tls]}, action: {block: {}, tls: {mode: passthrough}}}\n", m)+
		fmt.Sprintf("  - {name: ssh, match: {ports: [%d], protocols: [ssh]}, action: {block: {}}}\n", m)+
		fmt.Sprintf("  - {name: web, match: {ports: [%d], domains: [web.test]}, action: {respond: {body: web}}}\n", m))
	for _, x := range []struct {
		host, target string
		status       int
		location     string
	}{
		{"https.test", "/a%20b?c=d", 301, "https://https.test/a%20b?c=d"},
		{"https.test:" + fmt.Sprint(p), "/", 301, "https://https.test/"},
		{"plain.test", "/x", 308, "https://plain.test/x"},
		{"url.test", "/a/b?c=d", 302, "https://url.test.example/a/b?from=c=d"},
		{"path.test", "//evil.example/x", 307, "/evil.example/x"},
		{"path.test", "/\\evil.example", 307, "/evil.example"},
	} {
		c := dial(t, p)
		res, _ := say(t, c, bufio.NewReader(c), "GET "+x.target+" HTTP/1.1\r\nHost: "+x.host+"\r\n\r\n")
		if res.StatusCode != x.status || res.Header.Get("Location") != x.location {
			t.Errorf("%s%s: %d %q, want %d %q", x.host, x.target, res.StatusCode, res.Header.Get("Location"), x.status, x.location)
		}
	}
	c := dial(t, p)
	res, body := say(t, c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: say.test\r\n\r\n")
	if res.StatusCode != 418 || body != "hello {host}" || res.Header.Get("X-A") != "for say.test" || res.Header.Get("Content-Type") != "text/x" {
		t.Errorf("respond: %d %q %v", res.StatusCode, body, res.Header)
	}
	for host, want := range map[string]int{"no.test": 410, "deny.test": 403} {
		if status, _, _ := fetch(p, host, "/"); status != want {
			t.Errorf("block at %s: %d, want %d", host, status, want)
		}
	}
	tls := dial(t, m)
	_, _ = tls.Write(hello("no.test"))
	if b := untilEnd(t, tls, 5*time.Second); len(b) != 7 || b[0] != 21 || b[6] != 49 {
		t.Errorf("block of TLS: % x, want the alert access_denied", b)
	}
	ssh := dial(t, m)
	_, _ = io.WriteString(ssh, "SSH-2.0-x\r\n")
	if b := untilEnd(t, ssh, 5*time.Second); len(b) != 0 {
		t.Errorf("block of SSH: %q", b)
	}
	q.until("it is counted", func() bool { return q.rejected("denied") == 2 })
	mustFetch(t, m, "web.test", "/", "web")
}

// readings are what servers make of a path.
func readings(raw string) []string {
	raw, _, _ = strings.Cut(raw, "?")
	params := regexp.MustCompile(`;[^/]*`)
	out := []string{raw}
	for _, step := range []func(string) string{
		func(s string) string {
			if d, err := url.PathUnescape(s); err == nil {
				return d
			}
			return s
		},
		func(s string) string { return strings.ReplaceAll(s, `\`, "/") },
		func(s string) string { return params.ReplaceAllString(s, "") },
		func(s string) string { return regexp.MustCompile(`/+`).ReplaceAllString(s, "/") },
		path.Clean,
		func(s string) string {
			if d, err := url.PathUnescape(s); err == nil {
				return d
			}
			return s
		},
		path.Clean,
	} {
		for _, s := range out {
			out = append(out, step(s))
		}
	}
	return out
}

func TestH10_NoSpellingReachesWhatARouteForbids(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, okay)
	p := freePort(t)
	start(t, "routes:\n"+
		fmt.Sprintf("  - {name: no, match: {ports: [%d], path: [/admin/*]}, action: {block: {status: 403}}}\n", p)+
		fmt.Sprintf("  - {name: all, match: {ports: [%d], path: [/*]}, action: {targets: [%q]}}\n", p, s.addr))
	var paths []string
	for _, dots := range []string{"..", "%2e%2e", ".%2E", "%252e%252e"} {
		for _, slash := range []string{"/", "//", "%2f", "%2F", `\`, "%5c", "%252f", ";/", ";x=y/"} {
			paths = append(paths, "/public"+slash+dots+slash+"admin"+slash+"x", "/public/"+dots+slash+"admin", "/"+dots+slash+"admin/x", "/public/x"+slash+dots+"/"+dots+"/admin/")
		}
	}
	paths = append(paths,
		"/admin", "/admin/", "/admin/x", "//admin/x", "///admin", "/./admin/x", "/%61dmin/x", "/%61%64min", "/admin%2fx", "/admin;x/y", "/admin;/x", "/;/admin/x", "/;x=y/admin",
		"/admin/../admin/x", "/admin//x", "/admin%00", "/admin%00/x", `/\admin/x`, "/%5cadmin", "/admin%5cx", "/x/..;/admin/x", "/%2561dmin/x", "/%2e/admin", "/admin/.", "/admin/..;/admin",
		"/admin?x", "/admin/x?/../../public", "/admin%3fx", "/admin%23", "/%2fadmin", "/x%2f..%2fadmin", "/a/b/../../admin")
	reached := 0
	for _, target := range paths {
		s.forget()
		c := dial(t, p)
		res, _ := say(t, c, bufio.NewReader(c), "GET "+target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		_ = c.Close()
		got := s.text()
		switch {
		case res.StatusCode == 403 || res.StatusCode == 400:
			if got != "" {
				t.Errorf("%s: %d, and yet the target got %q", target, res.StatusCode, got)
			}
			continue
		case res.StatusCode != 200:
			t.Errorf("%s: %d", target, res.StatusCode)
			continue
		}
		reached++
		if !strings.HasPrefix(got, "GET "+target+" HTTP/1.1\r\n") {
			t.Errorf("%s was forwarded as %.80q", target, got)
		}
		for _, r := range readings(target) {
			if r == "/admin" || strings.HasPrefix(r, "/admin/") {
				t.Errorf("%s reached the target, which may read it as %q", target, r)
				break
			}
		}
	}
	t.Logf("%d of %d spellings reached the target", reached, len(paths))
	// What is harmless is forwarded as it came, byte for byte.
	for _, target := range []string{
		"/", "/a%20b/%7Ex/?q=%2f..%2f&r=a+b", "/administrator", "/adminx/", "/x/admin/y", "/public/%41", "/a/./b", "/a/../b", "/a//b", "/a;v=1/b", "/a%2fb",
		"/?x=/../admin", "/%e4%bd%a0", "/x?a=%00", "/~u/*'()!$&,=:@", "/Admin/x",
	} {
		s.forget()
		c := dial(t, p)
		res, _ := say(t, c, bufio.NewReader(c), "GET "+target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		_ = c.Close()
		if got := s.text(); res.StatusCode != 200 || !strings.HasPrefix(got, "GET "+target+" HTTP/1.1\r\n") {
			t.Errorf("%s: %d, forwarded as %.80q", target, res.StatusCode, got)
		}
	}
	// A match works on what is decoded.
	for target, want := range map[string]int{"/%61dmin/x": 403, "/public/../admin/x": 403, "/%70ublic/x": 200} {
		c := dial(t, p)
		if res, _ := say(t, c, bufio.NewReader(c), "GET "+target+" HTTP/1.1\r\nHost: x\r\n\r\n"); res.StatusCode != want && res.StatusCode != 400 {
			t.Errorf("%s: %d, want %d", target, res.StatusCode, want)
		}
	}
}

// accessLine is one line of the access log.
type accessLine struct {
	Time                                                   time.Time
	Kind, Route, Client, Host, Method, Path, Proto, Reason string
	Upstream, Target                                       string
	RequestID                                              string `json:"request_id"`
	UserAgent                                              string `json:"user_agent"`
	Status                                                 int
	Duration, Dial                                         float64
	First                                                  float64 `json:"first_byte"`
	In                                                     int64   `json:"bytes_in"`
	Out                                                    int64   `json:"bytes_out"`
}

// accessLog waits for n lines and returns all there are.
func (q *qm) accessLog(n int) []accessLine {
	q.t.Helper()
	q.until(fmt.Sprintf("%d lines of the access log", n), func() bool { return strings.Count(q.out.String(), "\n") >= n })
	var out []accessLine
	for _, l := range strings.Split(strings.TrimSuffix(q.out.String(), "\n"), "\n") {
		var a accessLine
		if err := json.Unmarshal([]byte(l), &a); err != nil {
			q.t.Fatalf("line %q: %v", l, err)
		}
		out = append(out, a)
	}
	return out
}

func TestH14_AccessLog(t *testing.T) {
	t.Parallel()
	slow := httpTarget(t, "", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		<-time.After(50 * time.Millisecond)
		w.Header().Set("Set-Cookie", "session=cookie-secret")
		fmt.Fprintf(w, "%05d", n)
	})
	p, tun := freePort(t), freePort(t)
	q := start(t, "trusted_proxies: [127.0.0.0/8]\nroutes:\n"+route("slow", p, "a.test", slow)+
		fmt.Sprintf("  - {name: hi, match: {ports: [%d], domains: [hi.test]}, action: {respond: {body: hi}}}\n", p)+
		fmt.Sprintf("  - {name: tun, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", tun, tcpTarget(t, func(c net.Conn) { _, _ = io.CopyN(c, c, 4) })))
	c := dial(t, p)
	r := bufio.NewReader(c)
	say(t, c, r, "POST /up?x=1&token=query-secret&access_token=query-secret&sig=query-secret&y=2 HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 198.51.100.7\r\nUser-Agent: me \"quoted\"\r\n"+
		"Authorization: Bearer header-secret\r\nCookie: a=cookie-secret\r\nX-Api-Key: header-secret\r\nReferer: http://x/?token=query-secret\r\nContent-Length: 7\r\n\r\nseven77")
	say(t, c, r, "GET /hi HTTP/1.1\r\nHost: hi.test\r\n\r\n")
	say(t, c, r, "GET /evil\x7f HTTP/1.1\r\nHost: hi.test\r\n\r\n")
	c = dial(t, p)
	say(t, c, bufio.NewReader(c), "GET /none HTTP/1.0\r\nHost: none.test\r\n\r\n")
	tunnel := dial(t, tun)
	_, _ = io.WriteString(tunnel, "ping")
	untilEnd(t, tunnel, 5*time.Second)
	_ = tunnel.Close()
	lines := q.accessLog(5)
	byRoute := map[string]accessLine{}
	for _, l := range lines {
		if l.Reason != "bad_request" { // the request that cannot be read has a line of its own, before or after that of no route
			byRoute[l.Kind+" "+l.Route] = l
		}
	}
	if n := len(lines); n != 5 {
		t.Errorf("%d lines for four requests and a tunnel: %s", n, q.out)
	}
	l := byRoute["http slow"]
	if l.Client != "198.51.100.7" || l.Host != "a.test" || l.Method != "POST" || l.Proto != "HTTP/1.1" || l.Status != 200 || l.Target != slow || l.Upstream != "slow" ||
		l.In != 7 || l.Out != 5 || l.Duration < 0.05 || l.Duration > 10 || l.First < 0.05 || l.First > l.Duration || l.Dial <= 0 || l.Dial > l.Duration || len(l.RequestID) < 16 || l.UserAgent != `me "quoted"` || time.Since(l.Time) > time.Minute {
		t.Errorf("line %+v", l)
	}
	if l.Path != "/up?x=1&token=***&access_token=***&sig=***&y=2" {
		t.Errorf("path %q", l.Path)
	}
	if strings.Contains(q.out.String()+q.log.String(), "secret") {
		t.Errorf("a secret is in the logs:\n%s", q.out)
	}
	if l := byRoute["http hi"]; l.Status != 200 || l.Client != "127.0.0.1" || l.Out != 2 || l.Target != "" {
		t.Errorf("line %+v", l)
	}
	if l := byRoute["http "]; l.Status != 404 || l.Reason != "no_route" || l.Proto != "HTTP/1.0" || l.Host != "none.test" {
		t.Errorf("line of no route: %+v", l)
	}
	if l := byRoute["tunnel tun"]; l.In != 4 || l.Out != 4 || l.Client != "127.0.0.1" || l.Target == "" {
		t.Errorf("line of the tunnel: %+v", l)
	}
}

// curl runs the real curl against a local port and returns what it printed.
func curl(t testing.TB, args ...string) string {
	t.Helper()
	bin, err := exec.LookPath("curl")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("curl is missing")
		}
		t.Skip("curl is missing: apt-get install curl")
	}
	out, err := exec.Command(bin, append([]string{"-sS", "--max-time", "20"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestH02H06H09_Curl(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{"big": strings.Repeat("0123456789", 300_000), "small": "hello"})
	target := httpTarget(t, "", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" || r.Method == "HEAD" {
			http.FileServer(http.Dir(dir)).ServeHTTP(w, r)
			return
		}
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %d %.5s %v", r.Method, r.Host, len(b), b, err)
	})
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", target)+fmt.Sprintf("  - {name: f, match: {ports: [%d], domains: [f.test]}, action: {files: {root: %s}}}\n", p, dir))
	for _, host := range []string{"a.test", "f.test"} { // through us, and by us
		base := []string{"--resolve", fmt.Sprintf("%s:%d:127.0.0.1", host, p)}
		do := func(args ...string) string {
			args[len(args)-1] = fmt.Sprintf("http://%s:%d%s", host, p, args[len(args)-1])
			return curl(t, append(base, args...)...)
		}
		if got := do("/small"); got != "hello" {
			t.Errorf("GET: %q", got)
		}
		if got := do("/big"); len(got) != 3_000_000 {
			t.Errorf("GET of 3 MB: %d bytes", len(got))
		}
		if got := do("-r", "10-19,", "/big"); host == "a.test" && !strings.Contains(got, "0123456789") {
			t.Errorf("Range: %q", got)
		}
		if got := do("-r", "5-14", "/big"); got != "5678901234" {
			t.Errorf("Range: %q", got)
		}
		if got := do("-I", "/big"); !strings.Contains(got, "200 OK") || !strings.Contains(got, "Content-Length: 3000000") {
			t.Errorf("HEAD: %q", got)
		}
		if got := do("--http1.0", "/small"); got != "hello" {
			t.Errorf("HTTP/1.0: %q", got)
		}
		out := filepath.Join(t.TempDir(), "part")
		if err := os.WriteFile(out, bytes.Repeat([]byte("x"), 1_000_000), 0o644); err != nil {
			t.Fatal(err)
		}
		do("-C", "-", "-o", out, "/big")
		if b, _ := os.ReadFile(out); len(b) != 3_000_000 || !bytes.HasSuffix(b, []byte("0123456789")) {
			t.Errorf("resumed download: %d bytes", len(b))
		}
		if host == "f.test" {
			continue
		}
		if got := do("-d", "x=y", "/"); !strings.HasPrefix(got, "POST a.test:"+fmt.Sprint(p)+" 3 x=y ") {
			t.Errorf("POST: %q", got)
		}
		if got := do("-T", filepath.Join(dir, "big"), "/up"); !strings.Contains(got, " 3000000 01234 <nil>") { // with Expect: 100-continue
			t.Errorf("upload: %q", got)
		}
		if got := do("-H", "Transfer-Encoding: chunked", "-T", filepath.Join(dir, "big"), "/up"); !strings.Contains(got, " 3000000 01234 <nil>") {
			t.Errorf("chunked upload: %q", got)
		}
		if got := do("-F", "file=@"+filepath.Join(dir, "big"), "/form"); !strings.Contains(got, "POST") || !strings.Contains(got, " 3000") {
			t.Errorf("form: %q", got)
		}
	}
}
