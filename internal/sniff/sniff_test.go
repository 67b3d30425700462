package sniff

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var patient = Options{Hello: 10 * time.Second}

func pad(n int) []byte { return ext(0x0a0a, make([]byte, n)) }

// hellos are ClientHellos that have to be understood.
func hellos() map[string]struct {
	bytes []byte
	name  string
	alpn  []string
} {
	type hello = struct {
		bytes []byte
		name  string
		alpn  []string
	}
	var offer []string
	for i := range 60 {
		offer = append(offer, strings.Repeat(string(rune('a'+i%26)), 250))
	}
	return map[string]hello{
		"real":                {realHello(&tls.Config{ServerName: "a.example.com", NextProtos: []string{"h2", "http/1.1"}}), "a.example.com", []string{"h2", "http/1.1"}},
		"real 1.2":            {realHello(&tls.Config{ServerName: "a.example.com", MaxVersion: tls.VersionTLS12}), "a.example.com", nil},
		"real without SNI":    {realHello(&tls.Config{NextProtos: []string{"acme-tls/1"}}), "", []string{"acme-tls/1"}},
		"real of 16 KB":       {realHello(&tls.Config{ServerName: "big.example", NextProtos: offer}), "big.example", offer},
		"no extensions":       {inRecords(message(), maxRecord), "", nil},
		"an empty list":       {inRecords(message([]byte{}), maxRecord), "", nil},
		"upper case":          {inRecords(message(nameExt("WWW.Example.COM")), maxRecord), "www.example.com", nil},
		"trailing dot":        {inRecords(message(nameExt("example.com.")), maxRecord), "example.com", nil},
		"an IP":               {inRecords(message(nameExt("192.0.2.1")), maxRecord), "192.0.2.1", nil},
		"GREASE":              {inRecords(message(pad(1), nameExt("g.example"), ext(0xfafa, nil), alpnExt("\x0a\x0a", "h2")), maxRecord), "g.example", []string{"\x0a\x0a", "h2"}},
		"other name types":    {inRecords(message(ext(0, vector16([]byte{7, 0, 1, 'x', 0, 0, 1, 'y'}))), maxRecord), "y", nil},
		"name behind 15 KB":   {inRecords(message(pad(15000), nameExt("late.example")), maxRecord), "late.example", nil},
		"two records":         {inRecords(message(pad(300), nameExt("two.example")), 200), "two.example", nil},
		"a full 16 KB record": {inRecords(message(pad(maxRecord-300), nameExt("full.example"), pad(2000)), maxRecord), "full.example", nil},
		"50 KB":               {inRecords(message(pad(50000), nameExt("huge.example")), maxRecord), "huge.example", nil},
		"records of a byte":   {inRecords(message(nameExt("tiny.example")), 1), "tiny.example", nil},
	}
}

// deliveries are ways for bytes to arrive. Each piece is acknowledged by the reader having taken it.
var deliveries = map[string]func(int) int{
	"at once":       func(n int) int { return n },
	"byte by byte":  func(int) int { return 1 },
	"four segments": func(n int) int { return n/4 + 1 },
}

// pieces is a connection whose every Read gives one piece: the worst that segments can do.
type pieces struct {
	net.Conn
	b    []byte
	size int
	then error
}

func (p *pieces) SetReadDeadline(time.Time) error { return nil }

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, p.then
	}
	n := copy(b[:min(len(b), p.size)], p.b)
	p.b = p.b[n:]
	return n, nil
}

func TestC06_HelloHoweverItComes(t *testing.T) {
	for name, h := range hellos() {
		for how, size := range deliveries {
			t.Run(name+" "+how, func(t *testing.T) {
				c := &pieces{b: h.bytes, size: size(len(h.bytes)), then: io.EOF}
				r, err := Read(c, make([]byte, 0, 100), patient)
				if err != nil || r.Kind != TLS {
					t.Fatal(r.Kind, err)
				}
				if r.Hello.Name != h.name || !slices.Equal(r.Hello.ALPN, h.alpn) {
					t.Errorf("name %q and %q, want %q and %q", r.Hello.Name, r.Hello.ALPN, h.name, h.alpn)
				}
				if !bytes.Equal(append(r.Bytes, c.b...), h.bytes) {
					t.Error("bytes were lost")
				}
			})
		}
	}
}

func TestC06_HelloOverRealSegments(t *testing.T) {
	h := realHello(&tls.Config{ServerName: "a.example.com", NextProtos: []string{"h2"}})
	for how, size := range deliveries {
		t.Run(how, func(t *testing.T) {
			client, server := sockets(t)
			go func() {
				for b := h; len(b) > 0; {
					n := min(size(len(h)), len(b))
					client.Write(b[:n])
					b = b[n:]
				}
			}()
			r, err := Read(server, nil, patient)
			if err != nil || r.Kind != TLS || r.Hello.Name != "a.example.com" || !bytes.Equal(r.Bytes, h) {
				t.Fatal(r.Kind, r.Hello, err)
			}
		})
	}
}

func TestC06_BrokenHello(t *testing.T) {
	name := nameExt("a.example")
	for what, tc := range map[string]struct {
		bytes []byte
		alert Alert
	}{
		"not a handshake record next": {append(inRecords(message(name), 20)[:25], 23, 3, 3, 0, 1, 0), UnexpectedMessage},
		"another message":             {inRecords([]byte{2, 0, 0, 1, 0}, maxRecord), UnexpectedMessage},
		"an empty record":             {[]byte{22, 3, 1, 0, 0}, DecodeError},
		"a record too large":          {[]byte{22, 3, 1, 0x40, 1}, RecordOverflow},
		"a message too large":         {[]byte{22, 3, 1, 0, 4, 1, 1, 0, 0}, RecordOverflow},
		"more than 64 KiB":            {inRecords(message(pad(65000), pad(500)), 4000), RecordOverflow},
		"nothing in it":               {inRecords([]byte{1, 0, 0, 0}, maxRecord), DecodeError},
		"a list cut short":            {inRecords(message(name[:len(name)-1]), maxRecord), DecodeError},
		"bytes behind the list":       {inRecords(func() []byte { m := append(message(name), 0); m[3]++; return m }(), maxRecord), DecodeError},
		"two names":                   {inRecords(message(ext(0, vector16([]byte{0, 0, 1, 'x', 0, 0, 1, 'y'}))), maxRecord), DecodeError},
		"two name extensions":         {inRecords(message(name, name), maxRecord), DecodeError},
		"two protocol lists":          {inRecords(message(alpnExt("h2"), alpnExt("h3")), maxRecord), DecodeError},
		"an empty name":               {inRecords(message(nameExt("")), maxRecord), DecodeError},
		"only a dot":                  {inRecords(message(nameExt(".")), maxRecord), IllegalParameter},
		"two dots":                    {inRecords(message(nameExt("a..")), maxRecord), IllegalParameter},
		"a NUL in the name":           {inRecords(message(nameExt("a\x00b")), maxRecord), IllegalParameter},
		"a line end in the name":      {inRecords(message(nameExt("a\nb")), maxRecord), IllegalParameter},
		"UTF-8":                       {inRecords(message(nameExt("bücher.example")), maxRecord), IllegalParameter},
		"a name of 256":               {inRecords(message(nameExt(strings.Repeat("a", 256))), maxRecord), IllegalParameter},
		"an empty protocol":           {inRecords(message(alpnExt("h2", "")), maxRecord), DecodeError},
		"a thousand protocols":        {inRecords(message(alpnExt(strings.Split(strings.Repeat("x", 1000), "")...)), maxRecord), IllegalParameter},
	} {
		for _, size := range []int{1, 1 << 20} {
			c := &pieces{b: tc.bytes, size: size, then: io.EOF}
			r, err := Read(c, nil, patient)
			if r.Kind != Broken || r.Alert != tc.alert || err == nil {
				t.Errorf("%s: %v, alert %d, %v; want alert %d", what, r.Kind, r.Alert, err, tc.alert)
			}
			if r.Hello.Name != "" || !bytes.Equal(append(r.Bytes, c.b...), tc.bytes) {
				t.Errorf("%s: left %q behind, or lost bytes", what, r.Hello.Name)
			}
		}
	}
}

func TestPlainKinds(t *testing.T) {
	for text, want := range map[string]Kind{
		"GET / HTTP/1.1\r\n":                   HTTP1,
		"GET ":                                 HTTP1,
		"DELETE\r\n":                           HTTP1, // nothing else begins so, and it is worth a 400
		"\r\nPOST /":                           HTTP1,
		"PROPFIND /dav":                        HTTP1,
		"get /":                                HTTP1,
		"OPTIONS *":                            HTTP1,
		"QUERY *":                              HTTP1,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00": HTTP2,
		"PRI /":                                HTTP1,
		"SSH-2.0-OpenSSH_9.6\r\n":              SSH,
		"EHLO mail.example\r\n":                Unknown,
		"USER anonymous\r\n":                   Unknown,
		"PING\r\n":                             Unknown,
		"QUIT\n":                               Unknown,
		"\x10\x0c\x00\x04MQTT":                 Unknown,
		"\x00":                                 Unknown,
		"\r\n\r\n":                             Unknown,
		"\r\n\x00":                             Unknown,
		"\rX":                                  Unknown,
		" GET /":                               Unknown,
		"\x16\x04":                             Unknown,
		"\x80\x2e\x01\x03":                     Unknown,
		strings.Repeat("A", 33):                Unknown,
		"PRI * HTTP/2.0\r\n\r\nXX":             HTTP1, // the request line decides, and http1 refuses it
	} {
		for how, size := range deliveries {
			c := &pieces{b: []byte(text), size: size(len(text)), then: io.EOF}
			r, err := Read(c, nil, patient)
			if r.Kind != want || err != nil {
				t.Errorf("%q %s: %v, %v; want %v", text, how, r.Kind, err, want)
			}
			if string(r.Bytes)+string(c.b) != text {
				t.Errorf("%q %s: bytes were lost", text, how)
			}
		}
	}
}

// What the caller has read already is judged first, and in its own memory.
func TestHaveIsUsed(t *testing.T) {
	have := append(make([]byte, 0, 64), "GET / HT"...)
	r, err := Read(nil, have, patient)
	if err != nil || r.Kind != HTTP1 || &r.Bytes[0] != &have[0] {
		t.Fatal(r, err)
	}
	c := &pieces{b: []byte("T / HTTP/1.1"), size: 100}
	r, err = Read(c, have[:2], patient)
	if err != nil || string(r.Bytes) != "GET / HTTP/1.1" || &r.Bytes[0] != &have[0] {
		t.Fatal(r, err)
	}
}

func TestClientsThatSayTooLittle(t *testing.T) {
	hello := realHello(&tls.Config{ServerName: "a.example.com"})
	quick := Options{Silence: 50 * time.Millisecond, Hello: 100 * time.Millisecond}
	for name, tc := range map[string]struct {
		text string
		end  func(net.Conn)
		kind Kind
		err  error
	}{
		"silence":           {"", nil, Silent, nil},
		"half a hello":      {string(hello[:100]), nil, Broken, ErrTimeout},
		"one byte of TLS":   {"\x16", nil, Broken, ErrTimeout},
		"half a method":     {"GE", nil, Unknown, ErrTimeout},
		"half a preface":    {"PRI * HT", nil, Unknown, ErrTimeout},
		"left at once":      {"", closeNow, Broken, io.EOF},
		"left in the hello": {string(hello[:100]), closeNow, Broken, io.ErrUnexpectedEOF},
		"left in a word":    {"PING", closeNow, Unknown, nil},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := sockets(t)
			io.WriteString(client, tc.text)
			if tc.end != nil {
				tc.end(client)
			}
			start := time.Now()
			r, err := Read(server, nil, quick)
			if r.Kind != tc.kind || !errors.Is(err, tc.err) || string(r.Bytes) != tc.text {
				t.Fatalf("%v, %v, %d bytes; want %v, %v", r.Kind, err, len(r.Bytes), tc.kind, tc.err)
			}
			want := time.Duration(0)
			switch {
			case tc.kind == Silent:
				want = quick.Silence
			case errors.Is(tc.err, ErrTimeout):
				want = quick.Hello
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("a timeout that is none")
				}
			}
			if d := time.Since(start); d < want || d > want+5*time.Second {
				t.Errorf("after %v, want %v", d, want)
			}
		})
	}
}

func closeNow(c net.Conn) { c.Close() }

// A client that begins late may still take its time for the rest.
func TestSilenceAndHelloAreTwoClocks(t *testing.T) {
	client, server := sockets(t)
	go func() {
		<-time.After(150 * time.Millisecond)
		io.WriteString(client, "GE")
		<-time.After(50 * time.Millisecond)
		io.WriteString(client, "T /")
	}()
	r, err := Read(server, nil, Options{Silence: 5 * time.Second, Hello: 150 * time.Millisecond})
	if err != nil || r.Kind != HTTP1 {
		t.Fatal(r, err)
	}
}

func TestSlowHelloIsBounded(t *testing.T) {
	client, server := sockets(t)
	hello := realHello(&tls.Config{ServerName: "a.example.com"})
	stop := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for i := range hello {
			select {
			case <-stop:
				return
			case <-tick.C:
				client.Write(hello[i : i+1])
			}
		}
	}()
	start := time.Now()
	r, err := Read(server, nil, Options{Hello: 200 * time.Millisecond})
	if r.Kind != Broken || !errors.Is(err, ErrTimeout) || time.Since(start) > 5*time.Second {
		t.Fatal(r.Kind, err, time.Since(start))
	}
	close(stop)
	<-gone
}

func TestAlertsAreUnderstood(t *testing.T) {
	for a, want := range map[Alert]string{
		UnrecognizedName: "unrecognized name", HandshakeFailure: "handshake failure", AccessDenied: "access denied",
		DecodeError: "error decoding message", InternalError: "internal error",
	} {
		client, server := sockets(t)
		done := make(chan error, 1)
		go func() {
			done <- tls.Client(client, &tls.Config{ServerName: "a.example"}).Handshake()
		}()
		if _, err := Read(server, nil, patient); err != nil {
			t.Fatal(err)
		}
		server.Write(a.Bytes())
		if err := <-done; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: the client understands %v, want %q", a, err, want)
		}
	}
}

func TestReadAllocatesTheNameAlone(t *testing.T) {
	h := realHello(&tls.Config{ServerName: "a.example.com", NextProtos: []string{"h2", "http/1.1"}})
	c := &pieces{size: 1 << 20}
	have := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(200, func() {
		c.b = h
		if r, err := Read(c, have, patient); err != nil || r.Kind != TLS {
			t.Fatal(r, err)
		}
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkReadHello(b *testing.B) {
	h := realHello(&tls.Config{ServerName: "a.example.com", NextProtos: []string{"h2", "http/1.1"}})
	c := &pieces{size: 1 << 20}
	have := make([]byte, 0, 4096)
	b.SetBytes(int64(len(h)))
	b.ReportAllocs()
	for b.Loop() {
		c.b = h
		Read(c, have, patient)
	}
}

// BenchmarkCryptoTLSHello is the same by the standard library, for comparison.
func BenchmarkCryptoTLSHello(b *testing.B) {
	h := realHello(&tls.Config{ServerName: "a.example.com", NextProtos: []string{"h2", "http/1.1"}})
	b.ReportAllocs()
	for b.Loop() {
		oracle(h)
	}
}

func BenchmarkReadHelloFromSocket(b *testing.B) {
	client, server := sockets(b)
	h := realHello(&tls.Config{ServerName: "a.example.com", NextProtos: []string{"h2", "http/1.1"}})
	have := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		client.Write(h)
		Read(server, have, patient)
	}
}
