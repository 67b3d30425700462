package daemon

import (
	"net"
	"net/netip"

	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/ports"
)

// serve takes a connection from its port. It starts the connection's goroutine, which the edge waits for when it
// drains.
func (d *Daemon) serve(c net.Conn, l *ports.Listener) { d.edge.Serve(c, l.Plan) }

// isOurs reports whether an address is one of our own listeners: whoever is told to connect there would reach us.
func (d *Daemon) isOurs(a netip.AddrPort) bool { return d.ports.Ours(a) }

// listeningNear says what listens near a target that refused.
func (d *Daemon) listeningNear(a netip.AddrPort) string {
	return d.ports.Listening(a.Addr().String(), a.Port())
}

// dropped counts a connection for which no descriptor was left.
func (d *Daemon) dropped(client netip.AddrPort, l *ports.Listener) {
	d.guard.Reject(guard.NoFD, client.Addr(), l.Want.String(), "")
}

// portEvent tells followers of events what happened to a port, in the words of `notify`.
func (d *Daemon) portEvent(e ports.Event) {
	kind := "port." + string(e.State)
	switch {
	case e.Signal != "":
		kind = "port.take_over"
	case e.State == ports.Retrying:
		kind = "port.held"
	}
	d.event(kind, e.Port.String(), e.Reason)
}
