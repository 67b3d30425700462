//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// labelProgram is what containers with labels run: a server that says its name, streams, echoes what follows an upgrade,
// and is as well as it was told.
const labelProgram = `package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

func main() {
	if os.Args[1] == "check" {
		res, err := http.Get("http://127.0.0.1" + os.Args[2] + "/health")
		if err != nil || res.StatusCode != 200 {
			os.Exit(1)
		}
		return
	}
	var sick atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/sick", func(http.ResponseWriter, *http.Request) { sick.Store(true) })
	mux.HandleFunc("/heal", func(http.ResponseWriter, *http.Request) { sick.Store(false) })
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			w.WriteHeader(500)
		}
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		for i := 0; r.Context().Err() == nil; i++ {
			if _, err := fmt.Fprintln(w, i); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, _ *http.Request) {
		c, b, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
		io.Copy(c, b)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s %s", os.Args[2], r.Host, r.URL.Path) })
	panic(http.ListenAndServe(os.Args[1], mux))
}
`

// newLabelled is an engine of its own whose containers have that program, and its socket.
func newLabelled(t *testing.T) (p *podmanOf, socket string) {
	t.Helper()
	p = newPodmanWithWeb(t, 0)
	return p, p.serve()
}

// newPodmanWithWeb is the same, and nobody serves its socket yet.
func newPodmanWithWeb(t *testing.T, user int) *podmanOf {
	t.Helper()
	p := newPodman(t, user)
	dir := t.TempDir()
	for name, text := range map[string]string{"main.go": labelProgram, "go.mod": "module web\n"} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", p.fs+"/web", ".")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if user == 0 {
		p.run("network", "create", "qml")
	}
	return p
}

// service makes the engine answer on a socket until the func is called.
func (p *podmanOf) service(socket string) (stop func()) {
	p.t.Helper()
	cmd := p.command(context.Background(), p.podman("system", "service", "--time=0", "unix://"+socket)...)
	log := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
		}
	}
	p.t.Cleanup(stop)
	until(p.t, "podman answers", func() bool { return dials(socket) })
	return stop
}

// box runs a container of that name. Words that begin with a dash are podman's, the others are labels.
func (p *podmanOf) box(name string, words ...string) {
	p.t.Helper()
	args := []string{"run", "-d", "--name", name}
	if p.user == 0 {
		args = append(args, "--network", "qml")
	}
	for _, w := range words {
		if strings.HasPrefix(w, "-") {
			args = append(args, strings.Fields(w)...)
		} else {
			args = append(args, "-l", w)
		}
	}
	p.run(append(args, "--rootfs", p.fs, "/web", ":8080", name)...)
}

// asked sends a request to quaymaster there, by TLS on port 443, and is the status, the first 200 bytes of the answer, and
// where it sends the client.
func (p *podmanOf) asked(url string) (status int, body, location string) {
	p.t.Helper()
	client := &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				_, port, _ := net.SplitHostPort(addr)
				return p.dial(ctx, "tcp4", "127.0.0.1:"+port)
			},
		},
	}
	res, err := client.Get(url)
	if err != nil {
		return 0, err.Error(), ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 200))
	return res.StatusCode, string(b), res.Header.Get("Location")
}

// answers waits until a URL is answered by the container of that name; by none where it is "".
func (p *podmanOf) answers(url, name string) {
	p.t.Helper()
	var status int
	var body string
	until(p.t, fmt.Sprintf("%s is answered by %q", url, name), func() bool {
		status, body, _ = p.asked(url)
		if name == "" {
			return !(status == 200 && strings.Contains(body, " "))
		}
		return status == 200 && strings.HasPrefix(body, name+" ")
	})
}

type labelRoute struct {
	Name, Source string
	Place        *struct{ File string }
	Targets      []struct{ Target string }
}

func (q *qm) labelRoute(name string) *labelRoute {
	q.t.Helper()
	var list []labelRoute
	q.get("/v1/routes", &list)
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// troubled waits until the status says something about an object, or nothing where want is "".
func (q *qm) troubled(object, want string) {
	q.t.Helper()
	q.until(fmt.Sprintf("the status says %q about %s", want, object), func() bool {
		list, _ := q.statusOrNil()["problems"].([]any)
		for _, x := range list {
			m := x.(map[string]any)
			if m["object"] == object {
				return want != "" && strings.Contains(fmt.Sprint(m["message"]), want) && m["remedy"] != ""
			}
		}
		return want == ""
	})
}

const enable = "quaymaster.enable=true"

func TestA15_RoutesFromLabelsComeAndGoWithTheirContainers(t *testing.T) {
	t.Parallel()
	p, socket := newLabelled(t)
	p.box("old", enable, "quaymaster.port=8080", "quaymaster.host=old.test")
	p.box("silent", "quaymaster.host=silent.test", "-p 127.0.0.1:8301:8080")
	q := p.start(t, fmt.Sprintf(`
engine: {kind: podman, socket: "unix://%s"}
sites: {file.test: 9, "http://plain.test:8088": 9}
`, socket))
	p.answers("https://old.test/", "old") // that was there before, by its address in a network
	if status, _, to := p.asked("http://old.test/x?y"); status != 308 || to != "https://old.test/x?y" {
		t.Errorf("a plain client: %d %q", status, to)
	}
	first := q.statusOrNil()["config"].(map[string]any)

	p.box("web", enable, "quaymaster.host=web.test, http://web.test:8088", "quaymaster.port=8080", "quaymaster.path=/a/*,/b", "-p 127.0.0.1:8302:8080",
		"quaymaster.admin.host=http://admin.test", "quaymaster.admin.path=/")
	p.answers("https://web.test/a/x", "web")
	p.answers("http://web.test:8088/b", "web")
	p.answers("http://admin.test/", "web")
	if status, body, _ := p.asked("https://web.test/c"); status != 404 {
		t.Errorf("a path that no label names: %d %q", status, body)
	}
	if r := q.labelRoute("web@podman"); r == nil || r.Source != "container web (podman)" || r.Place != nil || len(r.Targets) != 1 || r.Targets[0].Target != "127.0.0.1:8302" {
		t.Errorf("route: %+v", r)
	}
	if r := q.labelRoute("web:admin@podman"); r == nil {
		t.Error("no route of the second router")
	}
	out, code := q.cli("routes")
	if code != 0 || !strings.Contains(out, "container web (podman)") || strings.Contains(out, "silent") {
		t.Errorf("routes: %d\n%s", code, out)
	}
	out, _ = q.cli("explain", "https://web.test/a/x")
	if !strings.Contains(out, "web@podman (container web (podman))") || !strings.Contains(out, "127.0.0.1:8302") {
		t.Errorf("explain:\n%s", out)
	}
	if row := q.wanted(443); row.Source != "file" { // a site is there, too
		t.Errorf("port 443 is from %q", row.Source)
	}
	if now := q.statusOrNil()["config"].(map[string]any); now["revision"] != first["revision"] || now["loaded_at"] != first["loaded_at"] {
		t.Errorf("containers are no configuration that was loaded: %v, before %v", now, first)
	}

	same, err := os.ReadFile(q.file)
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"", string(same)} { // of the files, and of what is sent
		res, b, err := q.admin("POST", "/v1/check", strings.NewReader(body))
		if err != nil || res.StatusCode != 200 || strings.Contains(string(b), "podman") {
			t.Errorf("a check of the same configuration: %v %s", err, b)
		}
	}
	if out, code := q.cli("check", "-c", q.file); code != 0 {
		t.Errorf("check: %d %s", code, out)
	}

	p.run("stop", "-t", "0", "web")
	p.answers("https://web.test/a/x", "")
	p.answers("http://admin.test/", "")
	p.answers("https://old.test/", "old")
	p.run("start", "web")
	p.answers("https://web.test/a/x", "web")
	p.run("kill", "web")
	p.answers("https://web.test/a/x", "")
	p.run("rm", "-f", "old")
	p.answers("https://old.test/", "")
	q.until("their routes are gone", func() bool { return q.labelRoute("old@podman") == nil && q.labelRoute("web@podman") == nil })
	if s := q.statusOrNil(); s["state"] != "serving" || len(s["problems"].([]any)) > 0 {
		t.Errorf("status: %v", s)
	}
}

func TestA15_ABadLabelIsRefusedAlone(t *testing.T) {
	t.Parallel()
	p, socket := newLabelled(t)
	body := fmt.Sprintf(`
engine: {kind: podman, socket: "unix://%s", ports: [80, 8443], domains: ["*.test"]}
routes:
  - {name: mine, match: {ports: [80], domains: [file.test], path: [/x]}, action: {respond: {body: "file"}}}
`, socket)
	q := p.start(t, body)
	p.box("well", enable, "quaymaster.port=8080", "quaymaster.host=http://well.test")
	p.answers("http://well.test/", "well")
	for _, c := range []struct{ name, label, want string }{
		{"host", "quaymaster.host=http://no host", `label quaymaster.host: "no host" is no domain`},
		{"port", "quaymaster.host=http://a.test:8081", "engine.ports does not let labels have port 8081"},
		{"domain", "quaymaster.host=http://a.example.com", "engine.domains does not let labels have a.example.com"},
		{"file", "quaymaster.host=http://file.test", `file.test on port 80 is route "mine" at `},
		{"other", "quaymaster.host=http://well.test", `routes "other@podman" and "well@podman" match the same on :80; the other one is at container well (podman)`},
		{"variable", "quaymaster.host=http://${HOME}.test", "labels hold no variables"},
		{"typing", "quaymaster.hots=http://b.test", "label quaymaster.hots: there is no such label"},
	} {
		p.box(c.name, enable, "quaymaster.port=8080", c.label)
		q.troubled("container "+c.name+" (podman)", c.want)
	}
	if n := strings.Count(q.log.String(), "label refused"); n != 7 {
		t.Errorf("%d lines in the log say that a label is refused, want 7", n)
	}
	events, _ := exec.Command("curl", "-sN", "-m", "1", "--unix-socket", q.sock, "http://localhost/v1/events?last=1000").Output()
	if n := strings.Count(string(events), "event: label.refused"); n != 7 {
		t.Errorf("%d events label.refused, want 7", n)
	}
	p.answers("http://well.test/", "well")
	if _, body, _ := p.asked("http://file.test/x"); body != "file" {
		t.Errorf("the route of the file: %q", body)
	}
	if s := q.statusOrNil(); s["state"] != "serving" {
		t.Errorf("a bad label makes the state %v", s["state"])
	}

	// What gave way comes as soon as it may.
	p.run("rm", "-f", "-t", "0", "well")
	p.answers("http://well.test/", "other")
	q.reload(strings.Replace(body, "domains: [file.test]", "domains: [moved.test]", 1))
	p.answers("http://file.test/", "file")
	q.troubled("container file (podman)", "")

	// The API wins over a container, and does not change what a container holds.
	edit := func(method, name, body string) (int, string) {
		res, b, err := q.admin(method, "/v1/routes/"+name, strings.NewReader(body), "If-Match", "*")
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	if status, b := edit("DELETE", "other@podman", ""); status != 409 || !strings.Contains(b, "route other@podman comes from the labels of container other (podman)") {
		t.Errorf("DELETE of a container's route: %d %s", status, b)
	}
	if status, b := edit("PUT", "over", `{"match": {"ports": [80], "domains": ["well.test"]}, "action": {"respond": {"body": "api"}}}`); status != 200 {
		t.Fatalf("PUT: %d %s", status, b)
	}
	if _, body, _ := p.asked("http://well.test/"); body != "api" {
		t.Errorf("the API's route does not win: %q", body)
	}
	q.troubled("container other (podman)", `well.test on port 80 is route "over" at api`)
	if status, b := edit("DELETE", "over", ""); status != 200 {
		t.Fatalf("DELETE: %d %s", status, b)
	}
	if _, body, _ := p.asked("http://well.test/"); !strings.HasPrefix(body, "other ") {
		t.Errorf("the container's route is not back: %q", body)
	}

	// A port that cannot be had keeps out nobody else, and is had when it is free.
	hold := exec.Command("nsenter", "-t", fmt.Sprint(p.init), "-n", "--", p.fs+"/web", ":8443", "holder")
	hold.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	p.listens(8443)
	p.box("held", enable, "quaymaster.port=8080", "quaymaster.host=held.test:8443")
	p.box("late", enable, "quaymaster.port=8080", "quaymaster.host=http://late.test")
	p.answers("http://late.test/", "late")
	q.troubled("container held (podman)", "its routes cannot be had")
	if out, code := q.cli("reload"); code != 0 {
		t.Errorf("reload: %d %s", code, out)
	}
	_ = hold.Process.Kill()
	_ = hold.Wait()
	if out, code := q.cli("reload"); code != 0 { // it is tried again with every change
		t.Errorf("reload: %d %s", code, out)
	}
	p.answers("https://held.test:8443/", "held")
	if row := q.wanted(8443); row.Source != "container held (podman)" {
		t.Errorf("port 8443 is from %q", row.Source)
	}
	q.troubled("container held (podman)", "")
}

func TestA15_RoutesServeWhileTheEngineIsDown(t *testing.T) {
	t.Parallel()
	p := newPodmanWithWeb(t, 0)
	socket := p.dir + "/engine.sock"
	service := p.service(socket)
	q := p.start(t, fmt.Sprintf("engine: {kind: podman, socket: \"unix://%s\", ports: [80]}\n", socket))
	p.box("stays", enable, "quaymaster.port=8080", "quaymaster.host=http://stays.test")
	p.box("goes", enable, "quaymaster.port=8080", "quaymaster.host=http://goes.test")
	p.answers("http://stays.test/", "stays")
	p.answers("http://goes.test/", "goes")
	service()
	q.troubled(socket, "the container engine is not heard")
	p.run("rm", "-f", "-t", "0", "goes")
	p.box("came", enable, "quaymaster.port=8080", "quaymaster.host=http://came.test")
	p.answers("http://stays.test/", "stays")
	if r := q.labelRoute("goes@podman"); r == nil {
		t.Error("a route went while the engine was down")
	}
	if s := q.statusOrNil(); s["state"] != "serving" {
		t.Errorf("state %v", s["state"])
	}
	if out, code := q.cli("reload"); code != 0 {
		t.Errorf("reload: %d %s", code, out)
	}
	p.answers("http://stays.test/", "stays")
	if out, code := q.cli("upgrade"); code != 0 {
		t.Fatalf("upgrade: %d %s", code, out)
	}
	if status, body, _ := p.asked("http://stays.test/"); status != 200 || !strings.HasPrefix(body, "stays ") {
		t.Errorf("after an upgrade while the engine is down: %d %q", status, body)
	}
	if r := q.labelRoute("goes@podman"); r == nil {
		t.Error("a route went in an upgrade while the engine was down")
	}
	q.troubled(socket, "the container engine is not heard")
	p.service(socket)
	p.answers("http://came.test/", "came")
	q.until("the route is gone", func() bool { return q.labelRoute("goes@podman") == nil })
	q.troubled(socket, "")
	p.answers("http://stays.test/", "stays")
	p.box("after", enable, "quaymaster.port=8080", "quaymaster.host=http://after.test") // by the new stream
	p.answers("http://after.test/", "after")
}

func TestA15_TraefikLabelsAreImported(t *testing.T) {
	t.Parallel()
	p, socket := newLabelled(t)
	body := fmt.Sprintf("engine: {kind: podman, socket: \"unix://%s\", import_traefik: false}\n", socket)
	q := p.start(t, body)
	rule := func(router, text string) string { return "traefik.http.routers." + router + ".rule=" + text }
	p.box("shop", "traefik.enable=true", rule("shop", "(Host(`shop.test`) || Host(`www.shop.test`)) && PathPrefix(`/s`)"),
		"traefik.http.routers.shop.entrypoints=websecure", "traefik.http.routers.shop.tls=true", "traefik.http.routers.shop.tls.certresolver=le",
		"traefik.http.services.shop.loadbalancer.server.port=8080", rule("all", "Host(`shop.test`)"), "traefik.http.routers.all.priority=1", "traefik.http.routers.all.entrypoints=web")
	p.box("guarded", "traefik.enable=true", rule("g", "Host(`guarded.test`)"), "traefik.http.routers.g.middlewares=auth", "traefik.http.services.g.loadbalancer.server.port=8080")
	p.box("ours", enable, "quaymaster.port=8080", "quaymaster.host=http://ours.test")
	p.answers("http://ours.test/", "ours")
	if r := q.labelRoute("shop:shop@podman"); r != nil {
		t.Error("labels of Traefik are followed though import_traefik is off")
	}
	q.reload(strings.Replace(body, "import_traefik: false", "import_traefik: true", 1))
	p.answers("https://shop.test/s/x", "shop")
	p.answers("https://www.shop.test/s", "shop")
	p.answers("http://shop.test/any", "shop")
	if status, _, _ := p.asked("https://shop.test/other"); status != 404 {
		t.Errorf("a path outside of the rule: %d", status)
	}
	q.troubled("container guarded (podman)", "label traefik.http.routers.g.middlewares: this label of Traefik is not known here")
	p.answers("http://ours.test/", "ours")
}

// Containers without root are reached where they are published: an address of theirs may be somebody else's here.
func TestA15_LabelsOfContainersWithoutRoot(t *testing.T) {
	t.Parallel()
	tool(t, "slirp4netns")
	tool(t, "newuidmap")
	p := newPodmanWithWeb(t, netUser)
	socket := p.dir + "/engine.sock"
	p.service(socket)
	q := p.start(t, fmt.Sprintf("engine: {kind: podman, socket: \"unix://%s\", ports: [80]}\n", socket))
	p.box("shown", enable, "quaymaster.host=http://shown.test", "quaymaster.port=8080", "-p 127.0.0.1:8305:8080")
	p.box("hidden", enable, "quaymaster.host=http://hidden.test", "quaymaster.port=8080")
	p.answers("http://shown.test/", "shown")
	q.troubled("container hidden (podman)", "port 8080 is not published, and this host is in none of the container's networks")
}

// Labels of an image count as those of a container do, and the port that it exposes needs no words.
func TestA15_LabelsOfAnImage(t *testing.T) {
	t.Parallel()
	p, socket := newLabelled(t)
	q := p.start(t, fmt.Sprintf("engine: {kind: podman, socket: \"unix://%s\", ports: [80]}\n", socket))
	text := "FROM scratch\nCOPY web /web\nEXPOSE 8080\nLABEL quaymaster.enable=true quaymaster.host=http://image.test\nENTRYPOINT [\"/web\", \":8080\", \"image\"]\n"
	writeFile(t, p.fs+"/Containerfile", []byte(text), 0o644)
	p.run("build", "-q", "-t", "labelled", p.fs)
	p.run("run", "-d", "--name", "image", "--network", "qml", "labelled")
	p.answers("http://image.test/", "image")
	p.run("run", "-d", "--name", "off", "--network", "qml", "-l", "quaymaster.enable=false", "labelled")
	p.run("rm", "-f", "-t", "0", "image")
	p.answers("http://image.test/", "")
	if r := q.labelRoute("off@podman"); r != nil {
		t.Error("a container whose labels are switched off has a route")
	}
}

// A container with a health check gets requests while it is healthy, as users of Traefik know it.
func TestA15_UnhealthyContainersGetNoRequests(t *testing.T) {
	t.Parallel()
	p, socket := newLabelled(t)
	q := p.start(t, fmt.Sprintf("engine: {kind: podman, socket: \"unix://%s\", ports: [80]}\n", socket))
	p.run("run", "-d", "--name", "sane", "--network", "qml", "-p", "127.0.0.1:8303:8080", "-l", enable, "-l", "quaymaster.host=http://sane.test",
		"--health-cmd", `["/web","check",":8080"]`, "--health-retries", "1", "--health-interval", "disable", "--rootfs", p.fs, "/web", ":8080", "sane")
	check := func() {
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		_ = p.command(ctx, p.podman("healthcheck", "run", "sane")...).Run() // its code is what it found
	}
	q.box(t, p, "plain", "http://plain.test") // that it was looked at is known when this one is
	if r := q.labelRoute("sane@podman"); r != nil {
		t.Error("a container has a route before its first health check")
	}
	check()
	p.answers("http://sane.test/", "sane")
	if status, _, _ := p.asked("http://sane.test/sick"); status != 200 {
		t.Fatalf("status %d", status)
	}
	check()
	p.answers("http://sane.test/", "")
	q.troubled("container sane (podman)", "its health check says unhealthy")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return p.dial(ctx, "tcp4", "127.0.0.1:8303")
	}}}
	res, err := client.Get("http://sane/heal")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	check()
	p.answers("http://sane.test/", "sane")
	q.troubled("container sane (podman)", "")
}

// box runs a container with a host and waits until it is served.
func (q *qm) box(t *testing.T, p *podmanOf, name, url string) {
	t.Helper()
	p.box(name, enable, "quaymaster.port=8080", "quaymaster.host="+url)
	p.answers(url+"/", name)
}

// TestA15_ContainerEventsDisturbNobody lets a container pause and go on 25 times, which are 50 events and as many changes
// of routes, while a download and an upgraded connection on another route go on, and an edit keeps its revision.
func TestA15_ContainerEventsDisturbNobody(t *testing.T) {
	t.Parallel()
	p, socket := newLabelled(t)
	q := p.start(t, fmt.Sprintf("engine: {kind: podman, socket: \"unix://%s\", ports: [80]}\nroutes:\n  - {name: base, match: {ports: [80], domains: [base.test]}, action: {targets: [\"127.0.0.1:8304\"]}}\n", socket))
	p.box("base", "-p 127.0.0.1:8304:8080")
	q.box(t, p, "stays", "http://stays.test")
	p.box("busy", enable, "quaymaster.port=8080", "quaymaster.host=http://busy.test")
	p.answers("http://busy.test/", "busy")
	p.answers("http://base.test/", "base")

	open := func(host, path, head string) *bufio.Reader {
		c, err := p.dial(t.Context(), "tcp4", "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, host, head)
		if head != "" {
			go func() {
				for i := 0; t.Context().Err() == nil; i++ {
					if _, err := fmt.Fprintln(c, "echo", i); err != nil {
						return
					}
					<-time.After(10 * time.Millisecond)
				}
			}()
		}
		return bufio.NewReader(c)
	}
	const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
	streams := []*bufio.Reader{open("base.test", "/stream", ""), open("base.test", "/echo", upgrade), open("stays.test", "/stream", ""), open("stays.test", "/echo", upgrade)}
	revision := q.statusOrNil()["config"].(map[string]any)["revision"].(string)

	began := time.Now()
	for range 25 {
		p.run("pause", "busy")
		p.run("unpause", "busy")
	}
	p.answers("http://busy.test/", "busy")
	took := time.Since(began)
	for i, s := range streams { // each must still be the one it was, and go on
		said := false
		for n := 0; n < 200; n++ {
			line, err := s.ReadString('\n')
			if err != nil {
				t.Fatalf("stream %d ended: %v", i, err)
			}
			if n == 0 && !strings.Contains(line, " 200 ") && !strings.Contains(line, " 101 ") {
				t.Fatalf("stream %d: %s", i, line)
			}
			said = said || strings.HasPrefix(line, "echo ")
		}
		if i%2 == 1 && !said {
			t.Errorf("stream %d echoes nothing", i)
		}
	}
	events, _ := exec.Command("curl", "-sN", "-m", "1", "--unix-socket", q.sock, "http://localhost/v1/events?last=1000").Output()
	plans := strings.Count(string(events), "event: config.committed")
	if most := int(took/(100*time.Millisecond)) + 5; plans > most || plans < 3 {
		t.Errorf("%d plans in %v", plans, took)
	}
	t.Logf("50 events in %v made %d plans", took.Round(time.Millisecond), plans)
	res, b, err := q.admin("PUT", "/v1/routes/late", strings.NewReader(`{"match": {"ports": [80], "domains": ["late.test"]}, "action": {"respond": {"body": "x"}}}`), "If-Match", `"`+revision+`"`)
	if err != nil || res.StatusCode != 200 {
		t.Errorf("an edit of the revision from before: %v %s", err, b)
	}
}
