package guard

import (
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"time"
)

// Bounds of what is remembered of those who are not there now. Whoever holds a slot is remembered in any case, and
// their number is bounded by max_connections.
const (
	shardCount  = 64
	idlePeers   = 1 << 16
	idleBuckets = 1 << 15 // per route with a rate limit
	idleSources = 1 << 10
)

// key is who is counted: an IPv4 address, the /64 of an IPv6 address, or the hash of a field value.
type key struct{ hi, lo uint64 }

// keyOf is the key of an address. One who has a /64 has all of it.
func keyOf(ip netip.Addr) key {
	if ip.Is4() || ip.Is4In6() {
		b := ip.As4()
		return key{0, 0xffff<<32 | uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])}
	}
	if !ip.IsValid() {
		return key{0, 1}
	}
	b := ip.As16()
	var hi uint64
	for _, c := range b[:8] {
		hi = hi<<8 | uint64(c)
	}
	return key{hi: hi}
}

// rate is a token bucket's shape: one token each gap, at most span/gap+1 at once. Values are nanoseconds.
type rate struct{ gap, span int64 }

// newRate admits n per period. burst is how many may come at once; 0 means n of them.
func newRate(n float64, per time.Duration, burst int) *rate {
	gap := max(float64(per)/n, 1)
	at := float64(burst)
	if burst <= 0 {
		at = math.Max(math.Floor(n), 1)
	}
	const most = float64(1 << 60) // 36 years
	return &rate{gap: int64(math.Min(gap, most)), span: int64(math.Min(gap*(at-1), most))}
}

// table counts those who are there and the tokens of those who came, by key. Its memory is bounded by those who are
// there plus a fixed number of others, of whom the one longest gone is forgotten first.
type table struct {
	seed   maphash.Seed
	shards [shardCount]shard
}

// shard is one part of a table.
type shard struct {
	mu    sync.Mutex // guards the rest
	at    map[key]int32
	slots []slot
	free  int32 // first free slot, -1 for none
	first int32 // of the idle: the one gone longest, -1 for none
	last  int32
	idle  int
	most  int // idle ones at most

	_ [32]byte // keeps neighbours off this cache line
}

// slot is what is known of one key. It is in the list of the idle when nobody of that key is there.
type slot struct {
	key        key
	active     int64
	due        int64 // when the bucket is full again; in the past: it is full
	prev, next int32
}

func (t *table) init(idle int) {
	t.seed = maphash.MakeSeed()
	for i := range t.shards {
		s := &t.shards[i]
		s.free, s.first, s.last, s.most = -1, -1, -1, max(idle/shardCount, 1)
	}
}

func (t *table) shard(k key) *shard {
	return &t.shards[maphash.Comparable(t.seed, k)%shardCount]
}

// enter counts one more of a key, unless max (0: no limit) are there or the rate (nil: none) is used up.
func (t *table) enter(k key, now, most int64, r *rate) (Reason, bool) {
	s := t.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.slot(k, now)
	e := &s.slots[i]
	if most > 0 && e.active >= most {
		return PerIP, false
	}
	if r != nil {
		if wait := e.take(now, r); wait > 0 {
			s.touch(i)
			return Rate, false
		}
	}
	if e.active == 0 {
		s.unlink(i)
	}
	e.active++
	return "", true
}

// leave counts one less of a key.
func (t *table) leave(k key, now int64) {
	s := t.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.at[k]
	if !ok || s.slots[i].active == 0 {
		panic("guard: more connections of an address left than came")
	}
	s.slots[i].active--
	if s.slots[i].active == 0 {
		s.rest(i, now)
	}
}

// token takes a token of a key, and says how long to wait where there is none.
func (t *table) token(k key, now int64, r *rate) (wait int64) {
	s := t.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.slot(k, now)
	wait = s.slots[i].take(now, r)
	s.touch(i)
	return wait
}

// take takes one token, or says how long it is until there is one.
func (e *slot) take(now int64, r *rate) (wait int64) {
	due := max(e.due, now)
	if wait = due - now - r.span; wait > 0 {
		return wait
	}
	e.due = due + r.gap
	return 0
}

// slot finds the slot of a key or makes an idle one.
func (s *shard) slot(k key, now int64) int32 {
	if i, ok := s.at[k]; ok {
		return i
	}
	s.expire(now, 1)
	i := s.free
	switch {
	case i >= 0:
		s.free = s.slots[i].next
	default:
		i = int32(len(s.slots))
		s.slots = append(s.slots, slot{})
	}
	if s.at == nil {
		s.at = map[key]int32{}
	}
	s.slots[i] = slot{key: k}
	s.at[k] = i
	s.link(i)
	return i
}

// rest puts a slot among the idle. One that has nothing to remember is forgotten with the next few.
func (s *shard) rest(i int32, now int64) {
	s.link(i)
	s.expire(now, 0)
}

// expire forgets those of the longest gone that have nothing to remember, a few at a time, and the longest gone in any
// case while there are too many for so many more.
func (s *shard) expire(now int64, more int) {
	for n := 0; s.first >= 0 && (s.idle+more > s.most || n < 2 && s.slots[s.first].due <= now); n++ {
		s.forget(s.first)
	}
}

func (s *shard) forget(i int32) {
	s.unlink(i)
	delete(s.at, s.slots[i].key)
	s.slots[i] = slot{next: s.free}
	s.free = i
}

// touch makes an idle slot the one that came last, so that who keeps trying is not forgotten for it.
func (s *shard) touch(i int32) {
	if s.slots[i].active == 0 {
		s.unlink(i)
		s.link(i)
	}
}

func (s *shard) link(i int32) {
	e := &s.slots[i]
	e.prev, e.next = s.last, -1
	if s.last >= 0 {
		s.slots[s.last].next = i
	} else {
		s.first = i
	}
	s.last = i
	s.idle++
}

func (s *shard) unlink(i int32) {
	e := &s.slots[i]
	if e.prev >= 0 {
		s.slots[e.prev].next = e.next
	} else {
		s.first = e.next
	}
	if e.next >= 0 {
		s.slots[e.next].prev = e.prev
	} else {
		s.last = e.prev
	}
	s.idle--
}

// sweep forgets whoever is idle and has nothing to remember, and gives the memory of an emptied shard back.
func (t *table) sweep(now int64) {
	for n := range t.shards {
		s := &t.shards[n]
		s.mu.Lock()
		for i := s.first; i >= 0; {
			next := s.slots[i].next
			if s.slots[i].due <= now {
				s.forget(i)
			}
			i = next
		}
		if len(s.at) == 0 && len(s.slots) > s.most/8 {
			s.at, s.slots, s.free = nil, nil, -1
		}
		s.mu.Unlock()
	}
}

// size is how many keys are known, and how many of them are idle.
func (t *table) size() (known, idle int) {
	for n := range t.shards {
		s := &t.shards[n]
		s.mu.Lock()
		known, idle = known+len(s.at), idle+s.idle
		s.mu.Unlock()
	}
	return known, idle
}
