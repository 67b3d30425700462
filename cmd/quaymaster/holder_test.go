package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// findTool is the path of a program, "" when it is missing.
func findTool(name string) string {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin", gobin()) {
		if path := filepath.Join(dir, name); syscall.Access(path, 1) == nil {
			return path
		}
	}
	return ""
}

// tool is the path of a program from Debian that a test runs for real.
func tool(t testing.TB, name string) string {
	t.Helper()
	if path := findTool(name); path != "" {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: make test-deps", name)
	}
	t.Skipf("LOUD SKIP: %s is missing: make test-deps", name)
	return ""
}

// gobin is where `go install` puts programs.
func gobin() string {
	out, _ := exec.Command("go", "env", "GOPATH").Output()
	return filepath.Join(strings.TrimSpace(string(out)), "bin")
}

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("LOUD SKIP: needs root")
	}
}

// wants is a configuration with a route on addr.
func wants(addr string) string {
	return fmt.Sprintf("routes:\n  - {name: busy, match: {ports: [%q], domains: [b.test]}, action: {respond: {status: 200}}}\n", addr)
}

// blamed starts quaymaster with a route on addr, which somebody holds, and is what it says about the port.
func blamed(t *testing.T, addr string) portRow {
	t.Helper()
	_, number, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	port, _ := strconv.Atoi(number)
	return start(t, wants(addr)).blames(port)
}

// blames is what it says about a port that somebody holds.
func (q *qm) blames(port int) portRow {
	q.t.Helper()
	q.until("the port is retried", func() bool { return q.wanted(port).State == "retrying" })
	row := q.wanted(port)
	if row.Holder == nil {
		q.t.Fatalf("port %d has no holder: %s", port, row.Error)
	}
	q.t.Log(row.Error)
	return row
}

// says fails unless the row says want, with %d standing for the holder's pid.
func (r portRow) says(t *testing.T, want string) {
	t.Helper()
	if want = strings.ReplaceAll(want, "%d", strconv.Itoa(r.Holder.PID)); !strings.Contains(r.Error, want) {
		t.Errorf("%s\nwant: %s", r.Error, want)
	}
}

// self is what the kernel calls this program: 15 characters of its name.
func self() string {
	name := filepath.Base(os.Args[0])
	return name[:min(len(name), 15)]
}

func TestP05_ErrorNamesTheHolder(t *testing.T) {
	t.Parallel()
	busy := freePort(t)
	addr := "127.0.0.1:" + strconv.Itoa(busy)
	child := hold(t, addr)
	row := blamed(t, addr)
	h := row.Holder
	if h.PID != child.Process.Pid || !strings.Contains(h.Command, "TestChildListener") || h.Exe == "" || h.User == "" || h.Started.IsZero() {
		t.Errorf("holder %+v, want pid %d with its command line, executable, user and start", h, child.Process.Pid)
	}
	row.says(t, "cannot bind tcp "+addr+": held by "+self()+" (pid %d, user "+h.User)
	row.says(t, `stop it with "kill %d", or wait: next try in `)
}

func TestP05_WithoutTheRightToLookItSaysSo(t *testing.T) {
	t.Parallel()
	needsNamespaces(t)
	busy := freePort(t)
	addr := "127.0.0.1:" + strconv.Itoa(busy)
	hold(t, addr)
	q := prepare(t, wants(addr))
	q.runScript("exec setpriv --reuid 65534 --regid 65534 --clear-groups --")
	q.until("it says who has the port", func() bool { return strings.Contains(q.log.String(), "cannot bind tcp "+addr) })
	who := "sudo quaymaster ports who " + strconv.Itoa(busy)
	want := "held by a process of user root (uid 0); run as root to see who; find it with \\\"" + who + "\\\" or \\\"sudo lsof -nP -iTCP:" + strconv.Itoa(busy) + " -sTCP:LISTEN\\\" and stop it"
	if !strings.Contains(q.log.String(), want) {
		t.Errorf("%s\nwant %s", q.log, want)
	}
	const nobody = "exec setpriv --reuid 65534 --regid 65534 --clear-groups --"
	if out, code := under(t, nobody, "ports", "who", strconv.Itoa(busy)); code != 0 || !strings.Contains(out, "run as root to see who: "+who+"\n") {
		t.Errorf("ports who: exit %d\n%s", code, out)
	}
	if out, code := under(t, nobody, "ports", "free", "--yes", strconv.Itoa(busy)); code != 1 || !strings.Contains(out, "a process of user root is not ended: its process cannot be seen from here; run as root") {
		t.Errorf("ports free: exit %d\n%s", code, out)
	}
}

// runScript starts quaymaster under a shell script that ends with what execs the program.
func (q *qm) runScript(script string, args ...string) {
	q.t.Helper()
	copied := filepath.Join(q.dir, "quaymaster") // for users that may not enter the folder of the binary
	copyFile(q.t, binary, copied)
	for path, mode := range map[string]os.FileMode{q.dir: 0o777, q.file: 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			q.t.Fatal(err)
		}
	}
	q.launch(nil, append([]string{"unshare", "-m", "sh", "-ec", script + ` "$0" "$@"`, copied, "run", "-c", q.file}, args...))
}

func TestP05_AnotherQuaymasterIsCalledSo(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	addr := "127.0.0.1:" + strconv.Itoa(p)
	first := start(t, wants(addr))
	row := blamed(t, addr)
	row.says(t, "held by another quaymaster (pid "+strconv.Itoa(first.cmd.Process.Pid)+", user ")
	row.says(t, "state folder "+first.dir+"/state)")
	row.says(t, `stop it with "quaymaster stop" before you start this one, or replace its program while it serves with "quaymaster upgrade"`)
}

// A port of a connection: nobody listens, and it cannot be bound all the same.
func TestP05_ConnectionThatHasThePortIsNamedAndIsNoHolder(t *testing.T) {
	t.Parallel()
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	p := freePort(t)
	addr := "127.0.0.1:" + strconv.Itoa(p)
	child := hold(t, addr, "QM_CHILD_DIAL="+target.Addr().String())
	server, err := target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	q := start(t, wants(addr))
	row := q.wanted(p)
	if row.State != "retrying" || row.Holder != nil {
		t.Fatalf("%+v", row)
	}
	for _, want := range []string{
		"nobody listens there, but a connection has that port as its own: " + self() + " (pid " + strconv.Itoa(child.Process.Pid) + ",",
		"connected to " + target.Addr().String(), "ip_local_reserved_ports=" + strconv.Itoa(p),
	} {
		if !strings.Contains(row.Error, want) {
			t.Errorf("%s\nwant %s", row.Error, want)
		}
	}
	_ = server.(*net.TCPConn).SetLinger(0) // no TIME_WAIT, which is not what this is about
	_ = server.Close()
	release(child)
	q.until("the port comes up", func() bool { return q.wanted(p).State == "bound" })
}

// One configuration that wants an address twice is refused before anything is bound. What is left is an address that the
// old one has and the new one gives up in the same reload.
func TestP06_OwnOverlappingBindIsCalledSo(t *testing.T) {
	t.Parallel()
	metrics, next := freePort(t), freePort(t)
	body := func(metrics, port int) string {
		return fmt.Sprintf("metrics: {address: \"127.0.0.1:%d\"}\n", metrics) + wants(fmt.Sprintf("0.0.0.0:%d", port))
	}
	q := start(t, body(metrics, freePort(t)))
	q.write(body(next, metrics))
	out, code := q.cli("reload")
	want := fmt.Sprintf("cannot bind tcp 0.0.0.0:%d: quaymaster itself holds an overlapping address for metrics; choose another port, or move metrics away by a reload of its own first", metrics)
	if code != 1 || !strings.Contains(out, want) {
		t.Errorf("exit %d, want 1 and %s:\n%s", code, want, out)
	}
	q.reload(body(next, freePort(t))) // what the error says, done
	q.reload(body(next, metrics))
}

// Each case has a network of its own. An IPv4 address can be bound while its interface is down; one of IPv6 cannot.
func TestP06_AddressThatIsNotToBeHad(t *testing.T) {
	t.Parallel()
	needsNamespaces(t)
	tool(t, "ip")
	const up = "ip link set lo up"
	for name, c := range map[string]struct{ script, addr, want string }{
		"interface down": {
			up + "; ip link add quay0 type veth peer name quay1; ip addr add fd00:9::7/64 dev quay0", "[fd00:9::7]:8080",
			`cannot bind tcp [fd00:9::7]:8080: address fd00:9::7 belongs to interface quay0, which is down; bring it up with "ip link set quay0 up", or wait: next try in `,
		},
		"no such address": {
			up, "10.9.8.7:8080",
			"cannot bind tcp 10.9.8.7:8080: this host has no address 10.9.8.7 (it has 127.0.0.1, ::1); use one of these, or a bare port number for all of them, " +
				"or let addresses be bound before they are there (sysctl net.ipv4.ip_nonlocal_bind=1, now 0), or wait: next try in ",
		},
		"IPv6 switched off": {
			up + "; echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6", "[::1]:8080",
			"cannot bind tcp [::1]:8080: IPv6 is off on this host (see net.ipv6.conf.all.disable_ipv6); write an IPv4 address or a bare port number, or wait: next try in ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
				t.Skipf("LOUD SKIP: this kernel has no IPv6: %v", err)
			}
			q := prepare(t, wants(c.addr))
			q.runScript("exec unshare -n sh -ec 'echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6; " + c.script + `; exec "$0" "$@"'`)
			q.serving()
			if row := q.wanted(8080); row.State != "retrying" || !strings.HasPrefix(row.Error, c.want) {
				t.Errorf("%s: %s\nwant: %s", row.State, row.Error, c.want)
			}
		})
	}
}

func TestP06_PermissionSaysWhatIsMissingAndThePresentLimit(t *testing.T) {
	t.Parallel()
	needsNamespaces(t)
	q := prepare(t, "routes:\n  - {name: a, match: {ports: [\"127.0.0.1:81\"], domains: [a.test]}, action: {respond: {status: 200}}}\n")
	// A network of its own: the limit is set here for nobody else.
	q.runScript(`exec unshare -n sh -ec 'echo 100 > /proc/sys/net/ipv4/ip_unprivileged_port_start; exec setpriv --reuid 65534 --regid 65534 --clear-groups -- "$0" "$@"'`)
	q.serving()
	row := q.wanted(81)
	for _, want := range []string{
		"cannot bind tcp 127.0.0.1:81: permission denied: ports below 100 (net.ipv4.ip_unprivileged_port_start) need CAP_NET_BIND_SERVICE; give it CAP_NET_BIND_SERVICE",
		"AmbientCapabilities=CAP_NET_BIND_SERVICE", "setcap cap_net_bind_service=+ep " + q.dir + "/quaymaster", "sysctl net.ipv4.ip_unprivileged_port_start=81",
	} {
		if !strings.Contains(row.Error, want) {
			t.Errorf("%s\nwant: %s", row.Error, want)
		}
	}
}

// A foreign holder with SO_REUSEPORT does not keep us from binding: the table of listeners does.
func TestP25_ForeignHolderWithReusePortIsFound(t *testing.T) {
	t.Parallel()
	for name, listens := range map[string]string{"same address": "127.0.0.1", "every address": "0.0.0.0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := freePort(t)
			child := hold(t, fmt.Sprintf("%s:%d", listens, p), "QM_CHILD_REUSE=1")
			q := start(t, fmt.Sprintf("routes:\n  - {name: a, match: {ports: [{port: \"127.0.0.1:%d\", reuse_port: true}], domains: [a.test]}, action: {respond: {status: 200}}}\n", p))
			row := q.wanted(p)
			want := fmt.Sprintf("cannot bind tcp 127.0.0.1:%d: held by %s (pid %d, user ", p, self(), child.Process.Pid)
			if row.State != "retrying" || !strings.HasPrefix(row.Error, want) {
				t.Errorf("%s: %s\nwant: %s", row.State, row.Error, want)
			}
			release(child)
			q.until("it comes up", func() bool { return q.wanted(p).State == "bound" })
		})
	}
}
