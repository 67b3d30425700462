package http1

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// A body that nobody read is taken off the connection up to drainLimit; with more to come the connection ends.
const drainLimit = 256 << 10

// Storage that grew beyond these is not kept for other exchanges.
const (
	keptBytes  = 16 << 10
	keptFields = 256
)

var (
	errBegun     = errors.New("answer has begun")
	errInterim   = errors.New("not an interim status")
	errFinal     = errors.New("not a final status")
	errUnread    = errors.New("request body is not read")
	errUnended   = errors.New("handler left the answer unended")
	errAbandoned = errors.New("client left in the middle of a request head")
)

// exchanges holds what no connection is busy with.
var exchanges = sync.Pool{New: newExchange}

// An exchange is one request and its answer. It belongs to the connection's goroutine; what a goroutine that reads the
// request body may meet there is guarded.
type exchange struct {
	wire.Exchange
	k    *conn
	set  Settings
	buf  *wire.Buffer
	body wire.BodyReader
	sink wire.BodyWriter
	head []byte // of the answer

	// The request as it came: whoever acts it out may rewrite Req.
	isHead, minor0, expect bool
	size                   int64 // of its body, -1 unknown
	closing                bool  // no request can follow
	asked                  bool  // ... because the client said so
	switched               bool

	goOn func() error // sendContinue, made once

	mu        sync.Mutex // guards the two below, and the connection while an interim answer is written
	begun     bool
	continued bool

	watch *watcher
}

func newExchange() any {
	e := new(exchange)
	e.goOn = e.sendContinue
	e.Body, e.Out = &e.body, e
	return e
}

// release gives everything back.
func (e *exchange) release() {
	e.body.Release()
	e.sink.Release()
	if e.buf != nil {
		e.buf.Put()
	}
	e.k, e.buf, e.Conn = nil, nil, nil
	e.Log = wire.Record{}
	e.Body, e.Out = &e.body, e
	e.Scratch = e.Scratch[:0]
	if cap(e.Scratch)+cap(e.head) > keptBytes || cap(e.Req.Fields) > keptFields {
		return
	}
	exchanges.Put(e)
}

// act reads one request and acts it out. again is true when another may follow.
func (e *exchange) act() (again bool, err error) {
	k := e.k
	if bytes.Equal(e.buf.Bytes(), []byte("\r\n")) {
		e.buf.Discard(2) // what some clients send behind a body (RFC 9112 section 2.2)
		return true, nil
	}
	k.info.State.Store(uint32(wire.Busy))
	e.set = k.o.Settings()
	k.keepAlive = e.set.KeepAlive
	n, err := e.readHead()
	if err != nil {
		var p *wire.ParseError
		if errors.As(err, &p) {
			k.refuse(p, e.Req.Fields)
		}
		return false, err
	}
	e.begin(n)
	k.o.Handle(&e.Exchange)
	return e.end()
}

// readHead reads until the head is complete.
func (e *exchange) readHead() (n int, err error) {
	k, from, limit := e.k, 0, e.set.MaxHeader
	if limit <= 0 {
		limit = defaultHeader
	}
	for waits := 0; ; waits++ {
		n, from, err = wire.ParseRequest(e.buf.Bytes(), from, &e.Req, maxFields)
		switch {
		case err != nil:
			return 0, err
		case n > limit:
			return 0, errHeader
		case n > 0:
			return n, nil
		}
		if waits == 0 {
			if k.draining() {
				k.read.Forget() // somebody may have given it a second, taking it for idle
			}
			k.read.Set(after(e.set.RequestHeader))
		}
		if err := e.fill(limit); err != nil {
			return 0, err
		}
	}
}

func after(d time.Duration) time.Time {
	if d <= 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// fill reads more of a head.
func (e *exchange) fill(limit int) error {
	for {
		_, err := e.buf.Fill(e.k.c, limit)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, wire.ErrTooLarge):
			if bytes.IndexByte(e.buf.Bytes(), '\n') < 0 {
				return errLine
			}
			return errHeader
		case errors.Is(err, io.EOF):
			return errAbandoned
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case !e.k.read.Early(err):
			return errSlow
		}
	}
}

// begin prepares the exchange whose head has n bytes.
func (e *exchange) begin(n int) {
	k, r := e.k, &e.Req
	e.buf.Discard(n)
	e.Start = time.Now()
	e.Conn = k.info
	e.Log = wire.Record{}
	e.Scratch = e.Scratch[:0]
	r.Scheme = schemeHTTP
	if k.info.TLS != nil {
		r.Scheme = schemeHTTPS
	}
	e.isHead = string(r.Method) == "HEAD"
	e.minor0, e.expect, e.asked = r.Minor == 0, r.Expect, r.Close
	e.closing, e.switched = r.Close || string(r.Method) == "CONNECT", false // bytes behind CONNECT are no requests
	e.begun, e.continued = false, false

	f, size := wire.FramingOf(nil, r)
	e.size = size
	var onRead func() error
	if r.Expect {
		onRead = e.goOn
	}
	e.body.Reset(k.c, e.buf, f, size, onRead)
	e.body.Share(&k.read, e.set.BodyStall)
}

var (
	schemeHTTP  = []byte("http")
	schemeHTTPS = []byte("https")
)

// end finishes what the handler left, and says whether another request may follow.
func (e *exchange) end() (again bool, err error) {
	if e.watch != nil {
		e.watch.stop()
	}
	switch {
	case e.switched:
		return false, nil
	case !e.begun:
		e.k.answer(500, "", false)
		return false, nil
	case !e.sink.Done():
		if err := e.sink.Err(); err != nil {
			return false, err
		}
		if !e.sink.Ended() {
			e.sink.Reset(errUnended)
			return false, errUnended
		}
		e.closing = true // the end of the connection is the end of the body
	}
	if !e.closing && !e.body.Done() {
		e.closing = !e.discard()
	}
	if e.closing && !(e.asked && e.body.Done()) {
		e.k.linger()
	}
	return !e.closing, nil
}

// discard takes the rest of the request body off the connection, within bounds.
func (e *exchange) discard() bool {
	b := wire.GetBuffer()
	defer b.Put()
	p, _ := b.Room(1) // an empty buffer has room
	e.body.Deadline(after(e.set.BodyStall))
	for left := drainLimit; left > 0; {
		n, err := e.body.Read(p)
		left -= n
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			return false
		}
	}
	return false
}
