package authority

import (
	"sync"
	"time"
)

const (
	gateAfter = 3 // failures of the CA itself in a row
	gateFirst = 15 * time.Second
	gateMost  = 15 * time.Minute
)

// A gate is closed for a while when a CA fails again and again whoever asks, so that a thousand names do not ask it one
// after the other.
type gate struct {
	mu    sync.Mutex // guards what follows
	row   int        // failures in a row
	until time.Time
	why   error
}

// closed says until when, and what was said last.
func (g *gate) closed(now time.Time) (time.Time, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.look(now)
	return g.until, g.why
}

// look opens a gate that was closed by a clock that was ahead. mu is held.
func (g *gate) look(now time.Time) {
	if g.until.After(now.Add(gateMost)) {
		g.until, g.why = time.Time{}, nil
	}
}

// opened: the CA did what it was asked to.
func (g *gate) opened() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.row, g.until, g.why = 0, time.Time{}, nil
}

// failed: the CA is down, or has had enough of us; wait is how long it says, 0 when it does not.
func (g *gate) failed(now time.Time, wait time.Duration, why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.look(now)
	if g.until.After(now) {
		return // those who asked before it was closed count once
	}
	g.row++
	if g.row < gateAfter {
		return
	}
	own := gateFirst << min(g.row-gateAfter, 10)
	g.until, g.why = now.Add(min(max(own, wait), gateMost)), why
}
