package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestA07_AnAppThatIsReadyByItsWordsNeedNotSayThemAgain(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 2)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\napps:\n", leases, leases+1)+appEntry(t, "worker", "mute", `ready: {log: "nothing more"}`))
	before := q.appIs("worker", "ready")
	q.until("it is on record as ready", func() bool {
		text, _ := os.ReadFile(q.dir + "/state/apps.json")
		return strings.Contains(strings.ReplaceAll(string(text), " ", ""), `"ready":true`)
	})
	q.signal(syscall.SIGKILL)
	<-q.done
	q.run()
	q.serving()
	if after := q.appIs("worker", "ready"); after.PID != before.PID || after.Restarts != 0 {
		t.Errorf("was %+v, is %+v", before, after)
	}
}

func TestA09_FollowingGoesOnOverRestartsAndSaysWhenTheDaemonEnds(t *testing.T) {
	t.Parallel()
	leases := freePorts(t, 2)
	q := startApps(t, fmt.Sprintf("app_ports: %d-%d\napps:\n", leases, leases+1)+appEntry(t, "web", "serve"))
	q.appIs("web", "ready")
	said := &lockedBuffer{}
	cmd := exec.Command(binary, "apps", "logs", "-f", "web", "--socket", q.sock)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	times := func(n int) {
		t.Helper()
		q.until(fmt.Sprintf("it listens for the %d. time", n), func() bool { return strings.Count(said.String(), "now listening\n") == n })
	}
	times(1)
	for n := 2; n < 4; n++ {
		if out, code := q.cli("apps", "restart", "web"); code != 0 {
			t.Fatal(out)
		}
		times(n)
	}
	q.signal(syscall.SIGTERM)
	if code := q.wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	_ = cmd.Wait()
	if code, text := cmd.ProcessState.ExitCode(), said.String(); code != 1 || !strings.Contains(text, "the daemon has ended") || !strings.Contains(text, "-- ended: exit code 0 --") {
		t.Errorf("exit %d\n%s", code, text)
	}
}
