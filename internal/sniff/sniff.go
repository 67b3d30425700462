// Package sniff reads what a client said first, once, bounded in bytes and time, and loses nothing of it.
//
// It tells TLS (with the name and protocols of the ClientHello), HTTP/1, HTTP/2, SSH and everything else apart, and reads
// PROXY headers. It never writes to a connection, never closes one, and reads no byte more than one read of what is
// there at the moment when it still has to know more.
package sniff

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Kind is what a client began to speak.
type Kind uint8

// The kinds.
const (
	Unknown Kind = iota // first bytes of something else
	TLS                 // a whole ClientHello
	HTTP1               // the start of a request line
	HTTP2               // the client preface of RFC 9113 section 3.4
	SSH
	Silent // not one byte within Options.Silence
	Broken // TLS that cannot be read, or a client that left; the error says why
)

func (k Kind) String() string {
	return [...]string{"unknown", "tls", "http1", "http2", "ssh", "silent", "broken"}[k]
}

// MaxBytes bounds what is read before a client must have made itself clear.
const MaxBytes = 64 << 10

// ErrTimeout is returned when the first bytes were still incomplete at the deadline. It wraps os.ErrDeadlineExceeded.
var ErrTimeout = fmt.Errorf("sniff: first bytes incomplete: %w", os.ErrDeadlineExceeded)

// Options bound one Read.
type Options struct {
	Silence time.Duration // how long to wait for the first byte; 0: it counts under Hello
	Hello   time.Duration // how long first bytes may take once they have begun; 0: no bound
}

// A Result is what Read found out.
type Result struct {
	Kind  Kind
	Hello Hello  // of TLS
	Bytes []byte // all that was read so far, what the caller already had included; the caller's to keep
	Alert Alert  // of Broken TLS: what the client should be told; 0: nothing
}

// Read finds out what the client of c speaks. have holds what was already read from c, and its spare capacity is used
// before anything is allocated.
//
// The error is nil for every Kind but two: Broken always has one (io.EOF: the client left without a word), and Unknown
// has ErrTimeout when the bytes so far could still have become HTTP, HTTP/2 or SSH: a route for unknown bytes may take
// them, nobody else. A client that sent such bytes and then FIN is Unknown without an error.
//
// The read deadline that was needed stays set on c: whoever reads next sets their own.
func Read(c net.Conn, have []byte, o Options) (Result, error) {
	s := reader{b: have}
	if s.look() {
		return s.result(), s.err
	}
	waiting := len(have) == 0 && o.Silence > 0
	wait := o.Hello
	if waiting {
		wait = o.Silence
	}
	err := bound(c, wait)
	for err == nil {
		var n int
		n, err = s.fill(c)
		if n > 0 && s.look() {
			return s.result(), s.err
		}
		if err == nil && waiting {
			waiting = false
			err = bound(c, o.Hello)
		}
	}
	s.fail(err)
	return s.result(), s.err
}

func bound(c net.Conn, d time.Duration) error {
	if d <= 0 {
		return c.SetReadDeadline(time.Time{})
	}
	return c.SetReadDeadline(time.Now().Add(d))
}

// reader gathers first bytes until they are clear.
type reader struct {
	b     []byte
	kind  Kind
	hello Hello
	alert Alert
	err   error
	recs  records
}

func (s *reader) result() Result {
	return Result{Kind: s.kind, Hello: s.hello, Bytes: s.b, Alert: s.alert}
}

// fill reads once into the spare capacity, which grows by doubling, so that what is held follows what was sent and not
// what was announced.
func (s *reader) fill(c net.Conn) (int, error) {
	if len(s.b) == cap(s.b) {
		size := min(max(2*cap(s.b), 4<<10), MaxBytes)
		b := make([]byte, len(s.b), size)
		copy(b, s.b)
		s.b = b
	}
	n, err := c.Read(s.b[len(s.b):min(cap(s.b), MaxBytes)])
	s.b = s.b[:len(s.b)+n]
	return n, err
}

// look judges the bytes so far and reports whether that is the last word.
func (s *reader) look() bool {
	if len(s.b) == 0 {
		return false
	}
	if s.b[0] == recordHandshake && (len(s.b) < 2 || s.b[1] == 3) {
		return s.lookTLS()
	}
	kind, sure := classify(s.b)
	if !sure && len(s.b) < MaxBytes {
		return false
	}
	s.kind = kind
	return true
}

func (s *reader) lookTLS() bool {
	message, alert, done := s.recs.next(s.b)
	if done && alert == 0 {
		alert = s.hello.parse(message)
	}
	switch {
	case alert != 0:
		s.kind, s.alert, s.err = Broken, alert, helloErrors[alert]
	case done:
		s.kind = TLS
	case len(s.b) >= MaxBytes:
		s.kind, s.alert, s.err = Broken, RecordOverflow, helloErrors[RecordOverflow]
	default:
		return false
	}
	if s.err != nil {
		s.hello = Hello{}
	}
	return true
}

// fail judges bytes that nothing more follows.
func (s *reader) fail(err error) {
	timeout := errors.Is(err, os.ErrDeadlineExceeded)
	tls := len(s.b) > 0 && s.b[0] == recordHandshake
	switch {
	case timeout && len(s.b) == 0:
		s.kind = Silent
	case timeout && tls:
		s.kind, s.err = Broken, ErrTimeout
	case timeout:
		s.kind, s.err = Unknown, ErrTimeout
	case errors.Is(err, io.EOF) && tls:
		s.kind, s.err = Broken, io.ErrUnexpectedEOF
	case errors.Is(err, io.EOF) && len(s.b) > 0:
		s.kind = Unknown
	default:
		s.kind, s.err = Broken, err
	}
}
