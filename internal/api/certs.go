package api

import (
	"context"
	"net/http"
	"time"
)

// Certificates tells of every certificate that the configuration wants.
type Certificates interface {
	Certificates() []Certificate
	// Renew makes or orders a certificate anew, or reads its files again; it does not wait for an order to end. An error
	// is a *Problem where the name or the files are at fault.
	Renew(ctx context.Context, name string) (*Certificate, error)
	// Authority is the local CA; a *Problem when there is none.
	Authority() (*Authority, error)
}

// Certificate is what clients of a name are shown: an element of GET /v1/certificates and `certs --json`.
type Certificate struct {
	Name      string     `json:"name"`   // the first of Names
	Names     []string   `json:"names"`  // never null
	Source    string     `json:"source"` // auto, internal or files
	State     string     `json:"state"`  // valid, pending, ordering, failing, expired or missing
	NotBefore *time.Time `json:"not_before"`
	NotAfter  *time.Time `json:"not_after"`
	Issuer    string     `json:"issuer"`
	Challenge string     `json:"challenge"` // that proved the name to its CA
	Error     string     `json:"error"`     // a certificate with a not_after goes on serving
	Warning   string     `json:"warning"`
	Attempts  int        `json:"attempts"` // that failed since the last that did not
	NextTry   *time.Time `json:"next_try"`
	RenewAt   *time.Time `json:"renew_at"`
	OnDemand  bool       `json:"on_demand"` // asked for by a client
	Users     []string   `json:"users"`     // who wants it; never null
	File      string     `json:"file"`      // where it is kept
	OCSP      string     `json:"ocsp"`      // what its responder says; empty where it names none
}

// Authority is the local CA, as clients are to trust it.
type Authority struct {
	Root        string    `json:"root"` // PEM
	Name        string    `json:"name"`
	Fingerprint string    `json:"fingerprint"` // SHA-256
	NotAfter    time.Time `json:"not_after"`
}

func (a *API) certificates(w http.ResponseWriter, _ *request) error {
	if a.o.Certificates == nil {
		return missing("a list of certificates")
	}
	return reply(w, http.StatusOK, solid(a.o.Certificates.Certificates()))
}

func (a *API) renew(w http.ResponseWriter, r *request) error {
	if a.o.Certificates == nil {
		return missing("renewing")
	}
	c, err := a.o.Certificates.Renew(r.Context(), r.arg)
	if err != nil {
		return err
	}
	return reply(w, http.StatusAccepted, c)
}

func (a *API) authority(w http.ResponseWriter, _ *request) error {
	if a.o.Certificates == nil {
		return missing("a local CA")
	}
	c, err := a.o.Certificates.Authority()
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, c)
}
