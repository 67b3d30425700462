//go:build linux

package main

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
)

// One container from its start to its removal: what the engine is told, what the app is given and says, and that a stop
// leaves nothing behind.
func TestA15_AppInAContainer(t *testing.T) {
	t.Parallel()
	p := newBoxes(t, 0)
	body := p.engine() + boxPorts + "apps:\n" + boxEntry("web", "long", "command: [\"--port\", \"${PORT}\"]", "container_port: 3000", "user: \"1234\"",
		"ready: {http: /}", "limits: {memory: 96MiB, cpu: 0.5}") + appSites(boxPort, "web")
	q := prepare(t, body)
	p.runs(q)
	a := q.appIs("web", "ready")
	box := p.inspect("quaymaster-web")
	h := box.HostConfig
	if a.Container != box.ID || a.Port < 32100 || a.Port > 32119 || a.PID != 0 {
		t.Errorf("%+v", a)
	}
	if l := box.Config.Labels; l["io.quaymaster.app"] != "web" || l["io.quaymaster.owner"] == "" || l["io.quaymaster.state"] != q.dir+"/state" {
		t.Errorf("labels %v", l)
	}
	if h.Memory != 96<<20 || h.NanoCpus != 5e8 || h.RestartPolicy.Name != "" && h.RestartPolicy.Name != "no" {
		t.Errorf("%+v", h)
	}
	if b := h.PortBindings["3000/tcp"]; len(b) != 1 || b[0].HostIP != "127.0.0.1" || b[0].HostPort != fmt.Sprint(a.Port) {
		t.Errorf("published %v, port %d", h.PortBindings, a.Port)
	}
	if got := p.mustAsk(boxPort, "web.test", "/user"); got != "1234" {
		t.Errorf("it runs as %s", got)
	}
	env := strings.Split(p.mustAsk(boxPort, "web.test", "/env"), "\n")
	for _, want := range []string{"PORT=3000", "HOST=0.0.0.0", fmt.Sprintf("QUAYMASTER_URL=http://web.test:%d", boxPort), "QM_BOX=long"} {
		if !slices.Contains(env, want) {
			t.Errorf("no %s in %q", want, env)
		}
	}
	q.until("it has memory", func() bool { return q.app("web").Memory > 0 })
	var lines []string
	long := ""
	q.until("its lines are there", func() bool {
		lines, long = nil, ""
		for _, l := range q.said("web", "lines=1000") {
			lines = append(lines, l.Stream+" "+l.Text)
			if strings.Contains(l.Text, "xxx") {
				long += l.Text
			}
		}
		return strings.HasSuffix(long, " end")
	})
	if !slices.Contains(lines, "stdout hello --port 3000") || !slices.Contains(lines, "stderr on stderr") {
		t.Errorf("lines %.100q", lines)
	}
	if long != strings.Repeat("x", 100000)+" end" {
		t.Errorf("a long line came as %d bytes", len(long))
	}
	if out, code := q.cli("apps", "stop", "web"); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	if got := p.names(); got != "" {
		t.Errorf("left behind: %s", got)
	}
	if s := q.app("web"); s.State != "stopped" || s.LastExit == nil || s.LastExit.Reason != "exit code 0" {
		t.Errorf("%+v", s)
	}
	if last := q.said("web", "lines=20"); !slices.ContainsFunc(last, func(l api.AppLine) bool { return l.Text == "last words" }) {
		t.Errorf("its last words are not among %v", last)
	}
	if out, code := q.cli("apps", "start", "web"); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	if again := q.appIs("web", "ready"); again.Port != a.Port || again.Container == a.Container {
		t.Errorf("before %+v\nafter  %+v", a, again)
	}
	p.signals(q, "TERM")
	if code := q.wait(20 * time.Second); code != 0 || p.names() != "" {
		t.Errorf("a stop of quaymaster: exit %d, left behind: %s", code, p.names())
	}
}

// What happens to a container without us is noticed, told in its own words, and followed by a start.
func TestA15_EndsOfContainersAreNoticed(t *testing.T) {
	t.Parallel()
	p := newBoxes(t, 0)
	q := prepare(t, p.engine()+boxPorts+"apps:\n"+boxEntry("web", "", "restart: {backoff: 50ms, max: 20}", "limits: {memory: 64MiB}")+
		boxEntry("deaf", "stubborn", "stop: {timeout: 300ms}")+
		boxEntry("lost", "elsewhere", "ready: {timeout: 3s}", "restart: {policy: \"no\"}")+
		boxEntry("lazy", "", "start: on_request", "idle_stop: 1h")+
		appSites(boxPort, "web", "lazy"))
	p.runs(q)
	t.Run("removed by somebody else", func(t *testing.T) {
		was := q.appIs("web", "ready")
		p.run("rm", "-f", "-t", "0", "quaymaster-web")
		p.replaced(q, was.Container, "its container was removed by somebody else")
	})
	t.Run("exit code", func(t *testing.T) {
		was := q.appIs("web", "ready")
		_, _, _ = p.ask(boxPort, "web.test", "/die?7", nil)
		p.replaced(q, was.Container, "exit code 7")
	})
	t.Run("signal, while paused", func(t *testing.T) {
		was := q.appIs("deaf", "ready")
		p.run("pause", "quaymaster-deaf")
		if out, code := q.cli("apps", "restart", "deaf"); code != 0 {
			t.Fatalf("%d %s", code, out)
		}
		if now := q.appIs("deaf", "ready"); now.Container == was.Container || now.LastExit == nil || now.LastExit.Reason != "signal 9 (killed)" {
			t.Errorf("%+v", now)
		}
	})
	t.Run("memory", func(t *testing.T) {
		was := q.appIs("web", "ready")
		if _, body, _ := p.ask(boxPort, "web.test", "/hog", nil); body == "nobody minds" {
			t.Skip("LOUD SKIP: the control groups of this machine do not bound the memory of containers")
		}
		now := p.replaced(q, was.Container, "")
		if r := now.LastExit.Reason; r != "killed: out of memory" && r != "signal 9 (killed)" { // not every engine knows why
			t.Errorf("last exit %s", r)
		}
	})
	t.Run("listens elsewhere", func(t *testing.T) {
		if now := q.appIs("lost", "backing-off"); !strings.Contains(now.Reason, fmt.Sprintf("lost listens on 5173, not on %d: set container_port", now.Port)) {
			t.Errorf("%+v", now)
		}
	})
	t.Run("on request", func(t *testing.T) {
		if a := q.app("lazy"); a.State != "sleeping" {
			t.Errorf("%+v", a)
		}
		if got := p.mustAsk(boxPort, "lazy.test", "/"); !strings.HasPrefix(got, "box ") {
			t.Errorf("%q", got)
		}
	})
}

// replaced waits until web is ready in another container, for that reason.
func (p *boxes) replaced(q *qm, before, reason string) api.App {
	p.t.Helper()
	var now api.App
	q.until("another one is ready", func() bool { now = q.app("web"); return now.State == "ready" && now.Container != before })
	if now.LastExit == nil || reason != "" && now.LastExit.Reason != reason {
		p.t.Errorf("%+v %+v, want %s", now, now.LastExit, reason)
	}
	return now
}

// A container outlives a crash and an upgrade of quaymaster, and no line of it is lost or comes twice.
func TestA15_ContainersAreFoundAgain(t *testing.T) {
	t.Parallel()
	p := newBoxes(t, 0)
	q := prepare(t, p.engine()+boxPorts+"apps:\n"+boxEntry("web", "ticks", "logs: {lines: 100000}")+appSites(boxPort, "web"))
	p.runs(q)
	a := q.appIs("web", "ready")
	q.goesOn("web", 10)
	same := func(t *testing.T) {
		t.Helper()
		now := q.appIs("web", "ready")
		if now.Container != a.Container || now.Port != a.Port || now.Restarts != 0 || p.names() != "quaymaster-web" {
			t.Errorf("%+v, containers %s; before %+v", now, p.names(), a)
		}
		p.mustAsk(boxPort, "web.test", "/")
		q.goesOn("web", q.ticks("web"))
	}
	t.Run("kill -9", func(t *testing.T) {
		p.kill9(q)
		<-time.After(300 * time.Millisecond) // it talks on
		p.runs(q)
		same(t)
	})
	t.Run("upgrade", func(t *testing.T) {
		before := q.pid()
		if out, code := q.cli("upgrade"); code != 0 || q.pid() == before {
			t.Fatalf("%d %s", code, out)
		}
		same(t)
	})
	t.Run("beside another quaymaster", func(t *testing.T) {
		other := prepare(t, p.engine()+boxPorts+"apps:\n"+boxEntry("web", "")+boxEntry("own", ""))
		p.runs(other)
		other.appIs("own", "ready")
		if got := other.appIs("web", "failed"); !strings.Contains(got.Reason, "of another quaymaster, with state folder "+q.dir+"/state") {
			t.Errorf("%+v", got)
		}
		p.signals(other, "TERM")
		if code := other.wait(20 * time.Second); code != 0 {
			t.Errorf("exit %d", code)
		}
		same(t)
	})
	t.Run("ended meanwhile", func(t *testing.T) {
		p.kill9(q)
		p.run("kill", "-s", "KILL", "quaymaster-web")
		p.runs(q)
		now := q.appIs("web", "ready")
		if now.Container == a.Container || now.LastExit == nil || now.LastExit.Reason != "signal 9 (killed)" || p.names() != "quaymaster-web" {
			t.Errorf("%+v %+v, containers %s", now, now.LastExit, p.names())
		}
	})
}

// An engine that is away ends no app: its state is unknown, with the reason, requests go on, and it is found again.
func TestA15_EngineThatIsAwayAndComesBack(t *testing.T) {
	t.Parallel()
	p := newBoxes(t, 0)
	q := prepare(t, p.engine()+boxPorts+"apps:\n"+boxEntry("web", "ticks", "logs: {lines: 100000}")+boxEntry("lazy", "", "start: on_request")+appSites(boxPort, "web", "lazy"))
	p.runs(q)
	a := q.appIs("web", "ready")
	p.end()
	if now := q.appIs("web", "unknown"); !strings.Contains(now.Reason, "container engine at "+p.socket) {
		t.Errorf("%+v", now)
	}
	p.mustAsk(boxPort, "web.test", "/")
	if status, _, err := p.ask(boxPort, "lazy.test", "/", nil); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("an app that cannot be started: %d %v", status, err)
	}
	if now := q.appIs("lazy", "unknown"); !strings.Contains(now.Reason, p.socket) {
		t.Errorf("%+v", now)
	}
	t.Run("quaymaster begins meanwhile", func(t *testing.T) {
		p.kill9(q)
		p.runs(q)
		q.appIs("web", "unknown")
		q.until("requests go on", func() bool {
			status, _, err := p.ask(boxPort, "web.test", "/", nil)
			return err == nil && status == 200
		})
	})
	p.serve()
	now := q.appIs("web", "ready")
	if now.Container != a.Container || now.Port != a.Port || now.Restarts != 0 {
		t.Errorf("before %+v\nafter  %+v", a, now)
	}
	q.goesOn("web", q.ticks("web"))
	if got := p.names(); got != "quaymaster-web" {
		t.Errorf("containers %s", got)
	}
	p.mustAsk(boxPort, "lazy.test", "/")
}

// A changed entry is started beside the one that serves, under another name, and no request fails. The entry is that of the
// example.
func TestA15_ChangedEntryTakesOver(t *testing.T) {
	t.Parallel()
	p := newBoxes(t, 0)
	example, err := os.ReadFile("../../examples/containers.yaml")
	if err != nil {
		t.Fatal(err)
	}
	body := func(how string) string {
		return strings.NewReplacer("localhost/web:1", boxImage, "pull: missing}", "socket: \""+p.socket+"\", pull: never}", "NODE_ENV: production", "QM_BOX: "+how).Replace(string(example))
	}
	const host = "web.localhost"
	q := prepare(t, body("one"))
	p.runs(q)
	p.mustAsk(boxPort, host, "/") // it is started by that
	a := q.appIs("web", "ready")
	quit := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
			}
			if status, answer, err := p.ask(boxPort, host, "/", nil); err != nil || status != 200 {
				t.Errorf("%d %q %v", status, answer, err)
			}
		}
	})
	q.reload(body("two"))
	q.until("the new one serves alone", func() bool {
		return q.app("web").Container != a.Container && p.names() == "quaymaster-web.2"
	})
	close(quit)
	load.Wait()
	if env := p.mustAsk(boxPort, host, "/env"); !strings.Contains(env, "QM_BOX=two") {
		t.Errorf("%q", env)
	}
	q.reload(body("one"))
	q.until("the name is free again", func() bool { return p.names() == "quaymaster-web" })
	q.reload("")
	q.until("what is out of the configuration is removed", func() bool { return p.names() == "" })
}
