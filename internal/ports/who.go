package ports

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// A Holder is a process that listens on a port.
type Holder = holder.Holder

// Who lists the processes that listen on a TCP port, from the kernel's table of listening sockets; proto is "tcp". The
// error says which command can tell where this process cannot look.
func Who(proto string, port uint16) ([]Holder, error) {
	if proto != "tcp" {
		return nil, fmt.Errorf("holders of %s ports cannot be looked up in this version; try: lsof -nP -i%s:%d", proto, strings.ToUpper(proto), port)
	}
	return holder.Find(func(a netip.AddrPort) bool { return a.Port() == port }, nil)
}

// explain finds out who holds the ports that are in use, all in one go, and counts the failures.
// What was got on a fallback failed before.
func (ps *Ports) explain(got map[*port]grip, busy map[*port]*BindError) {
	failed := maps.Clone(busy)
	for p, g := range got {
		if g.why != nil {
			failed[p] = g.why
		}
	}
	wanted := make(map[uint16]bool)
	known := make(map[uint64]*Holder)
	for p, e := range failed {
		if p.err != nil && p.err.Holder != nil {
			known[p.err.Holder.Inode] = p.err.Holder
		}
		if e.dark() && e.Proto == "tcp" {
			wanted[e.Addr.Port] = true
		}
	}
	var holders []Holder
	var err error
	if len(wanted) > 0 {
		holders, err = holder.Find(func(a netip.AddrPort) bool { return wanted[a.Port()] }, known)
	}
	for p, e := range failed {
		switch {
		case e.dark() && e.Proto == "tcp":
			e.blame(holders, err)
		case e.dark():
			e.lookUp()
		}
		ps.metrics.failed(p.plan.Addr, e.Kind)
	}
}

// dark reports whether e's holder has yet to be looked for.
func (e *BindError) dark() bool { return e.Kind == InUse && !e.looked }

// lookUp finds the holder of one address.
func (e *BindError) lookUp() {
	if !e.dark() {
		return
	}
	if e.Proto == "tcp" {
		e.blame(Who("tcp", e.Addr.Port))
		return
	}
	holders, err := holder.FindUnix(e.Addr.Path)
	e.looked, e.blind = true, err
	if len(holders) > 0 {
		e.name(&holders[0])
	}
}

// blame picks the holder that stands in the way of e.
func (e *BindError) blame(holders []Holder, err error) {
	e.looked, e.blind = true, err
	var best *Holder
	for i := range holders {
		h := &holders[i]
		is := plan.TCPAddr(h.Addr.Addr(), h.Addr.Port())
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
func foreign(a plan.Addr) (*Holder, error) {
	holders, err := holder.Find(func(l netip.AddrPort) bool { return l.Port() == a.Port && a.Port != 0 }, nil)
	if err != nil {
		return nil, err
	}
	holders = slices.DeleteFunc(holders, func(h Holder) bool { return ours(&h) })
	e := &BindError{Addr: a}
	e.blame(holders, nil)
	return e.Holder, nil
}
