package acme

import (
	"context"
	"slices"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	atOnce      = 8
	lookEvery   = 30 * time.Second       // however far the next order: clocks are set, machines sleep
	lookBlocked = 250 * time.Millisecond // while a challenge's port does not accept
	lookLong    = 2 * time.Second        // when it has not for a while
	settle      = 2 * time.Second        // for which the challenge of the first choice is waited for
	leastPause  = 5 * time.Millisecond
	storeEvery  = time.Minute
)

// Run begins orders and renewals until ctx ends, and returns when none is under way.
func (a *Issuer) Run(ctx context.Context) error {
	a.mu.Lock()
	a.running = ctx
	a.since = a.o.Clock.Now()
	a.mu.Unlock()
	a.begun.Do(func() {
		a.reread(ctx)
		close(a.up)
	})
	defer a.close()
	a.sweep()
	for {
		a.storeAgain()
		pause := a.begin(ctx)
		timer, stop := a.o.Clock.After(max(pause, leastPause))
		select {
		case <-ctx.Done():
			stop()
			return nil
		case <-a.wake:
		case <-timer:
		}
		stop()
	}
}

// storeAgain writes what could not be written, once a minute.
func (a *Issuer) storeAgain() {
	now := a.o.Clock.Now()
	a.mu.Lock()
	if now.Before(a.stored.Add(storeEvery)) && !now.Before(a.stored) {
		a.mu.Unlock()
		return
	}
	a.stored = now
	var list []*entry
	for _, e := range *a.index.Load() {
		if e.unstored && !a.busy[e.name] {
			list = append(list, e)
		}
	}
	a.mu.Unlock()
	for _, e := range list { // only jobs change e.rec, and this goroutine begins them
		err := a.save(e.rec)
		if err != nil {
			return // it is logged already, and shown
		}
		a.mu.Lock()
		e.unstored = false
		a.mu.Unlock()
		a.o.Log.Info("a certificate is stored at last", "host", e.name)
	}
}

// close waits for what is under way, whose context has ended.
func (a *Issuer) close() {
	a.mu.Lock()
	a.running = nil
	a.mu.Unlock()
	a.jobs.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.cas {
		c.Close()
	}
	for _, c := range a.staging {
		c.Close()
	}
	a.gate.Close()
	for _, e := range *a.index.Load() {
		e.release()
	}
}

// job is something to do for a name.
type job struct {
	e    *entry
	at   time.Time
	ask  bool // when to renew, not an order
	ways []way
}

// begin starts what is due, as far as there is room, and says when to look again at the latest.
func (a *Issuer) begin(ctx context.Context) time.Duration {
	now := a.o.Clock.Now()
	a.mu.Lock()
	set := a.set
	a.mu.Unlock()
	ports := a.look(set) // asks others: without the lock
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set == nil || a.set != set || ctx.Err() != nil {
		if a.set != set {
			a.stir()
		}
		return lookEvery
	}
	pause := lookEvery
	sooner := func(d time.Duration) { pause = min(pause, max(d, 0)) }
	var list []job
	for _, e := range *a.index.Load() {
		if a.busy[e.name] || a.lapsed(e, now) {
			continue // the end of its job looks again
		}
		at := e.due(a, now)
		switch {
		case !at.IsZero() && !at.After(now):
			ways, wait := a.ways(e, ports, now)
			if len(ways) == 0 {
				sooner(wait)
				break
			}
			list = append(list, job{e: e, at: at, ways: ways})
			continue
		case !at.IsZero():
			sooner(at.Sub(now))
		}
		if at := a.askAt(e, now); !at.IsZero() {
			if at.After(now) {
				sooner(at.Sub(now))
				continue
			}
			list = append(list, job{e: e, at: at, ask: true})
		}
	}
	slices.SortStableFunc(list, func(x, y job) int {
		if x.ask != y.ask {
			if y.ask {
				return -1
			}
			return 1
		}
		return x.at.Compare(y.at)
	})
	for _, j := range list {
		if a.active >= atOnce {
			break // the end of each looks again
		}
		a.start(ctx, j)
	}
	return pause
}

// start begins one job. a.mu is held.
func (a *Issuer) start(ctx context.Context, j job) {
	ctx, cancel := context.WithCancel(ctx)
	j.e.working, j.e.cancel = true, cancel
	a.busy[j.e.name] = true
	a.active++
	a.metrics.active.Inc()
	a.jobs.Go(func() {
		if j.ask {
			a.askWindow(ctx, j.e)
		} else {
			a.attempt(ctx, j.e, j.ways)
		}
		cancel()
		a.mu.Lock()
		defer a.mu.Unlock()
		j.e.working, j.e.cancel, j.e.challenge = false, nil, ""
		if !j.ask {
			j.e.asked = false
			j.e.release()
		}
		delete(a.busy, j.e.name)
		a.active--
		a.metrics.active.Dec()
		a.stir()
	})
}

// lapsed drops a name that was had on demand and that nobody has wanted for long. a.mu is held.
func (a *Issuer) lapsed(e *entry, now time.Time) bool {
	if !e.demand || e.working || e.asked {
		return false
	}
	c := e.cert.Load()
	if c != nil && c.Leaf.NotAfter.After(now) || c == nil && now.Sub(e.plan.Tried) < keepFailed {
		return false
	}
	if c != nil && e.used.Load() {
		return false // it is being renewed, late
	}
	next := withoutEntry(*a.index.Load(), e.name)
	a.index.Store(&next)
	return true
}

// look says which challenges have a port that accepts, and why the others do not.
func (a *Issuer) look(set *plan.ACME) map[string]string {
	if set == nil {
		return nil
	}
	out := map[string]string{}
	for _, c := range set.Challenges {
		switch c {
		case http01:
			if !slices.ContainsFunc(append([]plan.Addr{set.HTTPPort}, set.HTTPOthers...), a.o.Listening) {
				out[c] = closed(set.HTTPPort)
			}
		case tlsALPN01:
			if !a.o.Listening(set.TLSPort) {
				out[c] = closed(set.TLSPort)
			}
		}
	}
	return out
}

func closed(p plan.Addr) string {
	return "port " + p.String() + " does not accept connections at present (\"quaymaster ports\" says why)"
}
