package logs

import (
	"context"
	"sync"
)

// A Ring keeps the newest entries of something and lets any number of people follow it. It holds no more than its
// size, whoever reads how slowly.
type Ring[T any] struct {
	mu    sync.Mutex    // guards what follows
	slots []T           // entry n stands in slots[n%len]
	next  uint64        // number of the entry to come; the first is 1
	more  chan struct{} // closed at the next Add; nil while nobody waits
}

// NewRing returns a ring of n entries, at least one.
func NewRing[T any](n int) *Ring[T] { return &Ring[T]{slots: make([]T, max(n, 1)), next: 1} }

// Add appends an entry, drops the oldest if the ring is full, and returns the entry's number. Numbers count from 1.
func (r *Ring[T]) Add(v T) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.next
	r.slots[n%uint64(len(r.slots))] = v
	r.next++
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
	return n
}

// oldest is the number of the oldest entry kept. mu is held.
func (r *Ring[T]) oldest() uint64 {
	if kept := uint64(len(r.slots)); r.next > kept {
		return max(r.next-kept, 1)
	}
	return 1
}

// Last returns the newest n entries kept, oldest first.
func (r *Ring[T]) Last(n int) []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := r.oldest()
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
		if at := max(from, r.oldest()); at < r.next {
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
