package holder

import (
	"cmp"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A relative is what ties one process to others: its parent and its network namespace.
type relative struct {
	pid, parent int
	space       string // net:[4026531840]; "" where it may not be read
}

// monitors reads the container that a helper works for out of the helper's own arguments.
func (h *Holder) monitors(args []string) {
	switch h.Helper {
	case "conmon": // -c ID -n NAME
		h.ContainerID = clean(cmp.Or(flag(args, "-c", "--cid"), h.ContainerID))
		h.Container = clean(cmp.Or(flag(args, "-n", "--name"), short(h.ContainerID)))
		if slices.Contains(args, "crio") || strings.Contains(flag(args, "-b", "--bundle"), "crio") {
			h.Engine = "cri-o"
		}
	case "docker-proxy":
		h.Container = clean(flag(args, "-container-ip"))
	case "slirp4netns": // --api-socket .../ID.net
		if m := fullID.FindString(flag(args, "--api-socket", "-a")); m != "" {
			h.Engine, h.ContainerID, h.Container = "podman", m, short(m)
		}
	case "rootlesskit":
		if !slices.ContainsFunc(args, func(a string) bool { return strings.Contains(filepath.Base(a), "dockerd") }) {
			h.Engine = ""
		}
	}
}

var fullID = regexp.MustCompile(`[0-9a-f]{64}`)

// flag is the value of the first of names in args, as a word of its own or behind an equals sign.
func flag(args []string, names ...string) string {
	for i, a := range args {
		if slices.Contains(names, a) && i+1 < len(args) {
			return args[i+1]
		}
		if name, value, is := strings.Cut(a, "="); is && slices.Contains(names, name) {
			return value
		}
	}
	return ""
}

// enrich finds out what takes more than the process itself to know: the name of its container, what would start it again,
// and where another quaymaster has its state.
func (l *Look) enrich(h *Holder) {
	if h.quaymaster {
		h.StateDir = l.host().stateDir(h.Pid)
	}
	switch h.Helper {
	case "docker-proxy":
		l.byAddress(h, l.host().args(h.Pid))
	case "rootlesskit":
		l.byProxy(h)
	case "rootlessport", "slirp4netns", "pasta", "passt":
		if h.ContainerID == "" {
			l.bySpaces(h, l.spaces(h))
		}
	}
	if h.Helper == "" && h.name == "dockerd" {
		l.byPort(h)
	}
	if h.ContainerID != "" {
		l.nameContainer(h)
	}
	if h.Unit == "" || strings.HasSuffix(h.Unit, ".scope") {
		h.starter = l.host().starterOf(h)
	}
}

// relatives lists every process, once for each Look.
func (l *Look) relatives() []relative {
	if l.kin == nil {
		t := l.host()
		for _, pid := range t.pids() {
			l.kin = append(l.kin, relative{pid, t.parent(pid), t.link(proc(pid, "ns/net"))})
		}
		slices.SortFunc(l.kin, func(a, b relative) int { return cmp.Compare(a.pid, b.pid) })
	}
	return l.kin
}

// spaces are the network namespaces that a helper carries traffic into: of its own threads and children, those that it
// holds open, and that of the process it was told to serve.
func (l *Look) spaces(h *Holder) map[string]bool {
	t, out := l.host(), make(map[string]bool)
	out[t.link(proc(h.Pid, "ns/net"))] = true
	for _, r := range l.relatives() {
		if r.parent == h.Pid {
			out[r.space] = true
		}
	}
	fds, _ := t.names(proc(h.Pid, "fd"))
	for _, fd := range fds {
		if to := t.link(proc(h.Pid, "fd/"+fd)); strings.HasPrefix(to, "net:[") {
			out[to] = true
		}
	}
	for _, a := range t.args(h.Pid)[1:] {
		if pid, err := strconv.Atoi(a); err == nil && pid > 1 {
			out[t.link(proc(pid, "ns/net"))] = true
		}
	}
	delete(out, "")
	delete(out, t.link("/proc/self/ns/net"))
	return out
}

// bySpaces finds the container that lives in one of these namespaces: of a pod, the one that holds its ports.
func (l *Look) bySpaces(h *Holder, spaces map[string]bool) {
	for _, r := range l.relatives() {
		if !spaces[r.space] || r.pid == h.Pid {
			continue
		}
		if c, ok := l.containerOf(r.pid); ok && (h.ContainerID == "" || infra.MatchString(c.Container)) {
			h.Engine, h.ContainerID, h.Container = c.Engine, c.ContainerID, c.Container
		}
	}
}

// containerOf is the container that a process runs in, by its groups or by the monitor it descends from.
func (l *Look) containerOf(pid int) (Holder, bool) {
	t := l.host()
	g := groupsOf(t.read(proc(pid, "cgroup")))
	c := Holder{Engine: g.engine, ContainerID: g.id, Container: cmp.Or(g.name, short(g.id))}
	for range 64 {
		if pid = t.parent(pid); pid <= 1 {
			break
		}
		args := t.args(pid)
		if len(args) == 0 {
			continue
		}
		helper, engine := helperOf(t.link(proc(pid, "exe")), args[0])
		if helper == "conmon" {
			m := Holder{Helper: helper, Engine: engine}
			m.monitors(args)
			return m, m.ContainerID != ""
		}
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && c.ContainerID == "" {
			c.Engine, c.ContainerID = "containerd", clean(flag(args, "-id"))
			if flag(args, "-namespace") == "moby" {
				c.Engine = "docker"
			}
			c.Container = short(c.ContainerID)
		}
	}
	return c, c.ContainerID != ""
}

// byAddress finds the container of a docker-proxy: in the engine's own files, else by who has that address.
func (l *Look) byAddress(h *Holder, args []string) {
	ip, err := netip.ParseAddr(flag(args, "-container-ip"))
	if err != nil {
		return
	}
	if c, ok := l.host().dockerByAddress(h.UID, ip); ok {
		h.ContainerID, h.Container = c.ID, clean(strings.TrimPrefix(c.Name, "/"))
		return
	}
	home, asked := l.host().link("/proc/self/ns/net"), map[string]bool{"": true}
	for _, r := range l.relatives() {
		if asked[r.space] || r.space == home || len(asked) > 4096 {
			continue
		}
		asked[r.space] = true
		if l.host().hasAddress(r.pid, ip) {
			l.bySpaces(h, map[string]bool{r.space: true})
			return
		}
	}
}

// hasAddress reports whether ip is an address of the network namespace of pid.
func (t host) hasAddress(pid int, ip netip.Addr) bool {
	if ip.Is6() {
		want := strings.ReplaceAll(ip.StringExpanded(), ":", "")
		return strings.Contains("\n"+t.read(proc(pid, "net/if_inet6")), "\n"+want+" ")
	}
	// |-- 172.17.0.2
	//    /32 host LOCAL
	after := t.read(proc(pid, "net/fib_trie"))
	for {
		_, rest, found := strings.Cut(after, "|-- "+ip.String()+"\n")
		if !found {
			return false
		}
		line, _, _ := strings.Cut(rest, "\n")
		if strings.Contains(line, "/32 host LOCAL") {
			return true
		}
		after = rest
	}
}

// byProxy finds the container of a rootless docker: the docker-proxy inside knows which one a port belongs to.
func (l *Look) byProxy(h *Holder) {
	for _, r := range l.relatives() {
		args := l.host().args(r.pid)
		if len(args) == 0 || filepath.Base(args[0]) != "docker-proxy" || l.host().uid(r.pid) != h.UID {
			continue
		}
		if flag(args, "-host-port") == strconv.Itoa(int(h.Addr.Port())) && flag(args, "-proto") == h.Proto {
			h.Engine, h.Container = "docker", clean(flag(args, "-container-ip"))
			l.byAddress(h, args)
			return
		}
	}
}

// byPort finds the container for which docker itself holds a port, as it does where it starts no proxies (userland-proxy:
// false). To stop docker for that would stop every container; a port that no container publishes is docker's own.
func (l *Look) byPort(h *Holder) {
	if c, ok := l.host().dockerByPort(h.UID, l.host().args(h.Pid), h.Proto, strconv.Itoa(int(h.Addr.Port()))); ok {
		h.Helper, h.Engine = h.name, "docker"
		h.ContainerID, h.Container = c.ID, clean(strings.TrimPrefix(c.Name, "/"))
	}
}

// nameContainer finds the name that a person gave to the container of that id.
func (l *Look) nameContainer(h *Holder) {
	switch {
	case h.Container != short(h.ContainerID): // known
	case h.Engine == "docker":
		if c, ok := l.host().dockerByID(h.UID, h.ContainerID); ok {
			h.Container = clean(strings.TrimPrefix(c.Name, "/"))
		}
	case h.Engine == "podman":
		for _, r := range l.relatives() {
			args := l.host().args(r.pid)
			if len(args) == 0 || filepath.Base(args[0]) != "conmon" || flag(args, "-c", "--cid") != h.ContainerID {
				continue
			}
			h.Container = clean(cmp.Or(flag(args, "-n", "--name"), h.Container))
			return
		}
	case h.Engine == "containerd" || h.Engine == "cri-o":
		l.host().nameCRI(h)
	}
}

// starterOf is a supervisor other than systemd that would bring the process back.
func (t host) starterOf(h *Holder) *starter {
	parent := t.parent(h.Pid)
	if parent <= 1 {
		return nil
	}
	args := t.args(parent)
	if len(args) == 0 {
		return nil
	}
	name := strings.TrimSpace(t.read(proc(parent, "comm")))
	last := args[len(args)-1]
	switch {
	case name == "runsv":
		return &starter{"runsv", command("sv", "stop", last)}
	case name == "s6-supervise":
		return &starter{"s6-supervise", command("s6-svc", "-d", t.link(proc(parent, "cwd")))}
	case name == "supervisord":
		return &starter{"supervisord", command("supervisorctl", "stop", "NAME") + " (" + command("supervisorctl", "status") + " says its name)"}
	case strings.HasPrefix(args[0], "PM2 "):
		return &starter{"pm2", command("pm2", "stop", "NAME") + " (" + command("pm2", "list") + " says its name)"}
	}
	return nil
}
