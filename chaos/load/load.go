//go:build linux

// Package load is traffic that can be judged: targets that write down every request they were given, clients of all
// protocols that never try anything twice, and a judge who compares what both saw with what the configuration said at
// that time.
//
// It promises that every exchange a client began is reported exactly once, and that every answer carries the nonce of
// its request and the identity of the target. It never starts or ends a process, and it knows nothing of the program
// under test but its ports.
package load

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Class is what a client speaks on a connection, as far as the connection stage tells it apart.
type Class uint8

// The classes. First is a raw tunnel whose target speaks first.
const (
	HTTP Class = iota
	TLS
	Raw
	First
)

func (c Class) String() string { return [...]string{"http", "tls", "raw", "first"}[c] }

// tunnelled reports whether the target is chosen once, when the connection comes in.
func (c Class) tunnelled() bool { return c != HTTP }

// An Endpoint is what a client asks for: a port of this host and, for HTTP and TLS, a name.
type Endpoint struct {
	Class Class
	Port  int
	Name  string
	Proxy int // version of the PROXY header that the port wants from its clients, 0 = none
}

func (e Endpoint) String() string { return fmt.Sprintf("%s %s:%d", e.Class, e.Name, e.Port) }

// Outcome is how an exchange ended, as its client saw it.
type Outcome uint8

// The outcomes. Closed is an end before the first byte of an answer, Cut one after it.
const (
	Answered    Outcome = iota // whole, with the right nonce
	NotFound                   // 404 that no target wrote
	Unavailable                // 502, 503 or 504 that no target wrote, or the TLS alert that stands for them
	Alert                      // TLS: unrecognized_name
	Refused
	Closed
	Cut
	Foreign // a foreign listener answered
	TimedOut
	Wrong // an answer for somebody else, a false one, or none that can be explained
	outcomes
)

var outcomeNames = [outcomes]string{
	"answered", "not found", "unavailable", "alert", "refused", "closed", "cut", "foreign", "timed out", "wrong",
}

func (o Outcome) String() string { return outcomeNames[o] }

// A Report is one exchange. Times are nanoseconds since 1970.
type Report struct {
	Kind     string
	Endpoint Endpoint
	Nonce    string
	Safe     bool  // it may reach a target twice where RFC 9110 allows to repeat it
	Reused   bool  // not the first on its connection
	Opened   int64 // when its connection was begun
	Began    int64
	Ended    int64
	Outcome  Outcome
	Target   string // who answered
	Proxied  bool   // the target was sent a PROXY header
	Detail   string
}

func (r *Report) String() string {
	return fmt.Sprintf("%s %s to %s: %s after %v (target %q, reused %v) %s", r.Kind, r.Nonce, r.Endpoint, r.Outcome,
		time.Duration(r.Ended-r.Began).Round(time.Microsecond), r.Target, r.Reused, r.Detail)
}

// patience is how long a client waits for the next byte. No exchange is ever that silent, so it always tells of a loss.
const patience = 30 * time.Second

// foreignHello is what a foreign listener says to whoever comes.
const foreignHello = "foreign\n"

// ServeForeign answers on l, as somebody who is no target, until l is closed.
func ServeForeign(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, foreignHello)
		_ = c.Close()
	}
}

var errForeign = errors.New("a foreign listener answered")

// outcomeOf sorts the error of a client; begun says that bytes of an answer had come.
func outcomeOf(err error, begun bool) Outcome {
	var t net.Error
	switch {
	case errors.Is(err, errForeign):
		return Foreign
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &t) && t.Timeout():
		return TimedOut
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EPIPE), strings.Contains(err.Error(), "server closed idle connection"):
		if begun {
			return Cut
		}
		return Closed
	}
	return Wrong
}

// blockSize is the length of one block of content.
const blockSize = 64

// pattern is content that says whose it is and where: block i of nonce.
type pattern struct {
	nonce string
	at    int64
}

// Read fills p; the content has no end.
func (s *pattern) Read(p []byte) (int, error) {
	for n := 0; n < len(p); {
		b := s.block()
		k := copy(p[n:], b[s.at%blockSize:])
		n += k
		s.at += int64(k)
	}
	return len(p), nil
}

func (s *pattern) block() []byte {
	b := fmt.Appendf(make([]byte, 0, blockSize), "%s %d ", s.nonce, s.at/blockSize)
	for len(b) < blockSize-1 {
		b = append(b, '.')
	}
	return append(b[:blockSize-1], '\n')
}

// Write checks that p is what comes next.
func (s *pattern) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		b := s.block()[s.at%blockSize:]
		k := min(len(b), len(p)-n)
		if string(b[:k]) != string(p[n:n+k]) {
			return n, &falseAnswer{fmt.Sprintf("content differs at byte %d: %q, want %q", s.at, p[n:n+k], b[:k])}
		}
		n += k
		s.at += int64(k)
	}
	return len(p), nil
}

// sum is a checksum of content.
func sum(r io.Reader) (n int64, digest uint64, err error) {
	h := fnv.New64a()
	n, err = io.Copy(h, r)
	return n, h.Sum64(), err
}

// falseAnswer is an answer that nobody should have got.
type falseAnswer struct{ what string }

func (e *falseAnswer) Error() string { return e.what }
