package acme

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"

	"github.com/quaymaster/quaymaster/internal/certs/acme/acmetest"
	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
	"github.com/quaymaster/quaymaster/internal/certs/acme/record"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/state"
)

// scene is a Pebble, the ports it comes to, and what our side needs of them.
type scene struct {
	*acmetest.Pebble
	front *front
	rig   *rig
	dir   string
	set   *plan.ACME
}

func newScene(t testing.TB, o acmetest.Options) *scene {
	t.Helper()
	s := &scene{dir: t.TempDir()}
	s.front = newFront(t)
	o.HTTPPort, o.TLSPort = portOf(s.front.http), portOf(s.front.tls)
	s.Pebble = acmetest.Start(t, o)
	s.set = &plan.ACME{
		Issuers: []plan.Issuer{{Directory: s.Directory, Email: "ops@example.com"}}, CARoot: s.Root,
		Challenges: []string{http01, tlsALPN01}, HTTPPort: addrOf(s.front.http), TLSPort: addrOf(s.front.tls),
	}
	return s
}

func (s *scene) run(t testing.TB, o Options, names ...string) *rig {
	t.Helper()
	s.rig = run(t, s.front.issuer.Store, s.dir, o, s.set, auto(names...)...)
	return s.rig
}

// valid wants a certificate of Pebble's for a name.
func (s *scene) valid(t testing.TB, name string) {
	t.Helper()
	c := s.rig.Get(name)
	if c == nil {
		t.Fatalf("%s has no certificate: %+v", name, s.rig.one(name))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(s.Issuer)
	for _, der := range c.Certificate[1:] {
		if x, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(x)
		}
	}
	dns := name
	if strings.HasPrefix(name, "*.") {
		dns = "any" + name[1:]
	}
	if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: dns, Roots: roots, Intermediates: between}); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func (s *scene) wait(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		eventually(t, n+" has a certificate", func() bool { return s.rig.Get(n) != nil })
		s.valid(t, n)
	}
}

func TestT03_EachChallengeOfAPort(t *testing.T) {
	for _, challenge := range []string{http01, tlsALPN01} {
		t.Run(challenge, func(t *testing.T) {
			s := newScene(t, acmetest.Options{RejectNonces: 15})
			s.set.Challenges = []string{challenge}
			s.run(t, Options{}, "a.example.com")
			s.wait(t, "a.example.com")
			paths, names := s.front.seen()
			if (len(paths) > 0) != (challenge == http01) || (len(names) > 0) != (challenge == tlsALPN01) {
				t.Errorf("the CA asked for %q and %q", paths, names)
			}
			s.rig.until("the state", func() bool { return s.rig.one("a.example.com").State == Valid })
			if st := s.rig.one("a.example.com"); st.Challenge != challenge || st.Attempts != 0 || st.Error != "" || st.RenewAt.Before(time.Now()) || st.Users[0] != "route a.example.com" {
				t.Errorf("%+v", st)
			}
			if got := s.rig.seenEvents(); len(got) != 1 || got[0] != "certificate.obtained a.example.com" {
				t.Errorf("events %q", got)
			}
		})
	}
}

func TestT01_TwentyNamesAtASlowCA(t *testing.T) {
	s := newScene(t, acmetest.Options{Before: func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/finalize-order/") {
			select {
			case <-time.After(2 * time.Second):
			case <-r.Context().Done():
			}
		}
		return false
	}})
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("n%d.example.com", i))
	}
	began := time.Now()
	s.run(t, Options{}, names...)
	s.wait(t, names...)
	// 8 s where nobody else uses the machine; one after the other they would take 40.
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("20 names took %v", took)
	}
}

func TestT02_NoOrderBeginsBeforeItsPortAccepts(t *testing.T) {
	var open atomic.Bool
	var requests atomic.Int64
	s := newScene(t, acmetest.Options{Before: func(http.ResponseWriter, *http.Request) bool {
		requests.Add(1)
		if !open.Load() {
			t.Error("the CA was asked before a port accepted")
		}
		return false
	}})
	s.run(t, Options{Listening: func(plan.Addr) bool { return open.Load() }}, "a.example.com")
	s.rig.until("the state says why", func() bool {
		return strings.Contains(s.rig.one("a.example.com").Error, "no challenge can be used: http-01: port ")
	})
	if st := s.rig.one("a.example.com"); st.State != Pending || st.Attempts != 0 {
		t.Errorf("%+v", st)
	}
	open.Store(true)
	s.wait(t, "a.example.com")
	s.rig.until("no error is left", func() bool { return s.rig.one("a.example.com").Error == "" })
	if requests.Load() == 0 {
		t.Error("nobody asked the CA")
	}
}

func TestT06_AChallengeWhosePortDoesNotAcceptIsNotTried(t *testing.T) {
	s := newScene(t, acmetest.Options{})
	s.run(t, Options{Listening: func(a plan.Addr) bool { return a != s.set.HTTPPort }}, "a.example.com")
	s.wait(t, "a.example.com")
	if paths, names := s.front.seen(); len(paths) != 0 || len(names) == 0 {
		t.Errorf("the CA asked for %q and %q", paths, names)
	}
	if text := s.rig.log.String(); !strings.Contains(text, "a challenge cannot be used, another is") || !strings.Contains(text, "http-01: port 127.0.0.1:") {
		t.Errorf("the log does not say why:\n%s", text)
	}
}

func TestT03_AChallengeThatFailsIsFollowedByTheOther(t *testing.T) {
	s := newScene(t, acmetest.Options{RejectNonces: 15})
	s.front.closed = true // something else answers on the CA's port 80
	s.run(t, Options{}, "a.example.com")
	s.wait(t, "a.example.com")
	if text := s.rig.log.String(); !strings.Contains(text, "a challenge did not succeed, another is tried") ||
		!strings.Contains(text, "challenge=http-01") || !strings.Contains(text, "unauthorized: ") || !strings.Contains(text, "another server answers on port 80") {
		t.Errorf("the log does not say why:\n%s", text)
	}
	if st := s.rig.one("a.example.com"); st.Challenge != tlsALPN01 {
		t.Errorf("%+v", st)
	}
}

func TestT03_DNS01ByUpdatesWithWildcard(t *testing.T) {
	primary := acmetest.NewPrimary(t, "example.com")
	s := newScene(t, acmetest.Options{DNS: primary.Addr})
	s.set.Challenges = []string{dns01}
	s.set.DNS = plan.DNSProvider{Server: primary.Addr, TSIGKey: acmetest.KeyName, TSIGSecret: acmetest.KeySecret}
	check := record.Check{Servers: func(context.Context, string) ([]string, error) { return []string{primary.Addr}, nil }, Every: 10 * time.Millisecond}
	s.run(t, Options{Check: check}, "*.example.com", "example.com")
	s.wait(t, "*.example.com", "example.com")
	s.rig.until("the records are gone", func() bool { return len(primary.TXT("_acme-challenge.example.com")) == 0 })
	seen := primary.Seen()
	if len(seen) != 4 {
		t.Errorf("updates: %q", seen)
	}
	for _, u := range seen {
		if add, ok := strings.CutPrefix(u, "add "); ok && !slices.Contains(seen, "remove "+add) {
			t.Errorf("%s is not undone in %q", u, seen)
		}
	}
}

func TestT03_DNS01ThatCannotBeSeenIsTriedAllTheSame(t *testing.T) {
	primary := acmetest.NewPrimary(t, "example.com")
	s := newScene(t, acmetest.Options{DNS: primary.Addr})
	s.set.Challenges = []string{dns01}
	s.set.DNS = plan.DNSProvider{Server: primary.Addr, TSIGKey: "hmac-sha256:" + acmetest.KeyName, TSIGSecret: acmetest.KeySecret}
	other := acmetest.NewPrimary(t, "example.com") // never has the record
	check := record.Check{
		Servers: func(context.Context, string) ([]string, error) { return []string{other.Addr}, nil },
		Every:   10 * time.Millisecond, Most: 300 * time.Millisecond,
	}
	s.run(t, Options{Check: check}, "example.com")
	s.wait(t, "example.com")
	if text := s.rig.log.String(); !strings.Contains(text, "a record that we do not see everywhere") || !strings.Contains(text, other.Addr+" does not have it") {
		t.Errorf("no warning:\n%s", text)
	}
}

func TestT05_FallbackToTheNextIssuer(t *testing.T) {
	stub := acmetest.NewStub(t, func(path string, _ int) *acmetest.Refusal {
		if path == "order" {
			return &acmetest.Refusal{Status: 429, Type: "rateLimited", Detail: "too many certificates", RetryAfter: "3600"}
		}
		return nil
	})
	s := newScene(t, acmetest.Options{})
	both := append(read(t, stub.Root), read(t, s.Root)...)
	s.set.CARoot = filepath.Join(t.TempDir(), "both.pem")
	if err := os.WriteFile(s.set.CARoot, both, 0o600); err != nil {
		t.Fatal(err)
	}
	s.set.Issuers = append([]plan.Issuer{{Directory: stub.Directory}}, s.set.Issuers...)
	s.run(t, Options{}, "a.example.com")
	s.wait(t, "a.example.com")
	if text := s.rig.log.String(); !strings.Contains(text, "no certificate from this issuer, the next is asked") || !strings.Contains(text, "rateLimited: too many certificates") {
		t.Errorf("the log does not say why:\n%s", text)
	}
	if st := s.rig.one("a.example.com"); st.Issuer != authority.Host(s.Directory) || st.Attempts != 0 {
		t.Errorf("%+v", st)
	}
}

func TestT05_AccountIsMadeOnceAndKept(t *testing.T) {
	var accounts atomic.Int64
	s := newScene(t, acmetest.Options{Before: func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/sign-me-up" {
			accounts.Add(1)
		}
		return false
	}})
	names := []string{"a.example.com", "b.example.com", "c.example.com", "d.example.com"}
	s.run(t, Options{}, names...)
	s.wait(t, names...)
	s.rig.stop()
	s.run(t, Options{}, append(names, "e.example.com")...)
	s.wait(t, append(names, "e.example.com")...)
	if n := accounts.Load(); n != 1 {
		t.Errorf("%d accounts were made", n)
	}
	files, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
}

func TestT05_AnAccountThatTheCAForgotIsMadeAnew(t *testing.T) {
	s := newScene(t, acmetest.Options{})
	s.run(t, Options{}, "a.example.com")
	s.wait(t, "a.example.com")
	s.rig.stop()
	files, err := filepath.Glob(filepath.Join(s.dir, "acme-account-*.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	text := strings.Replace(string(read(t, files[0])), "/my-account/", "/my-account/0", 1)
	if err := os.WriteFile(files[0], []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(t, Options{}, "a.example.com", "b.example.com")
	s.wait(t, "a.example.com", "b.example.com")
}

func TestExternalAccountBindingAndProfiles(t *testing.T) {
	const key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	s := newScene(t, acmetest.Options{EAB: map[string]string{"kid-1": key}, Profiles: map[string]ca.Profile{
		"default": {Description: "the default"}, "short": {Description: "an hour", ValidityPeriod: 3600},
	}})
	s.run(t, Options{}, "a.example.com")
	s.rig.until("the state says what is missing", func() bool {
		return strings.Contains(s.rig.one("a.example.com").Error, "set acme.issuers[].eab with the kid and hmac")
	})
	s.rig.stop()
	s.set.Issuers = []plan.Issuer{{Directory: s.Directory, EABKeyID: "kid-1", EABKey: key, Profile: "shorter"}}
	s.run(t, Options{}, "b.example.com")
	s.rig.until("the state says which profiles there are", func() bool {
		return strings.Contains(s.rig.one("b.example.com").Error, `no profile "shorter" (it has: default, short)`)
	})
	s.set.Issuers[0].Profile = "short"
	set := *s.set
	s.rig.follow(&set, auto("c.example.com")...)
	s.wait(t, "c.example.com")
	if leaf := s.rig.Get("c.example.com").Leaf; leaf.NotAfter.Sub(leaf.NotBefore) > 2*time.Hour {
		t.Errorf("the profile was not used: %v", leaf.NotAfter.Sub(leaf.NotBefore))
	}
}

func TestT02_StopDuringAnOrderLeavesNothing(t *testing.T) {
	s := newScene(t, acmetest.Options{})
	reached, free := s.front.halt()
	s.run(t, Options{}, "a.example.com")
	<-reached
	if !s.rig.IsToken(nil, []byte(firstPath(s.front))) {
		t.Error("the token is not there while it is asked for")
	}
	s.rig.stop() // says so when a token is left
	close(free)
	if files, _ := filepath.Glob(filepath.Join(s.dir, "acme-*-a.example.com.json")); len(files) != 0 {
		t.Errorf("left behind: %q", files)
	}
	s.run(t, Options{}, "a.example.com")
	s.wait(t, "a.example.com")
}

func TestT13_ANameThatIsTakenOutEndsItsOrderAlone(t *testing.T) {
	s := newScene(t, acmetest.Options{})
	reached, free := s.front.halt()
	s.run(t, Options{}, "a.example.com")
	<-reached
	token := []byte(firstPath(s.front))
	s.rig.follow(s.set, auto("b.example.com")...)
	s.wait(t, "b.example.com")
	s.rig.until("the token of the name that left is gone", func() bool { return !s.rig.IsToken(nil, token) })
	close(free)
	s.rig.until("nothing is left", func() bool { return s.rig.answers.Len() == 0 })
	if s.rig.Get("a.example.com") != nil {
		t.Error("a name that nobody wants has a certificate")
	}
}

func TestT05_RenewalReplacesAndOldOneServesMeanwhile(t *testing.T) {
	var replaced atomic.Int64
	c := newClock()
	var down atomic.Bool
	s := newScene(t, acmetest.Options{Before: func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/order-plz" {
			if strings.Contains(payload(t, r), `"replaces"`) {
				replaced.Add(1)
			}
			if down.Load() {
				http.Error(w, "out of order", http.StatusInternalServerError)
				return true
			}
		}
		return false
	}})
	s.run(t, Options{Clock: c}, "a.example.com")
	s.wait(t, "a.example.com")
	first := s.rig.Get("a.example.com")
	s.rig.until("the CA said when to renew", func() bool {
		s.rig.Issuer.mu.Lock()
		defer s.rig.Issuer.mu.Unlock()
		return !(*s.rig.index.Load())["a.example.com"].plan.ARI.At.IsZero()
	})
	down.Store(true)
	c.set(time.Until(s.rig.one("a.example.com").RenewAt) + time.Minute)
	s.rig.until("the renewal fails", func() bool {
		return s.rig.one("a.example.com").Attempts > 0 && s.rig.one("a.example.com").State == Failing
	})
	st := s.rig.one("a.example.com")
	if s.rig.Get("a.example.com") != first || !strings.Contains(st.Error, ": HTTP 500: out of order") || st.NextTry.Before(c.Now()) {
		t.Errorf("%+v", st)
	}
	down.Store(false)
	c.set(2 * time.Minute)
	s.rig.until("it is renewed", func() bool { return s.rig.Get("a.example.com") != first })
	s.valid(t, "a.example.com")
	if replaced.Load() < 2 {
		t.Errorf("the new order does not say what it replaces")
	}
	s.rig.until("the event", func() bool { return slices.Contains(s.rig.seenEvents(), "certificate.renewed a.example.com") })
}

func TestARIWindowInThePastRenewsAtOnce(t *testing.T) {
	c := newClock()
	s := newScene(t, acmetest.Options{})
	s.run(t, Options{Clock: c}, "a.example.com")
	s.wait(t, "a.example.com")
	first := s.rig.Get("a.example.com")
	text, err := json.Marshal(map[string]string{
		"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: first.Certificate[0]})),
		"ariResponse": `{"suggestedWindow": {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}, "explanationURL": "https://ca.example/why"}`,
	})
	if err != nil {
		t.Fatal(err)
	}
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/set-renewal-info/", bytes.NewReader(text))
	r.Header.Set("User-Agent", "test")
	s.Manage.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatal(w.Code, w.Body)
	}
	s.rig.until("it is asked for and renewed", func() bool {
		c.set(25 * time.Hour / 10)
		return s.rig.Get("a.example.com") != first
	})
	if text := s.rig.log.String(); !strings.Contains(text, "https://ca.example/why") {
		t.Errorf("the CA's reason is not logged:\n%s", text)
	}
}

func TestRenewIsAnOrderNow(t *testing.T) {
	s := newScene(t, acmetest.Options{})
	s.run(t, Options{}, "a.example.com")
	s.wait(t, "a.example.com")
	first := s.rig.Get("a.example.com")
	if err := s.rig.Renew("a.example.com"); err != nil {
		t.Fatal(err)
	}
	s.rig.until("it is another", func() bool { return s.rig.Get("a.example.com") != first })
	if err := s.rig.Renew("b.example.com"); !errors.Is(err, ErrUnknown) {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestWhatIsStoredServesAtOnceAndWhatIsBrokenIsOrderedAnew(t *testing.T) {
	s := newScene(t, acmetest.Options{})
	s.run(t, Options{}, "a.example.com", "b.example.com")
	s.wait(t, "a.example.com", "b.example.com")
	serial := s.rig.Get("a.example.com").Leaf.SerialNumber
	s.rig.stop()
	if err := os.WriteFile(filepath.Join(s.dir, certFile("b.example.com")), []byte(`{"name": "b.exam`), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := state.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	still := New(Options{State: d})
	if err := still.Load(s.set, auto("a.example.com", "b.example.com")); err != nil {
		t.Fatal(err)
	}
	still.Follow(s.set, auto("a.example.com", "b.example.com"))
	if c := still.Get("a.example.com"); c == nil || c.Leaf.SerialNumber.Cmp(serial) != 0 {
		t.Error("what was stored does not serve before Run")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	s.run(t, Options{}, "a.example.com", "b.example.com")
	s.wait(t, "b.example.com")
	if !strings.Contains(s.rig.log.String(), "a stored certificate cannot be used") {
		t.Error("the log does not say that the file is broken")
	}
}

func firstPath(f *front) string {
	paths, _ := f.seen()
	return paths[0]
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// payload is what a signed request says; the request can still be read.
func payload(t testing.TB, r *http.Request) string {
	t.Helper()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(text))
	var jws struct{ Payload string }
	if err := json.Unmarshal(text, &jws); err != nil {
		t.Error(err)
	}
	out, err := base64.RawURLEncoding.DecodeString(jws.Payload)
	if err != nil {
		t.Error(err)
	}
	return string(out)
}
