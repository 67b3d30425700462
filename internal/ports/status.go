package ports

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Status is one port as `ports --json` shows it.
type Status struct {
	Proto   string    `json:"proto"`   // "tcp" or "unix"
	Address string    `json:"address"` // what is bound, or else wanted: an IP, "*" for every one, a path, fd:NAME
	Port    uint16    `json:"port"`
	Wanted  string    `json:"wanted"` // as configuration writes it
	State   State     `json:"state"`
	Since   time.Time `json:"since"`
	Source  string    `json:"source"`           // "file", "api", "admin", "metrics"
	Origin  string    `json:"origin,omitempty"` // of the socket: "own", "systemd", "predecessor"
	Routes  []string  `json:"routes"`
	App     string    `json:"app,omitempty"`
	Holder  *Holder   `json:"holder,omitempty"`
	Error   string    `json:"error,omitempty"`
	Warning string    `json:"warning,omitempty"` // of a port that is bound and yet may not be reached
	NextTry time.Time `json:"next_try,omitzero"`
}

// Served is where a port of the plan is served now: itself, unless it has fallen back.
func (ps *Ports) Served(a plan.Addr) plan.Addr {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.ports[a]; p != nil && p.state == Fallback && len(p.socks) > 0 {
		return p.socks[0].Addr
	}
	return a
}

// Status lists every wanted port and every admin listener, by address. A port with several sockets is listed once for
// each.
func (ps *Ports) Status() []Status {
	if ps.published.stale() {
		ps.published.wish()
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	out := []Status{}
	for _, p := range ps.sorted() {
		s := Status{Wanted: p.plan.Addr.String(), State: p.state, Since: p.since, Source: p.source, Routes: names(p.plan.Users), NextTry: p.next}
		if p.err != nil {
			err := *p.err
			if err.Next > 0 {
				err.Next = max(time.Until(p.next), time.Millisecond)
			}
			s.Holder, s.Error = err.Holder, err.Error()
		}
		if len(p.socks) == 0 {
			out = append(out, s.at(p.plan.Addr))
		}
		for _, sock := range p.socks {
			s.Origin = origin(sock)
			if sock.Addr.Network == plan.TCP {
				s.Warning = ps.published.warning(sock.Addr.Port)
			}
			out = append(out, s.at(sock.Addr))
		}
	}
	for _, o := range ps.own {
		s := Status{Wanted: o.wanted, State: stateOf(o.socket), Since: o.since, Source: o.source, Origin: origin(o.socket), Routes: []string{}}
		out = append(out, s.at(o.socket.Addr))
	}
	return out
}

// origin says where a socket came from.
func origin(s *socket) string {
	switch {
	case s.Kept, s.Stored:
		return "systemd"
	case s.Given:
		return "predecessor"
	}
	return "own"
}

func (s Status) at(a plan.Addr) Status {
	s.Proto, s.Port = a.Network.String(), a.Port
	switch {
	case a.Network == plan.Unix:
		s.Address = a.Path
	case a.Name != "":
		s.Address = a.String()
	case !a.IP.IsValid():
		s.Address = "*"
	default:
		s.Address = a.IP.String()
	}
	return s
}

// index rebuilds what Ours reads.
func (ps *Ports) index() {
	ours := make(map[uint16][]plan.Addr)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	add := func(s *socket) {
		if s.Addr.Network == plan.TCP {
			ours[s.Addr.Port] = append(ours[s.Addr.Port], s.Addr)
		}
	}
	for _, p := range ps.ports {
		for _, s := range p.socks {
			add(s)
		}
	}
	for _, o := range ps.own {
		add(o.socket)
	}
	ps.ours.Store(&ours)
	ps.published.wish()
}

// Ours reports whether a connection to that address would come back to one of our own TCP listeners.
func (ps *Ports) Ours(to netip.AddrPort) bool {
	ip := to.Addr().Unmap().WithZone("")
	for _, a := range (*ps.ours.Load())[to.Port()] {
		if a.Takes(ip) && (!a.Wildcard() || ps.local.has(ip)) {
			return true
		}
	}
	return false
}

// localAddrs are the addresses of this host, read anew when they are older than five seconds.
type localAddrs struct {
	mu   sync.Mutex // guards what follows
	read time.Time
	set  map[netip.Addr]bool
}

func (l *localAddrs) has(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.read) > 5*time.Second {
		l.read, l.set = now, make(map[netip.Addr]bool)
		addrs, _ := net.InterfaceAddrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					l.set[ip.Unmap()] = true
				}
			}
		}
	}
	return l.set[ip]
}

// nearCache keeps Listening from walking the processes for every connection that is refused.
type nearCache struct {
	mu  sync.Mutex // guards what follows, and is held for the walk: one at a time is enough
	got map[netip.AddrPort]near
}

type near struct {
	text string
	at   time.Time
}

const (
	nearTime = 5 * time.Second
	nearSize = 64
)

// Listening says what listens on the same port of this host but on another address than the one that refused, for
// whoever wonders why: "node (pid 12, user ann) for 3 min listens on [::1]:3000". It is "" when nothing does, or when
// host is not an address of this host. An answer is up to five seconds old.
func (ps *Ports) Listening(host string, port uint16) string {
	ip, err := netip.ParseAddr(host)
	if strings.EqualFold(host, "localhost") {
		ip, err = netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	ip = ip.Unmap()
	if err != nil || !ps.local.has(ip) {
		return ""
	}
	key, now := netip.AddrPortFrom(ip, port), time.Now()
	ps.near.mu.Lock()
	defer ps.near.mu.Unlock()
	if n, ok := ps.near.got[key]; ok && now.Sub(n.at) < nearTime {
		return n.text
	}
	if ps.near.got == nil || len(ps.near.got) >= nearSize {
		ps.near.got = make(map[netip.AddrPort]near)
	}
	var words []string
	holders, _ := Who("tcp", port)
	for _, h := range holders {
		if h.Addr.Addr() != ip {
			words = append(words, fmt.Sprintf("%s listens on %s", h.String(), h.Addr))
		}
	}
	slices.Sort(words)
	text := ""
	if len(words) > 0 {
		text = list(words, "")
	}
	ps.near.got[key] = near{text: text, at: now}
	return text
}
