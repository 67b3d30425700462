package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Each kind of slowness holds both of the last slots, is timed out, counted by its reason, and gives the slots back.
func TestC04_SlowClientsAreTimedOut(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings string
		route    string // %d: port, %q: target
		say      string
		reason   string // "" where the client is told by an answer alone
		answer   string // what it starts with
	}{
		"silence on a TLS port": {
			"timeouts: {client_hello: 300ms}", `{match: {ports: [%d], domains: [a.test]}, action: {targets: [%q], tls: {mode: passthrough}}}`, "", "hello_timeout", "",
		},
		"half a ClientHello": {
			"timeouts: {client_hello: 300ms}", `{match: {ports: [%d], domains: [a.test]}, action: {targets: [%q], tls: {mode: passthrough}}}`, string(hello("a.test")[:100]), "hello_timeout", "",
		},
		"half a PROXY header": {
			"timeouts: {client_hello: 300ms}\ntrusted_proxies: [127.0.0.1]", `{match: {ports: [%d]}, action: {targets: [%q]}}`, "PROXY TCP4 192.0.2.1", "proxy_header", "",
		},
		"silence instead of a PROXY header": {
			"timeouts: {client_hello: 300ms}\ntrusted_proxies: [127.0.0.1]", `{match: {ports: [%d]}, action: {targets: [%q]}}`, "", "proxy_header", "",
		},
		"silence on an HTTP port": {
			"timeouts: {request_header: 300ms}", `{match: {ports: [%d]}, action: {targets: [%q]}}`, "", "header_timeout", "",
		},
		"half a request header": {
			"timeouts: {request_header: 300ms}", `{match: {ports: [%d]}, action: {targets: [%q]}}`, "GET / HTTP/1.1\r\nHost: a.te", "header_timeout", "HTTP/1.1 408 ",
		},
		"half a body": {
			"timeouts: {body_stall: 300ms}", `{match: {ports: [%d]}, action: {targets: [%q]}}`, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\nhalf", "", "HTTP/1.1 408 ",
		},
		"nothing after an answer": {
			"timeouts: {keep_alive: 300ms}", `{match: {ports: [%d]}, action: {targets: [%q]}}`, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "", "HTTP/1.1 200 ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := freePort(t)
			target := httpTarget(t, "a", func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err == nil {
					fmt.Fprint(w, "a")
				}
			})
			route := strings.Replace(fmt.Sprintf(c.route, p, target), "{match", "{name: r, match", 1)
			settings := c.settings
			if strings.Contains(settings, "trusted_proxies") {
				settings += fmt.Sprintf("\nproxy_protocol: {ports: [%d], policy: require}", p)
			}
			q := start(t, "max_connections: 2\n"+settings+"\nroutes:\n  - "+route+"\n")
			var slow []net.Conn
			for range 2 {
				conn := dial(t, p)
				if _, err := io.WriteString(conn, c.say); err != nil {
					t.Fatal(err)
				}
				slow = append(slow, conn)
			}
			for _, conn := range slow {
				got := string(untilEnd(t, conn, 20*time.Second))
				if !strings.HasPrefix(got, c.answer) || c.answer == "" && got != "" {
					t.Errorf("the slow client got %q, want %q", got, c.answer)
				}
			}
			if c.reason != "" {
				q.until("both are counted", func() bool { return q.rejected(c.reason) == 2 })
			}
			q.until("both slots are free", func() bool { return q.metric("quaymaster_connections_active") == 0 })
			dial(t, p) // and can be had
			dial(t, p)
			q.until("both slots are taken", func() bool { return q.metric("quaymaster_connections_active") == 2 })
		})
	}
}

// The last slots are not theirs who drip: a byte now and then does not move the deadline of a head.
func TestC04_DrippingDoesNotMoveTheDeadline(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := start(t, "max_connections: 2\ntimeouts: {client_hello: 1s, request_header: 1s}\nroutes:\n"+route("a", p, "a.test", httpTarget(t, "a", nil))+
		fmt.Sprintf("  - {name: s, match: {ports: [%d], domains: [s.test]}, action: {targets: [\"127.0.0.1:9\"], tls: {mode: passthrough}}}\n", p))
	drip := func(c net.Conn, text string) {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for i := range len(text) {
			if _, err := c.Write([]byte{text[i]}); err != nil {
				return
			}
			<-tick.C
		}
	}
	a, b := dial(t, p), dial(t, p)
	go drip(a, "GET / HTTP/1.1\r\nHost: a.test\r\nX-Long: "+strings.Repeat("x", 4000))
	go drip(b, string(hello("s.test")))
	untilEnd(t, a, 20*time.Second)
	untilEnd(t, b, 20*time.Second)
	q.until("both are counted", func() bool { return q.rejected("header_timeout") == 1 && q.rejected("hello_timeout") == 1 })
	q.until("a request is served", func() bool {
		status, _, err := fetch(p, "a.test", "/")
		return err == nil && status == 200
	})
}

// busy is the share of one CPU that the daemon has used while f ran.
func (q *qm) busy(f func()) float64 {
	q.t.Helper()
	used, since := cpu(q.t, q.cmd.Process.Pid), time.Now()
	f()
	return float64(cpu(q.t, q.cmd.Process.Pid)-used) / float64(time.Since(since))
}

// asked asks admin and metrics, which must answer.
func (q *qm) asked(metrics int) {
	q.t.Helper()
	for _, path := range []string{"/health", "/v1/status", "/v1/ports", "/metrics"} {
		if res, _, err := q.admin("GET", path, nil); err != nil || res.StatusCode != 200 {
			q.t.Fatalf("%s: %v %v", path, res, err)
		}
	}
	status, body, err := fetch(metrics, "127.0.0.1", "/metrics")
	if err != nil || status != 200 || !strings.Contains(body, "quaymaster_connections_active") {
		q.t.Fatalf("metrics over TCP: %d %v", status, err)
	}
}

// pass waits for a time that is the subject of the measurement.
func pass(d time.Duration) { <-time.After(d) }

func TestC04_SmallLimitOfDescriptors(t *testing.T) {
	t.Parallel()
	p, met := freePort(t), freePort(t)
	q := prepare(t, fmt.Sprintf("max_connections: 1000\nmetrics: {address: \"127.0.0.1:%d\"}\nroutes:\n", met)+route("a", p, "a.test", httpTarget(t, "a", nil)))
	q.runAs(limited(t, q.dir, binary, 64))
	q.serving()
	mustFetch(t, p, "a.test", "/", "a")
	before := q.fds()
	var open []net.Conn
	for range 300 { // many times what it can hold
		c, err := net.DialTimeout("tcp", at(p), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	if share := q.busy(func() { pass(2 * time.Second) }); share > 0.2 {
		t.Errorf("%.0f %% of a CPU while nothing happens", share*100)
	}
	q.asked(met)
	if q.rejected("max_connections") == 0 {
		t.Error("no refusal is counted")
	}
	for _, c := range open {
		_ = c.Close()
	}
	q.until("it recovers", func() bool {
		status, _, err := fetch(p, "a.test", "/")
		return err == nil && status == 200
	})
	q.until("the descriptors are back", func() bool { return q.fds() <= before+5 })
}

// A process that has really run out of descriptors: the limit is drawn to what it has open.
func TestC04_OutOfDescriptors(t *testing.T) {
	t.Parallel()
	p, tun, met := freePort(t), freePort(t), freePort(t)
	echo := tcpTarget(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	q := start(t, fmt.Sprintf("metrics: {address: \"127.0.0.1:%d\"}\nroutes:\n", met)+route("a", p, "a.test", httpTarget(t, "a", nil))+
		fmt.Sprintf("  - {name: t, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", tun, echo))
	old := dial(t, tun)
	talks := func() {
		t.Helper()
		b := make([]byte, 4)
		if _, err := old.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(old, b); err != nil || string(b) != "ping" {
			t.Fatalf("an open tunnel: %q %v", b, err)
		}
	}
	talks()
	var was unix.Rlimit
	pid := q.cmd.Process.Pid
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	limit := func(files uint64) {
		t.Helper()
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: was.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	quiet := func(when string) {
		t.Helper()
		if share := q.busy(func() { pass(time.Second) }); share > 0.2 {
			t.Errorf("%.0f %% of a CPU while %s", share*100, when)
		}
	}

	// The limit is a highest number: what is free below it goes to the first connections.
	limit(uint64(q.highestFD() + 1))
	var open []net.Conn
	q.until("a connection is closed for want of a descriptor", func() bool {
		c, err := net.DialTimeout("tcp", at(p), 5*time.Second)
		if err != nil {
			return false
		}
		t.Cleanup(func() { c.Close() })
		open = append(open, c)
		return q.rejected("no_fd") > 0
	})
	untilEnd(t, open[len(open)-1], 20*time.Second) // told by a close, not left waiting
	quiet("no descriptor is left")
	for range 5 {
		q.asked(met)
	}
	talks()
	if n := strings.Count(q.log.String(), "no file descriptor left"); n == 0 || n > 6 {
		t.Errorf("%d log lines about descriptors", n) // one in ten seconds and its like of other parts
	}

	// Not even the descriptors held in reserve can be had: connections wait in the kernel.
	limit(3)
	for range 5 {
		c, err := net.DialTimeout("tcp", at(p), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	quiet("connections wait that cannot be taken in")
	talks()

	limit(was.Cur)
	q.until("it recovers", func() bool {
		status, _, err := fetch(p, "a.test", "/")
		return err == nil && status == 200
	})
	q.asked(met)
	talks()
}

// highestFD is the highest number among the daemon's descriptors.
func (q *qm) highestFD() int {
	q.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", q.cmd.Process.Pid))
	if err != nil {
		q.t.Fatal(err)
	}
	highest := 0
	for _, e := range list {
		n, _ := strconv.Atoi(e.Name())
		highest = max(highest, n)
	}
	return highest
}
