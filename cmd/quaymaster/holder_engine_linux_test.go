package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A netUser is the user that containers without root are run as, in a mount namespace of its own that knows that user.
const netUser = 54321

// podmanOf is a podman of root or of a user, with everything of its own: storage, locks, user database, network and
// processes. What runs in it is seen from here by its files alone, and ends with its first process, also when this one is
// killed.
type podmanOf struct {
	t    *testing.T
	dir  string
	user int
	fs   string // what containers see: a program that listens
	init int    // pid of the first process
	ids  string // of the containers there were
}

const listenProgram = `package main

import (
	"net"
	"os"
)

func main() {
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Write([]byte("container"))
		c.Close()
	}
}
`

// listener is that program.
var listener = static{text: listenProgram}

// newPodman makes an engine for root or for a user.
func newPodman(t *testing.T, user int) *podmanOf {
	t.Helper()
	needsNamespaces(t)
	for _, program := range []string{"podman", "runc", "nsenter", "setpriv", "ip"} {
		tool(t, program)
	}
	if err := unix.Access("/sys/fs/cgroup", unix.W_OK); err != nil {
		t.Skipf("LOUD SKIP: no container can be run here: /sys/fs/cgroup: %v", err)
	}
	dir, err := os.MkdirTemp("", "qm-pod-")
	if err != nil {
		t.Fatal(err)
	}
	p := &podmanOf{t: t, dir: dir, user: user, fs: dir + "/fs"}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name, text := range map[string]string{
		"containers.conf": "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\nruntime = \"runc\"\n" +
			"cgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n[network]\nnetwork_backend = \"netavark\"\n" +
			"network_config_dir = \"" + dir + "/net\"\n",
		"passwd": fmt.Sprintf("root:x:0:0:root:/root:/bin/sh\nqmtest:x:%d:%d::%s/home:/bin/sh\n", netUser, netUser, dir),
		"group":  fmt.Sprintf("root:x:0:\nqmtest:x:%d:\n", netUser),
		"subuid": "qmtest:700000:65536\n", "subgid": "qmtest:700000:65536\n", "fs/etc/hosts": "", "home/x": "", "runtime/x": "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, dir+"/fs/listen", listener.binary(t), 0o755)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, user, user)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.sweep)
	p.boot()
	t.Cleanup(p.end)
	return p
}

// world makes the place in which an engine runs: files that engines share are hidden, and there is a way out, for pasta
// wants one. The first process takes in those whose parents have ended, as the first process of a system does.
const world = `cd "$1"
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/lock
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
ip link add out0 type veth peer name out1
ip addr add 198.51.100.2/24 dev out0
ip link set out0 up
ip link set out1 up
ip route add default via 198.51.100.1
cp -a /etc etc
if [ "$2" != 0 ]; then
  cp passwd group subuid subgid etc
  mount -t tmpfs -o mode=755 tmpfs /dev/net
  mknod -m 666 /dev/net/tun c 10 200
fi
mount --bind etc /etc
[ ! -d /opt ] || mount -t tmpfs tmpfs /opt
echo ready
sleep infinity & wait
`

// boot starts the first process.
func (p *podmanOf) boot() {
	p.t.Helper()
	if _, err := os.Stat("/dev/net/tun"); p.user > 0 && err != nil {
		p.t.Skipf("LOUD SKIP: no network for a user's containers: %v", err)
	}
	cmd := exec.Command("sh", "-ec", world, "sh", p.dir, strconv.Itoa(p.user))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: ownNamespaces, Pdeathsig: syscall.SIGKILL}
	said := &lockedBuffer{}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.init = cmd.Process.Pid
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill() // and so everybody in its namespace
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	switch {
	case err == nil && line == "ready\n":
	case strings.Contains(said.String(), "ermission denied"), strings.Contains(said.String(), "not permitted"):
		p.t.Skipf("LOUD SKIP: no place of its own for an engine: %s", said)
	default:
		p.t.Fatalf("a place for an engine: %q %v\n%s", line, err, said)
	}
}

// ownNamespaces are those of an engine.
const ownNamespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET

// needsNamespaces skips where this process may not make them, as in a container without rights.
func needsNamespaces(t testing.TB) {
	t.Helper()
	needsRoot(t)
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: ownNamespaces}
	if err := cmd.Run(); err != nil {
		t.Skipf("LOUD SKIP: namespaces cannot be made here: %v", err)
	}
}

// inside is a command line for the place of the engine, as root.
func (p *podmanOf) inside(args ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(p.init), "-m", "-n", "-p", "--"}, args...)
}

// command is a program run as the user of the engine.
func (p *podmanOf) command(ctx context.Context, args ...string) *exec.Cmd {
	if p.user > 0 {
		as := strconv.Itoa(p.user)
		args = append([]string{"setpriv", "--reuid", as, "--regid", as, "--clear-groups", "--"}, args...)
	}
	args = p.inside(args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = p.dir
	cmd.Env = p.env()
	cmd.WaitDelay = time.Second // conmon may have our pipe
	return cmd
}

func (p *podmanOf) env() []string {
	return []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"CONTAINERS_CONF=" + p.dir + "/containers.conf", "HOME=" + p.dir + "/home", "XDG_RUNTIME_DIR=" + p.dir + "/runtime",
	}
}

func (p *podmanOf) podman(args ...string) []string {
	return append([]string{"podman", "--root", p.dir + "/root", "--runroot", p.dir + "/run", "--tmpdir", p.dir + "/tmp", "--storage-driver", "vfs"}, args...)
}

// run gives podman a command, and is what it prints.
func (p *podmanOf) run(args ...string) string {
	p.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	out, log := &lockedBuffer{}, p.dir+"/podman.log"
	f, err := os.Create(log) // a pipe would stay open in conmon and hold us
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	cmd := p.command(ctx, p.podman(args...)...)
	cmd.Stdout, cmd.Stderr = out, f
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 0 {
		said, _ := os.ReadFile(log)
		p.t.Fatalf("podman %v: %v\n%s%s", args, err, out, said)
	}
	return strings.TrimSpace(out.String())
}

// serve makes the engine answer on a socket.
func (p *podmanOf) serve() (socket string) {
	p.t.Helper()
	socket = p.dir + "/podman.sock"
	p.spawn(nil, p.podman("system", "service", "--time=0", "unix://"+socket)...)
	until(p.t, "podman answers", func() bool { return dials(socket) })
	return socket
}

// spawn runs a program in the place of the engine, as root, until the test ends.
func (p *podmanOf) spawn(files []*os.File, args ...string) {
	p.t.Helper()
	args = p.inside(args...)
	cmd := exec.Command(args[0], args[1:]...)
	log := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.Env, cmd.WaitDelay = log, log, files, p.env(), time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if p.t.Failed() {
			p.t.Logf("%s:\n%s", args, tail(log.String(), 20))
		}
	})
}

// listens waits until somebody in the place of the engine listens on port.
func (p *podmanOf) listens(port int) {
	p.t.Helper()
	until(p.t, fmt.Sprintf("port %d is listened on", port), func() bool { return p.inode(port) != 0 })
}

func (p *podmanOf) inode(port int) uint64 {
	p.t.Helper()
	return inodeIn(p.t, fmt.Sprintf("/proc/%d/net", p.init), port)
}

// start runs quaymaster in the place of the engine, as root.
func (p *podmanOf) start(t *testing.T, body string) *qm {
	t.Helper()
	q := prepare(t, body)
	q.runAs(p.inside(binary)...)
	q.serving()
	return q
}

// blamed is what a quaymaster beside the engine says about a port that somebody there holds.
func (p *podmanOf) blamed(t *testing.T, port int) portRow {
	t.Helper()
	addr := "127.0.0.1:" + strconv.Itoa(port)
	return p.start(t, wants(addr)).blames(port)
}

// end removes the containers, with what they have outside of the place of the engine.
func (p *podmanOf) end() {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	if ids, err := p.command(ctx, p.podman("ps", "-a", "-q", "--no-trunc")...).Output(); err == nil {
		p.ids = string(ids)
	}
	if out, err := p.command(ctx, p.podman("rm", "-f", "-t", "0", "-a")...).CombinedOutput(); err != nil {
		p.t.Logf("podman rm: %v\n%s", err, out)
	}
}

// sweep removes the control groups of containers whose monitor has ended before them.
func (p *podmanOf) sweep() {
	for _, id := range strings.Fields(p.ids) {
		for _, below := range []string{"", "*/"} {
			groups, _ := filepath.Glob("/sys/fs/cgroup/" + below + "libpod_parent/libpod-" + id)
			for _, g := range groups {
				_ = os.Remove(g)
			}
		}
	}
}

// Real podman and conmon as root, the real docker-proxy in front of a container, and the real gvproxy with a real engine.
func TestP05_HelpersOfRootAreNamedWithTheirContainer(t *testing.T) {
	t.Parallel()
	proxy := tool(t, "docker-proxy")
	p := newPodman(t, 0)
	p.run("network", "create", "qmh")
	web := freePort(t)
	id := p.run("run", "-d", "--name", "web", "--network", "qmh", "-p", fmt.Sprintf("127.0.0.1:%d:80", web), "--rootfs", p.fs, "/listen", ":80")

	t.Run("conmon", func(t *testing.T) {
		row := p.blamed(t, web)
		row.says(t, "held by conmon (pid %d, user root, podman container web "+id[:12]+") for ")
		row.says(t, `stop it with "podman stop web", or wait`)
		if h := row.Holder; h.ContainerID != id || h.Helper != "conmon" || h.Container != "web" || h.Engine != "podman" {
			t.Errorf("%+v", h)
		}
	})
	t.Run("docker-proxy", func(t *testing.T) {
		ip := p.run("inspect", "-f", "{{.NetworkSettings.Networks.qmh.IPAddress}}", "web")
		port := freePort(t)
		_, signal, err := os.Pipe() // it tells on descriptor 3 that it listens
		if err != nil {
			t.Fatal(err)
		}
		p.spawn([]*os.File{signal}, proxy, "-proto", "tcp", "-host-ip", "127.0.0.1", "-host-port", strconv.Itoa(port), "-container-ip", ip, "-container-port", "80")
		_ = signal.Close()
		p.listens(port)
		row := p.blamed(t, port)
		row.says(t, "held by docker-proxy (pid %d, user root, podman container web "+id[:12]+") for ")
		row.says(t, `stop it with "podman stop web"`)
		if row.Holder.ContainerID != id || row.Holder.Helper != "docker-proxy" {
			t.Errorf("%+v", row.Holder)
		}
	})
	t.Run("gvproxy", func(t *testing.T) { p.gvproxy(t) })
}

// gvproxy: no package of Debian has it, so that the recorded tree (TestP05_RecordedGvproxy) is what is tested everywhere.
func (p *podmanOf) gvproxy(t *testing.T) {
	program := findTool("gvproxy")
	if program == "" {
		t.Skip("LOUD SKIP: gvproxy is missing and no package has it; its recorded tree is tested in internal/ports/holder")
	}
	socket := p.serve()
	// In the virtual machine of podman the engine publishes the port; on this one it does so at another address.
	port := freePort(t)
	p.run("run", "-d", "--name", "machine-db", "--network", "qmh", "-p", fmt.Sprintf("127.0.0.2:%d:80", port), "--rootfs", p.fs, "/listen", ":80")
	services := p.dir + "/net.sock"
	p.spawn(nil, program, "-services", "unix://"+services, "-ssh-port", "-1")
	until(t, "gvproxy answers", func() bool { return dials(services) })
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", services)
	}}}
	res, err := client.Post("http://gvproxy/services/forwarder/expose", "application/json",
		strings.NewReader(fmt.Sprintf(`{"local":"127.0.0.1:%d","remote":"192.168.127.2:80"}`, port)))
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("expose: %v %v", res, err)
	}
	_ = res.Body.Close()
	q := p.start(t, fmt.Sprintf("engine: {kind: podman, socket: \"unix://%s\"}\n", socket)+wants(fmt.Sprintf("127.0.0.1:%d", port)))
	var row portRow
	q.until("the engine was heard", func() bool { // a busy machine may need more than the second it has
		row = q.wanted(port)
		return row.Holder != nil && row.Holder.Container != ""
	})
	row.says(t, "held by gvproxy (pid %d, user root, podman container machine-db) for ")
	row.says(t, `stop it with "podman stop machine-db"`)
}

// An engine that leads traffic into a container by address translation alone: a real container of podman, whose conmon,
// which keeps the port busy, is ended. (Docker without its userland proxy, and Kubernetes, are like that from the start.)
func TestP05_PortThatIsLedPastUsIsAWarning(t *testing.T) {
	t.Parallel()
	p := newPodman(t, 0)
	p.run("network", "create", "qmn")
	socket := p.serve()
	past, beside := freePort(t), freePort(t)
	p.run("run", "-d", "--name", "past", "--network", "qmn", "-p", fmt.Sprintf("%d:80", past), "--rootfs", p.fs, "/listen", ":80")
	p.run("run", "-d", "--name", "beside", "--network", "qmn", "-p", fmt.Sprintf("127.0.0.2:%d:80", beside), "--rootfs", p.fs, "/listen", ":80")
	text, err := os.ReadFile(p.run("inspect", "-f", "{{.ConmonPidFile}}", "past"))
	if err != nil {
		t.Fatal(err)
	}
	conmon, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || conmon <= 1 {
		t.Fatalf("conmon is %q", text)
	}
	if out, err := p.command(t.Context(), "sh", "-c", fmt.Sprintf("kill -9 %d", conmon)).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	until(t, "nobody listens", func() bool { return p.inode(past) == 0 })
	q := p.start(t, fmt.Sprintf("engine: {kind: podman, socket: \"unix://%s\"}\nroutes:\n  - {name: b, match: {ports: [%d, \"127.0.0.1:%d\"], domains: [b.test]}, action: {respond: {status: 200}}}\n",
		socket, past, beside))
	q.until("the status warns", func() bool { return q.wanted(past).Warning != "" })
	want := "container past (podman) publishes this port by address translation: connections from outside go there and not here"
	if row := q.wanted(past); row.State != "bound" || row.Error != "" || !strings.HasPrefix(row.Warning, want) {
		t.Errorf("%+v, want %s", row, want)
	}
	s := q.statusOrNil()
	if s["state"] != "serving" || !strings.Contains(fmt.Sprint(s["problems"]), want) {
		t.Errorf("status: %v", s)
	}
	if row := q.wanted(beside); row.State != "bound" || row.Warning != "" {
		t.Errorf("a port that is published at another address is warned of: %+v", row)
	}
	q.until("it is logged", func() bool { return strings.Contains(q.log.String(), want) })
}

func dials(socket string) bool {
	c, err := net.Dial("unix", socket)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// Real podman as a user, with its real rootlessport and slirp4netns, and the real pasta in front of a real container.
func TestP05_HelpersOfAUserAreNamedWithTheirContainer(t *testing.T) {
	t.Parallel()
	pasta := tool(t, "pasta")
	tool(t, "slirp4netns")
	tool(t, "newuidmap")
	p := newPodman(t, netUser)
	check := func(t *testing.T, helper, name, id string, port int) {
		t.Helper()
		p.listens(port)
		row := p.blamed(t, port)
		row.says(t, fmt.Sprintf("held by %s (pid %%d, user qmtest, podman container %s %s) for ", helper, name, id[:12]))
		row.says(t, fmt.Sprintf(`stop it as user qmtest with "podman stop %s", or wait`, name))
		if row.Holder.ContainerID != id || row.Holder.Helper != helper {
			t.Errorf("%+v", row.Holder)
		}
	}
	t.Run("rootlessport", func(t *testing.T) {
		port := freePort(t)
		id := p.run("run", "-d", "--name", "plain", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "--rootfs", p.fs, "/listen", ":80")
		check(t, "rootlessport", "plain", id, port)
	})
	t.Run("slirp4netns", func(t *testing.T) {
		port := freePort(t)
		id := p.run("run", "-d", "--name", "slirp", "--network", "slirp4netns:port_handler=slirp4netns",
			"-p", fmt.Sprintf("127.0.0.1:%d:80", port), "--rootfs", p.fs, "/listen", ":80")
		check(t, "slirp4netns", "slirp", id, port)
	})
	t.Run("pasta", func(t *testing.T) {
		port := freePort(t)
		id := p.run("run", "-d", "--name", "lonely", "--network", "none", "--rootfs", p.fs, "/listen", ":80")
		pid := p.run("inspect", "-f", "{{.State.Pid}}", "lonely")
		cmd := p.command(t.Context(), pasta, "--config-net", "-f", "-t", fmt.Sprintf("127.0.0.1/%d:80", port), "-u", "none", "-T", "none", "-U", "none", pid)
		log := &lockedBuffer{}
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if t.Failed() {
				t.Logf("pasta:\n%s", log)
			}
		})
		check(t, "pasta", "lonely", id, port)
	})
}
