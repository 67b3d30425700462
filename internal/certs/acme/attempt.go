package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
	"github.com/quaymaster/quaymaster/internal/certs/acme/demand"
)

const (
	backFirst   = time.Minute
	backMost    = 6 * time.Hour
	trustsAfter = 3 // failures for which a CA's Retry-After alone counts
	stageAfter  = 2 // refusals before an order is tried at the staging directory first
	deniedWait  = time.Hour
	restLeast   = time.Minute    // from one certificate to the next, if it lasts very short
	restMost    = time.Hour      // and otherwise
	maxError    = 2 << 10        // bytes of why an order failed
	keepFailed  = 24 * time.Hour // how long a name on demand that failed is remembered
)

// attempt is one order for a name: at one CA after the other until one gives the certificate.
func (a *Issuer) attempt(ctx context.Context, e *entry, ways []way) {
	a.mu.Lock()
	was := e.plan
	renews, forced := e.cert.Load() != nil, e.forced
	cas, staging := slices.Clone(a.cas), a.staging
	a.mu.Unlock()
	if e.demand && renews {
		if err := a.gate.Admit(ctx, e.name); err != nil {
			a.denied(ctx, e, was, err)
			return
		}
	}
	now := a.o.Clock.Now()
	awake := slices.DeleteFunc(slices.Clone(cas), func(c *authority.CA) bool { until, _ := c.Resting(); return until.After(now) })
	if len(awake) == 0 && forced {
		awake = cas // somebody wants to know
	}
	if len(awake) == 0 {
		a.rest(e, cas, now)
		return
	}
	// Written down before a CA hears of it: a daemon that dies and comes back again and again asks no more often.
	next := was
	next.Attempts, next.Tried = was.Attempts+1, now
	next.Wait = seconds(backoff(next.Attempts) / time.Second)
	a.schedule(e, next)
	var fails []error
	for i, c := range awake {
		stage := staging[c.Issuer.Directory]
		if was.Attempts < stageAfter || !was.Refused {
			stage = nil
		}
		issued, err := a.order(ctx, e, c, stage, ways)
		if err == nil {
			a.obtained(e, c, issued, renews)
			return
		}
		if ctx.Err() != nil {
			a.metrics.order(c.Host(), "cancelled")
			a.schedule(e, was) // the CA has no part in it
			return
		}
		a.metrics.order(c.Host(), "failed")
		fails = append(fails, err)
		if i+1 < len(awake) {
			a.o.Log.Warn("no certificate from this issuer, the next is asked", "host", e.name, "issuer", c.Host(), "next", awake[i+1].Host(), "err", err)
		}
	}
	a.failed(e, next, fails, renews)
}

// order gets a certificate at one CA, and where it was refused there before, first at stage.
func (a *Issuer) order(ctx context.Context, e *entry, c, stage *authority.CA, ways []way) (*authority.Issued, error) {
	w := &authority.Wish{
		Name: e.name, Challenges: ways,
		Trying: func(challenge string) {
			a.mu.Lock()
			defer a.mu.Unlock()
			e.challenge = challenge
		},
		GaveUp: func(challenge string, why error) {
			a.o.Log.Warn("a challenge did not succeed, another is tried", "host", e.name, "issuer", c.Host(), "challenge", challenge, "err", why)
		},
	}
	if stage != nil {
		a.o.Log.Info("the order is tried at the staging directory first", "host", e.name, "issuer", stage.Host())
		if _, err := stage.Order(ctx, w); err != nil {
			return nil, fmt.Errorf("tried in staging, to spare the limits of %s: %w", c.Host(), err)
		}
	}
	w.Replaces = a.replaces(e, c)
	return c.Order(ctx, w)
}

// replaces is the certificate that a new one of that CA replaces.
func (a *Issuer) replaces(e *entry, c *authority.CA) *x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cert := e.cert.Load(); cert != nil && e.rec != nil && e.rec.Directory == c.Issuer.Directory {
		return cert.Leaf
	}
	return nil
}

// heir is the entry that has e's name by now: another one when the name was taken out and came back during e's job. It has
// no job of its own before that one has ended. a.mu is held.
func (a *Issuer) heir(e *entry) *entry {
	if now := (*a.index.Load())[e.name]; now != nil {
		return now
	}
	return e
}

// schedule gives e and its heir a schedule, here and in the store.
func (a *Issuer) schedule(e *entry, s schedule) {
	a.note(e.name, s)
	a.mu.Lock()
	defer a.mu.Unlock()
	e.plan = s
	a.heir(e).plan = s
}

// obtained serves and stores a certificate. One that cannot be stored serves all the same.
func (a *Issuer) obtained(e *entry, c *authority.CA, issued *authority.Issued, renewed bool) {
	rec := &kept{
		Name: e.name, Directory: c.Issuer.Directory, Profile: c.Issuer.Profile, Challenge: issued.Challenge,
		Obtained: a.o.Clock.Now(), Key: string(issued.Key), Chain: string(issued.Chain),
	}
	err := a.save(rec)
	a.mu.Lock()
	dropped := e
	e = a.heir(e)
	e.rec, e.unstored, e.forced, e.blocked, e.hold = rec, err != nil, false, "", time.Time{}
	e.used.Store(e.used.Load() && !renewed) // a client has to want the next one anew
	e.cert.Store(issued.Certificate)
	if e != dropped {
		e.asked = false
		e.release() // those who ask for it have it: no order is made for them
	}
	a.mu.Unlock()
	a.schedule(e, schedule{})
	if err != nil {
		a.o.Log.Error("a certificate is kept in memory only", "host", e.name, "err", err)
	}
	a.metrics.order(c.Host(), "obtained")
	kind := "certificate.obtained"
	if renewed {
		kind = "certificate.renewed"
	}
	leaf := issued.Certificate.Leaf
	text := fmt.Sprintf("from %s, until %s", c.Host(), leaf.NotAfter.Format(time.RFC3339))
	if issued.Challenge != "" {
		text = "by " + issued.Challenge + " " + text
	}
	a.o.Log.Info(strings.Replace(kind, ".", " ", 1), "host", e.name, "issuer", c.Host(), "challenge", issued.Challenge, "not_after", leaf.NotAfter)
	a.o.Events(kind, e.name, text)
}

// failed notes why, and when to try again.
func (a *Issuer) failed(e *entry, s schedule, fails []error, renews bool) {
	now := a.o.Clock.Now()
	texts := make([]string, len(fails))
	var wait time.Duration
	s.Refused = false
	for i, err := range fails {
		texts[i] = err.Error()
		var f *authority.Failure
		if errors.As(err, &f) {
			s.Refused = s.Refused || f.Kind == authority.Refused
			if f.Wait > 0 && (wait == 0 || f.Wait < wait) {
				wait = f.Wait // of several CAs the first that is ready
			}
		}
	}
	s.Wait = seconds(waitFor(s.Attempts, wait, len(fails)) / time.Second)
	s.Error = "cannot get a certificate: " + strings.Join(texts, "; then ")
	if len(s.Error) > maxError {
		s.Error = strings.ToValidUTF8(s.Error[:maxError], "") + "..."
	}
	a.mu.Lock()
	e.forced = false
	a.mu.Unlock()
	a.schedule(e, s)
	a.mu.Lock()
	next := e.plan.next(now)
	a.mu.Unlock()
	what := "no certificate yet"
	if renews {
		what = "certificate not renewed"
	}
	a.o.Log.Error(what, "host", e.name, "attempt", s.Attempts, "next_try", next.Format(time.RFC3339), "err", s.Error)
	a.o.Events("certificate.failing", e.name, fmt.Sprintf("%s; next try at %s", s.Error, next.Format(time.RFC3339)))
}

// denied notes that a name on demand may not be renewed: what it has serves until it ends.
func (a *Issuer) denied(ctx context.Context, e *entry, s schedule, err error) {
	if ctx.Err() != nil {
		return
	}
	s.Error = err.Error()
	a.mu.Lock()
	e.forced, e.hold = false, a.o.Clock.Now().Add(deniedWait)
	e.plan.Error = s.Error
	a.mu.Unlock()
	level := a.o.Log.Warn
	if errors.Is(err, demand.ErrDenied) {
		level = a.o.Log.Info
	}
	level("a certificate on demand is not renewed", "host", e.name, "err", err)
}

// rest notes that every CA rests.
func (a *Issuer) rest(e *entry, cas []*authority.CA, now time.Time) {
	var first time.Time
	var why error
	for _, c := range cas {
		if until, err := c.Resting(); first.IsZero() || until.Before(first) {
			first, why = until, err
		}
	}
	// Those who wait do not come back all in one moment.
	first = first.Add(rand.N(max(first.Sub(now)/4, time.Second)))
	a.mu.Lock()
	defer a.mu.Unlock()
	e.hold = first
	if why != nil {
		e.blocked = "waits for a CA that fails whoever asks: " + why.Error()
	}
}

// backoff is how long to wait after so many failures: a minute, doubled up to six hours, a fifth more or less.
func backoff(attempts int) time.Duration {
	d := min(backFirst<<min(max(attempts-1, 0), 16), backMost)
	return d*4/5 + rand.N(d*2/5)
}

// waitFor is backoff with what a CA asked for: that alone for the first few times, and never less later. A CA that is one
// of several does not hold up the others.
func waitFor(attempts int, asked time.Duration, cas int) time.Duration {
	own := backoff(attempts)
	if asked <= 0 {
		return own
	}
	asked += rand.N(min(asked/10, time.Minute) + time.Second)
	switch {
	case cas > 1:
		return min(own, asked)
	case attempts <= trustsAfter:
		return asked
	}
	return max(own, asked)
}
