// Package wire knows what an HTTP message is: one head and one body type for every version, and the strict HTTP/1.1
// reader and writer.
//
// It promises that what it reads has one meaning and what it writes has one meaning. It never opens, closes or dials a
// connection, and it knows nothing of routes, targets or limits beyond the sizes it is given.
package wire

import (
	"crypto/tls"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// A Field is one header or trailer field. Both slices point into a buffer that lives as long as the exchange.
type Field struct{ Name, Value []byte }

// A Head is the head of a request or a response, the same for every version of HTTP. Whatever belongs to one
// connection alone (Connection and the fields it names, Keep-Alive, TE, Transfer-Encoding, Content-Length, Upgrade,
// Host) was taken out of Fields by the reader and stands in the named members; a writer puts it back in the words of
// its own version.
type Head struct {
	// Of a request.
	Method    []byte
	Scheme    []byte // "http" or "https"
	Authority []byte // host and optional port, from Host or an absolute-form target; never empty in HTTP/1.1
	Target    []byte // path and query as they came ("/a%20b?c"), "*" for OPTIONS, the authority for CONNECT

	// Of a response.
	Status int
	Reason []byte // HTTP/1 only; may be empty

	// Of both.
	Minor    int     // x of the HTTP/1.x the message came with
	Fields   []Field // end-to-end fields in their order
	Length   int64   // announced Content-Length, -1 when none was
	Chunked  bool    // the body came chunked (HTTP/1.1)
	Upgrade  []byte  // the Upgrade field, where Connection named it; else nil
	Expect   bool    // the client waits for 100 (Continue)
	Trailers bool    // TE: trailers
	Close    bool    // the sender ends the connection after this message
}

// Reset empties the head for the next message and keeps the storage of Fields.
func (h *Head) Reset() { *h = Head{Fields: h.Fields[:0], Length: -1} }

// Field returns the value of the first field of that name, compared without case.
func (h *Head) Field(name string) ([]byte, bool) {
	for i := range h.Fields {
		if EqualFold(h.Fields[i].Name, name) {
			return h.Fields[i].Value, true
		}
	}
	return nil, false
}

// Set removes every field of that name and appends one.
func (h *Head) Set(name, value []byte) {
	h.Remove(string(name))
	h.Fields = append(h.Fields, Field{name, value})
}

// Add appends a field.
func (h *Head) Add(name, value []byte) { h.Fields = append(h.Fields, Field{name, value}) }

// Remove takes out every field of that name, compared without case.
func (h *Head) Remove(name string) {
	out := h.Fields[:0]
	for _, f := range h.Fields {
		if !EqualFold(f.Name, name) {
			out = append(out, f)
		}
	}
	h.Fields = out
}

// EqualFold compares ASCII without case and without allocating.
func EqualFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		x, y := b[i], s[i]
		if x == y {
			continue
		}
		if x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z' {
			return false
		}
	}
	return true
}

// A Body yields the bytes of a message. It belongs to one goroutine at a time.
type Body interface {
	// Read fills p. It may return n > 0 together with io.EOF. After a deadline it returns os.ErrDeadlineExceeded and
	// may be called again. A message that ends too early is io.ErrUnexpectedEOF.
	Read(p []byte) (n int, err error)
	// Buffered is how many bytes Read can give without waiting; -1 when the body is known to be at its end.
	Buffered() int
	// Len is how many bytes are still to come, -1 when unknown, 0 for no body.
	Len() int64
	// Trailer is valid after io.EOF.
	Trailer() []Field
	// Raw hands the rest of the body over: first head, then n-len(head) bytes (or all until EOF if n is -1) straight
	// from c. Afterwards the body is at its end, and the caller owes it to read exactly that much, or to end the
	// connection. ok is false, and nothing has changed, when the body is not plain bytes of a TCP connection.
	Raw() (c *net.TCPConn, head []byte, n int64, ok bool)
	// Deadline bounds reads that wait; the zero time clears it.
	Deadline(t time.Time)
}

// A Sink takes the bytes of a message. It belongs to one goroutine at a time.
type Sink interface {
	// Write takes all of p or fails. Small writes, and the head before the first of them, may be held back until Flush or Close.
	Write(p []byte) (int, error)
	// Flush sends what is held back.
	Flush() error
	// Raw flushes and hands the connection over: the caller owes it exactly the bytes that were announced, or all
	// until it calls Close where none were. ok is false, and nothing has changed, when bytes cannot go straight to a
	// TCP connection.
	Raw() (c *net.TCPConn, ok bool)
	// Deadline bounds writes that wait; the zero time clears it. A Sink may round it by a second.
	Deadline(t time.Time)
	// Close ends the message, with trailers where the version can carry them, and flushes. Fewer bytes than announced
	// are an error, and the connection cannot be used again. On a switched connection it is a half-close.
	Close(trailer []Field) error
	// Reset ends the message in a way the receiver cannot take for a complete one.
	Reset(why error)
}

// An Answer is where the response to one exchange goes.
type Answer interface {
	// Inform sends an interim response (100-199, not 101).
	Inform(h *Head) error
	// Begin starts the final response. n is the length of the body that will be written, -1 when unknown. For HEAD,
	// 204 and 304 nothing may be written, and n (if >= 0) is announced where that is allowed. The head may be held back until the sink's first Flush or Close.
	Begin(h *Head, n int64) (Sink, error)
	// Switch sends 101 and gives the raw connection both ways.
	Switch(h *Head) (Body, Sink, error)
	// Gone calls wake once, from another goroutine, if the client leaves before stop is called. It costs a goroutine;
	// use it only for an exchange that already lasts.
	Gone(wake func()) (stop func())
}

// An Exchange is one request and the place for its answer. It is made by a version's loop and valid until the func it
// was given to returns.
type Exchange struct {
	Req  Head
	Body Body
	Out  Answer
	Conn *ConnInfo

	Start time.Time // when the whole head had been read
	Log   Record    // filled in by whoever acts on the exchange
	// Scratch holds bytes that must live as long as the exchange (built field values); append to it, and mind that
	// growing it leaves earlier slices valid on the old array.
	Scratch []byte
}

// A Record is what is known of an exchange at its end.
type Record struct {
	ID       []byte // request id
	Route    string
	Upstream string
	Target   string
	Status   int
	In, Out  int64         // body bytes from the client, to the client
	Dial     time.Duration // until a target connection was had
	First    time.Duration // from Start until the head of the answer
	Reason   string        // of a refusal or failure, one of the fixed words; "" if all went well
	Detail   string        // for the operator, never for the client
	Retries  int
}

// ConnState is what a client connection is doing.
type ConnState uint32

// The states of a client connection.
const (
	Opening ConnState = iota // before the first byte is understood
	Idle                     // between requests
	Busy                     // in an exchange
	Tunneling
)

func (s ConnState) String() string {
	return [...]string{"opening", "idle", "busy", "tunneling"}[s]
}

// ConnInfo is what every exchange of a client connection shares.
type ConnInfo struct {
	ID         uint64
	Client     netip.AddrPort // from the PROXY header if one was believed, else Peer; never v4-mapped
	Peer       netip.AddrPort // of the socket
	Local      netip.AddrPort
	ClientText []byte               // Client's IP as text
	TLS        *tls.ConnectionState // nil on plain connections
	Since      time.Time
	State      atomic.Uint32 // a ConnState

	// Owner is whoever accepted the connection; nobody else looks at it.
	Owner any

	// Farewell, while set, is what ends this connection politely from another goroutine instead of a plain close: a
	// WebSocket says 1001. Whoever upgrades the connection sets it and clears it.
	Farewell atomic.Pointer[func()]

	// Cut is set before we end the connection under an exchange: what fails on it from then on is not the client's doing.
	Cut atomic.Bool
}
