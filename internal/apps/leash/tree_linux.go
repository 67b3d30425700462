package leash

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// adopt makes this process the parent of all whose own parent ends.
func adopt() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// attributes: the program stays in our group, which is the terminal's, and does not outlive us.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// send signals everybody below us. None of them can be somebody else by then: what has ended is a zombie until we reap
// it, or its parent, who is one of them.
func (k *keeper) send(signals ...syscall.Signal) {
	for _, pid := range below(os.Getpid()) {
		for _, s := range signals {
			_ = syscall.Kill(pid, s)
		}
	}
}

// left reports whether anybody is below us.
func (k *keeper) left() bool { return len(below(os.Getpid())) > 0 }

// sweep has nothing to do: whoever was below us was our child in the end.
func (k *keeper) sweep() {}

// below are the processes below one, those that have ended left out.
func below(top int) []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	children := make(map[int][]int, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if parent, runs := parentOf(name); runs {
			children[parent] = append(children[parent], pid)
		}
	}
	out := slices.Clone(children[top])
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	return out
}

// parentOf reads the parent of a process; a zombie is not told of.
func parentOf(pid string) (parent int, runs bool) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, false
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // the name in brackets may hold anything
	if len(f) < 2 || f[0][0] == 'Z' || f[0][0] == 'X' {
		return 0, false
	}
	parent, err = strconv.Atoi(string(f[1]))
	return parent, err == nil
}
