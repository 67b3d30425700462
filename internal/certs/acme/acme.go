// Package acme gets certificates from CAs that speak ACME (RFC 8555), one order per name, before they are needed.
//
// It promises that a name has at most one order at a time, that an order begins only when its challenge can be answered,
// that a CA which refuses is asked again by a schedule that survives restarts, and that what was obtained serves until
// something better is there. It never listens: what a CA asks for comes through ports that others hold (IsToken, IsOrder).
package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/certs/acme/answer"
	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
	"github.com/quaymaster/quaymaster/internal/certs/acme/demand"
	"github.com/quaymaster/quaymaster/internal/certs/acme/record"
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
	Clock     Clock        // nil = the system's
	Check     record.Check // whether the records of dns-01 are to be seen
	// Staging are directories where an order is tried first once it was refused repeatedly at the one that is the key.
	// nil = Let's Encrypt's.
	Staging map[string]string
}

// A Clock tells the time, and wakes.
type Clock interface {
	Now() time.Time
	// After returns a channel that gets a value once d has passed, and what lets go of it.
	After(d time.Duration) (<-chan time.Time, func() bool)
}

type system struct{}

// Now has no monotonic reading: a clock that was set counts.
func (system) Now() time.Time { return time.Now().Round(0) }

func (system) After(d time.Duration) (<-chan time.Time, func() bool) {
	t := time.NewTimer(d)
	return t.C, t.Stop
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
	o       Options
	answers answer.Table
	gate    *demand.Gate
	store   store
	metrics *metrics
	wake    chan struct{} // holds one: there may be something to do
	up      chan struct{} // closed once Run has begun
	begun   sync.Once     // closes up

	index atomic.Pointer[map[string]*entry] // the entries; never changed

	mu       sync.Mutex // guards what follows, and what entries say it guards
	set      *plan.ACME // nil = nothing is ordered
	patterns []string   // of names on demand
	cas      []*authority.CA
	staging  map[string]*authority.CA // by the directory it stands in for
	provider record.Provider
	roots    roots
	since    time.Time         // when the wish last changed
	stored   time.Time         // when what could not be written was last tried
	loaded   map[string]*entry // by Load, for the Follow to come
	active   int               // jobs under way
	busy     map[string]bool   // their names: also those that were taken out meanwhile
	running  context.Context   // of Run; nil while it does not run
	jobs     sync.WaitGroup
	flights  map[string]*flight // questions for names on demand
}

// roots are the CAs that are trusted to be CAs, besides the system's.
type roots struct {
	file, digest string
	pool         *x509.CertPool
}

// ErrDenied says that a name may not have a certificate on demand.
var ErrDenied = demand.ErrDenied

// ErrUnknown says that no certificate is ordered for a name.
var ErrUnknown = errors.New("no certificate is ordered for this name")

// New makes an Issuer that knows no name.
func New(o Options) *Issuer {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Events == nil {
		o.Events = func(string, string, string) {}
	}
	if o.Listening == nil {
		o.Listening = func(plan.Addr) bool { return true }
	}
	if o.Clock == nil {
		o.Clock = system{}
	}
	if o.Staging == nil {
		o.Staging = map[string]string{letsEncrypt: letsEncryptStaging}
	}
	a := &Issuer{
		o: o, store: folder{o.State}, wake: make(chan struct{}, 1), up: make(chan struct{}), flights: map[string]*flight{}, busy: map[string]bool{},
		gate: demand.New(demand.Options{Log: o.Log, Store: o.State, Now: o.Clock.Now}),
	}
	a.metrics = newMetrics(o.Registry, func() float64 { return float64(a.answers.Len()) })
	a.index.Store(&map[string]*entry{})
	return a
}

const (
	letsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	letsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

// Get returns the certificate of a name as the plan has it ("a.example.com", "*.example.com"), or of one that was had
// on demand; nil when there is none yet. One whose time is over is better than none: it is returned, too.
func (a *Issuer) Get(name string) *tls.Certificate {
	e := (*a.index.Load())[name]
	if e == nil {
		return nil
	}
	if e.demand && !e.used.Load() {
		e.used.Store(true)
	}
	return e.cert.Load()
}

// IsToken reports whether path is that of a token under validation.
func (a *Issuer) IsToken(_, path []byte) bool { return a.answers.IsToken(path) }

// IsOrder reports whether name is being validated by tls-alpn-01. It is in lower case, without a trailing dot.
func (a *Issuer) IsOrder(name string) bool { return a.answers.IsOrder(name) }

// Handler answers requests for tokens.
func (a *Issuer) Handler() http.Handler { return &a.answers }

// Challenge returns the certificate that answers a tls-alpn-01 validation.
func (a *Issuer) Challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return a.answers.Challenge(hello)
}

// Status says how every name is, sorted.
func (a *Issuer) Status() []State {
	now := a.o.Clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	all := *a.index.Load()
	out := make([]State, 0, len(all))
	for _, e := range all {
		out = append(out, e.status(a, now))
	}
	slices.SortFunc(out, func(x, y State) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// Renew orders a certificate for name now, whatever its schedule says.
func (a *Issuer) Renew(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := (*a.index.Load())[name]
	if e == nil {
		return fmt.Errorf("%w: %s", ErrUnknown, name)
	}
	e.forced, e.asked, e.hold = true, true, time.Time{}
	a.stir()
	return nil
}

// stir makes Run look at once.
func (a *Issuer) stir() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
