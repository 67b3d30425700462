package guard

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A Gate bounds who uses one route, and how much. The gates of one route's successive values count together; a rate
// limit that did not change keeps its buckets.
type Gate struct {
	allow, deny ranges
	max         int64 // 0: no limit
	field       string
	whole       bool // one bucket for the route
	buckets     *buckets
	share       *share
	guard       *Guard
}

// share is what the gates of one route's name have in common. It lives as long as one of them.
type share struct {
	active atomic.Int64

	mu      sync.Mutex // guards buckets
	buckets *buckets   // of the newest gate that has a rate limit
}

// buckets are the tokens of one rate limit.
type buckets struct {
	limit plan.RateLimit
	rate  *rate
	seeds [2]maphash.Seed
	table table
}

// NewGate returns the gate of a route. It needs no closing.
func NewGate(r *plan.Route, g *Guard) *Gate {
	s := &r.Security
	gt := &Gate{
		allow: rangesOf(s.Allow), deny: rangesOf(s.Deny), max: int64(max(s.MaxConns, 0)),
		share: g.shareOf(r.Name), guard: g,
	}
	if l := s.Rate; l != nil && l.Requests > 0 && l.Per > 0 {
		gt.field, _ = strings.CutPrefix(l.Key, "header:")
		if gt.field == l.Key {
			gt.field = ""
		}
		gt.whole = l.Key == "route"
		gt.buckets = gt.share.bucketsOf(*l)
	}
	return gt
}

// shareOf finds what a route's gates have in common.
func (g *Guard) shareOf(name string) *share {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.shares[name].Value(); s != nil {
		return s
	}
	if len(g.shares) >= max(g.sweep, 64) {
		g.dropShares()
	}
	s := new(share)
	g.shares[name] = weak.Make(s)
	return s
}

// dropShares forgets the names whose gates are gone. g.mu is held.
func (g *Guard) dropShares() {
	for name, p := range g.shares {
		if p.Value() == nil {
			delete(g.shares, name)
		}
	}
	g.sweep = 2 * len(g.shares)
}

func (s *share) bucketsOf(l plan.RateLimit) *buckets {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets == nil || s.buckets.limit != l {
		b := &buckets{limit: l, rate: newRate(float64(l.Requests), l.Per, l.Burst)}
		b.seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
		b.table.init(idleBuckets)
		s.buckets = b
	}
	return s.buckets
}

// Field is the header field whose value Enter wants as key, "" if it wants none.
func (gt *Gate) Field() string { return gt.field }

// Active is how many exchanges and tunnels of the route are in progress, under any of its values.
func (gt *Gate) Active() int { return int(gt.share.active.Load()) }

// Enter admits one exchange or tunnel, which is ended by Leave. key is the value of the header field that the rate limit
// counts by; where it is empty the client's address counts. After Rate, retryAfter says when a token will be there.
func (gt *Gate) Enter(client netip.Addr, key []byte) (why Reason, retryAfter time.Duration, ok bool) {
	if len(gt.deny) > 0 && gt.deny.has(client) || len(gt.allow) > 0 && !gt.allow.has(client) {
		return Denied, 0, false
	}
	if gt.max > 0 && gt.share.active.Load() >= gt.max {
		return PerRoute, 0, false
	}
	if b := gt.buckets; b != nil {
		if wait := b.table.token(b.key(gt, client, key), gt.guard.now(), b.rate); wait > 0 {
			return Rate, time.Duration(wait), false
		}
	}
	if gt.max == 0 {
		gt.share.active.Add(1)
		return "", 0, true
	}
	for {
		n := gt.share.active.Load()
		if n >= gt.max {
			return PerRoute, 0, false
		}
		if gt.share.active.CompareAndSwap(n, n+1) {
			return "", 0, true
		}
	}
}

// Leave ends what Enter admitted.
func (gt *Gate) Leave() {
	if gt.share.active.Add(-1) < 0 {
		panic("guard: more exchanges of a route ended than began")
	}
}

func (b *buckets) key(gt *Gate, client netip.Addr, value []byte) key {
	switch {
	case gt.whole:
		return key{}
	case gt.field != "" && len(value) > 0:
		return key{maphash.Bytes(b.seeds[0], value), maphash.Bytes(b.seeds[1], value)}
	}
	return keyOf(client)
}

// ranges are sorted, disjoint spans of addresses, IPv4 before IPv6.
type ranges []span

type span struct{ first, last netip.Addr }

// rangesOf merges prefixes. A v4-mapped prefix is the IPv4 one.
func rangesOf(list []netip.Prefix) ranges {
	var out ranges
	for _, p := range list {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		p = p.Masked()
		if p.IsValid() {
			out = append(out, span{p.Addr(), lastOf(p)})
		}
	}
	slices.SortFunc(out, func(x, y span) int { return cmp.Or(x.first.Compare(y.first), y.last.Compare(x.last)) })
	kept := out[:0]
	for _, s := range out {
		if n := len(kept); n > 0 && !kept[n-1].last.Less(s.last) {
			continue // prefixes overlap only by one holding the other
		}
		kept = append(kept, s)
	}
	return kept
}

// lastOf is the last address of a masked prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// has reports whether an address lies in one of the ranges.
func (r ranges) has(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	lo, hi := 0, len(r)
	for lo < hi {
		if mid := (lo + hi) / 2; r[mid].first.Compare(a) <= 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo > 0 && a.Compare(r[lo-1].last) <= 0
}
