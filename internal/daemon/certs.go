package daemon

import (
	"log/slog"
	"net/http"

	"github.com/quaymaster/quaymaster/internal/certs"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports"
)

// newCerts wires certificates to the state folder, to the ports and to the events.
func (d *Daemon) newCerts(log *slog.Logger) *certs.Certs {
	return certs.New(certs.Options{
		Log: log, Registry: d.metrics, State: d.state, Events: d.event, Listening: d.accepted,
	})
}

// accepted reports whether connections to that address of the plan are taken by us, whatever socket takes them.
func (d *Daemon) accepted(a plan.Addr) bool {
	for _, p := range d.ports.Status() {
		if p.Proto != "tcp" || p.Port != a.Port || (p.State != ports.Bound && p.State != ports.Activated && p.State != ports.Fallback) {
			continue
		}
		if p.Address == "*" || !a.IP.IsValid() || p.Address == a.IP.String() || p.Address == "0.0.0.0" || p.Address == "::" {
			return true
		}
	}
	return false
}

// internal finds the handler of an Internal action.
func (d *Daemon) internal(name string) http.Handler {
	if name == plan.HTTPChallenge {
		return d.certs.Handler()
	}
	return http.NotFoundHandler()
}
