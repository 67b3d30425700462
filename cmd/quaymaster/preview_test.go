package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
)

// previews is a configuration with previews on a port, and apps, whose ports no other test has.
func previews(t testing.TB, port int, apps string) string {
	t.Helper()
	first := freePorts(t, 6)
	return fmt.Sprintf("previews: {port: %d}\napp_ports: %d-%d\nlog: {access: {enabled: false}}\napps:\n%s", port, first, first+5, apps)
}

// says is what a verb prints.
func (q *qm) says(args ...string) string {
	out, _ := q.cli(args...)
	return out
}

// TestA03_AbsoluteLinksWorkInABrowser opens apps that know nothing of a path in Chromium, by path and by host. By path,
// what cannot be told apart is refused and not guessed.
func TestA03_AbsoluteLinksWorkInABrowser(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := startApps(t, previews(t, port, previewEntry(t, "one", "")+previewEntry(t, "two", "")))
	q.appIs("one", "ready")
	q.appIs("two", "ready")
	tab := browser(t)
	byPath := fmt.Sprintf("http://127.0.0.1:%d/app/preview/", port)

	for _, c := range []struct{ name, base, root, socket string }{
		{"one", byPath + "one/", "/app/preview/one", "one ping"},
		{"one", fmt.Sprintf("http://one.localhost:%d/", port), "", "one ping"},
		{"two", fmt.Sprintf("http://two.localhost:%d/", port), "", "two ping"},
		{"two", byPath + "two/", "/app/preview/two", "error"}, // one and two are open on one host: whose socket is it?
		{"one", byPath + "one/", "/app/preview/one", "error"},
	} {
		r := visited(t, tab, c.base)
		if r.Main != c.name || r.Mod != c.name || r.CSS != c.name || r.Fetch != c.name+" POST /api?a=b&c=%20d hello" || r.Upload != strconv.Itoa(len(c.name+" POST /api?big ")+(4<<20)) || r.Worker != c.name || r.Events != c.name || r.Socket != c.socket {
			t.Errorf("%s: %+v", c.base, r)
		}
		shows(t, tab, `(document.querySelector("#home").click(), 1)`)
		body := shows(t, tab, `document.body.innerText.includes("home, cookies") && document.body.innerText`)
		if where := shows(t, tab, `location.pathname`); where != c.root+"/home" || !strings.HasPrefix(body, c.name+" home") || !strings.Contains(body, "sid="+c.name) || strings.Count(body, "sid=") != 1 {
			t.Errorf("%s: a link with a cookie and a Location leads to %s: %s", c.base, where, body)
		}
		visit(t, tab, c.base)
		shows(t, tab, `(document.querySelector("#form").submit(), 1)`)
		if body := shows(t, tab, `document.body.innerText.includes("by=form") && document.body.innerText`); body != c.name+" POST /api?by=form in=field" {
			t.Errorf("%s: a form gives %s", c.base, body)
		}
	}
}

// TestA03_PagesWithoutARefererWork opens one that says nothing of where its requests come from: as the only preview of the
// browser it is known all the same.
func TestA03_PagesWithoutARefererWork(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := startApps(t, previews(t, port, previewEntry(t, "one", "")+previewEntry(t, "two", "")))
	q.appIs("one", "ready")
	tab := browser(t)
	r := visited(t, tab, fmt.Sprintf("http://127.0.0.1:%d/app/preview/one/quiet", port))
	if r.Main != "one" || r.Mod != "one" || r.CSS != "one" || r.Fetch != "one POST /api?a=b&c=%20d hello" || r.Socket != "one ping" {
		t.Errorf("%+v", r)
	}
}

// TestA17_TheWaitingPageBecomesTheApp opens a sleeping app in Chromium: first there is a page that says what is going on,
// which runs nothing that the app has said, and which becomes the app's own page by itself.
func TestA17_TheWaitingPageBecomesTheApp(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := startApps(t, previews(t, port, previewEntry(t, "web", "gate", "start: on_request")+
		previewEntry(t, "fixed", "broken", "restart: {max: 1000, backoff: 0.5, max_backoff: 0.5}")))
	if s := q.app("web").State; s != "sleeping" {
		t.Fatalf("web is %s", s)
	}
	tab := browser(t)
	visit(t, tab, fmt.Sprintf("http://web.localhost:%d/", port))
	body := shows(t, tab, `document.body.innerText.includes("more of web") && document.body.innerText`)
	if title := shows(t, tab, `document.title`); title != "web is being started" || !strings.Contains(body, "red <script>document.title='taken over'</script> & more of web") || strings.Contains(body, "[31m") {
		t.Errorf("waiting page %q: %s", title, body)
	}
	other, cancel := chromedp.NewContext(tab)
	t.Cleanup(cancel)
	visit(t, other, fmt.Sprintf("http://fixed.localhost:%d/", port))
	shows(t, other, `document.body.innerText.includes("error in line 7 of fixed")`)
	openGate(t)
	if main := shows(t, tab, `window.main`); main != "web" || shows(t, tab, `document.title`) != "web" {
		t.Errorf("the page became that of %q", main)
	}
	if main := shows(t, other, `window.main`); main != "fixed" { // an app that was mended comes by itself, too
		t.Errorf("the other page became that of %q", main)
	}
}

// TestA03_WhatPassesIsNotChanged asks with curl and a WebSocket, by path and by host.
func TestA03_WhatPassesIsNotChanged(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := startApps(t, previews(t, port, previewEntry(t, "web", "")))
	q.appIs("web", "ready")
	for _, c := range []struct{ host, prefix string }{{"127.0.0.1", "/app/preview/web"}, {"web.localhost", ""}} {
		host, prefix := fmt.Sprintf("%s:%d", c.host, port), c.prefix
		base := "http://" + host + prefix
		curl := func(args ...string) string {
			out, err := exec.Command("curl", append([]string{"-sS", "--max-time", "30", "--resolve", fmt.Sprintf("web.localhost:%d:127.0.0.1", port)}, args...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("curl %v: %v %s", args, err, out)
			}
			return string(out)
		}
		var seen struct {
			Target, Host, Body string
			Header             http.Header
			Env                []string
		}
		text := curl(base+"/echo/a%20b//c?x=1&y=%2F&x=2", "-d", "a=b&c=d", "-H", "Cookie: a=b; quaymaster-previews=web", "-H", "Origin: null")
		if err := json.Unmarshal([]byte(text), &seen); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if seen.Target != "/echo/a%20b//c?x=1&y=%2F&x=2" || seen.Body != "a=b&c=d" || seen.Header.Get("Cookie") != "a=b; quaymaster-previews=web" || seen.Header.Get("Origin") != "null" {
			t.Errorf("%s: %+v", base, seen)
		}
		if got := seen.Header.Get("X-Forwarded-Prefix"); got != prefix {
			t.Errorf("%s: X-Forwarded-Prefix %q", base, got)
		}
		if want := fmt.Sprintf("QUAYMASTER_URL=http://web.localhost:%d", port); !strings.Contains(strings.Join(seen.Env, "\n"), want) {
			t.Errorf("the app was not given %s", want)
		}
		if got := curl(base+"/range", "-H", "Range: bytes=3-5", "-i"); !strings.Contains(got, " 206 ") || !strings.Contains(got, "Content-Range: bytes 3-5/10") || !strings.HasSuffix(got, "\n345") {
			t.Errorf("%s: range: %s", base, got)
		}
		if got := curl(base+"/gzip", "--compressed"); got != `web <a href="/x">` {
			t.Errorf("%s: gzip: %s", base, got)
		}
		if got := curl(base+"/boom", "-w", "%{http_code}"); got != "web went wrong by itself500" {
			t.Errorf("%s: the app's own error became %s", base, got)
		}
		for to, want := range map[string]string{"": base + "/home", "absolute": base + "/home", "relative": base + "/home", "up": base + "/home", "other": "http://other.example/x"} {
			if got := curl(base+"/login?to="+to, "-o", "/dev/null", "-w", "%{redirect_url}"); got != want {
				t.Errorf("%s: Location %q leads to %s", base, to, got)
			}
		}
		if got := curl(base+"/login", "-i"); !strings.Contains(got, "Set-Cookie: sid=web; Path="+prefix) || prefix == "" && !strings.Contains(got, "Path=/\r\n") {
			t.Errorf("%s: cookie: %s", base, got)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		ws, _, err := websocket.Dial(ctx, fmt.Sprintf("ws://127.0.0.1:%d%s/hmr", port, prefix), &websocket.DialOptions{Host: host})
		if err != nil {
			t.Fatalf("%s: WebSocket: %v", base, err)
		}
		err = ws.Write(ctx, websocket.MessageText, []byte("hot"))
		_, b, bad := ws.Read(ctx)
		if err != nil || bad != nil || string(b) != "web hot" {
			t.Errorf("%s: WebSocket: %q %v %v", base, b, err, bad)
		}
		_ = ws.CloseNow()
		cancel()
	}
}

// TestA01_ThreeAppsByHostAndByPreviewPath starts three: each has a port of its own, and is reached once it answers.
func TestA01_ThreeAppsByHostAndByPreviewPath(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	apps := previewEntry(t, "one", "", "ready: {http: /whoami}") + previewEntry(t, "two", "") + previewEntry(t, "three", "gate")
	q := startApps(t, previews(t, port, apps)+fmt.Sprintf("sites:\n  http://one.test:%d: app:one\n", port))
	ports := map[int]bool{}
	for _, name := range []string{"one", "two"} {
		ports[q.appIs(name, "ready").Port] = true
	}
	if s := q.app("three").State; s != "starting" {
		t.Errorf("three does not listen yet, and is %s", s)
	}
	openGate(t)
	ports[q.appIs("three", "ready").Port] = true
	if len(ports) != 3 {
		t.Errorf("the ports are %v", ports)
	}
	for _, c := range []struct{ host, path, want string }{
		{"one.localhost", "/whoami", "one"},
		{"two.localhost", "/whoami", "two"},
		{"three.localhost", "/whoami", "three"},
		{"127.0.0.1", "/app/preview/one/whoami", "one"},
		{"localhost", "/app/preview/two/whoami", "two"},
		{"x.localhost", "/app/preview/three/whoami", "three"},
		{"one.test", "/whoami", "one"},
		{"one.test", "/app/preview/two/whoami", "two"},
	} {
		if status, body, err := fetch(port, c.host, c.path); status != 200 || body != c.want || err != nil {
			t.Errorf("%s%s: %d %q %v", c.host, c.path, status, body, err)
		}
	}
	// A name that nobody here wrote could be anybody's: its pages must not read previews.
	for _, path := range []string{"/app/preview/one/whoami", "/whoami"} {
		if status, body, _ := fetch(port, "rebound.example", path); status != 404 {
			t.Errorf("a foreign name gets %s: %d %s", path, status, body)
		}
	}
	list := q.says("routes")
	if !strings.Contains(list, "preview/one ") || !strings.Contains(list, "preview/three/host") {
		t.Errorf("routes:\n%s", list)
	}
	if list = q.says("routes", "--json"); !strings.Contains(list, "asked by a page below /app/preview/one") {
		t.Errorf("routes --json:\n%s", list)
	}
	if out := q.says("explain", fmt.Sprintf("http://two.localhost:%d/x", port)); !strings.Contains(out, "app:two") || !strings.Contains(out, "preview/two/host") {
		t.Errorf("explain:\n%s", out)
	}
}

// askAs sends one request as a browser or another program would, and gives the answer with its body.
func askAs(t testing.TB, port int, host, path, accept string, more ...string) (*http.Response, string) {
	t.Helper()
	a, body, err := tryAs(port, host, path, accept, more...)
	if err != nil {
		t.Fatalf("GET %s%s: %v", host, path, err)
	}
	return a, body
}

func tryAs(port int, host, path, accept string, more ...string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		return nil, "", err
	}
	req.Host = host
	req.Header.Set("Accept", accept)
	for i := 0; i < len(more); i += 2 {
		req.Header.Set(more[i], more[i+1])
	}
	c := &http.Client{Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer c.CloseIdleConnections()
	a, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = a.Body.Close() }()
	b, err := io.ReadAll(a.Body)
	return a, string(b), err
}

const asBrowser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

// TestA02_SimultaneousRequestsWakeAPreviewOnce sends a hundred, half of which leave early, and one of a browser, which does
// not wait.
func TestA02_SimultaneousRequestsWakeAPreviewOnce(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := startApps(t, previews(t, port, previewEntry(t, "web", "gate", "start: on_request")))
	var waiting sync.WaitGroup
	answers := make(chan string, 50)
	early, leave := context.WithCancel(context.Background())
	for n := range 100 {
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			ctx := early
			if n%2 == 0 {
				ctx = context.Background()
			}
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/app/preview/web/whoami", port), nil)
			a, err := http.DefaultClient.Do(req)
			if n%2 != 0 {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("a client that left got %v", err)
				}
				return
			}
			if err != nil {
				answers <- err.Error()
				return
			}
			b, _ := io.ReadAll(a.Body)
			_ = a.Body.Close()
			answers <- fmt.Sprint(a.StatusCode, " ", string(b))
		}()
	}
	q.appIs("web", "starting")
	a, body := askAs(t, port, "127.0.0.1", "/app/preview/web/", asBrowser)
	if a.StatusCode != 503 || a.Header.Get("Retry-After") != "1" || a.Header.Get("Refresh") != "1" || a.Header.Get("Cache-Control") != "no-store" ||
		!strings.Contains(body, "web is being started") || !strings.Contains(a.Header.Get("Content-Security-Policy"), "default-src 'none'") || strings.Contains(a.Header.Get("Content-Security-Policy"), "unsafe") {
		t.Errorf("the waiting page: %d %v\n%s", a.StatusCode, a.Header, body)
	}
	leave()
	openGate(t)
	waiting.Wait()
	close(answers)
	for got := range answers {
		if got != "200 web" {
			t.Errorf("one got %s", got)
		}
	}
	if n := strings.Count(q.log.String(), `"msg":"app starting"`); n != 1 {
		t.Errorf("started %d times", n)
	}
}

// TestA02_APreviewThatIsNotReadyInTime is answered 504 with the reason and the app's last lines; an ordinary route keeps both
// to itself.
func TestA02_APreviewThatIsNotReadyInTime(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := startApps(t, previews(t, port, previewEntry(t, "web", "mute", "start: on_request", "ready: {timeout: 1s}", "restart: {policy: no}"))+
		fmt.Sprintf("sites:\n  http://web.test:%d: app:web\n", port))
	a, body := askAs(t, port, "127.0.0.1", "/app/preview/web/x", "*/*")
	if a.StatusCode != 504 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") || !strings.Contains(body, "not ready") || !strings.Contains(body, "  red <script>document.title='taken over'</script> & more of web\n") {
		t.Errorf("a program gets %d %v\n%s", a.StatusCode, a.Header, body)
	}
	q.cli("apps", "stop", "web")
	q.cli("apps", "start", "web")
	a, body = askAs(t, port, "web.test", "/x", "*/*")
	if a.StatusCode/100 != 5 || strings.Contains(body, "more of web") || strings.Contains(body, "not ready") {
		t.Errorf("an ordinary route tells %d %s", a.StatusCode, body)
	}
}

// TestA17_LastLinesStandInThePagesOfPreviewsAlone asks for an app that crashes, in all ways there are to ask.
func TestA17_LastLinesStandInThePagesOfPreviewsAlone(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := startApps(t, previews(t, port, previewEntry(t, "web", "crash", "restart: {max: 1, backoff: 0.1}"))+
		fmt.Sprintf("sites:\n  http://web.test:%d: app:web\n", port))
	q.appIs("web", "crash-looping")
	for _, c := range []struct{ host, path string }{{"127.0.0.1", "/app/preview/web/"}, {"web.localhost", "/"}} {
		a, body := askAs(t, port, c.host, c.path, asBrowser)
		if a.StatusCode != 503 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") || !strings.Contains(body, "crash-looping") ||
			!strings.Contains(body, "panic: &lt;b&gt;no database&lt;/b&gt;\n") || !strings.Contains(body, "red &lt;script&gt;") || strings.Contains(body, "<script") || strings.Contains(body, "\x1b") {
			t.Errorf("%s%s as a browser: %d\n%s", c.host, c.path, a.StatusCode, body)
		}
		a, body = askAs(t, port, c.host, c.path, "*/*")
		if a.StatusCode != 503 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") || !strings.Contains(body, "crash-looping: exit code 3") || !strings.Contains(body, "  panic: <b>no database</b>\n") {
			t.Errorf("%s%s as a program: %d\n%s", c.host, c.path, a.StatusCode, body)
		}
	}
	for _, accept := range []string{asBrowser, "*/*"} {
		if a, body := askAs(t, port, "web.test", "/", accept); a.StatusCode != 503 || strings.Contains(body, "database") || strings.Contains(body, "crash") || strings.Contains(body, "exit code") {
			t.Errorf("an ordinary route tells %d\n%s", a.StatusCode, body)
		}
	}
	if out := q.says("apps", "logs", "web"); !strings.Contains(out, "panic: <b>no database</b>") {
		t.Errorf("apps logs:\n%s", out)
	}
}

// TestA17_AnOrdinaryRouteOfASleepingApp has a waiting page, too, that says nothing of the app.
func TestA17_AnOrdinaryRouteOfASleepingApp(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	startApps(t, previews(t, port, previewEntry(t, "web", "gate", "start: on_request")+previewEntry(t, "always", "gate"))+
		fmt.Sprintf("sites:\n  http://web.test:%d: app:web\n  http://always.test:%d: app:always\n", port, port))
	a, body := askAs(t, port, "web.test", "/whoami", asBrowser)
	if a.StatusCode != 503 || a.Header.Get("Refresh") != "1" || !strings.Contains(body, "being started") || strings.Contains(body, "more of web") || strings.Contains(body, "connection refused") {
		t.Errorf("the waiting page: %d %v\n%s", a.StatusCode, a.Header, body)
	}
	// What a page asks for by itself waits, and so does whoever comes to an app that was not asleep.
	done := make(chan string, 3)
	for _, c := range [][]string{{"web.test", asBrowser, "Sec-Fetch-Dest", "script"}, {"web.test", "*/*"}, {"always.test", asBrowser}} {
		go func() {
			a, body, err := tryAs(port, c[0], "/whoami", c[1], c[2:]...)
			if err != nil {
				body = err.Error()
			} else {
				body = fmt.Sprint(a.StatusCode, " ", body)
			}
			done <- body
		}()
	}
	select {
	case got := <-done:
		t.Fatalf("one did not wait: %s", got)
	case <-time.After(time.Second):
	}
	openGate(t)
	for range 3 {
		if got := <-done; got != "200 web" && got != "200 always" {
			t.Errorf("after readiness: %s", got)
		}
	}
}

// TestA08_AWebSocketKeepsAPreviewUp and its end lets it sleep.
func TestA08_AWebSocketKeepsAPreviewUp(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := startApps(t, previews(t, port, previewEntry(t, "web", "", "start: on_request", "idle_stop: 500ms")))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, _, err := websocket.Dial(ctx, fmt.Sprintf("ws://127.0.0.1:%d/app/preview/web/hmr", port), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		<-time.After(500 * time.Millisecond)
		if s := q.app("web").State; s != "ready" {
			t.Fatalf("with an open WebSocket it is %s", s)
		}
	}
	_ = c.CloseNow()
	q.appIs("web", "sleeping")
}

// TestA14_APreviewThatIsAddedMovesNothingElse reloads with one more preview while the first is in use.
func TestA14_APreviewThatIsAddedMovesNothingElse(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	one := previews(t, port, previewEntry(t, "one", ""))
	q := startApps(t, one)
	was := q.appIs("one", "ready").PID
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, _, err := websocket.Dial(ctx, fmt.Sprintf("ws://127.0.0.1:%d/app/preview/one/hmr", port), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	q.write(one + previewEntry(t, "two", ""))
	out := q.says("reload")
	if strings.Contains(out, "preview/one") || !strings.Contains(out, "preview/two/host") {
		t.Errorf("reload moves\n%s", out)
	}
	if err := c.Write(ctx, websocket.MessageText, []byte("on")); err != nil {
		t.Error(err)
	}
	if _, b, err := c.Read(ctx); string(b) != "one on" || err != nil {
		t.Errorf("the WebSocket: %q %v", b, err)
	}
	q.appIs("two", "ready")
	if now := q.app("one").PID; now != was {
		t.Errorf("one was started again: %d, %d", was, now)
	}
	if status, body, err := fetch(port, "two.localhost", "/whoami"); status != 200 || body != "two" || err != nil {
		t.Errorf("two: %d %q %v", status, body, err)
	}
}

// TestA01_TheExampleOfPreviewsShowsItsApps runs it as it stands, on other ports.
func TestA01_TheExampleOfPreviewsShowsItsApps(t *testing.T) {
	t.Parallel()
	q := prepare(t, "")
	if err := os.CopyFS(q.dir+"/public", os.DirFS("../../examples/public")); err != nil {
		t.Fatal(err)
	}
	var moved map[int]int
	q.file, moved = exampleOnFreePorts(t, "../../examples/previews.yaml", q.dir)
	q.run("--socket", q.sock)
	q.serving()
	if s := q.app("docs").State; s != "sleeping" {
		t.Errorf("docs is %s", s)
	}
	want, err := os.ReadFile("../../examples/public/index.html")
	if err != nil {
		t.Fatal(err)
	}
	for host, path := range map[string]string{"site.localhost": "/", "127.0.0.1": "/app/preview/docs/"} {
		if a, body := askAs(t, moved[8080], host, path, "*/*"); a.StatusCode != 200 || body != string(want) {
			t.Errorf("%s%s: %d %s", host, path, a.StatusCode, body)
		}
	}
	q.signal(os.Interrupt)
	if code := q.wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
}
