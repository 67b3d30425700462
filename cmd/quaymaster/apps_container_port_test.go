//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// A port that is taken between our letting go of it and the engine's binding it: the half-made container goes, another port
// is taken, and the app is up. Other refusals are shown in the engine's words, and no port is changed for them.
func TestA19_EngineRefusesThePort(t *testing.T) {
	t.Parallel()
	p := newBoxes(t, 0)
	python := tool(t, "python3")
	p.image("localhost/broken:1", "FROM scratch\nCOPY box /box\nENTRYPOINT [\"/nothing\"]\n")
	q := prepare(t, p.engine()+boxPorts+"apps:\n"+boxEntry("web", "", "start: on_request")+
		strings.Replace(boxEntry("broken", "", "start: on_request", "restart: {max: 2, backoff: 10ms}"), boxImage, "localhost/broken:1", 1)+appSites(boxPort, "web", "broken"))
	p.runs(q)
	p.mustAsk(boxPort, "web.test", "/")
	if out, code := q.cli("apps", "stop", "web"); code != 0 || q.app("web").Port != 32100 { // which is held by us now
		t.Fatalf("%d %s", code, out)
	}
	trying := p.dir + "/trying"
	p.spawn(nil, python, "-c", "import socket, time\ns = socket.socket()\nwhile True:\n  try:\n    s.bind(('127.0.0.1', 32100)); break\n"+
		"  except OSError: open('"+trying+"', 'w'); time.sleep(0.001)\ns.listen()\ntime.sleep(3600)")
	until(t, "somebody waits for the port", func() bool { _, err := os.Stat(trying); return err == nil })
	if out, code := q.cli("apps", "start", "web"); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	if a := q.appIs("web", "ready"); a.Port != 32101 || p.names() != "quaymaster-web" || a.Restarts != 0 {
		t.Errorf("%+v, containers %s", a, p.names())
	}
	if log := q.log.String(); !strings.Contains(log, `"app goes to another port","component":"apps","app":"web","port":32100,"reason":"port 32100 is taken by `) || !strings.Contains(log, "python3") ||
		!strings.Contains(log, `"msg":"port busy","component":"leases","port":":32100"`) {
		t.Errorf("the log does not say who has the port")
	}
	_, _, _ = p.ask(boxPort, "broken.test", "/", nil)
	a := q.appIs("broken", "crash-looping")
	if !strings.Contains(a.Reason, "/nothing") || !strings.Contains(a.Reason, "no such file or directory") || p.names() != "quaymaster-web" {
		t.Errorf("%+v, containers %s", a, p.names())
	}
	if strings.Contains(q.log.String(), `"app goes to another port","component":"apps","app":"broken"`) {
		t.Error("another port is tried for what no port can help")
	}
}

// Containers that were left behind, in every state, go before a start, and their port is the app's again. What is not ours
// is named, and left alone.
func TestA20_LeftoverContainers(t *testing.T) {
	t.Parallel()
	p := newBoxes(t, 0)
	q := prepare(t, p.engine()+boxPorts+"apps:\n"+boxEntry("web", "", "start: on_request")+appSites(boxPort, "web"))
	p.runs(q)
	p.mustAsk(boxPort, "web.test", "/")
	first := q.appIs("web", "ready")
	if out, code := q.cli("apps", "stop", "web"); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	owner, err := os.ReadFile(q.dir + "/state/owner")
	if err != nil {
		t.Fatal(err)
	}
	ours := []string{"--label", "io.quaymaster.app=web", "--label", "io.quaymaster.owner=" + strings.TrimSpace(string(owner)), "--env", "PORT=80"}
	made := func(args ...string) string {
		t.Helper()
		return p.run(append(append(args, ours...), boxImage)...)
	}
	published := fmt.Sprintf("127.0.0.1:%d:80", first.Port)
	for _, state := range []string{"created", "exited", "paused", "running"} {
		t.Run(state, func(t *testing.T) {
			if out, code := q.cli("apps", "stop", "web"); code != 0 {
				t.Fatalf("%d %s", code, out)
			}
			switch state {
			case "created":
				made("create", "--name", "quaymaster-web")
			case "exited":
				made("run", "--name", "quaymaster-web", "--env", "QM_BOX=crash", "-d")
				p.run("wait", "quaymaster-web")
			default: // with a daemon that was killed in between, so that nobody held the port
				p.kill9(q)
				made("run", "--name", "quaymaster-web", "-d", "-p", published)
				if state == "paused" {
					p.run("pause", "quaymaster-web")
				}
				p.runs(q)
			}
			left := p.inspect("quaymaster-web")
			if left.State.Status != state {
				t.Fatalf("it is %s", left.State.Status)
			}
			if out, code := q.cli("apps", "start", "web"); code != 0 {
				t.Fatalf("%d %s", code, out)
			}
			if a := q.appIs("web", "ready"); a.Port != first.Port || a.Container == left.ID || p.names() != "quaymaster-web" {
				t.Errorf("%+v, containers %s", a, p.names())
			}
		})
	}
	for whose, label := range map[string]string{"not one of quaymaster's": "other=1", "of another quaymaster": "io.quaymaster.owner=another"} {
		t.Run(whose, func(t *testing.T) {
			if out, code := q.cli("apps", "stop", "web"); code != 0 {
				t.Fatalf("%d %s", code, out)
			}
			id := p.run("run", "-d", "--name", "quaymaster-web", "--label", label, "--label", "io.quaymaster.app=web", "--env", "PORT=80", boxImage)
			if label == "other=1" {
				p.run("rm", "-f", "-t", "0", "quaymaster-web")
				id = p.run("run", "-d", "--name", "quaymaster-web", "--label", label, "--env", "PORT=80", boxImage)
			}
			out, _ := q.cli("apps", "start", "web")
			a := q.app("web")
			if a.State != "failed" || !strings.Contains(a.Reason, "has a container quaymaster-web already, which is "+whose) || !strings.Contains(a.Reason, "podman rm -f quaymaster-web") {
				t.Errorf("%+v\n%s", a, out)
			}
			if box := p.inspect("quaymaster-web"); box.ID != id || box.State.Status != "running" {
				t.Errorf("it is %+v", box.State)
			}
			p.run("rm", "-f", "-t", "0", "quaymaster-web")
		})
	}
}

// An image that is missing is named before anything is started, with what to do.
func TestA16_ImageThatIsMissing(t *testing.T) {
	t.Parallel()
	p := newBoxes(t, 0)
	missing := "  web: {image: localhost/nothing:1, env_required: [API_TOKEN]}\n"
	q := prepare(t, p.engine()+boxPorts+"apps:\n"+missing+boxEntry("needy", "", "env_required: [API_TOKEN]"))
	p.runs(q)
	want := "there is no image localhost/nothing:1 in podman at " + p.socket + "; build it (podman build -t localhost/nothing:1 .)"
	if a := q.appIs("web", "failed"); !strings.Contains(a.Reason, want) {
		t.Errorf("%s", a.Reason)
	}
	if a := q.appIs("needy", "failed"); !strings.Contains(a.Reason, "API_TOKEN is not set; set it under env, or in the image") {
		t.Errorf("%s", a.Reason)
	}
	q.reload(p.engine() + boxPorts + "apps:\n" + boxEntry("fine", ""))
	q.appIs("fine", "ready")
	q.write(p.engine() + boxPorts + "apps:\n" + boxEntry("fine", "other") + missing)
	if out, code := q.cli("reload"); code != 1 || !strings.Contains(out, want) {
		t.Errorf("reload: %d %s", code, out)
	}
	if env := q.app("fine"); env.State != "ready" || p.names() != "quaymaster-fine" {
		t.Errorf("%+v, containers %s", env, p.names())
	}
	// Where it may be fetched, that is tried, and the engine says why it cannot be.
	q.reload(strings.Replace(p.engine(), "never", "missing", 1) + boxPorts + "apps:\n  far: {image: \"127.0.0.1:1/nothing:1\", restart: {max: 1}}\n")
	if a := q.appIs("far", "crash-looping"); !strings.Contains(a.Reason, "there is no image 127.0.0.1:1/nothing:1 in podman at") || !strings.Contains(a.Reason, "connection refused") {
		t.Errorf("%s", a.Reason)
	}
}

// An engine that takes questions and never answers costs its own apps, and nobody else, anything.
func TestA15_EngineThatHangsHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	socket := t.TempDir() + "/e.sock"
	l, err := net.Listen("unix", socket) // its queue takes all who come
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first := freePorts(t, 4)
	body := fmt.Sprintf("engine: {socket: %q}\napp_ports: %d-%d\napps:\n", socket, first, first+3) + appEntry(t, "web", "serve")
	q := startApps(t, body+boxEntry("boxed", ""))
	q.appIs("web", "ready") // while the engine is being asked
	if out, code := q.cli("apps", "restart", "web"); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	start := time.Now()
	q.write(body + boxEntry("boxed", "") + boxEntry("other", "") + boxEntry("third", ""))
	if out, code := q.cli("reload"); code != 1 || !strings.Contains(out, "container engine at "+socket) || time.Since(start) > 15*time.Second {
		t.Errorf("reload: %d after %v: %s", code, time.Since(start), out)
	}
	if a := q.appIs("boxed", "unknown"); !strings.Contains(a.Reason, "no answer within 5s") {
		t.Errorf("%+v", a)
	}
	if a := q.app("web"); a.State != "ready" {
		t.Errorf("%+v", a)
	}
}
