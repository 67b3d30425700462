//go:build !linux

package holder

import (
	"errors"
	"net/netip"
)

var errNoTable = errors.New("this system has no table of sockets that we can read")

// Find lists who holds the listening sockets for which match is true.
func Find(match func(netip.AddrPort) bool, _ map[uint64]*Holder) ([]Holder, error) {
	return lsof(match, errNoTable)
}

// FindUnix lists who listens on the unix socket at path.
func FindUnix(string) ([]Holder, error) { return nil, errNoTable }
