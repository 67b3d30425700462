package plan

import (
	"cmp"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Network is what kind of socket an address names.
type Network uint8

// The networks.
const (
	TCP Network = iota
	UDP
	Unix
)

func (n Network) String() string { return [...]string{"tcp", "udp", "unix"}[n] }

// Family is which IP versions a socket takes.
type Family uint8

// The families. Dual is one IPv6 socket without IPV6_V6ONLY.
const (
	Dual Family = iota
	V4
	V6
)

// Addr is one listening address. It is comparable; two equal Addrs are the same socket.
//
//	:80          {TCP, Dual, zero IP, 80}      0.0.0.0:80  {TCP, V4, 0.0.0.0, 80}
//	[::]:80      {TCP, V6, ::, 80}             127.0.0.1:80 {TCP, V4, 127.0.0.1, 80}
//	unix:/run/x  {Unix, Path}                  fd:https    {TCP, Name}
type Addr struct {
	Network Network
	Family  Family
	IP      netip.Addr // zero for Dual
	Port    uint16
	Path    string // Unix only
	Name    string // a socket systemd gave us by name
}

// TCPAddr returns the address for an IP and port, with the family that follows from the IP.
func TCPAddr(ip netip.Addr, port uint16) Addr {
	ip = ip.Unmap()
	switch {
	case !ip.IsValid():
		return Addr{Port: port}
	case ip.Is4():
		return Addr{Family: V4, IP: ip, Port: port}
	}
	return Addr{Family: V6, IP: ip, Port: port}
}

// String is the address as configuration writes it.
func (a Addr) String() string {
	switch {
	case a.Network == Unix:
		return "unix:" + a.Path
	case a.Name != "":
		return "fd:" + a.Name
	case !a.IP.IsValid():
		return ":" + strconv.Itoa(int(a.Port))
	}
	return net.JoinHostPort(a.IP.String(), strconv.Itoa(int(a.Port)))
}

// MarshalText makes an Addr a JSON string and a JSON map key.
func (a Addr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText wrote. The text does not tell UDP: it is read as TCP.
func (a *Addr) UnmarshalText(text []byte) error {
	s := string(text)
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		*a = Addr{Network: Unix, Path: path}
		return nil
	}
	if name, ok := strings.CutPrefix(s, "fd:"); ok {
		*a = Addr{Name: name}
		return nil
	}
	host, number, err := net.SplitHostPort(s)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return err
	}
	var ip netip.Addr
	if host != "" {
		if ip, err = netip.ParseAddr(host); err != nil {
			return err
		}
	}
	*a = TCPAddr(ip, uint16(port))
	return nil
}

// Wildcard reports whether the address takes connections to every IP of its family.
func (a Addr) Wildcard() bool {
	return a.Network != Unix && a.Name == "" && (!a.IP.IsValid() || a.IP.IsUnspecified())
}

// Covers reports whether every connection that b would take is also taken by a socket on a.
func (a Addr) Covers(b Addr) bool {
	if a == b {
		return true
	}
	if a.Network != b.Network || a.Network == Unix || a.Port != b.Port || a.Name != "" || b.Name != "" || !a.Wildcard() {
		return false
	}
	return a.Family == Dual || a.Family == b.Family
}

// Overlaps reports whether the kernel would refuse a and b side by side.
func (a Addr) Overlaps(b Addr) bool { return a.Covers(b) || b.Covers(a) }

// Takes reports whether a connection that arrived at ip belongs to the wish a. An invalid ip (unix, unknown) belongs to
// any wish.
func (a Addr) Takes(ip netip.Addr) bool {
	ip = ip.Unmap()
	if !ip.IsValid() || a.Network == Unix || a.Name != "" || !a.IP.IsValid() {
		return true
	}
	if a.IP.IsUnspecified() {
		return a.IP.Is4() == ip.Is4()
	}
	return a.IP == ip
}

// Compare orders addresses by network, port, family, IP, path and name.
func (a Addr) Compare(b Addr) int {
	return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Family, b.Family),
		a.IP.Compare(b.IP), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Name, b.Name))
}
