package logs

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

func TestRing_KeepsTheNewest(t *testing.T) {
	r := NewRing[int](3)
	if got := r.Last(5); len(got) != 0 {
		t.Errorf("an empty ring holds %v", got)
	}
	for i := range 10 {
		if n := r.Add(i * 10); n != uint64(i+1) {
			t.Fatalf("entry %d got number %d", i, n)
		}
	}
	for n, want := range map[int][]int{-1: {}, 0: {}, 2: {80, 90}, 3: {70, 80, 90}, 99: {70, 80, 90}} {
		if got := r.Last(n); !slices.Equal(got, want) {
			t.Errorf("Last(%d) = %v", n, got)
		}
	}
}

func TestRing_SlowFollowerMissesAndLearnsHowMany(t *testing.T) {
	r := NewRing[string](2)
	from := r.End()
	for _, s := range []string{"a", "b", "c", "d"} {
		r.Add(s)
	}
	v, n, err := r.Next(context.Background(), from)
	if v != "c" || n-from != 2 || err != nil {
		t.Errorf("%q, number %d, %v", v, n, err)
	}
}

func TestRing_FollowersSeeEveryEntryInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing[int](100)
		var wg sync.WaitGroup
		for range 4 {
			from := r.End()
			wg.Go(func() {
				for want := range 100 {
					v, n, err := r.Next(t.Context(), from)
					if v != want || err != nil {
						t.Errorf("%d for %d, %v", v, want, err)
						return
					}
					from = n + 1
				}
			})
		}
		for i := range 100 {
			if i%3 == 0 {
				synctest.Wait() // all of them wait for the next
			}
			r.Add(i)
		}
		wg.Wait()
	})
}

func TestRing_WaitEndsWithItsContext(t *testing.T) {
	r := NewRing[int](1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := r.Next(ctx, r.End()); err == nil {
		t.Error("no error")
	}
	r.Add(7) // what is there is still given
	if v, _, err := r.Next(ctx, 1); v != 7 || err != nil {
		t.Error(v, err)
	}
}

func TestRing_HoldsNoMoreThanItsWeight(t *testing.T) {
	r := NewWeighedRing(4, 10, func(s string) int { return len(s) })
	for _, q := range []struct{ add, kept string }{
		{"aaa", "aaa"},
		{"bbb", "aaa bbb"},
		{"cccc", "aaa bbb cccc"},
		{"d", "bbb cccc d"},
		{"e", "bbb cccc d e"},
		{"f", "cccc d e f"},
		{"longer than all of it", "longer than all of it"},
		{"g", "g"},
		{"h", "g h"},
	} {
		end := r.Add(q.add) + 1
		if got := strings.Join(r.Last(10), " "); got != q.kept || r.End() != end {
			t.Errorf("after %s: %q, want %q", q.add, got, q.kept)
		}
	}
	if v, n, err := r.Next(context.Background(), 1); v != "g" || n != r.End()-2 || err != nil {
		t.Errorf("%q %d %v", v, n, err)
	}
}
