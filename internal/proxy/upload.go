package proxy

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/relay"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// upload is the request body on its way to the target. While it runs in a goroutine of its own, that goroutine alone
// touches sink, err and the exchange's body; done hands them back.
type upload struct {
	began   bool // the body may have been touched
	pending bool // it waits for a 100 of the target
	joined  bool // done was received, or no goroutine was started
	stopped bool // we ended it: what err says of the client is not the client's doing
	sink    wire.Sink
	flow    relay.Flow
	over    atomic.Bool   // the body is no longer moving
	done    chan struct{} // holds one value when the goroutine has ended
	err     error
}

func (u *upload) reset() {
	u.began, u.pending, u.joined, u.stopped, u.err, u.sink = false, false, true, false, nil, nil
	u.over.Store(false)
}

// startUpload sends the body from a goroutine, which endUpload waits for.
func (t *turn) startUpload() {
	t.up.pending, t.up.began, t.up.joined = false, true, false
	t.up.over.Store(false)
	go t.uploadAside()
}

func (t *turn) uploadAside() {
	t.upload()
	t.up.done <- struct{}{}
}

// upload moves the body. Where that fails the target's answer is not waited for, except when the target has closed the
// connection: what it answered before may still be there to read.
func (t *turn) upload() {
	u := &t.up
	if t.ex.Body.Buffered() == 0 {
		_ = u.sink.Flush() // the head does not wait for the body; Body says what is wrong with the target
	}
	var n int64
	n, u.err = relay.Body(u.sink, t.ex.Body, &u.flow)
	t.ex.Log.In += n
	u.over.Store(true)
	var side *relay.SideError
	if u.err == nil || errors.As(u.err, &side) && side.Side == relay.Dest && closed(u.err) {
		return
	}
	t.stream.Abort()
}

func closed(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// result is the error of an upload that has ended; nil before.
func (u *upload) result() error {
	if !u.over.Load() {
		return nil
	}
	return u.err
}

// endUpload waits for the upload, or stops it: its answer has ended, nobody wants the rest. It reports whether the body
// went out whole.
func (t *turn) endUpload() bool {
	u := &t.up
	if u.pending {
		u.pending = false
		return false
	}
	if !u.began {
		return true
	}
	if !u.joined {
		u.joined = true
		t.join()
	}
	return u.err == nil
}

// unwanted reports whether the answer comes while much of the request body may still be on its way: the client is then
// told that the connection ends, so that it need not send the rest (RFC 9112 section 9.6).
func (t *turn) unwanted() bool {
	n := t.ex.Req.Length
	return t.up.began && !t.up.over.Load() && (n < 0 || n > earlyMost)
}

// earlyMost is how much of a body that nobody wants is worth taking to keep its connection.
const earlyMost = 256 << 10

func (t *turn) join() {
	select {
	case <-t.up.done:
		return
	default:
	}
	grace := time.NewTimer(earlyGrace)
	defer grace.Stop()
	select {
	case <-t.up.done:
		return
	case <-grace.C:
	}
	t.up.stopped = true
	t.ex.Body.Deadline(past)
	t.stream.Abort()
	<-t.up.done
}

// past is a deadline that ends a wait at once.
var past = time.Unix(1, 0)

var errTooLarge = errors.New("the body is larger than max_body")

// limited is a body of unknown length that fails once it is longer than allowed.
type limited struct {
	wire.Body
	left int64
	over bool // more than allowed has come
}

// Read gives at most what is left, and errTooLarge as soon as there is more.
func (l *limited) Read(p []byte) (int, error) {
	if l.over {
		return 0, errTooLarge
	}
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.Body.Read(p)
	if int64(n) > l.left {
		l.over = true
		return int(l.left), errTooLarge
	}
	l.left -= int64(n)
	return n, err
}

// Raw is refused: every byte must be counted.
func (l *limited) Raw() (*net.TCPConn, []byte, int64, bool) { return nil, nil, 0, false }

// watchAfter is how long an exchange lasts before anybody looks whether the client is still there.
const watchAfter = time.Second

// watch aborts the target when the client of a long exchange leaves. Its timer is made once and left running from
// exchange to exchange, so that a short one costs two locks.
type watch struct {
	mu    sync.Mutex // guards all below
	t     *turn      // nil between exchanges
	gen   uint64     // which exchange
	since time.Time
	timer *time.Timer
	armed bool
	stop  func() // ends the watcher, if there is one
	over  bool   // the client left
}

func (w *watch) init() {
	w.timer = time.AfterFunc(time.Hour, w.look)
	w.timer.Stop()
}

func (w *watch) begin(t *turn) {
	w.mu.Lock()
	w.t, w.over = t, false
	w.gen++
	if w.since = t.ex.Start; w.since.IsZero() {
		w.since = time.Now()
	}
	if !w.armed {
		w.armed = true
		w.timer.Reset(watchAfter)
	}
	w.mu.Unlock()
}

// look is the timer's.
func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = false
	if w.t == nil || w.stop != nil {
		return
	}
	if d := watchAfter - time.Since(w.since); d > 0 {
		w.armed = true
		w.timer.Reset(d)
		return
	}
	gen := w.gen
	w.stop = w.t.ex.Out.Gone(func() { w.wake(gen) })
}

// wake aborts the exchange it was made for, and no later one.
func (w *watch) wake(gen uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t == nil || w.gen != gen {
		return
	}
	w.over = true
	w.t.stream.Abort()
}

// left reports whether the client has gone, or we have ended its connection.
func (w *watch) left() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.over || w.t != nil && w.t.ex.Conn.Cut.Load()
}

// pause ends the watcher, so that somebody else may read from the client; nothing is watched any more.
func (w *watch) pause() { w.finish(false) }

// end is called when the exchange is over.
func (w *watch) end() { w.finish(true) }

func (w *watch) finish(forget bool) {
	w.mu.Lock()
	w.t = nil
	stop := w.stop
	w.stop = nil
	if forget {
		w.over = false
	}
	w.mu.Unlock()
	if stop != nil {
		stop()
	}
}
