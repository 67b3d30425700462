package authority

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// memory is a Store that forgets.
type memory struct {
	mu   sync.Mutex
	data map[string][]byte
}

func (m *memory) Read(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.data[name]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

func (m *memory) Write(name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data[name] = data
	return nil
}

func (m *memory) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.data, name)
	return nil
}

// A hostile CA takes orders, and answers as it likes.
type hostile struct {
	*CA
	url string

	mu     sync.Mutex
	counts map[string]int
}

// newHostile runs one until the test ends. answer gives what a path ("authz", "cert", ...) says; false = as it should be.
func newHostile(t *testing.T, answer func(h *hostile, w http.ResponseWriter, path string) bool) *hostile {
	t.Helper()
	h := &hostile{counts: map[string]int{}}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.Split(r.URL.Path, "/")[1]
		h.mu.Lock()
		h.counts[path]++
		n := h.counts[path]
		h.mu.Unlock()
		w.Header().Set("Replay-Nonce", fmt.Sprintf("%s%d", path, n))
		w.Header().Set("Content-Type", "application/json")
		if !answer(h, w, path) {
			h.answer(w, path)
		}
	}))
	t.Cleanup(server.Close)
	h.url = server.URL + "/"
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	h.CA = New(plan.Issuer{Directory: h.url + "directory"}, Options{Roots: roots, Store: &memory{data: map[string][]byte{}}})
	t.Cleanup(h.Close)
	return h
}

func (h *hostile) answer(w http.ResponseWriter, path string) {
	switch path {
	case "directory":
		h.say(w, map[string]string{"newNonce": h.url + "nonce", "newAccount": h.url + "account", "newOrder": h.url + "order", "renewalInfo": h.url + "renewal"})
	case "account":
		w.Header().Set("Location", h.url+"account/1")
		w.WriteHeader(http.StatusCreated)
		h.say(w, map[string]string{"status": "valid"})
	case "order":
		w.Header().Set("Location", h.url+"order/1")
		w.WriteHeader(http.StatusCreated)
		h.say(w, map[string]any{"status": "pending", "authorizations": []string{h.url + "authz"}, "finalize": h.url + "finalize"})
	case "authz":
		h.say(w, map[string]any{"status": "valid", "identifier": acme.Identifier{Type: "dns", Value: "a.example.com"}})
	case "finalize":
		h.say(w, map[string]any{"status": "valid", "certificate": h.url + "cert"})
	}
}

func (h *hostile) say(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (h *hostile) count(path string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[path]
}

var errSeen = errors.New("it is seen")

func TestT03_WhatIsPresentedIsOursWhateverTheCASays(t *testing.T) {
	for _, c := range []struct {
		what, name string
		id         acme.Identifier
		token      string
		want       acme.Identifier // zero = nothing is presented
	}{
		{"as it should be", "a.example.com", acme.Identifier{Type: "dns", Value: "A.example.com"}, "tok-en_1", acme.Identifier{Type: "dns", Value: "a.example.com"}},
		{"a wildcard", "*.example.com", acme.Identifier{Type: "dns", Value: "example.com"}, "token", acme.Identifier{Type: "dns", Value: "example.com"}},
		{"an address", "2001:db8::1", acme.Identifier{Type: "ip", Value: "2001:db8:0:0::1"}, "token", acme.Identifier{Type: "ip", Value: "2001:db8::1"}},
		{"another name", "a.example.com", acme.Identifier{Type: "dns", Value: "victim.com"}, "token", acme.Identifier{}},
		{"another type", "192.0.2.1", acme.Identifier{Type: "dns", Value: "192.0.2.1"}, "token", acme.Identifier{}},
		{"no name", "a.example.com", acme.Identifier{}, "token", acme.Identifier{}},
		{"a token with a path", "a.example.com", acme.Identifier{Type: "dns", Value: "a.example.com"}, "../admin", acme.Identifier{}},
		{"a token with a key", "a.example.com", acme.Identifier{Type: "dns", Value: "a.example.com"}, "token.thumbprint", acme.Identifier{}},
		{"a long token", "a.example.com", acme.Identifier{Type: "dns", Value: "a.example.com"}, strings.Repeat("a", maxToken+1), acme.Identifier{}},
		{"no token", "a.example.com", acme.Identifier{Type: "dns", Value: "a.example.com"}, "", acme.Identifier{}},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, func(h *hostile, w http.ResponseWriter, path string) bool {
				if path != "authz" {
					return false
				}
				h.say(w, map[string]any{"status": "pending", "identifier": c.id, "challenges": []map[string]string{{
					"type": "http-01", "url": h.url + "challenge", "status": "pending", "token": c.token, "keyAuthorization": c.token + ".of-somebody-else",
				}}})
				return true
			})
			var seen []acme.Challenge
			_, err := h.Order(t.Context(), &Wish{Name: c.name, Challenges: []Challenge{{Type: "http-01", Present: func(_ context.Context, ch acme.Challenge) (func(), error) {
				seen = append(seen, ch)
				return nil, errSeen
			}}}})
			if c.want == (acme.Identifier{}) {
				var f *Failure
				if len(seen) != 0 || !errors.As(err, &f) || f.Kind != Down {
					t.Errorf("%+v is presented: %v", seen, err)
				}
				return
			}
			if len(seen) != 1 || !errors.Is(err, errSeen) {
				t.Fatalf("%+v is presented: %v", seen, err)
			}
			thumb, err := h.desk.account.Thumbprint()
			if err != nil {
				t.Fatal(err)
			}
			if ch := seen[0]; ch.Identifier != c.want || ch.Token != c.token || ch.KeyAuthorization != c.token+"."+thumb {
				t.Errorf("%+v is presented", ch)
			}
		})
	}
}

func TestT03_ACAThatGoesOnAndOnIsLeft(t *testing.T) {
	long := strings.Repeat("-", maxAnswer/2)
	for what, answer := range map[string]func(h *hostile, w http.ResponseWriter, path string) bool{
		"issuer after issuer": func(h *hostile, w http.ResponseWriter, path string) bool {
			if path != "cert" {
				return false
			}
			w.Header().Set("Content-Type", "application/pem-certificate-chain")
			w.Header().Set("Link", "<"+h.url+"cert/up>; rel=\"up\"")
			return true
		},
		"large issuers": func(h *hostile, w http.ResponseWriter, path string) bool {
			if path != "cert" {
				return false
			}
			w.Header().Set("Content-Type", "application/pem-certificate-chain")
			w.Header().Set("Link", "<"+h.url+"cert/up>; rel=\"up\"")
			_, _ = io.WriteString(w, long)
			return true
		},
		"large authorizations": func(h *hostile, w http.ResponseWriter, path string) bool {
			switch path {
			case "order":
				w.Header().Set("Location", h.url+"order/1")
				w.WriteHeader(http.StatusCreated)
				h.say(w, map[string]any{"status": "pending", "authorizations": slices.Repeat([]string{h.url + "authz"}, 1000), "finalize": h.url + "finalize"})
			case "authz":
				h.say(w, map[string]any{"status": "valid", "x": long})
			default:
				return false
			}
			return true
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, answer)
			_, err := h.Order(t.Context(), &Wish{Name: "a.example.com"})
			var f *Failure
			if !errors.As(err, &f) || !errors.Is(err, errTooMuch) || f.Kind != Down || t.Context().Err() != nil {
				t.Errorf("the order ended with %.300v", err)
			}
			most := chainBudget.requests
			if what == "large issuers" {
				most = 2*chainBudget.bytes/len(long) + 1
			}
			if n := h.count("cert"); n > most {
				t.Errorf("%d requests for a certificate", n)
			}
			if n := h.count("authz"); n > 2*orderBudget.bytes/maxAnswer {
				t.Errorf("%d requests for authorizations", n)
			}
		})
	}
}

func TestT05_WhatACASaysIsBounded(t *testing.T) {
	long := strings.Repeat("very long ", 2000)
	part := map[string]any{"type": long, "detail": long, "identifier": map[string]string{"type": "dns", "value": long}}
	problem := func(kind string) map[string]any {
		return map[string]any{"type": kind, "detail": long, "title": long, "instance": long, "status": 403, "subproblems": []any{part, part, part, part, part, part}}
	}
	for what, c := range map[string]struct {
		path   string
		status int
		say    any
	}{
		"a type":             {"order", http.StatusForbidden, problem(long)},
		"a page to see":      {"order", http.StatusForbidden, problem(acme.ProblemTypeUserActionRequired)},
		"a challenge's type": {"authz", http.StatusOK, map[string]any{"status": "pending", "challenges": []any{map[string]string{"type": long}}}},
		"a status":           {"authz", http.StatusOK, map[string]any{"status": long}},
		"an identifier":      {"authz", http.StatusOK, map[string]any{"status": "pending", "identifier": acme.Identifier{Type: "dns", Value: long}, "challenges": []any{map[string]string{"type": "http-01"}}}},
		"a link":             {"finalize", http.StatusOK, map[string]any{"status": "valid", "certificate": long}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, func(h *hostile, w http.ResponseWriter, path string) bool {
				if path != c.path {
					return false
				}
				if c.status != http.StatusOK {
					w.Header().Set("Content-Type", "application/problem+json")
				}
				w.WriteHeader(c.status)
				h.say(w, c.say)
				return true
			})
			_, err := h.Order(t.Context(), &Wish{Name: "a.example.com", Challenges: []Challenge{{Type: "http-01"}}})
			if err == nil || len(err.Error()) > 5<<10 {
				t.Errorf("%.300v", err)
			}
		})
	}
}

func TestT05_WhatACASaysOfRenewalsIsBounded(t *testing.T) {
	long := strings.Repeat("very long ", 2000)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), AuthorityKeyId: []byte{1}}
	for what, status := range map[string]int{"a problem": http.StatusForbidden, "a time": http.StatusOK} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, func(h *hostile, w http.ResponseWriter, path string) bool {
				if path != "renewal" {
					return false
				}
				if status != http.StatusOK {
					w.Header().Set("Content-Type", "application/problem+json")
				}
				w.WriteHeader(status)
				h.say(w, map[string]any{"type": long, "detail": long, "suggestedWindow": map[string]string{"start": long}})
				return true
			})
			if _, err := h.Window(t.Context(), leaf); err == nil || len(err.Error()) > 2<<10 || h.count("renewal") != 1 {
				t.Errorf("%.300v", err)
			}
		})
	}
}

func TestT05_AGateThatAClockAheadClosedIsOpen(t *testing.T) {
	g, now := gate{}, time.Now()
	for range gateAfter {
		g.failed(now, time.Hour, errSeen)
	}
	if until, why := g.closed(now); !until.Equal(now.Add(gateMost)) || !errors.Is(why, errSeen) {
		t.Errorf("closed until %v: %v", until, why)
	}
	now = now.Add(-48 * time.Hour)
	if until, why := g.closed(now); until.After(now) || why != nil {
		t.Errorf("closed until %v: %v", until, why)
	}
	g.failed(now, 0, errSeen)
	if until, _ := g.closed(now); !until.After(now) || until.After(now.Add(gateMost)) {
		t.Errorf("then closed until %v", until)
	}
}
