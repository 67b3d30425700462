//go:build linux

package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// A Source says where clients may go. Its methods are called from many goroutines.
type Source interface {
	// Pick chooses an endpoint for a client of that class; false = there is none now.
	Pick(r *rand.Rand, c Class) (Endpoint, bool)
	// Beside chooses another HTTP name on the port of e.
	Beside(r *rand.Rand, e Endpoint) (Endpoint, bool)
}

// A Fleet is clients of all kinds that never retry.
type Fleet struct {
	Source Source
	Report func(Report)  // called from many goroutines
	Scale  int           // 1 = forty clients
	Think  time.Duration // the mean pause between two exchanges of a client; 0 = 10 ms
	Long   time.Duration // how long most long exchanges take; 0 = 3 s
	Seed   uint64
	Prefix string // of all nonces

	gate    sync.RWMutex // held for reading during a session, for writing during a pause
	pausing atomic.Bool
	nonces  atomic.Uint64
}

// Run lets the clients work until ctx ends, and returns when the last of them is done.
func (f *Fleet) Run(ctx context.Context) {
	if f.Think == 0 {
		f.Think = 10 * time.Millisecond
	}
	if f.Long == 0 {
		f.Long = 3 * time.Second
	}
	var all sync.WaitGroup
	kinds := Kinds()
	for i := range kinds {
		for range kinds[i].Workers * max(1, f.Scale) {
			rng := rand.New(rand.NewPCG(f.Seed, f.nonces.Add(1)))
			all.Add(1)
			go func() {
				defer all.Done()
				f.work(ctx, &kinds[i], rng)
			}()
		}
	}
	all.Wait()
}

func (f *Fleet) work(ctx context.Context, k *Kind, rng *rand.Rand) {
	for wait(ctx, f.think(rng)) {
		to, ok := f.Source.Pick(rng, k.Class)
		if !ok {
			continue
		}
		long := f.Long
		if rng.IntN(4) == 0 {
			long *= 3
		}
		f.gate.RLock()
		// What has begun goes on to its end: ctx does not cut it.
		k.run(context.WithoutCancel(ctx), &session{f: f, kind: k, rng: rng, to: to, long: long})
		f.gate.RUnlock()
	}
}

// Pause waits until no client has a connection, and keeps it so until Resume.
func (f *Fleet) Pause() {
	f.pausing.Store(true)
	f.gate.Lock()
}

// Resume ends a pause.
func (f *Fleet) Resume() {
	f.pausing.Store(false)
	f.gate.Unlock()
}

// think is a pause around the mean.
func (f *Fleet) think(rng *rand.Rand) time.Duration {
	return time.Duration(rng.Int64N(2 * int64(f.Think)))
}

func (f *Fleet) nonce() string { return fmt.Sprintf("%s%08d", f.Prefix, f.nonces.Add(1)) }
