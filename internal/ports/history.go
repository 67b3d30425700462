package ports

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	maxPast   = 64   // events kept of one port
	maxPorts  = 1024 // ports of which events are kept
	lineUsers = 256  // users in one log line; more make several lines
)

// An Event is one change of a port: bound, shared, released, and everything between. Put one on top of the other, the
// events since the start give the table that Status shows: a port has the last State and the users Added and not
// Removed, and is gone after Released.
type Event struct {
	Time    time.Time `json:"time"`
	Port    plan.Addr `json:"port"`    // as wanted
	Address string    `json:"address"` // as bound
	State   State     `json:"state"`
	Added   []string  `json:"added,omitempty"`
	Removed []string  `json:"removed,omitempty"`
	Before  int       `json:"references_before"`
	After   int       `json:"references_after"`
	Reason  string    `json:"reason,omitempty"`

	// Of an eviction alone, which changes nothing about the port. State is "" when no plan wants the port yet.
	Signal  string   `json:"signal,omitempty"`
	Holders []string `json:"holders,omitempty"`
}

// emit tells the log, the history, the metrics and the listener of Options about events; the change lock is held.
func (ps *Ports) emit(events ...Event) {
	for _, e := range events {
		if e.Signal == "" {
			ps.metrics.state(e.Port, e.State)
		}
		for _, part := range e.split() {
			ps.log(part)
			ps.mu.Lock()
			ps.history.add(part)
			ps.mu.Unlock()
			if ps.opt.Events != nil {
				ps.opt.Events(part)
			}
		}
	}
}

// split cuts an event into such that fit a line. A released port has lost all its users, named or not.
func (e Event) split() []Event {
	if e.State == Released || e.Signal != "" {
		e.Removed = e.Removed[:min(len(e.Removed), lineUsers)]
		return []Event{e}
	}
	var out []Event
	for {
		part := e
		part.Added = e.Added[:min(len(e.Added), lineUsers)]
		part.Removed = e.Removed[:min(len(e.Removed), lineUsers-len(part.Added))]
		e.Added, e.Removed = e.Added[len(part.Added):], e.Removed[len(part.Removed):]
		if len(e.Added)+len(e.Removed) == 0 {
			return append(out, part)
		}
		part.After = part.Before + len(part.Added) - len(part.Removed)
		e.Before = part.After
		out = append(out, part)
	}
}

func (ps *Ports) log(e Event) {
	if e.Signal != "" {
		ps.opt.Log.Warn("holder told to end", "port", e.Port.String(), "signal", e.Signal, "holders", e.Holders)
		return
	}
	args := []any{"port", e.Port.String(), "address", e.Address, "state", string(e.State), "before", e.Before, "after", e.After}
	if len(e.Added) > 0 {
		args = append(args, "added", e.Added)
	}
	if len(e.Removed) > 0 {
		args = append(args, "removed", e.Removed)
	}
	level := slog.LevelInfo
	if e.Reason != "" {
		args = append(args, "reason", e.Reason)
		level = slog.LevelWarn
	}
	switch {
	case e.State == Released:
		ps.opt.Log.Log(context.Background(), level, "port released", args...)
	case e.State == Retrying:
		ps.opt.Log.Log(context.Background(), level, "port busy", args...)
	case e.State == Failed:
		ps.opt.Log.Log(context.Background(), level, "port given up", args...)
	case len(e.Added)+len(e.Removed) > 0 && e.Before > 0:
		ps.opt.Log.Log(context.Background(), level, "port shared", args...)
	default:
		ps.opt.Log.Log(context.Background(), level, "port bound", args...)
	}
}

// A history remembers the last events of each port, the least recently changed ports forgotten first.
type history struct {
	past  map[plan.Addr][]Event
	order []plan.Addr // least recently changed first
}

func (h *history) add(e Event) {
	if h.past == nil {
		h.past = make(map[plan.Addr][]Event)
	}
	if i := slices.Index(h.order, e.Port); i >= 0 {
		h.order = slices.Delete(h.order, i, i+1)
	} else if len(h.order) == maxPorts {
		delete(h.past, h.order[0])
		h.order = slices.Delete(h.order, 0, 1)
	}
	h.order = append(h.order, e.Port)
	past := h.past[e.Port]
	if len(past) == maxPast {
		past = slices.Delete(past, 0, 1)
	}
	h.past[e.Port] = append(past, e)
}

// History lists what became of the ports with that number, oldest first.
func (ps *Ports) History(number uint16) []Event {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var out []Event
	for a, past := range ps.history.past {
		if a.Port == number && a.Network != plan.Unix {
			out = append(out, past...)
		}
	}
	slices.SortStableFunc(out, func(a, b Event) int { return a.Time.Compare(b.Time) })
	return out
}
