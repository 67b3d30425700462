package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
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
