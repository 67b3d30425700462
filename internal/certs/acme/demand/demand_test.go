package demand

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestUnder(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a.example", "a.example", true},
		{"a.example", "b.example", false},
		{"a.example", "x.a.example", false},
		{"*.example", "a.example", true},
		{"*.example", "a.b.example", false},
		{"*.example", "example", false},
		{"*.example", ".example", false},
		{"**.example", "a.example", true},
		{"**.example", "a.b.example", true},
		{"**.example", "example", false},
		{"**.example", "aexample", false},
		{"**.example", ".example", false},
		{"*", "a.example", false},
		{"", "a.example", false},
	} {
		if got := Under(c.pattern, c.name); got != c.want {
			t.Errorf("Under(%q, %q) is %v", c.pattern, c.name, got)
		}
	}
}

type memory map[string][]byte

func (m memory) Read(name string) ([]byte, error) {
	if b, ok := m[name]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("read %s: %w", name, errGone)
}

func (m memory) Write(name string, data []byte) error { m[name] = data; return nil }

var errGone = fmt.Errorf("gone: %w", http.ErrMissingFile)

func TestT07_WhatIsRememberedIsBounded(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	now := time.Now()
	g := New(Options{Store: memory{}, Now: func() time.Time { return now }})
	g.Follow(&plan.OnDemand{Ask: s.URL, Allow: []string{"*.customer.example"}, PerHour: 1})
	for i := range maxNos + 100 {
		g.deny(fmt.Sprintf("n%d.customer.example", i), ErrDenied)
	}
	if n := len(g.nos); n > maxNos {
		t.Errorf("%d refusals are remembered", n)
	}
}

func TestT07_TheBudgetIsOfTheLastHour(t *testing.T) {
	now := time.Now()
	store := memory{}
	g := New(Options{Store: store, Now: func() time.Time { return now }})
	g.Follow(&plan.OnDemand{Allow: []string{"*.customer.example"}, PerHour: 2})
	spend := func(want bool) {
		t.Helper()
		if err := g.Spend("a.customer.example"); (err == nil) != want {
			t.Errorf("at %v: %v", now, err)
		}
	}
	spend(true)
	now = now.Add(40 * time.Minute)
	spend(true)
	spend(false)
	g = New(Options{Store: store, Now: func() time.Time { return now }})
	g.Follow(&plan.OnDemand{Allow: []string{"*.customer.example"}, PerHour: 2})
	spend(false)
	now = now.Add(25 * time.Minute) // the first is over an hour old
	spend(true)
	spend(false)
	now = now.Add(-100 * time.Hour) // the clock was ahead: what was begun in the future does not count
	spend(true)
}

func TestT07_ANoFromAClockThatWasAheadIsForgotten(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("domain") != "a.customer.example" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer s.Close()
	now := time.Now()
	g := New(Options{Store: memory{}, Now: func() time.Time { return now }})
	g.Follow(&plan.OnDemand{Ask: s.URL, Allow: []string{"*.customer.example"}, PerHour: 1})
	g.deny("a.customer.example", ErrDenied)
	if err := g.Admit(t.Context(), "a.customer.example"); !errors.Is(err, ErrDenied) {
		t.Errorf("a no is not remembered: %v", err)
	}
	now = now.Add(-48 * time.Hour)
	if err := g.Admit(t.Context(), "a.customer.example"); err != nil {
		t.Error(err)
	}
}
