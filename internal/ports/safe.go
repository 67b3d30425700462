package ports

import (
	"slices"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// A Safe keeps copies of the plan's sockets for the process that follows if this one dies. Its methods do not wait.
type Safe interface {
	Store(a plan.Addr, fd int) // of the socket bound to a; fd stays ours
	Forget(a plan.Addr)
}

// secure gives the safe what the ports have, and takes out of it what they no longer have. Sockets of systemd are safe
// already. The right to change is held.
func (ps *Ports) secure() {
	if ps.opt.Safe == nil {
		return
	}
	now := make(map[plan.Addr]*socket)
	ps.mu.Lock()
	for _, p := range ps.ports {
		for _, s := range p.socks {
			if !s.Kept {
				now[s.Addr] = s
			}
		}
	}
	ps.mu.Unlock()
	for a := range ps.safe {
		if now[a] == nil {
			ps.opt.Safe.Forget(a)
		}
	}
	for a, s := range now {
		was := ps.safe[a]
		if was == s {
			continue
		}
		if was != nil {
			ps.opt.Safe.Forget(a)
		}
		s.Descriptor(func(fd int) { ps.opt.Safe.Store(a, fd) })
	}
	ps.safe = now
}

// unclaimed takes what came out of the safe and no port wants off the idle sockets, for Retire to close. mu is held.
func (ps *Ports) unclaimed() []*socket {
	var out []*socket
	ps.idle = slices.DeleteFunc(ps.idle, func(s *socket) bool {
		if s.Stored && !s.claimed {
			out = append(out, s)
			return true
		}
		return false
	})
	return out
}

// discardStored closes them, and the safe's copies. The right to change is held.
func (ps *Ports) discardStored(list []*socket) {
	for _, s := range list {
		if _, ok := ps.safe[s.Addr]; !ok && ps.opt.Safe != nil {
			ps.opt.Safe.Forget(s.Addr)
		}
		s.Stop(listen.Drop)
		ps.opt.Log.Info("port of a process that died is not wanted any more", "address", s.Addr.String())
	}
}

// Stuck lists the addresses on which connections wait that nobody has taken since the last call. It is for one caller.
func (ps *Ports) Stuck() []plan.Addr {
	ps.mu.Lock()
	var socks []*socket
	for _, p := range ps.ports {
		socks = append(socks, p.socks...)
	}
	ps.mu.Unlock()
	var out []plan.Addr
	seen := make(map[*socket]uint64)
	for _, s := range socks {
		n, waits := s.Turns()
		if !waits {
			continue
		}
		if was, ok := ps.waits[s]; ok && was == n {
			out = append(out, s.Addr)
		}
		seen[s] = n
	}
	ps.waits = seen
	slices.SortFunc(out, plan.Addr.Compare)
	return out
}
