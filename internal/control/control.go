// Package control turns changed sources into a followed plan: read, plan, prepare, commit, retire.
//
// It promises that one change is applied at a time, whole or not at all, in order of arrival, and that the plan in
// force is always the last one that was committed. It knows no port, connection or target itself.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/engine/labels"
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
	// Ready is asked once, when the first plan is prepared and nothing of it shows. An error ends the start. nil: go on.
	Ready func() error
	// Touched counts the connections a change would disturb; nil counts none.
	Touched func(from, to *plan.Plan) int
	// Busy is told when a change to the plan in force begins, and with false when it is over, whatever became of it. It
	// must not call the Loop but for Now and Unconfirmed. nil: nobody asks.
	Busy     func(bool)
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

	until atomic.Pointer[time.Time] // when the plan in force will be undone; nil when it will not

	mu     sync.Mutex // guards one change at a time, and the members below
	undo   *undo      // a reload that waits for Confirm
	frozen error      // set once: no change is taken any more
	timers sync.WaitGroup

	wanted []labels.Container           // that were told last; mu guards it
	unhad  []config.Refusal             // those of them that are left out because their routes cannot be had; mu guards it
	told   map[config.Refusal]time.Time // when it was logged; mu guards it
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

	Containers []labels.Container // whose labels are followed
	Refused    []config.Refusal   // labels that are not

	sources []config.Source // the bytes of Files; an edit of the API layer is made on these, not on what is on disk by now
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
	l.wanted = first.containers
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
	return l.reload(ctx, o)
}

// reload is Reload with mu held.
func (l *Loop) reload(ctx context.Context, o ReloadOptions) (Result, error) {
	if err := l.closed(); err != nil {
		return Result{}, err
	}
	if !o.DryRun {
		defer l.busy()()
	}
	old := l.now.Load()
	res, err := l.try(ctx, o, l.read)
	l.noteReload(err, o)
	if err == nil && !o.DryRun {
		if l.undo != nil {
			old = l.undo.back // that was never confirmed, so it is nothing to go back to
		}
		l.cancelUndo()
		if o.Confirm > 0 {
			l.arm(old, o.Confirm)
		}
	}
	return res, err
}

// read makes a state of the files as they are now, the API layer in force and the containers. mu is held.
func (l *Loop) read(list []labels.Container) (*State, error) {
	loaded, err := load(l.loader, l.o.Config, l.layer(), list)
	if err != nil {
		return nil, err
	}
	return loaded.state(l.layer()), nil
}

// closed is why no change is taken at the moment. mu is held.
func (l *Loop) closed() error {
	if l.frozen == nil && l.now.Load() == nil {
		return ErrStarting
	}
	return l.frozen
}

// Check loads the files as a reload would and follows nothing.
func (l *Loop) Check(ctx context.Context) (Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.closed(); err != nil {
		return Result{}, err
	}
	return l.try(ctx, ReloadOptions{DryRun: true}, l.read)
}

// ErrStale says that an edit was made against another revision than the one in force.
var ErrStale = errors.New("the configuration has changed since; fetch it again and repeat the edit")

// ErrFrozen says that no change is taken because the daemon is stopping or being replaced.
var ErrFrozen = errors.New("the daemon is stopping; nothing is changed any more")

// ErrStarting says that no change is taken because the first plan is not in force yet.
var ErrStarting = errors.New("the daemon is starting; ask again when it serves")

// Edit changes the API layer by f, which gets a copy it may alter, and follows the result. match is the revision the
// caller saw ("*" for any); another one in force is ErrStale. The files are not read again: what somebody is writing
// there waits for a reload. A reload that waits for its confirmation goes on waiting, and going back keeps the edit.
func (l *Loop) Edit(ctx context.Context, match string, f func(*config.Layer) error) (Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.closed(); err != nil {
		return Result{}, err
	}
	now := l.now.Load()
	if match != "*" && match != now.Revision {
		return Result{}, ErrStale
	}
	defer l.busy()()
	layer := l.layer().Clone()
	if err := f(layer); err != nil {
		return Result{}, err
	}
	return l.try(ctx, ReloadOptions{}, func(list []labels.Container) (*State, error) {
		loaded, err := compile(l.loader, now.sources, layer, list)
		if err != nil {
			return nil, err
		}
		next := loaded.state(layer)
		next.Error = now.Error // of the files, which an edit does not mend
		return next, nil
	})
}

func (l *Loop) layer() *config.Layer {
	if now := l.now.Load(); now != nil {
		return now.Layer
	}
	return l.o.Layer
}

// change compares next with the plan in force and, unless it is a dry run, follows it. mu is held.
func (l *Loop) change(ctx context.Context, next *State, o ReloadOptions) (Result, error) {
	old := l.now.Load()
	res := Result{
		Revision: next.Revision, Warnings: slices.Clone(next.Warnings), DryRun: o.DryRun, Confirm: o.Confirm,
		Changes: plan.Diff(old.Plan, next.Plan),
	}
	for i := range next.Refused {
		if r := &next.Refused[i]; !slices.Contains(old.Refused, *r) { // what this change takes from a container
			res.Warnings = append(res.Warnings, config.Warning{Error: config.Error{File: r.Container, Path: r.Label, Message: r.Message, Remedy: r.Remedy}})
		}
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
	return res, nil
}

// busy tells that a change begins; the func it returns, that it is over. mu is held.
func (l *Loop) busy() (over func()) {
	if l.o.Busy == nil {
		return func() {}
	}
	l.o.Busy(true)
	return func() { l.o.Busy(false) }
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
	if l.o.Ready != nil && l.now.Load() == nil {
		if err := l.o.Ready(); err != nil {
			abort()
			return err
		}
	}
	if old := l.now.Load(); l.o.Save != nil && old != nil && old.Layer != next.Layer {
		if err := l.o.Save(next.Layer); err != nil {
			abort()
			return &FollowError{Part: "state", Err: err}
		}
	}
	if next.LoadedAt.IsZero() { // else containers alone have changed
		next.LoadedAt = time.Now()
	}
	var refused []config.Refusal
	if old := l.now.Load(); old != nil {
		refused = old.Refused
	}
	l.now.Store(next) // first: what a Commit lets in asks for the plan in force at once
	for _, s := range steps {
		s.Commit()
	}
	for _, s := range steps {
		s.Retire()
	}
	l.o.Event("config.committed", next.Revision, "")
	l.tell(refused, next.Refused)
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
func (l *Loop) noteReload(err error, o ReloadOptions) {
	if o.DryRun {
		return
	}
	l.metrics.reloaded(err)
	now := l.now.Load()
	if err == nil {
		l.o.Log.Info("reload applied", "revision", now.Revision)
		return
	}
	copied := *now
	copied.Error = brief(err)
	l.now.Store(&copied)
	l.o.Log.Error("reload refused", "err", copied.Error, "revision", now.Revision)
	l.o.Event("config.refused", now.Revision, copied.Error)
}

// shown is how many mistakes status, log and events repeat. A file of thousands would make each of them megabytes long.
const shown = 20

// brief is the text of an error of bounded length.
func brief(err error) string {
	var bad config.Errors
	if errors.As(err, &bad) && len(bad) > shown {
		return bad[:shown].Error() + fmt.Sprintf("\nand %d more mistakes; `quaymaster check` lists them all", len(bad)-shown)
	}
	return err.Error()
}

// Freeze makes every later change fail with why; the first call counts. A reload that waits for its confirmation
// stays as it is.
func (l *Loop) Freeze(why error) {
	l.mu.Lock()
	if l.frozen == nil || errors.Is(l.frozen, ErrUpgrading) {
		l.frozen = why
	}
	l.cancelUndo()
	l.mu.Unlock()
	l.timers.Wait()
}

// ErrUpgrading says that no change is taken because a successor is being started.
var ErrUpgrading = errors.New("an upgrade is under way; repeat the change when it is over")

// ErrUnconfirmed says that there can be no successor while a reload may still go back.
var ErrUnconfirmed = errors.New("a reload waits for its confirmation; run `quaymaster confirm`, or wait until it has gone back")

// Suspend makes every change fail with ErrUpgrading until resume is called; a change under way ends first.
func (l *Loop) Suspend() (resume func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.closed(); err != nil {
		return nil, err
	}
	if l.undo != nil {
		return nil, ErrUnconfirmed
	}
	l.frozen = ErrUpgrading
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if errors.Is(l.frozen, ErrUpgrading) {
			l.frozen = nil
		}
	}, nil
}

// undo is a state to go back to.
type undo struct {
	back  *State
	timer *time.Timer
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

// Unconfirmed is when the present plan will be undone; the zero time when it will not. It does not wait for a change
// that is under way.
func (l *Loop) Unconfirmed() time.Time {
	if t := l.until.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

func (l *Loop) arm(back *State, after time.Duration) {
	u := &undo{back: back}
	until := time.Now().Add(after)
	l.until.Store(&until)
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
		l.until.Store(nil)
	}
}

// goBack follows the files from before an unconfirmed reload, with the API layer of now; where those two do not go
// together, the layer of then. If even that cannot be had the present plan stays.
func (l *Loop) goBack(u *undo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.undo != u || l.frozen != nil {
		return
	}
	defer l.busy()()
	l.undo = nil
	l.until.Store(nil)
	back := *u.back
	if loaded, err := compile(l.loader, u.back.sources, l.layer(), l.containers()); err == nil {
		back = *loaded.state(l.layer())
	}
	back.LoadedAt = time.Time{}
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
	Refused  []config.Refusal // labels that are not followed

	loader     *config.Loader
	sources    []config.Source
	layer      *config.Layer
	containers []labels.Container
}

func (l *Loaded) state(layer *config.Layer) *State {
	return &State{
		Plan: l.Plan, Files: l.Files, Layer: layer, Revision: l.Revision, Warnings: l.Warnings, sources: l.sources,
		Containers: l.containers, Refused: l.Refused,
	}
}

// Load looks up and reads the files and makes one plan of them and the API layer. The revision depends on the bytes
// alone. loader remembers the pieces for the next load; nil begins anew.
func Load(loader *config.Loader, arg string, layer *config.Layer) (*Loaded, error) {
	return load(loader, arg, layer, nil)
}

// load is Load with the labels of containers.
func load(loader *config.Loader, arg string, layer *config.Layer, list []labels.Container) (*Loaded, error) {
	files, err := config.FindFiles(arg)
	if err != nil {
		return nil, err
	}
	sources, err := config.ReadFiles(files)
	if err != nil {
		return nil, err
	}
	return compile(loader, sources, layer, list)
}

// compile makes one plan of bytes in memory, the API layer and the labels of containers.
func compile(loader *config.Loader, sources []config.Source, layer *config.Layer, list []labels.Container) (*Loaded, error) {
	if loader == nil {
		loader = config.NewLoader()
	}
	p, warnings, refused, err := loader.LoadWith(sources, layer, list)
	if err != nil {
		return nil, err
	}
	files := make([]string, len(sources))
	for i, s := range sources {
		files[i] = s.Name
	}
	return &Loaded{
		Plan: p, Files: files, Warnings: warnings, Revision: revision(sources, layer), loader: loader, sources: sources,
		Refused: refused, layer: layer, containers: list,
	}, nil
}
