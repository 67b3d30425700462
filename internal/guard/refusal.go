package guard

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// summaryEvery is how often a reason may have a line.
const summaryEvery = 10 * time.Second

// Strangers' first bytes are shown once per source and minute, and for so many sources per summaryEvery.
const sourcesShown = 10

// maxDetail bounds what a stranger gets to write into a line.
const maxDetail = 256

// refusals turn many refusals into few lines.
type refusals struct {
	byReason [len(reasons)]refusal
	sources  table // whose first bytes were shown in this minute
}

// refusal is what is known of one reason's refusals since its last line.
type refusal struct {
	mu     sync.Mutex // guards the rest
	count  int64
	client netip.Addr // of the last that had one
	port   string
	detail string
	next   int64 // no line before
	shown  int   // sources shown since the window began
	window int64 // when it ends
}

var oncePerMinute = newRate(1, time.Minute, 1)

// Reject counts a refusal. The first of a reason is logged at once, the others in summary lines, one per reason and ten
// seconds. client, port and detail may be empty; they stand in the line, never in a metric. The detail of an unknown
// protocol, its first bytes, is logged once per client and minute.
func (g *Guard) Reject(why Reason, client netip.Addr, port, detail string) {
	i := indexOf(why)
	if i < 0 {
		panic("guard: unknown reason " + string(why))
	}
	g.metrics.rejected[i].Inc()
	r := &g.byReason[i]
	now := g.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	if client.IsValid() {
		r.client = client
	}
	r.port, r.detail = port, detail
	show := now >= r.next
	if why == UnknownProtocol && client.IsValid() {
		if now >= r.window {
			r.window, r.shown = now+int64(summaryEvery), 0
		}
		if r.shown < sourcesShown && g.sources.token(keyOf(client), now, oncePerMinute) == 0 {
			r.shown++
			show = true
		}
	}
	if show {
		r.write(g.log, why, now)
	}
}

func indexOf(why Reason) int {
	for i := range reasons {
		if reasons[i] == why {
			return i
		}
	}
	return -1
}

// write logs the refusals since the last line. r.mu is held.
func (r *refusal) write(log *slog.Logger, why Reason, now int64) {
	attrs := make([]slog.Attr, 0, 5)
	attrs = append(attrs, slog.String("reason", string(why)), slog.Int64("count", r.count))
	if r.client.IsValid() {
		attrs = append(attrs, slog.String("client", r.client.Unmap().String()))
	}
	if r.port != "" {
		attrs = append(attrs, slog.String("port", r.port))
	}
	if r.detail != "" {
		attrs = append(attrs, slog.String("detail", r.detail[:min(len(r.detail), maxDetail)]))
	}
	r.count, r.client, r.port, r.detail = 0, netip.Addr{}, "", ""
	r.next = now + int64(summaryEvery)
	log.LogAttrs(context.Background(), slog.LevelWarn, "connections rejected", attrs...)
}

// flush logs what is due; with all set, whatever has not been logged.
func (g *Guard) flush(all bool) {
	now := g.now()
	for i := range g.byReason {
		r := &g.byReason[i]
		r.mu.Lock()
		if r.count > 0 && (all || now >= r.next) {
			r.write(g.log, reasons[i], now)
		}
		r.mu.Unlock()
	}
}

// Run writes the summaries and forgets those who are long gone, until ctx ends. Then it writes what is left.
func (g *Guard) Run(ctx context.Context) error {
	tick := time.NewTicker(summaryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			g.flush(true)
			return nil
		case <-tick.C:
			g.flush(false)
			g.tidy()
		}
	}
}

// tidy gives memory back that nobody needs any more.
func (g *Guard) tidy() {
	now := g.now()
	g.peers.sweep(now)
	g.sources.sweep(now)
	g.mu.Lock()
	g.dropShares()
	live := make([]*share, 0, len(g.shares))
	for _, p := range g.shares {
		if s := p.Value(); s != nil {
			live = append(live, s)
		}
	}
	g.mu.Unlock()
	for _, s := range live {
		s.mu.Lock()
		b := s.buckets
		s.mu.Unlock()
		if b != nil {
			b.table.sweep(now)
		}
	}
}
