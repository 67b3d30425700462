package ports

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// A Holder is a process that listens on a port.
type Holder = holder.Holder

// Who lists the processes that listen on a port, from the kernel's table of sockets; proto is "tcp", "udp", or "" for
// both. The error says which command can tell where this process cannot look.
func Who(proto string, port uint16) ([]Holder, error) {
	var look holder.Look
	match := func(a netip.AddrPort) bool { return a.Port() == port }
	var all []Holder
	for _, p := range []struct {
		proto string
		find  func(func(netip.AddrPort) bool) ([]Holder, error)
	}{{"tcp", look.TCP}, {"udp", look.UDP}} {
		if proto != "" && proto != p.proto {
			continue
		}
		found, err := p.find(match)
		if err != nil {
			return nil, fmt.Errorf("%w; this can tell: %s", err, asRoot(holder.Command(p.proto, port)))
		}
		all = append(all, found...)
	}
	return all, nil
}

// look is one look at the host for a whole round of attempts: it starts from the holders that the last one found.
func (ps *Ports) look() *holder.Look {
	known := make(map[uint64]*Holder)
	for _, p := range ps.ports {
		if p.err != nil && p.err.Holder != nil && p.err.Holder.Inode != 0 {
			known[p.err.Holder.Inode] = p.err.Holder
		}
	}
	return &holder.Look{Known: known}
}

// explain finds out who holds the ports that are in use, all in one go, and counts the failures.
// What was got on a fallback failed before.
func (ps *Ports) explain(look *holder.Look, got map[*port]grip, busy map[*port]*BindError) {
	failed := maps.Clone(busy)
	for p, g := range got {
		if g.why != nil {
			failed[p] = g.why
		}
	}
	nameless := false
	for p, e := range failed {
		e.find(look)
		nameless = nameless || e.nameless()
		ps.metrics.failed(p.plan.Addr, e.Kind)
	}
	if !nameless || ps.opt.Published == nil {
		return
	}
	published := ps.askPublished()
	for _, e := range failed {
		if e.nameless() {
			e.Holder.Publishes(published[e.Holder.Addr.Port()])
		}
	}
}

// lookUp finds the holder of one address by a look of its own.
func (e *BindError) lookUp() { e.find(&holder.Look{}) }

// find looks for the holder, unless that was done.
func (e *BindError) find(look *holder.Look) {
	if e.Kind != InUse || e.looked {
		return
	}
	match := func(a netip.AddrPort) bool { return a.Port() == e.Addr.Port }
	switch e.Proto {
	case "tcp":
		e.blame(look.TCP(match))
		if e.Holder == nil && e.blind == nil {
			e.client = look.Client(e.Addr.Port)
		}
	case "udp":
		e.blame(look.UDP(match))
	default:
		holders, err := look.Unix(e.Addr.Path)
		e.looked, e.blind = true, err
		if len(holders) > 0 {
			e.name(&holders[0])
		}
	}
}

// nameless reports whether a container stands in the way of which the host shows no name.
func (e *BindError) nameless() bool { return e.Holder != nil && e.Holder.Nameless() }

// blame picks the holder that stands in the way of e.
func (e *BindError) blame(holders []Holder, err error) {
	e.looked, e.blind = true, err
	var best *Holder
	for i := range holders {
		h := &holders[i]
		is := plan.TCPAddr(h.Addr.Addr(), h.Addr.Port())
		is.Network = e.Addr.Network
		if is.IP.Is6() && is.IP.IsUnspecified() {
			is.Family, is.IP = plan.Dual, netip.Addr{} // may be dual: the table does not tell
		}
		if e.Addr.Overlaps(is) && (best == nil || is == e.Addr) {
			best = h
		}
	}
	if best != nil {
		e.name(best)
	}
}

// name makes h the holder. A listener of ours that is in no plan, and so was not found before the bind, is our own too.
func (e *BindError) name(h *Holder) {
	e.Holder = h
	if h.Pid == os.Getpid() {
		e.Kind, e.owner = Own, "another purpose"
	}
}

// foreign is a process that listens on a or an overlapping address and does not run our program; nil when there is none.
// The error says that nobody can tell.
func foreign(look *holder.Look, a plan.Addr) (*Holder, error) {
	holders, err := look.TCP(func(l netip.AddrPort) bool { return l.Port() == a.Port && a.Port != 0 })
	if err != nil {
		return nil, err
	}
	holders = slices.DeleteFunc(holders, func(h Holder) bool { return ours(&h) })
	e := &BindError{Addr: a}
	e.blame(holders, nil)
	return e.Holder, nil
}
