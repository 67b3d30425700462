package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/apps/run"
)

const (
	statsAge  = time.Second            // a list of processes that is that old serves for figures
	lookAgain = 200 * time.Millisecond // between two looks at a process without a handle
	tick      = 10 * time.Millisecond  // the unit of stat, whatever the kernel's own clock
)

// bootID tells this boot from any other.
var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it the start time has to do
	return strings.TrimSpace(string(b))
})

// pidSpace is the namespace that pids are numbers of.
var pidSpace = sync.OnceValue(func() string {
	to, _ := os.Readlink("/proc/self/ns/pid")
	return to
})

// openHandle makes a handle of a process that no other process can come to have. nil: the system has none.
func openHandle(pid int) *os.File {
	if runtime.GOOS == "android" { // which ends programs that ask for what it does not know
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

// sendGroup signals the group of a process by its handle, if the kernel can (Linux 6.9).
func sendGroup(h *os.File, s syscall.Signal) bool {
	raw, err := h.SyscallConn()
	if err != nil {
		return false
	}
	const processGroup = 1 << 2 // PIDFD_SIGNAL_PROCESS_GROUP
	sent := false
	_ = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), s, nil, processGroup) == nil })
	return sent
}

// wait returns when the process has ended. A child stays unreaped.
func (l *leader) wait() {
	if l.handle != nil {
		if raw, err := l.handle.SyscallConn(); err == nil && raw.Read(func(uintptr) bool { return l.ended() }) == nil {
			return
		}
	}
	if l.child {
		for unix.Waitid(unix.P_PID, l.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		return
	}
	t := time.NewTicker(lookAgain)
	defer t.Stop()
	for !l.ended() {
		<-t.C
	}
}

// ended reports whether the process has ended.
func (l *leader) ended() bool {
	if l.handle != nil {
		raw, err := l.handle.SyscallConn()
		if err != nil {
			return true
		}
		readable := true // a handle that was closed is of a process that was reaped
		_ = raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			readable = err == nil && n > 0
		})
		return readable
	}
	p, ok := readProc(l.pid)
	return !ok || p.begun != l.begun || p.dead
}

// proc is a process as it was a moment ago.
type proc struct {
	pid, parent, group, session int
	begun                       uint64
	dead                        bool // a zombie
	cpu                         time.Duration
	resident                    int64
}

// readProc reads /proc/PID/stat.
func readProc(pid int) (proc, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return proc{}, false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name in brackets may hold anything
	if len(f) < 22 {
		return proc{}, false
	}
	number := func(n int) int64 { // by its number in proc(5)
		v, _ := strconv.ParseInt(f[n-3], 10, 64)
		return v
	}
	return proc{
		pid: pid, dead: f[0] == "Z" || f[0] == "X", parent: int(number(4)), group: int(number(5)), session: int(number(6)),
		begun: uint64(number(22)), cpu: time.Duration(number(14)+number(15)+number(16)+number(17)) * tick,
		resident: number(24) * int64(os.Getpagesize()),
	}, true
}

// startOf is the start time of a process. os.ErrNotExist: there is none.
func startOf(pid int) (uint64, error) {
	p, ok := readProc(pid)
	if !ok {
		return 0, fmt.Errorf("process %d: %w", pid, os.ErrNotExist)
	}
	return p.begun, nil
}

// signal signals the process if it is still the same.
func (p proc) signal(s syscall.Signal) {
	h := openHandle(p.pid)
	if h != nil {
		defer func() { _ = h.Close() }()
	}
	now, ok := readProc(p.pid)
	if !ok || now.begun != p.begun || now.dead {
		return
	}
	if h == nil {
		_ = unix.Kill(p.pid, s)
		return
	}
	if raw, err := h.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), s, nil, 0) })
	}
}

// table is a list of all processes, which those who look at the same time share.
type table struct {
	mu    sync.Mutex // guards what follows
	at    time.Time  // when reading it began
	procs map[int]proc
}

// since is the table as it was at that time or later. It is not changed any more.
func (t *table) since(at time.Time) map[int]proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.procs != nil && !t.at.Before(at) {
		return t.procs
	}
	t.at = time.Now()
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = d.Close() }()
	names, _ := d.Readdirnames(-1)
	t.procs = make(map[int]proc, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if p, ok := readProc(pid); ok {
				t.procs[pid] = p
			}
		}
	}
	return t.procs
}

// members are the processes of a group that run: those of the process group and the session of its leader, and those in
// its control group. Zombies that were left to us are reaped.
func (t *table) members(l *leader, g *group) []proc { return membersOf(t.since(time.Now()), l, g) }

func membersOf(all map[int]proc, l *leader, g *group) []proc {
	inside := g.pids()
	p, there := all[l.pid]
	foreign := there && p.begun != l.begun // the number is another's, which it cannot be while anybody has it as his group
	var out []proc
	for _, pid := range inside {
		if _, old := all[pid]; !old {
			if p, ok := readProc(pid); ok && !p.dead {
				out = append(out, p)
			}
		}
	}
	for _, p := range all {
		_, ours := slices.BinarySearch(inside, p.pid)
		switch {
		case l.pid == 0: // anybody may be, and says so by what he has open
			if !p.dead && p.pid != os.Getpid() {
				out = append(out, p)
			}
		case !ours && (foreign || p.group != l.pid && p.session != l.pid):
		case p.dead && p.parent == os.Getpid() && p.pid != l.pid:
			_, _ = syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
		case !p.dead:
			out = append(out, p)
		}
	}
	return out
}

// stats adds up what the members use.
func (t *table) stats(l *leader, g *group) (run.Stats, error) {
	list := membersOf(t.since(time.Now().Add(-statsAge)), l, g)
	if len(list) == 0 {
		return run.Stats{}, run.ErrGone
	}
	var s run.Stats
	for _, p := range list {
		s.Memory += p.resident
		s.CPU += p.cpu
	}
	return s, nil
}

// listening are the TCP ports that these processes listen on, in the network of the leader.
func listening(leader int, members []proc) ([]uint16, error) {
	wanted := make(map[string]bool)
	var denied error
	for _, p := range members {
		dir := filepath.Join("/proc", strconv.Itoa(p.pid), "fd")
		list, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrPermission) {
			denied = err
		}
		for _, e := range list {
			if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "socket:[") {
				wanted[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
			}
		}
	}
	if denied != nil && len(wanted) == 0 {
		return nil, denied
	}
	var out []uint16
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(leader), "net", name))
		if err != nil {
			continue // it has ended, or there is no IPv6
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" || !wanted[f[9]] {
				continue
			}
			_, port, _ := strings.Cut(f[1], ":")
			if n, err := strconv.ParseUint(port, 16, 16); err == nil {
				out = append(out, uint16(n))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// holds reports whether a process has a file open whose path begins so. It is told by its name: a look at the file itself
// could wait for ever, for a server that is gone.
func holds(pid int, prefix string) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	list, _ := os.ReadDir(dir)
	return slices.ContainsFunc(list, func(e os.DirEntry) bool {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		return err == nil && strings.HasPrefix(to, prefix)
	})
}

// widen lets a pipe hold more.
func widen(f *os.File) { _, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, pipeSize) }

// systemFiles is what a process may have open at most, whoever asks.
func systemFiles() uint64 {
	text, _ := os.ReadFile("/proc/sys/fs/nr_open")
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64) // unread: what we may have ourselves
	return n
}
