// Package evict ends the processes that hold a port.
//
// It promises that only a process which still listens there is signalled, told by its start time and by a handle of the
// kernel's from any later one of its pid; that every holder was judged before the first is signalled; that TERM comes
// first, and KILL after a grace; and that a port is called free when a bind has proven it. It never ends process 1, this
// process or one that it descends from, a client of the port, or the helper of a container.
package evict

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// Grace is how long a process has between TERM and KILL.
const Grace = 10 * time.Second

const (
	dying  = 5 * time.Second       // after KILL; only a process stuck in the kernel takes longer
	glance = 20 * time.Millisecond // between two looks at processes that are about to end
)

// Phase is how far an eviction has come.
type Phase string

// The phases.
const (
	Asked  Phase = "asked"  // TERM was sent
	Killed Phase = "killed" // KILL was sent, to those that were left
	Gone   Phase = "gone"   // all have ended, or let go of the port before KILL was due
	Stuck  Phase = "stuck"  // at least one survived KILL: it hangs in the kernel
)

// Look lists who holds the port now.
type Look func() ([]holder.Holder, error)

// An Eviction is under way. It belongs to one goroutine, which closes it.
type Eviction struct {
	look  Look
	procs []*proc
	phase Phase
	kill  time.Time // when KILL is due, and after it, when hope is given up
}

// A proc is one process that was signalled.
type proc struct {
	holder.Holder
	handle *os.Process
	ended  bool // or it let go of the port, and is none of our business any more
	killed bool
}

// Begin judges holders, and if rules allow all of them to be ended asks them to (TERM); else it returns a *Refusal for
// each that may not, joined, and none was signalled. A holder that has ended, has become another process or no longer
// listens is left alone. Those asked before, at since, are killed when grace has passed from then; a zero since is now.
func Begin(rules Rules, holders []holder.Holder, look Look, since time.Time, grace time.Duration) (*Eviction, error) {
	if err := rules.All(holders); err != nil {
		return nil, err
	}
	if since.IsZero() {
		since = time.Now()
	}
	e := &Eviction{look: look, phase: Asked, kill: since.Add(grace)}
	for _, h := range holders {
		if slices.ContainsFunc(e.procs, func(p *proc) bool { return p.Pid == h.Pid }) {
			continue
		}
		p, err := open(h)
		if err != nil {
			e.Close()
			return nil, err
		}
		if p != nil {
			e.procs = append(e.procs, p)
		}
	}
	// The handles are held from here on: whoever listens now is who will be signalled.
	if err := e.spare(); err != nil {
		e.Close()
		return nil, err
	}
	e.procs = slices.DeleteFunc(e.procs, func(p *proc) bool {
		if p.ended {
			p.close()
		}
		return p.ended
	})
	for _, sig := range []syscall.Signal{0, syscall.SIGTERM} { // whoever lacks the right for one of them ends none
		if err := e.signal(sig); err != nil {
			e.Close()
			return nil, err
		}
	}
	return e, nil
}

// open gets hold of a process; nil when it has ended, or when another one has its pid.
func open(h holder.Holder) (*proc, error) {
	if h.Started.IsZero() {
		return nil, &Refusal{h, "this system does not tell when it started, so it cannot be told from a later process of its pid", h.Stop()}
	}
	handle, err := os.FindProcess(h.Pid)
	if err != nil {
		return nil, nil //nolint:nilerr // FindProcess knows one error: there is no such process
	}
	p := &proc{Holder: h, handle: handle}
	if !p.same() {
		p.close()
		return nil, nil
	}
	return p, nil
}

// same reports whether the pid still means the process that was found.
func (p *proc) same() bool {
	is, ok := holder.Process(p.Pid)
	return ok && is.Started.Equal(p.Started)
}

func (p *proc) close() { _ = p.handle.Release() }

// spare counts those out that do not listen any more: one that lets go at TERM and still serves its clients is no holder.
func (e *Eviction) spare() error {
	now, err := e.look()
	if err != nil {
		return err
	}
	for _, p := range e.procs {
		listens := slices.ContainsFunc(now, func(h holder.Holder) bool { return h.Pid == p.Pid && h.Started.Equal(p.Started) })
		p.ended = p.ended || !listens
	}
	return nil
}

// signal sends sig to all that have not ended.
func (e *Eviction) signal(sig syscall.Signal) error {
	var errs []error
	for _, p := range e.procs {
		if p.ended || p.gone() {
			p.ended = true
			continue
		}
		err := p.handle.Signal(sig)
		switch {
		case errors.Is(err, os.ErrProcessDone):
			p.ended = true
		case err != nil:
			errs = append(errs, fmt.Errorf("cannot end %s: %w; run as its user or as root", p.Brief(), err))
		default:
			p.killed = sig == syscall.SIGKILL
		}
	}
	return errors.Join(errs...)
}

// Step looks who is left, sends KILL when it is due, and says how far things are. It does not wait.
func (e *Eviction) Step(now time.Time) Phase {
	left := false
	for _, p := range e.procs {
		p.ended = p.ended || p.gone()
		left = left || !p.ended
	}
	switch {
	case !left:
		e.phase = Gone
	case now.Before(e.kill):
	case e.phase == Asked:
		e.killNow(now)
	case e.phase == Killed:
		e.phase = Stuck
	}
	return e.phase
}

// killNow sends KILL to those that still hold the port.
func (e *Eviction) killNow(now time.Time) {
	if e.spare() != nil {
		e.phase = Stuck // blind, we kill nobody
		return
	}
	if len(e.Left()) == 0 {
		e.phase = Gone
		return
	}
	e.phase, e.kill = Killed, now.Add(dying)
	if e.signal(syscall.SIGKILL) != nil { // the right that TERM needed is gone: it changed its user
		e.phase = Stuck
	}
}

// Wait steps until all are gone, one is stuck, the port is free, or ctx ends; tell hears of KILL, when it is sent.
func (e *Eviction) Wait(ctx context.Context, free func() bool, tell func()) Phase {
	t := time.NewTicker(glance)
	defer t.Stop()
	for told := false; ; {
		phase := e.Step(time.Now())
		if phase == Gone || phase == Stuck {
			return phase
		}
		if free() {
			return Gone
		}
		if phase == Killed && !told {
			told = true
			tell()
		}
		select {
		case <-ctx.Done():
			return phase
		case <-t.C:
		}
	}
}

// Asked are the processes that were signalled.
func (e *Eviction) Asked() []holder.Holder {
	return e.list(func(*proc) bool { return true })
}

// Killed are those that TERM did not end.
func (e *Eviction) Killed() []holder.Holder {
	return e.list(func(p *proc) bool { return p.killed })
}

// Left are those that have not ended nor let go.
func (e *Eviction) Left() []holder.Holder {
	return e.list(func(p *proc) bool { return !p.ended })
}

func (e *Eviction) list(which func(*proc) bool) []holder.Holder {
	var out []holder.Holder
	for _, p := range e.procs {
		if which(p) {
			out = append(out, p.Holder)
		}
	}
	return out
}

// Close lets go of the processes. What was sent stays sent, and nothing more is.
func (e *Eviction) Close() {
	for _, p := range e.procs {
		p.close()
	}
}

// Probe binds a and listens on it for an instant. nil means that the port is free; TIME_WAIT does not stand in the way.
func Probe(a plan.Addr) error {
	s, err := listen.Bind(a, false)
	if err != nil {
		return err
	}
	<-s.Stop(listen.Drop)
	return nil
}
