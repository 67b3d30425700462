package apps

import (
	"context"
	"errors"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// step is one plan on its way in.
type step struct {
	s    *Apps
	apps []*plan.App
	urls map[string]*address
}

// Prepare looks for what would keep an app from being started that is new or another one: each is named, and the plan is
// refused. The first plan is followed as far as it can be; an app that cannot be started says so.
func (s *Apps) Prepare(ctx context.Context, p *plan.Plan) (plan.Step, error) {
	s.recover()
	s.mu.Lock()
	first := s.first
	s.mu.Unlock()
	if !first {
		var errs []error
		ctx, cancel := context.WithTimeout(ctx, preflightTime)
		defer cancel()
		for _, want := range p.Apps {
			if err := s.preflight(ctx, want); err != nil {
				errs = append(errs, err)
			}
		}
		if len(errs) > 0 {
			return nil, errors.Join(errs...)
		}
	}
	return &step{s: s, apps: p.Apps, urls: urls(p)}, nil
}

// preflightTime is what all checks of a plan may take that ask others.
const preflightTime = 2 * time.Second

// preflight checks an app of a plan unless it is one that is there already.
func (s *Apps) preflight(ctx context.Context, want *plan.App) error {
	if a := s.app(want.Name); a != nil && a.seen().want == want {
		return nil
	}
	r := s.opt.Runner(want)
	if r == nil {
		return &PreflightError{want.Name, []error{errors.New("nothing on this machine runs apps of its kind")}}
	}
	if errs := r.Check(ctx, want); len(errs) > 0 {
		return &PreflightError{want.Name, errs}
	}
	return nil
}

// Commit makes the apps of the plan the wish of their owners.
func (t *step) Commit() {
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first, s.urls = false, t.urls
	if s.closed {
		return
	}
	wanted := make(map[string]bool, len(t.apps))
	for _, want := range t.apps {
		wanted[want.Name] = true
		a := s.apps[want.Name]
		if a == nil {
			a = s.newApp(want.Name)
		}
		a.wish.Store(want)
		a.post(func() { a.begins = true; a.follow(want) })
	}
	for name, a := range s.apps {
		if !wanted[name] {
			a.wish.Store(nil)
			a.post(func() { a.begins = true; a.follow(nil) })
		}
	}
}

// Retire has nothing to do: what is out of the plan ends in its own time.
func (t *step) Retire() {}

// Abort has nothing to undo.
func (t *step) Abort() {}

// url is where an app is reached through us, or "".
func (s *Apps) url(name string) string {
	s.mu.Lock()
	url := s.urls[name]
	s.mu.Unlock()
	return url.text(s.opt.Served)
}
