//go:build linux

package main

import (
	"bytes"
	"context"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/quaymaster/quaymaster/internal/engine"
)

// Docker says other things than podman: about health as well, which it checks by itself.
func TestA15_LabelsWithDocker(t *testing.T) {
	t.Parallel()
	p := newPodmanWithWeb(t, 0) // for the place and the program
	socket := p.docker()
	docker, err := engine.Open(socket, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = docker.Close() })
	image, err := exec.Command("tar", "-C", p.fs, "-c", "web").Output()
	if err != nil {
		t.Fatal(err)
	}
	made, err := docker.ImageImport(t.Context(), client.ImageImportSource{Source: bytes.NewReader(image), SourceName: "-"}, "web",
		client.ImageImportOptions{Changes: []string{`ENTRYPOINT ["/web"]`, "EXPOSE 8080"}})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, made)
	_ = made.Close()
	box := func(name string, health *container.HealthConfig, words ...string) string {
		t.Helper()
		with := map[string]string{"quaymaster.enable": "true"}
		for _, w := range words {
			k, v, _ := strings.Cut(w, "=")
			with[k] = v
		}
		made, err := docker.ContainerCreate(t.Context(), client.ContainerCreateOptions{
			Name: name, Config: &container.Config{Image: "web", Cmd: []string{":8080", name}, Labels: with, Healthcheck: health},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_, _ = docker.ContainerRemove(context.Background(), made.ID, client.ContainerRemoveOptions{Force: true})
		})
		if _, err := docker.ContainerStart(t.Context(), made.ID, client.ContainerStartOptions{}); err != nil {
			t.Fatal(err)
		}
		return made.ID
	}
	q := p.start(t, "engine: {kind: docker, socket: \""+socket+"\", ports: [80]}\n")
	id := box("plain", nil, "quaymaster.host=http://plain.test")
	box("bad", nil, "quaymaster.host=http://plain.test")
	p.answers("http://plain.test/", "plain")
	q.troubled("container bad (docker)", `routes "bad@docker" and "plain@docker" match the same`)
	check := &container.HealthConfig{Test: []string{"CMD", "/web", "check", ":8080"}, Interval: 200 * time.Millisecond, Retries: 1}
	box("sane", check, "quaymaster.host=http://sane.test")
	p.answers("http://sane.test/", "sane")
	if r := q.labelRoute("sane@docker"); r == nil || len(r.Targets) != 1 || !strings.HasSuffix(r.Targets[0].Target, ":8080") {
		t.Errorf("%+v", r)
	}
	if status, _, _ := p.asked("http://sane.test/sick"); status != 200 {
		t.Fatalf("status %d", status)
	}
	p.answers("http://sane.test/", "")
	q.troubled("container sane (docker)", "its health check says unhealthy")
	if _, err := docker.ContainerKill(t.Context(), id, client.ContainerKillOptions{}); err != nil {
		t.Fatal(err)
	}
	p.answers("http://plain.test/", "bad")
	if _, err := docker.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	p.answers("http://plain.test/", "plain") // the older one
}
