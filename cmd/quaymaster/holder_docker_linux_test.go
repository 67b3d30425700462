package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The real docker without its userland proxy holds the ports of containers itself. To stop it would stop all of them.
func TestP05_DockerWithoutProxyIsNamedWithItsContainer(t *testing.T) {
	t.Parallel()
	p := newPodman(t, 0) // for the place
	socket := p.docker("--userland-proxy=false")
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	post := func(path, kind string, body io.Reader) []byte {
		t.Helper()
		res, err := client.Post("http://docker"+path, kind, body)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode >= 300 {
			t.Fatalf("%s: %s %s %v", path, res.Status, b, err)
		}
		return b
	}
	image, err := exec.Command("tar", "-C", p.fs, "-c", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	post("/images/create?fromSrc=-&repo=listen", "application/x-tar", bytes.NewReader(image))
	port := freePort(t)
	var made struct{ ID string }
	if err := json.Unmarshal(post("/containers/create?name=db", "application/json", strings.NewReader(fmt.Sprintf(
		`{"Image":"listen","Cmd":["/listen",":80"],"ExposedPorts":{"80/tcp":{}},"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"%d"}]}}}`, port))), &made); err != nil {
		t.Fatal(err)
	}
	post("/containers/"+made.ID+"/start", "application/json", nil)
	t.Cleanup(func() { post("/containers/"+made.ID+"/kill", "application/json", nil) }) // with its groups
	if p.inode(port) == 0 {
		t.Skip("LOUD SKIP: this docker publishes ports by address translation alone")
	}
	row := p.blamed(t, port)
	row.says(t, "held by dockerd (pid %d, user root, docker container db "+made.ID[:12]+") for ")
	row.says(t, `stop it with "docker stop db"`)
	if row.Holder.ContainerID != made.ID || row.Holder.Helper != "dockerd" {
		t.Errorf("%+v", row.Holder)
	}
}

// docker runs the real docker in the place of the engine until the test ends, and returns its socket.
func (p *podmanOf) docker(flags ...string) (socket string) {
	p.t.Helper()
	containerd, dockerd := tool(p.t, "containerd"), tool(p.t, "dockerd")
	socket = p.dir + "/docker.sock"
	p.spawn(nil, containerd, "--root", p.dir+"/c", "--state", p.dir+"/cs", "--address", p.dir+"/c.sock")
	until(p.t, "containerd answers", func() bool { return dials(p.dir + "/c.sock") })
	p.spawn(nil, append([]string{
		dockerd, "--data-root", p.dir + "/d", "--exec-root", p.dir + "/x", "--pidfile", p.dir + "/pid",
		"-H", "unix://" + socket, "--containerd", p.dir + "/c.sock", "--storage-driver", "vfs",
	}, flags...)...)
	until(p.t, "docker answers", func() bool { return dials(socket) })
	return socket
}
