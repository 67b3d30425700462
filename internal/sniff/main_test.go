package sniff

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sockets joins two ends of a TCP connection.
func sockets(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// recorder keeps what a TLS client writes first.
type recorder struct {
	net.Conn
	b []byte
}

func (r *recorder) Write(p []byte) (int, error) { r.b = append(r.b, p...); return len(p), nil }
func (r *recorder) Read([]byte) (int, error)    { return 0, io.EOF }
func (r *recorder) Close() error                { return nil }
func (r *recorder) SetDeadline(time.Time) error { return nil }

// realHello is what crypto/tls says first with that configuration.
func realHello(c *tls.Config) []byte {
	c.InsecureSkipVerify = true
	r := new(recorder)
	_ = tls.Client(r, c).Handshake()
	return r.b
}

// ext is an extension.
func ext(kind uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

func vector16(data []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(data))), data...)
}

func nameExt(name string) []byte {
	return ext(extServerName, vector16(append([]byte{0}, vector16([]byte(name))...)))
}

func alpnExt(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(append(list, byte(len(n))), n...)
	}
	return ext(extALPN, vector16(list))
}

// message is a ClientHello with those extensions, nil: without any list of them.
func message(exts ...[]byte) []byte {
	body := []byte{3, 3}
	for i := range 32 {
		body = append(body, byte(i))
	}
	body = append(body, 0)                         // session id
	body = append(body, 0, 4, 0x1a, 0x1a, 0x13, 1) // GREASE and a suite
	body = append(body, 1, 0)                      // compression
	if exts != nil {
		var list []byte
		for _, e := range exts {
			list = append(list, e...)
		}
		body = append(body, vector16(list)...)
	}
	return append([]byte{clientHello, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

// inRecords cuts a message into records of at most size bytes.
func inRecords(m []byte, size int) (b []byte) {
	for len(m) > 0 {
		n := min(size, len(m))
		b = append(b, recordHandshake, 3, 1, byte(n>>8), byte(n))
		b = append(b, m[:n]...)
		m = m[n:]
	}
	return b
}
