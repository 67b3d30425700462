//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/chaos/load"
)

// An act is something that happens to the machine. An error of it ends the run: the machine cannot be told any more what
// to do. What the machine did wrong is a violation. errNothing says that it could not happen now.
type act struct {
	name   string
	weight int
	do     func(c *chaos) error
}

var errNothing = errors.New("nothing to do now")

// acts are all that may happen.
func (c *chaos) acts() []act {
	list := []act{
		{"reload", 30, (*chaos).reload},
		{"edit", 14, (*chaos).edit},
		{"broken file", 3, (*chaos).broken},
		{"dry run", 2, (*chaos).dryRun},
		{"foreign listener", 8, (*chaos).foreigner},
		{"refused reload", 6, (*chaos).refused},
		{"target killed", 10, (*chaos).killTarget},
		{"machine killed", 3, (*chaos).killMachine},
		{"machine killed in a reload", 1, (*chaos).killInReload},
		{"machine killed, ports taken", 2, (*chaos).killAndTake},
		{"upgrade", 6, (*chaos).upgrade},
		{"upgrade that fails", 2, (*chaos).failedUpgrade},
		{"everybody leaves", 1, (*chaos).checkLeaks},
	}
	if c.o.halts {
		list = append(list, act{"machine halted in a reload", 8, (*chaos).haltInReload})
	}
	return list
}

// commit brings next in force: apply does, and its error is a refusal that nothing excuses.
func (c *chaos) commit(next *plan, apply func() error) error {
	old := c.now
	if err := c.m.write(next.yaml(c.m.head())); err != nil {
		return err
	}
	done := c.world.Change(next)
	err := apply()
	done(err == nil)
	if err != nil {
		c.judge.Violate("a reload was refused", "%v", err)
		return c.m.write(old.yaml(c.m.head()))
	}
	c.now = next
	return errors.Join(c.checkPorts(), c.checkEnded(old))
}

// reload changes the file and has it read again, by API or by command.
func (c *chaos) reload() error {
	next := c.garden.change(c.now)
	return c.commit(next, func() error {
		if c.rng.IntN(3) > 0 {
			_, err := c.m.api("POST", "/v1/reload", "", nil)
			return err
		}
		if out, err := c.m.cli("reload"); err != nil {
			return fmt.Errorf("quaymaster reload: %w: %s", err, out)
		}
		return nil
	})
}

// haltInReload lets the machine go on for a moment only, again and again, while it reloads, so that clients gather in the
// queues of its ports.
func (c *chaos) haltInReload() error {
	next := c.garden.change(c.now)
	goes, halts := time.Duration(1+c.rng.IntN(3))*time.Millisecond, time.Duration(10+c.rng.IntN(30))*time.Millisecond
	return c.commit(next, func() error {
		over, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case <-over:
					return
				case <-time.After(goes):
				}
				_ = syscall.Kill(c.m.pid, syscall.SIGSTOP) // one that has ended is noticed by others
				<-time.After(halts)
				_ = syscall.Kill(c.m.pid, syscall.SIGCONT)
			}
		}()
		_, err := c.m.api("POST", "/v1/reload", "", nil)
		close(over)
		<-ended
		return err
	})
}

// edit makes or deletes a route by API.
func (c *chaos) edit() error {
	next := c.now.clone()
	var own []*route
	for _, r := range next.routes {
		if r.api {
			own = append(own, r)
		}
	}
	if len(own) > 0 && (len(own) > 4 || c.rng.IntN(2) == 0) {
		gone := own[c.rng.IntN(len(own))]
		before := len(next.routes)
		if next.without(gone.name); len(next.routes) != before-1 {
			return errNothing // a file's tunnel would have to go with it
		}
		return c.commit(next, func() error {
			_, err := c.m.api("DELETE", "/v1/routes/"+gone.name, "*", nil)
			return err
		})
	}
	class := load.HTTP
	if c.rng.IntN(3) == 0 {
		class = load.TLS
	}
	r := c.garden.add(next, class, true)
	if r == nil || next.pool.role(r.port) == proxied && !slices.Contains(c.now.ports(), r.port) {
		return errNothing // proxy_protocol stands in the file, which names only ports that are wanted
	}
	return c.commit(next, func() error {
		_, err := c.m.api("PUT", "/v1/routes/"+r.name, "*", []byte(next.body(r).String()))
		return err
	})
}

// broken has a file read that is no configuration.
func (c *chaos) broken() error {
	if err := c.m.write(c.now.yaml(c.m.head()) + "  - {name: x, match: {ports: [99999]}, action: {nonsense: 1}}\n"); err != nil {
		return err
	}
	var no *refusal
	if _, err := c.m.api("POST", "/v1/reload", "", nil); !errors.As(err, &no) {
		c.judge.Violate("a broken file was not refused", "%v", err)
	}
	if err := c.m.write(c.now.yaml(c.m.head())); err != nil {
		return err
	}
	return c.checkPorts()
}

// dryRun asks what another file would change.
func (c *chaos) dryRun() error {
	if err := c.m.write(c.garden.change(c.now).yaml(c.m.head())); err != nil {
		return err
	}
	if out, err := c.m.cli("reload", "--dry-run"); err != nil {
		c.judge.Violate("a dry run was refused", "%v: %s", err, out)
	}
	if err := c.m.write(c.now.yaml(c.m.head())); err != nil {
		return err
	}
	return c.checkPorts()
}

// foreign is a listener that is not the machine's, on a port of the pool.
type foreign struct {
	l    net.Listener
	done func()     // for the world
	hold sync.Mutex // held by who needs it to stay
}

// take listens on a port as somebody else, for a while. It reports false when the port cannot be had.
func (c *chaos) take(port int, until func(f *foreign)) bool {
	host := []string{"", "127.0.0.1"}[c.rng.IntN(2)]
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", host, port))
	if err != nil {
		return false
	}
	f := &foreign{l: l, done: c.world.Taken(port)}
	c.mu.Lock()
	c.taken[port] = f
	c.mu.Unlock()
	c.others.Add(2)
	go func() {
		defer c.others.Done()
		load.ServeForeign(l)
	}()
	go func() {
		defer c.others.Done()
		until(f)
	}()
	return true
}

// leave ends a foreign listener.
func (c *chaos) leave(port int, f *foreign) {
	f.hold.Lock()
	defer f.hold.Unlock()
	_ = f.l.Close()
	c.mu.Lock()
	delete(c.taken, port)
	c.mu.Unlock()
	f.done()
}

// barred reports whether a port may not be wanted by a plan that shall be followed.
func (c *chaos) barred(port int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken[port] != nil || c.coming[port]
}

// foreigner takes a port that no plan wants now, and leaves after a while.
func (c *chaos) foreigner() error {
	wanted := c.now.ports()
	var idle []int
	for _, port := range c.now.pool.all() {
		if !slices.Contains(wanted, port) && !c.barred(port) {
			idle = append(idle, port)
		}
	}
	if len(idle) < 3 {
		return errNothing
	}
	port, stay := idle[c.rng.IntN(len(idle))], time.Duration(500+c.rng.IntN(4000))*time.Millisecond
	if !c.take(port, func(f *foreign) {
		pause(c.ctx, stay)
		c.leave(port, f)
	}) {
		c.judge.Violate("a port without a route is held", "port %d cannot be bound by anybody else", port)
	}
	return nil
}

// refused wants a port that a foreign listener holds: nothing may change, and the refusal names the port and us.
func (c *chaos) refused() error {
	port, f := c.unwanted()
	if f == nil {
		if err := c.foreigner(); err != nil {
			return err
		}
		port, f = c.unwanted()
	}
	if f == nil || !f.hold.TryLock() {
		return errNothing
	}
	defer f.hold.Unlock()
	if c.still(port) != f {
		return errNothing
	}
	next := c.garden.change(c.now)
	class := load.HTTP
	if next.pool.role(port) == tunnel {
		class = load.First
	}
	c.garden.next++
	next.with(&route{name: fmt.Sprintf("%s%d", class, c.garden.next), class: class, port: port, targets: c.garden.choose(next)})
	if err := c.m.write(next.yaml(c.m.head())); err != nil {
		return err
	}
	done := c.world.Change(next)
	_, err := c.m.api("POST", "/v1/reload", "", nil)
	done(err == nil)
	var no *refusal
	switch {
	case !errors.As(err, &no):
		c.judge.Violate("a reload that wants a busy port was not refused", "port %d: %v", port, err)
	case !strings.Contains(no.text, fmt.Sprintf(":%d", port)) || !strings.Contains(no.text, fmt.Sprintf("pid %d", syscall.Getpid())):
		c.judge.Violate("a refusal does not name the port and its holder", "port %d, pid %d: %s", port, syscall.Getpid(), no.text)
	}
	if err := c.m.write(c.now.yaml(c.m.head())); err != nil {
		return err
	}
	return c.checkPorts()
}

// unwanted is a foreign listener on a port that no plan wants now, nil when there is none.
func (c *chaos) unwanted() (port int, f *foreign) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, x := range c.taken {
		if !slices.Contains(c.now.ports(), p) && (port == 0 || p < port) {
			port, f = p, x
		}
	}
	return port, f
}

// still is the foreign listener of a port now.
func (c *chaos) still(port int) *foreign {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken[port]
}

// killTarget kills a target and starts it again a moment later, while other acts go on.
func (c *chaos) killTarget() error {
	t := c.targets[c.rng.IntN(len(c.targets))]
	away := time.Duration(c.rng.IntN(1000)) * time.Millisecond
	select {
	case t.busy <- struct{}{}:
	default:
		return errNothing // it is down already
	}
	c.others.Add(1)
	go func() {
		defer c.others.Done()
		defer func() { <-t.busy }()
		up := c.world.Down(t.id)
		t.kill()
		pause(c.ctx, away)
		if err := t.start(c.self, c.log); err != nil {
			c.fail(fmt.Errorf("target %s: %w", t.id, err))
			return
		}
		up()
	}()
	return nil
}

// killMachine kills the serving process and starts the program again at once.
func (c *chaos) killMachine() error {
	if c.rng.IntN(2) == 0 {
		if err := c.checkLeaks(); err != nil { // what the process has kept would be lost with it
			return err
		}
	}
	return c.restart(func() {})
}

// restart kills and starts; before is called in between.
func (c *chaos) restart(before func()) error {
	up := c.world.Down(load.Machine)
	if err := c.m.kill(); err != nil {
		return err
	}
	before()
	if err := c.m.start(); err != nil {
		return err
	}
	err := c.checkPorts()
	up()
	return err
}

// killInReload kills the serving process while it reads a new file. What the file says is in force afterwards.
func (c *chaos) killInReload() error {
	next := c.garden.change(c.now)
	if err := c.m.write(next.yaml(c.m.head())); err != nil {
		return err
	}
	up := c.world.Down(load.Machine)
	done := c.world.Change(next)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _ = c.m.api("POST", "/v1/reload", "", nil) // killed under it, or not
	}()
	pause(c.ctx, time.Duration(c.rng.IntN(15000))*time.Microsecond)
	if err := c.m.kill(); err != nil {
		return err
	}
	<-asked
	if err := c.m.start(); err != nil {
		return err
	}
	done(true)
	c.now = next
	err := c.checkPorts()
	up()
	return err
}

// killAndTake kills the serving process and lets somebody else take one or two of its ports before it starts again. The
// rest serves; the ports come back by themselves, one step of the back-off after the other has left. Half of the time nothing
// else happens until they have, so that it is not a new start that brings them back.
func (c *chaos) killAndTake() error {
	wanted := c.now.ports()
	c.rng.Shuffle(len(wanted), func(i, j int) { wanted[i], wanted[j] = wanted[j], wanted[i] })
	n, stay := 1+c.rng.IntN(2), time.Duration(300+c.rng.IntN(1700))*time.Millisecond
	var back sync.WaitGroup
	err := c.restart(func() {
		for _, port := range wanted[:min(n, len(wanted))] {
			if c.barred(port) {
				continue
			}
			c.mu.Lock()
			c.coming[port] = true
			c.mu.Unlock()
			back.Add(1)
			if !c.take(port, func(f *foreign) { defer back.Done(); c.comesBack(port, stay, f) }) {
				back.Done()
				c.mu.Lock()
				delete(c.coming, port) // a process that drains has it still
				c.mu.Unlock()
			}
		}
	})
	if c.rng.IntN(2) == 0 {
		back.Wait()
	}
	return err
}

// comesBack leaves a port after a while, and wants it bound in time.
func (c *chaos) comesBack(port int, stay time.Duration, f *foreign) {
	pause(context.Background(), stay)
	done := f.done
	f.done = func() {}
	c.leave(port, f)
	const longest = 30 * time.Second // of the back-off's waits
	err := within(longest+c.o.patience, fmt.Sprintf("port %d is bound by itself", port), func() error {
		all, err := c.m.ports()
		if err != nil {
			return err
		}
		for _, p := range all {
			if p.Port != port || p.Source == "admin" || p.State == "bound" {
				continue
			}
			err := fmt.Errorf("%s: %s, next try %v", p.State, p.Error, p.NextTry)
			if !p.NextTry.IsZero() && time.Since(p.NextTry) > c.o.patience { // it was to be tried by now
				return &over{err}
			}
			return err
		}
		return nil
	})
	if err != nil {
		c.judge.Violate("a wanted port that nobody holds is not ours", "%v", err)
	}
	done()
	c.mu.Lock()
	delete(c.coming, port)
	c.mu.Unlock()
}

// upgrade replaces the serving process by a new one.
func (c *chaos) upgrade() error {
	was := c.m.pid
	out, err := c.m.cli("upgrade")
	if err != nil {
		c.judge.Violate("an upgrade failed", "%v: %s", err, out)
		return nil
	}
	s, err := c.m.status()
	if err != nil {
		c.judge.Violate("no status after an upgrade", "%v", err)
		return err
	}
	if s.PID == was {
		c.judge.Violate("an upgrade changed nothing", "pid %d still serves: %s", was, out)
		return nil
	}
	c.m.pid = s.PID
	c.m.before = append(c.m.before, was)
	return c.checkPorts()
}

// failedUpgrade wants a program that ends at once: nothing may change.
func (c *chaos) failedUpgrade() error {
	if out, err := c.m.cli("upgrade", "--binary", "/bin/false"); err == nil {
		c.judge.Violate("an upgrade to a program that ends at once succeeded", "%s", out)
	}
	if s, err := c.m.status(); err != nil || s.PID != c.m.pid {
		c.judge.Violate("a failed upgrade changed who serves", "pid %d, was %d, %v", s.PID, c.m.pid, err)
	}
	return c.checkPorts()
}
