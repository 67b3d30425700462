package ports

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

const (
	publishedFresh = 10 * time.Second // how old an answer of the engines may be before Status asks for another
	publishedTime  = 2 * time.Second  // what one question may take
)

// published is what container engines said last about the ports of this host. An engine may lead a port's traffic into a
// container by address translation alone: then nobody listens there, the bind succeeds, and connections from outside go
// past us.
type published struct {
	ask chan struct{} // a wish for a newer answer

	mu sync.Mutex // guards what follows
	at time.Time
	by map[uint16]string // container db (podman)
}

// askPublished asks the engines now; nil when none is set up, or none answers.
func (ps *Ports) askPublished() map[uint16]string {
	ctx, stop := context.WithTimeout(context.Background(), publishedTime)
	defer stop()
	by, _ := ps.opt.Published(ctx) // what the others said is there even when one is silent; that one is no news here
	return by
}

// watchPublished asks the engines when somebody wants to know, until ctx ends.
func (ps *Ports) watchPublished(ctx context.Context) {
	defer ps.loops.Done()
	if ps.opt.Published == nil {
		return
	}
	if self, ok := holder.Process(os.Getpid()); ok && self.Container != "" {
		return // they speak of their host's ports, and ours are a container's
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ps.published.ask:
		}
		by := ps.pastUs(ps.askPublished())
		ps.published.mu.Lock()
		was := ps.published.by
		ps.published.at, ps.published.by = time.Now(), by
		ps.published.mu.Unlock()
		for port, who := range by {
			if was[port] != who {
				ps.opt.Log.Warn("a container has this port too", "port", port, "holder", who, "err", beside(who))
			}
		}
	}
}

// pastUs are those of our ports that an engine publishes and on which nobody but us listens: address translation leads
// them past us. Where an engine listens by a helper of its own, the kernel tells the two apart by address.
func (ps *Ports) pastUs(by map[uint16]string) map[uint16]string {
	suspects := make(map[uint16]string)
	for port := range *ps.ours.Load() {
		if who := by[port]; who != "" {
			suspects[port] = who
		}
	}
	if len(suspects) == 0 {
		return nil
	}
	var look holder.Look
	listeners, err := look.TCP(func(a netip.AddrPort) bool { return suspects[a.Port()] != "" })
	if err != nil {
		return nil // it cannot be told
	}
	for _, h := range listeners {
		if h.Pid != os.Getpid() {
			delete(suspects, h.Addr.Port())
		}
	}
	return suspects
}

// beside says what it means.
func beside(who string) string {
	return who + " publishes this port by address translation: connections from outside go there and not here; publish it at another port"
}

// wish asks for a newer answer.
func (p *published) wish() {
	select {
	case p.ask <- struct{}{}:
	default:
	}
}

// warning is about one of our ports; "" when there is nothing to warn of.
func (p *published) warning(port uint16) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if who := p.by[port]; who != "" {
		return beside(who)
	}
	return ""
}

// stale reports whether the last answer is too old to be shown without asking anew.
func (p *published) stale() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.at) > publishedFresh
}
