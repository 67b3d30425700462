package sniff

import (
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

type proxyCase struct {
	bytes    []byte
	src, dst string // "" = none
}

func v2(command, family byte, body string) []byte {
	return append([]byte(proxyV2+string([]byte{command, family, byte(len(body) >> 8), byte(len(body))})), body...)
}

func proxyHeaders() map[string]proxyCase {
	v4 := "\xc0\x00\x02\x01\x0a\x00\x00\x01\x30\x39\x01\xbb"
	v6 := strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01" + "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + "\x30\x39\x01\xbb"
	return map[string]proxyCase{
		"v1":                      {[]byte("PROXY TCP4 192.0.2.1 10.0.0.1 12345 443\r\n"), "192.0.2.1:12345", "10.0.0.1:443"},
		"v1 of IPv6":              {[]byte("PROXY TCP6 2001:db8::1 ::1 12345 443\r\n"), "[2001:db8::1]:12345", "[::1]:443"},
		"v1 unknown":              {[]byte("PROXY UNKNOWN\r\n"), "", ""},
		"v1 unknown, long":        {[]byte("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n"), "", ""},
		"v2":                      {v2(0x21, 0x11, v4), "192.0.2.1:12345", "10.0.0.1:443"},
		"v2 mapped":               {v2(0x21, 0x21, v6), "192.0.2.1:12345", "[2001:db8::1]:443"},
		"v2 with TLVs":            {v2(0x21, 0x11, v4+"\x04\x00\x10"+strings.Repeat("x", 16)), "192.0.2.1:12345", "10.0.0.1:443"},
		"v2 local":                {v2(0x20, 0x00, ""), "", ""},
		"v2 local with addresses": {v2(0x20, 0x11, v4), "", ""},
		"v2 UDP":                  {v2(0x21, 0x12, v4), "", ""},
	}
}

func TestC12_ProxyHeaderHoweverItComes(t *testing.T) {
	const next = "\x16\x03\x01 what follows"
	for name, tc := range proxyHeaders() {
		for how, size := range deliveries {
			t.Run(name+" "+how, func(t *testing.T) {
				all := string(tc.bytes) + next
				c := &pieces{b: []byte(all), size: size(len(all)), then: io.EOF}
				src, dst, found, rest, err := ReadProxy(c, make([]byte, 0, 64), true, time.Time{})
				if err != nil || !found || string(rest)+string(c.b) != next {
					t.Fatalf("%v, %v, %q", found, err, rest)
				}
				if text(src) != tc.src || text(dst) != tc.dst {
					t.Errorf("%v -> %v, want %s -> %s", src, dst, tc.src, tc.dst)
				}
			})
		}
	}
}

func text(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func TestC12_NoProxyHeader(t *testing.T) {
	for _, said := range []string{"GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PROX", "PROXYx", "\r\n\r\n\x01", "\x16\x03\x01"} {
		c := &pieces{b: []byte(said), size: 2, then: io.EOF}
		_, _, found, rest, err := ReadProxy(c, nil, false, time.Time{})
		if said == "PROX" {
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%q: %v", said, err)
			}
			continue
		}
		if found || err != nil || string(rest)+string(c.b) != said {
			t.Errorf("%q: %v, %v, %q", said, found, err, rest)
		}
		c = &pieces{b: []byte(said), size: 2, then: io.EOF}
		if _, _, _, _, err = ReadProxy(c, nil, true, time.Time{}); !errors.Is(err, ErrNoProxy) {
			t.Errorf("%q, required: %v", said, err)
		}
	}
}

func TestBrokenProxyHeaders(t *testing.T) {
	for _, said := range []string{
		"PROXY TCP4 192.0.2.1\r\n", "PROXY TCP4 192.0.2.1 10.0.0.1 1 2\n", "PROXY TCP4 192.0.2.1 10.0.0.1 1 99999\r\n",
		"PROXY " + strings.Repeat("x", 200), "PROXY TCP4 ::1 ::1 1 2\r\n", string(v2(0x21, 0x11, "short")), string(v2(0x31, 0x11, "")),
		string(v2(0x21, 0x11, "")), proxyV2 + "\x21\x11\xff\xff",
	} {
		c := &pieces{b: []byte(said), size: 1 << 20, then: io.EOF}
		if _, _, _, _, err := ReadProxy(c, nil, false, time.Time{}); !errors.Is(err, ErrBadProxy) {
			t.Errorf("%q: %v", said, err)
		}
	}
}

func TestProxyDeadline(t *testing.T) {
	soon := func() time.Time { return time.Now().Add(50 * time.Millisecond) }
	client, server := sockets(t)
	if _, _, found, rest, err := ReadProxy(server, nil, false, soon()); found || err != nil || len(rest) != 0 {
		t.Error("a silent client has sent no header:", found, err)
	}
	if _, _, _, _, err := ReadProxy(server, nil, true, soon()); !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	io.WriteString(client, "PROXY TCP4 ")
	if _, _, _, _, err := ReadProxy(server, nil, false, soon()); !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
}
