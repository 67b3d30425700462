package ports

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// A binder gets sockets for ports: from systemd, from a port that goes away, or from the kernel. It lives for one
// change, or one round of the retry loop, and the right to change is held all the while.
type binder struct {
	ps      *Ports
	leaving map[*socket]bool // their ports are not in the new plan: they may be taken over, and bound beside
	used    map[*socket]bool // given to a port by this binder
	opened  []*socket        // bound by this binder
	live    map[numbered][]*socket
	owners  map[*socket]string // who has a socket, for the error
	look    *holder.Look       // the processes are walked once for all that this binder tries
}

type numbered struct {
	network plan.Network
	port    uint16
}

// binder starts from the sockets there are.
func (ps *Ports) binder() *binder {
	b := &binder{
		ps: ps, leaving: make(map[*socket]bool), used: make(map[*socket]bool),
		live: make(map[numbered][]*socket), owners: make(map[*socket]string),
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	b.look = ps.look()
	for _, p := range ps.ports {
		for _, s := range p.socks {
			b.add(s, "port "+p.plan.Addr.String())
		}
	}
	for _, o := range ps.own {
		b.add(o.socket, o.source)
	}
	for _, s := range ps.idle {
		if s.Stored && !s.claimed {
			b.add(s, "the process before")
			b.leaving[s] = true
		}
	}
	return b
}

func (b *binder) add(s *socket, owner string) {
	k := numbered{s.Addr.Network, s.Addr.Port}
	b.live[k] = append(b.live[k], s)
	b.owners[s] = owner
}

// acquire gets what p wants, or the first address of its fallback list that is to be had, unless patient says that the
// port itself is worth waiting for.
func (b *binder) acquire(p *plan.Port, patient func(*BindError) bool) (grip, *BindError) {
	g, err := b.one(p.Addr, p)
	if err == nil || patient != nil && patient(err) || b.ps.opt.Strict {
		return g, err
	}
	for _, a := range p.Fallback {
		if g, second := b.one(a, p); second == nil {
			g.state, g.why = Fallback, err
			return g, nil
		}
	}
	return grip{}, err
}

// one gets the socket, or the sockets of that name, for one address.
func (b *binder) one(a plan.Addr, p *plan.Port) (grip, *BindError) {
	if socks := b.inherited(a); len(socks) > 0 {
		return b.take(stateOf(socks[0]), socks...), nil
	}
	if a.Name != "" {
		return grip{}, b.noSuchName(a)
	}
	var beside []*socket
	for _, s := range b.live[numbered{a.Network, a.Port}] {
		switch {
		case a.Port == 0 && a.Network == plan.TCP || !s.Addr.Overlaps(a):
		case !b.leaving[s] || b.used[s]:
			return grip{}, &BindError{Proto: a.Network.String(), Addr: a, Kind: Own, owner: b.owners[s], Err: unix.EADDRINUSE}
		case s.Addr == a:
			return b.take(stateOf(s), s), nil
		default:
			beside = append(beside, s)
		}
	}
	reuse := p.Policy.ReusePort && a.Network == plan.TCP
	if reuse {
		h, err := foreign(b.look, a)
		if h != nil {
			return grip{}, &BindError{Proto: a.Network.String(), Addr: a, Kind: InUse, Holder: h, looked: true, Err: unix.EADDRINUSE}
		}
		reuse = err == nil // where nobody can tell who shares it, we take it alone; got lets others join
	}
	s, err := bindBeside(a, beside, reuse)
	if err != nil {
		return grip{}, bindError(a, err)
	}
	b.opened = append(b.opened, s)
	b.add(s, "port "+p.Addr.String())
	return b.take(Bound, s), nil
}

func (b *binder) take(state State, socks ...*socket) grip {
	b.ps.mu.Lock()
	defer b.ps.mu.Unlock()
	for _, s := range socks {
		b.used[s], s.claimed = true, true
	}
	return grip{socks: socks, state: state}
}

func stateOf(s *socket) State {
	if s.Kept {
		return Activated
	}
	return Bound
}

// inherited are the sockets of that name or address that were open when we started and that no port uses, or whose
// port is leaving.
func (b *binder) inherited(a plan.Addr) []*socket {
	fits := func(s *socket) bool {
		return !b.used[s] && (a.Name != "" && s.Name == a.Name || a.Name == "" && s.Addr == a || a.Port == 0 && s.Given && s.Want == a)
	}
	b.ps.mu.Lock()
	defer b.ps.mu.Unlock()
	var out []*socket
	for _, s := range b.ps.idle {
		if fits(s) {
			out = append(out, s)
		}
	}
	for s := range b.leaving {
		if s.Name != "" && s.Kept && fits(s) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(x, y *socket) int { return x.Addr.Compare(y.Addr) })
	return out
}

// noSuchName says which names there are.
func (b *binder) noSuchName(a plan.Addr) *BindError {
	b.ps.mu.Lock()
	defer b.ps.mu.Unlock()
	var have []string
	for _, in := range b.ps.opt.Inherited {
		if in.Systemd {
			have = append(have, in.Name)
		}
	}
	slices.Sort(have)
	return &BindError{
		Proto: "tcp", Addr: a, Kind: NoAddress, final: true,
		Err: fmt.Errorf("systemd passed no socket called %s (it passed %s)", a.Name, list(slices.Compact(have), "none")),
	}
}

// bindBeside binds a while sockets of ours that overlap it still listen.
func bindBeside(a plan.Addr, beside []*socket, reuse bool) (*socket, error) {
	others := make([]*listen.Socket, len(beside))
	for i, s := range beside {
		others[i] = s.Socket
	}
	s, err := listen.Bind(a, reuse, others...)
	if err != nil {
		return nil, err
	}
	return newSocket(s), nil
}

// start makes the sockets that this binder gave to ports accept; Ports.mu is held.
func (b *binder) start() {
	b.ps.idle = slices.DeleteFunc(b.ps.idle, func(s *socket) bool {
		if b.used[s] {
			b.ps.run(s)
		}
		return b.used[s]
	})
	for _, s := range b.opened {
		b.ps.run(s)
	}
	b.opened = nil
}

// undo closes what was bound. Clients whom the kernel let in there, and who would have come to a port in force without
// it, are served by that one.
func (b *binder) undo() {
	b.ps.mu.Lock()
	for _, s := range b.opened {
		if b.inTheWay(s) {
			b.ps.run(s)
			s.Stop(listen.Retire)
		} else {
			s.Stop(listen.Drop)
		}
	}
	b.ps.mu.Unlock()
	for _, s := range b.opened {
		<-s.Stop(listen.Retire)
	}
	b.opened = nil
}

// inTheWay makes s ready to pass its clients on to the ports in force that it overlaps, and reports whether there are
// any. mu is held.
func (b *binder) inTheWay(s *socket) bool {
	if b.ps.stopped {
		return false
	}
	var heirs []*Listener
	for _, p := range b.ps.sorted() {
		for _, o := range p.socks {
			if o.Addr.Overlaps(s.Addr) {
				heirs = append(heirs, &Listener{Want: p.plan.Addr, Addr: o.Addr, Plan: p.plan})
			}
		}
	}
	if len(heirs) == 0 {
		return false
	}
	s.as.Store(heirs[0])
	s.heirs.Store(&heirs)
	s.passing = true
	return true
}

// untilDue is how long Run may sleep.
func (ps *Ports) untilDue(now time.Time) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	wait := maxBackoff
	for _, p := range ps.ports {
		if p.state == Retrying {
			wait = min(wait, p.next.Sub(now))
		}
	}
	return max(wait, 0)
}
