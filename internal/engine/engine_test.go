package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func at(socket string) Options {
	return Options{Settings: func() plan.EngineSettings { return plan.EngineSettings{Kind: "auto", Socket: socket} }}
}

func TestP13_PortsOfRealContainersAreNamed(t *testing.T) {
	p := newPodman(t)
	p.serve()
	first := freePorts(t, 3)
	p.run("run", "-d", "--name", "db", "-p", fmt.Sprintf("%d:80", first), "-p", fmt.Sprintf("127.0.0.1:%d:81", first+1),
		"-p", fmt.Sprintf("%d:82/udp", first+2), "hold")
	p.run("create", "--name", "later", "-p", fmt.Sprintf("%d:80", first+2), "hold")
	var got map[uint16]string
	until(t, "the container is listed", func() bool { // a busy machine may need more than the second there is
		var err error
		if got, err = New(at(p.sock)).Published(t.Context()); err != nil {
			t.Log(err)
		}
		return err == nil && len(got) > 0
	})
	want := map[uint16]string{uint16(first): "container db (podman)", uint16(first + 1): "container db (podman)"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("published %v, want %v: no UDP, and nothing of a container that does not run", got, want)
	}
}

// freePorts are n ports in a row that nobody listens on, below the ephemeral ones.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for first := 13000 + os.Getpid()%1000; first < 20000; first += n {
		free := true
		for p := first; p < first+n && free; p++ {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", p))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

// engineOn is a server on a unix socket that answers as serve says. It stands for engines that misbehave.
func engineOn(t *testing.T, serve http.HandlerFunc) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qm-engine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", dir+"/e.sock")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: serve}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return dir + "/e.sock"
}

func ping(w http.ResponseWriter, r *http.Request, version string) bool {
	if strings.HasSuffix(r.URL.Path, "/_ping") {
		w.Header().Set("Api-Version", version)
		return true
	}
	return false
}

func TestVersionIsAgreedOn(t *testing.T) {
	var path atomic.Value
	sock := engineOn(t, func(w http.ResponseWriter, r *http.Request) {
		if !ping(w, r, "1.44") {
			path.Store(r.URL.Path)
			_, _ = io.WriteString(w, `[{"Id":"abc","Names":["/we\u001bb"],"Ports":[{"IP":"","PrivatePort":1,"PublicPort":32100,"Type":"tcp"}]}]`)
		}
	})
	got, err := New(at(sock)).Published(t.Context())
	if err != nil || got[32100] != `container we\x1bb (docker)` || path.Load() != "/v1.44/containers/json" {
		t.Errorf("published %v, %v, asked at %v", got, err, path.Load())
	}
}

func TestSilentEngineCostsOneSecondOnceInTwo(t *testing.T) {
	var asked atomic.Int32
	sock := engineOn(t, func(_ http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		<-r.Context().Done()
	})
	e := New(at(sock))
	start := time.Now()
	for range 50 {
		_, err := e.Published(t.Context())
		if err == nil || !strings.Contains(err.Error(), sock) || !strings.Contains(err.Error(), "no answer within 1s") {
			t.Fatalf("error %v", err)
		}
	}
	if took := time.Since(start); took < within || took > 15*time.Second {
		t.Errorf("50 questions took %v", took)
	}
	if n := asked.Load(); n > 10 {
		t.Errorf("the engine was asked %d times", n)
	}
}

func TestTalkativeEngineIsCutOff(t *testing.T) {
	var said atomic.Int64
	sock := engineOn(t, func(w http.ResponseWriter, r *http.Request) {
		if ping(w, r, "1.44") {
			return
		}
		_, _ = io.WriteString(w, `[{"Names":["`)
		for block := bytes.Repeat([]byte("x"), 64<<10); ; {
			n, err := w.Write(block)
			said.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	_, err := New(at(sock)).Published(t.Context())
	if err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") && !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("error %v", err)
	}
	if n := said.Load(); n > maxAnswer+4<<20 { // what buffers hold
		t.Errorf("%d bytes were taken", n)
	}
}

func TestSettingsThatChangeAskAnew(t *testing.T) {
	sock := engineOn(t, func(w http.ResponseWriter, r *http.Request) {
		if !ping(w, r, "1.44") {
			_, _ = io.WriteString(w, `[{"Id":"x","Ports":[{"PrivatePort":1,"PublicPort":32100,"Type":"tcp"}]}]`)
		}
	})
	set := plan.EngineSettings{Socket: sock + ".none"}
	e := New(Options{Settings: func() plan.EngineSettings { return set }})
	if got, err := e.Published(t.Context()); err == nil || len(got) != 0 || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("an engine that is named and missing: %v, %v", got, err)
	}
	set.Socket = sock
	if got, err := e.Published(t.Context()); err != nil || got[32100] != "container x (docker)" {
		t.Errorf("the new one: %v, %v", got, err)
	}
}

func TestUsualPlaces(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{}
	e := New(Options{Env: func(name string) string { return env[name] }})
	list := func(kind string) string {
		var paths []string
		for _, p := range e.places(plan.EngineSettings{Kind: kind}) {
			if strings.HasPrefix(p.path, dir) {
				paths = append(paths, strings.TrimPrefix(p.path, dir))
			}
		}
		return strings.Join(paths, " ")
	}
	for _, name := range []string{"/d.sock", "/podman/podman.sock"} {
		_ = os.MkdirAll(dir+"/podman", 0o700)
		if err := os.WriteFile(dir+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env["XDG_RUNTIME_DIR"], env["DOCKER_HOST"] = dir, "unix://"+dir+"/d.sock"
	for kind, want := range map[string]string{"auto": "/d.sock /podman/podman.sock", "podman": "/podman/podman.sock", "docker": "/d.sock"} {
		if got := list(kind); got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
	env["DOCKER_HOST"] = "unix://" + dir + "/podman/podman.sock"
	if got := list("auto"); got != "/podman/podman.sock" {
		t.Errorf("the same socket twice: %q", got)
	}
	env["DOCKER_HOST"] = "tcp://10.0.0.5:2375"
	if got := list("auto"); got != "/podman/podman.sock" {
		t.Errorf("an engine on another host: %q", got)
	}
}

func TestNoEngineIsNoError(t *testing.T) {
	e := New(Options{Env: func(string) string { return "" }})
	if got, err := (place{path: t.TempDir() + "/none.sock"}).published(context.Background()); err != nil || len(got) != 0 {
		t.Errorf("a socket that went away: %v, %v", got, err)
	}
	if e.opt.Settings().Kind != "auto" {
		t.Error("the default is not auto")
	}
}
