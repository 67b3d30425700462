package acme

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"

	"github.com/quaymaster/quaymaster/internal/certs/acme/acmetest"
	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestT05_CertificatesThatAreToBeRenewedAtOnceMakeNoStorm(t *testing.T) {
	for what, o := range map[string]struct {
		clock time.Duration // ahead of the CA's
		life  uint64        // seconds
		rest  time.Duration
	}{
		"our clock is ahead":    {clock: 6*24*time.Hour - time.Hour, life: 6 * 24 * 3600, rest: restMost},
		"it lasts half an hour": {clock: 29 * time.Minute, life: 1800, rest: 15 * time.Minute},
	} {
		t.Run(what, func(t *testing.T) {
			var orders atomic.Int64
			s := newScene(t, acmetest.Options{
				Profiles: map[string]ca.Profile{"default": {Description: "the default", ValidityPeriod: o.life}},
				Before: func(_ http.ResponseWriter, r *http.Request) bool {
					if r.URL.Path == "/order-plz" && strings.Contains(payload(t, r), `"a.example.com"`) {
						orders.Add(1)
					}
					return false
				},
			})
			c := newClock()
			c.set(o.clock)
			s.run(t, Options{Clock: c}, "a.example.com")
			s.rig.until("it has a certificate", func() bool { return s.rig.Get("a.example.com") != nil })
			s.rig.follow(s.set, auto("a.example.com", "b.example.com")...)
			s.rig.until("another has one", func() bool { return s.rig.Get("b.example.com") != nil && s.rig.one("a.example.com").State != Ordering })
			if n := orders.Load(); n != 1 {
				t.Fatalf("%d orders", n)
			}
			e := (*s.rig.index.Load())["a.example.com"]
			s.rig.Issuer.mu.Lock()
			at, renew := e.due(s.rig.Issuer, c.Now()), s.rig.renewAt(e, e.cert.Load().Leaf)
			rest := at.Sub(e.rec.Obtained)
			s.rig.Issuer.mu.Unlock()
			if renew.After(c.Now()) || (rest-o.rest).Abs() > 2*time.Second {
				t.Errorf("renewal at %v, the next order %v after the last", renew, rest)
			}
			first := s.rig.Get("a.example.com")
			c.set(-24 * time.Hour * 30) // what was obtained in the future says nothing
			s.rig.Issuer.mu.Lock()
			if !e.rested(c.Now()).IsZero() {
				t.Error("a clock that was set back holds it up")
			}
			s.rig.Issuer.mu.Unlock()
			if err := s.rig.Renew("a.example.com"); err != nil {
				t.Fatal(err)
			}
			s.rig.until("it is renewed by hand", func() bool { return s.rig.Get("a.example.com") != first })
		})
	}
}

func TestT05_HowLongACertificateRests(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ life, want time.Duration }{
		{90 * 24 * time.Hour, time.Hour}, {time.Hour, 30 * time.Minute}, {time.Second, time.Minute}, {-time.Hour, time.Minute},
	} {
		e := &entry{rec: &kept{Obtained: now}}
		e.cert.Store(&tls.Certificate{Leaf: &x509.Certificate{NotBefore: now, NotAfter: now.Add(c.life)}})
		if got := e.rested(now).Sub(now); got != c.want {
			t.Errorf("one that lasts %v rests %v", c.life, got)
		}
	}
}

func TestT05_AClockThatIsSetBackHoldsNobodyUp(t *testing.T) {
	stub := acmetest.NewStub(t, orders(&acmetest.Refusal{Status: 500, Detail: "out of order"}))
	c := newClock()
	c.set(1000 * time.Hour)
	r := run(t, nil, t.TempDir(), Options{Clock: c}, stubSet(stub), auto("a.example.com", "b.example.com", "c.example.com", "d.example.com")...)
	r.until("all fail", func() bool {
		for _, s := range r.Status() {
			if s.State != Failing {
				return false
			}
		}
		return true
	})
	r.follow(stubSet(stub), auto("e.example.com")...)
	r.until("it waits for the CA", func() bool {
		return strings.Contains(r.one("e.example.com").Error, "waits for a CA that fails whoever asks")
	})
	asked := stub.Count("order")
	c.set(-1000 * time.Hour)
	if s := r.one("e.example.com"); s.NextTry.After(c.Now().Add(deniedWait)) {
		t.Errorf("it waits until %v", s.NextTry)
	}
	c.set(deniedWait)
	r.until("it is asked again", func() bool { return stub.Count("order") > asked })
}

func TestT05_WhenToAskTheCAAgainIsInReach(t *testing.T) {
	a := still(t)
	a.Follow(&plan.ACME{Issuers: []plan.Issuer{{Directory: "https://ca.example/directory"}}, Challenges: []string{http01}}, nil)
	put(t, a.o.State.Path(), "https://ca.example/directory", "a.example.com", 90*24*time.Hour)
	e, now := a.read("a.example.com"), time.Now()
	e.plan.ARI = window{Serial: serial(e.cert.Load().Leaf), Again: now.Add(1000 * time.Hour)}
	for _, at := range []time.Time{now, now.Add(askMost)} {
		if got := a.askAt(e, at); !got.Equal(now.Add(askMost)) {
			t.Errorf("at %v it is to be asked at %v", at, got)
		}
	}
}
