package acme

import (
	"context"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/acmetest"
)

// A process that takes over has read the store while the one before had orders under way. What became of them counts.
func TestT02_WhatTheProcessBeforeWroteLastIsTaken(t *testing.T) {
	stub := acmetest.NewStub(t, orders(&acmetest.Refusal{Status: 403, Type: "caa", Detail: "CAA forbids it"}))
	a := still(t)
	dir := a.o.State.Path()
	const got, old, given, failed = "got.example.com", "old.example.com", "given-up.example.com", "failed.example.com"
	for _, name := range []string{got, given, failed} {
		a.note(name, schedule{Attempts: 4, Tried: time.Now(), Wait: 6 * 3600}) // under way
	}
	put(t, dir, stub.Directory, old, 90*24*time.Hour)
	set := stubSet(stub)
	names := auto(got, old, given, failed)
	if err := a.Load(set, names); err != nil {
		t.Fatal(err)
	}
	a.Follow(set, names)

	a.note(got, schedule{})
	serial := put(t, dir, stub.Directory, got, 90*24*time.Hour)
	next := put(t, dir, stub.Directory, old, 90*24*time.Hour)
	a.note(given, schedule{})
	a.note(failed, schedule{Attempts: 5, Tried: time.Now(), Wait: 6 * 3600, Error: "said last"})

	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	one := func(name string) State {
		for _, s := range a.Status() {
			if s.Name == name {
				return s
			}
		}
		return State{}
	}
	eventually(t, "the order that was given up is made", func() bool { return one(given).State == Failing && one(given).Attempts == 1 })
	if c := a.Get(got); c == nil || c.Leaf.SerialNumber.Cmp(serial) != 0 || one(got).State != Valid {
		t.Errorf("what was obtained last is not served: %+v", one(got))
	}
	if c := a.Get(old); c == nil || c.Leaf.SerialNumber.Cmp(next) != 0 {
		t.Errorf("what was renewed last is not served: %+v", one(old))
	}
	if st := one(failed); st.Attempts != 5 || st.Error != "said last" {
		t.Errorf("%+v", st)
	}
	if n := stub.Count("order"); n != 1 {
		t.Errorf("%d orders, want that of %s alone", n, given)
	}
}
