// Package containers runs apps as containers of podman or docker.
//
// It promises that only containers which bear our labels, and those of this daemon, are ever stopped or removed; that an
// engine which is silent, slow or talkative holds up nobody but the one who asked, for a bounded time; that what a
// container says is passed on once, whether we were there or not; and that an engine which is away ends no app: the
// instance is out of sight, and found again. It never starts a container that is there, keeps none for later, builds no
// image, and chooses no port.
package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// The labels by which a container is known to be ours.
const (
	labelApp   = "io.quaymaster.app"   // name of the app
	labelOwner = "io.quaymaster.owner" // id of the daemon: of its state folder, wherever that is moved to
	labelState = "io.quaymaster.state" // path of the state folder, for people
)

// Options are what a Runner needs of others.
type Options struct {
	Log *slog.Logger
	// Sockets are where settings say that engines are, in the order in which they are asked.
	Sockets func(plan.EngineSettings) []string
	// Owner is what tells our containers from those of other daemons; the next daemon has the same.
	Owner func() (string, error)
	State string // path of the state folder
	// Changed is told that a container has come or gone; it must not block for long. nil: nobody is.
	Changed func()
}

// A Runner runs containers. Use New. It is safe for use by many goroutines.
type Runner struct {
	opt Options

	mu   sync.Mutex // guards what follows
	ours map[string]bool
	said map[string]bool
}

// New returns a Runner that runs nothing.
func New(o Options) *Runner {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	return &Runner{opt: o, ours: make(map[string]bool), said: make(map[string]bool)}
}

// data is what a later daemon needs to know besides the id.
type data struct {
	Socket string `json:"socket"`
	Name   string `json:"name"`
	Port   uint16 `json:"port"`   // that is published
	Inside uint16 `json:"inside"` // that the app listens on
}

var validID = regexp.MustCompile(`^[0-9a-f]{12,64}$`)

// Check names what would keep the app from starting. A *run.AwayError says that no engine could be asked.
func (r *Runner) Check(ctx context.Context, a *plan.App) []error {
	image, err := r.find(ctx, a)
	if err != nil {
		return []error{err}
	}
	var errs []error
	if image.env == nil && a.Engine.Pull == "never" {
		errs = append(errs, missing(a.Image, image.engine))
	}
	for _, name := range a.EnvRequired {
		set := slices.ContainsFunc(a.Env, func(v plan.EnvVar) bool { return v.Name == name })
		inside := slices.ContainsFunc(image.env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
		if !set && !inside && image.env != nil {
			errs = append(errs, fmt.Errorf("%s is not set; set it under env, or in the image", name))
		}
	}
	if err := r.foreign(ctx, a.Name, image.engine); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// missing says that there is no such image, and what to do.
func missing(image string, e engineAt) error {
	return fmt.Errorf("there is no image %s in %s; build it (%s build -t %s .), fetch it (%s pull %s), or write engine: {pull: missing}",
		image, e, e.kind, image, e.kind, image)
}

// Adopt finds a container that an earlier daemon has started, or that was left by this one. Where its engine is away, it is
// taken to be there until that can be asked.
func (r *Runner) Adopt(ctx context.Context, rec run.Record, out run.Output) (run.Instance, error) {
	var d data
	if err := json.Unmarshal(rec.Data, &d); err != nil || !validID.MatchString(rec.Container) || d.Socket == "" {
		return nil, fmt.Errorf("the record of container %q says too little: %w", clip(rec.Container), run.ErrGone)
	}
	i := r.instance(rec.Container, d, out)
	i.started, i.begun = rec.Started, rec.Started
	if l, ok := out.(run.Recalling); ok {
		i.log.newest = l.Newest()
	}
	if i.log.newest.IsZero() {
		i.log.tail = adoptLines
	}
	box, err := r.inspect(ctx, d.Socket, rec.Container)
	switch {
	case isMissing(err):
		return nil, run.ErrGone
	case err == nil && !r.isOurs(box.Config):
		r.opt.Log.Warn("a container of the records is not ours, and is left alone", "container", rec.Container)
		return nil, run.ErrGone
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		i.blind(err)
	}
	i.begin()
	return i, nil
}

// instance makes one that is not attended to yet.
func (r *Runner) instance(id string, d data, out run.Output) *instance {
	i := &instance{
		r: r, id: id, data: d, out: out, done: make(chan struct{}), ending: make(chan struct{}), heard: make(chan struct{}),
	}
	i.life, i.end = context.WithCancel(context.Background())
	i.log.out = out.Line
	r.mu.Lock()
	r.ours[id] = true
	r.mu.Unlock()
	return i
}

// forget says that an instance is not attended to any more.
func (r *Runner) forget(id string) {
	r.mu.Lock()
	delete(r.ours, id)
	r.mu.Unlock()
}

// attended reports whether an instance of ours has the container.
func (r *Runner) attended(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ours[id]
}

// sayOnce logs what an engine remarks, once for each app.
func (r *Runner) sayOnce(app, text string) {
	key := app + "\x00" + text
	r.mu.Lock()
	known := r.said[key] || len(r.said) >= 1000
	r.said[key] = true
	r.mu.Unlock()
	if !known {
		r.opt.Log.Warn("container engine", "app", app, "warning", text)
	}
}

// An engineAt is one engine that answers.
type engineAt struct{ kind, socket string }

func (e engineAt) String() string { return e.kind + " at " + e.socket }

// found is where an image is, or would be.
type found struct {
	engine engineAt
	env    []string // of the image; nil: it is not there
}

// find looks for an image: the first engine that has it, else the first that answers.
func (r *Runner) find(ctx context.Context, a *plan.App) (*found, error) {
	sockets := r.opt.Sockets(a.Engine)
	if len(sockets) == 0 {
		return nil, &run.AwayError{Text: "there is no container engine at the usual places; start one (systemctl enable --now podman.socket, or docker), or write engine: {socket: PATH}"}
	}
	var first *found
	var errs []error
	for _, socket := range sockets {
		e, env, err := r.image(ctx, socket, a.Image)
		switch {
		case err == nil:
			return &found{e, env}, nil
		case isMissing(err) && first == nil:
			first = &found{engine: e}
		case !isMissing(err):
			errs = append(errs, err)
		}
	}
	if first == nil {
		return nil, errors.Join(errs...)
	}
	return first, nil
}

var _ run.Runner = (*Runner)(nil)

// adoptLines are read again of a container whose output is not known.
const adoptLines = 1000

// again and againMost are the pauses between two questions to an engine that is away.
const (
	again     = 100 * time.Millisecond
	againMost = 2 * time.Second
)
