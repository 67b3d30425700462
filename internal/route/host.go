package route

import (
	"fmt"
	"net/netip"
	"strings"
)

// maxHost bounds a host name; what is longer is no name.
const maxHost = 253

// hostClass orders host patterns from the most to the least specific.
type hostClass uint8

const (
	exactHost hostClass = iota
	wildHost            // "*.d": exactly one label before d
	deepHost            // "**.d": one or more labels before d
	anyHost             // no domains
)

// hostPattern is one entry of a route's domains. The zero name with anyHost stands for a route without domains.
type hostPattern struct {
	class hostClass
	name  string // lower case; without the stars
}

func (h hostPattern) String() string {
	return [...]string{"", "*.", "**.", "any host"}[h.class] + h.name
}

// parseHost reads a pattern as configuration writes it.
func parseHost(text string) (hostPattern, error) {
	h := hostPattern{name: strings.ToLower(strings.TrimSuffix(text, "."))}
	if rest, ok := strings.CutPrefix(h.name, "**."); ok {
		h = hostPattern{deepHost, rest}
	} else if rest, ok := strings.CutPrefix(h.name, "*."); ok {
		h = hostPattern{wildHost, rest}
	}
	if strings.Contains(h.name, "*") {
		return h, fmt.Errorf("domain %q: a star may only stand at the front, as in *.example.com or **.example.com", text)
	}
	if ip, err := netip.ParseAddr(h.name); err == nil && h.class == exactHost && ip.Zone() == "" {
		return h, nil
	}
	var buf [maxHost]byte
	if n := normalise(buf[:0], h.name); n == nil || string(n) != h.name {
		return h, fmt.Errorf("domain %q is not a host name: write letters, digits, - and dots, without a port", text)
	}
	return h, nil
}

// normalise appends the form in which hosts are compared to dst, which has room for maxHost bytes: lower case, without
// port, brackets and a trailing dot. It returns nil for what is not a host name; such a host matches only rules without
// domains.
func normalise[T string | []byte](dst []byte, host T) []byte {
	if len(host) > 0 && host[0] == '[' {
		return literal6(dst, host)
	}
	// A colon may only begin the port, and a port is digits alone.
	n := len(host)
	for i := n - 1; i >= 0 && n-i <= 6; i-- {
		if host[i] == ':' {
			n = i
			break
		}
		if host[i] < '0' || host[i] > '9' {
			break
		}
	}
	if n > 0 && host[n-1] == '.' {
		n--
	}
	if n == 0 || n > maxHost {
		return nil
	}
	label := true // at the start of a label
	for i := range n {
		c := hostBytes[host[i]]
		if c == 0 || c == '.' && label {
			return nil
		}
		label = c == '.'
		dst = append(dst, c)
	}
	if label {
		return nil
	}
	return dst
}

// literal6 is normalise for an IPv6 address in brackets.
func literal6[T string | []byte](dst []byte, host T) []byte {
	i := 1
	for ; i < len(host) && host[i] != ']'; i++ {
		c := hostBytes[host[i]]
		if host[i] == ':' {
			c = ':'
		}
		if c == 0 || i > maxHost {
			return nil
		}
		dst = append(dst, c)
	}
	if i == 1 || i >= len(host) {
		return nil
	}
	for j := i + 1; j < len(host); j++ {
		if j == i+1 && host[j] != ':' || j > i+1 && (host[j] < '0' || host[j] > '9') {
			return nil
		}
	}
	return dst
}

// hostBytes gives each byte a name may hold in lower case, and 0 for the others.
var hostBytes = func() (t [256]byte) {
	for c := byte('a'); c <= 'z'; c++ {
		t[c], t[c-32] = c, c
	}
	for c := byte('0'); c <= '9'; c++ {
		t[c] = c
	}
	t['-'], t['_'], t['.'] = '-', '_', '.'
	return t
}()

// names is a set of host patterns. any stands for a route without domains and is not part of what has asks.
type names struct {
	exact, wild, deep map[string]struct{}
	any               bool
}

func (n *names) add(h hostPattern) {
	if h.class == anyHost {
		n.any = true
		return
	}
	m := [...]*map[string]struct{}{&n.exact, &n.wild, &n.deep}[h.class]
	if *m == nil {
		*m = map[string]struct{}{}
	}
	(*m)[h.name] = struct{}{}
}

// has reports whether a pattern of the set takes the host.
func (n *names) has(host []byte) bool {
	if len(n.exact)+len(n.wild)+len(n.deep) == 0 || host == nil {
		return false
	}
	if _, ok := n.exact[string(host)]; ok {
		return true
	}
	for i, first := 0, true; i < len(host); i++ {
		if host[i] != '.' {
			continue
		}
		if first {
			if _, ok := n.wild[string(host[i+1:])]; ok {
				return true
			}
		}
		if _, ok := n.deep[string(host[i+1:])]; ok {
			return true
		}
		first = false
	}
	return false
}
