// Package acmetest has CAs and name servers for tests: Let's Encrypt's Pebble in this process, a CA that refuses in any way
// one likes, and a primary name server that takes dynamic updates.
//
// It promises that all of them end with the test. It is never part of the program.
package acmetest

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A Refusal is how a Stub answers one request.
type Refusal struct {
	Status     int
	Type       string // of the problem, without its prefix; "" = no problem document
	Detail     string
	RetryAfter string
}

// A Stub is a CA that makes accounts, and then refuses.
type Stub struct {
	Directory string
	Root      string // PEM file

	mu     sync.Mutex
	counts map[string]int
	refuse func(path string, n int) *Refusal
}

// NewStub runs a CA until the test ends. refuse says how request n (from 1) of a path ("directory", "nonce", "account",
// "order") is answered; nil = as it should be, except that an order is never made.
func NewStub(t testing.TB, refuse func(path string, n int) *Refusal) *Stub {
	t.Helper()
	s := &Stub{counts: map[string]int{}, refuse: refuse}
	server := httptest.NewTLSServer(s)
	t.Cleanup(server.Close)
	s.Directory = server.URL + "/directory"
	s.Root = filepath.Join(t.TempDir(), "stub.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(s.Root, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// Count is how many requests there were for a path.
func (s *Stub) Count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[path]
}

// ServeHTTP answers as refuse says.
func (s *Stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path[1:]
	s.mu.Lock()
	s.counts[path]++
	n := s.counts[path]
	s.mu.Unlock()
	w.Header().Set("Replay-Nonce", fmt.Sprintf("%s%d", path, n))
	if f := s.refuse(path, n); f != nil {
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		if f.Type == "" {
			http.Error(w, f.Detail, f.Status)
			return
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(f.Status)
		_ = json.NewEncoder(w).Encode(map[string]any{"type": "urn:ietf:params:acme:error:" + f.Type, "detail": f.Detail, "status": f.Status})
		return
	}
	base := "https://" + r.Host + "/"
	w.Header().Set("Content-Type", "application/json")
	switch path {
	case "directory":
		_ = json.NewEncoder(w).Encode(map[string]string{
			"newNonce": base + "nonce", "newAccount": base + "account", "newOrder": base + "order", "revokeCert": base + "revoke", "keyChange": base + "key",
		})
	case "nonce":
	case "account":
		w.Header().Set("Location", base+"account/1")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte(`{"status": "valid"}`))
	default:
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "this CA makes no orders", "status": 403}`))
	}
}
