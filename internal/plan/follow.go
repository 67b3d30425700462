package plan

import (
	"context"
	"sync/atomic"
)

// A Follower makes one part of the machine match a plan.
type Follower interface {
	// Prepare does everything about following p that can fail, and shows none of it. It may read files, compile,
	// bind and listen; it may not start a process, resolve, dial, or take a second.
	Prepare(ctx context.Context, p *Plan) (Step, error)
}

// A Step is a prepared change: either Commit and then Retire are called, or Abort, each once.
type Step interface {
	Commit() // the new becomes visible; cannot fail
	Retire() // drops the old plan's own reference, nothing more
	Abort()  // Prepare never happened
}

// Life counts the users of a live thing that follows the plan. The plan holds one reference and every exchange, tunnel
// or thing that builds on it holds another; the thing ends when the last is dropped.
type Life struct {
	n   atomic.Int64
	end func()
}

// Start gives the life its first reference, the plan's, and the func that ends the thing. It is called once, before the
// thing is shared.
func (l *Life) Start(end func()) { l.end = end; l.n.Store(1) }

// Hold takes a reference. It reports false when the thing has already ended, and then nothing was taken.
func (l *Life) Hold() bool {
	for {
		n := l.n.Load()
		if n <= 0 {
			return false
		}
		if l.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Drop gives a reference back. The last one ends the thing, in the caller's goroutine.
func (l *Life) Drop() {
	if n := l.n.Add(-1); n == 0 {
		l.end()
	} else if n < 0 {
		panic("plan: Life dropped more often than held")
	}
}

// Users is the number of references held, the plan's own included.
func (l *Life) Users() int64 { return l.n.Load() }
