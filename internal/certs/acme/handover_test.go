package acme

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/acmetest"
	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/state"
)

// slowHook sets the first record of a.example.com until it is killed, and removes it once free is there; others it refuses.
const slowHook = `#!/bin/sh
echo "$1 $2" >>log
case "$1 $2" in
"present _acme-challenge.a.example.com")
	[ -e again ] && exit 1
	touch again
	exec sleep 600 ;;
"cleanup _acme-challenge.a.example.com")
	until [ -e free ]; do sleep 0.02; done
	echo cleaned >>log
	exit 0 ;;
present*) exit 1 ;;
esac
`

func TestT13_ANameThatComesBackIsOrderedAfterItsOrderHasEnded(t *testing.T) {
	dir := t.TempDir()
	hook := filepath.Join(dir, "hook")
	if err := os.WriteFile(hook, []byte(slowHook), 0o700); err != nil {
		t.Fatal(err)
	}
	said := func() string { text, _ := os.ReadFile(filepath.Join(dir, "log")); return string(text) }
	var orders, early atomic.Int64
	s := newScene(t, acmetest.Options{Before: func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/order-plz" && strings.Contains(payload(t, r), "a.example.com") && orders.Add(1) > 1 && !strings.Contains(said(), "cleaned") {
			early.Add(1)
		}
		return false
	}})
	s.set.Challenges, s.set.DNS = []string{dns01}, plan.DNSProvider{Exec: hook}
	r := s.run(t, Options{}, "a.example.com")
	r.until("its record is being set", func() bool { _, err := os.Stat(filepath.Join(dir, "again")); return err == nil })
	r.follow(s.set)
	r.until("its record is being removed", func() bool { return strings.Contains(said(), "cleanup _acme-challenge.a.") })
	r.follow(s.set, auto("a.example.com")...)
	if err := r.Renew("a.example.com"); err != nil {
		t.Fatal(err)
	}
	r.follow(s.set, auto("a.example.com", "c.example.com")...)
	r.until("another order of the same moment ends", func() bool { return r.one("c.example.com").State == Failing })
	if st := r.one("a.example.com"); st.State == Ordering || orders.Load() != 1 {
		t.Errorf("an order began while another for the name is under way: %+v", st)
	}
	if err := os.WriteFile(filepath.Join(dir, "free"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// What was given up counts for nothing: this is its first attempt.
	r.until("it is ordered anew", func() bool { st := r.one("a.example.com"); return st.State == Failing && orders.Load() == 2 })
	if st := r.one("a.example.com"); st.Attempts != 1 || early.Load() != 0 {
		t.Errorf("%+v; %d orders came early", st, early.Load())
	}
}

// still is an Issuer that does not run.
func still(t *testing.T) *Issuer {
	t.Helper()
	d, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return New(Options{State: d})
}

func TestT13_WhatAnOrderBringsForANameThatCameBackServes(t *testing.T) {
	a := still(t)
	set := &plan.ACME{Challenges: []string{http01}}
	a.Follow(set, auto("a.example.com"))
	e := (*a.index.Load())["a.example.com"]
	a.Follow(set, nil)
	a.Follow(set, auto("a.example.com"))
	serial := put(t, a.o.State.Path(), "", "a.example.com", 90*24*time.Hour)
	made := a.read("a.example.com")
	issued := &authority.Issued{Certificate: made.cert.Load(), Key: []byte(made.rec.Key), Chain: []byte(made.rec.Chain)}
	a.obtained(e, authority.New(plan.Issuer{Directory: "https://ca.example/directory"}, authority.Options{}), issued, false)
	if c := a.Get("a.example.com"); c == nil || c.Leaf.SerialNumber.Cmp(serial) != 0 {
		t.Fatal("the certificate does not serve")
	}
	if st := a.Status()[0]; st.State != Valid || st.Issuer != "ca.example" {
		t.Errorf("%+v", st)
	}
}

func TestT13_ANameThatARouteSpellsOutKeepsWhatItHadOnDemand(t *testing.T) {
	stub := acmetest.NewStub(t, orders(&acmetest.Refusal{Status: 403, Type: "caa", Detail: "CAA forbids it"}))
	dir := t.TempDir()
	serial := put(t, dir, stub.Directory, "a.customer.example", 90*24*time.Hour)
	set, _ := onDemand(t, stub, 10, func(string) int { return http.StatusOK })
	set.OnDemand.Ask = ""
	r := run(t, nil, dir, Options{}, set, auto("?*.customer.example")...)
	if c, err := r.OnDemand(t.Context(), "a.customer.example"); err != nil || c.Leaf.SerialNumber.Cmp(serial) != 0 {
		t.Fatal(c, err)
	}
	if _, err := r.OnDemand(t.Context(), "b.customer.example"); err == nil {
		t.Fatal("a certificate came from nowhere")
	}
	r.until("the second is refused", func() bool { return r.one("b.customer.example").State == Failing })
	asked := stub.Count("order")
	r.follow(set, auto("?*.customer.example", "a.customer.example", "b.customer.example")...)
	c := r.Get("a.customer.example")
	if c == nil || c.Leaf.SerialNumber.Cmp(serial) != 0 {
		t.Error("the certificate does not serve any more")
	}
	if st := r.one("a.customer.example"); st.State != Valid || st.OnDemand || st.Issuer == "" {
		t.Errorf("%+v", st)
	}
	if st := r.one("b.customer.example"); st.State != Failing || st.OnDemand || st.Attempts != 1 {
		t.Errorf("%+v", st)
	}
	r.follow(set, auto("?*.customer.example", "a.customer.example", "b.customer.example", "c.customer.example")...)
	r.until("another is asked for", func() bool { return r.one("c.customer.example").State == Failing })
	if n := stub.Count("order"); n != asked+1 {
		t.Errorf("%d orders more than that of the new name", n-asked-1)
	}
}

func TestT13_WhoAsksForANameThatIsTakenOutIsTold(t *testing.T) {
	stub := acmetest.NewStub(t, orders(&acmetest.Refusal{Status: 403, Type: "caa", Detail: "CAA forbids it"}))
	set, _ := onDemand(t, stub, 10, func(string) int { return http.StatusOK })
	set.OnDemand.Ask = ""
	closed := func(plan.Addr) bool { return false } // so that the order does not begin
	r := run(t, nil, t.TempDir(), Options{Listening: closed}, set, auto("?*.customer.example")...)
	over := make(chan error, 1)
	go func() {
		_, err := r.OnDemand(t.Context(), "a.customer.example")
		over <- err
	}()
	r.until("the order is to begin", func() bool { return r.one("a.customer.example").OnDemand })
	r.follow(set)
	select {
	case err := <-over:
		if err == nil {
			t.Error("a certificate came from nowhere")
		}
	case <-time.After(patience):
		t.Fatal("who asked waits without end")
	}
	if n := stub.Count("order"); n != 0 {
		t.Errorf("%d orders", n)
	}
}
