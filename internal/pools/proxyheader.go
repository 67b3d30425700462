package pools

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

var proxySignature = [12]byte{0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A}

// appendProxy appends a PROXY header, version 1 or 2, for a TCP connection from src to dst. Where either is not an IP
// address (a unix socket, a health check of our own) it says so: UNKNOWN in version 1, LOCAL in version 2.
func appendProxy(b []byte, version int, src, dst netip.AddrPort) []byte {
	from, to := src.Addr().Unmap().WithZone(""), dst.Addr().Unmap().WithZone("")
	known := from.IsValid() && to.IsValid()
	if known && from.Is4() != to.Is4() { // one family must hold both
		from, to = netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
	}
	if version == 1 {
		return appendProxy1(b, known, from, to, src.Port(), dst.Port())
	}
	b = append(b, proxySignature[:]...)
	switch {
	case !known:
		return append(b, 0x20, 0x00, 0, 0)
	case from.Is4():
		b = append(b, 0x21, 0x11, 0, 12)
		x, y := from.As4(), to.As4()
		b = append(append(b, x[:]...), y[:]...)
	default:
		b = append(b, 0x21, 0x21, 0, 36)
		x, y := from.As16(), to.As16()
		b = append(append(b, x[:]...), y[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

func appendProxy1(b []byte, known bool, from, to netip.Addr, fromPort, toPort uint16) []byte {
	switch {
	case !known:
		return append(b, "PROXY UNKNOWN\r\n"...)
	case from.Is4():
		b = append(b, "PROXY TCP4 "...)
	default:
		b = append(b, "PROXY TCP6 "...)
	}
	b = append(from.AppendTo(b), ' ')
	b = append(to.AppendTo(b), ' ')
	b = append(strconv.AppendUint(b, uint64(fromPort), 10), ' ')
	return append(strconv.AppendUint(b, uint64(toPort), 10), "\r\n"...)
}
