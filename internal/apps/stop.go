package apps

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// lastGrace is what an app gets when the time for a stop is over.
const lastGrace = 2 * time.Second

// Close ends every app, those that depend on others first, and returns when all are gone. When ctx ends what is left is
// killed.
func (s *Apps) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	first := s.first
	s.mu.Unlock()
	if first {
		return nil // nothing was begun: what an earlier daemon has left goes on
	}
	list := s.all()
	for _, a := range list {
		a.post(a.shut)
	}
	if s.gone(ctx, list) {
		return nil
	}
	late, cancel := context.WithTimeout(context.Background(), lastGrace)
	defer cancel()
	for _, a := range list {
		a.post(a.kill)
	}
	if s.gone(late, list) {
		return nil
	}
	return errors.New("apps are still running")
}

// shut is the end of the daemon.
func (a *app) shut() {
	a.closing, a.on, a.redo = true, false, false
}

// kill is the end of the daemon's patience.
func (a *app) kill() {
	for _, i := range append([]*instance{a.cur, a.next}, a.old...) {
		if i == nil {
			continue
		}
		i.stopProbes()
		if i.phase == launching {
			i.unwanted = true
			continue
		}
		i.phase = stopping
		a.aside(func(ctx context.Context) { _ = i.run.Stop(ctx, plan.AppStop{Signal: "KILL"}) }) // what is left is counted by Close
	}
}

// gone waits until no instance of the apps is left. It reports false when ctx ended first.
func (s *Apps) gone(ctx context.Context, list []*app) bool {
	for _, a := range list {
		q := asked{stop: true, done: make(chan struct{})}
		a.post(func() { a.asked = append(a.asked, q) })
		select {
		case <-q.done:
		case <-a.over:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// Suspend stops all supervision and returns when no app is being started: the records are then another process's, which may
// find the apps again after Leave. resume ends that.
func (s *Apps) Suspend(ctx context.Context) (resume func(), err error) {
	thaw := make(chan struct{})
	list := s.all()
	for _, a := range list {
		rest := make(chan struct{})
		a.post(func() { a.suspend(rest, thaw) })
		select {
		case <-rest:
		case <-a.over:
		case <-ctx.Done():
			close(thaw)
			return nil, ctx.Err()
		}
	}
	if err := s.records.freeze(true); err != nil {
		_ = s.records.freeze(false)
		close(thaw)
		return nil, err
	}
	return func() {
		_ = s.records.freeze(false) // nothing to write: that was done before
		close(thaw)
	}, nil
}

// suspend holds the owner until thaw is closed, once nothing is being launched.
func (a *app) suspend(rest, thaw chan struct{}) {
	for _, i := range append([]*instance{a.cur, a.next}, a.old...) {
		if i != nil && i.phase == launching {
			a.frozen = func() { a.suspend(rest, thaw) } // the end of the launch calls it
			return
		}
	}
	a.frozen = nil
	close(rest)
	select {
	case <-thaw:
	case <-a.s.life.Done():
		return // they are another process's
	}
	for _, i := range append([]*instance{a.cur, a.next}, a.old...) {
		if i != nil && i.left.Load() {
			a.again(i)
		}
	}
}

// Leave lets go of every instance, so that another process can find them. It is called after Suspend; resume takes them
// back.
func (s *Apps) Leave() {
	for _, a := range s.all() {
		for _, i := range append([]*instance{a.cur, a.next}, a.old...) { // the owner rests
			if i != nil && i.run != nil {
				i.left.Store(true)
				i.run.Leave()
			}
		}
	}
}

// A Socket is one that an app is given (Socket: fd). It outlives its instances.
type Socket struct {
	App string    `json:"app"`
	At  plan.Addr `json:"at"`
	FD  int       `json:"-"`
}

// Sockets are those that apps are given, between Suspend and resume, by app. They stay ours.
func (s *Apps) Sockets() []Socket {
	var out []Socket
	for _, a := range s.all() {
		if a.sock != nil { // the owner rests
			out = append(out, Socket{a.name, a.sock.at, a.sock.fd})
		}
	}
	return out
}

// Inherit takes over the sockets of the process before. It is called before the first plan is prepared.
func (s *Apps) Inherit(list []Socket) { s.inherited = list }

// Drop closes the sockets that are another process's by now, after Leave.
func (s *Apps) Drop() {
	for _, a := range s.all() {
		a.dropSocket() // the owner rests
	}
}

// again finds an instance that was left.
func (a *app) again(i *instance) {
	i.left.Store(false)
	got, err := a.s.opt.Runner(i.spec).Adopt(a.s.life, i.run.Record(), i.tap)
	if err != nil {
		a.s.opt.Log.Warn("app is not found again", "app", a.name, "err", err)
		a.lose(i)
		a.tellPools()
		return
	}
	i.run = got
	a.watch(i)
}

func closeFD(fd int) { _ = unix.Close(fd) }
