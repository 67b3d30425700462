package pools

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// What is kept of connections that were dialled by name.
const (
	namedIdle     = 64
	namedIdleTime = 30 * time.Second
	namedMaxAge   = 5 * time.Minute
)

// nameRules are plan.ByNameSettings made ready. They do not change.
type nameRules struct {
	exact    map[string]bool // names, and addresses as netip writes them
	parents  map[string]bool // d of "*.d": d itself and one label before it
	any      bool
	private  bool
	ports    []uint16
	connect  time.Duration
	resolver *net.Resolver
	server   string
}

func newNameRules(s *plan.Settings) *nameRules {
	r := &nameRules{
		exact: map[string]bool{}, parents: map[string]bool{}, any: len(s.ByName.Allowlist) == 0,
		private: s.ByName.AllowPrivate, ports: s.ByName.Ports, connect: s.Timeouts.Connect, server: s.ByName.Resolver,
	}
	if len(r.ports) == 0 {
		r.ports = []uint16{80, 443}
	}
	for _, entry := range s.ByName.Allowlist {
		name := plainName(entry)
		switch parent, wild := strings.CutPrefix(name, "*."); {
		case name == "*":
			r.any = true
		case wild:
			r.parents[parent] = true
		default:
			r.exact[name] = true
		}
	}
	if r.server != "" {
		r.resolver = &net.Resolver{PreferGo: true, Dial: r.dialResolver}
	}
	return r
}

func (r *nameRules) dialResolver(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, r.server)
}

func (r *nameRules) equal(o *nameRules) bool {
	return r.any == o.any && r.private == o.private && r.server == o.server && slices.Equal(r.ports, o.ports) &&
		maps.Equal(r.exact, o.exact) && maps.Equal(r.parents, o.parents)
}

// allows reports whether a name, as plainName writes it, may be reached.
func (r *nameRules) allows(name string) bool {
	if r.any || r.exact[name] || r.parents[name] {
		return true
	}
	_, parent, ok := strings.Cut(name, ".")
	return ok && r.parents[parent]
}

// plainName is a host without its port, brackets, trailing dot and upper case; an address as netip writes it.
func plainName(host string) string {
	if ap, err := netip.ParseAddrPort(host); err == nil {
		return ap.Addr().Unmap().String()
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().String()
	}
	host, _, _ = strings.Cut(host, ":")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// DialName opens a connection to the name a client asked for, for a tunnel, and returns where it leads in words. The
// name and port must be allowed, and every address is judged at the moment it is dialled. The caller closes the
// connection. Errors are of type *Error.
func (ps *Pools) DialName(ctx context.Context, host string, port uint16) (net.Conn, string, error) {
	r := ps.rules.Load()
	key, err := r.admit(host, port)
	if err != nil {
		return nil, key.name, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	nc, err := ps.dialName(ctx, nil, key)
	if err != nil {
		e := ps.named.dialError(nil, key, err, errors.Is(ctx.Err(), context.Canceled))
		return nil, key.name, e
	}
	return nc, key.name, nil
}

// OpenName is Pool.Open for the name a client asked for, under the rules of DialName. An idle connection is used again
// for the same name and port only. When ctx is done it ends as by s.Abort.
func (ps *Pools) OpenName(ctx context.Context, host string, port uint16, ask *Ask, s *Stream) error {
	r := ps.rules.Load()
	key, err := r.admit(host, port)
	if err != nil {
		return err
	}
	own := *ask
	if own.Connect == 0 {
		own.Connect = r.timeout()
	}
	return under(ctx, s, func() error { return ps.named.open(&own, s, key, ps.dialName) })
}

func (r *nameRules) timeout() time.Duration {
	if r.connect <= 0 {
		return defaultConnect
	}
	return r.connect
}

// admit judges name and port, and says under which key connections to them are kept.
func (r *nameRules) admit(host string, port uint16) (connKey, error) {
	name := plainName(host)
	key := connKey{name: net.JoinHostPort(name, strconv.Itoa(int(port)))}
	switch {
	case name == "" || !r.allows(name):
		return key, &Error{Kind: "not_allowed", Target: key.name}
	case !slices.Contains(r.ports, port):
		return key, &Error{Kind: "not_allowed", Target: key.name, Err: errors.New("port is not in by_name.ports")}
	}
	return key, nil
}

// dialName resolves the name once and dials its addresses. Each is judged right before its own socket connects, so
// that there is no moment between the judgement and the dial in which an answer of the DNS could change.
func (ps *Pools) dialName(ctx context.Context, _ *Member, key connKey) (net.Conn, error) {
	r := ps.rules.Load()
	d := net.Dialer{KeepAlive: -1, Resolver: r.resolver, Control: func(_, address string, _ syscall.RawConn) error {
		return ps.judge(r, address)
	}}
	return d.DialContext(ctx, "tcp", key.name)
}

// judge refuses an address that by-name forwarding may not reach.
func (ps *Pools) judge(r *nameRules, address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return &Error{Kind: "private_address", Err: err}
	}
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	if ps.ours != nil && ps.ours(ap) {
		return &Error{Kind: "loop", Err: errors.New(ap.String() + " is a port of our own")}
	}
	if r.private {
		return nil
	}
	if ip := ap.Addr(); reserved(ip) || ps.own.has(ip) {
		return &Error{Kind: "private_address", Err: errors.New(ip.String())}
	}
	return nil
}

// reserved reports whether an address is none of the public unicast ones, or stands for an IPv4 address by some
// mapping (NAT64, 6to4, Teredo, IPv4-compatible): what such an address leads to is decided elsewhere.
func reserved(ip netip.Addr) bool {
	if !ip.IsGlobalUnicast() || ip.Zone() != "" {
		return true
	}
	return slices.ContainsFunc(reservedNets, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// reservedNets are the special-purpose address blocks of RFC 6890 and its updates.
var reservedNets = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16",
	"3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8")

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// ownAddrs are the addresses of this machine, read anew when they are old.
type ownAddrs struct {
	mu   sync.Mutex // guards the following
	read time.Time
	set  map[netip.Addr]bool
}

const ownAddrsAge = 10 * time.Second

func (o *ownAddrs) has(ip netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.set == nil || time.Since(o.read) > ownAddrsAge {
		if list, err := net.InterfaceAddrs(); err == nil { // otherwise what was known stands
			o.read, o.set = time.Now(), make(map[netip.Addr]bool, len(list))
			for _, a := range list {
				if p, err := netip.ParsePrefix(a.String()); err == nil {
					o.set[p.Addr().Unmap()] = true
				}
			}
		}
	}
	return o.set[ip]
}
