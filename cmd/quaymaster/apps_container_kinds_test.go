//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/engine"
)

// Without root: the podman of a user, with its own helpers, and a quaymaster that is that user.
func TestA15_ContainersWithoutRoot(t *testing.T) {
	t.Parallel()
	tool(t, "slirp4netns")
	tool(t, "newuidmap")
	p := newBoxes(t, netUser)
	q := prepare(t, p.engine()+boxPorts+"apps:\n"+boxEntry("web", "ticks", "logs: {lines: 100000}")+boxEntry("lost", "elsewhere", "ready: {timeout: 2s}", "restart: {policy: \"no\"}")+appSites(boxPort, "web"))
	p.runs(q)
	a := q.appIs("web", "ready")
	p.outlives(q, a)
	p.run("rm", "-f", "-t", "0", "quaymaster-web")
	p.replaced(q, a.Container, "its container was removed by somebody else")
	for _, name := range []string{"web", "lost"} {
		if out, code := q.cli("apps", "stop", name); code != 0 {
			t.Fatalf("%d %s", code, out)
		}
	}
	if got := p.names(); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

// The same with docker.
func TestA15_ContainersOfDocker(t *testing.T) {
	t.Parallel()
	p := newPodman(t, 0) // for the place
	socket := p.docker()
	docker, err := engine.Open(socket, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = docker.Close() })
	all := func() []container.Summary {
		t.Helper()
		list, err := docker.ContainerList(context.Background(), client.ContainerListOptions{All: true})
		if err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	t.Cleanup(func() { // with their groups
		for _, c := range all() {
			_, _ = docker.ContainerRemove(context.Background(), c.ID, client.ContainerRemoveOptions{Force: true})
		}
	})
	files := t.TempDir()
	writeFile(t, files+"/box", box.binary(t), 0o755)
	image, err := exec.Command("tar", "-C", files, "-c", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	made, err := docker.ImageImport(t.Context(), client.ImageImportSource{Source: bytes.NewReader(image), SourceName: "-"}, boxImage,
		client.ImageImportOptions{Changes: []string{`ENTRYPOINT ["/box"]`}})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, made)
	_ = made.Close()
	q := prepare(t, "engine: {kind: docker, socket: \""+socket+"\"}\n"+boxPorts+"apps:\n"+
		boxEntry("web", "ticks", "logs: {lines: 100000}", "limits: {memory: 64MiB, nofile: 512}", "restart: {backoff: 10ms}")+
		boxEntry("lost", "elsewhere", "ready: {timeout: 2s}", "restart: {policy: \"no\"}")+appSites(boxPort, "web"))
	p.runs(q)
	a := q.appIs("web", "ready")
	box, err := docker.ContainerInspect(t.Context(), "quaymaster-web", client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if h := box.Container.HostConfig; len(h.Ulimits) != 1 || h.Ulimits[0].Soft != 512 || h.Memory != 64<<20 || h.LogConfig.Config["max-size"] != "10m" {
		t.Errorf("%+v", h)
	}
	p.outlives(q, a)
	hog := func() bool { _, body, _ := p.ask(boxPort, "web.test", "/hog", nil); return body == "nobody minds" }
	if hog() {
		t.Log("LOUD: the control groups of this machine do not bound the memory of containers")
	} else {
		q.until("it is started again", func() bool { now := q.app("web"); return now.State == "ready" && now.Container != a.Container })
		if now := q.app("web"); now.LastExit == nil || now.LastExit.Reason != "killed: out of memory" {
			t.Errorf("%+v %+v", now, now.LastExit)
		}
	}
	for _, name := range []string{"web", "lost"} {
		if out, code := q.cli("apps", "stop", name); code != 0 {
			t.Fatalf("%d %s", code, out)
		}
	}
	if got := all(); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// outlives ends the daemon and starts it again: web, which is a, goes on without a line lost, and lost is still named.
func (p *podmanOf) outlives(q *qm, a api.App) {
	p.t.Helper()
	p.mustAsk(boxPort, "web.test", "/")
	q.goesOn("web", 10)
	p.kill9(q)
	p.runs(q)
	if now := q.appIs("web", "ready"); now.Container != a.Container || now.Port != a.Port {
		p.t.Errorf("before %+v\nafter  %+v", a, now)
	}
	q.goesOn("web", q.ticks("web"))
	if now := q.appIs("lost", "backing-off"); !strings.Contains(now.Reason, fmt.Sprintf("lost listens on 5173, not on %d: set container_port", now.Port)) {
		p.t.Errorf("an app that listens elsewhere: %+v", now)
	}
}
