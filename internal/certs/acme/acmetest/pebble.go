package acmetest

import (
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/challtestsrv"
	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// Options is how a Pebble is to be.
type Options struct {
	HTTPPort, TLSPort int               // where it comes to validate, at 127.0.0.1
	DNS               string            // host:port of its resolver; "" = its own test server, for which every name is 127.0.0.1
	RejectNonces      int               // percent of good nonces that it rejects
	SlowValidation    int               // up to so many seconds before it comes; 0 = at once
	EAB               map[string]string // accounts need one of these: kid -> base64url
	Profiles          map[string]ca.Profile
	RetryAfter        int // seconds that it asks for between two looks at an authorization or order
	// Before sees every request first; true = it has answered.
	Before func(w http.ResponseWriter, r *http.Request) bool
}

// A Pebble is Let's Encrypt's test CA, in this process.
type Pebble struct {
	Directory string                 // URL
	Root      string                 // PEM file of the CA that Directory's own certificate comes from
	Issuer    []byte                 // PEM of the root of what it issues
	DNS       *challtestsrv.ChallSrv // nil with a resolver of one's own
	Manage    http.Handler
}

// environ is how Pebble takes a part of its settings.
var environ sync.Mutex

// Start runs a Pebble until the test ends.
func Start(t testing.TB, o Options) *Pebble {
	t.Helper()
	p := &Pebble{}
	quiet := log.New(io.Discard, "", 0)
	if os.Getenv("PEBBLE_LOG") != "" {
		quiet = log.New(os.Stderr, "pebble ", log.Lmicroseconds)
	}
	if o.DNS == "" {
		o.DNS = p.resolver(t, quiet)
	}
	if len(o.Profiles) == 0 {
		o.Profiles = map[string]ca.Profile{"default": {Description: "the default"}}
	}
	environ.Lock()
	defer environ.Unlock()
	for name, value := range map[string]string{
		"PEBBLE_WFE_NONCEREJECT": strconv.Itoa(o.RejectNonces), "PEBBLE_AUTHZREUSE": "0",
		"PEBBLE_VA_NOSLEEP": map[bool]string{true: "1", false: "0"}[o.SlowValidation == 0], "PEBBLE_VA_SLEEPTIME": strconv.Itoa(o.SlowValidation),
	} {
		if err := os.Setenv(name, value); err != nil {
			t.Fatal(err)
		}
	}
	store := db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, o.Profiles)
	validation := va.New(quiet, o.HTTPPort, o.TLSPort, false, o.DNS, store)
	for id, key := range o.EAB {
		if err := store.AddExternalAccountKeyByID(id, key); err != nil {
			t.Fatal(err)
		}
	}
	front := wfe.New(quiet, store, validation, authority, []string{"pebble.test"}, false, len(o.EAB) > 0, o.RetryAfter, o.RetryAfter)
	next := front.Handler()
	p.Manage = front.ManagementHandler()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.Before == nil || !o.Before(w, r) {
			next.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	p.Directory = s.URL + wfe.DirectoryPath
	p.Root = writeRoot(t, s)
	p.Issuer = authority.GetRootCert(0).PEM()
	return p
}

// resolver starts the DNS server that comes with Pebble.
func (p *Pebble) resolver(t testing.TB, quiet *log.Logger) string {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		_ = l.Close()
		s, err := challtestsrv.New(challtestsrv.Config{DNSAddrs: []string{addr}, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		s.SetDefaultDNSIPv6("")
		s.Run()
		t.Cleanup(s.Shutdown)
		for range 200 {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err == nil {
				_ = c.Close()
				p.DNS = s
				return addr
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	t.Fatal("Pebble's DNS server has no port")
	return ""
}

func writeRoot(t testing.TB, s *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "root.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
