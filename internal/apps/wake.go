package apps

import (
	"context"
	"fmt"
	"time"
)

// A WakeError says why an app does not serve. Late: it was waited for.
type WakeError struct {
	App    string
	Late   bool
	Reason string
}

func (e *WakeError) Error() string { return fmt.Sprintf("app %s: %s", e.App, e.Reason) }

// Timeout reports whether it was waited for.
func (e *WakeError) Timeout() bool { return e.Late }

// Wake returns when the app is ready, which it is made to be if it sleeps, or why it does not serve. Many may call it at
// once: the app is started once. It waits no longer than ready.timeout; a ctx that ends stops the waiting alone.
func (s *Apps) Wake(ctx context.Context, name string) error {
	a := s.app(name)
	if a == nil {
		return &WakeError{App: name, Reason: "there is no such app"}
	}
	v := a.seen()
	if v.want == nil {
		return &WakeError{App: name, Reason: "it is not part of the configuration"}
	}
	ready := make(chan error, 1)
	a.post(func() { a.wake(ready) })
	timer := time.NewTimer(v.want.Ready.Timeout)
	defer timer.Stop()
	select {
	case err := <-ready:
		return err
	case <-timer.C:
		v = a.seen()
		return &WakeError{App: name, Late: true, Reason: fmt.Sprintf("not ready after %s: %s, %s", span(v.want.Ready.Timeout), v.state, v.reason)}
	case <-a.over:
		return &WakeError{App: name, Reason: "it is gone"}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// maxWaiters bounds those who are remembered; more are told at once. A waiter who has left is forgotten with the next answer.
const maxWaiters = 100_000

// wake is asked for by a request.
func (a *app) wake(ready chan error) {
	if len(a.waiters) >= maxWaiters {
		ready <- &WakeError{App: a.name, Reason: "too many wait for it"}
		return
	}
	if !a.on && !a.held && !a.closing && a.want != nil && (a.want.Start == "on_request" || a.want.IdleStop > 0) && a.stuck == "" && a.why == "" {
		a.on = true
	}
	a.waiters = append(a.waiters, ready)
}

// answer tells all who wait for the app.
func (a *app) answer(err error) {
	for _, w := range a.waiters {
		w <- err
	}
	a.waiters = nil
}

// asked is a command that waits until what it asked for has come about, or something else has.
type asked struct {
	stop bool
	done chan struct{}
}

// settle answers those for whom the state is an answer.
func (a *app) settle(state State, reason string) {
	switch state {
	case Ready:
		a.answer(nil)
	case Unhealthy:
		if a.want == nil || a.want.Health == nil || a.want.Health.OnUnhealthy == "nothing" {
			a.answer(nil)
		} else {
			a.answer(&WakeError{App: a.name, Reason: "unhealthy: " + reason})
		}
	case Stopped, Failed, CrashLooping, BackingOff, Unknown:
		a.answer(&WakeError{App: a.name, Late: a.late, Reason: string(state) + ": " + reason})
	case Sleeping:
		if a.living() == 0 {
			a.answer(&WakeError{App: a.name, Reason: string(state)})
		}
	case Draining, Stopping:
		if !a.on {
			a.answer(&WakeError{App: a.name, Reason: string(state)})
		}
	}
	left := a.asked[:0]
	for _, q := range a.asked {
		over := a.living() == 0 || a.on // somebody has started it again: that is how far it has come about
		if !q.stop {
			over = state == Ready || state == Unhealthy || state == BackingOff || state == CrashLooping || state == Failed || state == Unknown || !a.on
		}
		if a.redo {
			over = false
		}
		if over {
			close(q.done)
		} else {
			left = append(left, q)
		}
	}
	a.asked = left
}

// do gives a command to the owner and waits until it has come about, or ctx ends.
func (s *Apps) do(ctx context.Context, name string, stop bool, command func(*app)) (Status, error) {
	a := s.app(name)
	if a == nil || a.seen().want == nil {
		return Status{}, &UnknownError{name}
	}
	q := asked{stop: stop, done: make(chan struct{})}
	a.post(func() {
		command(a)
		a.asked = append(a.asked, q)
	})
	select {
	case <-q.done:
	case <-a.over:
		return Status{}, &UnknownError{name}
	case <-ctx.Done():
		return a.status(), ctx.Err()
	}
	return a.status(), nil
}

// Start starts an app and returns when it is ready or known not to be. It clears a crash loop.
func (s *Apps) Start(ctx context.Context, name string) (Status, error) {
	return s.do(ctx, name, false, (*app).start)
}

// Stop ends an app and returns when all of it is gone. It stays stopped until somebody starts it, over a restart of
// Quaymaster too.
func (s *Apps) Stop(ctx context.Context, name string) (Status, error) {
	return s.do(ctx, name, true, (*app).stop)
}

// Restart ends an app and starts it again, with another port if anew says so. Requests wait meanwhile.
func (s *Apps) Restart(ctx context.Context, name string, anew bool) (Status, error) {
	return s.do(ctx, name, false, func(a *app) { a.restart(anew) })
}
