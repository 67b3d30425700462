// Package process runs apps as processes of this machine.
//
// It promises that an app is its own session and process group, and a control group of its own where one may be made; that
// its output goes on when the daemon does not, and no line is lost between two daemons; that Done means that nothing of the
// group is left; and that only what it started is signalled: a process is told by the boot, its pid and its start time, and
// held by a handle of the kernel's. It runs no shell, chooses no port, starts nothing again, and ends nothing when the
// daemon ends. What leaves both its session and its process group is out of reach where there is no control group.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/launch"
	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// Options are what a Runner needs of others.
type Options struct {
	Log *slog.Logger
	// Launcher is our own program, and Args what makes it call launch.Become with the number that follows.
	Launcher string
	Args     []string
	// Dir is the folder for the FIFOs of output. It must be the same for the next daemon, and is made when it is needed.
	Dir string
}

// A Runner runs processes. Use New. It is safe for use by many goroutines.
type Runner struct {
	opt    Options
	groups groups
	table  table

	mu   sync.Mutex // guards what follows
	ours map[int]*leader
	said map[string]bool // what was said about limits, by app

	every   time.Duration // between two sweeps; does not change
	swept   time.Time
	zombies map[int]uint64 // that the sweep before has seen, and their start times
}

// New returns a Runner that runs nothing.
func New(o Options) *Runner {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{opt: o, groups: findGroups(), every: sweepEvery, ours: make(map[int]*leader), said: make(map[string]bool)}
}

// data is what a later daemon needs to know besides the pid.
type data struct {
	Boot  string `json:"boot,omitempty"`  // id of the boot
	Space string `json:"space,omitempty"` // namespace of the pid
	Begun uint64 `json:"begun"`           // start time of the process, in the unit of the kernel
	Pipe  string `json:"pipe,omitempty"`  // path of the FIFOs, without what tells them apart
	Group string `json:"group,omitempty"` // control group
	Port  uint16 `json:"port,omitempty"`
	Room  string `json:"room,omitempty"` // folder that was made for its socket
}

// Start runs an instance.
func (r *Runner) Start(ctx context.Context, s *run.Start) (run.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(s.App.Command) == 0 {
		return nil, errors.New("no command")
	}
	u, err := lookUp(s.App.User)
	if err != nil {
		return nil, err
	}
	pipes, err := r.newPipes(s.App.Name, u)
	if err != nil {
		return nil, err
	}
	i := &instance{r: r, port: s.Port, pipes: pipes, out: s.Output, done: make(chan struct{}), left: make(chan struct{})}
	if s.Listener >= 0 {
		i.port = 0 // it has nothing to bind, and one that does is not helped by another port
	}
	if i.room, err = makeRoom(s.Path, u); err == nil {
		err = r.launch(i, s, u)
	}
	if err != nil {
		i.clean()
		return nil, err
	}
	i.begin()
	return i, nil
}

// launch makes the process of i.
func (r *Runner) launch(i *instance, s *run.Start, u *account) error {
	out, errs, err := i.pipes.writers()
	if err != nil {
		return err
	}
	defer func() { _, _ = out.Close(), errs.Close() }()
	spec := r.spec(s, u)
	spec.In, spec.Out, spec.Err = -1, int(out.Fd()), int(errs.Fd())
	if i.group, err = r.groups.make(s.App, filepath.Base(i.pipes.base)); err != nil {
		r.sayOnce(s.App.Name, err)
	}
	spec.Group = i.group.path
	if err := i.pipes.open(); err != nil {
		return err
	}
	spec.Before = s.Handoff
	pid, err := launch.Start(r.opt.Launcher, r.opt.Args, spec)
	if err != nil {
		return err
	}
	i.started = time.Now()
	i.leader = r.child(pid, i)
	return nil
}

// child is a process that was started just now.
func (r *Runner) child(pid int, owner *instance) *leader {
	l := newLeader(pid, true)
	l.owner = owner
	r.mu.Lock()
	r.ours[pid] = l
	r.mu.Unlock()
	l.forget = func() {
		r.mu.Lock()
		if r.ours[pid] == l {
			delete(r.ours, pid)
		}
		r.mu.Unlock()
	}
	go l.watch()
	return l
}

// sayOnce tells of a limit that cannot be set.
func (r *Runner) sayOnce(app string, err error) {
	r.mu.Lock()
	key := app + "\x00" + err.Error()
	known := r.said[key]
	if len(r.said) < 1000 {
		r.said[key] = true
	}
	r.mu.Unlock()
	if !known {
		r.opt.Log.Warn("limits of an app", "app", app, "err", err)
	}
}

// Adopt finds a process that an earlier daemon has started, or that was left by this one.
func (r *Runner) Adopt(ctx context.Context, rec run.Record, out run.Output) (run.Instance, error) {
	var d data
	err := json.Unmarshal(rec.Data, &d)
	lost := rec.PID == 0 && d.Pipe != "" // it has no pid: see Lost
	if err != nil || rec.PID <= 1 && !lost {
		return nil, fmt.Errorf("the record of pid %d says too little: %w", rec.PID, run.ErrGone)
	}
	p := &pipes{base: r.own(d.Pipe)}
	i := &instance{
		r: r, port: d.Port, pipes: p, out: out, started: rec.Started, group: r.groups.known(d.Group), room: d.Room,
		done: make(chan struct{}), left: make(chan struct{}),
	}
	l, err := r.find(rec.PID, &d)
	switch {
	case lost, errors.Is(err, run.ErrGone):
		if err := i.clear(ctx, rec.PID, &d); err != nil {
			return nil, err
		}
		return nil, run.ErrGone
	case err != nil:
		return nil, err
	}
	i.leader = l
	if !l.take(i) {
		return nil, run.ErrGone
	}
	if err := p.open(); err != nil { // it runs, and cannot be heard: better than one that runs unseen
		r.opt.Log.Warn("output of an app that was found again is lost", "pid", rec.PID, "err", err)
	}
	i.begin()
	return i, nil
}

// clear ends what is left of an instance whose leader has ended while nobody looked: those of its group that still have its
// output or are in its control group, since the number may have been another group's in between.
func (i *instance) clear(ctx context.Context, pid int, d *data) error {
	i.leader = &leader{pid: pid, begun: d.Begun, strict: true, over: true}
	defer context.AfterFunc(ctx, func() { close(i.left) })()
	if d.Boot == bootID() && d.Space == pidSpace() && !i.end() {
		return ctx.Err()
	}
	i.clean()
	return nil
}

// own is a path of FIFOs if it is one of ours. Nothing else is ever opened or removed, whatever a record says.
func (r *Runner) own(base string) string {
	if filepath.Dir(base) != filepath.Clean(r.opt.Dir) {
		return ""
	}
	return base
}

// find is the leader of a record. run.ErrGone says that it has ended.
func (r *Runner) find(pid int, d *data) (*leader, error) {
	if pid == 0 {
		return nil, run.ErrGone
	}
	if boot, space := bootID(), pidSpace(); d.Boot != boot || d.Space != space {
		return nil, run.ErrGone
	}
	r.mu.Lock()
	l := r.ours[pid]
	r.mu.Unlock()
	if l != nil {
		if l.begun == d.Begun {
			return l, nil
		}
		return nil, run.ErrGone
	}
	l = newLeader(pid, false)
	begun, err := startOf(pid)
	if err != nil || begun != d.Begun {
		l.close()
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil, run.ErrGone
		}
		return nil, err
	}
	l.begun = begun
	go l.watch()
	return l, nil
}

// spec is what launch is told.
func (r *Runner) spec(s *run.Start, u *account) *launch.Spec {
	put := placeholders(s)
	spec := &launch.Spec{Dir: s.App.Dir, Env: environ(s, u, put), User: u.switchTo()}
	for _, word := range s.App.Command {
		spec.Args = append(spec.Args, put.Replace(word))
	}
	spec.Path = spec.Args[0]
	if s.App.InheritEnv {
		spec.Inherit = os.Environ()
	}
	if n := s.App.Limits.NoFile; n > 0 {
		spec.NoFile = &launch.NoFile{Soft: n, Hard: n}
	}
	if s.Listener >= 0 {
		spec.Sockets = []launch.Socket{{Name: "http", FD: s.Listener}}
	}
	return spec
}

var _ run.Runner = (*Runner)(nil)

// stopSignal is what an app is asked to end with; TERM where the plan says nothing.
func stopSignal(how plan.AppStop) string {
	if how.Signal == "" {
		return "TERM"
	}
	return how.Signal
}
