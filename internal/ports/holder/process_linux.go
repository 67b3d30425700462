package holder

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const maxFds = 1 << 20 // descriptors of one process that are looked at

// findOwners fills in the pids that have a descriptor of each socket, and returns how many processes may not be looked
// into; those are left out.
func (t host) findOwners(sockets map[uint64][]int) (denied int) {
	for _, pid := range t.pids() {
		dir, err := os.Open(filepath.Join(string(t), proc(pid, "fd")))
		if os.IsPermission(err) {
			denied++
		}
		if err != nil {
			continue
		}
		fds, err := dir.Readdirnames(maxFds)
		if os.IsPermission(err) {
			denied++
		}
		for _, fd := range fds {
			var buf [64]byte
			n, err := unix.Readlinkat(int(dir.Fd()), fd, buf[:])
			if err != nil {
				continue
			}
			text, is := strings.CutPrefix(string(buf[:n]), "socket:[")
			if !is {
				continue
			}
			inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
			if err != nil {
				continue
			}
			if pids, wanted := sockets[inode]; wanted && !slices.Contains(pids, pid) {
				sockets[inode] = append(pids, pid)
			}
		}
		_ = dir.Close()
	}
	return denied
}

// describe looks at those of pids that are still there: the oldest first, systemd last.
func (t host) describe(pids []int) []Holder {
	var found []Holder
	for _, pid := range pids {
		if h, ok := t.process(pid); ok {
			found = append(found, h)
		}
	}
	slices.SortFunc(found, func(a, b Holder) int {
		if x, y := a.Pid == 1 || a.manager(), b.Pid == 1 || b.manager(); x != y {
			if x {
				return 1
			}
			return -1
		}
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Pid, b.Pid))
	})
	return found
}

// process describes one process by its own files; false when it has ended. A pid may pass to another process in between:
// what was read counts only when the start time is the same before and after.
func (t host) process(pid int) (Holder, bool) {
	for range 3 {
		before, ok := t.started(pid)
		if !ok {
			return Holder{}, false
		}
		h := t.read1(pid)
		if after, ok := t.started(pid); ok && after.Equal(before) {
			h.Started = before
			return h, true
		}
	}
	return Holder{}, false
}

func (t host) read1(pid int) Holder {
	h := Holder{Pid: pid}
	args := t.args(pid)
	h.Command = clean(strings.Join(args, " "))
	h.name = clean(t.read(proc(pid, "comm")))
	if h.Command == "" {
		h.Command = h.name
	}
	exe := strings.TrimSuffix(t.link(proc(pid, "exe")), " (deleted)")
	h.Exe = clean(exe)
	h.UID = t.uid(pid)
	h.User = userName(h.UID)
	g := groupsOf(t.read(proc(pid, "cgroup")))
	h.Unit, h.userUnit, h.Engine, h.ContainerID = g.unit, g.user, g.engine, g.id
	h.Container = cmp.Or(g.name, short(g.id))
	self := ""
	if len(args) > 0 {
		self = args[0]
	}
	if helper, engine := helperOf(exe, self); helper != "" {
		h.Helper, h.Engine = helper, engine
		if strings.HasPrefix(filepath.Base(self), "pasta") {
			h.Helper = "pasta" // one program of two names
		}
		h.name = h.Helper
		h.monitors(args)
	}
	h.quaymaster = t.isQuaymaster(pid, exe, args)
	return h
}

// args is the command line of a process.
func (t host) args(pid int) []string {
	text := strings.TrimRight(t.read(proc(pid, "cmdline")), "\x00")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\x00")
}

// alive reports whether a holder found earlier is still the same process.
func (t host) alive(h *Holder) bool {
	at, ok := t.started(h.Pid)
	return h.Pid > 0 && ok && at.Equal(h.Started)
}

// stat are the fields of a process's stat from the third on: state, parent, ...
func (t host) stat(pid int) []string {
	text := t.read(proc(pid, "stat"))
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // the name in brackets may hold anything
}

// parent is 0 when it cannot be read.
func (t host) parent(pid int) int {
	field := t.stat(pid)
	if len(field) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(field[1])
	return ppid
}

// started is the start time of a process: field 22 of stat, in clock ticks (always 100 a second in this file) since boot.
func (t host) started(pid int) (time.Time, bool) {
	field := t.stat(pid)
	if len(field) < 20 {
		return time.Time{}, false
	}
	ticks, err := strconv.ParseInt(field[19], 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	boot := realBoot
	if t != "" {
		boot = t.boot
	}
	return boot().Add(time.Duration(ticks) * 10 * time.Millisecond), true
}

// realBoot is read once: the kernel reckons it from the clock, so that it moves when the clock is set, and with it would
// move the start times by which processes are told apart.
var realBoot = sync.OnceValue(host("").boot)

func (t host) boot() time.Time {
	_, after, _ := strings.Cut(t.read("/proc/stat"), "\nbtime ")
	line, _, _ := strings.Cut(after, "\n")
	seconds, _ := strconv.ParseInt(line, 10, 64)
	return time.Unix(seconds, 0)
}

// uid is the effective user of a process.
func (t host) uid(pid int) int {
	_, after, _ := strings.Cut(t.read(proc(pid, "status")), "\nUid:")
	line, _, _ := strings.Cut(after, "\n")
	if ids := strings.Fields(line); len(ids) > 1 {
		n, _ := strconv.Atoi(ids[1])
		return n
	}
	return -1
}

// isQuaymaster reports whether a process runs this program as a daemon, by its name or because it is the same file.
func (t host) isQuaymaster(pid int, exe string, args []string) bool {
	if len(args) < 2 || args[1] != "run" {
		return false
	}
	if filepath.Base(exe) == "quaymaster" || exe == "" && filepath.Base(args[0]) == "quaymaster" {
		return true
	}
	theirs, err := os.Stat(filepath.Join(string(t), proc(pid, "exe")))
	ours, err2 := os.Stat("/proc/self/exe")
	return err == nil && err2 == nil && os.SameFile(theirs, ours)
}

// stateDir is the state folder of a quaymaster: the one whose lock file it holds open and has written its pid into.
func (t host) stateDir(pid int) string {
	fds, _ := t.names(proc(pid, "fd"))
	for _, fd := range fds {
		path := t.link(proc(pid, "fd/"+fd))
		if filepath.Base(path) == "lock" && strings.TrimSpace(t.read(proc(pid, "fd/"+fd))) == strconv.Itoa(pid) {
			return clean(filepath.Dir(path))
		}
	}
	return ""
}
