//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// boxProgram is all that the image of these tests holds. QM_BOX says what it does, in words.
const boxProgram = `package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	has := func(word string) bool { return strings.Contains(" "+os.Getenv("QM_BOX")+" ", " "+word+" ") }
	fmt.Println("hello", strings.Join(os.Args[1:], " "))
	fmt.Fprintln(os.Stderr, "on stderr")
	if has("ticks") {
		go func() {
			for n := 0; ; n++ {
				fmt.Println("tick", n)
				time.Sleep(20 * time.Millisecond)
			}
		}()
	}
	if has("long") {
		fmt.Println(strings.Repeat("x", 100000) + " end")
	}
	if has("crash") {
		os.Exit(3)
	}
	port := os.Getenv("PORT")
	if has("elsewhere") {
		port = "5173"
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { host, _ := os.Hostname(); fmt.Fprint(w, "box "+host) })
	http.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Join(os.Environ(), "\n")) })
	http.HandleFunc("/user", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getuid()) })
	http.HandleFunc("/die", func(w http.ResponseWriter, r *http.Request) { n, _ := strconv.Atoi(r.URL.RawQuery); os.Exit(n) })
	http.HandleFunc("/say", func(w http.ResponseWriter, r *http.Request) { io.Copy(os.Stdout, r.Body) })
	http.HandleFunc("/hog", func(w http.ResponseWriter, r *http.Request) {
		for all := [][]byte{}; ; {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = byte(i)
			}
			all = append(all, b)
			if len(all) == 512 {
				fmt.Fprint(w, "nobody minds")
				return
			}
		}
	})
	srv := &http.Server{}
	stop := make(chan os.Signal, 1)
	if !has("stubborn") {
		signal.Notify(stop, syscall.SIGTERM)
	}
	go srv.Serve(l)
	<-stop
	fmt.Println("last words")
	srv.Shutdown(context.Background())
}
`

// static is a program that needs nothing but the kernel, built once.
type static struct {
	text    string
	once    sync.Once
	program []byte
	err     error
}

func (s *static) binary(t testing.TB) []byte {
	t.Helper()
	s.once.Do(func() {
		var dir string
		if dir, s.err = os.MkdirTemp("", "qm-static-"); s.err != nil {
			return
		}
		defer os.RemoveAll(dir)
		for name, text := range map[string]string{"main.go": s.text, "go.mod": "module static\n"} {
			if s.err = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); s.err != nil {
				return
			}
		}
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", "static", ".")
		build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := build.CombinedOutput(); err != nil {
			s.err = fmt.Errorf("build: %w\n%s", err, out)
			return
		}
		s.program, s.err = os.ReadFile(dir + "/static")
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.program
}

// box is what the image holds.
var box = static{text: boxProgram}

const boxImage = "localhost/box:1"

// boxes is a podman with an image, whose service can be ended and started.
type boxes struct {
	*podmanOf
	socket string
	end    func() // of the service
}

// newBoxes makes an engine of root or of a user, with an image that is built from nothing.
func newBoxes(t *testing.T, user int) *boxes {
	t.Helper()
	p := &boxes{podmanOf: newPodman(t, user)}
	p.socket = p.dir + "/podman.sock"
	p.image(boxImage, "FROM scratch\nCOPY box /box\nENTRYPOINT [\"/box\"]\n")
	p.serve()
	t.Cleanup(func() { p.end() })
	return p
}

// image builds an image of the program.
func (p *boxes) image(name, from string) {
	p.t.Helper()
	if err := os.MkdirAll(p.dir+"/image", 0o755); err != nil {
		p.t.Fatal(err)
	}
	writeFile(p.t, p.dir+"/image/box", box.binary(p.t), 0o755)
	writeFile(p.t, p.dir+"/image/Containerfile", []byte(from), 0o644)
	p.run("build", "-q", "-t", name, p.dir+"/image")
}

func writeFile(t testing.TB, name string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, data, mode); err != nil {
		t.Fatal(err)
	}
}

// serve starts the service of the engine.
func (p *boxes) serve() {
	p.t.Helper()
	_ = os.Remove(p.socket)
	cmd := p.command(context.Background(), p.podman("system", "service", "--time=0", "unix://"+p.socket)...)
	log := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.end = sync.OnceFunc(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if p.t.Failed() {
			p.t.Logf("podman service:\n%s", tail(log.String(), 20))
		}
	})
	until(p.t, "podman answers", func() bool { return dials(p.socket) })
}

// client speaks HTTP in the place of the engine.
func (p *podmanOf) client() *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: p.dial}}
}

// dial makes a connection in the network of the engine.
func (p *podmanOf) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	there, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", p.init), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(there)
	runtime.LockOSThread()
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(here)
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if unix.Setns(here, unix.CLONE_NEWNET) == nil { // else the thread ends with the goroutine
		runtime.UnlockOSThread()
	}
	return conn, err
}

// ask asks for a path at a port in the place of the engine.
func (p *podmanOf) ask(port int, host, path string, body io.Reader) (int, string, error) {
	method := "GET"
	if body != nil {
		method = "POST"
	}
	req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), body)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	res, err := p.client().Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// mustAsk wants status 200, and is the answer.
func (p *podmanOf) mustAsk(port int, host, path string) string {
	p.t.Helper()
	status, body, err := p.ask(port, host, path, nil)
	if err != nil || status != 200 {
		p.t.Fatalf("GET http://%s:%d%s: %d %q %v", host, port, path, status, body, err)
	}
	return body
}

// boxEntry is an entry of `apps` that runs the image.
func boxEntry(name, how string, more ...string) string {
	return fmt.Sprintf("  %s: {%s}\n", name, strings.Join(append([]string{"image: " + boxImage, "env: {QM_BOX: \"" + how + "\"}"}, more...), ", "))
}

func (p *boxes) engine() string { return "engine: {socket: \"" + p.socket + "\", pull: never}\n" }

const (
	boxPort  = 8080 // in the place of the engine, which is nobody else's
	boxPorts = "app_ports: 32100-32119\n"
)

// runs starts quaymaster in the place of the engine, as root or as the user of the engine.
func (p *podmanOf) runs(q *qm) {
	p.t.Helper()
	line := []string{binary}
	if p.user > 0 {
		as := strconv.Itoa(p.user)
		own := p.dir + "/quaymaster" // ours is in a folder of root
		program, err := os.ReadFile(binary)
		if err == nil {
			err = os.WriteFile(own, program, 0o755)
		}
		if err != nil && !errors.Is(err, syscall.ETXTBSY) {
			p.t.Fatal(err)
		}
		line = []string{"setpriv", "--reuid", as, "--regid", as, "--clear-groups", "--", own}
		if err := filepath.WalkDir(q.dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				err = os.Lchown(path, p.user, p.user)
			}
			return err
		}); err != nil {
			p.t.Fatal(err)
		}
	}
	q.runAs(p.inside(line...)...)
	q.serving()
}

// signals tells quaymaster, and not who has started it.
func (p *podmanOf) signals(q *qm, name string) {
	p.t.Helper()
	line := p.inside("kill", "-s", name, strconv.Itoa(q.pid())) // a pid in the place of the engine
	if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
		p.t.Fatalf("kill: %v %s", err, out)
	}
}

// kill9 ends quaymaster.
func (p *podmanOf) kill9(q *qm) {
	p.t.Helper()
	p.signals(q, "KILL")
	q.until("nobody answers", func() bool { return q.statusOrNil() == nil })
}

// boxed is what the engine says about a container, as `podman inspect` has it.
type boxed struct {
	ID, Name string
	State    struct {
		Status string
		Pid    int
	}
	Config struct {
		Labels map[string]string
		User   string
	}
	HostConfig struct {
		Memory, NanoCpus int64
		RestartPolicy    struct{ Name string }
		PortBindings     map[string][]struct{ HostIP, HostPort string }
	}
}

func (p *boxes) inspect(name string) boxed {
	p.t.Helper()
	var list []boxed
	if err := json.Unmarshal([]byte(p.run("inspect", name)), &list); err != nil || len(list) != 1 {
		p.t.Fatalf("inspect %s: %v", name, err)
	}
	return list[0]
}

// names are the containers that there are, whatever they do.
func (p *boxes) names() string {
	p.t.Helper()
	return strings.Join(strings.Fields(p.run("ps", "-a", "--format", "{{.Names}}")), " ")
}

// ticks wants the numbered lines of an app's output to be one row without a gap or a repetition, and is the last.
func (q *qm) ticks(name string) int {
	q.t.Helper()
	next := -1
	for _, l := range q.said(name, "lines=100000") {
		rest, ok := strings.CutPrefix(l.Text, "tick ")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(rest)
		if err != nil || next >= 0 && n != next {
			q.t.Fatalf("tick %q after %d", rest, next-1)
		}
		next = n + 1
	}
	return next - 1
}

// goesOn waits for ticks after n.
func (q *qm) goesOn(name string, n int) {
	q.t.Helper()
	q.until("there are more ticks", func() bool { return q.ticks(name) > n+5 })
}
