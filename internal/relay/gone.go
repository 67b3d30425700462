package relay

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Gone calls wake once, from another goroutine, if the peer of c breaks off (a reset, or an error of the network; a FIN
// alone is none) or somebody sets a past deadline on c, before stop is called. It reads nothing. While it watches nobody
// may read from c, and it takes c's read deadline off. stop returns when the watcher has ended; wake may have been called
// by then, and is not called afterwards. stop may not be called from wake.
//
// It costs a goroutine. A connection that is no kernel socket is not watched.
func Gone(c net.Conn, wake func()) (stop func()) {
	raw := rawOf(c)
	if raw == nil || c.SetReadDeadline(time.Time{}) != nil {
		return func() {}
	}
	w := &watcher{wake: wake, ended: make(chan struct{}), stop: make(chan struct{})}
	go w.run(raw)
	return func() {
		close(w.stop)
		_ = c.SetReadDeadline(past) // fails on a closed connection, which ends the watcher too
		<-w.ended
		_ = c.SetReadDeadline(time.Time{})
	}
}

type watcher struct {
	wake        func()
	ended, stop chan struct{}
}

func (w *watcher) run(raw syscall.RawConn) {
	defer close(w.ended)
	_ = raw.Read(broken) // whatever ended the wait, the peer is gone or somebody wants an end
	select {
	case <-w.stop:
	default:
		w.wake()
	}
}

// broken reports whether a socket has died. Data and a FIN wake the poller too, once each, and do not count.
func broken(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return n > 0 && err == nil && p[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
}
