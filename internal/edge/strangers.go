package edge

import (
	"encoding/hex"
	"net/netip"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/sniff"
)

// strangers remembers whose unknown first bytes were logged, so that each source is logged once a minute.
type strangers struct {
	mu   sync.Mutex // guards seen
	seen map[netip.Addr]time.Time
}

const (
	oncePer      = time.Minute
	maxStrangers = 1024 // sources remembered; beyond them nobody new is logged until a minute is over
)

// news reports whether the source may be logged now.
func (s *strangers) news(a netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.seen[a]; ok && now.Sub(t) < oncePer {
		return false
	}
	if s.seen == nil {
		s.seen = make(map[netip.Addr]time.Time)
	}
	if len(s.seen) >= maxStrangers {
		for b, t := range s.seen {
			if now.Sub(t) >= oncePer {
				delete(s.seen, b)
			}
		}
		if len(s.seen) >= maxStrangers {
			return false
		}
	}
	s.seen[a] = now
	return true
}

// unknown ends a connection whose first bytes no route asks for: counted always, logged once per source and minute.
func (c *conn) unknown(res *sniff.Result) {
	c.reject(guard.UnknownProtocol, "")
	if client := c.info.Client.Addr(); c.e.strange.news(client, time.Now()) {
		c.e.o.Log.Info("unknown first bytes", "client", client.String(), "port", c.port.Addr.String(),
			"kind", res.Kind.String(), "first", hex.EncodeToString(res.Bytes[:min(len(res.Bytes), 16)]))
	}
}
