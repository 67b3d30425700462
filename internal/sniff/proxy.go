package sniff

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/pires/go-proxyproto"
)

// Sizes of a PROXY header. A v1 line is at most 107 bytes long (the specification says so); a v2 header may announce
// 64 KiB, of which the largest in use (with TLS details) takes a few hundred bytes.
const (
	maxProxyV1    = 107
	proxyV2Prefix = 16
	maxProxyV2    = 4 << 10
)

const (
	proxyV1 = "PROXY "
	proxyV2 = "\r\n\r\n\x00\r\nQUIT\n"
)

// Errors of ReadProxy besides those of the connection.
var (
	ErrNoProxy  = errors.New("sniff: connection does not begin with a PROXY header")
	ErrBadProxy = errors.New("sniff: malformed PROXY header")
)

// ReadProxy reads the PROXY header (v1 or v2) that a connection begins with. have holds what was already read, as in
// Read; rest is what was read and is no part of the header, in the same memory.
//
// found is false when there is none: then rest is all that was read, and the error is ErrNoProxy if one is required. A
// client that stays silent until the deadline has sent none. The addresses are those the header tells, never v4-mapped;
// they are zero for LOCAL and UNKNOWN and for anything but TCP, and then the socket's own count.
//
// The deadline stays set on c as its read deadline.
func ReadProxy(c net.Conn, have []byte, require bool, deadline time.Time) (src, dst netip.AddrPort, found bool, rest []byte, err error) {
	s := reader{b: have}
	armed := false
	for {
		size, state := proxyHeader(s.b)
		switch state {
		case proxyNone:
			if require {
				err = ErrNoProxy
			}
			return src, dst, false, s.b, err
		case proxyBad:
			return src, dst, true, s.b, ErrBadProxy
		case proxyWhole:
			src, dst, err = parseProxy(s.b[:size])
			return src, dst, true, s.b[size:], err
		}
		if !armed {
			armed = true
			if err := c.SetReadDeadline(deadline); err != nil {
				return src, dst, false, s.b, err
			}
		}
		n, err := s.fill(c)
		if err == nil || n > 0 {
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = ErrTimeout
			if len(s.b) == 0 && !require {
				err = nil
			}
		} else if errors.Is(err, io.EOF) && len(s.b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return src, dst, false, s.b, err
	}
}

type proxyState uint8

const (
	proxyPart proxyState = iota // could still become a header, or be one
	proxyWhole
	proxyNone
	proxyBad
)

// proxyHeader finds the length of the header that b begins with, and looks at nothing behind it.
func proxyHeader(b []byte) (size int, state proxyState) {
	switch n1, n2 := min(len(b), len(proxyV1)), min(len(b), len(proxyV2)); {
	case string(b[:n2]) == proxyV2[:n2]:
		if len(b) < proxyV2Prefix {
			return 0, proxyPart
		}
		size = proxyV2Prefix + int(binary.BigEndian.Uint16(b[14:]))
		if size > maxProxyV2 {
			return 0, proxyBad
		}
	case string(b[:n1]) == proxyV1[:n1]:
		line := b[:min(len(b), maxProxyV1)]
		size = bytes.IndexByte(line, '\n') + 1
		if size == 0 {
			if len(line) == maxProxyV1 {
				return 0, proxyBad
			}
			return 0, proxyPart
		}
	default:
		return 0, proxyNone
	}
	if len(b) < size {
		return 0, proxyPart
	}
	return size, proxyWhole
}

func parseProxy(header []byte) (src, dst netip.AddrPort, err error) {
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(header), len(header)))
	if err != nil {
		return src, dst, fmt.Errorf("%w: %w", ErrBadProxy, err)
	}
	if h.Command.IsLocal() {
		return src, dst, nil
	}
	from, to, ok := h.TCPAddrs()
	if !ok {
		return src, dst, nil
	}
	return plain(from), plain(to), nil
}

func plain(a *net.TCPAddr) netip.AddrPort {
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
