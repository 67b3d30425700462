package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/engine"
	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	lookEvery  = 15 * time.Second // at a container whose end nobody tells: its engine may hang
	lastWords  = 5 * time.Second  // for what it said last
	removals   = 5                // tries, where the engine refuses
	statsFresh = 2 * time.Second
	statsWait  = 200 * time.Millisecond
)

// instance is one container that runs an app.
type instance struct {
	r       *Runner
	id      string
	data    data
	out     run.Output
	started time.Time // as we have it
	begun   time.Time // as the engine has it

	life   context.Context // of what attends to it
	end    context.CancelFunc
	work   sync.WaitGroup
	done   chan struct{} // closed when it has ended and is removed
	ending chan struct{} // closed when it has ended
	heard  chan struct{} // closed when its output is not followed any more
	log    follower      // owned by hear, and after heard by follow

	mu     sync.Mutex // guards what follows
	exit   run.Exit
	unseen error // why the engine cannot be asked
	sight  func(error)
	pid    int // of its first process, where the engine is
	pidAt  time.Time
	stats  run.Stats
	statAt time.Time
	asking chan struct{} // closed when stats are another; nil: nobody asks
}

// begin starts what attends to the container.
func (i *instance) begin() {
	i.work.Add(2)
	go i.hear()
	go i.follow()
}

// follow waits for the end of the container, keeps its last words, removes it, and closes done.
func (i *instance) follow() {
	defer i.work.Done()
	exit, ok := i.await()
	if !ok {
		return
	}
	close(i.ending)
	select {
	case <-i.heard:
	case <-i.life.Done():
		return
	}
	if !i.clean() {
		return
	}
	i.mu.Lock()
	i.exit = exit
	i.mu.Unlock()
	i.r.forget(i.id)
	close(i.done)
}

// await returns how the container has ended, or false when it was left.
func (i *instance) await() (run.Exit, bool) {
	pause := again
	for {
		err := i.wait()
		if i.life.Err() != nil {
			return run.Exit{}, false
		}
		box, look := i.r.inspect(i.life, i.data.Socket, i.id)
		switch {
		case i.life.Err() != nil:
			return run.Exit{}, false
		case isMissing(look):
			i.seen(nil)
			return run.Exit{At: time.Now(), Code: -1, Text: "its container was removed by somebody else"}, true
		case look != nil:
			i.blind(look)
		default:
			i.seen(&box)
			if e, over := i.over(box.State); over {
				return e, true
			}
			if err == nil {
				pause = again
			}
		}
		if !i.rest(pause) {
			return run.Exit{}, false
		}
		pause = min(2*pause, againMost)
	}
}

// rest waits. It reports false when the instance was left.
func (i *instance) rest(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-i.life.Done():
		return false
	case <-timer.C:
		return true
	}
}

// wait returns when there may be news: the engine says that the container does not run, or that it is out of reach, or
// enough time has passed. nil: time has passed.
func (i *instance) wait() error {
	i.mu.Lock()
	first := i.pid == 0
	i.mu.Unlock()
	if first {
		return nil // nothing is known of it yet
	}
	ctx, stop := context.WithTimeout(i.life, lookEvery)
	defer stop()
	c, err := engine.Open(i.data.Socket, false)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // closes idle connections, and cannot fail
	got := make(chan error, 1)
	go func() { // it may take the client long to hear even the head of the answer
		res := c.ContainerWait(ctx, i.id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
		select {
		case <-res.Result:
			got <- errors.New("it has ended")
		case err := <-res.Error:
			got <- err
		}
	}()
	err = <-got // ctx ends it
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// over says how a container has ended, if it has.
func (i *instance) over(s *container.State) (run.Exit, bool) {
	switch s.Status {
	case container.StateRunning, container.StatePaused, container.StateRestarting, "stopping", "starting":
		return run.Exit{}, false
	}
	if s.Running || s.Paused {
		return run.Exit{}, false
	}
	e := run.Exit{At: time.Now(), Code: s.ExitCode, OOM: s.OOMKilled}
	if at := timeOf(s.FinishedAt); at.After(i.begun) && at.Before(e.At) {
		e.At = at
	}
	if s.ExitCode > 128 && s.ExitCode < 128+65 { // a runtime's way to say that it was a signal
		e.Code, e.Signal = -1, syscall.Signal(s.ExitCode-128)
	}
	if said := clip(s.Error); said != "" && s.ExitCode != 0 && timeOf(s.StartedAt).IsZero() {
		e.Text = "the engine could not run it: " + said
	}
	return e, true
}

// blind notes that the engine cannot be asked.
func (i *instance) blind(err error) {
	i.mu.Lock()
	defer i.mu.Unlock() // who tells first is heard first
	news := i.unseen == nil
	i.unseen = err
	if news && i.sight != nil {
		i.sight(err)
	}
}

// seen notes what the engine has answered.
func (i *instance) seen(box *container.InspectResponse) {
	i.mu.Lock()
	defer i.mu.Unlock()
	news := i.unseen != nil
	i.unseen = nil
	if box != nil {
		i.pid, i.pidAt = max(box.State.Pid, 1), timeOf(box.State.StartedAt) // 1: it has ended
	}
	if news && i.sight != nil {
		i.sight(nil)
	}
}

// Sight calls f when the instance gets out of sight, with why, and with nil when it is seen again.
func (i *instance) Sight(f func(error)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sight = f
	if i.unseen != nil {
		f(i.unseen)
	}
}

// clean removes the container that has ended. It reports false when the instance was left.
func (i *instance) clean() bool {
	pause, refused := again, 0
	for {
		err := i.r.remove(i.life, i.data.Socket, i.id)
		switch {
		case i.life.Err() != nil:
			return false
		case err == nil:
			i.seen(nil)
			return true
		case isAway(err):
			i.blind(err)
		default:
			if refused++; refused == removals {
				i.r.opt.Log.Warn("container that has ended is not removed; the next start tries again", "container", i.data.Name, "err", err)
				return true
			}
		}
		if !i.rest(pause) {
			return false
		}
		pause = min(2*pause, againMost)
	}
}

// Record is what the next daemon needs.
func (i *instance) Record() run.Record { return i.record() }

// Done is closed when the container has ended and is removed.
func (i *instance) Done() <-chan struct{} { return i.done }

// Exit says how it ended.
func (i *instance) Exit() run.Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

// Stop ends the container. An engine that is away is asked until it answers.
func (i *instance) Stop(ctx context.Context, how plan.AppStop) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(i.life, cancel)()
	name := "SIG" + strings.TrimPrefix(how.Signal, "SIG")
	if how.Signal == "" {
		name = "SIGTERM"
	}
	if over, err := i.insist(ctx, name); over || err != nil {
		return i.stopped(err)
	}
	timer := time.NewTimer(how.Timeout)
	defer timer.Stop()
	select {
	case <-i.done:
		return nil
	case <-ctx.Done():
		return i.stopped(ctx.Err())
	case <-timer.C:
	}
	if over, err := i.insist(ctx, "SIGKILL"); over || err != nil {
		return i.stopped(err)
	}
	select {
	case <-i.done:
	case <-ctx.Done():
		return i.stopped(ctx.Err())
	}
	return nil
}

// stopped is the outcome of a stop: an instance that was left is the next daemon's to end.
func (i *instance) stopped(err error) error {
	select {
	case <-i.life.Done():
		return nil
	default:
		return err
	}
}

// insist sends a signal, and again until the engine has taken it. over: the instance has ended meanwhile.
func (i *instance) insist(ctx context.Context, signal string) (over bool, err error) {
	pause, refused := again, 0
	for {
		err := i.signal(ctx, signal)
		switch {
		case err == nil:
			return false, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case isAway(err):
			i.blind(err)
		case isMissing(err): // follow sees that too
		default:
			if refused++; refused == removals {
				return false, err
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-i.done:
			timer.Stop()
			return true, nil
		case <-ctx.Done():
			timer.Stop()
			return false, ctx.Err()
		case <-timer.C:
		}
		pause = min(2*pause, againMost)
	}
}

// signal sends a signal once. A container that does not run has no use for one; one that is paused is woken.
func (i *instance) signal(ctx context.Context, name string) error {
	kill := func(ctx context.Context, c *engine.Conn) error {
		_, err := c.ContainerKill(ctx, i.id, client.ContainerKillOptions{Signal: name})
		return err
	}
	err := ask(ctx, i.data.Socket, askTime, kill)
	if err == nil || isAway(err) || isMissing(err) {
		return err
	}
	box, look := i.r.inspect(ctx, i.data.Socket, i.id)
	if look != nil {
		return look
	}
	if _, over := i.over(box.State); over {
		return nil
	}
	if !box.State.Paused && box.State.Status != container.StatePaused {
		return err
	}
	return ask(ctx, i.data.Socket, askTime, func(ctx context.Context, c *engine.Conn) error {
		if _, err := c.ContainerUnpause(ctx, i.id, client.ContainerUnpauseOptions{}); err != nil {
			return err
		}
		return kill(ctx, c)
	})
}

// Leave lets go of the instance: when it returns, nobody here reads its output or looks after it any more.
func (i *instance) Leave() {
	i.end()
	i.work.Wait()
	i.r.forget(i.id)
}

// Stats are what the engine said last, which is asked when that is old. Nobody waits long for an engine that is slow.
func (i *instance) Stats() (run.Stats, error) {
	i.mu.Lock()
	if i.unseen != nil {
		defer i.mu.Unlock()
		return i.stats, i.unseen
	}
	if time.Since(i.statAt) < statsFresh {
		defer i.mu.Unlock()
		return i.stats, nil
	}
	first := i.asking == nil
	if first {
		i.asking = make(chan struct{})
		i.work.Add(1)
		go i.measure()
	}
	asking := i.asking
	i.mu.Unlock()
	if first {
		timer := time.NewTimer(statsWait)
		defer timer.Stop()
		select {
		case <-asking:
		case <-timer.C:
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.stats, nil
}

// measure asks for what the container uses.
func (i *instance) measure() {
	defer i.work.Done()
	var got container.StatsResponse
	err := ask(i.life, i.data.Socket, askTime, func(ctx context.Context, c *engine.Conn) error {
		res, err := c.ContainerStats(ctx, i.id, client.ContainerStatsOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
			return fmt.Errorf("figures of a container: %w", err)
		}
		return nil
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	if err == nil {
		m := &got.MemoryStats
		cache := max(m.Stats["inactive_file"], m.Stats["total_inactive_file"]) // what the kernel takes back at need
		i.stats = run.Stats{
			Memory: int64(min(m.Usage-min(cache, m.Usage), 1<<62)),                      //nolint:gosec // bounded
			CPU:    time.Duration(min(got.CPUStats.CPUUsage.TotalUsage, uint64(1)<<62)), //nolint:gosec // bounded
		}
	}
	i.statAt = time.Now()
	close(i.asking)
	i.asking = nil
}

var (
	_ run.Instance = (*instance)(nil)
	_ run.Sighted  = (*instance)(nil)
	_ run.Behind   = (*instance)(nil)
)
