package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	groupsName = "quaymaster.apps"
	cpuPeriod  = 100_000     // microseconds
	emptyAge   = time.Minute // an empty group that is older is nobody's any more
)

// groups are the control groups that apps get: folders below one that was given to us (version 2 alone).
type groups struct {
	root string // that was given to us; "": none was
	base string // below root: the folder of all apps
	own  bool   // we are in root ourselves, so that it may not share out anything
}

// findGroups looks for a group that we may make others in: our own or one above it that the service manager has marked as
// given away, or the root of what we see.
func findGroups() groups {
	text, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(text)) {
		path, is := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		if !is || strings.Contains(path, "..") {
			continue
		}
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			var st unix.Statfs_t
			if unix.Statfs(mount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
				return groupsIn(mount, path)
			}
		}
	}
	return groups{}
}

func groupsIn(mount, path string) groups {
	own := filepath.Join(mount, path)
	for dir := own; dir != mount && dir != "/"; dir = filepath.Dir(dir) {
		if delegated(dir) {
			return given(dir, dir == own)
		}
	}
	if path == "" {
		return given(mount, true)
	}
	return groups{}
}

// delegated reports whether systemd has marked a group as the unit's own (Delegate=yes).
func delegated(dir string) bool {
	var b [1]byte
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		if n, err := unix.Getxattr(dir, name, b[:]); err == nil && n == 1 && b[0] == '1' {
			return true
		}
	}
	return false
}

// given makes the folder of all apps, which shows whether we may, and takes away what is left over from others.
func given(root string, own bool) groups {
	g := groups{root: root, base: filepath.Join(root, groupsName), own: own}
	if _, err := os.Stat(filepath.Join(root, "cgroup.type")); errors.Is(err, os.ErrNotExist) {
		g.own = false // the root of all groups has processes and shares out
	}
	if err := os.Mkdir(g.base, 0o755); err != nil && !errors.Is(err, os.ErrExist) || unix.Access(filepath.Join(g.base, "cgroup.procs"), unix.W_OK) != nil {
		return groups{}
	}
	list, _ := os.ReadDir(g.base)
	for _, e := range list {
		if info, err := e.Info(); err == nil && e.IsDir() && time.Since(info.ModTime()) > emptyAge {
			_ = unix.Rmdir(filepath.Join(g.base, e.Name())) // nothing happens to one that has processes
		}
	}
	return g
}

// at is where the group of an instance would be.
func (g *groups) at(name string) string {
	if g.root == "" {
		return ""
	}
	return filepath.Join(g.base, name)
}

// of is the name of the group of an app that a process is in, or "".
func (g *groups) of(pid int) string {
	if g.root == "" {
		return ""
	}
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	for line := range strings.Lines(string(text)) {
		path, is := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		if !is {
			continue
		}
		if _, rest, ours := strings.Cut("/"+path, "/"+groupsName+"/"); ours {
			name, _, _ := strings.Cut(rest, "/")
			return name
		}
	}
	return ""
}

// make makes a control group for an instance of an app. With an error as well as a group, it has no limits.
func (g *groups) make(a *plan.App, name string) (group, error) {
	limits := a.Limits.CPU > 0 || a.Limits.Memory > 0
	if g.root == "" {
		if limits {
			return group{}, errors.New("cpu and memory are not limited: no control group was given to quaymaster; under systemd, write Delegate=yes and, with version 254 or newer, DelegateSubgroup=daemon")
		}
		return group{}, nil
	}
	made := group{path: g.at(name)}
	if err := os.Mkdir(made.path, 0o755); err != nil {
		return group{}, fmt.Errorf("no control group of its own: %w", err)
	}
	if !limits {
		return made, nil
	}
	return made, g.limit(made, a.Limits)
}

// limit limits what a group may use.
func (g *groups) limit(made group, limits plan.AppLimits) error {
	if g.own { // it would be refused memory; with processors it would become a group in which no other may have processes
		return fmt.Errorf("cpu and memory are not limited: quaymaster is in the control group %s itself, which must be empty for that; with systemd 254 or newer, write DelegateSubgroup=daemon", g.root)
	}
	set := func(controller, file, value string) error {
		for _, dir := range []string{g.root, g.base} {
			if err := put(filepath.Join(dir, "cgroup.subtree_control"), "+"+controller); err != nil {
				return fmt.Errorf("%s is not limited: %w", controller, err)
			}
		}
		if err := put(filepath.Join(made.path, file), value); err != nil {
			return fmt.Errorf("%s is not limited: %w", controller, err)
		}
		return nil
	}
	var errs []error
	if limits.CPU > 0 {
		errs = append(errs, set("cpu", "cpu.max", fmt.Sprintf("%d %d", max(int64(limits.CPU*cpuPeriod), 1000), cpuPeriod)))
	}
	if limits.Memory > 0 {
		errs = append(errs, set("memory", "memory.max", strconv.FormatInt(limits.Memory, 10)))
	}
	return errors.Join(errs...)
}

// put writes to a file of the kernel's.
func put(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// known is the control group that an earlier daemon has made, if it is still one that we may use.
func (g *groups) known(path string) group {
	if g.base == "" || filepath.Dir(path) != g.base {
		return group{}
	}
	return group{path}
}

// group is one control group; the zero value is none.
type group struct{ path string }

// pids are the processes in it.
func (g *group) pids() []int {
	if g.path == "" {
		return nil
	}
	text, _ := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	var out []int
	for line := range strings.Lines(string(text)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}

// kill kills all of it at once (Linux 5.14; before that each is killed by itself).
func (g *group) kill() {
	if g.path != "" {
		_ = put(filepath.Join(g.path, "cgroup.kill"), "1")
	}
}

// oom reports whether the kernel has killed one of it because of its limit of memory.
func (g *group) oom() bool {
	if g.path == "" {
		return false
	}
	text, _ := os.ReadFile(filepath.Join(g.path, "memory.events"))
	for line := range strings.Lines(string(text)) {
		if n, is := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); is {
			return n != "0"
		}
	}
	return false
}

// remove takes it away; it is empty.
func (g *group) remove() {
	if g.path != "" {
		_ = unix.Rmdir(g.path) // one that is not is seen by the next daemon
	}
}
