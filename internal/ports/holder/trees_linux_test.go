package holder

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// plant makes the folder that a tree of testdata describes: `file PATH "TEXT"` and `link PATH "TARGET"`, one a line.
func plant(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".tree")
	if err != nil {
		t.Fatal(err)
	}
	return grow(t, string(text))
}

func grow(t *testing.T, lines ...string) string {
	t.Helper()
	root := t.TempDir()
	for line := range strings.Lines(strings.Join(lines, "\n")) {
		part := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(part) < 3 || part[0] == "#" {
			continue
		}
		what, err := strconv.Unquote(part[2])
		path := filepath.Join(root, part[1])
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		if err == nil && part[0] == "file" {
			err = os.WriteFile(path, []byte(what), 0o644)
		}
		if err == nil && part[0] == "link" {
			err = os.Symlink(what, path)
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return root
}

// one is the only holder of a TCP port in a tree.
func one(t *testing.T, root string, port uint16) Holder {
	t.Helper()
	got, err := (&Look{Root: root}).TCP(func(a netip.AddrPort) bool { return a.Port() == port })
	if err != nil || len(got) != 1 {
		t.Fatalf("port %d: %+v, %v; want one holder", port, got, err)
	}
	return got[0]
}

// process is a made process of a tree that holds sockets.
func process(pid, parent, uid int, comm, exe, cgroup string, sockets []int, args ...string) string {
	ticks := 1000 + pid
	out := []string{
		fmt.Sprintf("file /proc/%d/comm %q", pid, comm+"\n"),
		fmt.Sprintf("file /proc/%d/cmdline %q", pid, strings.Join(args, "\x00")+"\x00"),
		fmt.Sprintf("file /proc/%d/stat %q", pid, fmt.Sprintf("%d (%s) S %d 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 %d 0 0\n", pid, comm, parent, ticks)),
		fmt.Sprintf("file /proc/%d/status %q", pid, fmt.Sprintf("Name:\nUid:\t%d\t%d\t%d\t%d\n", uid, uid, uid, uid)),
		fmt.Sprintf("file /proc/%d/cgroup %q", pid, "0::"+cgroup+"\n"),
		fmt.Sprintf("link /proc/%d/exe %q", pid, exe),
		fmt.Sprintf("link /proc/%d/ns/net %q", pid, "net:[1]"),
	}
	for i, inode := range sockets {
		out = append(out, fmt.Sprintf("link /proc/%d/fd/%d %q", pid, 3+i, fmt.Sprintf("socket:[%d]", inode)))
	}
	return strings.Join(out, "\n")
}

// listening is a made table with a socket on 0.0.0.0 for each port; its inode is the port.
func listening(ports ...int) string {
	table := "heading\n"
	for _, p := range ports {
		table += fmt.Sprintf("   0: 00000000:%04X 00000000:0000 0A 0:0 0:0 0 0 0 %d 1\n", p, p)
	}
	return fmt.Sprintf("file /proc/net/tcp %q\nfile /proc/stat %q\nlink /proc/self/ns/net \"net:[1]\"", table, "cpu 0\nbtime 1700000000\n")
}

// Recorded on the real programs: podman 4.3 as a user, with rootlessport, with slirp4netns as the port handler, and a
// container without a network that pasta was put in front of. The end-to-end tests run the programs themselves.
func TestP05_RecordedPodmanOfAUser(t *testing.T) {
	root := plant(t, "podman-rootless")
	for port, want := range map[uint16][3]string{
		18082: {"rootlessport", "rlweb", "478dbdcff3925ca5ce137e70f6e47e2ef93c22f907b3b87093604c193de190e3"},
		18083: {"slirp4netns", "rlslirp", "1ac1fa569be179599226cf1a6da1a12ce4c29c3ed0780ccd67d6818c5133ea7a"},
		18087: {"pasta", "rlpasta", "2c04bc78b6b838e81802666ba41062c9d6f40ed48f8e96090fd21a13c304cbd0"},
	} {
		h := one(t, root, port)
		if got := [3]string{h.Helper, h.Container, h.ContainerID}; got != want || h.Engine != "podman" {
			t.Errorf("port %d: %q of %s, want %q", port, got, h.Engine, want)
		}
		if want := `stop it as user 54321 with "podman stop ` + want[1] + `"`; h.Stop() != want {
			t.Errorf("port %d: %s, want %s", port, h.Stop(), want)
		}
		if want := want[0] + " (pid " + strconv.Itoa(h.Pid) + ", user 54321, podman container " + want[1] + " " + want[2][:12] + ") for "; !strings.HasPrefix(h.String(), want) {
			t.Errorf("port %d: %s, want %s", port, h.String(), want)
		}
	}
}

// Recorded on the real podman 4.3 as root, where conmon keeps the port.
func TestP05_RecordedPodmanOfRoot(t *testing.T) {
	h := one(t, plant(t, "podman-root"), 18080)
	if h.Helper != "conmon" || h.Container != "web" || !strings.HasPrefix(h.ContainerID, "4bf094059f94") || h.Engine != "podman" {
		t.Errorf("%+v", h)
	}
}

// Recorded on the real gvproxy 0.8.6: it holds ports for containers in a virtual machine, whose names the host's files do
// not show. The engine is asked for that, and until it answers the way to them is said.
func TestP05_RecordedGvproxy(t *testing.T) {
	h := one(t, plant(t, "gvproxy"), 18088)
	if h.Helper != "gvproxy" || h.Engine != "podman" || !h.Nameless() {
		t.Errorf("%+v", h)
	}
	if want := `find its container with "podman ps" and stop that, as user 54321`; h.Stop() != want {
		t.Errorf("%s, want %s", h.Stop(), want)
	}
	h.Publishes("container machine-db (podman)")
	if want := `stop it as user 54321 with "podman stop machine-db"`; h.Nameless() || h.Stop() != want {
		t.Errorf("%+v: %s, want %s", h, h.Stop(), want)
	}
	if want := "gvproxy (pid " + strconv.Itoa(h.Pid) + ", user 54321, podman container machine-db) for "; !strings.HasPrefix(h.String(), want) {
		t.Errorf("%s, want %s", h.String(), want)
	}
}

var dockerID = strings.Repeat("0123456789ab", 5) + "cdef"

// Made after the files of docker 20.10: the proxy's arguments, and the engine's folder that says whose address that is.
func TestP05_MadeDockerProxyIsNamedWithItsContainer(t *testing.T) {
	args := []string{"/usr/bin/docker-proxy", "-proto", "tcp", "-host-ip", "0.0.0.0", "-host-port", "8080", "-container-ip", "172.17.0.2", "-container-port", "80"}
	proxy := process(812, 1, 0, "docker-proxy", "/usr/bin/docker-proxy", "/system.slice/docker.service", []int{8080}, args...)
	config := func(dir, id, name, ip string, running bool) string {
		return fmt.Sprintf("file %s/containers/%s/config.v2.json %q", dir, id,
			fmt.Sprintf(`{"ID":%q,"Name":"/%s","State":{"Running":%t},"NetworkSettings":{"Networks":{"bridge":{"IPAddress":%q}}}}`, id, name, running, ip))
	}
	other := strings.Repeat("9", 64)
	for name, tree := range map[string][]string{
		"its folder": {config("/var/lib/docker", dockerID, "web", "172.17.0.2", true), config("/var/lib/docker", other, "old", "172.17.0.2", false)},
		"another folder": {
			`file /etc/docker/daemon.json "{\"data-root\": \"/srv/docker\"}"`, config("/srv/docker", dockerID, "web", "172.17.0.2", true),
		},
		"the address in its namespace": {
			strings.Replace(process(901, 1, 0, "nginx", "/usr/sbin/nginx", "/system.slice/docker-"+dockerID+".scope", nil, "nginx"), "net:[1]", "net:[77]", 1),
			`file /proc/901/net/fib_trie "Main:\n  |-- 172.17.0.20\n     /32 host LOCAL\n  |-- 172.17.0.2\n     /32 link UNICAST\nLocal:\n  |-- 172.17.0.2\n     /32 host LOCAL\n"`,
			config("/var/lib/docker", dockerID, "web", "", true),
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := one(t, grow(t, append([]string{listening(8080), proxy}, tree...)...), 8080)
			if h.Helper != "docker-proxy" || h.Container != "web" || h.ContainerID != dockerID || h.Engine != "docker" {
				t.Errorf("%+v", h)
			}
			if want := `stop it with "docker stop web"`; h.Stop() != want {
				t.Errorf("%s, want %s", h.Stop(), want)
			}
		})
	}
	h := one(t, grow(t, listening(8080), proxy), 8080)
	if h.Container != "172.17.0.2" || h.Stop() != `find its container with "docker ps --filter publish=8080" and stop that` {
		t.Errorf("with nothing but its arguments: %+v, %s", h, h.Stop())
	}
}

// Made after docker 20.10 without its userland proxy, where dockerd holds the ports that containers publish. The end-to-end
// tests run the program itself.
func TestP05_MadeDockerWithoutProxyIsNamedWithItsContainer(t *testing.T) {
	config := func(id, name, port string, running bool) string {
		return fmt.Sprintf("file /srv/docker/containers/%s/config.v2.json %q", id,
			fmt.Sprintf(`{"ID":%q,"Name":"/%s","State":{"Running":%t},"NetworkSettings":{"Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":%q}],"81/tcp":null}}}`, id, name, running, port))
	}
	root := grow(t, listening(8080, 2375),
		process(500, 1, 0, "dockerd", "/usr/sbin/dockerd", "/system.slice/docker.service", []int{8080, 2375}, "dockerd", "--data-root=/srv/docker", "-H", "tcp://0.0.0.0:2375"),
		config(dockerID, "db", "8080", true), config(strings.Repeat("9", 64), "old", "8080", false), config(strings.Repeat("8", 64), "other", "8081", true))
	h := one(t, root, 8080)
	if h.Helper != "dockerd" || h.Container != "db" || h.ContainerID != dockerID || h.Stop() != `stop it with "docker stop db"` {
		t.Errorf("%+v: %s", h, h.Stop())
	}
	if want := "dockerd (pid 500, user root, docker.service, docker container db 0123456789ab) for "; !strings.HasPrefix(h.String(), want) {
		t.Errorf("%s, want %s", h.String(), want)
	}
	if h := one(t, root, 2375); h.Helper != "" || h.Stop() != `stop it with "systemctl stop docker"` {
		t.Errorf("its own port: %+v: %s", h, h.Stop())
	}
}

// Made: a rootless docker, where rootlesskit has the port and the proxy inside knows the container.
func TestP05_MadeRootlesskitIsNamedWithItsContainer(t *testing.T) {
	h := one(t, grow(t, listening(8080),
		process(700, 1, 54321, "rootlesskit", "/usr/bin/rootlesskit", "/user.slice/user-54321.slice/user@54321.service/app.slice/docker.service",
			[]int{8080}, "rootlesskit", "--port-driver=builtin", "/usr/bin/dockerd-rootless.sh"),
		process(710, 700, 54321, "docker-proxy", "/usr/bin/docker-proxy", "/user.slice", nil,
			"docker-proxy", "-proto", "tcp", "-host-port", "9090", "-container-ip", "172.17.0.9"),
		process(711, 700, 54321, "docker-proxy", "/usr/bin/docker-proxy", "/user.slice", nil,
			"docker-proxy", "-proto", "tcp", "-host-port", "8080", "-container-ip", "172.17.0.3"),
	), 8080)
	if h.Helper != "rootlesskit" || h.Container != "172.17.0.3" || h.Stop() != `find its container with "docker ps --filter publish=8080" and stop that, as user 54321` {
		t.Errorf("%+v: %s", h, h.Stop())
	}
}

// Made after what containerd and cri-o write beside a container of Kubernetes.
func TestP05_MadePodIsNamed(t *testing.T) {
	h := one(t, grow(t, listening(9100),
		process(600, 1, 65534, "node_exporter", "/bin/node_exporter", "/kubepods.slice/kubepods-pod1.slice/cri-containerd-"+dockerID+".scope", []int{9100}, "node_exporter"),
		fmt.Sprintf("file /run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/%s/config.json %q", dockerID,
			`{"annotations":{"io.kubernetes.cri.container-name":"exporter","io.kubernetes.cri.sandbox-name":"exporter-x1","io.kubernetes.cri.sandbox-namespace":"metrics"}}`),
	), 9100)
	if h.Container != "exporter" || h.pod != "metrics/exporter-x1" || !strings.Contains(h.Stop(), "kubectl -n metrics delete pod exporter-x1") {
		t.Errorf("%+v: %s", h, h.Stop())
	}
}

// Made after systemd 252: what a person must stop so that the port stays free.
func TestP05_MadeUnitsOfSystemd(t *testing.T) {
	systemd := func(sockets ...int) string {
		return process(1, 0, 0, "systemd", "/usr/lib/systemd/systemd", "/init.scope", sockets, "/sbin/init")
	}
	manager := func(sockets ...int) string {
		return process(500, 1, 54321, "systemd", "/usr/lib/systemd/systemd", "/user.slice/user-54321.slice/user@54321.service/init.scope", sockets, "/usr/lib/systemd/systemd", "--user")
	}
	service := func(group string) string {
		return process(812, 1, 33, "nginx", "/usr/sbin/nginx", group, []int{80}, "nginx: master process nginx")
	}
	unit := func(path, text string) string { return fmt.Sprintf("file %s %q", path, text) }
	ssh := unit("/usr/lib/systemd/system/ssh.socket", "[Socket]\nListenStream=22\nAccept=no\n")
	for name, c := range map[string]struct {
		tree []string
		pid  int
		unit string
		stop string
	}{
		"service":       {[]string{service("/system.slice/nginx.service")}, 812, "nginx.service", `stop it with "systemctl stop nginx"`},
		"user service":  {[]string{service("/user.slice/user-33.slice/user@33.service/app.slice/nginx.service")}, 812, "nginx.service", `"systemctl --user stop nginx"`},
		"session":       {[]string{service("/user.slice/user-0.slice/session-4.scope")}, 812, "session-4.scope", `stop it with "kill 812"`},
		"made scope":    {[]string{service("/system.slice/run-r7.scope")}, 812, "run-r7.scope", `stop it with "systemctl stop run-r7.scope"`},
		"slice":         {[]string{service("/shop.slice")}, 812, "shop.slice", `stop it with "kill 812"`},
		"no systemd":    {[]string{service("/")}, 812, "", `stop it with "kill 812"`},
		"quadlet":       {[]string{service("/system.slice/web.service/libpod-payload-" + dockerID)}, 812, "web.service", `stop it with "systemctl stop web"`},
		"activated":     {[]string{systemd(80), service("/system.slice/nginx.service"), unit("/etc/systemd/system/nginx.socket", "[Socket]\nListenStream=80\n")}, 812, "nginx.service", `stop it with "systemctl stop nginx.socket nginx.service"`},
		"socket alone":  {[]string{systemd(80), ssh, unit("/etc/systemd/system/ssh.socket.d/port.conf", "[Socket]\nListenStream=\nListenStream=0.0.0.0:80\n")}, 1, "init.scope", `stop it with "systemctl stop ssh.socket"`},
		"other socket":  {[]string{systemd(80), ssh}, 1, "init.scope", `find its socket unit with "systemctl list-sockets" and stop that`},
		"masked by etc": {[]string{systemd(80), unit("/etc/systemd/system/a.socket", "ListenStream=81\n"), unit("/usr/lib/systemd/system/a.socket", "ListenStream=80\n")}, 1, "init.scope", `find its socket unit with "systemctl list-sockets" and stop that`},
		"two, one of them enabled": {[]string{
			systemd(80), unit("/usr/lib/systemd/system/a.socket", "ListenStream=80\n"), unit("/usr/lib/systemd/system/b.socket", "ListenStream=80\n"),
			`link /etc/systemd/system/sockets.target.wants/b.socket "/usr/lib/systemd/system/b.socket"`,
		}, 1, "init.scope", `stop it with "systemctl stop b.socket"`},
		"user socket": {[]string{manager(80)}, 500, "init.scope", `find its socket unit with "systemctl --user list-sockets" and stop that, as user 54321`},
	} {
		t.Run(name, func(t *testing.T) {
			h := one(t, grow(t, append([]string{listening(80)}, c.tree...)...), 80)
			if h.Pid != c.pid || h.Unit != c.unit || !strings.Contains(h.Stop(), c.stop) {
				t.Errorf("pid %d, unit %q, %s; want pid %d, %q, %s", h.Pid, h.Unit, h.Stop(), c.pid, c.unit, c.stop)
			}
		})
	}
}

// Made: the children of other supervisors.
func TestP05_MadeSupervisors(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		stop string
	}{
		"runsv":        {[]string{"runsv", "nginx"}, `stop it with "sv stop nginx", since runsv would start it again`},
		"supervisord":  {[]string{"/usr/bin/python3", "/usr/bin/supervisord"}, `"supervisorctl stop NAME" ("supervisorctl status" says its name)`},
		"PM2 v5":       {[]string{"PM2 v5.3: God Daemon (/root/.pm2)"}, `"pm2 stop NAME"`},
		"bash":         {[]string{"-bash"}, `stop it with "kill 812"`},
		"s6-supervise": {[]string{"s6-supervise", "nginx"}, `"s6-svc -d /run/service/nginx"`},
	} {
		h := one(t, grow(t, listening(80), process(400, 1, 0, name, "/usr/bin/x", "/", nil, c.args...), `link /proc/400/cwd "/run/service/nginx"`,
			process(812, 400, 33, "nginx", "/usr/sbin/nginx", "/", []int{80}, "nginx")), 80)
		if !strings.Contains(h.Stop(), c.stop) {
			t.Errorf("%s: %s, want %s", name, h.Stop(), c.stop)
		}
	}
}

// Made: another instance of this program, told by its name and by the lock in its state folder.
func TestP05_MadeOtherQuaymaster(t *testing.T) {
	root := grow(t, listening(443),
		process(321, 1, 0, "quaymaster", "/usr/bin/quaymaster (deleted)", "/system.slice/quaymaster.service", []int{443}, "quaymaster", "run", "-c", "q.yaml"),
		`file /var/lib/quaymaster/lock "321\n"`, `file /elsewhere/lock "9\n"`, `link /proc/321/fd/20 "/elsewhere/lock"`)
	if err := os.Symlink(filepath.Join(root, "/var/lib/quaymaster/lock"), filepath.Join(root, "/proc/321/fd/21")); err != nil {
		t.Fatal(err)
	}
	h := one(t, root, 443)
	if !h.Ours() || !strings.HasSuffix(h.StateDir, "/var/lib/quaymaster") || h.Exe != "/usr/bin/quaymaster" {
		t.Errorf("%+v", h)
	}
	if s := h.String(); !strings.HasPrefix(s, "another quaymaster (pid 321, user root, quaymaster.service, state folder ") {
		t.Error(s)
	}
	if s := h.Stop(); s != `stop it with "systemctl stop quaymaster" before you start this one, or replace its program while it serves with "quaymaster upgrade"` {
		t.Error(s)
	}
}

// Made: what a hostile process can choose is shown as one clean line, and does not become a command.
func TestP05_MadeHostileNames(t *testing.T) {
	evil := "a\x1b]0;owned\x07\n\u202e"
	h := one(t, grow(t, listening(80),
		process(812, 1, 33, evil+") R 1", "/tmp/"+evil, "/"+evil+".service", []int{80}, evil, strings.Repeat("x", 1<<20))), 80)
	for _, s := range []string{h.String(), h.Command, h.Exe, h.Unit, h.Stop()} {
		if strings.ContainsAny(s, "\x1b\x07\n") || strings.Contains(s, "\u202e") || len(s) > 1000 {
			t.Errorf("%q", s)
		}
	}
	h = one(t, grow(t, listening(80), process(812, 1, 33, "conmon", "/usr/bin/conmon", "/", []int{80}, "conmon", "-c", dockerID, "-n", "x;reboot")), 80)
	if s := h.Stop(); !strings.Contains(s, `podman stop 'x;reboot'`) {
		t.Error(s)
	}
	// A pipe where a file is expected does not hold us.
	root := grow(t, listening(80), process(812, 1, 33, "quaymaster", "/usr/bin/quaymaster", "/", []int{80}, "quaymaster", "run"))
	pipe(t, filepath.Join(root, "lock"))
	if err := os.Symlink(filepath.Join(root, "lock"), filepath.Join(root, "/proc/812/fd/9")); err != nil {
		t.Fatal(err)
	}
	if h := one(t, root, 80); h.StateDir != "" {
		t.Error(h.StateDir)
	}
}

// Made: a process that ends while it is looked at is not described by halves.
func TestP05_MadeProcessThatIsGone(t *testing.T) {
	root := grow(t, listening(80), process(812, 1, 33, "nginx", "/usr/sbin/nginx", "/", []int{80}, "nginx"))
	if err := os.Remove(filepath.Join(root, "/proc/812/stat")); err != nil {
		t.Fatal(err)
	}
	if h := one(t, root, 80); h.Pid != 0 || h.Command != "" {
		t.Errorf("%+v", h)
	}
}

// Made: why there is nobody to be seen.
func TestP26_MadeHidepidIsSaid(t *testing.T) {
	l := &Look{Root: grow(t, `file /proc/self/mountinfo "22 27 0:21 / /sys rw - sysfs sysfs rw\n23 27 0:22 / /proc rw,nosuid shared:5 - proc proc rw,gid=4,hidepid=invisible\n"`)}
	if got := l.host().hidepid(); got != "hidepid=invisible" {
		t.Errorf("hidepid %q", got)
	}
	if got := (&Look{Root: grow(t, `file /proc/self/mountinfo "23 27 0:22 / /proc rw,nosuid shared:5 - proc proc rw,hidepid=off\n"`)}).host().hidepid(); got != "" {
		t.Errorf("hidepid %q", got)
	}
}

// Without the tables the error says why, or lsof is asked.
func TestP26_NoTablesIsAnErrorThatSaysWhy(t *testing.T) {
	t.Setenv("PATH", "")
	l := &Look{Root: t.TempDir()}
	for proto, find := range map[string]func(func(netip.AddrPort) bool) ([]Holder, error){"tcp": l.TCP, "udp": l.UDP} {
		got, err := find(func(netip.AddrPort) bool { return true })
		if err == nil || len(got) > 0 || !strings.Contains(err.Error(), "/proc/net/"+proto+": no such file or directory; lsof is not installed") {
			t.Errorf("%s: %v, %v", proto, got, err)
		}
	}
	if want, got := "lsof -nP -iTCP:5000 -sTCP:LISTEN", Command("tcp", 5000); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func pipe(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}
