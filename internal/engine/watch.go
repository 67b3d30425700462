package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/engine/labels"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// The clocks of a Watch.
const (
	lookEvery  = 5 * time.Second // for an engine that was not there before
	firstPause = time.Second / 4 // after an engine was lost; it doubles
	lastPause  = 5 * time.Second // up to this
)

// WatchOptions are what a Watch needs from others.
type WatchOptions struct {
	// Settings are the settings in force.
	Settings func() (plan.EngineSettings, plan.LabelSettings)
	// Found takes all running containers with labels for routes, oldest first, whenever something about them has changed.
	// It is called by one goroutine at a time. After again it is called once more with the same; 0 is never.
	Found func(ctx context.Context, list []labels.Container) (again time.Duration)
	Log   *slog.Logger
	Env   func(string) string // for DOCKER_HOST and XDG_RUNTIME_DIR; nil: os.Getenv
}

// A Watch follows the containers of every engine by one stream of events each: a list at first, then another after each
// burst of events and now and then. While an engine is down, what it said last goes on to count.
type Watch struct {
	opt    WatchOptions
	engine *Engine
	wake   chan struct{} // 1 deep: something has changed
	look   chan struct{} // 1 deep: the settings may have

	mu    sync.Mutex                    // guards what follows
	feeds []*feed                       // in the order of their places
	seed  map[string][]labels.Container // by socket: known before Run
	asked asked
	wg    sync.WaitGroup
}

// asked are the settings that a Watch depends on.
type asked struct {
	engine  plan.EngineSettings
	traefik bool
	on      bool
}

// A State is how the stream of one engine is.
type State struct {
	Socket string
	Err    error // why it is down; nil: it is well
	Since  time.Time
	Known  int  // containers that it told of
	Must   bool // the configuration names it
}

// NewWatch returns a Watch that has asked nobody yet.
func NewWatch(o WatchOptions) *Watch {
	if o.Env == nil {
		o.Env = os.Getenv
	}
	return &Watch{opt: o, engine: New(Options{Env: o.Env}), wake: make(chan struct{}, 1), look: make(chan struct{}, 1)}
}

// Poke makes it look at the settings again.
func (w *Watch) Poke() { nudge(w.look) }

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run follows engines until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	defer w.wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	w.survey(ctx)
	told := w.all() // which is what First has said
	for {
		due := false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			w.survey(ctx)
			continue
		case <-w.look:
			w.survey(ctx)
		case <-w.wake:
		case <-again.C:
			due = true
		}
		now := w.all()
		if !due && reflect.DeepEqual(now, told) {
			continue
		}
		told = now
		again.Reset(time.Hour)
		if after := w.opt.Found(ctx, now); after > 0 {
			again.Reset(after)
		}
	}
}

// survey begins to follow engines that have come, and lets go of those that the settings do not name any more.
func (w *Watch) survey(ctx context.Context) {
	set, lab := w.opt.Settings()
	now := asked{set, lab.Traefik, lab.Enabled}
	var places []place
	if now.on {
		places = w.engine.places(set)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	seed := w.seed // of an engine that is down, and whose socket may be gone
	for path := range seed {
		if now.on && !slices.ContainsFunc(places, func(p place) bool { return p.path == path }) {
			places = append(places, place{path: path})
		}
	}
	if now != w.asked {
		seed = w.anew(places, now.on == w.asked.on && now.traefik == w.asked.traefik, seed)
		w.asked = now
	}
	w.seed = nil
	for _, p := range places {
		if slices.ContainsFunc(w.feeds, func(f *feed) bool { return f.place.path == p.path }) {
			continue
		}
		f := &feed{watch: w, place: p, traefik: now.traefik, since: time.Now(), list: seed[p.path]}
		var own context.Context
		own, f.stop = context.WithCancel(ctx)
		w.feeds = append(w.feeds, f)
		w.wg.Go(func() { f.run(own) })
	}
}

// anew lets go of feeds under other settings. What those knew whose engine is still meant is known to the next: routes
// do not go because somebody asks differently.
func (w *Watch) anew(places []place, same bool, seed map[string][]labels.Container) map[string][]labels.Container {
	out := map[string][]labels.Container{}
	maps.Copy(out, seed)
	w.feeds = slices.DeleteFunc(w.feeds, func(f *feed) bool {
		meant := slices.ContainsFunc(places, func(p place) bool { return p.path == f.place.path })
		if meant && same {
			return false
		}
		f.stop()
		if meant {
			out[f.place.path] = f.list
		} else {
			nudge(w.wake)
		}
		return true
	})
	return out
}

// all are the containers of all engines, oldest first.
func (w *Watch) all() []labels.Container {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := []labels.Container{}
	for _, f := range w.feeds {
		out = append(out, f.list...)
	}
	oldestFirst(out)
	return out
}

// Status is how the stream of each engine is.
func (w *Watch) Status() []State {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]State, 0, len(w.feeds))
	for _, f := range w.feeds {
		out = append(out, State{Socket: f.place.path, Err: f.err, Since: f.since, Known: len(f.list), Must: f.place.must})
	}
	return out
}

// Known are the containers that each engine has told of, by its socket: for First of a later process.
func (w *Watch) Known() map[string][]labels.Container {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string][]labels.Container{}
	for _, f := range w.feeds {
		out[f.place.path] = f.list
	}
	return out
}

// First asks every engine once, before Run, and returns what runs. For an engine that does not answer within ctx it is
// what an earlier process knew.
func (w *Watch) First(ctx context.Context, set plan.EngineSettings, lab plan.LabelSettings, before map[string][]labels.Container) ([]labels.Container, error) {
	seed := map[string][]labels.Container{}
	var places []place
	if lab.Enabled {
		places = w.engine.places(set)
		for path, list := range before {
			if set.Socket == "" || set.Socket == path {
				seed[path] = list
			}
		}
	}
	found := make([][]labels.Container, len(places))
	errs := make([]error, len(places))
	var wg sync.WaitGroup
	for i, p := range places {
		wg.Go(func() {
			f := &feed{watch: w, place: p, traefik: lab.Traefik}
			if found[i], errs[i] = f.once(ctx); errs[i] != nil {
				errs[i] = fmt.Errorf("container engine at %s: %w", p.path, cause(errs[i]))
			}
		})
	}
	wg.Wait()
	for i, p := range places {
		if errs[i] == nil {
			seed[p.path] = found[i]
		}
	}
	out := []labels.Container{}
	for _, list := range seed {
		out = append(out, list...)
	}
	oldestFirst(out)
	w.mu.Lock()
	w.seed = seed
	w.mu.Unlock()
	return out, errors.Join(errs...)
}

// once asks the engine which containers run.
func (f *feed) once(ctx context.Context) ([]labels.Container, error) {
	c, err := f.open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	return f.ask(ctx, c)
}

// A feed follows one engine.
type feed struct {
	watch   *Watch
	place   place
	traefik bool // labels of Traefik count
	stop    func()

	list  []labels.Container // Watch.mu guards it and what follows
	err   error
	since time.Time

	// What follows is used by the feed's own goroutine alone.
	touched map[string]bool              // ids of whom an event told since they were looked at again
	known   map[string]*labels.Container // by id: as it was looked at, and nothing has happened to it since
	last    map[string]*labels.Container // by id: as it was told last
	near    bool                         // addresses of its containers are in networks of this host
}

// run follows the engine as long as ctx lasts, with growing pauses where it cannot.
func (f *feed) run(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastPause {
			pause = firstPause
		}
		f.lost(err)
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		pause = min(2*pause, lastPause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// lost notes that the engine does not answer. What it said last stays.
func (f *feed) lost(err error) {
	f.watch.mu.Lock()
	news := f.err == nil
	f.err = cause(err)
	if news {
		f.since = time.Now()
	}
	known := len(f.list)
	f.watch.mu.Unlock()
	if news && (known > 0 || f.place.must) {
		f.watch.opt.Log.Warn("container engine is not heard; routes of its containers stay as they are", "socket", f.place.path, "containers", known, "err", cause(err))
	}
}

// told takes a list.
func (f *feed) told(list []labels.Container) {
	f.watch.mu.Lock()
	news := f.err != nil
	f.err, f.list = nil, list
	if news {
		f.since = time.Now()
	}
	f.watch.mu.Unlock()
	if news {
		f.watch.opt.Log.Info("container engine answers again", "socket", f.place.path)
	}
	nudge(f.watch.wake)
}

// meter is a connection from which only so much is read for each question or event.
type meter struct {
	net.Conn
	mu   sync.Mutex
	left int
}

func (m *meter) refill() {
	m.mu.Lock()
	m.left = maxAnswer
	m.mu.Unlock()
}

func (m *meter) Write(p []byte) (int, error) {
	m.refill()
	return m.Conn.Write(p)
}

func (m *meter) Read(p []byte) (int, error) {
	m.mu.Lock()
	left := m.left
	m.mu.Unlock()
	if left <= 0 {
		return 0, errTooLong
	}
	n, err := m.Conn.Read(p[:min(len(p), left)])
	m.mu.Lock()
	m.left -= n
	m.mu.Unlock()
	return n, err
}
