//go:build linux

package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// slack is what may differ in descriptors and goroutines between two quiet moments.
const slack = 5

// checkPorts holds three tables against each other: what the configuration wants, what the machine says, and what the
// kernel knows. They have a second to agree, on a slow machine five.
func (c *chaos) checkPorts() error {
	err := within(5*time.Second, "the ports agree", c.portsAgree)
	if err != nil {
		c.judge.Violate("ports, configuration and kernel disagree", "%v", err)
	}
	return nil
}

func (c *chaos) portsAgree() error {
	said, err := c.m.ports()
	if err != nil {
		return err
	}
	fds, err := c.m.fds()
	if err != nil {
		return err
	}
	listens, err := listening()
	if err != nil {
		return err
	}
	var errs []error
	wanted := c.now.ports()
	for _, port := range c.now.pool.all() {
		ours := slices.DeleteFunc(slices.Clone(listens), func(l listener) bool {
			return l.port != port || !slices.Contains(fds, fmt.Sprintf("socket:[%d]", l.inode))
		})
		i := slices.IndexFunc(said, func(h held) bool { return h.Port == port && h.Source != "admin" })
		switch {
		case !slices.Contains(wanted, port):
			if i >= 0 {
				errs = append(errs, fmt.Errorf("port %d has no route, and is %s for %v", port, said[i].State, said[i].Routes))
			}
			if len(ours) > 0 {
				errs = append(errs, fmt.Errorf("port %d has no route, and is listened on", port))
			}
		case i < 0:
			errs = append(errs, fmt.Errorf("port %d is wanted, and not in the table", port))
		default:
			errs = append(errs, c.portIs(port, &said[i], ours))
		}
	}
	return errors.Join(errs...)
}

// portIs checks one wanted port.
func (c *chaos) portIs(port int, h *held, ours []listener) error {
	slices.Sort(h.Routes)
	if want := c.now.users(port); !slices.Equal(h.Routes, want) {
		return fmt.Errorf("port %d serves %v, wanted by %v", port, h.Routes, want)
	}
	if want := c.now.written(port); h.Wanted != want {
		return fmt.Errorf("port %d is wanted as %s, not as %s", port, h.Wanted, want)
	}
	if c.barred(port) { // somebody else has it, or had it a moment ago
		return nil
	}
	switch {
	case h.State != "bound":
		return fmt.Errorf("port %d is %s although nobody else has it: %s", port, h.State, h.Error)
	case len(ours) != 1:
		return fmt.Errorf("port %d has %d sockets", port, len(ours))
	case ours[0].any == c.now.specific[port]:
		return fmt.Errorf("port %d is bound on every address: %v", port, ours[0].any)
	}
	return nil
}

// checkEnded wants nobody left on routes that have gone and say close. A client that was told to go has a second for it;
// it gets five.
func (c *chaos) checkEnded(old *plan) error {
	var gone []string
	for _, r := range old.routes {
		if r.close && c.now.route(r.name) == nil {
			gone = append(gone, r.name)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	err := within(5*time.Second, "the connections of routes that went are closed", func() error {
		standing, err := c.m.standing()
		for _, name := range gone {
			if n := standing[name]; n > 0 {
				err = errors.Join(err, fmt.Errorf("%d connections stand on route %s, which has gone with on_remove: close", n, name))
			}
		}
		return err
	})
	if err != nil {
		c.judge.Violate("a route that went is still used", "%v", err)
	}
	return nil
}

// quiet is what the machine holds when no client is there, beyond its listening sockets.
type quiet struct {
	pid, fds, goroutines int
	rss                  int64
}

func (q quiet) String() string {
	return fmt.Sprintf("pid %d: %d descriptors, %d goroutines, %d MiB", q.pid, q.fds, q.goroutines, q.rss>>20)
}

// measure looks at a machine without clients.
func (c *chaos) measure() (q quiet, err error) {
	s, err := c.m.status()
	if err != nil {
		return q, err
	}
	if s.Connections.Active > 0 {
		return q, fmt.Errorf("%d connections are still there", s.Connections.Active)
	}
	for _, pid := range c.m.before {
		if !gone(pid) {
			return q, fmt.Errorf("pid %d, which was replaced, is still there", pid)
		}
	}
	fds, err := c.m.fds()
	if err != nil {
		return q, err
	}
	n, err := c.m.goroutines()
	if err != nil {
		return q, err
	}
	held, err := c.m.ports()
	if err != nil {
		return q, err
	}
	sockets := 0
	for _, h := range held {
		if h.State == "bound" {
			sockets++ // each has a descriptor and a goroutine
		}
	}
	return quiet{c.m.pid, len(fds) - sockets, n - sockets, c.m.rss()}, nil
}

// checkLeaks lets every client end, and wants descriptors and goroutines back where they were before the first one came.
func (c *chaos) checkLeaks() error {
	c.fleet.Pause()
	defer c.fleet.Resume()
	var q quiet
	err := within(30*time.Second, "a quiet machine is as it was", func() (err error) {
		if q, err = c.measure(); err != nil {
			return err
		}
		if more := max(q.fds-c.start.fds, q.goroutines-c.start.goroutines); more > slack {
			return fmt.Errorf("%v; at the start %v", q, c.start)
		}
		return nil
	})
	if err != nil {
		fds, _ := c.m.fds()
		c.judge.Violate("something is kept", "%v; descriptors: %v", err, fds)
	}
	c.m.before = slices.DeleteFunc(c.m.before, gone)
	c.quiets = append(c.quiets, q)
	first := c.quiets[0].rss
	if limit := first + first/2 + 32<<20; !c.o.race && q.rss > limit {
		c.judge.Violate("memory grows", "%v; the first time %v", q, c.quiets[0])
	}
	return nil
}
