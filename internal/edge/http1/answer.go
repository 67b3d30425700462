package http1

import (
	"github.com/quaymaster/quaymaster/internal/wire"
)

// Begin implements wire.Answer.
func (e *exchange) Begin(h *wire.Head, n int64) (wire.Sink, error) {
	if h.Status < 200 {
		return nil, errFinal
	}
	if e.expect {
		e.mu.Lock() // an interim answer may be on its way out
		defer e.mu.Unlock()
	}
	if e.begun {
		return nil, errBegun
	}
	e.begun = true
	f := wire.ByLength
	switch {
	case e.isHead || h.Status == 204 || h.Status == 304:
		f = wire.NoBody
	case n < 0 && e.minor0:
		f, e.closing = wire.ByClose, true
	case n < 0:
		f = wire.ByChunks
	}
	e.closing = e.closing || h.Close || e.k.leaving() || e.unwelcome()
	e.head = wire.AppendResponse(e.head[:0], h, f, n, e.closing)
	if e.minor0 && !e.closing {
		e.head = append(e.head[:len(e.head)-2], "Connection: keep-alive\r\n\r\n"...)
	}
	e.sink.Start(e.k.c, e.head, f, n)
	e.sink.Share(&e.k.write, e.set.BodyStall)
	return &e.sink, nil
}

// unwelcome reports whether a request body is still to come that will not be waited for: because it is large, or
// because the client waits to be asked for it (RFC 9110 section 10.1.1).
func (e *exchange) unwelcome() bool {
	if e.body.Done() {
		return false
	}
	return e.size < 0 || e.size > drainLimit || e.expect && !e.continued
}

// Inform implements wire.Answer. HTTP/1.0 clients know no interim answers, and 100 is said once and only to who waits.
func (e *exchange) Inform(h *wire.Head) error {
	if h.Status < 100 || h.Status == 101 || h.Status > 199 {
		return errInterim
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.begun:
		return errBegun
	case e.minor0:
		return nil
	case h.Status == 100:
		if !e.expect || e.continued {
			return nil
		}
		e.continued = true
	}
	return e.interim(h)
}

// sendContinue asks a client for the body it holds back. It runs on the first read that must wait.
func (e *exchange) sendContinue() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.begun || e.continued {
		return nil
	}
	e.continued = true
	return e.interim(&wire.Head{Status: 100})
}

// interim writes an interim answer at once. mu is held.
func (e *exchange) interim(h *wire.Head) error {
	e.head = wire.AppendResponse(e.head[:0], h, wire.NoBody, -1, false)
	e.sink.Start(e.k.c, e.head, wire.NoBody, 0)
	e.sink.Share(&e.k.write, e.set.BodyStall)
	return e.sink.Close(nil)
}

// Switch implements wire.Answer.
func (e *exchange) Switch(h *wire.Head) (wire.Body, wire.Sink, error) {
	switch {
	case e.begun:
		return nil, nil, errBegun
	case h.Status != 101:
		return nil, nil, errInterim
	case !e.body.Done():
		return nil, nil, errUnread
	}
	e.begun, e.switched = true, true
	k := e.k
	k.info.State.Store(uint32(wire.Tunneling))
	e.head = wire.AppendResponse(e.head[:0], h, wire.NoBody, -1, false)
	e.sink.Start(k.c, e.head, wire.ByClose, -1)
	e.sink.Share(&k.write, 0)
	if err := e.sink.Flush(); err != nil {
		return nil, nil, err
	}
	e.body.Reset(k.c, e.buf, wire.ByClose, -1, nil)
	e.body.Share(&k.read, 0)
	k.read.Clear()
	k.write.Clear()
	return &e.body, &e.sink, nil
}
