package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/quaymaster/quaymaster/internal/api"
)

// appEntry is an entry of `apps` whose program is this test program. how says what it does, in words; more are further
// keys, each as "key: value".
func appEntry(t testing.TB, name, how string, more ...string) string {
	t.Helper()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	keys := append([]string{
		fmt.Sprintf("command: [%q, \"-test.run=^TestAppChild$\"]", self),
		fmt.Sprintf("env: {QM_CHILD_LISTEN: app, QM_APP: %q, QM_APP_OF: %q}", how, appMark(t)),
	}, more...)
	if os.Geteuid() == 0 {
		keys = append(keys, "user: root")
	}
	return "  " + name + ": {" + strings.Join(keys, ", ") + "}\n"
}

// appSites is a site for each app on one port: NAME.test.
func appSites(port int, names ...string) string {
	out := "sites:\n"
	for _, n := range names {
		out += fmt.Sprintf("  http://%s.test:%d: app:%s\n", n, port, n)
	}
	return out
}

// startApps is start for a configuration with apps, whose processes are ended with the test.
func startApps(t testing.TB, body string) *qm {
	t.Helper()
	q := prepare(t, body)
	t.Cleanup(q.endApps) // after the daemon, which would start them again
	q.run()
	q.serving()
	return q
}

// appMark is in the environment of every app of a test.
func appMark(t testing.TB) string { return fmt.Sprintf("%d %s", os.Getpid(), t.Name()) }

// endApps kills the apps of the test, those that were just being started among them.
func (q *qm) endApps() {
	mark := "QM_APP_OF=" + appMark(q.t)
	for again := true; again; {
		again = false
		list, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, name := range list {
			env, err := os.ReadFile(name)
			if err != nil || !slices.Contains(strings.Split(string(env), "\x00"), mark) {
				continue
			}
			if pid, err := strconv.Atoi(strings.Split(name, "/")[2]); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
				again = true
			}
		}
	}
}

// recorded are the pids in the records of the daemon.
func (q *qm) recorded() []int {
	var apps map[string]struct {
		Instances []struct{ Run struct{ PID int } }
	}
	text, err := os.ReadFile(q.dir + "/state/apps.json")
	if err != nil || json.Unmarshal(text, &apps) != nil {
		return nil
	}
	var out []int
	for _, a := range apps {
		for _, i := range a.Instances {
			if i.Run.PID > 1 {
				out = append(out, i.Run.PID)
			}
		}
	}
	return out
}

func (q *qm) app(name string) api.App {
	q.t.Helper()
	var a api.App
	q.get("/v1/apps/"+name, &a)
	return a
}

// appIs waits until an app is in a state.
func (q *qm) appIs(name, state string) api.App {
	q.t.Helper()
	var a api.App
	q.until(name+" is "+state, func() bool {
		_, b, err := q.admin("GET", "/v1/apps/"+name, nil)
		return err == nil && json.Unmarshal(b, &a) == nil && a.State == state
	})
	return a
}

// said are the lines of an app's output.
func (q *qm) said(name, question string) []api.AppLine {
	q.t.Helper()
	var out []api.AppLine
	q.get("/v1/apps/"+name+"/logs?"+question, &out)
	return out
}

// TestAppChild is the program of the apps of these tests, and no test.
func TestAppChild(t *testing.T) {
	how := os.Getenv("QM_APP")
	if os.Getenv("QM_CHILD_LISTEN") != "app" || how == "" {
		t.Skip("this is an app of other tests")
	}
	has := func(word string) bool { return strings.Contains(" "+how+" ", " "+word+" ") }
	switch {
	case has("crash"):
		for n := range 7 {
			fmt.Fprintf(os.Stderr, "words %d\n", n)
		}
		os.Exit(3)
	case has("killed"):
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case has("later"): // dies when it has been well for a while
		time.AfterFunc(300*time.Millisecond, func() { os.Exit(4) })
	case has("grandchild"):
		holdPort()
	case has("mute"):
		fmt.Println("I say nothing more")
		select {}
	}
	if has("stubborn") {
		signal.Ignore(syscall.SIGTERM)
	}
	if has("family") {
		family()
	}
	if has("ticks") {
		go tick()
	}
	hostile(has)
	if has("talk") {
		talk()
	}
	serveApp(has)
}

// holdPort listens and never ends by itself.
func holdPort() {
	signal.Ignore(syscall.SIGTERM)
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		if c, err := l.Accept(); err == nil {
			_ = c.Close()
		}
	}
}

// family lets a grandchild hold the port, and waits.
func family() {
	signal.Ignore(syscall.SIGTERM)
	cmd := exec.Command("/bin/sh", "-c", `trap "" TERM; "$0" "$@" & wait`, os.Args[0], "-test.run=^TestAppChild$")
	cmd.Env = append(os.Environ(), "QM_APP=grandchild")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	select {}
}

// tick writes a numbered line every 50 ms.
func tick() {
	for n := 0; ; n++ {
		fmt.Printf("tick %d\n", n)
		<-time.After(50 * time.Millisecond)
	}
}

// talk says what is hard to keep.
func talk() {
	fmt.Fprintln(os.Stderr, "on stderr")
	fmt.Print("half a line ")
	<-time.After(50 * time.Millisecond)
	fmt.Println("and the other half")
	fmt.Println(strings.Repeat("x", 1<<20) + " end")
	for n := range 50 {
		fmt.Printf("line %d\n", n)
	}
}

// serveApp serves until TERM, and then finishes what it has.
func serveApp(has func(string) bool) {
	var l net.Listener
	var err error
	switch {
	case os.Getenv("LISTEN_FDS") == "1":
		f := os.NewFile(3, "listener")
		l, err = net.FileListener(f)
	case os.Getenv("SOCKET") != "":
		l, err = net.Listen("unix", os.Getenv("SOCKET"))
	default:
		at := os.Getenv("PORT")
		if _, other, ok := strings.Cut(os.Getenv("QM_APP"), "at="); ok { // it does as it pleases
			at = strings.Fields(other)[0]
		}
		l, err = net.Listen("tcp", "127.0.0.1:"+at)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("now listening")
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-time.After(30 * time.Millisecond)
		fmt.Fprintf(w, "pid %d", os.Getpid())
	})
	mux.HandleFunc("/drip", func(w http.ResponseWriter, r *http.Request) { // a download that takes its time
		for range 1000 {
			if _, err := io.WriteString(w, "drop\n"); err != nil || r.Context().Err() != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			<-time.After(20 * time.Millisecond)
		}
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err == nil {
			_, _, _ = c.Read(context.Background()) // until the client leaves
			_ = c.CloseNow()
		}
	})
	mux.HandleFunc("/sick", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no database yet", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/gate", func(w http.ResponseWriter, _ *http.Request) { // is well once a file is there
		_, file, _ := strings.Cut(os.Getenv("QM_APP"), "gate=")
		if _, err := os.Stat(strings.Fields(file + " -")[0]); err != nil {
			http.Error(w, "the gate is shut", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/die", func(http.ResponseWriter, *http.Request) { os.Exit(7) })
	mux.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(os.Environ()) })
	mux.HandleFunc("/say", func(_ http.ResponseWriter, r *http.Request) {
		for sc := bufio.NewScanner(r.Body); sc.Scan(); {
			fmt.Println(sc.Text())
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "pid %d", os.Getpid()) })
	srv := &http.Server{Handler: mux}
	stop := make(chan os.Signal, 1)
	if !has("stubborn") {
		signal.Notify(stop, syscall.SIGTERM)
	}
	go func() { _ = srv.Serve(l) }()
	<-stop
	if has("abrupt") {
		os.Exit(0)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = srv.Shutdown(ctx)
	os.Exit(0)
}

// answer asks an app by its name at a port, and wants its pid.
func answer(t testing.TB, port int, name string) int {
	t.Helper()
	status, body, err := fetch(port, name+".test", "/")
	rest, ok := strings.CutPrefix(body, "pid ")
	pid, bad := strconv.Atoi(rest)
	if err != nil || status != 200 || !ok || bad != nil {
		t.Fatalf("GET %s.test: %d %q %v", name, status, body, err)
	}
	return pid
}
