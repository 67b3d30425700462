package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	lingering = 2 * time.Second // between TERM and KILL for what an app leaves behind that ends by itself
	lookFirst = 2 * time.Millisecond
	lookMost  = 250 * time.Millisecond // between two looks at a group that is to end
)

// instance is one run of an app: its leader, which is the process that was started, and whatever came of it.
type instance struct {
	r       *Runner
	port    uint16 // that it is to bind; 0: none
	room    string // folder that was made for its socket, or ""
	pipes   *pipes
	out     run.Output
	started time.Time
	group   group
	leader  *leader

	done chan struct{} // closed when nothing is left of it
	left chan struct{} // closed when it is the next daemon's
	work sync.WaitGroup

	mu     sync.Mutex // guards what follows
	asked  bool       // Stop was called: those that outlive the leader have its grace
	kill   bool       // KILL is due to all
	killed bool       // and was sent
	gone   bool       // left is closed
	busy   *run.PortError
	exit   run.Exit
	signed time.Time // KILL is due then to what outlives the leader; zero: no clock runs
}

// begin starts what attends to the process.
func (i *instance) begin() {
	i.work.Add(3)
	go i.read(i.pipes.out, false)
	go i.read(i.pipes.err, true)
	go i.follow()
}

func (i *instance) read(p *pipe, stderr bool) {
	defer i.work.Done()
	p.read(func(at time.Time, text []byte) {
		i.notice(text)
		i.out.Line(at, stderr, text)
	})
}

// follow waits for the end of the leader, sees to the rest of its group, and closes done.
func (i *instance) follow() {
	defer i.work.Done()
	if !i.live() {
		return
	}
	at := time.Now()
	if !i.end() {
		return
	}
	i.pipes.finish()
	e := i.leader.reap()
	e.At = at
	i.mu.Lock()
	e.OOM = e.Signal == syscall.SIGKILL && !i.killed && i.group.oom()
	i.exit = e
	i.mu.Unlock()
	i.clean()
	close(i.done)
}

// clean takes away what was made for the instance.
func (i *instance) clean() {
	i.group.remove()
	i.pipes.remove()
	if i.room == "" {
		return
	}
	list, _ := os.ReadDir(i.room)
	for _, e := range list {
		if e.Type() == os.ModeSocket {
			_ = os.Remove(filepath.Join(i.room, e.Name()))
		}
	}
	_ = os.Remove(i.room) // not when the app keeps other things there
}

// makeRoom makes the folder for a socket, in which the app may make one, if there is none yet.
func makeRoom(socket string, u *account) (string, error) {
	if socket == "" {
		return "", nil
	}
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return "", err
	}
	err := os.Mkdir(dir, 0o700)
	switch {
	case errors.Is(err, os.ErrExist):
		return "", nil
	case err == nil && u.other():
		err = os.Lchown(dir, u.uid, u.gid)
	}
	return dir, err
}

// live waits for the end of the leader. It reports false when the instance was left.
func (i *instance) live() bool {
	sweep, end := i.r.sweeper()
	defer end()
	for {
		select {
		case <-i.leader.exited:
			return true
		case <-i.left:
			return false
		case <-sweep:
			i.r.sweep()
		}
	}
}

// end waits until the group is gone, and ends it when its time is over: at once for what was killed, else after the grace
// of Stop, or after a short one of its own when the leader ended by itself. It reports false when the instance was left.
func (i *instance) end() bool {
	i.mu.Lock()
	orphans := !i.asked
	if orphans && !i.kill {
		i.signed = time.Now().Add(lingering)
	}
	i.mu.Unlock()
	asked := false
	pause := lookFirst
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-i.left:
			return false
		case <-timer.C:
		}
		rest := i.rest()
		if len(rest) == 0 {
			if rest = i.rest(); len(rest) == 0 { // twice: one may have been born while the first look was on
				return true
			}
		}
		i.mu.Lock()
		kill := i.kill || !i.signed.IsZero() && time.Now().After(i.signed)
		i.mu.Unlock()
		switch {
		case kill:
			i.signal(unix.SIGKILL, rest)
		case orphans && !asked:
			asked = true
			i.signal(unix.SIGTERM, rest)
		}
		timer.Reset(pause)
		pause = min(pause*2, lookMost)
	}
}

// rest are the processes of the instance that still run, without the leader once it has ended.
func (i *instance) rest() []proc {
	list := i.r.table.members(i.leader, &i.group)
	if !i.leader.strict {
		return list
	}
	inside, base := i.group.pids(), i.pipes.base
	if base != "" {
		base = filepath.Join(real(filepath.Dir(base)), filepath.Base(base))
	}
	return slices.DeleteFunc(list, func(p proc) bool { return !slices.Contains(inside, p.pid) && (base == "" || !holds(p.pid, base+".")) })
}

// signal sends a signal to the whole instance.
func (i *instance) signal(s syscall.Signal, rest []proc) {
	if s == unix.SIGKILL {
		i.mu.Lock()
		i.killed = true
		i.mu.Unlock()
		i.group.kill()
	}
	whole := i.leader.signalGroup(s)
	for _, p := range rest {
		if !whole || p.group != i.leader.pid { // nobody is told twice
			p.signal(s)
		}
	}
}

// Record is what the next daemon needs.
func (i *instance) Record() run.Record {
	text, _ := json.Marshal(data{
		Boot: bootID(), Space: pidSpace(), Begun: i.leader.begun, Pipe: i.pipes.base, Group: i.group.path, Port: i.port, Room: i.room,
	}) // it holds nothing that cannot be marshalled
	return run.Record{PID: i.leader.pid, Started: i.started, Data: text}
}

// Done is closed when the instance has ended.
func (i *instance) Done() <-chan struct{} { return i.done }

// Exit says how it ended.
func (i *instance) Exit() run.Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

// PortTaken is what the app said about its port being taken, or nil where that was not what ended it.
func (i *instance) PortTaken() *run.PortError {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.busy == nil || i.exit.OK() {
		return nil
	}
	return i.busy
}

// notice looks for a port that is taken in a line of output.
func (i *instance) notice(line []byte) {
	if text, ok := portTaken(line, i.port); ok {
		i.mu.Lock()
		i.busy = &run.PortError{Port: i.port, Text: text}
		i.mu.Unlock()
	}
}

// Stop ends the instance. A second call may be less patient than the first.
func (i *instance) Stop(ctx context.Context, how plan.AppStop) error {
	name := stopSignal(how)
	s := unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG"))
	if s == 0 {
		return fmt.Errorf("%s is no signal of this system", name)
	}
	select {
	case <-i.done:
		return nil
	default:
	}
	i.mu.Lock()
	due := time.Now().Add(how.Timeout)
	if !i.asked || due.Before(i.signed) {
		i.signed = due
	}
	i.asked = true
	i.kill = i.kill || s == unix.SIGKILL
	i.mu.Unlock()
	i.signal(s, i.rest())
	timer := time.NewTimer(how.Timeout)
	defer timer.Stop()
	select {
	case <-i.done:
		return nil
	case <-i.left:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	i.mu.Lock()
	i.kill = true
	i.mu.Unlock()
	i.signal(unix.SIGKILL, i.rest())
	select {
	case <-i.done:
	case <-i.left:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Leave lets go of the instance: when it returns, nobody here reads its output or looks after it any more. A child is still
// reaped.
func (i *instance) Leave() {
	i.mu.Lock()
	if i.gone {
		i.mu.Unlock()
		return
	}
	i.gone = true
	close(i.left)
	i.mu.Unlock()
	i.pipes.leave()
	i.work.Wait()
	i.pipes.close()
	i.leader.drop(i)
}

// Stats are what all processes of the instance use.
func (i *instance) Stats() (run.Stats, error) { return i.r.table.stats(i.leader, &i.group) }

// Listening are the TCP ports that any process of the instance listens on.
func (i *instance) Listening() ([]uint16, error) { return listening(i.leader.pid, i.rest()) }
