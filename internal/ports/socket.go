package ports

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	fdPause   = 50 * time.Millisecond // before the next try when no descriptor is left
	drainTime = time.Second           // for taking in what is queued on a socket that closes
	retireFor = 5 * time.Millisecond  // for handshakes under way when a port goes; to clients nearby, a round trip
	leaveFor  = 20 * time.Millisecond // the same when we stop, and nobody takes our place
	fdWarning = 10 * time.Second      // between two log lines about missing descriptors
)

// listener is what *net.TCPListener and *net.UnixListener have in common.
type listener interface {
	net.Listener
	syscall.Conn
	SetDeadline(time.Time) error
}

// A socket listens, and belongs to one port at a time. One goroutine accepts on it, from Commit on.
type socket struct {
	ln   listener
	raw  syscall.RawConn
	addr plan.Addr   // really bound
	name string      // of an inherited socket
	kept bool        // systemd holds it too: never closed, only not accepted on
	file fs.FileInfo // of a unix socket: removed at close if it is still this one

	as    atomic.Pointer[Listener]
	heirs atomic.Pointer[[]*Listener] // the ports that take its place while it closes
	end   atomic.Int32                // how the accept loop is to end
	over  chan struct{}               // closed when it is to end
	done  chan struct{}               // closed when it has ended; nil when it was never started
}

// How a socket ends.
const (
	goOn   int32 = iota
	retire       // its queue is served: the port is no longer wanted
	leave        // its queue is served: we stop
	drop         // its queue is closed
)

func newSocket(ln listener, addr plan.Addr) (*socket, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &socket{ln: ln, raw: raw, addr: addr, over: make(chan struct{})}, nil
}

// serveAs makes connections from now on belong to p.
func (s *socket) serveAs(p *plan.Port) {
	s.as.Store(&Listener{Want: p.Addr, Addr: s.addr, Plan: p})
}

// accept serves what comes in until stop, and then closes the socket. Accept takes one connection after the other
// without waiting while there are any, so a burst costs one wake-up.
func (ps *Ports) accept(s *socket) {
	defer ps.loops.Done()
	defer close(s.done)
	for s.end.Load() == goOn {
		c, err := s.ln.Accept()
		switch {
		case err == nil:
			ps.take(c, s.listener(c))
		case s.end.Load() != goOn: // woken by stop
		case noDescriptor(err):
			if !ps.dropOne(s) {
				s.pause()
			}
		default:
			ps.opt.Log.Warn("accept failed", "port", s.as.Load().Want.String(), "err", err)
			s.pause()
		}
	}
	if s.kept {
		return
	}
	switch s.end.Load() {
	case retire:
		ps.drain(s, retireFor)
	case leave:
		ps.drain(s, leaveFor)
	}
	s.discard()
}

// take hands one connection over.
func (ps *Ports) take(c net.Conn, l *Listener) {
	if ps.opt.Serve == nil || ps.opt.Accept != nil && !ps.opt.Accept() {
		c.Close()
		return
	}
	ps.opt.Serve(c, l)
}

// listener is what c came in on: the socket's own port, or the heir that takes c's local address.
func (s *socket) listener(c net.Conn) *Listener {
	if heirs := s.heirs.Load(); heirs != nil {
		local, _ := c.LocalAddr().(*net.TCPAddr)
		for _, l := range *heirs {
			if local == nil || l.Want.Takes(local.AddrPort().Addr()) {
				return l
			}
		}
	}
	return s.as.Load()
}

// stop ends the accept loop; done tells when it has ended. A socket whose loop never ran is closed here and now.
func (s *socket) stop(how int32) {
	if !s.end.CompareAndSwap(goOn, how) {
		if how == drop {
			s.end.Store(drop)
		}
		return
	}
	close(s.over)
	if s.done == nil {
		s.discard()
		return
	}
	_ = s.ln.SetDeadline(time.Unix(1, 0)) // wakes Accept; the loop looks at end before it accepts again
}

// drain takes in what the kernel has accepted, and what it accepts within d. Where the kernel lets us, no new handshake
// begins from here on, and at last none ends: a client that comes now finds no answer, tries again after a second, and
// is refused then or reaches the socket that took our place.
func (ps *Ports) drain(s *socket, d time.Duration) {
	if s.file != nil {
		s.unlink() // the queue of a unix socket is closed to newcomers by taking its name away
	}
	shut(s.raw, noNewHandshake)
	ps.empty(s)
	<-time.After(d)
	ps.empty(s)
	shut(s.raw, nothing)
	ps.empty(s)
}

// empty serves the queue as it is.
func (ps *Ports) empty(s *socket) {
	limit := time.Now().Add(drainTime)
	for s.waiting() && time.Now().Before(limit) && s.end.Load() != drop {
		_ = s.ln.SetDeadline(time.Now().Add(fdPause)) // not reached: something waits, and nobody else accepts here
		c, err := s.ln.Accept()
		if err == nil {
			ps.take(c, s.listener(c))
		} else if noDescriptor(err) && !ps.dropOne(s) {
			<-time.After(fdPause)
		}
	}
}

func noDescriptor(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }

// discard closes the socket. Whoever is still queued is accepted and closed first, and so sees an end and no reset. A
// socket of systemd stays open.
func (s *socket) discard() {
	if s.kept {
		return
	}
	s.unlink()
	shut(s.raw, nothing)
	for limit := time.Now().Add(drainTime); s.waiting() && time.Now().Before(limit); {
		if _, ok := s.acceptAndClose(); !ok {
			break
		}
	}
	s.ln.Close()
}

// unlink removes the file of a unix socket, unless somebody has put another in its place.
func (s *socket) unlink() {
	if s.file == nil {
		return
	}
	if is, err := os.Lstat(s.addr.Path); err == nil && os.SameFile(is, s.file) {
		_ = os.Remove(s.addr.Path)
	}
	s.file = nil
}

// waiting reports whether a connection is queued.
func (s *socket) waiting() bool {
	ready := false
	_ = s.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		ready = err == unix.EINTR || n > 0 && p[0].Revents&unix.POLLIN != 0
	})
	return ready
}

// acceptAndClose takes one connection off the queue without making a net.Conn of it. It does not wait.
func (s *socket) acceptAndClose() (client netip.AddrPort, ok bool) {
	_ = s.raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock() // no child may inherit the descriptor
		defer syscall.ForkLock.RUnlock()
		nfd, sa, err := unix.Accept(int(fd))
		if err == unix.ECONNABORTED || err == unix.EINTR {
			ok = true
			return
		}
		if err != nil {
			return
		}
		ok = true
		_ = unix.Close(nfd)
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			client = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		case *unix.SockaddrInet6:
			client = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
		}
	})
	return client, ok
}

// pause waits a moment, or until the socket is to end.
func (s *socket) pause() {
	t := time.NewTimer(fdPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.over:
	}
}

// dropOne answers a lack of descriptors by accepting one connection with the spare one and closing it. False means that
// there was nothing to accept, or no spare: accept takes a descriptor before it looks at the queue, so it fails on an
// empty queue too and cannot be waited on, and the caller waits on a timer.
func (ps *Ports) dropOne(s *socket) bool {
	l := s.as.Load()
	if ps.spare.warn(time.Now()) {
		ps.opt.Log.Warn("no file descriptor left, closing new connections", "port", l.Want.String())
	}
	if !s.waiting() {
		return false
	}
	client, ok := ps.spare.spend(s)
	if ok && ps.opt.Dropped != nil {
		ps.opt.Dropped(client, l)
	}
	return ok
}

// A spare is a descriptor held in reserve, to be able to say no when there is no other.
type spare struct {
	mu     sync.Mutex // guards what follows, and keeps two sockets from spending it at once
	f      *os.File
	warned time.Time
}

// hold takes the descriptor if it is not held.
func (sp *spare) hold() {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.open()
}

func (sp *spare) open() {
	if sp.f == nil {
		sp.f, _ = os.Open(os.DevNull)
	}
}

// spend gives the descriptor up for as long as it takes to accept one connection and close it.
func (sp *spare) spend(s *socket) (client netip.AddrPort, ok bool) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.f != nil {
		sp.f.Close()
		sp.f = nil
	}
	client, ok = s.acceptAndClose()
	sp.open()
	return client, ok
}

// warn reports whether it is time for another log line.
func (sp *spare) warn(now time.Time) bool {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if now.Sub(sp.warned) < fdWarning {
		return false
	}
	sp.warned = now
	return true
}

func (sp *spare) close() {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.f != nil {
		sp.f.Close()
		sp.f = nil
	}
}
