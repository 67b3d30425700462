package apps

import (
	"context"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Status is one app as it is shown.
type Status struct {
	Name      string
	State     State
	Reason    string
	Since     time.Time // of State
	Source    plan.Source
	OnRequest bool // requests start it
	PID       int
	Container string
	Port      uint16
	Path      string // of its unix socket
	URL       string
	Began     time.Time // the instance
	Restarts  int
	Last      *Exit
	Memory    int64
	CPU       time.Duration
}

// seen is what others see of the app.
func (a *app) seen() view {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.view
	v.want = a.wish.Load()
	return v
}

// status is the app as it is shown.
func (a *app) status() Status {
	v := a.seen()
	a.mu.Lock()
	alive := a.alive
	a.mu.Unlock()
	s := Status{
		Name: a.name, State: v.state, Reason: v.reason, Since: v.since, PID: v.pid, Container: v.cid, Port: v.at.Port, Path: v.at.Path,
		URL: a.s.url(a.name), Began: v.began, Restarts: v.restarts, Last: v.last,
	}
	if v.want != nil {
		s.Source = v.want.Source
		s.OnRequest = v.want.Start == "on_request" || v.want.IdleStop > 0
	}
	if alive != nil {
		if st, err := alive.Stats(); err == nil { // one that has just ended has none
			s.Memory, s.CPU = st.Memory, st.CPU
		}
	}
	return s
}

// Status lists the apps by name.
func (s *Apps) Status() []Status {
	list := s.all()
	out := make([]Status, 0, len(list))
	for _, a := range list {
		if v := a.seen(); v.want != nil || v.live > 0 {
			out = append(out, a.status())
		}
	}
	return out
}

// One is the status of one app.
func (s *Apps) One(name string) (Status, error) {
	a := s.app(name)
	if a == nil || a.seen().want == nil && a.seen().live == 0 {
		return Status{}, &UnknownError{name}
	}
	return a.status(), nil
}

// Output is what an app has said.
type Output struct{ a *app }

// Output finds the output of an app.
func (s *Apps) Output(name string) (*Output, error) {
	a := s.app(name)
	if a == nil {
		return nil, &UnknownError{name}
	}
	return &Output{a}, nil
}

// Last are the newest n lines, oldest first.
func (o *Output) Last(n int) []Line { return o.a.out.last(n) }

// End is the number that the next line will have.
func (o *Output) End() uint64 { return o.a.out.end() }

// Next waits for the line of that number, or the oldest that is kept after it.
func (o *Output) Next(ctx context.Context, number uint64) (Line, error) {
	return o.a.out.next(ctx, number)
}

// leaned reports whether an app runs that depends on that one.
func (s *Apps) leaned(name string) bool {
	for _, a := range s.all() {
		v := a.seen()
		if v.want == nil || v.live == 0 {
			continue
		}
		for _, d := range v.want.DependsOn {
			if d == name {
				return true
			}
		}
	}
	return false
}

// wakeRelated lets those look again who depend on an app, and those on whom it depends.
func (s *Apps) wakeRelated(a *app) {
	v := a.seen()
	for _, o := range s.all() {
		w := o.seen().want
		if o == a || w == nil {
			continue
		}
		if contains(w.DependsOn, a.name) || v.want != nil && contains(v.want.DependsOn, o.name) {
			o.post(func() {})
		}
	}
}

func contains(list []string, name string) bool {
	for _, s := range list {
		if s == name {
			return true
		}
	}
	return false
}
