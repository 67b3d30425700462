package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/certs"
	"github.com/quaymaster/quaymaster/internal/certs/ca"
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

// restWithin bounds how long an order under way may take to give up.
const restWithin = 10 * time.Second

// restCerts stops orders and renewals, which the new process is to make, until rest is called.
func (d *Daemon) restCerts(ctx context.Context) (rest func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, restWithin)
	defer cancel()
	if rest, err = d.certs.Suspend(ctx); err != nil {
		return func() {}, err
	}
	return rest, nil
}

// certView shows the certificates.
type certView Daemon

// Certificates lists every one that the plan wants.
func (v *certView) Certificates() []api.Certificate {
	list := v.certs.Status()
	out := make([]api.Certificate, 0, len(list))
	for i := range list {
		out = append(out, apiCertificate(&list[i]))
	}
	return out
}

// Renew makes or orders one anew, and shows what became of it so far.
func (v *certView) Renew(_ context.Context, name string) (*api.Certificate, error) {
	err := v.certs.Renew(name)
	switch {
	case errors.Is(err, certs.ErrNone):
		return nil, &api.Problem{Title: "No such certificate", Status: http.StatusNotFound, Detail: err.Error() + "; \"quaymaster certs\" lists those there are"}
	case err != nil:
		return nil, &api.Problem{Type: api.Unavailable, Title: "The certificate could not be renewed", Status: http.StatusConflict, Detail: err.Error()}
	}
	for _, s := range v.certs.Status() {
		if s.Has(name) {
			c := apiCertificate(&s)
			return &c, nil
		}
	}
	return &api.Certificate{Name: name, Names: []string{name}, State: "pending", Users: []string{}}, nil
}

// Authority is the local CA.
func (v *certView) Authority() (*api.Authority, error) {
	root, err := v.certs.Root()
	if err != nil {
		return nil, &api.Problem{Title: "No local CA", Status: http.StatusNotFound, Detail: err.Error()}
	}
	return &api.Authority{Root: string(certs.PEM(root)), Name: root.Subject.CommonName, Fingerprint: ca.Fingerprint(root), NotAfter: root.NotAfter}, nil
}

func apiCertificate(s *certs.Status) api.Certificate {
	return api.Certificate{
		Name: s.Name, Names: some(s.Names), Source: string(s.Source), State: s.State, NotBefore: when(s.NotBefore), NotAfter: when(s.NotAfter),
		Issuer: s.Issuer, Challenge: s.Challenge, Error: s.Error, Warning: s.Warning, Attempts: s.Attempts, NextTry: when(s.NextTry),
		RenewAt: when(s.RenewAt), OnDemand: s.OnDemand, Users: some(s.Users), File: s.File, OCSP: s.OCSP,
	}
}

// some is a list that JSON never shows as null.
func some(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// when is a time, or nil for the zero time.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// certTroubles are the certificates that are not as the plan wants them.
func (d *Daemon) certTroubles() []api.Trouble {
	var out []api.Trouble
	for _, p := range d.certs.Problems() {
		out = append(out, api.Trouble{Kind: "certificate", Object: p.Object, Message: p.Message, Remedy: p.Remedy})
	}
	return out
}
