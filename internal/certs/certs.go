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
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/certs/acme"
	"github.com/quaymaster/quaymaster/internal/certs/ca"
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
	// OCSP fetches what responders say; nil: a client of our own.
	OCSP  *http.Client
	Now   func() time.Time // nil: time.Now
	Every time.Duration    // between two looks at files and at what is due; 0: two seconds
}

// Certs follows the certificates of the plan.
type Certs struct {
	o       Options
	auto    *acme.Issuer
	ca      *ca.CA
	staples staples
	now     atomic.Pointer[index] // never nil
	wake    chan struct{}         // holds one: there is something to do at once
	suspend chan *suspension

	mu sync.Mutex // held by whoever loads files: Prepare, Run or Renew
}

// New returns Certs without any certificate.
func New(o Options) *Certs {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Events == nil {
		o.Events = func(string, string, string) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Every <= 0 {
		o.Every = tick
	}
	c := &Certs{o: o, wake: make(chan struct{}, 1), suspend: make(chan *suspension)}
	c.auto = acme.New(acme.Options{Log: o.Log, Registry: o.Registry, State: o.State, Events: o.Events, Listening: o.Listening})
	c.ca = ca.New(ca.Options{Store: o.State, Log: o.Log, Now: o.Now})
	c.staples.c, c.staples.wake, c.staples.client = c, make(chan struct{}, 1), o.OCSP
	c.now.Store(&index{anon: newCrowd()})
	if o.Registry != nil {
		o.Registry.MustRegister(collector{c})
	}
	return c
}

// step is a prepared index, and the files that were read anew for it.
type step struct {
	c     *Certs
	next  *index
	fresh map[*file]*loaded
	wrong map[*file]error // files that serve, and whose new content cannot be used
	acme  []*plan.Certificate
	set   *plan.ACME
}

// Prepare has everything at hand that the plan wants and that is on this machine. It contacts nobody and writes nothing.
// Files that cannot be used are an error, unless the certificate they held before still serves.
func (c *Certs) Prepare(ctx context.Context, p *plan.Plan) (plan.Step, error) {
	s := &step{c: c, fresh: map[*file]*loaded{}, wrong: map[*file]error{}, set: p.Settings.ACME}
	if err := s.index(ctx, p); err != nil {
		return nil, err
	}
	if len(s.next.local) > 0 || len(s.next.wild) > 0 || s.next.strangers() {
		if err := c.ca.Open(); err != nil {
			c.o.Log.Error("local CA", "err", err) // status says so, too; everything else is served
		}
	}
	if err := c.auto.Load(s.set, s.acme); err != nil {
		return nil, err
	}
	return s, nil
}

// Commit shows the new index.
func (s *step) Commit() {
	for f, l := range s.fresh {
		s.c.replaced(f, l)
		f.fault.Store(nil)
	}
	for f, err := range s.wrong {
		s.c.spoilt(f, err)
	}
	s.c.now.Store(s.next)
	s.c.auto.Follow(s.set, s.acme)
	s.c.stir()
	s.c.staples.stir()
}

// Retire has nothing to let go of: what no index names is garbage.
func (s *step) Retire() {}

// Abort forgets what was read.
func (s *step) Abort() {}

// stir makes Run look at once.
func (c *Certs) stir() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// tick is how often files are compared, and what is due is looked for. The kernel is not asked to tell: it does not for
// links that point elsewhere, nor for files that somebody else's machine keeps.
const tick = 2 * time.Second

// Run renews, orders, and watches files, until ctx ends. The first plan is to be in force by then.
func (c *Certs) Run(ctx context.Context) error {
	for {
		s := c.work(ctx)
		if s == nil {
			return nil
		}
		close(s.stopped)
		select {
		case <-s.over:
		case <-ctx.Done():
			return nil
		}
	}
}

// suspension is a pause of Run.
type suspension struct{ stopped, over chan struct{} }

// Suspend ends what Run does, orders under way included, until resume is called: another process begins to do it. What
// is there goes on being shown.
func (c *Certs) Suspend(ctx context.Context) (resume func(), err error) {
	s := &suspension{make(chan struct{}), make(chan struct{})}
	select {
	case c.suspend <- s:
	case <-ctx.Done():
		return nil, fmt.Errorf("stop the orders of certificates: %w", ctx.Err())
	}
	select {
	case <-s.stopped:
		return func() { close(s.over) }, nil
	case <-ctx.Done():
		close(s.over)
		return nil, fmt.Errorf("wait for the orders of certificates under way: %w", ctx.Err())
	}
}

// work does what Run does until ctx ends, or a suspension begins, which it returns.
func (c *Certs) work(ctx context.Context) *suspension {
	ctx, cancel := context.WithCancel(ctx)
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	others.Go(func() {
		if err := c.auto.Run(ctx); err != nil && ctx.Err() == nil {
			c.o.Log.Error("certificates are not ordered any more; restart quaymaster", "err", err)
		}
	})
	others.Go(func() { c.staples.run(ctx) })
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-c.suspend:
			return s
		case <-c.wake:
		case <-pause.C:
		}
		start := time.Now()
		c.tend(ctx)
		c.watch(ctx)
		pause.Reset(max(c.o.Every, 100*time.Since(start))) // a hundredth of a processor at most, however many files there are
	}
}

// IsToken reports whether a request is a CA's, for a token of ours.
func (c *Certs) IsToken(host, path []byte) bool { return c.auto.IsToken(host, path) }

// IsOrder reports whether a tls-alpn-01 challenge for that name is under way.
func (c *Certs) IsOrder(name string) bool { return c.auto.IsOrder(name) }

// Handler answers a CA's requests for tokens.
func (c *Certs) Handler() http.Handler { return c.auto.Handler() }

// Challenge is the certificate that answers a tls-alpn-01 challenge.
func (c *Certs) Challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.auto.Challenge(hello)
}
