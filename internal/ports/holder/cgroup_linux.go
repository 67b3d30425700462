package holder

import (
	"regexp"
	"strings"
)

// groups is what the control groups of a process say about it.
type groups struct {
	unit   string // of systemd
	user   bool   // of a user's own manager
	engine string
	id     string // of its container
	name   string // of its container, where the group is called so
}

// Engines put a container's id into the name of its group, behind a name of their own or, with Kubernetes, a pod's.
var (
	engineID = regexp.MustCompile(`(?:^|[/-])(docker|libpod|libpod-payload|libpod-conmon|cri-containerd|crio|nerdctl)[-/]([0-9a-f]{12,64})(?:\.scope)?(?:/|$)`)
	podID    = regexp.MustCompile(`/kubepods[^:]*/([0-9a-f]{64})(?:/|$)`)
	lxcName  = regexp.MustCompile(`/lxc(?:\.payload)?[./]([^/]+)`)
)

var engineNames = map[string]string{
	"docker": "docker", "libpod": "podman", "libpod-payload": "podman", "libpod-conmon": "podman",
	"cri-containerd": "containerd", "nerdctl": "containerd", "crio": "cri-o",
}

// groupsOf reads /proc/PID/cgroup.
func groupsOf(text string) groups {
	var g groups
	for line := range strings.Lines(text) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3) // 0::/system.slice/nginx.service
		if len(part) < 3 {
			continue
		}
		if g.id == "" && g.name == "" {
			g.container(part[2])
		}
		if (part[1] == "" || part[1] == "name=systemd") && g.unit == "" {
			g.systemd(part[2])
		}
	}
	return g
}

func (g *groups) container(path string) {
	switch {
	case engineID.MatchString(path):
		m := engineID.FindStringSubmatch(path)
		g.engine, g.id = engineNames[m[1]], m[2]
	case podID.MatchString(path):
		g.engine, g.id = "containerd", podID.FindStringSubmatch(path)[1]
	case lxcName.MatchString(path) && !strings.Contains(path, ".service"):
		g.engine, g.name = "lxc", clean(lxcName.FindStringSubmatch(path)[1])
	}
}

// systemd finds the unit: the innermost service or scope, else the innermost slice that is not one of the four that
// everything is in. A container's own scope is no unit that a person knows.
func (g *groups) systemd(path string) {
	slice, inUser := "", false
	for _, name := range strings.Split(path, "/") {
		name = strings.TrimPrefix(name, "_") // put there where a name would clash with the kernel's files
		switch {
		case engineID.MatchString(name):
		case strings.HasSuffix(name, ".service"), strings.HasSuffix(name, ".scope"):
			g.unit, g.user = clean(name), inUser
			inUser = inUser || strings.HasPrefix(name, "user@")
		case strings.HasSuffix(name, ".slice"):
			slice = name
		}
	}
	switch slice {
	case "", "system.slice", "user.slice", "machine.slice", "-.slice":
	default:
		if g.unit == "" && g.id == "" {
			g.unit = clean(slice)
		}
	}
}
