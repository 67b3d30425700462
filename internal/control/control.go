// Package control turns changed sources into a followed plan: read, plan, prepare, commit, retire.
//
// It promises that one change is applied at a time, whole or not at all, in order of arrival, and that the plan in
// force is always the last one that was committed. It knows no port, connection or target itself.
package control

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// Named is a follower and the word that errors use for it.
type Named struct {
	Name     string
	Follower plan.Follower
}

// Options are what a Loop needs.
type Options struct {
	Config    string // what -c named: a file, a folder or "" for the default; looked up and read anew for each reload
	Layer     *config.Layer
	Followers []Named // in the order of Prepare and Commit; aborted in reverse
	// Save makes the API layer durable. It is called after every Prepare has succeeded and before the first Commit.
	Save func(*config.Layer) error
	// Touched counts the connections a change would disturb; nil counts none.
	Touched  func(from, to *plan.Plan) int
	Event    func(kind, object, message string)
	Log      *slog.Logger
	Registry prometheus.Registerer
}

// A Loop owns the plan in force.
type Loop struct {
	o       Options
	loader  *config.Loader
	metrics metrics
	now     atomic.Pointer[State] // what was committed last; read by anybody

	mu     sync.Mutex // guards one change at a time, and the members below
	undo   *undo      // a reload that waits for Confirm
	frozen error      // set once: no change is taken any more
	timers sync.WaitGroup
}

// State is a committed plan and where it came from. It is immutable.
type State struct {
	Plan     *plan.Plan
	Files    []string      // that were read
	Layer    *config.Layer // the API's part
	Revision string
	LoadedAt time.Time
	Warnings []config.Warning
	Error    string // of the newest reload, when it was refused and this state stayed
}

// Result is what a change did, or would do.
type Result struct {
	Revision string           `json:"revision"`
	Changes  []plan.Change    `json:"changes"`
	Touched  int              `json:"connections_touched"`
	Warnings []config.Warning `json:"warnings,omitempty"`
	DryRun   bool             `json:"dry_run,omitempty"`
	Confirm  time.Duration    `json:"-"` // goes back by itself after this, unless confirmed
}

// New returns a loop that follows nothing yet; Start loads the first plan.
func New(o Options) *Loop {
	if o.Layer == nil {
		o.Layer = &config.Layer{}
	}
	if o.Event == nil {
		o.Event = func(string, string, string) {}
	}
	return &Loop{o: o, metrics: newMetrics(o.Registry)}
}

// Now is the state in force, nil before the first Commit.
func (l *Loop) Now() *State { return l.now.Load() }

// Start follows the first plan, which the caller has loaded to know where state and logs go.
func (l *Loop) Start(ctx context.Context, first *Loaded) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loader = first.loader
	return l.follow(ctx, first.state(l.o.Layer))
}

// ReloadOptions say how a reload is done.
type ReloadOptions struct {
	DryRun  bool          // say what would change, and change nothing
	Confirm time.Duration // > 0: go back to the present plan by itself unless Confirm is called in time
}

// Reload reads the files anew and follows them. On any error the plan in force is what it was.
func (l *Loop) Reload(ctx context.Context, o ReloadOptions) (Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	res, err := l.change(ctx, l.layer(), o)
	if !o.DryRun {
		l.noteReload(err)
	}
	return res, err
}

// Check loads the files as a reload would and follows nothing.
func (l *Loop) Check(ctx context.Context) (Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change(ctx, l.layer(), ReloadOptions{DryRun: true})
}

// ErrStale says that an edit was made against another revision than the one in force.
var ErrStale = errors.New("the configuration has changed since; fetch it again and repeat the edit")

// ErrFrozen says that no change is taken because the daemon is stopping or being replaced.
var ErrFrozen = errors.New("the daemon is stopping; nothing is changed any more")

// Edit changes the API layer by f, which gets a copy it may alter, and follows the result. match is the revision the
// caller saw ("*" for any); another one in force is ErrStale.
func (l *Loop) Edit(ctx context.Context, match string, f func(*config.Layer) error) (Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.now.Load(); now == nil || (match != "*" && match != now.Revision) {
		return Result{}, ErrStale
	}
	layer := l.layer().Clone()
	if err := f(layer); err != nil {
		return Result{}, err
	}
	return l.change(ctx, layer, ReloadOptions{})
}

func (l *Loop) layer() *config.Layer {
	if now := l.now.Load(); now != nil {
		return now.Layer
	}
	return l.o.Layer
}

// change loads the files and the layer and, unless it is a dry run, follows them. mu is held.
func (l *Loop) change(ctx context.Context, layer *config.Layer, o ReloadOptions) (Result, error) {
	if l.frozen != nil {
		return Result{}, l.frozen
	}
	old := l.now.Load()
	loaded, err := Load(l.loader, l.o.Config, layer)
	if err != nil {
		return Result{}, err
	}
	next := loaded.state(layer)
	res := Result{
		Revision: next.Revision, Warnings: next.Warnings, DryRun: o.DryRun, Confirm: o.Confirm,
		Changes: plan.Diff(old.Plan, next.Plan),
	}
	if l.o.Touched != nil {
		res.Touched = l.o.Touched(old.Plan, next.Plan)
	}
	if o.DryRun {
		return res, nil
	}
	if err := l.follow(ctx, next); err != nil {
		return Result{}, err
	}
	l.cancelUndo()
	if o.Confirm > 0 {
		l.arm(old, o.Confirm)
	}
	return res, nil
}

// follow prepares every follower, makes the layer durable, then commits and retires. mu is held.
func (l *Loop) follow(ctx context.Context, next *State) error {
	steps := make([]plan.Step, 0, len(l.o.Followers))
	abort := func() {
		for i := len(steps) - 1; i >= 0; i-- {
			steps[i].Abort()
		}
	}
	for _, f := range l.o.Followers {
		step, err := f.Follower.Prepare(ctx, next.Plan)
		if err != nil {
			abort()
			return &FollowError{Part: f.Name, Err: err}
		}
		steps = append(steps, step)
	}
	if old := l.now.Load(); l.o.Save != nil && old != nil && old.Layer != next.Layer {
		if err := l.o.Save(next.Layer); err != nil {
			abort()
			return &FollowError{Part: "state", Err: err}
		}
	}
	for _, s := range steps {
		s.Commit()
	}
	next.LoadedAt = time.Now()
	l.now.Store(next)
	for _, s := range steps {
		s.Retire()
	}
	l.o.Event("config.committed", next.Revision, "")
	return nil
}

// A FollowError is a valid plan that could not be had: the part that refused it, and why.
type FollowError struct {
	Part string
	Err  error
}

func (e *FollowError) Error() string { return e.Err.Error() }
func (e *FollowError) Unwrap() error { return e.Err }

// noteReload keeps what the newest reload came to, for status, metrics and log. mu is held.
func (l *Loop) noteReload(err error) {
	l.metrics.reloaded(err)
	now := l.now.Load()
	if err == nil {
		l.o.Log.Info("reload applied", "revision", now.Revision)
		return
	}
	copied := *now
	copied.Error = err.Error()
	l.now.Store(&copied)
	l.o.Log.Error("reload refused", "err", err, "revision", now.Revision)
	l.o.Event("config.refused", now.Revision, err.Error())
}

// Freeze makes every later change fail with why; the first call counts. A reload that waits for its confirmation
// stays as it is.
func (l *Loop) Freeze(why error) {
	l.mu.Lock()
	if l.frozen == nil {
		l.frozen = why
	}
	l.cancelUndo()
	l.mu.Unlock()
	l.timers.Wait()
}

// undo is a state to go back to.
type undo struct {
	back  *State
	timer *time.Timer
	until time.Time
}

// ErrNothingToConfirm says that no reload waits for a confirmation.
var ErrNothingToConfirm = errors.New("nothing to confirm: no reload is waiting (it was confirmed, replaced, or has gone back already)")

// Confirm keeps the plan of a reload that waits for it.
func (l *Loop) Confirm() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.undo == nil {
		return ErrNothingToConfirm
	}
	l.cancelUndo()
	l.o.Log.Info("reload confirmed", "revision", l.now.Load().Revision)
	return nil
}

// Unconfirmed is when the present plan will be undone; the zero time when it will not.
func (l *Loop) Unconfirmed() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.undo == nil {
		return time.Time{}
	}
	return l.undo.until
}

func (l *Loop) arm(back *State, after time.Duration) {
	u := &undo{back: back, until: time.Now().Add(after)}
	l.timers.Add(1)
	u.timer = time.AfterFunc(after, func() {
		defer l.timers.Done()
		l.goBack(u)
	})
	l.undo = u
}

func (l *Loop) cancelUndo() {
	if l.undo != nil {
		if l.undo.timer.Stop() {
			l.timers.Done()
		}
		l.undo = nil
	}
}

// goBack follows the state from before an unconfirmed reload. If even that cannot be had the present plan stays.
func (l *Loop) goBack(u *undo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.undo != u || l.frozen != nil {
		return
	}
	l.undo = nil
	back := *u.back
	back.Error = "the last reload was not confirmed in time and was undone"
	if err := l.follow(context.Background(), &back); err != nil {
		l.o.Log.Error("unconfirmed reload could not be undone", "err", err)
		return
	}
	l.o.Log.Warn("unconfirmed reload undone", "revision", back.Revision)
	l.o.Event("config.undone", back.Revision, back.Error)
}

// Loaded is what Load found.
type Loaded struct {
	Plan     *plan.Plan
	Files    []string
	Warnings []config.Warning
	Revision string

	loader *config.Loader
}

func (l *Loaded) state(layer *config.Layer) *State {
	return &State{Plan: l.Plan, Files: l.Files, Layer: layer, Revision: l.Revision, Warnings: l.Warnings}
}

// Load looks up and reads the files and makes one plan of them and the API layer. The revision depends on the bytes
// alone. loader remembers the pieces for the next load; nil begins anew.
func Load(loader *config.Loader, arg string, layer *config.Layer) (*Loaded, error) {
	if loader == nil {
		loader = config.NewLoader()
	}
	files, err := config.FindFiles(arg)
	if err != nil {
		return nil, err
	}
	sources, err := config.ReadFiles(files)
	if err != nil {
		return nil, err
	}
	p, warnings, err := loader.Load(sources, layer)
	if err != nil {
		return nil, err
	}
	return &Loaded{Plan: p, Files: files, Warnings: warnings, Revision: revision(sources, layer), loader: loader}, nil
}
