package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// pressed keeps asking an app by its name, with bodies, until stop is called: every answer must be a 200.
func pressed(t testing.TB, port int, name string) (count func() int64, stop func()) {
	t.Helper()
	over := make(chan struct{})
	var wg sync.WaitGroup
	var done atomic.Int64
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-over:
					return
				default:
				}
				req, _ := http.NewRequest("POST", fmt.Sprintf("http://127.0.0.1:%d/slow", port), io.MultiReader(strings.NewReader("some "), strings.NewReader("body")))
				req.Host = name + ".test"
				res, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				text, _ := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if res.StatusCode != 200 {
					t.Errorf("%s %s", res.Status, text)
					return
				}
				done.Add(1)
			}
		}()
	}
	return done.Load, sync.OnceFunc(func() { close(over); wg.Wait() })
}

// knocked keeps connecting to a port until stop is called: nobody may be refused.
func knocked(t testing.TB, port int) (stop func()) {
	t.Helper()
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for tick := time.NewTicker(time.Millisecond); ; {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 20*time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			_ = c.Close()
		}
	}()
	return sync.OnceFunc(func() { close(over); wg.Wait() })
}

func TestA11_TheSocketOfAnAppGoesOverInAnUpgrade(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 4)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\n", leases, leases+3)+appSites(port, "web")+"apps:\n"+
		appEntry(t, "web", "serve", "socket: fd", "ready: {http: /}"))
	a := q.appIs("web", "ready")
	socket := inode(t, a.Port)
	count, calm := pressed(t, port, "web")
	defer calm()
	quiet := knocked(t, a.Port)
	defer quiet()
	same := func(after string) {
		t.Helper()
		before := count()
		q.until("the load goes on", func() bool { return count() > before+20 })
		if now := q.appIs("web", "ready"); now.Port != a.Port || inode(t, a.Port) != socket {
			t.Errorf("after %s: another socket at port %d, was %d", after, now.Port, a.Port)
		}
	}
	restart := func() {
		t.Helper()
		if out, code := q.cli("apps", "restart", "web"); code != 0 {
			t.Error(out)
		}
	}
	for range 2 {
		q.upgrade()
		same("an upgrade")
		restart()
		same("a restart")
	}
	if out, code := q.cli("upgrade", "--binary", "/bin/false"); code == 0 {
		t.Errorf("upgrade to /bin/false: %s", out)
	}
	restart()
	same("a restart when an upgrade has failed")
	quiet()
	calm()
	if out, code := q.cli("apps", "stop", "web"); code != 0 || inode(t, a.Port) != 0 {
		t.Errorf("%s; somebody listens on: %v", out, inode(t, a.Port) != 0)
	}
}

func TestA11_AnEntryMayChangeHowTheSocketIsHad(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 2)
	head := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+1) + appSites(port, "web") + "apps:\n"
	q := startApps(t, head+appEntry(t, "web", "serve", "socket: fd", "ready: {http: /}"))
	a := q.appIs("web", "ready")
	for _, how := range []string{"tcp", "fd", "unix", "fd", "tcp"} {
		q.reload(head + appEntry(t, "web", "serve", "socket: "+how, "ready: {http: /}"))
		q.until("it is "+how, func() bool {
			n := q.app("web")
			return n.State == "ready" && n.PID != a.PID && (n.Port == 0) == (how == "unix")
		})
		n := q.app("web")
		if how != "unix" && n.Port != leases && n.Port != leases+1 || n.Restarts != 0 || n.Reason != "" {
			t.Errorf("%s: %+v, was %+v", how, n, a)
		}
		if pid := answer(t, port, "web"); pid != n.PID {
			t.Errorf("%s: pid %d answers, want %d", how, pid, n.PID)
		}
		a = n
	}
	if strings.Contains(q.log.String(), "app goes to another port") {
		t.Error("its own port was in its way")
	}
}

func TestA11_TheNewOneIsReadyBeforeTheOldOneGoes(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 3)
	gate := t.TempDir() + "/open"
	head := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+2) + appSites(port, "web") + "apps:\n"
	q := startApps(t, head+appEntry(t, "web", "serve", "ready: {http: /}"))
	old := q.appIs("web", "ready")
	count, calm := pressed(t, port, "web")
	defer calm()
	q.reload(head + appEntry(t, "web", "gate="+gate+" serve", "ready: {http: /gate}"))
	q.until("both are there", func() bool { return len(withMark(t)) == 2 })
	for range 20 {
		if pid := answer(t, port, "web"); pid != old.PID {
			t.Fatalf("pid %d answers before it is ready", pid)
		}
	}
	before := count()
	q.until("the load goes on", func() bool { return count() > before+20 })
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	q.until("the new one has taken over", func() bool { a := q.app("web"); return a.State == "ready" && a.PID != old.PID })
	if a := q.app("web"); a.Port == old.Port || answer(t, port, "web") != a.PID || a.Restarts != 0 {
		t.Errorf("%+v, was %+v", a, old)
	}
	q.until("the old one is gone", func() bool { return ended(old.PID) })
	calm()
	// One that does not come up leaves the old one where it is, and the reason says so.
	now := q.app("web")
	q.reload(head + appEntry(t, "web", "crash", "ready: {http: /}"))
	q.until("it is refused", func() bool { return strings.Contains(q.app("web").Reason, "the new entry does not come up") })
	if a := q.app("web"); a.State != "ready" || a.PID != now.PID || !strings.Contains(a.Reason, "exit code 3") || answer(t, port, "web") != now.PID {
		t.Errorf("%+v, was %+v", a, now)
	}
}

func TestA21_UnixSocketsOfAppsTargetsAndListeners(t *testing.T) {
	t.Parallel()
	port, leases := freePort(t), freePorts(t, 2)
	dir, err := os.MkdirTemp("", "qm-unix-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	target, front := dir+"/target.sock", dir+"/front.sock"
	back := func() net.Listener {
		l, err := net.Listen("unix", target)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		return l
	}
	serve := func(l net.Listener, say string) *http.Server {
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, say) })}
		t.Cleanup(func() { _ = srv.Close() })
		go func() { _ = srv.Serve(l) }()
		return srv
	}
	first := serve(back(), "first")
	if left, err := net.Listen("unix", front); err == nil { // nobody is behind it any more
		left.(*net.UnixListener).SetUnlinkOnClose(false)
		_ = left.Close()
	}
	body := fmt.Sprintf("app_ports: %d-%d\n", leases, leases+1) + appSites(port, "web") +
		fmt.Sprintf("  http://target.test:%d: unix:%s\n", port, target) +
		fmt.Sprintf("routes:\n- {name: front, match: {ports: [\"unix:%s\"]}, action: {targets: [\"app:web\"]}}\n", front) +
		"apps:\n" + appEntry(t, "web", "serve", "socket: unix", "ready: {http: /}")
	q := startApps(t, body)
	a := q.appIs("web", "ready")
	if pid := answer(t, port, "web"); pid != a.PID || a.Port != 0 || !strings.HasPrefix(a.Path, q.dir+"/apps/web-") {
		t.Errorf("pid %d answers; %+v", pid, a)
	}
	if info, err := os.Stat(filepath.Dir(a.Path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder of its socket: %v %v", info.Mode(), err)
	}
	byFront := func() string {
		t.Helper()
		client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", front)
		}}}
		res, err := client.Get("http://web.test/")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return string(text)
	}
	if got := byFront(); got != fmt.Sprintf("pid %d", a.PID) {
		t.Errorf("by the listener: %q", got)
	}
	mustFetch(t, port, "target.test", "/", "first")
	_ = first.Close() // the file stays, and refuses
	if status, _, err := fetch(port, "target.test", "/"); err != nil || status != 502 {
		t.Errorf("a target that is gone: %d %v", status, err)
	}
	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}
	serve(back(), "second")
	q.until("the target is back", func() bool { _, body, err := fetch(port, "target.test", "/"); return err == nil && body == "second" })
	// Each start has a path of its own, and what was before leaves nothing.
	if out, code := q.cli("apps", "restart", "web"); code != 0 {
		t.Error(out)
	}
	b := q.appIs("web", "ready")
	if _, err := os.Stat(a.Path); b.Path == a.Path || !os.IsNotExist(err) {
		t.Errorf("%s is left; now %s", a.Path, b.Path)
	}
	// A daemon that was killed leaves the file of its listener, which is stale; one that another process serves is not.
	q.until("it is noted", func() bool { return slices.Contains(q.recorded(), b.PID) })
	q.signal(syscall.SIGKILL)
	<-q.done
	q.run()
	q.serving()
	q.appIs("web", "ready")
	if got := byFront(); got != fmt.Sprintf("pid %d", b.PID) {
		t.Errorf("after a crash, by the listener: %q, want pid %d", got, b.PID)
	}
	q.write(strings.Replace(body, front, target, 2))
	if out, code := q.cli("reload"); code != 1 || !strings.Contains(out, target) {
		t.Errorf("a socket of another process is taken: %d %s", code, out)
	}
	mustFetch(t, port, "target.test", "/", "second")
}
