package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/apps"
	"github.com/quaymaster/quaymaster/internal/handover"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
	"github.com/quaymaster/quaymaster/internal/state"
)

// What the two processes say to each other, in this order. Old to new: hello with the lock of the state folder, sockets
// as often as there are more, the sockets of apps in the same way, predecessors with the links to those that still drain, all. New to old: prepared, or
// failed. Old to new, which accepts nothing any more: go. New to old: serving. From then on the old one says how many
// connections it has left, until it ends; the new one may say stop. The old one says main when the service manager, if
// there is one, has taken note of the new one.
const (
	sayHello    = "hello"
	saySockets  = "sockets"
	sayApps     = "apps"
	sayBefore   = "predecessors"
	sayAll      = "all"
	sayPrepared = "prepared"
	sayFailed   = "failed"
	sayGo       = "go"
	sayServing  = "serving"
	sayLeft     = "left"
	sayStop     = "stop"
	sayMain     = "main"
)

// protocol is the version of that conversation; another one is refused.
const protocol = 1

const (
	tellWithin = 10 * time.Second // for what the old process sends at once
	goWithin   = 45 * time.Second // for go, which comes when every part of the old process has stopped accepting
)

type hello struct {
	Protocol int    `json:"protocol"`
	PID      int    `json:"pid"`
	Version  string `json:"version"`
	Tickets  []byte `json:"tickets,omitempty"` // secrets of TLS sessions, so that clients of the old process resume here
}

type prepared struct {
	Declined []plan.Addr `json:"declined"` // sockets that are not wanted any more: the old process serves their queues
}

type failed struct {
	Error string `json:"error"`
}

type left struct {
	Connections int `json:"connections"`
}

// A bequest is what the old process gave to the new one.
type bequest struct {
	link    *handover.Link
	from    hello
	lock    int // of the state folder; -1: none
	sockets []listen.Inherited
	apps    []apps.Socket
	before  []*predecessor // processes that were replaced earlier and still drain
}

// receive takes everything that the old process sends before the new one prepares. What was received is closed with the
// process if that fails.
func receive(link *handover.Link) (*bequest, error) {
	b := &bequest{link: link, lock: -1}
	until := time.Now().Add(tellWithin)
	for {
		m, err := link.Receive(until)
		if err != nil {
			return nil, fmt.Errorf("take over from the running process: %w", err)
		}
		if m.Kind == sayAll {
			return b, nil
		}
		if err := b.take(m); err != nil {
			m.Discard()
			return nil, fmt.Errorf("take over from the running process: %w", err)
		}
	}
}

func (b *bequest) take(m *handover.Message) error {
	switch m.Kind {
	case sayHello:
		if err := m.Into(&b.from); err != nil {
			return err
		}
		if b.from.Protocol != protocol {
			return fmt.Errorf("it is version %s and hands over in another way than this one; stop it and start this one", b.from.Version)
		}
		if len(m.FDs) == 1 {
			b.lock = m.FDs[0]
		}
	case saySockets:
		var list []ports.Socket
		if err := m.Into(&list); err != nil {
			return err
		}
		if len(list) != len(m.FDs) {
			return fmt.Errorf("%d sockets came with %d descriptors", len(list), len(m.FDs))
		}
		for i, s := range list {
			b.sockets = append(b.sockets, listen.Inherited{Name: s.Name, FD: m.FDs[i], Systemd: s.Systemd, Given: true, Want: s.Want})
		}
	case sayApps:
		var list []apps.Socket
		if err := m.Into(&list); err != nil {
			return err
		}
		if len(list) != len(m.FDs) {
			return fmt.Errorf("%d sockets of apps came with %d descriptors", len(list), len(m.FDs))
		}
		for i, s := range list {
			s.FD = m.FDs[i]
			b.apps = append(b.apps, s)
		}
	case sayBefore:
		var pids []int
		if err := m.Into(&pids); err != nil {
			return err
		}
		for i, fd := range m.FDs {
			link, err := handover.Open(fd)
			if err != nil || i >= len(pids) {
				continue // it drains all the same; only its count is not seen
			}
			b.before = append(b.before, &predecessor{pid: pids[i], link: link})
		}
	default:
		return fmt.Errorf("it says %q, which this version does not know", m.Kind)
	}
	return nil
}

// inherit takes over from the process that started this one for an upgrade, if one did.
func (d *Daemon) inherit() error {
	link, err := handover.Inherited()
	if link == nil || err != nil {
		return err
	}
	d.heir, err = receive(link)
	return err
}

// inherited are the sockets that were open when this process started, from its predecessor or from systemd.
func (d *Daemon) inherited() []listen.Inherited {
	if d.heir != nil {
		return d.heir.sockets
	}
	var out []listen.Inherited
	for _, s := range d.service.sockets {
		out = append(out, listen.Inherited{Name: s.Name, FD: s.FD, Systemd: !s.Stored, Stored: s.Stored})
	}
	return out
}

// openState opens the state folder, with the lock of the process before where there is one.
func (d *Daemon) openState(dir string) (err error) {
	if d.heir != nil && d.heir.lock >= 0 {
		d.state, err = state.Take(dir, d.heir.lock)
		return err
	}
	d.state, err = state.Open(dir)
	return err
}

// ready is asked when the first plan is prepared. A successor says so, and goes on when the old process accepts nothing
// any more.
func (d *Daemon) ready() error {
	if d.heir == nil {
		return nil
	}
	if err := d.heir.link.Send(sayPrepared, prepared{Declined: d.ports.Decline()}); err != nil {
		return fmt.Errorf("take over from pid %d: %w", d.heir.from.PID, err)
	}
	m, err := d.heir.link.Receive(time.Now().Add(goWithin))
	if err != nil {
		return fmt.Errorf("take over from pid %d: %w; it goes on serving", d.heir.from.PID, err)
	}
	defer m.Discard()
	if m.Kind != sayGo {
		return fmt.Errorf("take over from pid %d: it says %q instead of go", d.heir.from.PID, m.Kind)
	}
	d.state.Claim()
	return nil
}

// takenOver tells the old process that this one serves, and begins to follow what it has left.
func (d *Daemon) takenOver() {
	if d.heir == nil {
		return
	}
	d.ports.Admit()
	d.leases.Regain(d.life, d.apps.Has)
	from := d.heir.from
	if err := d.heir.link.Send(sayServing, nil); err != nil {
		d.log.Warn("the process before ended in the middle of the upgrade", "pid", from.PID, "err", err)
	}
	d.log.Info("took over", "from", from.PID, "from_version", from.Version, "sockets", len(d.heir.sockets))
	d.event("upgrade.taken_over", "", fmt.Sprintf("took over from pid %d", from.PID))
	d.follow(&predecessor{pid: from.PID, link: d.heir.link})
	for _, p := range d.heir.before {
		d.follow(p)
	}
}

// refuse tells the old process why this one does not start.
func (d *Daemon) refuse(err error) {
	if d.heir == nil {
		return
	}
	text := err.Error()
	_ = d.heir.link.Send(sayFailed, failed{Error: text[:min(len(text), 16<<10)]}) // it sees our end in any case
}

// A predecessor is a process that was replaced and still has connections.
type predecessor struct {
	pid   int
	link  *handover.Link
	left  int // connections, as it said last; Daemon.mu guards it
	since time.Time
}

// maxPredecessors bounds those that are followed. More drain as well, unseen.
const maxPredecessors = 16

// follow hears what p says until it ends.
func (d *Daemon) follow(p *predecessor) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.before) >= maxPredecessors {
		_ = p.link.Close()
		return
	}
	p.since = time.Now()
	d.before = append(d.before, p)
	d.work(d.life, "predecessor", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { _ = p.link.Close() })
		defer stop()
		for {
			m, err := p.link.Receive(time.Time{})
			if err != nil {
				d.forget(p, err)
				return nil
			}
			m.Discard()
			if m.Kind == sayMain {
				d.service.Begin()
			}
			var n left
			if m.Kind == sayLeft && m.Into(&n) == nil {
				d.mu.Lock()
				p.left = n.Connections
				d.mu.Unlock()
			}
		}
	})
}

// forget takes p off the list when it has ended.
func (d *Daemon) forget(p *predecessor, err error) {
	_ = p.link.Close()
	if p.link == d.heir.link {
		d.service.Begin() // it can name us no more
	}
	d.mu.Lock()
	d.before = slices.DeleteFunc(d.before, func(o *predecessor) bool { return o == p })
	d.mu.Unlock()
	if errors.Is(err, handover.ErrGone) {
		d.log.Info("the process before has ended", "pid", p.pid)
	}
}

// beforeUs lists the processes that were replaced and still drain.
func (d *Daemon) beforeUs() []*predecessor {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.before)
}

// beforeView shows them.
func (d *Daemon) beforeView() []api.Before {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []api.Before
	for _, p := range d.before {
		out = append(out, api.Before{PID: p.pid, Connections: p.left, Since: p.since})
	}
	return out
}

// stopPredecessors asks them to drain as we do, and waits until they have ended or ctx has.
func (d *Daemon) stopPredecessors(ctx context.Context) {
	for _, p := range d.beforeUs() {
		_ = p.link.Send(sayStop, nil) // one that has ended needs no word
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for len(d.beforeUs()) > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}
