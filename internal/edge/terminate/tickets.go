package terminate

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// rotation is how long new tickets are sealed with one secret.
	rotation = 8 * time.Hour
	// generations are how many secrets open tickets: one that was sealed last thing with a secret is good for a day.
	generations = 4
)

// Tickets are the secrets that the session tickets of every policy are sealed with. They are random, stand in memory
// alone, and make room for new ones every eight hours. Each policy has keys of its own made of them, so that a ticket
// of one opens nothing under another. The zero Tickets is ready for use.
type Tickets struct {
	mu   sync.Mutex // guards the change of ring
	ring atomic.Pointer[ring]
}

// ring are the secrets of some moment, the newest first. It never changes.
type ring struct {
	masters []master
}

type master struct {
	secret [32]byte
	since  time.Time
}

func (r *ring) due(now time.Time) bool {
	age := now.Sub(r.masters[0].since)
	return age >= rotation || age < -rotation // a clock that was set back may not keep a secret for ever
}

// now is the ring to go by, with a new secret where the newest has had its time.
func (t *Tickets) now() *ring {
	r, now := t.ring.Load(), time.Now()
	if r != nil && !r.due(now) {
		return r
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r = t.ring.Load()
	if r != nil && !r.due(now) {
		return r
	}
	next := &ring{masters: make([]master, 1, generations)}
	next.masters[0].since = now
	_, _ = rand.Read(next.masters[0].secret[:]) // never fails
	if r != nil {
		next.masters = append(next.masters, alive(r.masters, now)...)
	}
	next.masters = next.masters[:min(len(next.masters), generations)]
	t.ring.Store(next)
	return next
}

// alive leaves out what is too old to open anything.
func alive(list []master, now time.Time) []master {
	return slices.DeleteFunc(slices.Clone(list), func(m master) bool {
		age := now.Sub(m.since)
		return age >= generations*rotation || age < -rotation
	})
}

// The export is a version, and for each secret when it was made (seconds) and its bytes.
const (
	exportVersion = 1
	exportSize    = 8 + 32
)

// Export is what the process that takes this one's place needs to open the tickets of now. It is secret.
func (t *Tickets) Export() []byte {
	out := []byte{exportVersion}
	for _, m := range t.now().masters {
		out = binary.BigEndian.AppendUint64(out, uint64(m.since.Unix()))
		out = append(out, m.secret[:]...)
	}
	return out
}

var errExport = errors.New("session tickets: not an export of this version")

// Import takes over what another process exported, in place of all that is there.
func (t *Tickets) Import(b []byte) error {
	if len(b) < 1+exportSize || b[0] != exportVersion || (len(b)-1)%exportSize != 0 || (len(b)-1)/exportSize > generations {
		return errExport
	}
	var list []master
	for b = b[1:]; len(b) > 0; b = b[exportSize:] {
		m := master{since: time.Unix(int64(binary.BigEndian.Uint64(b)), 0)}
		copy(m.secret[:], b[8:])
		list = append(list, m)
	}
	if list = alive(list, time.Now()); len(list) == 0 {
		return nil // nothing of it opens anything any more
	}
	slices.SortStableFunc(list, func(a, b master) int { return b.since.Compare(a.since) })
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ring.Store(&ring{masters: list})
	return nil
}
