package daemon

import "testing"

// TestALeashOwnsWhatNobodyElseHas holds what becomes of names whose leash ends while they are being had.
func TestALeashOwnsWhatNobodyElseHas(t *testing.T) {
	l := newLeashes(nil)
	l.notes["a"], l.notes["b"] = "A", "B"
	if fresh, err := l.claim(l.leases, "lease", "a", "x", false); !fresh || err != nil {
		t.Fatalf("a free name: %v %v", fresh, err)
	}
	if l.late("a", "x") {
		t.Error("a leash that lives is late")
	}
	if _, err := l.claim(l.leases, "lease", "b", "x", false); err == nil {
		t.Error("a name of another leash is had")
	}
	delete(l.notes, "a")
	if !l.late("a", "x") {
		t.Error("a lease of a leash that has ended is kept")
	}
	l.forget(l.leases, "a")
	if !l.late("a", "x") {
		t.Error("a lease of a leash that is forgotten is kept")
	}
	if _, err := l.claim(l.leases, "lease", "b", "x", false); err != nil {
		t.Fatal(err)
	}
	if l.late("a", "x") {
		t.Error("the lease is another's by now, and would be taken from it")
	}
	if l.unclaim(l.leases, "a", "x"); l.leases["x"] != "b" {
		t.Error("a claim that is undone late takes another's")
	}
}
