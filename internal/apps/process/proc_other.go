//go:build !linux

package process

import (
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

const lookAgain = 200 * time.Millisecond // between two looks at a process that is no child of ours

var errNoTable = errors.New("this system does not tell")

// bootID tells this boot from any other; the start time has to do.
func bootID() string { return "" }

func pidSpace() string { return "" }

func openHandle(int) *os.File { return nil }

func sendGroup(*os.File, syscall.Signal) bool { return false }

// wait returns when the process has ended. There is no way to leave a child unreaped here: its number may be another's
// from then on, unless its group lives on.
func (l *leader) wait() {
	if l.child {
		e := status(l.pid)
		l.mu.Lock()
		l.early = &e
		l.mu.Unlock()
		return
	}
	t := time.NewTicker(lookAgain)
	defer t.Stop()
	for !l.ended() {
		<-t.C
	}
}

func (l *leader) ended() bool {
	begun, err := startOf(l.pid)
	return errors.Is(err, os.ErrNotExist) || err == nil && begun != l.begun
}

// proc is a process as it was a moment ago.
type proc struct{ pid, group int }

func (p proc) signal(syscall.Signal) {}

// startOf is the start time of a process. os.ErrNotExist: there is none.
func startOf(pid int) (uint64, error) {
	if h, ok := holder.Process(pid); ok && !h.Started.IsZero() {
		return uint64(h.Started.Unix()), nil
	}
	if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return 0, fmt.Errorf("process %d: %w", pid, os.ErrNotExist)
	}
	return 0, fmt.Errorf("process %d runs, and this system does not say since when; end it if it is the app's", pid)
}

type table struct{}

// members says whether anybody is left in the process group.
func (t *table) members(l *leader, _ *group) []proc {
	if l.strict || errors.Is(unix.Kill(-l.pid, 0), unix.ESRCH) {
		return nil
	}
	return []proc{{pid: l.pid, group: l.pid}}
}

func (t *table) stats(*leader, *group) (run.Stats, error) { return run.Stats{}, errNoTable }

func listening(int, []proc) ([]uint16, error) { return nil, errNoTable }

// systemFiles is what a process may have open at most, whoever asks.
func systemFiles() uint64 { return math.MaxUint64 }

func holds(int, string) bool { return false }

func widen(*os.File) {}

// groups are the control groups that apps get: none here.
type groups struct{}

func findGroups() groups { return groups{} }

func (g *groups) at(string) string { return "" }

func (g *groups) of(int) string { return "" }

func (g *groups) make(a *plan.App, _ string) (group, error) {
	if a.Limits.CPU > 0 || a.Limits.Memory > 0 {
		return group{}, errors.New("this system has no control groups: cpu and memory are not limited")
	}
	return group{}, nil
}

func (g *groups) known(string) group { return group{} }

// group is one control group; the zero value is none.
type group struct{ path string }

func (g *group) pids() []int { return nil }
func (g *group) kill()       {}
func (g *group) oom() bool   { return false }
func (g *group) remove()     {}
