package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/acmetest"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// stubSet orders at a stub.
func stubSet(s *acmetest.Stub) *plan.ACME {
	return &plan.ACME{
		Issuers: []plan.Issuer{{Directory: s.Directory}}, CARoot: s.Root, Challenges: []string{http01},
		HTTPPort: plan.Addr{Port: 80}, TLSPort: plan.Addr{Port: 443},
	}
}

// orders refuses orders, and does all else.
func orders(f *acmetest.Refusal) func(string, int) *acmetest.Refusal {
	return func(path string, _ int) *acmetest.Refusal {
		if path == "order" {
			return f
		}
		return nil
	}
}

// put stores a certificate for name that lasts from a day ago for so long, and returns its serial number.
func put(t testing.TB, dir, directory, name string, lasts time.Duration) *big.Int {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Now().Add(-24 * time.Hour)
	x := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: from, NotAfter: from.Add(lasts),
	}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(kept{
		Name: name, Directory: directory, Obtained: from,
		Key:   string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})),
		Chain: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, certFile(name)), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return x.SerialNumber
}

func TestT05_RetryAfterIsHonouredAndKeptOverRestarts(t *testing.T) {
	stub := acmetest.NewStub(t, orders(&acmetest.Refusal{Status: 429, Type: "rateLimited", Detail: "too many certificates already issued", RetryAfter: "7200"}))
	dir, c := t.TempDir(), newClock()
	serial := put(t, dir, stub.Directory, "old.example.com", 25*time.Hour) // an hour is left
	r := run(t, nil, dir, Options{Clock: c}, stubSet(stub), auto("a.example.com", "old.example.com")...)
	r.until("both are refused", func() bool {
		return r.one("a.example.com").State == Failing && r.one("old.example.com").State == Failing
	})
	st := r.one("a.example.com")
	if wait := st.NextTry.Sub(c.Now()); wait < 2*time.Hour-time.Minute || wait > 2*time.Hour+2*time.Minute || st.Attempts != 1 {
		t.Errorf("waits %v after attempt %d", wait, st.Attempts)
	}
	for _, want := range []string{"cannot get a certificate: 127.0.0.1:", "rateLimited: too many certificates already issued", "wait; more tries make it worse"} {
		if !strings.Contains(st.Error, want) {
			t.Errorf("%q does not say %q", st.Error, want)
		}
	}
	if got := r.Get("old.example.com"); got == nil || got.Leaf.SerialNumber.Cmp(serial) != 0 {
		t.Error("the old certificate does not serve")
	}
	r.until("an event for each", func() bool {
		got := r.seenEvents()
		return len(got) == 2 && slices.Contains(got, "certificate.failing a.example.com")
	})
	asked := stub.Count("order")
	r.stop()
	r = run(t, nil, dir, Options{Clock: c}, stubSet(stub), auto("a.example.com", "old.example.com")...)
	c.set(time.Hour + 45*time.Minute)
	r.follow(stubSet(stub), auto("a.example.com", "old.example.com", "other.example.com")...)
	r.until("another name is asked for", func() bool { return r.one("other.example.com").State == Failing })
	if n := stub.Count("order"); n != asked+1 {
		t.Errorf("after the restart there were %d orders more than that of the new name", n-asked-1)
	}
	if got := r.Get("old.example.com"); got == nil || got.Leaf.SerialNumber.Cmp(serial) != 0 || r.one("a.example.com").Attempts != 1 {
		t.Errorf("after the restart: %+v", r.Status())
	}
	c.set(time.Hour)
	r.until("they are asked for again", func() bool { return r.one("a.example.com").Attempts == 2 && r.one("old.example.com").Attempts == 2 })
	if s := r.one("old.example.com").State; s != Failing || r.Get("old.example.com") == nil {
		t.Errorf("a certificate whose time is over: %s", s)
	}
}

func TestT05_ADaemonThatDiesInAnOrderAsksNoSooner(t *testing.T) {
	dir := t.TempDir()
	reached, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	stub := acmetest.NewStub(t, func(path string, _ int) *acmetest.Refusal {
		if path == "order" {
			once.Do(func() { close(reached) })
			<-free
		}
		return nil
	})
	r := run(t, nil, dir, Options{}, stubSet(stub), auto("a.example.com")...)
	<-reached
	raw, err := os.ReadFile(filepath.Join(dir, tryFile("a.example.com"))) // what a power cut would leave
	if err != nil {
		t.Fatal(err)
	}
	var s schedule
	if err := json.Unmarshal(raw, &s); err != nil || s.Attempts != 1 || s.Wait.duration() < backFirst/2 {
		t.Errorf("%s: %v", raw, err)
	}
	close(free)
	r.stop()
}

func TestT05_ManyNamesAtACAThatIsDownMakeNoStorm(t *testing.T) {
	for what, refuse := range map[string]func(string, int) *acmetest.Refusal{
		"500 for orders":        orders(&acmetest.Refusal{Status: 500, Detail: "out of order"}),
		"503 for the directory": func(string, int) *acmetest.Refusal { return &acmetest.Refusal{Status: 503, Detail: "closed"} },
		"429 for accounts": func(path string, _ int) *acmetest.Refusal {
			if path == "account" {
				return &acmetest.Refusal{Status: 429, Type: "rateLimited", Detail: "slowly", RetryAfter: "60"}
			}
			return nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			stub := acmetest.NewStub(t, refuse)
			var names []string
			for i := range 200 {
				names = append(names, fmt.Sprintf("n%d.example.com", i))
			}
			c := newClock()
			r := run(t, nil, t.TempDir(), Options{Clock: c}, stubSet(stub), auto(names...)...)
			r.until("every name was tried, or waits for the CA", func() bool {
				for _, s := range r.Status() {
					if s.State != Failing && !strings.Contains(s.Error, "waits for a CA that fails whoever asks") {
						return false
					}
				}
				return true
			})
			total := stub.Count("order") + stub.Count("account") + stub.Count("directory")
			if total > 80 {
				t.Errorf("%d requests for 200 names", total)
			}
			for _, s := range r.Status() {
				if !s.NextTry.After(c.Now()) {
					t.Fatalf("no time of the next try: %+v", s)
				}
			}
		})
	}
}

func TestT05_BackOffGrowsAndASetClockHoldsNobodyUp(t *testing.T) {
	stub := acmetest.NewStub(t, orders(&acmetest.Refusal{Status: 403, Type: "caa", Detail: "CAA forbids it"}))
	c := newClock()
	r := run(t, nil, t.TempDir(), Options{Clock: c, Staging: map[string]string{}}, stubSet(stub), auto("a.example.com")...)
	var waits []time.Duration
	for n := 1; n <= 6; n++ {
		r.until(fmt.Sprintf("attempt %d", n), func() bool { s := r.one("a.example.com"); return s.Attempts == n && s.State == Failing })
		wait := r.one("a.example.com").NextTry.Sub(c.Now())
		want := backFirst << (n - 1)
		if wait < want*7/10 || wait > want*13/10 {
			t.Errorf("after %d failures it waits %v", n, wait)
		}
		waits = append(waits, wait)
		c.set(wait + time.Second)
	}
	r.until("attempt 7", func() bool { s := r.one("a.example.com"); return s.Attempts == 7 && s.State == Failing })
	c.set(-1000 * time.Hour) // it was ahead all the time
	if wait := r.one("a.example.com").NextTry.Sub(c.Now()); wait > backMost*12/10 {
		t.Errorf("a clock that was set back makes it wait %v", wait)
	}
	if text := r.log.String(); !strings.Contains(text, "next_try=") || !strings.Contains(text, "allow the CA in the CAA records of a.example.com") {
		t.Error("the log has no next try, or no remedy")
	}
	_ = waits
}

func TestT05_StagingFirstAfterRepeatedRefusal(t *testing.T) {
	refusal := orders(&acmetest.Refusal{Status: 403, Type: "unauthorized", Detail: "not yours"})
	real, staging := acmetest.NewStub(t, refusal), acmetest.NewStub(t, refusal)
	set := stubSet(real)
	set.CARoot = filepath.Join(t.TempDir(), "both.pem")
	var both []byte
	for _, s := range []*acmetest.Stub{real, staging} {
		text, err := os.ReadFile(s.Root)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, text...)
	}
	if err := os.WriteFile(set.CARoot, both, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClock()
	r := run(t, nil, t.TempDir(), Options{Clock: c, Staging: map[string]string{real.Directory: staging.Directory}}, set, auto("a.example.com")...)
	for n := 1; n <= 4; n++ {
		r.until(fmt.Sprintf("attempt %d", n), func() bool { s := r.one("a.example.com"); return s.Attempts == n && s.State == Failing })
		c.set(time.Until(r.one("a.example.com").NextTry) + time.Hour)
	}
	if got := real.Count("order"); got != stageAfter {
		t.Errorf("%d orders at the real directory", got)
	}
	if staging.Count("order") == 0 || !strings.Contains(r.one("a.example.com").Error, "tried in staging, to spare the limits of") {
		t.Errorf("%d orders in staging: %+v", staging.Count("order"), r.one("a.example.com"))
	}
}

// onDemand is a set with names on demand, and the server that is asked.
func onDemand(t *testing.T, s *acmetest.Stub, perHour int, answer func(domain string) int) (*plan.ACME, *atomic.Int64) {
	t.Helper()
	asked := &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		status := answer(r.URL.Query().Get("domain"))
		if status == http.StatusFound {
			w.Header().Set("Location", "/yes?domain=yes.customer.example")
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(server.Close)
	set := stubSet(s)
	set.OnDemand = &plan.OnDemand{Ask: server.URL + "/allowed?token=x", Allow: []string{"*.customer.example"}, PerHour: perHour}
	return set, asked
}

func TestT07_OnDemandIsDeniedUnlessEverythingSaysYes(t *testing.T) {
	stub := acmetest.NewStub(t, func(string, int) *acmetest.Refusal { return nil })
	set, asked := onDemand(t, stub, 2, func(domain string) int {
		switch {
		case strings.HasPrefix(domain, "yes"):
			return http.StatusOK
		case strings.HasPrefix(domain, "moved"):
			return http.StatusFound
		case strings.HasPrefix(domain, "made"):
			return http.StatusCreated
		}
		return http.StatusForbidden
	})
	off := *set
	off.OnDemand = nil
	r := run(t, nil, t.TempDir(), Options{}, &off, auto("?**.example")...)
	try := func(name, want string) {
		t.Helper()
		c, err := r.OnDemand(t.Context(), name)
		if c != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	try("yes.customer.example", "acme.on_demand is not set")
	r.follow(set, auto("?**.example")...)
	try("yes.other.example", "is not under acme.on_demand.allow")
	try("yes.elsewhere.test", "no route has certificates on demand")
	try("127.0.0.1", "no name of a host")
	try("yes..customer.example", "no name of a host")
	try("y\x00s.customer.example", "no name of a host")
	try("no.customer.example", "answers 403")
	try("moved.customer.example", "answers 302")
	try("made.customer.example", "answers 201")
	n := asked.Load()
	try("no.customer.example", "answers 403")
	if asked.Load() != n {
		t.Error("a no is asked for again at once")
	}
	if got := stub.Count("directory"); got != 0 {
		t.Errorf("the CA was asked %d times", got)
	}
	try("YES1.customer.example.", "this CA makes no orders")
	try("yes2.customer.example", "this CA makes no orders")
	try("yes2.customer.example", "before") // its schedule
	try("yes3.customer.example", "per_hour (2) is used up")
	r.stop()
	r = run(t, nil, r.dir, Options{}, set, auto("?**.example")...)
	try("yes4.customer.example", "per_hour (2) is used up")
	c := newClock()
	r.stop()
	c.set(61 * time.Minute)
	r = run(t, nil, r.dir, Options{Clock: c}, set, auto("?**.example")...)
	try("yes4.customer.example", "this CA makes no orders")
}

func TestT07_AnAskThatSaysYesToEverythingOrIsAwayIssuesNothing(t *testing.T) {
	stub := acmetest.NewStub(t, func(string, int) *acmetest.Refusal { return nil })
	set, _ := onDemand(t, stub, 10, func(string) int { return http.StatusOK })
	r := run(t, nil, t.TempDir(), Options{}, set, auto("?*.customer.example")...)
	if _, err := r.OnDemand(t.Context(), "a.customer.example"); err == nil || !strings.Contains(err.Error(), "and so to everything") {
		t.Error(err)
	}
	if !strings.Contains(r.log.String(), "says yes to a name that nobody can have") {
		t.Error("the log does not warn")
	}
	away := *set
	rule := *set.OnDemand
	rule.Ask = "http://127.0.0.1:1/"
	away.OnDemand = &rule
	r.follow(&away, auto("?*.customer.example")...)
	if _, err := r.OnDemand(t.Context(), "a.customer.example"); err == nil || !strings.Contains(err.Error(), "could not be asked") {
		t.Error(err)
	}
	if n := stub.Count("directory"); n != 0 {
		t.Errorf("the CA was asked %d times", n)
	}
}

func TestT07_OneOrderForManyWhoAsk(t *testing.T) {
	free := make(chan struct{})
	stub := acmetest.NewStub(t, func(path string, _ int) *acmetest.Refusal {
		if path == "order" {
			<-free
		}
		return nil
	})
	set, asked := onDemand(t, stub, 10, func(d string) int {
		if strings.HasSuffix(d, ".customer.example") {
			return http.StatusOK
		}
		return http.StatusNotFound
	})
	r := run(t, nil, t.TempDir(), Options{}, set, auto("?*.customer.example")...)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := r.OnDemand(t.Context(), "a.customer.example"); err == nil || !strings.Contains(err.Error(), "this CA makes no orders") {
				t.Errorf("a.customer.example: %v", err)
			}
		})
	}
	r.until("the order is under way", func() bool { return stub.Count("order") == 1 })
	close(free)
	all.Wait()
	if n := stub.Count("order"); n != 1 {
		t.Errorf("%d orders", n)
	}
	if n := asked.Load(); n > 12 { // the test of the URL, the question, and those who came late
		t.Errorf("asked %d times", n)
	}
}

func TestT05_WhatIsKeptOfAFailureIsBounded(t *testing.T) {
	stub := acmetest.NewStub(t, orders(&acmetest.Refusal{Status: 403, Type: strings.Repeat("very-long", 2000), Detail: "no"}))
	set := stubSet(stub)
	for range 7 {
		set.Issuers = append(set.Issuers, plan.Issuer{Directory: stub.Directory, EABKeyID: fmt.Sprintf("%0500d", len(set.Issuers)), EABKey: "!"})
	}
	dir := t.TempDir()
	r := run(t, nil, dir, Options{}, set, auto("a.example.com")...)
	r.until("it is refused", func() bool { return r.one("a.example.com").State == Failing })
	if n := len(r.one("a.example.com").Error); n > maxError+3 {
		t.Errorf("%d bytes are kept", n)
	}
}
