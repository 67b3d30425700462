package doctor

import (
	"os"
	"slices"
	"strings"
)

// system looks at what the kernel offers and shows, and at who stands between it and us.
func (x *examination) system() {
	x.procfs()
	x.container()
	x.features()
	x.service()
}

// procfs looks at whether holders of ports can be named.
func (x *examination) procfs() {
	if !linux {
		x.ok("/proc", "this system has none; holders of ports are named by lsof, where it is installed")
		return
	}
	if _, err := os.Stat(x.host.path("/proc/net/tcp")); err != nil {
		x.add(Warn, "/proc", "mount -t proc proc /proc, or run as root: lsof -nP -iTCP -sTCP:LISTEN", "/proc/net/tcp cannot be read (%v): who holds a port cannot be said", why(err))
		return
	}
	if hide, gid := x.hidepid(); hide && x.user.uid != 0 && !slices.Contains(x.user.gids, gid) {
		x.add(Warn, "/proc", "mount -o remount,hidepid=0 /proc, or add "+x.user.name+" to the group of its gid= option",
			"mounted with hidepid: processes of other users are hidden from %s, and holders of ports cannot be named", x.user)
		return
	}
	if os.Geteuid() != 0 {
		x.ok("/proc", "readable; as %s only your own processes are named as holders of ports (run as root to see all)", nameOf(os.Geteuid()))
		return
	}
	x.ok("/proc", "readable: holders of ports can be named")
}

// hidepid reports whether /proc hides processes of other users, and from whom it does not.
func (x *examination) hidepid() (hide bool, gid int) {
	text, _ := x.host.text("/proc/self/mountinfo")
	gid = -1
	for _, line := range strings.Split(text, "\n") {
		// 22 27 0:21 / /proc rw,relatime - proc proc rw,hidepid=2,gid=5
		left, right, ok := strings.Cut(line, " - ")
		w, fs := strings.Fields(left), strings.Fields(right)
		if !ok || len(w) < 5 || w[4] != "/proc" || len(fs) < 3 || fs[0] != "proc" {
			continue
		}
		hide, gid = false, -1 // a later mount covers an earlier one
		for _, option := range strings.Split(fs[2], ",") {
			switch key, value, _ := strings.Cut(option, "="); key {
			case "hidepid":
				hide = value != "0" && value != "off"
			case "gid":
				gid = int(limit(value))
			}
		}
	}
	return hide, gid
}

// container says whether this is one.
func (x *examination) container() {
	kind := ""
	for _, mark := range []struct{ file, kind string }{
		{"/run/.containerenv", "podman"}, {"/.dockerenv", "docker"}, {"/run/host/container-manager", "systemd-nspawn"},
	} {
		if _, err := os.Stat(x.host.path(mark.file)); err == nil {
			kind = mark.kind
		}
	}
	if text, ok := x.host.text("/run/systemd/container"); ok && kind == "" {
		kind = text
	}
	if env := os.Getenv("container"); kind == "" && x.host.root == "" {
		kind = env
	}
	switch {
	case kind == "":
		x.ok("container", "none: the ports are those of the host")
	case x.Running != nil && x.Running.PID == 1:
		x.ok("container", "%s, with quaymaster as its pid 1: ports are those that the container publishes; upgrade by a new container", kind)
	default:
		x.ok("container", "%s: ports are those that the container publishes, and holders outside cannot be seen", kind)
	}
}

// features tries what of the kernel is used; each has something to fall back on.
func (x *examination) features() {
	var have []string
	for _, f := range features {
		if err := f.try(); err != nil {
			x.add(Warn, f.name, "a newer kernel, or a seccomp profile that allows it", "%s (%v): %s", "not to be had here", err, f.without)
			continue
		}
		have = append(have, f.name)
	}
	if len(have) > 0 {
		x.ok("kernel", "%s", strings.Join(have, ", "))
	}
}

// feature is one thing of the kernel.
type feature struct {
	name    string
	try     func() error
	without string // what is done where it is missing
}
