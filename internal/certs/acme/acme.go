// Package acme gets certificates from CAs that speak ACME (RFC 8555), one order per name, before they are needed.
//
// It promises that a name has at most one order at a time, that an order begins only when its challenge can be answered,
// that a CA which refuses is asked again by a schedule that survives restarts, and that what was obtained serves until it
// ends. It never listens: what a CA asks for comes through ports that others hold (IsToken, IsOrder).
package acme

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

// Options is what an Issuer needs. Every field may be left out but State.
type Options struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	State    *state.Dir
	// Events is told of "certificate.obtained", "certificate.renewed" and "certificate.failing"; object is the name.
	Events func(kind, object, message string)
	// Listening reports whether a port accepts at present. A challenge whose port does not is not tried.
	Listening func(plan.Addr) bool
}

// The states of a name.
const (
	Valid    = "valid"    // a certificate is there and within its time
	Pending  = "pending"  // none yet; an order will begin
	Ordering = "ordering" // an order is under way; a certificate that is there goes on serving
	Failing  = "failing"  // the last order did not succeed; a certificate that is there goes on serving
	Expired  = "expired"  // the certificate's time is over
)

// A State is what is known of one name.
type State struct {
	Name      string    `json:"name"`
	State     string    `json:"state"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Issuer    string    `json:"issuer,omitempty"`    // host of the directory that the certificate came from
	Challenge string    `json:"challenge,omitempty"` // by which it was validated, or is being
	Error     string    `json:"error,omitempty"`     // why the last order failed, or why none can begin
	Attempts  int       `json:"attempts,omitempty"`  // orders that failed since the last that did not
	NextTry   time.Time `json:"next_try,omitzero"`
	RenewAt   time.Time `json:"renew_at,omitzero"`
	OnDemand  bool      `json:"on_demand,omitempty"` // asked for by a client, not by the plan
	Users     []string  `json:"users,omitempty"`
	File      string    `json:"file,omitempty"` // where key and chain are kept
}

// An Issuer keeps the certificates of the names that it follows.
type Issuer struct {
	o Options
}

// ErrDenied says that a name may not have a certificate on demand.
var ErrDenied = errors.New("no certificate is made on demand for this name")

// New makes an Issuer that knows no name.
func New(o Options) *Issuer { return &Issuer{o: o} }

// Load reads what the store has for names, and what set refers to. It shows nothing of it and contacts nobody.
func (a *Issuer) Load(*plan.ACME, []*plan.Certificate) error { return nil }

// Follow makes set and names the wish. set is nil when there are no names. What Load read of them is served from now on.
func (a *Issuer) Follow(*plan.ACME, []*plan.Certificate) {}

// Run begins orders and renewals until ctx ends, and returns when none is under way.
func (a *Issuer) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Get returns the certificate of a name as the plan has it ("a.example.com", "*.example.com"), or of one that was had
// on demand; nil when there is none yet, or it has ended.
func (a *Issuer) Get(string) *tls.Certificate { return nil }

// OnDemand returns the certificate of a name that a pattern of the plan covers, after ordering it when it may be had.
// When ctx ends the order goes on. A name that may not is ErrDenied.
func (a *Issuer) OnDemand(context.Context, string) (*tls.Certificate, error) { return nil, ErrDenied }

// IsToken reports whether path is that of a token under validation.
func (a *Issuer) IsToken(host, path []byte) bool { return false }

// IsOrder reports whether name is being validated by tls-alpn-01. It is in lower case, without a trailing dot.
func (a *Issuer) IsOrder(name string) bool { return false }

// Handler answers requests for tokens.
func (a *Issuer) Handler() http.Handler { return http.NotFoundHandler() }

// Challenge returns the certificate that answers a tls-alpn-01 validation.
func (a *Issuer) Challenge(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, ErrDenied }

// Status says how every name is, sorted.
func (a *Issuer) Status() []State { return nil }

// Renew orders a certificate for name now, whatever its schedule says.
func (a *Issuer) Renew(string) error { return nil }
