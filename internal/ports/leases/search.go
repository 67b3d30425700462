package leases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// A search goes through the range once, lowest port first. What it passes is not looked at again.
type search struct {
	ls        *Leases
	ports     plan.PortRange
	at        int
	published map[uint16]string
	why       map[uint16]string // ports that are not ours to give, and whose they are
	refused   map[uint16]error  // ports that could not be bound
}

// search begins a search; the right to change is held until its end.
func (ls *Leases) search(ctx context.Context) *search {
	ls.mu.Lock()
	ports := ls.ports
	ls.mu.Unlock()
	s := &search{ls: ls, ports: ports, at: int(ports.Lo), why: make(map[uint16]string), refused: make(map[uint16]error)}
	if ls.opt.Published == nil {
		return s
	}
	var err error
	s.published, err = ls.opt.Published(ctx)
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if err != nil && !ls.silent && ctx.Err() == nil {
		ls.opt.Log.Warn("container engine does not answer; ports that it publishes without a socket cannot be seen, and are told by bind alone", "err", err)
	}
	if ctx.Err() == nil {
		ls.silent = err != nil
	}
	return s
}

// next finds the next free port and binds it. The log names whoever holds what was passed.
func (s *search) next(ctx context.Context) (io.Closer, uint16, error) {
	ls := s.ls
	defer s.tell()
	for ; s.at <= int(s.ports.Hi); s.at++ {
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		port := uint16(s.at)
		ls.mu.Lock()
		l, reserved := ls.byPort[port], ls.avoid[port]
		ls.mu.Unlock()
		switch who := s.published[port]; {
		case l != nil:
			s.why[port] = "leased to " + l.name
			continue
		case reserved != "":
			s.why[port] = reserved
			continue
		case who != "":
			s.why[port] = "published by " + who
			continue
		}
		p, err := probe(port)
		switch {
		case err == nil:
			s.at++
			ls.mu.Lock()
			delete(ls.skipped, port)
			ls.mu.Unlock()
			return p, port, nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			return nil, 0, fmt.Errorf("cannot hold port %d: %w; raise the limit of open files (LimitNOFILE= in the systemd unit)", port, err)
		}
		s.refused[port] = err
	}
	return nil, 0, s.exhausted()
}

// tell writes one line for each busy port that was passed, unless the newest line about that port says the same.
func (s *search) tell() {
	ls := s.ls
	news := make(map[uint16]error)
	ls.mu.Lock()
	for port, err := range s.refused {
		if _, told := ls.skipped[port]; !told {
			news[port] = err
		}
	}
	ls.mu.Unlock()
	lines := make(map[uint16]string)
	for port, w := range whoHas(news) {
		lines[port] = w.text
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for port, why := range s.why {
		if strings.HasPrefix(why, "published") && ls.skipped[port] != why {
			lines[port] = why
		}
	}
	for _, port := range slices.Sorted(maps.Keys(lines)) {
		ls.skipped[port] = lines[port]
		ls.opt.Log.Info("port passed over for leases", "port", port, "reason", lines[port])
	}
}

// exhausted says who has every port of the range.
func (s *search) exhausted() error {
	all := maps.Clone(s.why)
	for port, w := range whoHas(s.refused) {
		all[port] = w.text
	}
	e := &ExhaustedError{Range: s.ports}
	for _, port := range slices.Sorted(maps.Keys(all)) {
		e.Who = append(e.Who, strconv.Itoa(int(port))+" "+all[port])
	}
	return e
}

// who is what stands in the way of a bind: for people, and without the words that change from look to look.
type who struct{ text, key string }

// whoHas says for each port that could not be bound why, and who holds it.
func whoHas(refused map[uint16]error) map[uint16]who {
	out := make(map[uint16]who, len(refused))
	wanted := make(map[uint16]bool)
	for port, err := range refused {
		text := "cannot be bound: " + err.Error()
		if errors.Is(err, unix.EADDRINUSE) {
			wanted[port] = true
			text = "in use by a socket that does not listen, or by a process that cannot be seen from here"
		}
		out[port] = who{text, text}
	}
	if len(wanted) == 0 {
		return out
	}
	found, err := holder.Find(func(a netip.AddrPort) bool { return wanted[a.Port()] }, nil)
	for port := range wanted {
		if err != nil {
			text := fmt.Sprintf("in use, and who holds it cannot be looked up (%v)", err)
			out[port] = who{text, text}
		}
	}
	for i := range found {
		h := &found[i]
		out[h.Addr.Port()] = who{"held by " + h.String() + " on " + h.Addr.String(), h.Brief() + h.Addr.String()}
	}
	return out
}
