package apps

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// State is what an app does.
type State string

// The states.
const (
	Stopped      State = "stopped"
	Starting     State = "starting"
	Ready        State = "ready"
	Unhealthy    State = "unhealthy"
	BackingOff   State = "backing-off"
	CrashLooping State = "crash-looping"
	Draining     State = "draining"
	Stopping     State = "stopping"
	Sleeping     State = "sleeping"
	Failed       State = "failed"
	Unknown      State = "unknown"
)

// States are all of them.
var States = []State{Stopped, Starting, Ready, Unhealthy, BackingOff, CrashLooping, Draining, Stopping, Sleeping, Failed, Unknown}

// app is one app. Its own goroutine owns everything but what mu and the mailbox guard: what happens to it comes in as a
// call of one of the methods of machine.go, one after the other.
type app struct {
	s    *Apps
	name string
	out  *output
	box  mailbox
	over chan struct{} // closed when the owner has ended

	// Facts. The owner's.
	want      *plan.App // nil: out of the plan
	on        bool      // it is to run
	held      bool      // stopped by hand
	redo      bool      // to be stopped and started again
	anew      bool      // on another port
	closing   bool      // the daemon is ending
	refused   string    // key of an entry that did not come up beside the one that serves
	freeing   bool      // out of the plan, and its port is being given back
	freed     bool
	working   int       // changes of leases under way
	cur       *instance // on its way, or serving
	next      *instance // takes the place of cur when it is ready
	old       []*instance
	lease     Lease // the newest
	sock      *socket
	begins    bool         // the first plan was committed
	adopt     []instRecord // instances of an earlier daemon that are yet to be found
	recalling bool         // they are being looked for
	frozen    func()       // called when nothing is being launched any more
	found     []instRecord // adopt, as it was read; never changed

	// Trouble. The owner's.
	exits    []time.Time // that nobody had asked for, within Restart.Within
	delay    time.Duration
	pause    time.Time   // nothing is started before
	now      time.Time   // of the step
	stuck    State       // CrashLooping or Failed, until somebody changes something
	why      string      // of stuck and pause
	busy     int         // ports in a row that were taken
	evicted  []time.Time // whose holders were ended, within evictWindow
	sick     string      // what is wrong with a ready one
	late     bool        // why is that it was not ready in time
	dark     bool        // why is that nobody can be asked to start it
	restarts int
	last     *Exit

	timer   *time.Timer
	waiters []chan error // of Wake
	asked   []asked      // of commands

	wish atomic.Pointer[plan.App] // of the plan in force; the owner follows in its time

	mu    sync.Mutex // guards what follows
	view  view
	alive run.Instance // of view, for its figures
}

// view is what others see of an app.
type view struct {
	state  State
	reason string
	since  time.Time
	want   *plan.App // the wish
	on     bool
	live   int // instances of any phase
	pid    int
	cid    string
	at     plan.Addr
	began  time.Time // of the instance

	restarts int
	last     *Exit
}

// Exit is how an instance ended.
type Exit struct {
	At     time.Time
	Text   string
	Uptime time.Duration
}

// mailbox takes what happens to an app. Putting never waits, so that two owners cannot wait for each other; what is put is
// bounded by those who wait for an answer, and by the instances of the app.
type mailbox struct {
	mu   sync.Mutex
	list []func()
	wake chan struct{}
}

func (m *mailbox) put(f func()) {
	m.mu.Lock()
	m.list = append(m.list, f)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.list
	m.list = nil
	return list
}

func (m *mailbox) empty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.list) == 0
}

// newApp makes an app that does nothing yet, and its owner. s.mu is held.
func (s *Apps) newApp(name string) *app {
	a := &app{s: s, name: name, box: mailbox{wake: make(chan struct{}, 1)}, over: make(chan struct{}), timer: time.NewTimer(time.Hour)}
	a.view = view{state: Stopped, since: time.Now()}
	a.out = newOutput(s.opt.Output, name, func(err error) { s.opt.Log.Error("output of an app is not kept on the disk", "app", name, "err", err) })
	s.apps[name] = a
	s.work.Add(1)
	go a.own()
	return a
}

// post lets f happen to the app.
func (a *app) post(f func()) { a.box.put(f) }

// own is the goroutine of the app.
func (a *app) own() {
	defer a.s.work.Done()
	defer close(a.over)
	defer a.timer.Stop()
	for {
		select {
		case <-a.box.wake:
		case <-a.timer.C:
		case <-a.s.life.Done():
			a.close()
			return
		}
		for _, f := range a.box.take() {
			f()
			if a.s.life.Err() != nil { // it may have rested for long
				a.close()
				return
			}
		}
		if a.frozen != nil {
			a.frozen()
			if a.frozen != nil {
				continue
			}
		}
		a.step()
		if a.forget() {
			a.close()
			return
		}
	}
}

// forget takes the app off the list when it is out of the plan and nothing of it is left. It reports false where something
// came in between.
func (a *app) forget() bool {
	if !a.begins || a.want != nil || a.living() > 0 || len(a.adopt) > 0 || !a.freed {
		return false
	}
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if !a.box.empty() {
		return false
	}
	delete(a.s.apps, a.name)
	a.s.opt.Pools.SetMembers(a.name, nil)
	a.s.records.set(a.name, nil)
	a.s.metrics.restarts.DeleteLabelValues(a.name)
	return true
}

// close ends what the owner holds.
func (a *app) close() {
	a.answer(&WakeError{App: a.name, Reason: "it is gone"})
	for _, q := range a.asked {
		close(q.done)
	}
	a.asked = nil
	a.dropSocket()
	if a.out != nil {
		a.out.close()
	}
}

// living counts the instances of any phase.
func (a *app) living() int {
	n := len(a.old)
	if a.cur != nil {
		n++
	}
	if a.next != nil {
		n++
	}
	return n
}

// go runs f besides the owner. It ends with Run at the latest.
func (a *app) aside(f func(ctx context.Context)) {
	a.s.work.Add(1)
	go func() {
		defer a.s.work.Done()
		f(a.s.life)
	}()
}
