package leases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// retryEvery is the pause between two attempts to have a busy port, or to write what could not be written.
const retryEvery = 2 * time.Second

// Run tries again what could not be had, until ctx ends. It then lets go of every port, without giving any back.
func (ls *Leases) Run(ctx context.Context) error {
	timer := time.NewTimer(retryEvery)
	defer timer.Stop()
	for {
		tick := timer.C
		if !ls.pending() {
			tick = nil
		}
		timer.Reset(retryEvery)
		select {
		case <-ctx.Done():
			ls.close()
			return nil
		case <-ls.wake:
		case <-tick:
			ls.retry(ctx)
		}
	}
}

// pending reports whether there is something to try again.
func (ls *Leases) pending() bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.refuse != nil {
		return false
	}
	for _, l := range ls.byPort {
		if l.state == Busy {
			return true
		}
	}
	return ls.dirty
}

func (ls *Leases) retry(ctx context.Context) {
	ls.flush()
	if ls.lock(ctx) != nil {
		return
	}
	defer ls.unlock()
	for _, l := range ls.list() {
		if l.State() == Busy && ctx.Err() == nil {
			_ = l.take() // still busy: it says so where the lease is listed
		}
	}
}

// close lets go of every port.
func (ls *Leases) close() {
	ls.change <- struct{}{}
	defer ls.unlock()
	ls.flush()
	ls.mu.Lock()
	ls.refuse = errClosed
	var over []io.Closer
	for _, l := range ls.byPort {
		over = append(over, l.probe)
		l.probe = nil
	}
	ls.mu.Unlock()
	closeAll(over)
}

var errClosed = errors.New("ports are not leased any more: the daemon is stopping")

// list is every lease, by port.
func (ls *Leases) list() []*Lease {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	out := make([]*Lease, 0, len(ls.byPort))
	for _, port := range slices.Sorted(maps.Keys(ls.byPort)) {
		out = append(out, ls.byPort[port])
	}
	return out
}

// A step is one plan on its way in.
type step struct {
	ls    *Leases
	ports plan.PortRange
	avoid map[uint16]string // of this plan
	was   map[uint16]string // of the plan before
	first bool
}

// Prepare keeps leases away from the ports of p. A port of p that is leased refuses the plan; in the first plan it ends
// the lease instead, so that a host that was started serves. The first plan also brings the leases of the file back: each
// is held again if its port is free. Leases outside of the range of p stay until they are released.
func (ls *Leases) Prepare(ctx context.Context, p *plan.Plan) (plan.Step, error) {
	select {
	case ls.change <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer ls.unlock()
	wanted, spare := portsOf(p)
	ls.mu.Lock()
	t := &step{ls: ls, ports: p.Settings.AppPorts, avoid: maps.Clone(spare), was: ls.avoid, first: !ls.ready}
	maps.Copy(t.avoid, wanted)
	ls.mu.Unlock()
	if t.first {
		ls.recover(wanted)
	} else if err := ls.clash(wanted); err != nil {
		return nil, err
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	both := maps.Clone(t.avoid)
	maps.Copy(both, t.was)
	ls.avoid, ls.ready = both, true
	if t.first {
		ls.ports = t.ports // there is none before; somebody may ask as soon as the first plan is prepared
	}
	return t, nil
}

// Commit makes the new range the one that is leased from.
func (t *step) Commit() {
	ls := t.ls
	ls.mu.Lock()
	changed := t.first || ls.ports != t.ports
	ls.avoid, ls.ports = t.avoid, t.ports
	ls.mu.Unlock()
	if !changed {
		return
	}
	warnEphemeral(ls, t.ports)
	for _, l := range ls.list() {
		if !t.ports.Has(l.port) {
			ls.opt.Log.Warn("lease outside of app_ports stays until it is released", "app", l.name, "port", l.port, "app_ports", t.ports.String())
		}
	}
}

// Retire writes down what the first plan has ended.
func (t *step) Retire() { t.ls.flush() }

// Abort gives the ports of the refused plan back to the leases.
func (t *step) Abort() {
	t.ls.mu.Lock()
	defer t.ls.mu.Unlock()
	t.ls.avoid = t.was
}

// portsOf lists the TCP ports that a plan binds, and those it would fall back to, with what they are for.
func portsOf(p *plan.Plan) (wanted, spare map[uint16]string) {
	wanted, spare = make(map[uint16]string), make(map[uint16]string)
	for _, port := range p.Ports {
		user := "a listener"
		if len(port.Users) > 0 {
			user = port.Users[0]
		}
		if a := port.Addr; a.Network == plan.TCP && a.Port != 0 {
			wanted[a.Port] = "the port of " + user
		}
		for _, a := range port.Fallback {
			if a.Network == plan.TCP && a.Port != 0 {
				spare[a.Port] = "a fallback of " + user
			}
		}
	}
	for what, address := range map[string]string{"metrics.address": p.Settings.Metrics.Address, "admin.address": p.Settings.Admin.Address} {
		if _, port, err := net.SplitHostPort(address); err == nil {
			if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
				wanted[uint16(n)] = what
			}
		}
	}
	return wanted, spare
}

// clash says which lease stands in the way of a plan.
func (ls *Leases) clash(wanted map[uint16]string) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, port := range slices.Sorted(maps.Keys(wanted)) {
		if l := ls.byPort[port]; l != nil {
			return fmt.Errorf("cannot use port %d as %s: it is leased to %s; give it back with \"quaymaster ports release %s\", or choose another port",
				port, wanted[port], l.name, l.name)
		}
	}
	return nil
}

// recover brings back the leases of the file; the right to change is held.
func (ls *Leases) recover(wanted map[uint16]string) {
	records, err := ls.read()
	if err != nil {
		ls.opt.Log.Error("leases", "err", err)
		if unsafe := (*unsafeError)(nil); errors.As(err, &unsafe) {
			ls.mu.Lock()
			ls.refuse = err
			ls.mu.Unlock()
		}
	}
	for _, r := range records {
		l := &Lease{ls: ls, name: r.Name, port: r.Port, promised: r.Promised, state: Promised, since: r.Since}
		ls.mu.Lock()
		other := ls.byPort[r.Port]
		if other == nil {
			other = ls.byName[r.Name]
		}
		use := wanted[r.Port]
		ok := checkName(r.Name) == nil && r.Port != 0 && other == nil && use == ""
		if ok {
			ls.byPort[r.Port], ls.byName[r.Name] = l, l
		} else {
			ls.dirty = true
		}
		ls.mu.Unlock()
		switch {
		case use != "":
			ls.opt.Log.Warn("lease ended: the configuration wants its port", "app", r.Name, "port", r.Port, "for", use)
		case !ok:
			ls.opt.Log.Warn("lease ended: its name or port is not valid, or is another's", "app", r.Name, "port", r.Port)
		case l.promised:
			ls.announce(l)
		case ls.opt.Runs != nil && ls.opt.Runs(l.name, l.port):
			ls.mu.Lock()
			l.to(InUse, nil)
			l.given = true
			ls.mu.Unlock()
			ls.announce(l)
		case l.take() == nil:
			ls.announce(l)
		}
	}
}

// announce tells of a lease that was brought back.
func (ls *Leases) announce(l *Lease) {
	ls.mu.Lock()
	ls.note(l, "")
	ls.mu.Unlock()
	ls.tell()
}

// warnEphemeral warns of ports that the kernel gives to outgoing connections.
func warnEphemeral(ls *Leases, r plan.PortRange) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return // another system, whose range begins above ours
	}
	f := strings.Fields(string(text))
	if len(f) != 2 {
		return
	}
	lo, err1 := strconv.Atoi(f[0])
	hi, err2 := strconv.Atoi(f[1])
	if err1 != nil || err2 != nil || int(r.Hi) < lo || int(r.Lo) > hi {
		return
	}
	ls.opt.Log.Warn("app_ports overlaps the ephemeral ports: an outgoing connection may take a leased port while its app is down; choose ports below them",
		"app_ports", r.String(), "net.ipv4.ip_local_port_range", f[0]+"-"+f[1])
}
