package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The tables of sockets are hidden from the one process, as they are from every one on Android and on a hardened host.
const hideTables = "mount -t tmpfs none /proc/$$/net; "

func TestP26_LsofIsAskedWhereTheTablesCannotBeRead(t *testing.T) {
	t.Parallel()
	needsNamespaces(t)
	tool(t, "lsof")
	busy := freePort(t)
	addr := "127.0.0.1:" + strconv.Itoa(busy)
	child := hold(t, addr)
	q := prepare(t, wants(addr))
	q.runScript(hideTables + "exec")
	q.serving()
	row := q.wanted(busy)
	if want := fmt.Sprintf("cannot bind tcp %s: held by %s (pid %d, user root", addr, self(), child.Process.Pid); row.Holder == nil || row.Holder.PID != child.Process.Pid || !strings.HasPrefix(row.Error, want) {
		t.Errorf("%s\nwant: %s", row.Error, want)
	}
	out, code := under(t, hideTables+"exec", "ports", "who", strconv.Itoa(busy))
	if code != 0 || !strings.Contains(out, strconv.Itoa(child.Process.Pid)) {
		t.Errorf("ports who: exit %d\n%s", code, out)
	}
}

func TestP26_WithoutLsofTheErrorSaysWhyAndWhatCanTell(t *testing.T) {
	t.Parallel()
	needsNamespaces(t)
	busy := freePort(t)
	addr := "127.0.0.1:" + strconv.Itoa(busy)
	hold(t, addr)
	q := prepare(t, wants(addr))
	q.runScript(hideTables + "export PATH=/nowhere; exec")
	q.serving()
	command := fmt.Sprintf("lsof -nP -iTCP:%d -sTCP:LISTEN", busy)
	want := "cannot bind tcp " + addr + ": already in use, and who holds it cannot be looked up (open /proc/net/tcp: no such file or directory; lsof is not installed); " +
		"find it with \"" + command + "\" and stop it, or wait: next try in "
	if row := q.wanted(busy); !strings.HasPrefix(row.Error, want) {
		t.Errorf("%s\nwant: %s", row.Error, want)
	}
	out, code := under(t, hideTables+"export PATH=/nowhere; exec", "ports", "who", strconv.Itoa(busy))
	if code != 1 || !strings.Contains(out, "lsof is not installed; this can tell: "+command) {
		t.Errorf("ports who: exit %d\n%s", code, out)
	}
	// lsof shows a user nothing of others: that nobody is seen does not say that nobody is there.
	if lsof, err := exec.LookPath("lsof"); err == nil {
		out, code = under(t, hideTables+"exec setpriv --reuid 65534 --regid 65534 --clear-groups --", "ports", "who", strconv.Itoa(busy))
		if code != 1 || !strings.Contains(out, "only what is this user's; this can tell: sudo "+command) {
			t.Errorf("ports who with %s, as a user: exit %d\n%s", lsof, code, out)
		}
	}
}

func TestP26_HiddenProcessesAreSaidToBeHidden(t *testing.T) {
	t.Parallel()
	needsNamespaces(t)
	busy := freePort(t)
	addr := "127.0.0.1:" + strconv.Itoa(busy)
	hold(t, addr)
	q := prepare(t, wants(addr))
	q.runScript("mount -t proc -o hidepid=2 proc /proc; exec setpriv --reuid 65534 --regid 65534 --clear-groups --")
	q.serving()
	want := "cannot bind tcp " + addr + ": held by a process of user root (uid 0); /proc hides other users' processes (hidepid="
	if row := q.wanted(busy); !strings.HasPrefix(row.Error, want) || !strings.Contains(row.Error, "run as root to see who; find it with \"sudo quaymaster ports who "+strconv.Itoa(busy)+"\" or \"sudo lsof -nP -iTCP:"+strconv.Itoa(busy)) {
		t.Errorf("%s\nwant: %s", row.Error, want)
	}
}

// under runs a verb under a script that ends with what execs the program.
func under(t testing.TB, script string, args ...string) (string, int) {
	t.Helper()
	dir := t.TempDir()
	copied := filepath.Join(dir, "quaymaster")
	copyFile(t, binary, copied)
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-ec", script + ` "$0" "$@"`, copied}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}
