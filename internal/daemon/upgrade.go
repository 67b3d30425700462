package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/handover"
	"github.com/quaymaster/quaymaster/internal/ports"
)

const (
	upgradeWithin = 30 * time.Second // from the start of the new process until it says that it is prepared
	serveWithin   = 10 * time.Second // from go until it says that it serves
	reportEvery   = time.Second
)

var errUpgrading = errors.New("an upgrade is under way already; wait for its result")

// Upgrade starts a new process that takes over every socket, the state folder and the admin endpoint, and returns when it
// serves; this process then only drains. Any error, and nothing heard in time, leaves this process as it was, and the new
// one dead.
func (d *Daemon) Upgrade(ctx context.Context, o api.UpgradeOptions) (*api.Upgraded, error) {
	binary := o.Binary
	if os.Getpid() == 1 {
		return nil, errors.New("this is process 1 of its container, which ends with it; start a container of the new image instead")
	}
	if !d.upgrading.TryLock() {
		return nil, errUpgrading
	}
	defer d.upgrading.Unlock()
	if name := d.phase.Load().name; name != "serving" {
		return nil, fmt.Errorf("the daemon is %s", name)
	}
	if binary == "" {
		binary = d.o.Program
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.leaving, cancel)() // a stop comes first
	resume, err := d.loop.Suspend()
	if err != nil {
		return nil, err
	}
	supervise, err := d.apps.Suspend(ctx) // before the leases: an app that is being started may need one
	if err != nil {
		resume()
		return nil, err
	}
	thaw, err := d.leases.Suspend(ctx)
	if err != nil {
		supervise()
		resume()
		return nil, err
	}
	up, err := d.handOver(ctx, binary, o.Timeout)
	if err != nil {
		thaw()
		supervise()
		resume()
		d.log.Error("upgrade failed; this process goes on serving", "binary", binary, "err", err)
		d.event("upgrade.failed", binary, err.Error())
		return nil, fmt.Errorf("%w; pid %d goes on serving", err, os.Getpid())
	}
	d.apps.Drop()
	// The state folder is the new process's alone: should that be killed, whoever comes next finds it unlocked at once.
	if err := d.state.Leave(); err != nil {
		d.log.Warn("state folder", "err", err)
	}
	d.log.Info("handed over", "to", up.PID, "binary", binary)
	d.event("upgrade.handed_over", binary, fmt.Sprintf("pid %d serves", up.PID))
	d.onceGiven.Do(func() { close(d.given) })
	return up, nil
}

// handOver does it, or undoes what it did.
func (d *Daemon) handOver(ctx context.Context, binary string, within time.Duration) (*api.Upgraded, error) {
	give, err := d.ports.HandOver(ctx)
	if err != nil {
		return nil, err
	}
	d.leaveContainers()
	link, child, err := handover.Start(binary, d.o.Args, append(os.Environ(), d.service.Env()...))
	if err != nil {
		give.Close()
		give.Resume()
		return nil, err
	}
	cut := context.AfterFunc(ctx, func() { _ = child.Kill() })
	defer cut()
	ready, err := d.persuade(link, give, within)
	give.Close()
	rest := func() {}
	if err == nil {
		rest, err = d.restCerts(ctx)
	}
	if err == nil {
		give.Pause()
		d.apps.Leave()
		d.leases.Leave()
		err = d.letGo(link)
	}
	if err == nil && !cut() {
		err = ctx.Err()
	}
	if err != nil {
		_ = child.Kill()
		state, _ := child.Wait()
		_ = link.Close()
		give.Resume()
		rest()
		if errors.Is(err, handover.ErrGone) && state != nil {
			err = fmt.Errorf("the new process (%s) ended before it served: %s; its output says why", binary, state)
		}
		return nil, err
	}
	give.Finish(ready.Declined, child.Pid)
	d.passService(ctx, link, child.Pid)
	d.after = link
	go func() { _, _ = child.Wait() }() // it is our child until we end, which is mostly before it does
	return &api.Upgraded{PID: child.Pid, Before: os.Getpid()}, nil
}

// persuade sends everything and waits until the new process has prepared.
func (d *Daemon) persuade(link *handover.Link, give *ports.HandOver, within time.Duration) (*prepared, error) {
	if within <= 0 {
		within = upgradeWithin
	}
	until := time.Now().Add(within)
	if err := d.tell(link, give.Sockets); err != nil {
		return nil, err
	}
	m, err := link.Receive(until)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("the new process was not ready after %s", within)
	}
	if err != nil {
		return nil, err
	}
	defer m.Discard()
	switch m.Kind {
	case sayPrepared:
		p := &prepared{}
		return p, m.Into(p)
	case sayFailed:
		why := failed{}
		if err := m.Into(&why); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("the new process cannot serve: %s", why.Error)
	}
	return nil, fmt.Errorf("the new process says %q instead of prepared", m.Kind)
}

// tell sends the lock, the sockets, and the links to the processes before us.
func (d *Daemon) tell(link *handover.Link, sockets []ports.Socket) error {
	var lock []int
	if f := d.state.Lock(); f != nil {
		lock = []int{int(f.Fd())}
	}
	if err := link.Send(sayHello, hello{Protocol: protocol, PID: os.Getpid(), Version: d.o.Version, Tickets: d.tickets.Export()}, lock...); err != nil {
		return err
	}
	for part := range slices.Chunk(sockets, handover.MaxFDs) {
		fds := make([]int, len(part))
		for i, s := range part {
			fds[i] = s.FD
		}
		if err := link.Send(saySockets, part, fds...); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(d.apps.Sockets(), handover.MaxFDs) {
		fds := make([]int, len(part))
		for i, s := range part {
			fds[i] = s.FD
		}
		if err := link.Send(sayApps, part, fds...); err != nil {
			return err
		}
	}
	var pids, fds []int
	for _, p := range d.beforeUs() {
		if fd, err := p.link.Copy(); err == nil {
			pids, fds = append(pids, p.pid), append(fds, fd)
			defer closeFD(fd)
		}
	}
	if len(fds) > 0 {
		if err := link.Send(sayBefore, pids, fds...); err != nil {
			return err
		}
	}
	return link.Send(sayAll, nil)
}

// letGo says go, and waits until the new process serves.
func (d *Daemon) letGo(link *handover.Link) error {
	if err := link.Send(sayGo, nil); err != nil {
		return err
	}
	m, err := link.Receive(time.Now().Add(serveWithin))
	if err != nil {
		return fmt.Errorf("the new process was told to serve: %w", err)
	}
	defer m.Discard()
	if m.Kind != sayServing {
		return fmt.Errorf("the new process says %q instead of serving", m.Kind)
	}
	return nil
}

// leave lets the connections of a replaced process end: for drain_timeout, or as a stop does when one is asked for.
func (d *Daemon) leave() int {
	d.enter("draining")
	set := d.loop.Now().Plan.Settings
	d.log.Info("replaced; draining", "drain_timeout", set.DrainTimeout)
	ctx, done := d.budget(set.DrainTimeout)
	defer done()
	defer context.AfterFunc(d.leaving, done)()
	heard := make(chan struct{})
	go d.hearSuccessor(heard)
	report := time.NewTicker(reportEvery)
	quiet := make(chan struct{})
	go func() {
		d.edge.Leave(ctx)
		close(quiet)
	}()
	for waiting := true; waiting; {
		_, n := d.edge.Connections(0)
		_ = d.after.Send(sayLeft, left{Connections: n}) // for its status; one that has ended needs none
		select {
		case <-quiet:
			waiting = false
		case <-report.C:
		}
	}
	report.Stop()
	ctx, done = expired(), func() {}
	if d.leaving.Err() != nil {
		ctx, done = d.budget(set.ShutdownTimeout)
	}
	defer done()
	code := d.finish(ctx)
	_ = d.after.Close()
	<-heard
	return code
}

// hearSuccessor does what the new process asks for, until it or the link ends.
func (d *Daemon) hearSuccessor(heard chan<- struct{}) {
	defer close(heard)
	for {
		m, err := d.after.Receive(time.Time{})
		if err != nil {
			return
		}
		m.Discard()
		if m.Kind == sayStop {
			d.Stop()
		}
	}
}
