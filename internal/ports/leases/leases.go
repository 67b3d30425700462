// Package leases gives apps ports that nobody else has, the lowest free one first.
//
// It promises that a port has one owner at a time; that it is bound from the moment it is chosen until the app is about
// to bind it itself, so that no other process can come in between; that an app gets the port it had before; and that a
// lease which was given survives a kill and a power cut. It never accepts a connection, starts no app and ends no
// process: what becomes of a lease whose port somebody else has taken is the asker's to decide.
package leases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Published lists the ports of this host that container engines publish, and which container has each. What it returns
// beside an error counts. It must end when ctx does, and is asked once for each request.
type Published func(ctx context.Context) (map[uint16]string, error)

// A Store keeps small files durably, as internal/state does.
type Store interface {
	Read(name string) ([]byte, error)
	Write(name string, data []byte) error
	Rename(name, to string) error
}

// Options are what Leases need from others.
type Options struct {
	Store     Store
	Published Published   // nil: no engine is asked
	Events    func(Event) // is told about every change of a lease; must not block, nor call back
	// Runs reports whether an app that an earlier daemon has started may still have its port: it is then not tried. nil: none.
	Runs     func(name string, port uint16) bool
	Log      *slog.Logger
	Registry prometheus.Registerer
}

// Leases are the ports that are promised to apps. Use New; nothing is leased before the first plan is prepared.
type Leases struct {
	opt     Options
	metrics *metrics
	wake    chan struct{} // tells Run that there is something to do

	// change is held by whoever chooses, gives back or recovers ports. It is taken before saving, and saving before mu.
	change  chan struct{}
	telling sync.Mutex // held while events leave, so that they leave in order; taken before mu
	saving  sync.Mutex // held from the look at the leases to the end of the write, so that the last look is the last write

	mu      sync.Mutex // guards what follows, and what Lease says it guards
	byPort  map[uint16]*Lease
	byName  map[string]*Lease // the newest of each name
	ports   plan.PortRange    // of the plan in force
	avoid   map[uint16]string // ports of the plan in force, and of one that is being prepared, and what they are for
	ready   bool              // a plan was prepared, and the file read
	refuse  error             // nothing may be changed at present, and why
	dirty   bool              // the file does not say what is in memory
	skipped map[uint16]string // busy ports that the log has named, and whom it has named
	silent  bool              // the log has said that no engine answers
	past    []Event           // the newest maxPast, oldest first
	untold  []Event           // what tell has yet to say
}

// The errors of a request that has nothing to do with ports.
var (
	ErrStarting = errors.New("ports are not leased before the daemon serves; try again in a moment")
	ErrFrozen   = errors.New("ports are not leased while another process takes over; try again in a moment")
	ErrPending  = errors.New("another change is about to lease a port to that name; try again in a moment")
)

// New returns Leases that hold nothing.
func New(o Options) *Leases {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ls := &Leases{
		opt: o, wake: make(chan struct{}, 1), change: make(chan struct{}, 1),
		byPort: make(map[uint16]*Lease), byName: make(map[string]*Lease), skipped: make(map[uint16]string),
	}
	ls.metrics = newMetrics(ls, o.Registry)
	return ls
}

// A Want is one port that is asked for.
type Want struct {
	Name string // of the app: a DNS label
	New  bool   // another port than the one it has
	// Promise makes a lease without a socket of ours, for a process that somebody else starts: the port is given to no
	// other name, but nothing keeps a stranger from it. It counts where the name has no lease yet.
	Promise bool
}

// A Claim is a set of leases that were asked for together. It ends with Commit or Abort.
type Claim struct {
	ls     *Leases
	leases []*Lease // as asked for
	made   []*Lease // those that did not exist before
	done   bool     // ls.mu guards it
}

// Leases are the leases in the order they were asked for.
func (c *Claim) Leases() []*Lease { return slices.Clone(c.leases) }

// Ask leases a port for each want, all or none: the port that the name has, else the lowest free one. The leases are
// written to the disk and their ports held when it returns; they are provisional until Commit.
//
// The error is an *ExhaustedError when no port is left, a *BusyError when the port that a name has is held by somebody
// else (ask for a new one, or again later), a *NameError, a *StoreError, or one of the variables.
func (ls *Leases) Ask(ctx context.Context, wants ...Want) (*Claim, error) {
	c, err := ls.ask(ctx, wants, false)
	ls.metrics.asked(c, err, len(wants))
	return c, err
}

// Take leases one port and makes the lease good at once. made says whether the name had another port before, or none.
func (ls *Leases) Take(ctx context.Context, w Want) (l *Lease, made bool, err error) {
	c, err := ls.ask(ctx, []Want{w}, true)
	ls.metrics.asked(c, err, 1)
	if err != nil {
		return nil, false, err
	}
	return c.leases[0], len(c.made) > 0, nil
}

// ask leases; with commit nobody sees the leases as provisional.
func (ls *Leases) ask(ctx context.Context, wants []Want, commit bool) (*Claim, error) {
	for i, w := range wants {
		if err := checkName(w.Name); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(wants[:i], func(o Want) bool { return o.Name == w.Name }) {
			return nil, fmt.Errorf("a port for %s is asked for twice", w.Name)
		}
	}
	if err := ls.lock(ctx); err != nil {
		return nil, err
	}
	defer ls.unlock()
	c := &Claim{ls: ls}
	if err := c.fill(ctx, wants); err != nil {
		c.undo()
		return nil, err
	}
	if len(c.made) > 0 {
		if err := ls.save(); err != nil {
			c.undo()
			return nil, &StoreError{What: "the lease of " + wants[0].Name, Err: err}
		}
	}
	if commit {
		c.Commit()
	}
	return c, nil
}

// lock takes the right to choose and give back ports, unless they may not be changed at present.
func (ls *Leases) lock(ctx context.Context) error {
	select {
	case ls.change <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	err := ls.refuse
	if err == nil && !ls.ready {
		err = ErrStarting
	}
	if err != nil {
		ls.unlock()
	}
	return err
}

func (ls *Leases) unlock() { <-ls.change }

// fill finds or makes the lease of each want. What it made is in c.made even if it fails.
func (c *Claim) fill(ctx context.Context, wants []Want) error {
	ls := c.ls
	var s *search
	for _, w := range wants {
		ls.mu.Lock()
		old := ls.byName[w.Name]
		pending := old != nil && old.state == Provisional
		ls.mu.Unlock()
		switch {
		case pending:
			return ErrPending
		case old != nil && !w.New:
			if err := old.again(); err != nil {
				return err
			}
			c.leases = append(c.leases, old)
			continue
		case s == nil:
			s = ls.search(ctx)
		}
		p, port, err := s.next(ctx)
		if err != nil {
			return err
		}
		l := &Lease{ls: ls, name: w.Name, port: port, promised: w.Promise, state: Provisional, since: time.Now(), probe: p, before: old}
		ls.mu.Lock()
		if old != nil {
			l.promised, old.replaced = old.promised, true
		}
		ls.byPort[port], ls.byName[w.Name] = l, l
		ls.mu.Unlock()
		c.leases, c.made = append(c.leases, l), append(c.made, l)
	}
	return nil
}

// Commit makes the leases good. A name that got a new port loses the one before, unless a process still uses that: then
// it goes with Lease.Release.
func (c *Claim) Commit() {
	ls := c.ls
	ls.mu.Lock()
	var over []io.Closer
	if !c.done {
		c.done = true
		for _, l := range c.made {
			l.to(Held, nil)
			if l.promised {
				over = append(over, l.letGo(Promised))
			}
			ls.note(l, "")
			if old := l.before; old != nil && old.state != InUse {
				delete(ls.byPort, old.port)
				over = append(over, old.letGo(Released))
				ls.note(old, fmt.Sprintf("%s has port %d now", l.name, l.port))
			}
			l.before = nil
		}
	}
	ls.mu.Unlock()
	closeAll(over)
	ls.tell()
}

// Abort undoes Ask.
func (c *Claim) Abort() {
	c.undo()
	if len(c.made) > 0 {
		c.ls.flush()
	}
}

// undo drops what the claim has made, in memory.
func (c *Claim) undo() {
	ls := c.ls
	ls.mu.Lock()
	var over []io.Closer
	if !c.done {
		c.done = true
		for _, l := range c.made {
			delete(ls.byPort, l.port)
			delete(ls.byName, l.name)
			if old := l.before; old != nil {
				old.replaced = false
				ls.byName[l.name] = old
			}
			over = append(over, l.letGo(Released))
			ls.dirty = true
		}
	}
	ls.mu.Unlock()
	closeAll(over)
}

// Release gives the port of a name back. It is no error where the name has none; then it returns false.
func (ls *Leases) Release(ctx context.Context, name string) (bool, error) {
	if err := checkName(name); err != nil {
		return false, err
	}
	if err := ls.lock(ctx); err != nil {
		return false, err
	}
	defer ls.unlock()
	ls.mu.Lock()
	l := ls.byName[name]
	ls.mu.Unlock()
	if l == nil {
		return false, nil
	}
	return true, ls.drop(l)
}

// drop ends a lease, on the disk first. The right to change is held.
func (ls *Leases) drop(l *Lease) error {
	ls.mu.Lock()
	switch {
	case l.state == Released:
		ls.mu.Unlock()
		return nil
	case l.state == Provisional:
		ls.mu.Unlock()
		return ErrPending
	}
	saved := l.replaced // by a newer lease, which the file has instead
	l.leaving = true
	ls.mu.Unlock()
	if !saved {
		if err := ls.save(); err != nil {
			ls.mu.Lock()
			l.leaving = false
			ls.dirty = true
			ls.mu.Unlock()
			return &StoreError{What: "the release of " + l.name, Err: err}
		}
	}
	ls.mu.Lock()
	if l.state == Released { // by the Commit of the lease that replaces it
		ls.mu.Unlock()
		return nil
	}
	delete(ls.byPort, l.port)
	if ls.byName[l.name] == l {
		delete(ls.byName, l.name)
		ls.restore(l.name)
	}
	for _, o := range ls.byPort { // provisional, and made to replace it
		if o.before == l {
			o.before = nil
		}
	}
	over := l.letGo(Released)
	ls.note(l, "")
	ls.mu.Unlock()
	closeAll([]io.Closer{over})
	ls.tell()
	return nil
}

// restore gives a name its older lease again, if a process still uses that one; mu is held.
func (ls *Leases) restore(name string) {
	for _, o := range ls.byPort {
		if o.name == name && o.replaced && !o.leaving && o.state == InUse {
			o.replaced = false
			ls.byName[name] = o
			ls.dirty = true
			ls.poke()
			return
		}
	}
}

// Suspend refuses every change from now on, and returns when those under way have ended: the file is then another
// process's. resume ends that.
func (ls *Leases) Suspend(ctx context.Context) (resume func(), err error) {
	select {
	case ls.change <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer ls.unlock()
	ls.saving.Lock()
	defer ls.saving.Unlock()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	was := ls.refuse
	ls.refuse = ErrFrozen
	return func() {
		ls.mu.Lock()
		ls.refuse = was
		ls.poke()
		ls.mu.Unlock()
		ls.rehold(context.Background(), func(l *Lease) bool { return l.state == Held && l.probe == nil })
	}, nil
}

// Leave lets go of every port that is held, after Suspend, so that the process which takes over can hold them. resume holds
// them again.
func (ls *Leases) Leave() {
	ls.mu.Lock()
	var over []io.Closer
	for _, l := range ls.byPort {
		if l.state == Held && l.probe != nil {
			over = append(over, l.probe)
			l.probe = nil
		}
	}
	ls.mu.Unlock()
	closeAll(over)
}

// Regain holds the ports of the process before, which has let go of them, but for those that an app runs on.
func (ls *Leases) Regain(ctx context.Context, runs func(name string, port uint16) bool) {
	ls.rehold(ctx, func(l *Lease) bool { return l.given && l.state == InUse && !runs(l.name, l.port) })
}

// rehold binds the ports of leases again.
func (ls *Leases) rehold(ctx context.Context, which func(*Lease) bool) {
	if ls.lock(ctx) != nil {
		return
	}
	defer ls.unlock()
	for _, l := range ls.list() {
		ls.mu.Lock()
		wanted := which(l)
		ls.mu.Unlock()
		if wanted {
			_ = l.take() // one that is busy says so where it is listed
		}
	}
}

// poke makes Run look whether there is something to do.
func (ls *Leases) poke() {
	select {
	case ls.wake <- struct{}{}:
	default:
	}
}

func closeAll(list []io.Closer) {
	for _, c := range list {
		if c != nil {
			_ = c.Close() // a socket that nobody has connected to
		}
	}
}
