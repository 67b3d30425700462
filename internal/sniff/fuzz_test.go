package sniff

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

var errSeen = errors.New("seen")

// oracle reads a ClientHello with crypto/tls; ok means that it was taken for one.
func oracle(b []byte) (name string, alpn []string, ok bool) {
	c := &oracleConn{pieces: pieces{b: b, size: 1 << 20, then: io.EOF}}
	_ = tls.Server(c, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		name, alpn, ok = i.ServerName, i.SupportedProtos, true
		return nil, errSeen
	}}).Handshake()
	return name, alpn, ok
}

type oracleConn struct{ pieces }

func (c *oracleConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *oracleConn) Close() error                     { return nil }
func (c *oracleConn) SetWriteDeadline(time.Time) error { return nil }

// onlyHandshake reports whether all records are such as we take: crypto/tls passes over warnings and odd versions.
func onlyHandshake(b []byte) bool {
	for len(b) >= recordHeader {
		if b[0] != recordHandshake || b[1] != 3 {
			return false
		}
		b = b[min(len(b), recordHeader+int(b[3])<<8+int(b[4])):]
	}
	return true
}

func plainName(name string) bool {
	return len(name) <= maxName && !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}

// FuzzHello compares with crypto/tls. Whatever it takes we take, with the same name and protocols; what we take beyond
// that, it takes too once the extensions that we do not look into are gone.
func FuzzHello(f *testing.F) {
	for _, h := range hellos() {
		if len(h.bytes) < 4<<10 { // the fuzzer takes minutes to make sense of larger ones
			f.Add(h.bytes)
		}
	}
	for _, m := range [][]byte{
		message(nameExt("a.example"), nameExt("b.example")), message(ext(0, nil)), message(alpnExt("h2", "")), {2, 0, 0, 0},
	} {
		f.Add(inRecords(m, maxRecord))
		f.Add(inRecords(m, 3))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _ := Read(&pieces{b: b, size: 1 << 20, then: io.EOF}, nil, patient)
		slow, _ := Read(&pieces{b: b, size: 7, then: io.EOF}, nil, patient)
		if r.Kind != slow.Kind || r.Hello.Name != slow.Hello.Name || r.Alert != slow.Alert {
			t.Fatalf("at once %v, in pieces %v", r, slow)
		}
		if r.Kind == TLS {
			checkTaken(t, &r.Hello)
		}
		name, alpn, ok := oracle(b)
		if !ok || !onlyHandshake(b) || len(b) > MaxBytes || !plainName(name) || len(alpn) > maxOffers {
			return
		}
		if r.Kind != TLS || r.Hello.Name != strings.ToLower(name) || !slices.Equal(r.Hello.ALPN, alpn) {
			t.Fatalf("%v %q %q (alert %d), crypto/tls has %q %q", r.Kind, r.Hello.Name, r.Hello.ALPN, r.Alert, name, alpn)
		}
	})
}

func checkTaken(t *testing.T, h *Hello) {
	exts := [][]byte{}
	if h.Name != "" {
		exts = append(exts, nameExt(h.Name))
	}
	if len(h.ALPN) > 0 {
		exts = append(exts, alpnExt(h.ALPN...))
	}
	name, alpn, ok := oracle(inRecords(message(exts...), maxRecord))
	if !ok || name != h.Name || !slices.Equal(alpn, h.ALPN) {
		t.Fatalf("took %q %q, for crypto/tls it is %v %q %q", h.Name, h.ALPN, ok, name, alpn)
	}
}

// FuzzRead holds Read to its contract whatever comes, however it comes.
func FuzzRead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\n", "SSH-2.0-x", preface, "\r\nGET /", "PRI * HTTP/2.0\r\n\r\nSX", "\x16\x03", "\x10\x0c\x00\x04MQTT", "EHLO x",
	} {
		f.Add([]byte(s), uint16(3), uint16(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, size, before uint16) {
		have := b[:min(len(b), int(before))]
		rest := b[len(have):]
		c := &pieces{b: rest, size: int(size) + 1, then: io.EOF}
		r, err := Read(c, slices.Clone(have), patient)
		if !bytes.Equal(append(slices.Clone(r.Bytes), c.b...), b) {
			t.Fatal("bytes were lost or made up")
		}
		if (r.Kind == Broken) != (err != nil) || (r.Alert != 0) && r.Kind != Broken || r.Kind == Silent {
			t.Fatal(r.Kind, r.Alert, err)
		}
		if len(r.Bytes) > max(MaxBytes, len(have)) {
			t.Fatal("read", len(r.Bytes))
		}
		all, _ := Read(&pieces{b: b, size: 1 << 20, then: io.EOF}, nil, patient)
		if all.Kind != r.Kind {
			t.Fatalf("%v in pieces, %v at once", r.Kind, all.Kind)
		}
	})
}

// FuzzProxy compares with go-proxyproto, and looks that what follows the header stays.
func FuzzProxy(f *testing.F) {
	for _, tc := range proxyHeaders() {
		f.Add(append(tc.bytes, "GET / HTTP/1.1\r\n"...), uint16(5))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		c := &pieces{b: b, size: int(size) + 1, then: io.EOF}
		src, dst, found, rest, err := ReadProxy(c, nil, false, time.Time{})
		if !bytes.HasSuffix(b, append(slices.Clone(rest), c.b...)) {
			t.Fatal("bytes were lost or made up")
		}
		if !found && err == nil && len(rest)+len(c.b) != len(b) {
			t.Fatal("no header, and yet something is gone")
		}
		h, want := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b), len(b)+16))
		if !found || err != nil {
			if want == nil && len(b) <= maxProxyV2 {
				t.Fatalf("found %v, %v; the library takes it", found, err)
			}
			return
		}
		if want != nil {
			t.Fatal("taken, but not by the library:", want)
		}
		if from, to, ok := h.TCPAddrs(); ok && !h.Command.IsLocal() && (plain(from) != src || plain(to) != dst) {
			t.Fatal(src, dst, from, to)
		}
	})
}
