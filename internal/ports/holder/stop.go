package holder

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A starter is a program that starts a process again when it ends.
type starter struct{ name, stop string }

// engineUnits hold containers that are no units of their own.
var engineUnits = []string{
	"docker.service", "podman.service", "containerd.service", "crio.service", "cri-o.service", "k3s.service", "k3s-agent.service",
	"kubelet.service", "rke2-server.service", "rke2-agent.service", "snap.docker.dockerd.service", "lxc.service", "incus.service",
}

// Stop is the command that makes the holder let go, and what a person does with it: `stop it with "kill 12"`. It is the
// step that lasts: where a kill would only bring a successor, it stops what would start one. It is "" when the process is
// unknown.
func (h *Holder) Stop() string {
	switch {
	case h.Pid == 0:
		return ""
	case h.quaymaster:
		return h.stopQuaymaster()
	case h.Container != "" && h.service() && !slices.Contains(engineUnits, h.Unit):
		return h.stopUnit() // a quadlet, or a unit that runs the container: systemd would start it again
	case h.Container != "" || h.Helper != "":
		return h.stopContainer()
	case h.Helper == "" && h.name == "kube-proxy":
		return "find the Kubernetes service of that port with " + command("kubectl", "get", "services", "-A") + " and give it another"
	case h.Pid == 1 || h.manager():
		return h.stopSockets()
	case h.service() || h.stoppableScope():
		return h.stopUnit()
	case h.starter != nil:
		return "stop it with " + h.starter.stop + ", since " + h.starter.name + " would start it again"
	}
	return h.with(command("kill", strconv.Itoa(h.Pid)))
}

// with wraps a command; that of a user's own manager or engine works for that user alone.
func (h *Holder) with(cmd string) string { return "stop it with " + cmd }

func (h *Holder) asUser(cmd string) string {
	if h.UID != os.Geteuid() && h.UID > 0 {
		return "stop it as user " + h.User + " with " + cmd
	}
	return h.with(cmd)
}

func (h *Holder) stopQuaymaster() string {
	stop := command("quaymaster", "stop")
	if h.service() {
		stop = systemctl(h.userUnit, "stop", append(h.sockets, strings.TrimSuffix(h.Unit, ".service"))...)
	}
	return h.asUser(stop) + " before you start this one, or replace its program while it serves with " + command("quaymaster", "upgrade")
}

// service reports whether systemd runs it as a service; the manager of a user's own units is none.
func (h *Holder) service() bool { return strings.HasSuffix(h.Unit, ".service") && !h.manager() }

// manager reports whether h is the systemd of a user.
func (h *Holder) manager() bool {
	return strings.HasPrefix(h.Unit, "user@") || h.Unit == "init.scope" && h.Pid != 1
}

// stoppableScope is a scope that somebody made for this program alone; to stop a session's ends the session.
func (h *Holder) stoppableScope() bool {
	return strings.HasSuffix(h.Unit, ".scope") && !strings.HasPrefix(h.Unit, "session-") && h.Unit != "init.scope"
}

func (h *Holder) stopUnit() string {
	unit := strings.TrimSuffix(h.Unit, ".service")
	if len(h.sockets) > 0 {
		unit = h.Unit // beside a socket of the same name the bare one says too little
	}
	cmd := systemctl(h.userUnit, "stop", append(slices.Clone(h.sockets), unit)...)
	if h.userUnit {
		return h.asUser(cmd)
	}
	return h.with(cmd)
}

// stopSockets is for systemd itself, which listens for a service that does not run yet.
func (h *Holder) stopSockets() string {
	user := h.Pid != 1
	if len(h.sockets) > 0 {
		return h.with(systemctl(user, "stop", h.sockets...))
	}
	find := "find its socket unit with " + systemctl(user, "list-sockets") + " and stop that"
	if user && h.UID != os.Geteuid() {
		find += ", as user " + h.User
	}
	return find
}

var infra = regexp.MustCompile(`^([0-9a-f]{12})-infra$`)

func (h *Holder) stopContainer() string {
	port := strconv.Itoa(int(h.Addr.Port()))
	_, notIP := netip.ParseAddr(h.Container)
	switch {
	case h.pod != "":
		space, name, _ := strings.Cut(h.pod, "/")
		return h.with(command("kubectl", "-n", space, "delete", "pod", name)) + ", or stop the workload that would make it anew"
	case h.Engine == "podman" && infra.MatchString(h.Container):
		return h.asUser(command("podman", "pod", "stop", infra.FindStringSubmatch(h.Container)[1]))
	case (h.Engine == "docker" || h.Engine == "podman") && h.Container != "" && notIP != nil:
		return h.asUser(command(h.Engine, "stop", h.Container))
	case h.Engine == "lxc":
		return h.with(command("lxc-stop", "-n", h.Container))
	case h.Engine == "containerd" || h.Engine == "cri-o":
		return "find its pod with " + command("crictl", "ps", "--id", short(h.ContainerID)) + " and delete that, since a kubelet starts what is only stopped"
	case h.Engine == "docker":
		return h.find("docker", "ps", "--filter", "publish="+port)
	case h.Engine == "podman":
		return h.find("podman", "ps")
	case h.Helper == "gvproxy":
		return "find the container of the virtual machine with " + command("podman", "ps") + " and stop that"
	}
	return h.with(command("kill", strconv.Itoa(h.Pid)))
}

// find is for a container of which the name is not known.
func (h *Holder) find(args ...string) string {
	s := "find its container with " + command(args...) + " and stop that"
	if h.UID != os.Geteuid() && h.UID > 0 {
		s += ", as user " + h.User
	}
	return s
}

func systemctl(user bool, verb string, units ...string) string {
	args := []string{"systemctl"}
	if user {
		args = append(args, "--user")
	}
	return command(append(append(args, verb), units...)...)
}

var harmless = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// command is what a person types, in quotes. The names in it were chosen by strangers: a shell gets each as one word.
func command(args ...string) string {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if !harmless.MatchString(a) {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return `"` + strings.Join(words, " ") + `"`
}

// helpers are the programs that hold ports in the name of a container engine or its virtual machine, and whose they are.
var helpers = map[string]string{
	"conmon": "podman", "rootlessport": "podman", "slirp4netns": "", "pasta": "", "passt": "", "gvproxy": "podman",
	"docker-proxy": "docker", "rootlesskit": "docker", "vpnkit": "docker", "com.docker.backend": "docker", "limactl": "",
}

// helperOf is the helper that a program is, and the engine it works for as a rule. The executable says so, and only where
// it cannot be read what the process calls itself.
func helperOf(exe, self string) (helper, engine string) {
	name := filepath.Base(exe)
	if exe == "" {
		name = filepath.Base(self)
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "containers-"), "-child") // rootlessport calls itself so
	name, _, _ = strings.Cut(name, ".avx")                                       // pasta comes in builds for several processors
	engine, is := helpers[name]
	if !is {
		return "", ""
	}
	return name, engine
}
