package wire

import (
	"net"
)

// Buffer is a growable read buffer with one owner. Bytes [r:w) have been read and not consumed.
type Buffer struct {
	b    []byte
	r, w int
}

// SKELETON: signatures that others build on; the bodies are being written.

// GetBuffer takes a buffer of at least 4 KiB from the pool.
func GetBuffer() *Buffer { panic("todo") }

// Put gives the buffer back. Nothing may point into it any more.
func (b *Buffer) Put() { panic("todo") }

// Bytes are the unconsumed bytes.
func (b *Buffer) Bytes() []byte { return b.b[b.r:b.w] }

// Fill reads once from c into free space, growing the buffer up to max bytes in all (ErrTooLarge beyond).
func (b *Buffer) Fill(c net.Conn, max int) (n int, err error) { panic("todo") }

// Append copies p behind the unconsumed bytes.
func (b *Buffer) Append(p []byte) { panic("todo") }

// Discard consumes n bytes.
func (b *Buffer) Discard(n int) { b.r += n }

// A ParseError refuses a message. Status is what a server answers: 400, 414, 417, 431, 501 or 505.
type ParseError struct {
	Status int
	What   string // lower case, constant, safe to show
}

func (e *ParseError) Error() string { return e.What }

// ParseRequest reads a request head from the start of b into h (RFC 9112 sections 2-6, strictly). It returns the bytes
// it took, or 0 when the head is not complete yet; from tells where the last call stopped looking (0 at first) and
// next is what to pass then. maxFields bounds the number of fields.
func ParseRequest(b []byte, from int, h *Head, maxFields int) (n, next int, err error) {
	panic("todo")
}

// ParseResponse is the same for a response. Interim responses (1xx) are messages of their own.
func ParseResponse(b []byte, from int, h *Head, maxFields int) (n, next int, err error) {
	panic("todo")
}

// AppendRequest appends the head in HTTP/1.1. n is the body length: -1 chunked, 0 none (Content-Length: 0 only for
// methods that announce one). h.Upgrade, if set, is sent with Connection: upgrade.
func AppendRequest(dst []byte, h *Head, n int64) []byte { panic("todo") }

// Framing is how a body's end is found.
type Framing uint8

// The ways RFC 9112 section 6.3 knows.
const (
	NoBody Framing = iota
	ByLength
	ByChunks
	ByClose
)

// AppendResponse appends the head in HTTP/1.1, with framing and connection fields as said: n is announced as
// Content-Length with ByLength (and with NoBody where n >= 0 and the status allows it); closing adds Connection: close.
func AppendResponse(dst []byte, h *Head, f Framing, n int64, closing bool) []byte { panic("todo") }

// BodyReader is the Body of an HTTP/1 message. The zero value is an empty body.
type BodyReader struct {
	c    net.Conn
	buf  *Buffer
	f    Framing
	left int64
}

// Reset starts a body that continues in buf and then on c. onRead, if not nil, is called before the first read from c
// that must wait (100-continue is sent there).
func (r *BodyReader) Reset(c net.Conn, buf *Buffer, f Framing, n int64, onRead func() error) {
	panic("todo")
}

// Done reports whether the body was read to its end, so that buf holds the start of the next message.
func (r *BodyReader) Done() bool { panic("todo") }

// BodyWriter is the Sink of an HTTP/1 message.
type BodyWriter struct {
	c   net.Conn
	out []byte
	f   Framing
}

// Reset starts a message: head is held back and goes out with the first bytes. With NoBody every Write fails.
// A switched connection is ByClose with a half-close at the end.
func (w *BodyWriter) Reset(c net.Conn, head []byte, f Framing, n int64) { panic("todo") }

// Done reports whether the whole message went out, so that c can carry the next one.
func (w *BodyWriter) Done() bool { panic("todo") }
