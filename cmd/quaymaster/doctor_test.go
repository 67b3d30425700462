package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/doctor"
)

// examine runs `doctor --json` by way of a command line that ends in the program and its arguments.
func (q *qm) examine(before ...string) (list []doctor.Finding, code int) {
	q.t.Helper()
	args := append(before, binary, "doctor", "--json", "-c", q.file)
	out, err := exec.Command(args[0], args[1:]...).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		q.t.Fatal(err)
	}
	var e examined
	if err := json.Unmarshal(out, &e); err != nil {
		q.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	if e.OK != (code == 0) {
		q.t.Errorf("ok is %v and the exit code %d", e.OK, code)
	}
	return e.Findings, code
}

// finding wants one of that level about the object, with these words in what it says or tells to do.
func finding(t testing.TB, list []doctor.Finding, level doctor.Level, object string, words ...string) {
	t.Helper()
	var about []string
	for _, f := range list {
		if f.Object != object {
			continue
		}
		text := string(f.Level) + ": " + f.Message + " | " + f.Remedy
		missing := f.Level != level || level != doctor.OK && f.Remedy == ""
		for _, w := range words {
			missing = missing || !strings.Contains(text, w)
		}
		if !missing {
			return
		}
		about = append(about, text)
	}
	t.Errorf("no %s about %s that says %q, but\n%s", level, object, words, strings.Join(about, "\n"))
}

// asNobody runs a command as a user without rights.
func asNobody(t testing.TB) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "" {
			t.Skip("LOUD SKIP: only root can be another user")
		}
		t.Fatal("only root can be another user")
	}
	return []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
}

// everyones is a folder that other users can look into, with the instance's program and configuration in it.
func (q *qm) everyones() {
	q.t.Helper()
	if err := errors.Join(os.Chmod(q.dir, 0o755), os.Chmod(q.file, 0o644), os.Chmod(filepath.Dir(binary), 0o755)); err != nil {
		q.t.Fatal(err)
	}
}

// folderTree lists what is in a folder, with modes, sizes and times of change.
func folderTree(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestD06_NothingRunsAndAllIsFree(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := prepare(t, fmt.Sprintf("max_connections: 100\nroutes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", p))
	before := folderTree(t, q.dir)
	list, code := q.examine()
	if code != 0 {
		t.Errorf("exit code %d: %+v", code, list)
	}
	finding(t, list, doctor.OK, fmt.Sprintf(":%d", p), "free")
	finding(t, list, doctor.OK, "quaymaster", "none runs")
	finding(t, list, doctor.OK, "open files", "max_connections 100 needs 329")
	finding(t, list, doctor.OK, "state_dir", "a start makes it")
	finding(t, list, doctor.OK, "TIME_WAIT")
	if after := folderTree(t, q.dir); after != before {
		t.Errorf("something was changed:\n%s\n%s", before, after)
	}
	if inode(t, p) != 0 {
		t.Errorf("port %d is still listened on", p)
	}
	out, code := cli(t, "doctor", "-c", q.file)
	if code != 0 || !strings.Contains(out, "limits\n") || !strings.Contains(out, fmt.Sprintf("  ok    :%d: free\n", p)) || !strings.Contains(out, "0 failures") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func TestD06_FewDescriptors(t *testing.T) {
	t.Parallel()
	q := prepare(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", freePort(t)))
	list, code := q.examine("sh", "-c", `ulimit -n 64; exec "$0" "$@"`)
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	finding(t, list, doctor.Fail, "open files", "allows 64", "needs 20129", "only 16 connections", "nofile 20129")
	list, _ = q.examine("sh", "-c", `ulimit -n 4000; exec "$0" "$@"`)
	finding(t, list, doctor.Warn, "open files", "allows 4000")
}

// A limit that binds the daemon is told, whatever the shell of the one who asks allows.
func TestD06_DescriptorsOfTheRunningDaemon(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := prepare(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", p))
	q.runAs(limited(t, q.dir, binary, 500))
	q.serving()
	list, _ := q.examine()
	finding(t, list, doctor.Warn, "open files", fmt.Sprintf("pid %d may have 500", q.cmd.Process.Pid), "only 185 connections")
	finding(t, list, doctor.OK, fmt.Sprintf(":%d", p), "held by the running quaymaster")
	finding(t, list, doctor.OK, "state lock", "held by the running quaymaster")
	finding(t, list, doctor.OK, "quaymaster", "serving")
}

func TestD06_HeldPort(t *testing.T) {
	t.Parallel()
	busy, spare, free := freePort(t), freePort(t), freePort(t)
	h := hold(t, ":"+strconv.Itoa(busy))
	q := prepare(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d, %d]}, action: {respond: {status: 200}}}\n"+
		"  - {name: b, match: {ports: [\"127.0.0.1:%d\"], domains: [b.test]}, action: {respond: {status: 200}}}\n", busy, free, busy))
	was := inode(t, busy)
	list, code := q.examine()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	// The wildcard swallows the specific address: one socket, one finding.
	finding(t, list, doctor.Fail, fmt.Sprintf(":%d", busy), fmt.Sprintf("pid %d", h.Process.Pid), "kill "+strconv.Itoa(h.Process.Pid))
	finding(t, list, doctor.OK, fmt.Sprintf(":%d", free), "free")
	if now := inode(t, busy); now != was || now == 0 {
		t.Errorf("the holder's socket was %d and is %d", was, now)
	}
	dial(t, busy)
	q.write(fmt.Sprintf("routes:\n  - {name: b, match: {ports: [{port: %d, fallback: [%d]}]}, action: {respond: {status: 200}}}\n", busy, spare))
	list, code = q.examine()
	if code != 0 {
		t.Errorf("exit code %d with a fallback that is free", code)
	}
	finding(t, list, doctor.Warn, fmt.Sprintf(":%d", busy), fmt.Sprintf(":%d would serve", spare))
}

func TestD06_AddressNotOnThisHost(t *testing.T) {
	t.Parallel()
	q := prepare(t, "routes:\n  - {name: a, match: {ports: [\"192.0.2.1:8080\"]}, action: {respond: {status: 200}}}\n")
	list, code := q.examine()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	finding(t, list, doctor.Fail, "192.0.2.1:8080", "this host has no address 192.0.2.1", "127.0.0.1", "use one of these")
}

func TestD06_AnotherUser(t *testing.T) {
	t.Parallel()
	nobody := asNobody(t)
	low := unprivilegedStart(t)
	q := prepare(t, fmt.Sprintf("log: {access: {file: /root/none/access.log}}\nroutes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", low))
	q.everyones()
	if err := os.Mkdir(q.dir+"/state", 0o700); err != nil {
		t.Fatal(err)
	}
	list, code := q.examine(nobody...)
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	finding(t, list, doctor.Fail, fmt.Sprintf(":%d", low), "permission denied", "CAP_NET_BIND_SERVICE", fmt.Sprintf("ip_unprivileged_port_start=%d", low))
	finding(t, list, doctor.Fail, "state_dir", "user nobody may not write in "+q.dir+"/state", "chown -R nobody")
	finding(t, list, doctor.Fail, "admin.socket", "may not write in "+q.dir)
	finding(t, list, doctor.Fail, "log.access.file", "cannot get to /root/none/access.log", "permission denied")
	if err := os.Remove(q.dir + "/state"); err != nil {
		t.Fatal(err)
	}
	list, _ = q.examine(nobody...)
	finding(t, list, doctor.Fail, "state_dir", "may not make it in "+q.dir, "install -d -m 700 -o nobody "+q.dir+"/state")
}

// The daemon of another user is judged by that user's rights, though root asks.
func TestD06_RightsOfTheRunningDaemon(t *testing.T) {
	t.Parallel()
	nobody := asNobody(t)
	low := unprivilegedStart(t)
	q := prepare(t, "")
	q.write(fmt.Sprintf("log: {access: {file: %s/logs/access.log}}\nroutes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", q.dir, low))
	q.everyones()
	if err := errors.Join(os.Mkdir(q.dir+"/logs", 0o755), os.Chown(q.dir, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	overwrite(t, q.dir+"/logs/access.log", nil)
	if err := os.Chown(q.dir+"/logs/access.log", 65534, 65534); err != nil {
		t.Fatal(err)
	}
	q.runAs(append(nobody, binary)...)
	q.serving()
	list, code := q.examine()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	finding(t, list, doctor.Fail, fmt.Sprintf(":%d", low), "user nobody may not bind", "CAP_NET_BIND_SERVICE")
	finding(t, list, doctor.Warn, "quaymaster", "degraded")
	if err := errors.Join(os.Chown(q.dir+"/state", 0, 0), os.Remove(q.dir+"/logs/access.log")); err != nil {
		t.Fatal(err)
	}
	list, _ = q.examine()
	finding(t, list, doctor.Fail, "state_dir", "user nobody may not write in")
	finding(t, list, doctor.Fail, "log.access.file", "user nobody may not make "+q.dir+"/logs/access.log", "install -d -m 750 -o nobody")
}

func TestD06_FilesThatOthersMayUse(t *testing.T) {
	t.Parallel()
	q := prepare(t, "")
	token := q.dir + "/token"
	overwrite(t, token, []byte("sesame"))
	if err := errors.Join(os.Chmod(token, 0o644), os.Chmod(q.dir, 0o777), os.Mkdir(q.dir+"/state", 0o755)); err != nil {
		t.Fatal(err)
	}
	// The admin settings that write adds stand in the way of others.
	text := fmt.Sprintf("state_dir: %s/state\nadmin: {socket: %s, address: \"127.0.0.1:%d\", token_file: %s}\nroutes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n",
		q.dir, q.sock, freePort(t), token, freePort(t))
	overwrite(t, q.file, []byte(text))
	if err := os.Chmod(q.file, 0o666); err != nil {
		t.Fatal(err)
	}
	list, code := q.examine()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	finding(t, list, doctor.Warn, "admin.token_file", "0644", "chmod 600 "+token)
	finding(t, list, doctor.Warn, "admin.socket", "0777", "chmod go-w "+q.dir)
	finding(t, list, doctor.Warn, "state_dir", "0755", "chmod 700")
	finding(t, list, doctor.Fail, q.file, "everybody may change it", "chmod o-w "+q.file)
}

func TestD06_StateLock(t *testing.T) {
	t.Parallel()
	q := start(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", freePort(t)))
	pid := q.cmd.Process.Pid
	out, err := exec.Command(binary, "doctor", "--json", "-c", q.file, "--socket", q.dir+"/other.sock").Output()
	var e examined
	if json.Unmarshal(out, &e) != nil || err == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	finding(t, e.Findings, doctor.Fail, "state lock", fmt.Sprintf("pid %d", pid), "--socket", fmt.Sprintf("kill %d", pid))
	q.signal(os.Kill)
	q.wait(20 * time.Second)
	list, _ := q.examine()
	finding(t, list, doctor.OK, "state lock", "left from an earlier run")
	finding(t, list, doctor.OK, "quaymaster", "none runs")
}

func TestD06_DaemonThatHangs(t *testing.T) {
	t.Parallel()
	q := start(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", freePort(t)))
	q.signal(syscall.SIGSTOP)
	list, code := q.examine()
	q.signal(syscall.SIGCONT)
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	finding(t, list, doctor.Fail, "quaymaster", "gives no answer", q.sock)
	finding(t, list, doctor.Fail, "state lock", fmt.Sprintf("pid %d", q.cmd.Process.Pid))
}

func TestD06_TroublesOfTheDaemonAreRepeated(t *testing.T) {
	t.Parallel()
	busy := freePort(t)
	h := hold(t, ":"+strconv.Itoa(busy))
	q := start(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", busy))
	list, code := q.examine()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	finding(t, list, doctor.Warn, "quaymaster", "degraded")
	finding(t, list, doctor.Fail, fmt.Sprintf(":%d", busy), fmt.Sprintf("pid %d", h.Process.Pid))
}

func TestD06_Disk(t *testing.T) {
	t.Parallel()
	q := prepare(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", freePort(t)))
	dir := q.onDisk("size=64k")
	filler := fillUp(t, dir)
	list, code := q.examine()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	finding(t, list, doctor.Fail, "disk of state_dir", "no space left", "df -h "+dir)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	q.remountState(unix.MS_RDONLY, "")
	list, _ = q.examine()
	finding(t, list, doctor.Fail, "disk of state_dir", "read-only", "mount -o remount,rw")
}

func TestD06_Configuration(t *testing.T) {
	t.Parallel()
	q := prepare(t, "nonsense: 1\n")
	list, code := q.examine()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	finding(t, list, doctor.Fail, q.file, "1 mistake", "nonsense", "quaymaster check")
	finding(t, list, doctor.OK, "TIME_WAIT") // the machine was looked at all the same
	cmd := exec.Command(binary, "doctor", "--json", "--socket", q.sock)
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	if _, second := os.Stat("/etc/quaymaster/quaymaster.yaml"); second == nil {
		return // this machine has one
	}
	var e examined
	if json.Unmarshal(out, &e) != nil || err != nil {
		t.Fatalf("without a configuration: %v\n%s", err, out)
	}
	finding(t, e.Findings, doctor.Warn, "configuration", "-c FILE")
}

// A process that hides others, and a machine without /proc.
func TestD06_Proc(t *testing.T) {
	t.Parallel()
	nobody := strings.Join(asNobody(t), " ")
	q := prepare(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", freePort(t)))
	q.everyones()
	list, _ := q.examine("unshare", "-m", "sh", "-c", `mount -t proc -o hidepid=2 proc /proc && exec `+nobody+` "$0" "$@"`)
	finding(t, list, doctor.Warn, "/proc", "hidepid", "remount,hidepid=0")
	list, _ = q.examine("unshare", "-m", "sh", "-c", `mount -t tmpfs none /proc && exec "$0" "$@"`)
	finding(t, list, doctor.Warn, "/proc", "/proc/net/tcp cannot be read", "mount -t proc proc /proc")
}

// What a foreign listener sees of an examination is nothing: no connection, no close, no lost bind.
func TestD06_ProbesDisturbNobody(t *testing.T) {
	t.Parallel()
	tcp, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	came := make(chan struct{}, 100)
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			c.Close()
			came <- struct{}{}
		}
	}()
	q := prepare(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [%d]}, action: {respond: {status: 200}}}\n", tcp.Addr().(*net.TCPAddr).Port))
	for range 5 {
		list, _ := q.examine()
		finding(t, list, doctor.Fail, fmt.Sprintf(":%d", tcp.Addr().(*net.TCPAddr).Port), fmt.Sprintf("pid %d", os.Getpid()))
	}
	if len(came) > 0 {
		t.Errorf("%d connections came", len(came))
	}
	dial(t, tcp.Addr().(*net.TCPAddr).Port)
	select {
	case <-came:
	case <-time.After(10 * time.Second):
		t.Error("the listener takes nothing any more")
	}
}
