package http1

import (
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bodyPace is how often a watcher looks whether the request body is read, so that it may watch. Until then the reader of
// the body notices a client that leaves.
const bodyPace = time.Second

// A watcher waits for the client's connection to break. A client that has only ended its own direction is waiting for
// its answer, and is not gone.
type watcher struct {
	e    *exchange
	raw  syscall.RawConn
	wake func()
	quit chan struct{}
	over chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex // guards the two below
	stopped  bool
	watching bool // the goroutine waits on the connection
}

// Gone implements wire.Answer. wake may not call stop.
func (e *exchange) Gone(wake func()) (stop func()) {
	raw := rawOf(e.k.c)
	if raw == nil || e.watch != nil || e.switched {
		return func() {}
	}
	w := &watcher{e: e, raw: raw, wake: wake, quit: make(chan struct{}), over: make(chan struct{})}
	e.watch = w
	go w.run()
	return w.stop
}

// rawOf reaches for the socket under c, through TLS.
func rawOf(c net.Conn) syscall.RawConn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// stop ends the watch and gives the connection's reading side back. It may be called more than once.
func (w *watcher) stop() {
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		return
	}
	w.stopped = true
	watching := w.watching
	if watching {
		_ = w.e.k.c.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed connection, which ends the wait too
	}
	close(w.quit)
	w.mu.Unlock()
	<-w.over
	if watching {
		w.e.k.read.Forget()
		_ = w.e.k.c.SetReadDeadline(time.Time{})
	}
	w.e.watch = nil
}

// run is the watcher's goroutine.
func (w *watcher) run() {
	defer close(w.over)
	if !w.awaitBody() || !w.begin() {
		return
	}
	// An error that stop did not cause is a deadline or a close from outside: the connection is being ended.
	if w.raw.Read(broken) == nil || !w.isStopped() {
		w.wake()
	}
}

func (w *watcher) isStopped() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stopped
}

// awaitBody returns when nobody else reads from the connection: two waits for one socket would block each other.
func (w *watcher) awaitBody() bool {
	if w.bodyRead() {
		return true
	}
	tick := time.NewTicker(bodyPace)
	defer tick.Stop()
	for {
		select {
		case <-w.quit:
			return false
		case <-tick.C:
			if w.bodyRead() {
				return true
			}
		}
	}
}

// bodyRead is false while the kernel still moves a body that was handed over to it.
func (w *watcher) bodyRead() bool { return w.e.body.Done() && !w.e.body.Handed() }

func (w *watcher) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return false
	}
	w.watching = true
	w.e.k.read.Clear()
	return true
}

// broken is the func for RawConn.Read: true when the connection has been reset, or was closed in both directions. It
// reads nothing.
func broken(fd uintptr) bool {
	p := [1]unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}
