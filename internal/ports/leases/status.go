package leases

import (
	"context"
	"log/slog"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// maxPast bounds the events that are kept of all leases together.
const maxPast = 1024

// Status is one lease as it is shown.
type Status struct {
	Name    string
	Port    uint16
	State   State
	Since   time.Time
	Error   string    // of Busy: who has the port, and what to do
	NextTry time.Time // of Busy
}

// Status lists every lease by port.
func (ls *Leases) Status() []Status {
	list := ls.list()
	out := make([]Status, 0, len(list))
	for _, l := range list {
		if s := l.Status(); s.State != Released {
			out = append(out, s)
		}
	}
	return out
}

// Status is the lease as it is shown.
func (l *Lease) Status() Status {
	l.ls.mu.Lock()
	defer l.ls.mu.Unlock()
	s := Status{Name: l.name, Port: l.port, State: l.state, Since: l.since}
	if l.err != nil {
		s.Error, s.NextTry = l.err.Error(), l.err.at.Add(retryEvery)
	}
	return s
}

// An Event is one change of a lease.
type Event struct {
	Time   time.Time
	Name   string
	Port   uint16
	State  State
	Reason string
}

// History lists what became of the leases of a port, oldest first. At most 1,024 events of all ports are known.
func (ls *Leases) History(port uint16) []Event {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	var out []Event
	for _, e := range ls.past {
		if e.Port == port {
			out = append(out, e)
		}
	}
	return out
}

// note makes an event of the state that l is in; mu is held. tell lets it out.
func (ls *Leases) note(l *Lease, reason string) {
	e := Event{Time: time.Now(), Name: l.name, Port: l.port, State: l.state, Reason: reason}
	if len(ls.past) >= maxPast {
		ls.past = append(ls.past[:0], ls.past[maxPast/4:]...)
	}
	ls.past = append(ls.past, e)
	ls.untold = append(ls.untold, e)
}

// tell lets out what was noted: a line in the log, which names the port, its app and its references as those of other
// ports do, and an event.
func (ls *Leases) tell() {
	ls.telling.Lock()
	defer ls.telling.Unlock()
	ls.mu.Lock()
	events := ls.untold
	ls.untold = nil
	ls.mu.Unlock()
	for _, e := range events {
		message, state, before, after := "port leased", "leased", 0, 1
		switch e.State {
		case Released:
			message, state, before, after = "port released", "released", 1, 0
		case Busy:
			message, state, before = "port busy", "retrying", 1
		}
		args := []any{"port", plan.Addr{Port: e.Port}.String(), "state", state, "app", e.Name, "before", before, "after", after}
		level := slog.LevelInfo
		if e.Reason != "" {
			args = append(args, "reason", e.Reason)
		}
		if e.State == Busy {
			level = slog.LevelWarn
		}
		ls.opt.Log.Log(context.Background(), level, message, args...)
		if ls.opt.Events != nil {
			ls.opt.Events(e)
		}
	}
}
