package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/quaymaster/quaymaster/internal/api"
)

// quickstartTree is what `make run` needs of the source, with a folder for temporary files of its own, all of it of a user.
func quickstartTree(t *testing.T, uid int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, d := range []string{"bin", "examples", "scripts", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copyFile(t, binary, dir+"/bin/quaymaster")
	copyFile(t, "../../examples/quickstart.yaml", dir+"/examples/quickstart.yaml")
	copyFile(t, "../../scripts/quickstart", dir+"/scripts/quickstart")
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Chmod(path, 0o755)
		}
		if err == nil && uid != os.Getuid() {
			err = os.Chown(path, uid, uid)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// quickstart is a run of the script as a user.
func quickstart(dir string, uid int, args ...string) *exec.Cmd {
	cmd := exec.Command(dir+"/scripts/quickstart", args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir+"/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if uid != os.Getuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	}
	return cmd
}

// quickstartOnce runs it to its end, which must be a good one.
func quickstartOnce(t *testing.T, dir string, uid int) string {
	t.Helper()
	out, err := quickstart(dir, uid, "--once").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "\nall answers were right\n") {
		t.Fatalf("%v\n%s", err, tail(string(out), 80))
	}
	if list, _ := os.ReadDir(dir + "/tmp"); len(list) > 0 {
		t.Errorf("it has left %v", list)
	}
	return string(out)
}

// quickstartServing runs it until it serves, and returns the daemon and its apps.
func quickstartServing(t *testing.T, dir string, uid int) (cmd *exec.Cmd, daemon int, apps map[string]int) {
	t.Helper()
	cmd = quickstart(dir, uid)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "serving on port ") {
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	list, _ := filepath.Glob(dir + "/tmp/*/admin.sock")
	if len(list) != 1 {
		t.Fatalf("it does not serve: %v", list)
	}
	q := &qm{t: t, sock: list[0]}
	var s api.Status
	q.get("/v1/status", &s)
	var all []api.App
	q.get("/v1/apps", &all)
	apps = make(map[string]int)
	for _, a := range all {
		apps[a.Name] = a.PID
		t.Cleanup(func() { _ = syscall.Kill(-a.PID, syscall.SIGKILL) })
	}
	return cmd, s.PID, apps
}

var appsRow = regexp.MustCompile(`(?m)^one +ready +\d+ +http://one\.localhost:\d+ +\d+ +\d+ s +0 +[\d.]+ MiB +[\d.]+ s +-$`)

func TestD07_TheQuickstartRunsWhateverWasBefore(t *testing.T) {
	t.Parallel()
	uid := os.Getuid()
	dir := quickstartTree(t, uid)
	t.Run("on a fresh machine, and again", func(t *testing.T) {
		for range 2 {
			out := quickstartOnce(t, dir, uid)
			before, after, _ := strings.Cut(out, "\n$ curl ")
			if !strings.Contains(before, "two     sleeping") || !strings.Contains(after, "two     ready") {
				t.Errorf("two did not sleep first:\n%s", out)
			}
			if !appsRow.MatchString(after) || !regexp.MustCompile(`(?m)^APP +STATE +PORT +URL +PID +UPTIME +RESTARTS +MEMORY +CPU +REASON$`).MatchString(after) {
				t.Errorf("a table of apps without one of its columns:\n%s", after)
			}
		}
	})
	t.Run("with its port held", func(t *testing.T) {
		if l, err := net.Listen("tcp", ":8080"); err == nil { // else somebody else holds it, which is as good
			defer func() { _ = l.Close() }()
		}
		out := quickstartOnce(t, dir, uid)
		apps, _, _ := strings.Cut(out, "\n$ curl ")
		if !strings.Contains(out, "fallback") || !strings.Contains(apps, "http://one.localhost:1808") {
			t.Errorf("no other port is named:\n%s", out)
		}
	})
	t.Run("after a kill of the daemon", func(t *testing.T) {
		cmd, daemon, apps := quickstartServing(t, dir, uid)
		_ = syscall.Kill(daemon, syscall.SIGKILL)
		_ = cmd.Wait()
		out := quickstartOnce(t, dir, uid)
		for name, pid := range apps {
			if !ended(pid) {
				t.Errorf("%s still runs as %d", name, pid)
			}
		}
		if !strings.Contains(out, "two     ready") {
			t.Errorf("apps were not taken over:\n%s", out)
		}
	})
	t.Run("after a kill of the script", func(t *testing.T) {
		cmd, daemon, _ := quickstartServing(t, dir, uid)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if out := quickstartOnce(t, dir, uid); !strings.Contains(out, "an earlier run still serves") {
			t.Errorf("the daemon %d was not found:\n%s", daemon, out)
		}
		if !ended(daemon) {
			t.Errorf("the daemon %d still runs", daemon)
		}
	})
	t.Run("as another user", func(t *testing.T) {
		if uid != 0 {
			t.Skip("only root can be another")
		}
		const nobody = 65534
		quickstartOnce(t, quickstartTree(t, nobody), nobody)
	})
}

func TestEchoListensWhereAnAppIsTo(t *testing.T) {
	t.Parallel()
	for want, env := range map[string]map[string]string{
		"127.0.0.1:0":    {"HOST": "::1"},
		"127.0.0.1:3000": {"PORT": "3000", "HOST": "my-machine"},
		"[::1]:3000":     {"PORT": "3000", "HOST": "::1"},
		"0.0.0.0:3000":   {"PORT": "3000", "HOST": "0.0.0.0"},
	} {
		if got := echoAddr(func(name string) string { return env[name] }); got != want {
			text, _ := json.Marshal(env)
			t.Errorf("%s: %s, not %s", text, got, want)
		}
	}
}
