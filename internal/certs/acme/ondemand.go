package acme

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"strings"
	"time"
)

const (
	admitTime = 10 * time.Second
	maxDemand = 50_000 // names had on demand that are kept at hand
)

// A flight is one question for a name; all who ask meanwhile wait for it.
type flight struct {
	done chan struct{}
	err  error
	wait <-chan struct{} // closed at the end of the order; nil = there is none
}

// OnDemand returns the certificate of a name that a pattern of the plan covers, after ordering it when it may be had.
// When ctx ends the order goes on. A name that may not is ErrDenied.
func (a *Issuer) OnDemand(ctx context.Context, name string) (*tls.Certificate, error) {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if c := a.Get(name); c != nil {
		return c, nil
	}
	if !hostName(name) {
		return nil, fmt.Errorf("%w: %.80q is no name of a host", ErrDenied, name)
	}
	select {
	case <-a.up:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f, err := a.board(name)
	if err != nil {
		return nil, err
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if f.err != nil {
		return nil, f.err
	}
	if f.wait != nil {
		select {
		case <-f.wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if c := a.Get(name); c != nil {
		return c, nil
	}
	return nil, a.whyNot(name)
}

// board joins the flight of a name, or begins one.
func (a *Issuer) board(name string) (*flight, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.flights[name]; f != nil {
		return f, nil
	}
	switch {
	case a.running == nil || a.running.Err() != nil:
		return nil, fmt.Errorf("%w: orders are not made at present", ErrDenied)
	case !a.covered(name):
		return nil, fmt.Errorf("%w: no route has certificates on demand for %s", ErrDenied, name)
	}
	f := &flight{done: make(chan struct{})}
	a.flights[name] = f
	ctx := a.running
	a.jobs.Go(func() {
		f.wait, f.err = a.admit(ctx, name)
		a.mu.Lock()
		delete(a.flights, name)
		a.mu.Unlock()
		close(f.done)
	})
	return f, nil
}

// admit decides on a name, and has an order begin. wait is closed at its end; it is nil when there is a certificate
// already.
func (a *Issuer) admit(ctx context.Context, name string) (wait <-chan struct{}, err error) {
	if err := a.gate.Allowed(name); err != nil {
		return nil, err
	}
	a.mu.Lock()
	e := (*a.index.Load())[name]
	a.mu.Unlock()
	if e == nil {
		if e = a.read(name); e.cert.Load() != nil {
			_, err := a.add(e, false) // it was had before
			return nil, err
		}
	}
	if err := a.mayTry(e); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, admitTime)
	defer cancel()
	if err := a.gate.Admit(ctx, name); err != nil {
		return nil, err
	}
	if a.underWay(e) == nil {
		if err := a.gate.Spend(name); err != nil {
			return nil, err
		}
	}
	return a.add(e, true)
}

// mayTry refuses while the schedule does.
func (a *Issuer) mayTry(e *entry) error {
	now := a.o.Clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if next := e.plan.next(now); next.After(now) && !e.working {
		return fmt.Errorf("%w for %s before %s: %s", ErrDenied, e.name, next.Format(time.RFC3339), e.plan.Error)
	}
	return nil
}

// underWay is closed at the end of the order that there is for e, or nil.
func (a *Issuer) underWay(e *entry) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return e.done
}

// add puts a name on demand among those at hand, and with order has an order begin: done is closed at its end.
func (a *Issuer) add(e *entry, order bool) (done <-chan struct{}, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := *a.index.Load()
	switch {
	case now[e.name] == e:
	case !a.covered(e.name) || now[e.name] != nil:
		return nil, fmt.Errorf("%w: the configuration changed", ErrDenied)
	case len(now) >= maxDemand:
		return nil, fmt.Errorf("%w: %d names are at hand, which is the most", ErrDenied, len(now))
	default:
		e.demand = true
		e.used.Store(true)
		next := maps.Clone(now)
		next[e.name] = e
		a.index.Store(&next)
	}
	a.stir()
	if !order {
		return nil, nil
	}
	if e.asked = true; e.done == nil {
		e.done = make(chan struct{})
	}
	return e.done, nil
}

// whyNot is why an order for a name gave no certificate.
func (a *Issuer) whyNot(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := (*a.index.Load())[name]; e != nil && e.plan.Error != "" {
		return fmt.Errorf("%s: %s", name, e.plan.Error)
	}
	return fmt.Errorf("%s: no certificate came", name)
}

func withoutEntry(m map[string]*entry, name string) map[string]*entry {
	next := maps.Clone(m)
	delete(next, name)
	return next
}
