package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
)

const (
	askLeast = time.Minute
	askMost  = 24 * time.Hour
	askUsual = 6 * time.Hour
	askFail  = time.Hour
)

// renewAt is when a certificate is to be renewed: at the moment chosen in the CA's window, else renew_before its end, else
// when a third of its lifetime is left. a.mu is held.
func (a *Issuer) renewAt(e *entry, leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	last := leaf.NotAfter.Add(-life / 20) // whatever anybody says
	var at time.Time
	switch {
	case a.set != nil && a.set.RenewBefore > 0:
		at = leaf.NotAfter.Add(-a.set.RenewBefore)
		if least := leaf.NotBefore.Add(life / 2); at.Before(least) {
			at = least // a certificate shorter than renew_before would be renewed without end
		}
	case e.plan.ARI.Serial == serial(leaf) && !e.plan.ARI.At.IsZero():
		at = e.plan.ARI.At
	default:
		at = leaf.NotAfter.Add(-life/3 - share(leaf, life/30))
	}
	if at.After(last) {
		return last
	}
	return at
}

// share is a part of most that is always the same for a certificate, so that those made together are not renewed together.
func share(leaf *x509.Certificate, most time.Duration) time.Duration {
	h := fnv.New32a()
	_, _ = h.Write(leaf.SerialNumber.Bytes())
	return most * time.Duration(h.Sum32()%1000) / 1000
}

func serial(leaf *x509.Certificate) string { return leaf.SerialNumber.Text(16) }

// askAt is when the CA is to be asked when it would have e renewed; the zero time means never. a.mu is held.
func (a *Issuer) askAt(e *entry, now time.Time) time.Time {
	c := e.cert.Load()
	if c == nil || e.working || e.rec == nil || a.set.RenewBefore > 0 || a.caOf(e) == nil || !c.Leaf.NotAfter.After(now) {
		return time.Time{}
	}
	if e.plan.ARI.Serial != serial(c.Leaf) {
		return now
	}
	if most := now.Add(askMost); e.plan.ARI.Again.After(most) {
		e.plan.ARI.Again = most // the clock was ahead
	}
	return e.plan.ARI.Again
}

// caOf is the CA that e's certificate came from, if the plan still has it. a.mu is held.
func (a *Issuer) caOf(e *entry) *authority.CA {
	for _, c := range a.cas {
		if c.Issuer.Directory == e.rec.Directory {
			return c
		}
	}
	return nil
}

// askWindow asks, and chooses a moment.
func (a *Issuer) askWindow(ctx context.Context, e *entry) {
	a.mu.Lock()
	ca, cert := a.caOf(e), e.cert.Load()
	a.mu.Unlock()
	if ca == nil {
		return
	}
	leaf := cert.Leaf
	w, err := ca.Window(ctx, leaf)
	if ctx.Err() != nil {
		return
	}
	now := a.o.Clock.Now()
	a.mu.Lock()
	s := e.plan
	a.mu.Unlock()
	was := s.ARI
	if was.Serial != serial(leaf) {
		was = window{Serial: serial(leaf)}
	}
	s.ARI = was
	switch {
	case errors.Is(err, authority.ErrNoRenewalInfo):
		s.ARI = window{Serial: was.Serial, Again: now.Add(askMost)}
	case err != nil:
		s.ARI.Again = now.Add(max(askFail, w.Again) + rand.N(askFail/4))
		a.o.Log.Warn("the CA does not say when to renew", "host", e.name, "issuer", ca.Host(), "err", err)
	default:
		again := w.Again
		if again <= 0 {
			again = askUsual
		}
		s.ARI.Again = now.Add(min(max(again, askLeast), askMost))
		if !was.Start.Equal(w.Start) || !was.End.Equal(w.End) || was.At.IsZero() {
			s.ARI.Start, s.ARI.End, s.ARI.At = w.Start, w.End, w.Start.Add(rand.N(w.End.Sub(w.Start)))
			level := a.o.Log.Debug
			if !was.At.IsZero() || !s.ARI.At.After(now) {
				level = a.o.Log.Warn // it changed its mind: mostly a certificate that is about to be revoked
			}
			level("the CA says when to renew", "host", e.name, "issuer", ca.Host(), "renew_at", s.ARI.At.Format(time.RFC3339), "reason", w.Why)
		}
	}
	a.schedule(e, s)
}
