package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
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
