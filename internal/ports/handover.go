package ports

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// A Socket is one live socket, for the process that takes our place.
type Socket struct {
	Want    plan.Addr `json:"want"` // as the plan, or the setting of Source, has it
	Addr    plan.Addr `json:"addr"` // as bound
	Name    string    `json:"name,omitempty"`
	Systemd bool      `json:"systemd,omitempty"`
	FD      int       `json:"-"` // a copy that the receiver of the list closes; close-on-exec
}

// Sockets copies the descriptors of every socket we hold: those of the plan, of admin and metrics, and those of systemd
// that nobody uses.
func (ps *Ports) Sockets() ([]Socket, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var out []Socket
	add := func(want plan.Addr, s *socket) error {
		fd, err := s.Copy()
		if err != nil {
			closeAll(out)
			return fmt.Errorf("copy the socket of port %s: %w", want, err)
		}
		out = append(out, Socket{Want: want, Addr: s.Addr, Name: s.Name, Systemd: s.Kept, FD: fd})
		return nil
	}
	for _, p := range ps.sorted() {
		for _, s := range p.socks {
			if err := add(p.plan.Addr, s); err != nil {
				return nil, err
			}
		}
	}
	for _, o := range ps.own {
		if err := add(o.socket.Addr, o.socket); err != nil {
			return nil, err
		}
	}
	for _, s := range ps.idle {
		if err := add(s.Addr, s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func closeAll(list []Socket) {
	for _, s := range list {
		_ = unix.Close(s.FD)
	}
}

// A HandOver gives every socket to a successor. While there is one, no port changes; it ends with Resume or Finish.
type HandOver struct {
	Sockets []Socket // for the successor; closed by Close

	ps     *Ports
	parked []*socket
}

// HandOver begins one. Everything still accepts.
func (ps *Ports) HandOver(ctx context.Context) (*HandOver, error) {
	if err := ps.lock(ctx); err != nil {
		return nil, err
	}
	ps.mu.Lock()
	stopped := ps.stopped
	ps.mu.Unlock()
	if stopped {
		ps.unlock()
		return nil, errStopped
	}
	sockets, err := ps.Sockets()
	if err != nil {
		ps.unlock()
		return nil, err
	}
	return &HandOver{Sockets: sockets, ps: ps}, nil
}

// Close closes the copies of the descriptors, once they have been sent.
func (h *HandOver) Close() {
	closeAll(h.Sockets)
	h.Sockets = nil
}

// Pause makes nobody accept. When it returns no connection is taken any more; new ones wait in the kernel.
func (h *HandOver) Pause() {
	h.ps.gate.shut()
	h.ps.mu.Lock()
	for _, p := range h.ps.sorted() {
		h.parked = append(h.parked, p.socks...)
	}
	own := slices.Clone(h.ps.own)
	h.ps.mu.Unlock()
	for _, s := range h.parked {
		s.Stop(listen.Park)
	}
	for _, o := range own {
		o.rest()
	}
	for _, s := range h.parked {
		<-s.Stop(listen.Park)
	}
}

// Resume goes on as if there had been no hand-over. A socket that ended meanwhile, with the daemon, stays ended.
func (h *HandOver) Resume() {
	defer h.ps.unlock()
	h.ps.mu.Lock()
	defer h.ps.mu.Unlock()
	if h.ps.stopped {
		return
	}
	for _, s := range h.parked {
		h.ps.run(s)
	}
	for _, o := range h.ps.own {
		_ = o.SetDeadline(time.Time{})
	}
	h.ps.gate.open()
}

// Finish closes our descriptors after Pause: the successor has its own and accepts. What is in declined it had no use for;
// those queues are served here before they close. Nothing can be bound from here on.
func (h *HandOver) Finish(declined []plan.Addr, pid int) {
	ps := h.ps
	defer ps.unlock()
	ps.mu.Lock()
	ps.stopped = true
	gone, own := ps.sorted(), ps.own
	clear(ps.ports)
	ps.own = nil
	ps.mu.Unlock()
	for _, p := range gone {
		for _, s := range p.socks {
			if slices.Contains(declined, s.Addr) && !s.Kept {
				ps.run(s)
				<-s.Stop(listen.Retire)
				ps.emit(p.released(time.Now()))
				continue
			}
			s.Release()
			ps.opt.Log.Info("port handed over", "port", p.plan.Addr.String(), "address", s.Addr.String(), "state", string(p.state),
				"before", len(p.plan.Users), "after", len(p.plan.Users), "to", pid)
		}
	}
	for _, o := range own {
		if slices.Contains(declined, o.socket.Addr) {
			o.socket.Stop(listen.Drop)
		} else {
			o.socket.Release()
		}
	}
	ps.index()
}

// Decline closes the sockets of a predecessor that neither the prepared plan nor admin and metrics have a use for, and
// returns what they were bound to. It is called between Prepare and Commit.
func (ps *Ports) Decline() []plan.Addr {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var out []plan.Addr
	ps.idle = slices.DeleteFunc(ps.idle, func(s *socket) bool {
		if !s.Given || s.Kept || s.claimed {
			return false
		}
		out = append(out, s.Addr)
		s.Release()
		return true
	})
	return out
}

// keepAll makes what a predecessor gave ours; mu is held. The first Commit comes after the predecessor has let go.
func (ps *Ports) keepAll() {
	for _, o := range ps.own {
		o.socket.Keep()
	}
	for _, s := range ps.idle { // those that ports have taken are still among them
		s.Keep()
	}
}

// Admit lets admin and metrics accept; until then, with Options.Held, clients wait in the kernel.
func (ps *Ports) Admit() { ps.gate.open() }

// A gate is open or shut. The zero value is open.
type gate struct {
	mu   sync.Mutex    // guards what follows
	wait chan struct{} // closed when it opens; nil: it is open
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wait == nil {
		g.wait = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wait != nil {
		close(g.wait)
		g.wait = nil
	}
}

// closed is nil while the gate is open, else it is closed when it opens.
func (g *gate) closed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.wait
}
