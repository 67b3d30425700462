package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests of this file are what `make chaos` has found, each made small.

// TestP20_AKilledSuccessorIsReplacedWhileTheFirstDrains: the process that was replaced keeps its connections, but not the
// state folder; when the new one dies the next start needs not wait for the old one's last client.
func TestP20_AKilledSuccessorIsReplacedWhileTheFirstDrains(t *testing.T) {
	t.Parallel()
	p, tunnel := freePort(t), freePort(t)
	echo := tcpTarget(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	body := "routes:\n" + fileRoute("a", p, "a.test", "a") +
		fmt.Sprintf("  - {name: tunnel, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", tunnel, echo)
	q := start(t, body)
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", tunnel))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	say := func(what string) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, what+"\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); err != nil || got != what+"\n" {
			t.Fatalf("%q, %v; the tunnel should give %q back", got, err, what)
		}
	}
	say("before")
	first, done := q.cmd.Process.Pid, q.done
	next := q.upgrade()
	say("replaced")
	if err := syscall.Kill(next, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	vanished(t, next)
	q.run()
	q.serving()
	mustFetch(t, p, "a.test", "/", "a")
	say("to the end")
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", first)); err != nil {
		t.Errorf("the process that was replaced is gone: %v", err)
	}
	c.Close()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("the process that was replaced does not end")
	}
}

// TestC13_AnUploadThatWeCutIsNotCalledSlow: when its route goes with on_remove: close the client sees the end of its
// connection, and no 408 for a body that it was still sending.
func TestC13_AnUploadThatWeCutIsNotCalledSlow(t *testing.T) {
	t.Parallel()
	const clients = 100
	target := script(t, func(_ net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	p, other := freePort(t), freePort(t)
	stays := fileRoute("stays", other, "b.test", "b")
	q := start(t, "routes:\n"+stays+fmt.Sprintf("  - {name: goes, match: {ports: [%d]}, action: {targets: [%q]}, on_remove: close}\n", p, target))
	var cs []net.Conn
	for range clients {
		c := dial(t, p)
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf"); err != nil {
			t.Fatal(err)
		}
		cs = append(cs, c)
	}
	q.until("all are being sent", func() bool { return q.standing("goes") == clients })
	q.reload("routes:\n" + stays)
	for _, c := range cs {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if got, err := io.ReadAll(c); len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%.200q, %v; want the end of the connection", got, err)
		}
	}
	q.until("all are logged", func() bool { return strings.Count(q.out.String(), `"status":499`) == clients })
	if strings.Contains(q.out.String(), "body_stall") {
		t.Error("the log says that clients were too slow")
	}
}

// TestC13_ARouteTakesAlongWhoCameBeforeItChanged: on_remove is for everybody on the route of that name, those included who
// came when it was configured otherwise; what it said last holds.
func TestC13_ARouteTakesAlongWhoCameBeforeItChanged(t *testing.T) {
	t.Parallel()
	echo := tcpTarget(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	stays, drains, closes := freePort(t), freePort(t), freePort(t)
	route := func(name string, port int, how string) string {
		return fmt.Sprintf("  - {name: %s, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}, on_remove: %s}\n", name, port, echo, how)
	}
	base := "drain_timeout: 1s\nroutes:\n" + route("stays", stays, "close")
	q := start(t, base+route("drains", drains, "close")+route("closes", closes, "drain"))
	ping := func(c net.Conn) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, "ping"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	a, b, c := dial(t, stays), dial(t, drains), dial(t, closes)
	ping(b)
	ping(c)
	q.reload(base + route("drains", drains, "drain") + route("closes", closes, "close"))
	ping(a)
	ping(b)
	ping(c)
	q.reload(base + route("drains", drains, "drain"))
	untilEnd(t, c, 20*time.Second)
	ping(b)
	q.reload(base)
	untilEnd(t, b, 20*time.Second) // after drain_timeout
	ping(a)
}

// standing counts the connections that stand on a route.
func (q *qm) standing(route string) (n int) {
	q.t.Helper()
	var all []struct{ Route string }
	q.get("/v1/connections", &all)
	for _, c := range all {
		if c.Route == route {
			n++
		}
	}
	return n
}
