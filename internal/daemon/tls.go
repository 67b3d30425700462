package daemon

import (
	"bytes"
	"slices"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/route"
)

// claims say which requests and connections are for handlers of our own, so that all others go on to the user's routes.
func (d *Daemon) claims() route.Claims {
	return route.Claims{
		Request: map[string]func(*route.Request) bool{
			plan.HTTPChallenge: func(q *route.Request) bool {
				path, _, _ := bytes.Cut(q.Target, []byte("?"))
				return d.certs.IsToken(q.Host, path)
			},
		},
		Conn: map[string]func(*route.ConnQuery) bool{
			plan.ALPNChallenge: func(q *route.ConnQuery) bool {
				return slices.Contains(q.ALPN, plan.ALPNProtocol) && d.certs.IsOrder(q.Name)
			},
		},
	}
}

// resumeTickets takes over the secrets of the process before. Without them its clients make full handshakes.
func (d *Daemon) resumeTickets() {
	if d.heir == nil || d.heir.from.Tickets == nil {
		return
	}
	if err := d.tickets.Import(d.heir.from.Tickets); err != nil {
		d.log.Warn("sessions of the process before cannot be resumed", "err", err)
	}
	clear(d.heir.from.Tickets)
	d.heir.from.Tickets = nil
}
