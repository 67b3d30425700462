package leases

import (
	"context"
	"fmt"
	"io"
	"time"
)

// State is where a lease is in its life.
type State string

// The states. A Provisional or Held port is bound by us; an InUse one is the app's; a Promised one is bound by whoever
// was told the number; a Busy one is held by somebody else, and is tried again from time to time.
const (
	Provisional State = "provisional"
	Held        State = "held"
	InUse       State = "in_use"
	Promised    State = "promised"
	Busy        State = "busy"
	Released    State = "released"
)

// States are all in which a lease can be listed.
var States = []State{Provisional, Held, InUse, Promised, Busy}

// A Lease is one port of one app.
type Lease struct {
	ls       *Leases
	name     string
	port     uint16
	promised bool // no socket of ours: its process is started by others

	// ls.mu guards what follows.
	state    State
	since    time.Time
	probe    io.Closer // of Provisional and Held
	before   *Lease    // while Provisional: the lease that this one replaces
	replaced bool      // the name has a newer lease
	leaving  bool      // being released: on the disk it is gone already
	given    bool      // taken over from an earlier daemon, and not asked for since
	err      *BusyError
}

// Name is the app's.
func (l *Lease) Name() string { return l.name }

// Port is the leased port.
func (l *Lease) Port() uint16 { return l.port }

// State is the state of this moment.
func (l *Lease) State() State {
	l.ls.mu.Lock()
	defer l.ls.mu.Unlock()
	return l.state
}

// to enters a state that keeps the probe; mu is held.
func (l *Lease) to(s State, err *BusyError) {
	if l.state != s {
		l.since = time.Now()
	}
	l.state, l.err = s, err
}

// letGo enters a state without a probe, and returns the probe for the caller to close; mu is held.
func (l *Lease) letGo(s State) io.Closer {
	p := l.probe
	l.probe = nil
	l.to(s, nil)
	return p
}

// Handoff lets go of the socket, so that the app can bind the port: it is called immediately before the app is started.
// A lease that is not held is an error; one that was handed off already is not.
func (l *Lease) Handoff() error {
	ls := l.ls
	ls.mu.Lock()
	defer ls.mu.Unlock()
	switch l.state {
	case InUse, Promised:
		return nil
	case Held:
		closeAll([]io.Closer{l.letGo(InUse)})
		return nil
	}
	return fmt.Errorf("port %d is %s for %s, not held", l.port, l.state, l.name)
}

// Reclaim holds the port again after the app has ended. A *BusyError says that somebody else has it by now; the lease
// stays, and Run tries again.
func (l *Lease) Reclaim(ctx context.Context) error {
	if err := l.ls.lock(ctx); err != nil {
		return err
	}
	defer l.ls.unlock()
	if s := l.State(); s != InUse && s != Busy {
		return nil
	}
	return l.take()
}

// Release gives the port back. The app must have ended.
func (l *Lease) Release(ctx context.Context) error {
	if err := l.ls.lock(ctx); err != nil {
		return err
	}
	defer l.ls.unlock()
	return l.ls.drop(l)
}

// again is asked when the name asks anew: a busy port may have become free.
func (l *Lease) again() error {
	l.ls.mu.Lock()
	l.given = false
	l.ls.mu.Unlock()
	if l.State() != Busy {
		return nil
	}
	return l.take()
}

// take binds the port for a lease that was there before. The right to change is held.
func (l *Lease) take() error {
	ls := l.ls
	p, err := probe(l.port)
	var busy *BusyError
	if err != nil {
		w := whoHas(map[uint16]error{l.port: err})[l.port]
		busy = &BusyError{Name: l.name, Port: l.port, Who: w.text, key: w.key, at: time.Now()}
	}
	ls.mu.Lock()
	if l.state == Released {
		ls.mu.Unlock()
		closeAll([]io.Closer{p})
		return nil
	}
	was, told := l.state, l.err
	if busy == nil {
		l.probe = p
		l.to(Held, nil)
		if was == Busy {
			ls.note(l, "")
		}
	} else {
		l.to(Busy, busy)
		if told == nil || told.key != busy.key {
			ls.note(l, busy.Error())
		}
		ls.poke()
	}
	ls.mu.Unlock()
	ls.tell()
	if busy != nil {
		return busy
	}
	return nil
}
