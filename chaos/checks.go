//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// slack is how many goroutines more than at the start may be there in a quiet moment: those of the Go runtime come and go.
const slack = 3

// checkPorts holds three tables against each other: what the configuration wants, what the machine says, and what the
// kernel knows.
func (c *chaos) checkPorts() error {
	err := within(c.o.patience, "the ports agree", c.portsAgree)
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
	for _, port := range c.now.pool.all() {
		var h *held
		if i := slices.IndexFunc(said, func(h held) bool { return h.Port == port && h.Source != "admin" }); i >= 0 {
			h = &said[i]
		}
		there := slices.DeleteFunc(slices.Clone(listens), func(l listener) bool { return l.port != port })
		errs = append(errs, c.portIs(port, h, there, fds))
	}
	return errors.Join(errs...)
}

// portIs checks one port of the pool, on which the sockets of there listen, whoever has them.
func (c *chaos) portIs(port int, h *held, there []listener, fds []string) error {
	users := c.now.users(port)
	switch {
	case len(users) == 0 && h != nil:
		return fmt.Errorf("port %d has no route, and is %s for %v", port, h.State, h.Routes)
	case len(users) == 0 && len(there) > 0 && !c.barred(port):
		return fmt.Errorf("port %d has no route, and is listened on", port)
	case len(users) == 0:
		return nil
	case h == nil:
		return fmt.Errorf("port %d is wanted, and not in the table", port)
	}
	if slices.Sort(h.Routes); !slices.Equal(h.Routes, users) {
		return fmt.Errorf("port %d serves %v, wanted by %v", port, h.Routes, users)
	}
	if want := c.now.written(port); h.Wanted != want {
		return fmt.Errorf("port %d is wanted as %s, not as %s", port, h.Wanted, want)
	}
	switch {
	case c.barred(port): // somebody else has it, or had it a moment ago
		return nil
	case h.State != "bound":
		return fmt.Errorf("port %d is %s although nobody else has it: %s", port, h.State, h.Error)
	case len(there) != 1:
		return fmt.Errorf("port %d has %d sockets", port, len(there))
	case !slices.Contains(fds, fmt.Sprintf("socket:[%d]", there[0].inode)):
		return fmt.Errorf("port %d is listened on by another process than the one that serves", port)
	case there[0].any == c.now.specific[port]:
		return fmt.Errorf("port %d is bound on every address: %v", port, there[0].any)
	}
	return nil
}

// checkEnded wants nobody left on routes that have gone and say close, well before they would have ended by themselves.
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
	soon := min(c.o.patience, max(c.o.long/2, c.o.patience/5))
	err := within(soon, "the connections of routes that went are closed", func() error {
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
	pid, goroutines int
	fds             map[string]int // by kind
	rss             int64
}

func (q quiet) String() string {
	n := 0
	for _, of := range q.fds {
		n += of
	}
	return fmt.Sprintf("pid %d: %d descriptors, %d goroutines, %d MiB", q.pid, n, q.goroutines, q.rss>>20)
}

// more is an error when q holds what was not there at the start.
func (q quiet) more(start quiet) error {
	for kind, n := range q.fds {
		if was := start.fds[kind]; n > was {
			return fmt.Errorf("%d descriptors of %s beyond those of ports, at the start %d", n, kind, was)
		}
	}
	if q.goroutines > start.goroutines+slack {
		return fmt.Errorf("%d goroutines beyond those of ports, at the start %d", q.goroutines, start.goroutines)
	}
	return nil
}

// kindOf is what a descriptor leads to, without what tells it from others of its kind: "socket:[123]" is a socket.
func kindOf(fd string) string {
	if kind, _, found := strings.Cut(fd, ":["); found {
		return kind
	}
	return fd
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
		if !c.m.gone(pid) {
			return q, fmt.Errorf("pid %d, which was replaced, is still there", pid)
		}
	}
	q = quiet{pid: c.m.pid, fds: map[string]int{}, rss: c.m.rss()}
	if q.goroutines, err = c.m.goroutines(); err != nil {
		return q, err
	}
	fds, err := c.m.fds()
	if err != nil {
		return q, err
	}
	for _, fd := range fds {
		q.fds[kindOf(fd)]++
	}
	held, err := c.m.ports()
	if err != nil {
		return q, err
	}
	for _, h := range held {
		if h.State == "bound" { // each has a descriptor and a goroutine
			q.fds["socket"]--
			q.goroutines--
		}
	}
	return q, nil
}

// least is the smallest of some measurements, so that nothing that came and went in one of them counts.
func (c *chaos) least() (q quiet, err error) {
	for i := range 20 {
		pause(c.ctx, 10*time.Millisecond)
		next, err := c.measure()
		if err != nil {
			return q, err
		}
		if i == 0 {
			q = next
		}
		maps.DeleteFunc(q.fds, func(kind string, _ int) bool { _, there := next.fds[kind]; return !there })
		for kind := range q.fds {
			q.fds[kind] = min(q.fds[kind], next.fds[kind])
		}
		q.goroutines = min(q.goroutines, next.goroutines)
	}
	return q, nil
}

// checkLeaks lets every client end, and wants descriptors and goroutines back where they were before the first one came.
func (c *chaos) checkLeaks() error {
	c.fleet.Pause()
	defer c.fleet.Resume()
	var q quiet
	err := within(max(c.o.patience, 30*time.Second), "a quiet machine is as it was", func() (err error) {
		if q, err = c.measure(); err != nil {
			return err
		}
		return q.more(c.start)
	})
	if err != nil {
		fds, _ := c.m.fds()
		c.judge.Violate("something is kept", "%v; descriptors: %v", err, fds)
	}
	c.m.before = slices.DeleteFunc(c.m.before, c.m.gone)
	c.quiets = append(c.quiets, q)
	first := c.quiets[0].rss
	if limit := first + first/2 + 32<<20; !c.o.race && q.rss > limit {
		c.judge.Violate("memory grows", "%v; the first time %v", q, c.quiets[0])
	}
	return nil
}
