//go:build linux

package load

import (
	"math"
	"slices"
	"sync"
	"time"
)

// A Config is one configuration as clients know it. It is never changed.
type Config interface {
	// At is what the configuration says about an endpoint.
	At(e Endpoint) Value
	// Targets are those of a route; false = there is no route of that name.
	Targets(route string) ([]string, bool)
}

// A Value is what one configuration says about one endpoint.
type Value struct {
	Route     string   // "" = none
	Targets   []string // of the route
	Close     bool     // on_remove: close
	SendProxy bool
	Held      bool // somebody wants the port, so we listen there
	Plain     bool // ... and serves HTTP requests on it
	TLS       bool // ... and takes TLS connections on it
}

// A World is what was the case when: which configuration was in force, who was down, which ports others held. What
// happened at some moment between two is said of both.
type World struct {
	mu      sync.Mutex // guards what follows
	spans   []span     // by their beginning; the last that was applied goes on
	pending int64      // when the change that is under way began, 0 = none
	down    map[string][]window
	taken   map[int][]window
}

// span is the time in which a configuration may have been in force.
type span struct {
	window
	config Config
	tried  bool // it was refused: never in force, but its ports may have been bound for a moment
}

type window struct{ from, until int64 }

func (w window) meets(from, until int64) bool { return w.from <= until && from <= w.until }

const forever = math.MaxInt64

// NewWorld begins with a configuration that is in force.
func NewWorld(c Config) *World {
	return &World{
		spans: []span{{window: window{time.Now().UnixNano(), forever}, config: c}},
		down:  map[string][]window{}, taken: map[int][]window{},
	}
}

// Change tells that next is about to be tried. done tells how that ended; nothing that overlaps the two is judged
// before. One change at a time.
func (w *World) Change(next Config) (done func(applied bool)) {
	begin := time.Now().UnixNano()
	w.mu.Lock()
	w.pending = begin
	w.mu.Unlock()
	return func(applied bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		end := time.Now().UnixNano()
		w.pending = 0
		s := span{window: window{begin, forever}, config: next}
		if applied {
			for i := range w.spans {
				w.spans[i].until = min(w.spans[i].until, end)
			}
		} else {
			s.until, s.tried = end, true
		}
		w.spans = append(w.spans, s)
	}
}

// Now is the configuration in force.
func (w *World) Now() Config {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range slices.Backward(w.spans) {
		if !s.tried {
			return s.config
		}
	}
	return nil
}

// Machine is the name of the program under test in Down.
const Machine = ""

// Down tells that somebody, a target or the Machine, is about to be killed; up that it serves again.
func (w *World) Down(who string) (up func()) { return open(w, w.down, who) }

// Taken tells that somebody else is about to hold a port; free that it has been ours again, or nobody's, since.
func (w *World) Taken(port int) (free func()) { return open(w, w.taken, port) }

func open[K comparable](w *World, in map[K][]window, k K) (done func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	in[k] = append(in[k], window{time.Now().UnixNano(), forever})
	i := len(in[k]) - 1
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		in[k][i].until = time.Now().UnixNano()
	}
}

// settled is the moment up to which everything is known.
func (w *World) settled() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending != 0 {
		return w.pending
	}
	return time.Now().UnixNano()
}

// in lists the spans that meet a time, the earliest first.
func (w *World) in(from, until int64) []span {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []span
	for _, s := range slices.Backward(w.spans) {
		if s.meets(from, until) {
			out = append(out, s)
		}
		if !s.tried && s.from < from-int64(time.Minute) {
			break // nothing before it lasted as long as this
		}
	}
	slices.Reverse(out)
	return out
}

func (w *World) wasDown(who string, from, until int64) bool { return met(w, w.down, who, from, until) }

func (w *World) wasTaken(port int, from, until int64) bool { return met(w, w.taken, port, from, until) }

func met[K comparable](w *World, in map[K][]window, k K, from, until int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(in[k], func(x window) bool { return x.meets(from, until) })
}
