package engine

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A podman is one with everything of its own: storage, network, settings and socket.
type podman struct {
	t    *testing.T
	dir  string
	sock string
}

const podmanConf = `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "%[1]s/net"
default_subnet = "10.89.117.0/24"
`

// holdProgram is all that the image holds.
const holdProgram = `package main

import (
	"os"
	"time"
)

func main() {
	if len(os.Args) == 1 {
		time.Sleep(time.Hour)
	}
	time.Sleep(50 * time.Millisecond)
}
`

// newPodman builds an image and starts the service. Containers, service and storage go with the test.
func newPodman(t *testing.T) *podman {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers with published ports are made as root")
	}
	for _, name := range []string{"podman", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("%s is missing: apt-get install podman runc", name)
		}
	}
	dir, err := os.MkdirTemp("", "qm-podman-")
	if err != nil {
		t.Fatal(err)
	}
	p := &podman{t: t, dir: dir, sock: dir + "/podman.sock"}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name, text := range map[string]string{
		"containers.conf": fmt.Sprintf(podmanConf, dir), "main.go": holdProgram, "go.mod": "module hold\n",
		"Containerfile": "FROM scratch\nCOPY hold /hold\nENTRYPOINT [\"/hold\"]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", "hold", ".")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	p.run("build", "-q", "-t", "hold", dir)
	t.Cleanup(func() { p.run("rm", "-f", "-t", "0", "-a") })
	return p
}

// serve starts the service and returns how to end it.
func (p *podman) serve() (stop func()) {
	p.t.Helper()
	cmd := p.command("system", "service", "--time=0", "unix://"+p.sock)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	stop = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	p.t.Cleanup(stop)
	until(p.t, "podman answers", func() bool {
		c, err := net.Dial("unix", p.sock)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return stop
}

func (p *podman) command(args ...string) *exec.Cmd {
	own := []string{"--root", p.dir + "/root", "--runroot", p.dir + "/run", "--storage-driver", "vfs"}
	cmd := exec.Command("podman", append(own, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+p.dir+"/containers.conf")
	return cmd
}

func (p *podman) run(args ...string) string {
	p.t.Helper()
	out, err := p.command(args...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	for !f() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited 30 s for: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
