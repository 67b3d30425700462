package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hostile makes an app of these tests a bad neighbour before it serves, or instead.
func hostile(has func(string) bool) {
	switch {
	case has("forks"): // as fast as it can, children that stay, of which some leave the session
		signal.Ignore(syscall.SIGTERM)
		go func() {
			for n := range 300 {
				cmd := exec.Command("/bin/sleep", "600")
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: n%10 == 0 && !has("stay")}
				_ = cmd.Start()
			}
		}()
	case has("closes"): // what it was given to speak with
		for fd := range 3 {
			_ = syscall.Close(fd)
		}
	case has("floods"): // with lines as long as they come, and with what is no text
		for _, f := range []*os.File{os.Stdout, os.Stderr} {
			go func() {
				line := append(bytes.Repeat([]byte("x\xff\x00\x1b[2J"), 8<<10), '\n')
				for sent := 0; sent < 512<<20; sent += len(line) {
					if _, err := f.Write(line); err != nil {
						return
					}
				}
			}()
		}
	case has("endless-line"):
		go func() {
			for part := bytes.Repeat([]byte("y"), 32<<10); ; {
				if _, err := os.Stdout.Write(part); err != nil {
					return
				}
			}
		}()
	case has("empty-lines"):
		go func() {
			for part := bytes.Repeat([]byte("\n"), 32<<10); ; {
				if _, err := os.Stdout.Write(part); err != nil {
					return
				}
			}
		}()
	case has("never-accepts"):
		_, _ = net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
		select {}
	case has("drips"), has("pours"): // an answer byte by byte, or without an end
		l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
		for err == nil {
			var c net.Conn
			if c, err = l.Accept(); err != nil {
				break
			}
			go func() {
				defer c.Close()
				head := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
				for n := 0; ; n++ {
					text := strings.Repeat("z", 64<<10)
					if has("drips") {
						text = head[n%len(head) : n%len(head)+1]
						<-time.After(50 * time.Millisecond)
					} else if n == 0 {
						text = head
					}
					if _, err := io.WriteString(c, text); err != nil {
						return
					}
				}
			}()
		}
	case has("leaves"): // a daemon of its own, which holds the port
		cmd := exec.Command(os.Args[0], "-test.run=^TestAppChild$")
		cmd.Env = append(os.Environ(), "QM_APP=grandchild")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		_ = cmd.Start()
		<-time.After(500 * time.Millisecond)
		os.Exit(0)
	}
}

// resident is the memory of the daemon, in bytes.
func (q *qm) resident() int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", q.cmd.Process.Pid))
	if err != nil {
		q.t.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.Fields(string(text))[1])
	return n * os.Getpagesize()
}

// grouped reports whether apps have control groups of their own here.
func (q *qm) grouped() bool {
	text, _ := os.ReadFile(q.dir + "/state/apps.json")
	return strings.Contains(string(text), `"group":"/`)
}

func TestHostileAppsHoldNobodyElseUp(t *testing.T) {
	kinds := []string{"forks", "closes", "floods", "endless-line", "empty-lines", "never-accepts", "drips", "pours", "leaves", "stubborn", "crash", "family"}
	port, leases := freePort(t), freePorts(t, len(kinds)+4)
	good := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+len(kinds)+3) + appSites(port, "good") + "apps:\n" + appEntry(t, "good", "ticks serve", "ready: {http: /}", "health: {http: /, interval: 200ms, on_unhealthy: nothing}")
	q := startApps(t, good)
	pid := q.appIs("good", "ready").PID
	fds, goroutines := q.fds(), q.metric("go_goroutines")
	body := good
	for _, k := range kinds {
		how := k + " serve"
		if !q.grouped() { // who leaves the session is out of reach then
			if how += " stay"; k == "leaves" {
				continue
			}
		}
		body += appEntry(t, k, how, "stop: {timeout: 300ms}", "ready: {http: /, timeout: 2s}", "health: {http: /, interval: 100ms, timeout: 200ms, on_unhealthy: nothing}", "restart: {backoff: 100ms, max_backoff: 500ms, max: 1000}")
	}
	q.reload(body)
	count, calm := pressed(t, port, "good")
	defer calm()
	most := 0
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); {
		<-time.After(50 * time.Millisecond)
		most = max(most, q.resident())
		q.get("/v1/apps", new([]any))
		if n := q.fds(); n > fds+len(kinds)*20+20 {
			t.Fatalf("%d descriptors, were %d", n, fds)
		}
		if n := q.metric("go_goroutines"); n > goroutines+float64(len(kinds)*40) {
			t.Fatalf("%v goroutines, were %v", n, goroutines)
		}
	}
	if most > 400<<20 {
		t.Errorf("%d MiB of memory", most>>20)
	}
	if a := q.app("good"); a.State != "ready" || a.PID != pid || a.Restarts != 0 {
		t.Errorf("%+v", a)
	}
	q.reload(good)
	q.until("nothing is left of them", func() bool {
		rest := 0
		for _, pids := range withMark(t) {
			rest += len(pids)
		}
		var list []any
		q.get("/v1/apps", &list)
		return rest == 1 && len(list) == 1
	})
	calm()
	if count() < 20 {
		t.Errorf("%d requests in all", count())
	}
	q.until("what they took is given back", func() bool { return q.fds() <= fds+10 && q.metric("go_goroutines") <= goroutines+20 })
	if list, _ := filepath.Glob(q.dir + "/state/run/*"); len(list) != 2 {
		t.Errorf("pipes that are left: %q", list)
	}
	q.ticked("good", ticksOf(t, q.said("good", "lines=1000")))
	t.Logf("%d MiB at most", most>>20)
}
