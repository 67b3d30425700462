package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

const devGoProgram = `package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	fmt.Println("hello on stdout")
	fmt.Fprintln(os.Stderr, "hello on stderr")
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "go %s %s %s", r.Host, r.Header.Get("X-Forwarded-Proto"), os.Getenv("QUAYMASTER_URL"))
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(os.Getenv("HOST")+":"+os.Getenv("PORT"), nil))
	os.Exit(1)
}
`

func TestA18_AGoProjectIsThereByItsFolder(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	dir := h.project("My Shop", "go.mod", "module shop\n\ngo 1.21\n", "main.go", devGoProgram)
	p := h.dev(dir, nil)
	at := p.ready("my-shop")
	host := strings.TrimPrefix(at, "https://")
	if !strings.HasPrefix(host, "my-shop.localhost") {
		t.Fatalf("the URL is %s", at)
	}
	p.get(at, "go "+host+" https "+at)
	p.get(p.said(`until then: (http://\S+)`), "go my-shop.localhost")
	p.said(`\S+ trust --socket ` + h.sock())
	if port := portOf(t, at); port != 443 {
		p.said(fmt.Sprintf(`PORT 443 CANNOT BE HAD, so the URL has a port: %s`, at))
	}
	p.said(`my-shop: go run \. \(go\.mod\), port \d+`)
	if !resolves(t.Context(), "my-shop.localhost") {
		p.said(fmt.Sprintf(`curl --resolve my-shop.localhost:%d:127.0.0.1 %s`, portOf(t, at), at))
	}
	if out := p.out.String(); out != "hello on stdout\n" || !strings.Contains(p.err.String(), "\nhello on stderr\n") {
		t.Errorf("the output of the app is not passed on as it is: %q", out)
	}
	p.signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d after Ctrl-C, want 0", code)
	}
	h.nothingLeft()
}

func TestA18_TwoProjectsAtOnce(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	a, b := h.child(h.project("a"), "serve"), h.child(h.project("b"), "serve") // both at the same moment
	atA, atB := a.ready("a"), b.ready("b")
	c := devClient(t, h.sock())
	if devGet(t, c, atA, "pid ") == devGet(t, c, atB, "pid ") {
		t.Error("one app answers for both")
	}
	daemon := h.daemon()
	a.signal(syscall.SIGTERM)
	if code := a.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	until(t, "the first is gone", func() bool { status, _, err := devFetch(c, atA); return err != nil || status != 200 })
	devGet(t, c, atB, "pid ")
	time.AfterFunc(2*leashTail, func() { b.cmd.Process.Signal(syscall.SIGHUP) }) // the daemon has had time to end, if it were to
	<-b.done
	if strings.Contains(b.err.String(), "daemon is gone") || daemon == 0 {
		t.Error("the end of the first has ended the daemon of the second")
	}
	h.nothingLeft()
}

// leashTail is longer than a daemon waits for another project.
const leashTail = 1500 * time.Millisecond

func TestA18_NothingIsLeftHoweverItEnds(t *testing.T) {
	t.Parallel()
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGKILL} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			h := newDevHome(t)
			command, env := devChild(t, "serve")
			// One that leaves its session and its group, and one that has lost its parent.
			script := `setsid sleep 1001 & (sleep 1002 &) ; trap "" HUP; "$@" & wait`
			p := h.dev(h.project("p"), env, append([]string{"--", "sh", "-c", script, "sh"}, command...)...)
			at := p.ready("p")
			p.get(at, "pid ")
			until(t, "the app has started all", func() bool {
				var sleeps int
				for _, pid := range h.left("sleep 100") {
					if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(name) == "sleep\n" {
						sleeps++
					}
				}
				return sleeps == 2
			})
			p.signal(s)
			p.wait()
			h.nothingLeft()
		})
	}
}

func TestA18_AnAppThatIgnoresTERMIsKilled(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	p := h.child(h.project("p"), "family")
	p.ready("p")
	p.signal(syscall.SIGTERM)
	<-time.After(100 * time.Millisecond)
	if len(h.left("TestAppChild")) == 0 {
		t.Error("it was not asked first")
	}
	p.signal(syscall.SIGTERM) // a second one is not patient
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	h.nothingLeft()
}

func TestA18_ATerminal(t *testing.T) {
	t.Parallel()
	app := `[ -t 0 ] && [ -t 1 ] && echo at a terminal; read line; echo heard $line; exec python3 -m http.server -b 127.0.0.1 $PORT`
	t.Run("it is the app's", func(t *testing.T) {
		t.Parallel()
		h := newDevHome(t)
		p, master := h.devAt(h.project("p"), nil, "--", "sh", "-c", app)
		p.said("at a terminal")
		if _, err := master.WriteString("what I say\n"); err != nil {
			t.Fatal(err)
		}
		p.said("heard what I say")
		p.ready("p")
		if _, err := master.WriteString("\x03"); err != nil {
			t.Fatal(err)
		}
		if code := p.wait(); code != 0 {
			t.Errorf("exit code %d after Ctrl-C", code)
		}
		h.nothingLeft()
	})
	t.Run("closed", func(t *testing.T) {
		t.Parallel()
		h := newDevHome(t)
		p, master := h.devAt(h.project("p"), nil, "--", "sh", "-c", `trap "" HUP; python3 -m http.server -b 127.0.0.1 $PORT & wait`)
		p.ready("p")
		if err := master.Close(); err != nil {
			t.Fatal(err)
		}
		p.wait()
		h.nothingLeft()
	})
}

func TestA18_ARunningDaemonIsUsed(t *testing.T) {
	t.Parallel()
	first := freePorts(t, 10)
	q := start(t, fmt.Sprintf("app_ports: %d-%d\n", first, first+9))
	h := newDevHome(t)
	secret := "token-of-the-user-4711"
	command, env := devChild(t, "serve")
	dir := h.project("shop")
	p := h.dev(dir, append(env, "MY_SECRET="+secret), append([]string{"--socket", q.sock, "--"}, command...)...)
	at := p.ready("shop")
	c := devClient(t, q.sock)
	var got []string
	if err := json.Unmarshal([]byte(devGet(t, c, at+"/env", "[")), &got); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(got, "\n"), "MY_SECRET="+secret) {
		t.Error("the app has not got the environment of the person who runs it")
	}
	if len(h.left("run --leashed")) != 0 {
		t.Error("another daemon was started")
	}
	if file := holdsText(t, q.dir, "shop.localhost"); file != "" { // the lease is there by its name
		t.Errorf("%s has the route of a project", file)
	}
	if file := holdsText(t, q.dir, secret); file != "" {
		t.Errorf("%s has what was in the environment", file)
	}
	// Others cannot change what hangs on a leash, nor does what they do keep it.
	if res, b, err := q.admin("PUT", "/v1/routes/dev-shop", strings.NewReader(`{"match": {"ports": [8443]}, "action": {"respond": {"status": 200}}}`), "If-Match", "*"); err != nil || res.StatusCode != 409 || !strings.Contains(string(b), dir) {
		t.Errorf("PUT over a leash: %v %s %v", res, b, err)
	}
	if res, b, err := q.admin("PUT", "/v1/config", strings.NewReader(`{"routes": {}}`), "If-Match", "*"); err != nil || res.StatusCode != 200 {
		t.Errorf("PUT /v1/config: %v %s %v", res, b, err)
	}
	devGet(t, c, at, "pid ")
	p.signal(syscall.SIGKILL)
	p.wait()
	q.until("the route and the lease are gone", func() bool {
		var routes, leases []map[string]any
		q.get("/v1/routes", &routes)
		q.get("/v1/leases", &leases)
		return len(routes) == 0 && len(leases) == 0
	})
	h.nothingLeft()
}

func TestA18_ADaemonThatCrashesIsReplaced(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	p := h.child(h.project("shop"), "serve")
	at := p.ready("shop")
	before := p.get(at, "pid ")
	if err := syscall.Kill(h.daemon(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.said("the daemon is there again")
	if after := p.get(at, "pid "); after != before {
		t.Errorf("%s answers, before the crash it was %s: the app should have gone on", after, before)
	}
	p.signal(syscall.SIGTERM)
	p.wait()
	h.nothingLeft()
}

func TestA18_ThePortInPublicIsTaken(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	p := h.child(h.project("first"), "serve")
	port := portOf(t, p.ready("first"))
	other := newDevHome(t) // another person, who cannot use the daemon of the first
	q := other.child(other.project("second"), "serve")
	at := q.ready("second")
	if portOf(t, at) == port {
		t.Fatalf("%s is at the port of another daemon", at)
	}
	q.said(`PORT 443 CANNOT BE HAD`)
	q.get(at, "pid ")
}

func TestA18_ANameIsGivenOrTaken(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	p := h.child(h.project("one/web"), "serve")
	first := p.ready("web")
	if !strings.HasPrefix(first, "https://web.localhost") {
		t.Errorf("the URL is %s", first)
	}
	t.Run("another folder of that name", func(t *testing.T) {
		q := h.child(h.project("two/web"), "serve")
		at := q.ready("web-2")
		if portOf(t, at) != portOf(t, first) {
			t.Errorf("%s and %s do not share a port", first, at)
		}
		q.said(`web\.localhost is taken .*` + h.dir + `/one/web .*so this one is web-2`)
		if p.get(at, "pid ") == p.get(first, "pid ") {
			t.Error("one app answers for both")
		}
		q.signal(syscall.SIGTERM)
		q.wait()
	})
	t.Run("the same folder", func(t *testing.T) {
		q := h.child(h.dir+"/one/web", "serve")
		if code := q.wait(); code != 1 || !strings.Contains(q.err.String(), "one/web (pid "+fmt.Sprint(p.cmd.Process.Pid)+")") {
			t.Errorf("%d %s", code, q.err)
		}
	})
	t.Run("a name that was said", func(t *testing.T) {
		q := h.child(h.dir+"/one/web", "serve", "api.shop")
		p.get(q.ready("api.shop"), "pid ")
		again := h.child(h.project("three"), "serve", "api.shop.localhost") // which is the same
		if code := again.wait(); code != 1 || !strings.Contains(again.err.String(), "choose another name") {
			t.Errorf("%d %s", code, again.err)
		}
	})
}

func TestA18_WhatCannotBeRunIsSaid(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	for _, c := range []struct {
		name string
		dir  string
		args []string
		code int
		want string
	}{
		{"nothing there", h.project("empty"), nil, 2, "quaymaster dev -- ./server --port '${PORT}'"},
		{"nothing there for a name", h.project("empty"), []string{"shop"}, 2, "quaymaster dev shop -- ./server"},
		{"no main package", h.project("lib", "go.mod", "module x\n", "x.go", "package x\n"), nil, 2, "quaymaster dev -- go run ./cmd/web"},
		{"a manager that is not there", h.project("bun", "package.json", `{"scripts": {"dev": "vite"}}`, "bun.lock", ""), nil, 2, "bun is needed"},
		{"a bad name", h.project("empty"), []string{"My_Shop"}, 2, "such as my-shop"},
		{"a command without dashes", h.project("empty"), []string{"go", "run", "."}, 2, "write -- before a command"},
		{"no such program", h.project("empty"), []string{"--", "no-such-program"}, 1, "no-such-program is not in PATH"},
		{"no such file", h.project("empty"), []string{"--", "./no-such-file"}, 1, "no such file"},
		{"it fails", h.project("fails"), []string{"--", "sh", "-c", "echo because; exit 3"}, 1, "fails has failed after"},
		{"a script that is not installed", h.project("fresh", "Procfile", "web: no-such-vite\n"), nil, 1, "did not find a program"},
		{"it ends well", h.project("task"), []string{"--", "true"}, 0, "task has ended after"},
	} {
		p := h.dev(c.dir, nil, c.args...)
		if code := p.wait(); code != c.code || !strings.Contains(p.err.String(), c.want) {
			t.Errorf("%s: exit code %d, want %d, and %q in\n%s", c.name, code, c.code, c.want, p.err)
		}
	}
	h.nothingLeft()
}

func TestA18_AGitWorktreeHasItsBranchInFront(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("git"); err != nil && os.Getenv("CI") == "" {
		t.Skip("git is not installed")
	}
	h := newDevHome(t)
	dir := h.project("shop", "x", "")
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=x", "-c", "user.email=x@x"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("init", "-q")
	git("add", "x")
	git("commit", "-qm", "x")
	git("worktree", "add", "-qb", "feature/Login", h.dir+"/elsewhere")
	p, q := h.child(dir, "serve"), h.child(h.dir+"/elsewhere", "serve")
	one, two := p.ready("shop"), q.ready("feature-login.shop")
	if !strings.HasPrefix(two, "https://feature-login.shop.localhost") || p.get(one, "pid ") == p.get(two, "pid ") {
		t.Errorf("%s and %s", one, two)
	}
}

func TestA18_AProcfileSideBySide(t *testing.T) {
	t.Parallel()
	command, env := devChild(t, "serve")
	proc := "web: " + strings.Join(command, " ") + "\njob: echo $(printf '\\033[31m')from the job; echo to stderr >&2; exec sleep 1000\napi: " + strings.Join(command, " ") + "\n"
	t.Run("without a terminal there are no colours", func(t *testing.T) {
		t.Parallel()
		h := newDevHome(t)
		p := h.dev(h.project("shop", "Procfile", proc), env)
		web, api := p.ready("web"), p.ready("api")
		if !strings.HasPrefix(web, "https://shop.localhost") || !strings.HasPrefix(api, "https://api.shop.localhost") {
			t.Errorf("%s and %s", web, api)
		}
		if p.get(web, "pid ") == p.get(api, "pid ") {
			t.Error("one answers for both")
		}
		p.said(`(?m)^job +\| to stderr$`)
		until(t, "its output", func() bool {
			return strings.Contains(p.out.String(), "job        | from the job\n") && strings.Contains(p.out.String(), "web        | now listening\n")
		})
		if strings.Contains(p.out.String()+p.err.String(), "\x1b") {
			t.Errorf("colours without a terminal: %q", p.out)
		}
		p.signal(syscall.SIGINT)
		if code := p.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		h.nothingLeft()
	})
	t.Run("at a terminal", func(t *testing.T) {
		t.Parallel()
		h := newDevHome(t)
		dir := h.project("shop", "Procfile", proc)
		p, _ := h.devAt(dir, env)
		p.said(`\x1b\[\d+mjob +\|\x1b\[0m .*from the job`)
		q, _ := h.devAt(dir, append(env, "NO_COLOR=1"), "other")
		q.said(`(?m)^job +\| from the job`)
		if strings.Contains(q.err.String(), "\x1b[3") {
			t.Errorf("NO_COLOR does not count: %q", q.err)
		}
	})
	t.Run("one that fails ends all", func(t *testing.T) {
		t.Parallel()
		h := newDevHome(t)
		p := h.dev(h.project("shop", "Procfile", "web: "+strings.Join(command, " ")+"\nbad: while [ ! -e go ]; do sleep 0.02; done; exit 9\ndone: true\n"), env)
		p.said("done has ended after")
		h.project("shop", "go", "")
		if code := p.wait(); code != 1 || !strings.Contains(p.err.String(), "bad has failed after") || !strings.Contains(p.err.String(), "exit code 9") {
			t.Errorf("%d %s", code, p.err)
		}
		h.nothingLeft()
	})
}

func TestA18_TheAppsOfAFileAndItsChanges(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	command, env := devChild(t, "serve")
	line, _ := json.Marshal(command)
	entry := func(name, word, more string) string {
		return fmt.Sprintf("  %s: {command: %s, env: {WORD: %s, WHERE: \"${QUAYMASTER_URL}\"}%s}\n", name, line, word, more)
	}
	dir := h.project("shop", "quaymaster.yaml", "sites: {shop.example.com: app:web}\napps:\n"+entry("web", "one", ", depends_on: [api]")+entry("api", "one", ""))
	p := h.dev(dir, env)
	web := p.ready("web")
	if i, j := strings.Index(p.err.String(), "api is ready"), strings.Index(p.err.String(), "web: "+command[0]); i < 0 || j < i {
		t.Errorf("web has not waited for api:\n%s", p.err)
	}
	c := devClient(t, h.sock())
	got := devGet(t, c, web+"/env", "[")
	if !strings.Contains(got, `"WORD=one"`) || !strings.Contains(got, `"WHERE=`+web+`"`) {
		t.Errorf("its environment is %s", got)
	}
	pid := devGet(t, c, web, "pid ")
	api := p.ready("api")
	h.project("shop", "quaymaster.yaml", "apps:\n"+entry("web", "one", ", depends_on: [api]")+entry("api", "two", "")+entry("more", "three", ""))
	p.ready("more")
	until(t, "api is another", func() bool {
		_, body, err := devFetch(c, api+"/env")
		return err == nil && strings.Contains(body, `"WORD=two"`)
	})
	if now := devGet(t, c, web, "pid "); now != pid {
		t.Errorf("web was started again: %s, before %s", now, pid)
	}
	h.project("shop", "quaymaster.yaml", "apps:\n  web: {nonsense: 1}\n")
	p.said(`quaymaster.yaml is not followed, all goes on as it was: .*nonsense`)
	h.project("shop", "quaymaster.yaml", "apps:\n"+entry("web", "one", ""))
	p.said("api is gone")
	p.signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	h.nothingLeft()
}

func TestA18_WebSocketsOfHotReloadWorkThroughHTTPS(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	p := h.child(h.project("shop"), "serve")
	at := p.ready("shop")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, strings.Replace(at, "https", "wss", 1)+"/ws", &websocket.DialOptions{HTTPClient: devClient(t, h.sock())})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Error(err)
	}
	_ = c.CloseNow()
}

func TestA18_AnUpgradeOfTheDaemonIsFollowed(t *testing.T) {
	t.Parallel()
	first := freePorts(t, 10)
	q := start(t, fmt.Sprintf("app_ports: %d-%d\n", first, first+9))
	h := newDevHome(t)
	command, env := devChild(t, "serve")
	p := h.dev(h.project("shop"), env, append([]string{"--socket", q.sock, "--"}, command...)...)
	at := p.ready("shop")
	c := devClient(t, q.sock)
	pid := devGet(t, c, at, "pid ")
	if out, code := q.cli("upgrade"); code != 0 {
		t.Fatalf("upgrade: %d %s", code, out)
	}
	t.Cleanup(func() { _, _ = q.cli("stop") })
	p.said("the daemon is there again")
	if now := devGet(t, c, at, "pid "); now != pid {
		t.Errorf("%s answers, before the upgrade it was %s", now, pid)
	}
	p.signal(syscall.SIGTERM)
	p.wait()
	q.until("the routes are gone", func() bool {
		var routes []map[string]any
		q.get("/v1/routes", &routes)
		return len(routes) == 0
	})
}

func TestA18_ADaemonOfAnotherUserIsLeftAlone(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("it takes two users")
	}
	first := freePorts(t, 10)
	q := start(t, fmt.Sprintf("app_ports: %d-%d\n", first, first+9))
	if err := os.Chmod(q.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := newDevHome(t)
	dir := h.project("shop", "quaymaster.yaml", "admin: {socket: "+q.sock+"}\n")
	own := exec.Command("chown", "-R", "nobody", h.dir)
	if out, err := own.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program := t.TempDir() // that nobody can run
	for at := program; at != "/tmp" && at != "/"; at = filepath.Dir(at) {
		_ = os.Chmod(at, 0o755)
	}
	if out, err := exec.Command("cp", binary, program+"/quaymaster").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p := &devProc{t: t, h: h, out: &lockedBuffer{}, err: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd = exec.Command("setpriv", "--reuid", "nobody", "--clear-groups", program+"/quaymaster", "dev", "--", "sh", "-c", "exec python3 -m http.server -b 127.0.0.1 $PORT")
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = dir, h.env(), p.out, p.err
	p.start()
	at := p.ready("shop")
	p.said("the daemon at " + q.sock + " is another user's")
	p.said("sudo " + program + "/quaymaster trust --socket")
	p.get(at, "<!DOCTYPE")
	p.signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	h.nothingLeft()
}

func TestA18_AnAppAtTheOtherLoopbackAddress(t *testing.T) {
	t.Parallel()
	if !hasIPv6() {
		t.Skip("there is no ::1")
	}
	h := newDevHome(t)
	p := h.dev(h.project("shop"), nil, "--", "python3", "-m", "http.server", "--bind", "::1", "${PORT}")
	p.get(p.ready("shop"), "<!DOCTYPE")
}

func TestA18_APortThatSomebodyTookMeanwhileIsLeft(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	command, env := devChild(t, "serve")
	// Somebody else takes the port between its lease and the moment when the app wants it.
	other := exec.Command("python3", "-c", "import socket,sys,time\nfor l in sys.stdin:\n s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('127.0.0.1', int(l))); s.listen(); print('on', flush=True)")
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := &lockedBuffer{}
	other.Stdout, other.Stderr = said, said
	other.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = other.Process.Kill(); _ = other.Wait() })
	dir := h.project("shop")
	wait := `echo $PORT > port.new; mv port.new port; [ -e again ] || { touch again; while [ ! -e go ]; do sleep 0.02; done; }; exec "$@"`
	p := h.dev(dir, env, append([]string{"--", "sh", "-c", wait, "sh"}, command...)...)
	until(t, "it has its port", func() bool { _, err := os.Stat(dir + "/port"); return err == nil })
	port, err := os.ReadFile(dir + "/port")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(port); err != nil {
		t.Fatal(err)
	}
	until(t, "somebody else has it", func() bool { return strings.Contains(said.String(), "on") })
	h.project("shop", "go", "")
	p.said("port " + strings.TrimSpace(string(port)) + ` is taken \(.*python3.*\), so shop is started again on port \d+`)
	p.get(p.ready("shop"), "pid ")
}

// viteLike is a server that behaves as Vite does: it does not know PORT, and it refuses hosts but those of this machine.
const viteLike = `#!/usr/bin/env python3
import argparse, http.server, os
p = argparse.ArgumentParser()
p.add_argument("--port", type=int, default=5173); p.add_argument("--host", default="localhost"); p.add_argument("--strictPort", action="store_true")
a = p.parse_args()
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        host = self.headers["Host"].split(":")[0]
        self.send_response(200 if host.endswith(".localhost") else 403); self.end_headers(); self.wfile.write(b"like vite")
    def log_message(self, *a): pass
http.server.HTTPServer((a.host, a.port), H).serve_forever()
`

func TestA18_AServerThatIgnoresPORTGetsItsFlags(t *testing.T) {
	t.Parallel()
	h := newDevHome(t)
	dir := h.project("shop", "node_modules/.bin/vite", viteLike)
	p := h.dev(dir, nil, "--", "./node_modules/.bin/vite")
	p.said(`vite --port \d+ --strictPort --host 127\.0\.0\.1`)
	p.get(p.ready("shop"), "like vite")
}

func TestA18_AnAppThatListensElsewhereIsTold(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	command, env := devChild(t, "serve")
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(append(os.Environ(), env...), fmt.Sprintf("PORT=%d", port))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	until(t, "it listens", func() bool { return inode(t, port) != 0 })
	a := &devApp{label: "web"}
	if text := a.slow(port+1, cmd.Process.Pid); !strings.Contains(text, fmt.Sprintf("web listens on %d, not on %d: add --port '${PORT}'", port, port+1)) {
		t.Error(text)
	}
}
