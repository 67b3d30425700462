package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// internal hands the exchange to a handler of our own.
type internal struct{ name string }

func (d *internal) serve(t *turn) {
	var h http.Handler
	if t.r.o.Internal != nil {
		h = t.r.o.Internal(d.name)
	}
	if h == nil {
		t.refuse(http.StatusNotFound, "not_found", "no handler of ours is called "+d.name, 0)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer t.ex.Out.Gone(cancel)()
	handle(t, h, ctx)
}

// handle is the one place where an exchange becomes a ResponseWriter and a Request.
func handle(t *turn, h http.Handler, ctx context.Context) {
	req, err := request(t, ctx)
	if err != nil {
		t.refuse(http.StatusBadRequest, "bad_request", err.Error(), 0)
		return
	}
	w := &writer{t: t, header: make(http.Header), length: -1}
	defer w.rescue()
	h.ServeHTTP(w, req)
	w.finish()
}

// request is ex as net/http would have read it.
func request(t *turn, ctx context.Context) (*http.Request, error) {
	ex := t.ex
	u := &url.URL{Path: "*"}
	if string(ex.Req.Target) != "*" {
		var err error
		if u, err = url.ParseRequestURI(string(ex.Req.Target)); err != nil {
			return nil, errors.New("the request target is no path")
		}
	}
	header := make(http.Header, len(ex.Req.Fields))
	for _, f := range ex.Req.Fields {
		header.Add(string(f.Name), string(f.Value))
	}
	remote := ex.Conn.Client
	if t.client != remote.Addr() {
		remote = netip.AddrPortFrom(t.client, 0)
	}
	req := &http.Request{
		Method: string(ex.Req.Method), URL: u, RequestURI: string(ex.Req.Target), Host: string(ex.Req.Authority),
		Proto: "HTTP/1." + strconv.Itoa(ex.Req.Minor), ProtoMajor: 1, ProtoMinor: ex.Req.Minor,
		Header: header, RemoteAddr: remote.String(), TLS: ex.Conn.TLS,
		Body: http.NoBody, ContentLength: ex.Body.Len(),
	}
	if req.ContentLength != 0 {
		req.Body = &requestBody{t}
	}
	return req.WithContext(ctx), nil
}

// requestBody is a request's body for a handler. A read that waits longer than body_stall fails.
type requestBody struct{ t *turn }

func (b *requestBody) Read(p []byte) (int, error) {
	if stall := b.t.r.Plan.Timeouts.BodyStall; stall > 0 {
		b.t.ex.Body.Deadline(time.Now().Add(stall))
	}
	n, err := b.t.ex.Body.Read(p)
	b.t.ex.Log.In += int64(n)
	b.t.r.in.Add(int64(n))
	if errors.Is(err, errTooLarge) {
		err = &http.MaxBytesError{Limit: b.t.r.Plan.Security.MaxBody}
	}
	return n, err
}

func (b *requestBody) Close() error { return nil }

// holdBack is how much of a body is kept until it is known whether more follows; a body that ends within it is sent
// with its length.
const holdBack = 4096

// writer is an http.ResponseWriter and http.Flusher over an exchange's answer.
type writer struct {
	t      *turn
	header http.Header
	status int       // 0 until WriteHeader
	length int64     // announced by the handler; -1 = not
	wrote  int64     // bytes of the body the handler gave
	held   []byte    // those that were not sent yet
	sink   wire.Sink // nil until the head was begun
	failed error
}

func (w *writer) Header() http.Header { return w.header }

// WriteHeader takes the status of the answer, or sends an interim one.
func (w *writer) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	if status >= 100 && status < 200 {
		h := wire.Head{Status: status, Length: -1}
		w.fields(&h)
		_ = w.t.ex.Out.Inform(&h) // lost with the client
		return
	}
	w.status = status
	if v := w.header.Get("Content-Length"); v != "" {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil && n >= 0 {
			w.length = n
		}
	}
}

func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.failed != nil {
		return 0, w.failed
	}
	if bodyless(nil, w.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if w.length >= 0 && w.wrote+int64(len(p)) > w.length {
		return 0, http.ErrContentLength
	}
	w.wrote += int64(len(p))
	if w.sink == nil && len(w.held)+len(p) <= holdBack {
		w.held = append(w.held, p...)
		return len(p), nil
	}
	if err := w.begin(w.length, p); err != nil {
		return 0, err
	}
	return w.send(p)
}

// Flush sends what there is.
func (w *writer) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *writer) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if err := w.begin(w.length, nil); err != nil {
		return err
	}
	w.deadline()
	return w.fail(w.sink.Flush())
}

// begin sends the head and what was held back. n is the body's length, next what follows of it.
func (w *writer) begin(n int64, next []byte) error {
	if w.sink != nil || w.failed != nil {
		return w.failed
	}
	ex := w.t.ex
	if sample := w.held; w.header["Content-Type"] == nil && !bodyless(nil, w.status) && w.header.Get("Content-Encoding") == "" {
		if len(sample) < 512 {
			sample = append(slices.Clone(sample), next[:min(len(next), 512)]...)
		}
		if len(sample) > 0 {
			w.header.Set("Content-Type", http.DetectContentType(sample))
		}
	}
	if w.header["Date"] == nil {
		w.header.Set("Date", string(appendDate(nil)))
	}
	h := wire.Head{Status: w.status, Length: n}
	w.fields(&h)
	ex.Log.Status, ex.Log.First = w.status, since(ex.Start)
	sink, err := ex.Out.Begin(&h, n)
	if err != nil {
		return w.fail(err)
	}
	w.sink = sink
	held := w.held
	w.held = nil
	if len(held) > 0 {
		_, err = w.send(held)
	}
	return err
}

// send writes to the client. For HEAD it only pretends.
func (w *writer) send(p []byte) (int, error) {
	if bodyless(w.t.ex.Req.Method, w.status) {
		return len(p), nil
	}
	w.deadline()
	n, err := w.sink.Write(p)
	w.sent(int64(n))
	return n, w.fail(err)
}

func (w *writer) sent(n int64) {
	w.t.ex.Log.Out += n
	w.t.r.out.Add(n)
}

func (w *writer) deadline() {
	if stall := w.t.r.Plan.Timeouts.BodyStall; stall > 0 {
		w.sink.Deadline(time.Now().Add(stall))
	}
}

func (w *writer) fail(err error) error {
	if err != nil && w.failed == nil {
		w.failed = err
		w.t.ex.Log.Reason, w.t.ex.Log.Detail = "client_gone", err.Error()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.t.ex.Log.Reason = "body_stall"
		}
	}
	return err
}

// fields copies the handler's header into h, in order of names, without what frames the message.
func (w *writer) fields(h *wire.Head) {
	names := make([]string, 0, len(w.header))
	for name := range w.header {
		if ruled(name) && !strings.HasPrefix(name, http.TrailerPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range w.header[name] {
			h.Add([]byte(name), bytes.Trim(appendClean(nil, []byte(v)), " "))
		}
	}
}

// finish ends the answer after the handler has returned.
func (w *writer) finish() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n := w.length
	if n < 0 && (w.wrote > 0 || string(w.t.ex.Req.Method) != http.MethodHead) {
		n = w.wrote
	}
	if w.length >= 0 && w.wrote < w.length && !bodyless(w.t.ex.Req.Method, w.status) {
		w.spoil()
		return
	}
	if w.begin(n, nil) != nil {
		return
	}
	w.deadline()
	_ = w.fail(w.sink.Close(nil))
}

// rescue answers for a handler that panicked. It ends the exchange, not the process.
func (w *writer) rescue() {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
		w.t.r.o.logger().Error("handler panicked", "route", w.t.r.Plan.Name, "err", v, "stack", string(debug.Stack()))
	}
	w.spoil()
}

// spoil ends an answer that the handler did not: with an error page, or so that nobody takes it for whole.
func (w *writer) spoil() {
	if w.failed != nil {
		return
	}
	w.t.ex.Log.Reason = "internal"
	if w.sink != nil {
		w.sink.Reset(io.ErrUnexpectedEOF)
		return
	}
	w.t.refuse(http.StatusInternalServerError, "internal", "", 0)
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// ReadFrom sends src: straight from a file to the socket where both are plain, else through a pooled buffer.
func (w *writer) ReadFrom(src io.Reader) (int64, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if lim, ok := src.(*io.LimitedReader); ok && lim.N > holdBack && w.length-w.wrote == lim.N {
		if f, ok := lim.R.(*os.File); ok && !bodyless(w.t.ex.Req.Method, w.status) {
			if n, err, done := w.sendFile(f, lim.N); done {
				return n, err
			}
		}
	}
	p, _ := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(p)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{src}, *p)
}

// sendFile lets the kernel copy the last n bytes of the body. It goes in steps, each with a deadline of its own, so that
// a client that takes bytes slowly is told from one that takes none.
func (w *writer) sendFile(f *os.File, n int64) (int64, error, bool) {
	if err := w.begin(w.length, nil); err != nil {
		return 0, err, true
	}
	c, ok := w.sink.Raw()
	if !ok {
		return 0, nil, false
	}
	stall := w.t.r.Plan.Timeouts.BodyStall
	var total int64
	for total < n {
		if stall > 0 {
			_ = c.SetWriteDeadline(time.Now().Add(stall))
		}
		step, err := c.ReadFrom(&io.LimitedReader{R: f, N: min(n-total, 512<<10)})
		total += step
		w.wrote += step
		w.sent(step)
		switch {
		case step > 0 && (err == nil || errors.Is(err, os.ErrDeadlineExceeded)):
			continue
		case err == nil:
			err = io.ErrUnexpectedEOF // the file became shorter
		}
		w.sink.Reset(err)
		return total, w.fail(err), true
	}
	_ = c.SetWriteDeadline(time.Time{}) // fails on a closed connection, which Close finds too
	return total, nil, true
}
