package main

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
)

// previewEntry is an app whose program is TestPreviewChild. how says what it does before it serves; more are further keys.
func previewEntry(t testing.TB, name, how string, more ...string) string {
	t.Helper()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	keys := append([]string{
		fmt.Sprintf("command: [%q, \"-test.run=^TestPreviewChild$\"]", self), "preview: true",
		fmt.Sprintf("env: {QM_CHILD_LISTEN: preview, QM_APP: %q, QM_NAME: %s, QM_APP_OF: %q, QM_GATE: %q}", how, name, appMark(t), previewGate(t)),
	}, more...)
	if os.Geteuid() == 0 {
		keys = append(keys, "user: root")
	}
	return "  " + name + ": {" + strings.Join(keys, ", ") + "}\n"
}

// previewGate is a file that apps of a test may wait for.
func previewGate(t testing.TB) string {
	return filepath.Join(os.TempDir(), "qm-gate-"+strconv.Itoa(os.Getpid())+"-"+strings.ReplaceAll(t.Name(), "/", "-"))
}

// openGate lets the apps that wait at the gate go on.
func openGate(t testing.TB) {
	t.Helper()
	if err := os.WriteFile(previewGate(t), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(previewGate(t)) })
}

// TestPreviewChild is the program of the apps of these tests, and no test.
func TestPreviewChild(t *testing.T) {
	how, name := os.Getenv("QM_APP"), os.Getenv("QM_NAME")
	if os.Getenv("QM_CHILD_LISTEN") != "preview" {
		t.Skip("this is an app of other tests")
	}
	fmt.Println("\x1b[31mred\x1b[0m <script>document.title='taken over'</script> & more of " + name)
	switch {
	case strings.Contains(how, "crash"):
		fmt.Fprintln(os.Stderr, "panic: <b>no database</b>")
		os.Exit(3)
	case strings.Contains(how, "broken"): // until the gate is open
		if _, err := os.Stat(os.Getenv("QM_GATE")); err != nil {
			fmt.Fprintln(os.Stderr, "error in line 7 of "+name)
			os.Exit(1)
		}
	case strings.Contains(how, "gate"):
		for {
			if _, err := os.Stat(os.Getenv("QM_GATE")); err == nil {
				break
			}
			<-time.After(20 * time.Millisecond)
		}
	case strings.Contains(how, "mute"):
		select {}
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = http.Serve(l, previewPages(name)) //nolint:gosec // a test's own
	os.Exit(1)
}

// previewPages are the pages of an app that knows nothing of the path it is shown under: every link of them begins with a
// slash.
func previewPages(name string) http.Handler {
	mux := http.NewServeMux()
	text := func(path, kind, format string, args ...any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			fmt.Fprintf(w, format, args...)
		})
	}
	const js = "text/javascript"
	text("/{$}", "text/html", previewPage, name)
	text("/quiet", "text/html", "<meta name=referrer content=no-referrer>"+previewPage, name)
	text("/main.js", js, "window.main = %q", name)
	text("/mod.js", js, `import {name} from "/lib/x.js"; window.mod = name`)
	text("/lib/x.js", js, `export {name} from "/lib/y.js"`)
	text("/lib/y.js", js, `export const name = %q`, name)
	text("/style.css", "text/css", `@import "/more.css"; body {color: red}`)
	text("/more.css", "text/css", `:root {--app: %s}`, name)
	text("/worker.js", js, `fetch("/whoami").then(r => r.text()).then(t => postMessage(t))`)
	text("/whoami", "text/plain", "%s", name)
	text("/events", "text/event-stream", "data: %s\n\n", name)
	mux.HandleFunc("POST /api", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s", name, r.Method, r.URL.RequestURI(), body)
	})
	mux.HandleFunc("/hmr", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		for {
			kind, b, err := c.Read(context.Background())
			if err != nil {
				_ = c.CloseNow()
				return
			}
			_ = c.Write(context.Background(), kind, []byte(name+" "+string(b)))
		}
	})
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: name, Path: "/"})
		to := map[string]string{"": "/home", "absolute": "http://" + r.Host + "/home", "relative": "home", "up": "../../home", "other": "http://other.example/x"}
		w.Header().Set("Location", to[r.URL.Query().Get("to")])
		w.WriteHeader(http.StatusFound)
	})
	mux.HandleFunc("/home", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<body>%s home, cookies %s</body>", name, html.EscapeString(r.Header.Get("Cookie")))
	})
	mux.HandleFunc("/boom", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "%s went wrong by itself", name)
	})
	mux.HandleFunc("/range", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "x.bin", time.Time{}, strings.NewReader("0123456789"))
	})
	mux.HandleFunc("/gzip", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, name+` <a href="/x">`)
		_ = z.Close()
	})
	mux.HandleFunc("/die", func(http.ResponseWriter, *http.Request) { os.Exit(7) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.RequestURI, "/echo/") {
			mux.ServeHTTP(w, r) // which knows no path with two slashes
			return
		}
		body, _ := io.ReadAll(r.Body)
		_ = json.NewEncoder(w).Encode(map[string]any{"target": r.RequestURI, "host": r.Host, "header": r.Header, "body": string(body), "env": os.Environ()})
	})
}

const previewPage = `<!doctype html><html><head><title>%[1]s</title><link rel="stylesheet" href="/style.css"></head><body>
<script src="/main.js"></script>
<script type="module" src="/mod.js"></script>
<a id="home" href="/login">home</a>
<form id="form" action="/api?by=form" method="post"><input name="in" value="field"></form>
<script type="module">
const within = (what, p) => Promise.race([p, new Promise(done => setTimeout(() => done("nothing of " + what), 40000))]);
const r = {main: window.main};
r.mod = await within("mod", (async () => { while (!window.mod) await new Promise(f => setTimeout(f, 20)); return window.mod })());
r.css = getComputedStyle(document.documentElement).getPropertyValue("--app").trim();
r.fetch = await within("fetch", fetch("/api?a=b&c=%%20d", {method: "POST", body: "hello"}).then(a => a.text()));
r.upload = await within("upload", fetch("/api?big", {method: "POST", body: "x".repeat(4 << 20)}).then(a => a.text()).then(t => String(t.length)));
r.worker = await within("worker", new Promise(done => { const w = new Worker("/worker.js"); w.onmessage = e => done(e.data); w.onerror = () => done("error") }));
r.events = await within("events", new Promise(done => { const e = new EventSource("/events"); e.onmessage = m => { e.close(); done(m.data) } }));
r.socket = await within("socket", new Promise(done => {
  const s = new WebSocket("ws://" + location.host + "/hmr"); window.socket = s;
  s.onopen = () => s.send("ping"); s.onmessage = m => done(m.data); s.onerror = () => done("error")
}));
document.body.dataset.result = JSON.stringify(r);
</script></body></html>`

// browser is a real Chromium, without anything of earlier tests.
func browser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("chromium is missing; `make test-deps` installs it")
		}
		t.Skip("chromium is missing; `make test-deps` installs it")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(
		chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("no-proxy-server", true), chromedp.Flag("disable-background-networking", true), chromedp.WSURLReadTimeout(time.Minute),
	)...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {})) // events that are newer than the library
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("chromium does not start: %v", err)
	}
	return ctx
}

// visit opens a page.
func visit(t *testing.T, tab context.Context, url string) {
	t.Helper()
	if err := chromedp.Do(tab, chromedp.Navigate(url)); err != nil {
		t.Fatalf("open %s: %v", url, err)
	}
}

// shows waits until an expression in the page of the tab, whichever that is by then, has a value.
func shows(t *testing.T, tab context.Context, expression string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		value, err := chromedp.Run(tab, chromedp.Evaluate[string](`(() => { try { return String(`+expression+` || "") } catch { return "" } })()`))
		if err == nil && value != "" { // else it may be on its way to another page
			return value
		}
	}
	t.Fatalf("waited a minute for the page to have %s", expression)
	return ""
}

// visited opens a page of previewPages and returns what it found out.
func visited(t *testing.T, tab context.Context, url string) (r struct{ Main, Mod, CSS, Fetch, Upload, Worker, Events, Socket string }) {
	t.Helper()
	visit(t, tab, url)
	text := shows(t, tab, `document.body.dataset.result`)
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatalf("%s: %q %v", url, text, err)
	}
	return r
}
