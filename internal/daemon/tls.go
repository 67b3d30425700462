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
