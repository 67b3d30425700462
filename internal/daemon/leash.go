package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/control"
)

const (
	leashAgain = 100 * time.Millisecond // between two tries to take out what hung on a leash; it doubles
	leashMost  = 10 * time.Second       // up to this
	leashFirst = 15 * time.Second       // for the first leash of a daemon that lives by them
	leashNext  = time.Second            // for another one
)

// leashes are the routes and leases that are there as long as a connection of the API. They are kept in memory alone: a
// successor knows none of them, and who held them asks it again.
type leashes struct {
	d *Daemon

	mu     sync.Mutex // guards what follows; never held while the loop or leases are asked
	notes  map[string]string
	routes map[string]string // id of the leash by name
	leases map[string]string
	empty  time.Time // since when there is no leash; zero while there is one
}

func newLeashes(d *Daemon) *leashes {
	return &leashes{d: d, notes: map[string]string{}, routes: map[string]string{}, leases: map[string]string{}, empty: time.Now()}
}

// Hold begins a leash.
func (l *leashes) Hold(note string) (id string, over <-chan struct{}, end func()) {
	id = rand.Text()
	l.mu.Lock()
	l.notes[id], l.empty = note, time.Time{}
	l.mu.Unlock()
	return id, l.d.given, func() { l.end(id) }
}

// end forgets a leash; what hangs on it is taken out beside the connection that has ended.
func (l *leashes) end(id string) {
	l.mu.Lock()
	delete(l.notes, id)
	if len(l.notes) == 0 {
		l.empty = time.Now()
	}
	l.mu.Unlock()
	l.d.work(l.d.life, "leash", func(ctx context.Context) error { return l.drop(ctx, id) })
}

// drop takes out what hung on a leash. A daemon that stops, or gave way to another, has nothing to take out.
func (l *leashes) drop(ctx context.Context, id string) error {
	again := leashAgain
	for over := false; !over && len(l.of(l.routes, id)) > 0; again = min(2*again, leashMost) {
		_, err := l.d.loop.Edit(ctx, "*", func(layer *config.Layer) error {
			for _, name := range l.of(l.routes, id) {
				layer.Delete(name)
			}
			return nil
		})
		switch {
		case err == nil:
			l.forget(l.routes, id)
		case errors.Is(err, control.ErrFrozen), l.replaced():
			return nil
		default:
			if !errors.Is(err, control.ErrUpgrading) {
				l.d.log.Warn("routes of a leash are still there", "err", err)
			}
			over = pause(ctx, again) != nil
		}
	}
	if l.replaced() {
		return nil
	}
	for _, name := range l.of(l.leases, id) {
		if _, err := l.d.leases.Release(ctx, name); err != nil && ctx.Err() == nil {
			l.d.log.Warn("lease of a leash is still there", "app", name, "err", err)
		}
	}
	l.forget(l.leases, id)
	return nil
}

// replaced reports whether another process serves instead of this one.
func (l *leashes) replaced() bool {
	select {
	case <-l.d.given:
		return true
	default:
		return false
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// of are the names in one of the maps that hang on a leash.
func (l *leashes) of(names map[string]string, id string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, of := range names {
		if of == id {
			out = append(out, name)
		}
	}
	return out
}

func (l *leashes) forget(names map[string]string, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, of := range names {
		if of == id {
			delete(names, name)
		}
	}
}

// claim notes that a name hangs on a leash. there tells that the name is in use already; fresh, that the note is new.
func (l *leashes) claim(names map[string]string, kind, id, name string, there bool) (fresh bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.notes[id]; !ok {
		return false, errNoLeash()
	}
	of, held := names[name]
	note, alive := l.notes[of]
	switch {
	case held && of == id:
		return false, nil
	case held && alive:
		return false, api.LeashHeld(kind, name, note)
	case held:
		return false, &api.Problem{Title: "Not now", Status: http.StatusServiceUnavailable, Detail: kind + " " + name + " is being taken out; ask again"}
	case there:
		return false, &api.Problem{Title: "In use", Status: http.StatusConflict, Detail: kind + " " + name + " is there already; choose another name"}
	}
	names[name] = id
	return true, nil
}

// unclaim undoes a claim, unless the name is another's by now.
func (l *leashes) unclaim(names map[string]string, id, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if names[name] == id {
		delete(names, name)
	}
}

// PutRoute makes or replaces a route that hangs on a leash.
func (l *leashes) PutRoute(ctx context.Context, id, name string, body []byte, match string) (*api.Change, error) {
	fresh := false
	c, err := (*changes)(l.d).edit(ctx, match, func(layer *config.Layer) error {
		if err := config.FileHolds(l.d.loop.Now().Plan, name); err != nil {
			return err
		}
		_, there := layer.Routes[name]
		var err error
		if fresh, err = l.claim(l.routes, "route", id, name, there); err != nil {
			return err
		}
		return layer.Put(name, body)
	})
	if err != nil && fresh {
		l.unclaim(l.routes, id, name)
	}
	return c, err
}

// Lease leases a port that hangs on a leash. One of that name that nobody holds was left by a daemon that crashed.
func (l *leashes) Lease(ctx context.Context, id, name string, another bool) (*api.Lease, error) {
	fresh, err := l.claim(l.leases, "lease", id, name, false)
	if err != nil {
		return nil, err
	}
	out, err := (*leaseView)(l.d).Lease(ctx, name, another)
	switch {
	case err != nil && fresh:
		l.unclaim(l.leases, id, name)
	case err == nil && l.late(id, name): // the leash was given back before there was anything to give
		_, _ = l.d.leases.Release(l.d.life, name) // that may have been done meanwhile
		return nil, errNoLeash()
	}
	return out, err
}

// late reports whether a leash has ended, and nobody else has its lease.
func (l *leashes) late(id, name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, alive := l.notes[id]
	of, held := l.leases[name]
	return !alive && (!held || of == id)
}

func errNoLeash() error {
	return &api.Problem{Title: "No such leash", Status: http.StatusGone, Detail: "the leash has ended; hold another one"}
}

// letGo takes a route off its leash, because it is taken out. It returns the leash, "" if there is none.
func (l *leashes) letGo(name string) (id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id = l.routes[name]
	delete(l.routes, name)
	return id
}

// back is letGo undone.
func (l *leashes) back(name, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, held := l.routes[name]; !held && id != "" {
		l.routes[name] = id
	}
}

// held is why a route may not be edited by others: it hangs on a leash.
func (l *leashes) held(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id, ok := l.routes[name]; ok {
		return api.LeashHeld("route", name, l.notes[id])
	}
	return nil
}

// split tells the routes that hang on a leash from those that are to be kept.
func (l *leashes) split(layer *config.Layer) (kept *config.Layer, leashed map[string]json.RawMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept, leashed = layer.Clone(), map[string]json.RawMessage{}
	for name := range l.routes {
		if text, ok := kept.Routes[name]; ok {
			leashed[name] = text
			delete(kept.Routes, name)
		}
	}
	return kept, leashed
}

// unused reports whether nobody has held a leash for a while; a daemon that began at since waits longer for the first.
func (l *leashes) unused(since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.empty.IsZero():
		return false
	case l.empty.After(since):
		return time.Since(l.empty) > leashNext
	}
	return time.Since(since) > leashFirst
}

// watchLeashes stops a daemon that lives by leashes when the last one has ended.
func (d *Daemon) watchLeashes(ctx context.Context) error {
	tick := time.NewTicker(leashNext / 4)
	defer tick.Stop()
	since := time.Now()
	for !d.leashes.unused(since) {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	d.log.Info("nobody needs this daemon any more")
	d.Stop()
	if pause(ctx, leashNext) == nil {
		d.Cut()
	}
	return nil
}
