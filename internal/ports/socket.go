package ports

import (
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// A socket is a listening socket that belongs to one port at a time.
type socket struct {
	*listen.Socket
	as    atomic.Pointer[Listener]
	heirs atomic.Pointer[[]*Listener] // the ports that take its place while it closes

	claimed bool // of an inherited one: something uses it; Ports.mu guards it
	passing bool // bound for a plan that was refused: it serves its heirs' clients alone; set before it accepts
}

func newSocket(s *listen.Socket) *socket { return &socket{Socket: s} }

// serveAs makes connections from now on belong to p.
func (s *socket) serveAs(p *plan.Port) {
	s.heirs.Store(nil)
	s.as.Store(&Listener{Want: p.Addr, Addr: s.Addr, Plan: p})
}

// accept serves what comes in on s until it is stopped.
func (ps *Ports) accept(s *socket) {
	defer ps.loops.Done()
	s.Accept(&listen.Handler{
		Spare: &ps.spare,
		Take:  func(c net.Conn) { ps.take(c, s.listener(c)) },
		Dropped: func(client netip.AddrPort) {
			if ps.opt.Dropped != nil {
				ps.opt.Dropped(client, s.as.Load())
			}
		},
		Failed: func(msg string, args ...any) {
			ps.opt.Log.Warn(msg, append(args, "port", s.as.Load().Want.String())...)
		},
	})
}

// take hands one connection over.
func (ps *Ports) take(c net.Conn, l *Listener) {
	if ps.opt.Serve == nil || l == nil || ps.opt.Accept != nil && !ps.opt.Accept() {
		c.Close()
		return
	}
	ps.opt.Serve(c, l)
}

// listener is what c came in on: the socket's own port, or the heir that takes c's local address; nil if it is nobody's.
func (s *socket) listener(c net.Conn) *Listener {
	if heirs := s.heirs.Load(); heirs != nil {
		local, _ := c.LocalAddr().(*net.TCPAddr)
		for _, l := range *heirs {
			if local == nil || l.Want.Takes(local.AddrPort().Addr()) {
				return l
			}
		}
		if s.passing {
			return nil
		}
	}
	return s.as.Load()
}
