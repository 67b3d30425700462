package logs

import (
	"context"
	"sync"
)

// A Ring keeps the newest entries of something and lets any number of people follow it. It holds no more than its
// size, whoever reads how slowly.
type Ring[T any] struct {
	weigh func(T) int // nil: entries have no weight
	limit int         // of the weight of all, the newest excepted

	mu     sync.Mutex    // guards what follows
	slots  []T           // entry n stands in slots[n%len]
	first  uint64        // those before it are gone
	next   uint64        // number of the entry to come; the first is 1
	weight int           // of all
	more   chan struct{} // closed at the next Add; nil while nobody waits
}

// NewRing returns a ring of n entries, at least one.
func NewRing[T any](n int) *Ring[T] { return &Ring[T]{slots: make([]T, max(n, 1)), first: 1, next: 1} }

// NewWeighedRing returns a ring of n entries that keeps fewer where they weigh more than limit together.
func NewWeighedRing[T any](n, limit int, weigh func(T) int) *Ring[T] {
	r := NewRing[T](n)
	r.weigh, r.limit = weigh, limit
	return r
}

// Add appends an entry, drops the oldest if the ring is full, and returns the entry's number. Numbers count from 1.
func (r *Ring[T]) Add(v T) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.next
	if n-r.first == uint64(len(r.slots)) {
		r.drop()
	}
	r.slots[n%uint64(len(r.slots))] = v
	r.next++
	if r.weigh != nil {
		for r.weight += r.weigh(v); r.weight > r.limit && r.first < n; {
			r.drop()
		}
	}
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
	return n
}

// drop lets go of the oldest entry. mu is held.
func (r *Ring[T]) drop() {
	at := &r.slots[r.first%uint64(len(r.slots))]
	if r.weigh != nil {
		r.weight -= r.weigh(*at)
	}
	var none T
	*at = none
	r.first++
}

// Last returns the newest n entries kept, oldest first.
func (r *Ring[T]) Last(n int) []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := r.first
	if have := r.next - from; uint64(max(n, 0)) < have {
		from = r.next - uint64(max(n, 0))
	}
	out := make([]T, 0, r.next-from)
	for ; from < r.next; from++ {
		out = append(out, r.slots[from%uint64(len(r.slots))])
	}
	return out
}

// End is the number that the next entry will get; a cursor there sees only what is to come.
func (r *Ring[T]) End() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

// Next returns the entry numbered from, or the oldest kept when that one is gone already, with its number. It waits
// for an entry that is still to come until ctx ends. A follower asks next for number+1; number-from is how many it
// missed.
func (r *Ring[T]) Next(ctx context.Context, from uint64) (v T, number uint64, err error) {
	for {
		r.mu.Lock()
		if at := max(from, r.first); at < r.next {
			v = r.slots[at%uint64(len(r.slots))]
			r.mu.Unlock()
			return v, at, nil
		}
		if r.more == nil {
			r.more = make(chan struct{})
		}
		more := r.more
		r.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return v, 0, ctx.Err()
		}
	}
}
