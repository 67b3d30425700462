package pools

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// A balance is what a pool knows about whom to choose. Its pool's mu guards it.
type balance struct {
	policy string
	dirty  bool      // live and the shares are to be worked out anew
	next   int64     // when they change by themselves; 0 = never
	live   []*Member // who may be chosen
	even   bool      // all shares are the same
	total  int64     // of all shares
	turn   uint
	ring   []point // ip_hash: of all members, live or not, sorted
	sticky map[string]*Member
}

// A point is one place of a member on the ring.
type point struct {
	hash uint64
	m    *Member
}

const (
	shareUnit   = 64 // share of a member of weight 1
	pointsEach  = 128
	maxPoints   = 1 << 16
	slowSteps   = 32  // a slow start is that many steps
	ringPatient = 256 // points that are passed over before the search is done by member
)

// pick chooses a member with a free slot. With nil, full tells whether waiting can help. mu is held.
func (p *Pool) pick(ask *Ask, now int64) (m *Member, full bool) {
	b := &p.balance
	if b.dirty || b.next != 0 && now >= b.next {
		p.refresh(now)
	}
	if len(b.live) == 0 {
		return nil, false
	}
	if b.sticky != nil && len(ask.Sticky) > 0 {
		if m := b.sticky[string(ask.Sticky)]; m != nil && m.live && !ask.tried(m) {
			if m.free() {
				return m, false
			}
			return nil, true
		}
	}
	if m := b.choose(ask); m != nil {
		return m, false
	}
	if ask.Not[0] == nil || slices.ContainsFunc(b.live, func(m *Member) bool { return !ask.tried(m) }) {
		return nil, true
	}
	again := Ask{Client: ask.Client}
	m = b.choose(&again)
	return m, m == nil
}

func (b *balance) choose(ask *Ask) *Member {
	switch {
	case len(b.live) == 1:
		if m := b.live[0]; m.free() && !ask.tried(m) {
			return m
		}
		return nil
	case b.policy == "least_connections":
		return b.least(ask)
	case b.policy == "random_two":
		return b.twoRandom(ask)
	case b.policy == "ip_hash" && ask.Client.IsValid():
		return b.byHash(ask)
	case b.even:
		return b.nextOf(ask)
	}
	return b.smooth(ask)
}

// nextOf is round robin among equals.
func (b *balance) nextOf(ask *Ask) *Member {
	for range b.live {
		b.turn++
		if m := b.live[b.turn%uint(len(b.live))]; m.free() && !ask.tried(m) {
			return m
		}
	}
	return nil
}

// smooth is weighted round robin that spreads a heavy member's turns out: each gains its share, the richest is chosen
// and pays what all have gained.
func (b *balance) smooth(ask *Ask) *Member {
	var best *Member
	var gained int64
	for _, m := range b.live {
		if !m.free() || ask.tried(m) {
			continue
		}
		m.current += m.share
		gained += m.share
		if best == nil || m.current > best.current {
			best = m
		}
	}
	if best != nil {
		best.current -= gained
	}
	return best
}

// least chooses the fewest connections for its share; equals take turns.
func (b *balance) least(ask *Ask) *Member {
	var best *Member
	b.turn++
	n := uint(len(b.live))
	for i := range n {
		m := b.live[(b.turn+i)%n]
		if m.free() && !ask.tried(m) && (best == nil || lighter(m, best)) {
			best = m
		}
	}
	return best
}

// lighter compares what each would carry with one connection more.
func lighter(a, b *Member) bool {
	return int64(a.active+1)*b.share < int64(b.active+1)*a.share
}

// twoRandom draws two by share and chooses the lighter; when both are full, the lightest of all.
func (b *balance) twoRandom(ask *Ask) *Member {
	x, y := b.draw(), b.draw()
	if x == y && len(b.live) > 1 {
		y = b.draw()
	}
	okX, okY := x.free() && !ask.tried(x), y.free() && !ask.tried(y)
	switch {
	case okX && okY && lighter(y, x):
		return y
	case okX:
		return x
	case okY:
		return y
	}
	return b.least(ask)
}

func (b *balance) draw() *Member {
	if b.even {
		return b.live[rand.IntN(len(b.live))]
	}
	at := rand.Int64N(b.total)
	for _, m := range b.live {
		if at -= m.share; at < 0 {
			return m
		}
	}
	return b.live[0]
}

// byHash walks the ring from the client's place to the first member that can take it, so that a member that comes or
// goes moves only its own clients. It knows no slow start.
func (b *balance) byHash(ask *Ask) *Member {
	h := hashAddr(ask.Client.Addr())
	at, _ := slices.BinarySearchFunc(b.ring, h, func(p point, h uint64) int { return cmp.Compare(p.hash, h) })
	for i := range min(len(b.ring), ringPatient) {
		if m := b.ring[(at+i)%len(b.ring)].m; m.live && m.free() && !ask.tried(m) {
			return m
		}
	}
	return b.nextOf(ask)
}

// refresh works out who may be chosen, and with which share. Passive health never empties a pool: when it has taken
// out everyone whom active checks think up, it is not listened to. mu is held.
func (p *Pool) refresh(now int64) {
	b := &p.balance
	b.dirty, b.next, b.live, b.total, b.even = false, 0, b.live[:0], 0, true
	anyIn := false
	for _, m := range p.members {
		if m.outUntil != 0 && now >= m.outUntil {
			m.outUntil, m.risen, m.since = 0, now, p.ps.clock(now)
		}
		anyIn = anyIn || !m.down && m.outUntil == 0
	}
	for _, m := range p.members {
		m.live = !m.down && (m.outUntil == 0 || !anyIn)
		if m.outUntil != 0 {
			b.wakeAt(m.outUntil)
		}
		if !m.live {
			continue
		}
		m.share = m.weight * shareUnit
		if slow := int64(p.want.Balance.SlowStart); slow > 0 && m.risen != 0 {
			if age := now - m.risen; age < slow {
				m.share = max(1, m.share*(age*slowSteps/slow)/slowSteps)
				b.wakeAt(now + max(1, slow/slowSteps))
			} else {
				m.risen = 0
			}
		}
		b.total += m.share
		b.live = append(b.live, m)
		b.even = b.even && m.share == b.live[0].share
	}
}

func (b *balance) wakeAt(t int64) {
	if b.next == 0 || t < b.next {
		b.next = t
	}
}

// newRing places the members: as many points each as their weight says, at places that depend on the target's text
// alone.
func newRing(members []*Member, weights []int64) []point {
	var total int64
	for _, w := range weights {
		total += w
	}
	var ring []point
	var n [4]byte
	for i, m := range members {
		for j := range max(1, min(pointsEach*weights[i], maxPoints*weights[i]/total)) {
			f := fnv.New64a()
			_, _ = f.Write([]byte(m.target.Text))
			binary.BigEndian.PutUint32(n[:], uint32(j))
			_, _ = f.Write(n[:])
			ring = append(ring, point{mix(f.Sum64()), m})
		}
	}
	slices.SortFunc(ring, func(a, b point) int { return cmp.Compare(a.hash, b.hash) })
	return ring
}

func hashAddr(ip netip.Addr) uint64 {
	b := ip.As16()
	return mix(mix(binary.BigEndian.Uint64(b[:8])+0x9E3779B97F4A7C15) ^ binary.BigEndian.Uint64(b[8:]))
}

// mix spreads every bit of x over all of the result (the finaliser of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xFF51AFD7ED558CCD
	x ^= x >> 33
	x *= 0xC4CEB9FE1A85EC53
	return x ^ x>>33
}
