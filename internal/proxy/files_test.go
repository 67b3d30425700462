package proxy

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// folder is a tree of files: names ending in a slash are folders.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "public")
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(p, 0o755); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFilesServesAFolder(t *testing.T) {
	root := folder(t, map[string]string{
		"index.html": "<h1>home", "a b.txt": "text", "sub/index.html": "sub", "empty/": "", ".env": "secret", ".git/config": "secret",
		"sub/.hidden": "secret", ".well-known/security.txt": "contact", "zero": "", "other/x": "x",
	})
	if err := os.WriteFile(filepath.Join(root, "..", "outside"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../outside", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a b.txt", filepath.Join(root, "inner")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := build(t, &wish{action: plan.Files{Root: root, Index: []string{"index.html"}}})
	for _, c := range []struct {
		target string
		status int
		body   string
	}{
		{"/", 200, "<h1>home"},
		{"/a%20b.txt?v=1", 200, "text"},
		{"/sub/", 200, "sub"},
		{"/sub", 308, ""},
		{"/zero", 200, ""},
		{"/inner", 200, "text"},
		{"/.well-known/security.txt", 200, "contact"},
		{"/index.html", 200, "<h1>home"},
		{"/missing", 404, "!"},
		{"/empty/", 404, "!"},
		{"/a%20b.txt/", 404, "!"},
		{"/.env", 404, "!"},
		{"/.git/config", 404, "!"},
		{"/sub/.hidden", 404, "!"},
		{"/%2eenv", 404, "!"},
		{"/link", 404, "!"},
		{"/pipe", 404, "!"},
		{"/../outside", 404, "!"},
		{"/..%2foutside", 404, "!"},
		{"/%2e%2e/outside", 404, "!"},
		{"/sub/..%5c..%5coutside", 404, "!"},
		{"/sub/../../outside", 404, "!"},
		{"/a%20b.txt%00.html", 404, "!"},
		{"/" + strings.Repeat("x", 5000), 404, "!"},
	} {
		a := h.ask("GET", c.target)
		if a.StatusCode != c.status || c.body != "!" && a.body != c.body || strings.Contains(a.body, "secret") || strings.Contains(a.body, root) {
			t.Errorf("%.60s: %d %q", c.target, a.StatusCode, a.body)
		}
	}
	if a := h.ask("GET", "/sub?x=1"); a.Header.Get("Location") != "/sub/?x=1" {
		t.Errorf("a folder without slash: %v", a.Header)
	}
	if a := h.ask("GET", "//sub"); a.Header.Get("Location") != "/sub/" {
		t.Errorf("a folder with slashes before: %v", a.Header)
	}
	if a := h.ask("POST", "/", "Content-Length: 0"); a.StatusCode != 405 || a.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d %v", a.StatusCode, a.Header)
	}
	if a := h.ask("HEAD", "/"); a.StatusCode != 200 || a.ContentLength != 8 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
		t.Errorf("HEAD: %d %v", a.StatusCode, a.Header)
	}
}

func TestFilesSeesAFolderThatWasReplaced(t *testing.T) {
	root := folder(t, map[string]string{"a": "old"})
	h := build(t, &wish{action: plan.Files{Root: root}})
	if a := h.ask("GET", "/a"); a.body != "old" {
		t.Fatalf("%d %q", a.StatusCode, a.body)
	}
	if err := os.Rename(root, root+".old"); err != nil {
		t.Fatal(err)
	}
	if a := h.ask("GET", "/a"); a.StatusCode != 404 || strings.Contains(a.body, "public") {
		t.Fatalf("%d %q", a.StatusCode, a.body)
	}
	if err := os.Rename(folder(t, map[string]string{"a": "new"}), root); err != nil {
		t.Fatal(err)
	}
	if a := h.ask("GET", "/a"); a.body != "new" {
		t.Fatalf("%d %q", a.StatusCode, a.body)
	}
}

func TestFilesKnowsRangesAndConditions(t *testing.T) {
	root := folder(t, map[string]string{"a.txt": "0123456789"})
	then := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	if err := os.Chtimes(filepath.Join(root, "a.txt"), then, then); err != nil {
		t.Fatal(err)
	}
	h := build(t, &wish{action: plan.Files{Root: root}})
	whole := h.ask("GET", "/a.txt")
	tag := whole.Header.Get("Etag")
	if whole.body != "0123456789" || tag == "" || whole.Header.Get("Last-Modified") != "Mon, 06 May 2024 07:08:09 GMT" || whole.Header.Get("Accept-Ranges") != "bytes" {
		t.Fatalf("%v %q", whole.Header, whole.body)
	}
	for _, c := range []struct {
		field  string
		status int
		body   string
	}{
		{"Range: bytes=2-4", 206, "234"},
		{"Range: bytes=-3", 206, "789"},
		{"Range: bytes=8-", 206, "89"},
		{"Range: bytes=20-", 416, "!"},
		{"If-None-Match: " + tag, 304, ""},
		{"If-None-Match: \"other\"", 200, "0123456789"},
		{"If-Match: \"other\"", 412, ""},
		{"If-Modified-Since: Mon, 06 May 2024 07:08:09 GMT", 304, ""},
		{"If-Modified-Since: Mon, 06 May 2024 07:08:08 GMT", 200, "0123456789"},
	} {
		if a := h.ask("GET", "/a.txt", c.field); a.StatusCode != c.status || c.body != "!" && a.body != c.body {
			t.Errorf("%s: %d %q", c.field, a.StatusCode, a.body)
		}
	}
	if a := h.ask("GET", "/a.txt", "Range: bytes=2-4", "If-Range: "+tag); a.StatusCode != 206 || a.Header.Get("Content-Range") != "bytes 2-4/10" {
		t.Errorf("%d %v", a.StatusCode, a.Header)
	}
	if err := os.WriteFile(filepath.Join(root, "a.txt"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if a := h.ask("GET", "/a.txt", "If-None-Match: "+tag); a.StatusCode != 200 {
		t.Errorf("a changed file: %d", a.StatusCode)
	}
}

func TestFilesSendsLargeFilesWhole(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	root := folder(t, map[string]string{"big": string(big)})
	w := &wish{action: plan.Files{Root: root}}
	w.timeouts.BodyStall = 10 * time.Second
	h := build(t, w)
	c := h.dial()
	for range 2 { // twice on one connection: it stays in step
		c.say("GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
		if a := c.answer("GET"); a.StatusCode != 200 || !bytes.Equal([]byte(a.body), big) {
			t.Fatalf("%d, %d bytes", a.StatusCode, len(a.body))
		}
		if rec := h.record(); rec.Out != int64(len(big)) || rec.Reason != "" {
			t.Fatalf("record %+v", rec)
		}
	}
	if got := h.route.BytesOut().Load(); got != 2*int64(len(big)) {
		t.Fatalf("%d bytes counted", got)
	}
	w.timeouts.BodyStall = 300 * time.Millisecond
	h = build(t, w)
	c = h.dial()
	for range 2 { // the deadline of the first is not left to the second
		c.say("GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
		if a := c.answer("GET"); len(a.body) != len(big) {
			t.Fatalf("%d, %d bytes", a.StatusCode, len(a.body))
		}
		h.record()
		time.Sleep(500 * time.Millisecond)
	}
	c.say("GET /big HTTP/1.0\r\nHost: a\r\nRange: bytes=100000-999999\r\n\r\n")
	if a := c.answer("GET"); a.StatusCode != 206 || len(a.body) != 900_000 {
		t.Fatalf("%d, %d bytes", a.StatusCode, len(a.body))
	}
}

func TestFilesCutsClientsThatTakeNothing(t *testing.T) {
	root := folder(t, map[string]string{"big": strings.Repeat("x", 32<<20)})
	w := &wish{action: plan.Files{Root: root}}
	w.timeouts.BodyStall = 100 * time.Millisecond
	h := build(t, w)
	c := h.dial()
	c.say("GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
	if rec := h.record(); rec.Reason != "body_stall" {
		t.Fatalf("record %+v", rec)
	}
	if a, err := io.ReadAll(c.r); err == nil && len(a) >= 32<<20 {
		t.Fatal("a cut answer looks whole")
	}
}

func TestFilesKeepsClientsThatTakeLittle(t *testing.T) {
	const size = 5 << 20
	root := folder(t, map[string]string{"big": strings.Repeat("0123456789abcdef", size/16)})
	w := &wish{action: plan.Files{Root: root}}
	w.timeouts.BodyStall = 300 * time.Millisecond
	h := build(t, w)
	c := h.dial()
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	c.say("GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
	res := c.head("GET")
	buf := make([]byte, 64<<10)
	for total := 0; total < size; total += len(buf) {
		time.Sleep(50 * time.Millisecond) // a step of the server lasts longer than a stall is allowed to
		if _, err := io.ReadFull(res.Body, buf); err != nil || !bytes.Equal(buf[:16], []byte("0123456789abcdef")) {
			t.Fatalf("after %d bytes: %v %q", total, err, buf[:16])
		}
	}
	if rec := h.record(); rec.Out != size || rec.Reason != "" {
		t.Fatalf("record %+v", rec)
	}
}

func TestFilesLists(t *testing.T) {
	root := folder(t, map[string]string{"z/": "", "a<b>.txt": "", "100%?.txt": "x", ".hidden": "", "sub/c": ""})
	h := build(t, &wish{action: plan.Files{Root: root, Browse: true}})
	a := h.ask("GET", "/")
	if a.StatusCode != 200 || strings.Contains(a.body, "hidden") || strings.Contains(a.body, "<b>") ||
		!strings.Contains(a.body, `<a href="./100%25%3F.txt">100%?.txt</a>`) || strings.Index(a.body, "z/") > strings.Index(a.body, "100%") {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	if sub := h.ask("GET", "/sub/"); !strings.Contains(sub.body, `href="../"`) {
		t.Errorf("%s", sub.body)
	}
	if got := h.ask("GET", "/100%25%3F.txt"); got.body != "x" {
		t.Errorf("%d %q", got.StatusCode, got.body)
	}
}

func TestFilesAnswersForSinglePageApps(t *testing.T) {
	root := folder(t, map[string]string{"index.html": "app", "a.js": "js"})
	h := build(t, &wish{action: plan.Files{Root: root, SPA: true}})
	for target, want := range map[string]string{"/": "app", "/users/1": "app", "/a.js": "js", "/users/": "app"} {
		if a := h.ask("GET", target); a.StatusCode != 200 || a.body != want || !strings.Contains(a.Header.Get("Content-Type"), map[string]string{"app": "html", "js": "javascript"}[want]) {
			t.Errorf("%s: %d %q %v", target, a.StatusCode, a.body, a.Header)
		}
	}
	if a := h.ask("GET", "/.env"); a.StatusCode != 404 {
		t.Errorf("a dotfile: %d", a.StatusCode)
	}
}
