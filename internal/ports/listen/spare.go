package listen

import (
	"net/netip"
	"os"
	"sync"
	"time"
)

const fdWarning = 10 * time.Second // between two log lines about missing descriptors

// A Spare is a descriptor held in reserve, to be able to say no when there is no other. The zero value holds none yet.
type Spare struct {
	mu     sync.Mutex // guards what follows, and keeps two sockets from spending it at once
	f      *os.File
	warned time.Time
}

// Hold takes the descriptor if it is not held.
func (sp *Spare) Hold() {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.open()
}

func (sp *Spare) open() {
	if sp.f == nil {
		sp.f, _ = os.Open(os.DevNull)
	}
}

// Close gives it back.
func (sp *Spare) Close() {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.f != nil {
		sp.f.Close()
		sp.f = nil
	}
}

// dropOne answers a lack of descriptors by accepting one connection with the spare one and closing it. False means that
// there was nothing to accept, or no spare: accept takes a descriptor before it looks at the queue, so it fails on an
// empty queue too and cannot be waited on, and the caller waits on a timer.
func (sp *Spare) dropOne(s *Socket, h *Handler) bool {
	if sp.warn(time.Now()) {
		h.Failed("no file descriptor left, closing new connections")
	}
	if !s.waiting() {
		return false
	}
	client, ok := sp.spend(s)
	if ok && h.Dropped != nil {
		h.Dropped(client)
	}
	return ok
}

// spend gives the descriptor up for as long as it takes to accept one connection and close it.
func (sp *Spare) spend(s *Socket) (client netip.AddrPort, ok bool) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.f != nil {
		sp.f.Close()
		sp.f = nil
	}
	client, ok = s.acceptAndClose()
	sp.open()
	return client, ok
}

// warn reports whether it is time for another log line.
func (sp *Spare) warn(now time.Time) bool {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if now.Sub(sp.warned) < fdWarning {
		return false
	}
	sp.warned = now
	return true
}
