//go:build !linux

package holder

import (
	"errors"
	"net/netip"
)

var errNoTable = errors.New("this system has no table of sockets that can be read without a program")

// A Look is one look at this host, by lsof. Root and Known are for Linux.
type Look struct {
	Root  string
	Known map[uint64]*Holder
}

// Find lists who holds the listening TCP sockets for which match is true; see Look.
func Find(match func(netip.AddrPort) bool, _ map[uint64]*Holder) ([]Holder, error) {
	return (&Look{}).TCP(match)
}

// TCP lists who holds the listening sockets for which match is true.
func (l *Look) TCP(match func(netip.AddrPort) bool) ([]Holder, error) {
	return lsof("tcp", match, errNoTable)
}

// UDP does the same for UDP sockets that are not connected.
func (l *Look) UDP(match func(netip.AddrPort) bool) ([]Holder, error) {
	return lsof("udp", match, errNoTable)
}

// Client is for Linux; "" here.
func (l *Look) Client(uint16) string { return "" }

// Unix lists who listens on the unix socket at path.
func (l *Look) Unix(string) ([]Holder, error) { return nil, errNoTable }

// FindUnix lists who listens on the unix socket at path.
func FindUnix(path string) ([]Holder, error) { return (&Look{}).Unix(path) }
