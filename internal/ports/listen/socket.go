// Package listen is the life of one listening socket: bound or inherited, accepted on, paused for a successor, emptied
// and closed.
//
// It promises that a connection the kernel has accepted is handed over before its socket closes, and that a socket which
// somebody else holds too is never silenced for them. It does not know what a port is for, nor who else wants it.
package listen

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
)

// Listener is what *net.TCPListener and *net.UnixListener have in common.
type Listener interface {
	net.Listener
	syscall.Conn
	SetDeadline(time.Time) error
}

// An End says how a socket ends.
type End int32

// The ends. A socket that systemd holds too is never closed by any of them, only not accepted on.
const (
	goOn   End = iota
	Park       // it stays open with its queue, for a successor or for Accept to be called again
	Retire     // its queue is served, then it is closed: the port is no longer wanted
	Leave      // the same, with more patience: we stop, and nobody takes our place
	Drop       // its queue is closed with it
)

// A Handler is what the accept loop of a socket needs.
type Handler struct {
	Take    func(net.Conn)                // takes a connection over, and returns at once
	Dropped func(client netip.AddrPort)   // a connection was closed for want of a descriptor; may be nil
	Spare   *Spare                        // shared by all sockets of the process
	Failed  func(msg string, args ...any) // tells the log
}

// A Socket listens. Accept runs on one goroutine at a time; Stop may be called from any.
type Socket struct {
	Addr   plan.Addr // really bound
	Name   string    // of an inherited socket
	Kept   bool      // systemd holds it too: never closed, only not accepted on
	Given  bool      // a predecessor gave it to us
	Stored bool      // a predecessor that died had given it to systemd
	Want   plan.Addr // of a given one: the wish it served there

	ln    Listener
	raw   syscall.RawConn
	file  fs.FileInfo // of a unix socket: removed at close if it is still this one
	reuse bool        // SO_REUSEPORT for good, not for the moment of a bind beside us

	lent atomic.Bool   // a predecessor still accepts on it: only our descriptor is ours
	end  atomic.Int32  // an End; the fast look of the accept loop
	turn atomic.Uint64 // rounds of the accept loop
	mu   sync.Mutex    // guards what follows
	over chan struct{}
	done chan struct{} // nil until the loop is to run
}

func newSocket(ln Listener, addr plan.Addr) (*Socket, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Socket{ln: ln, raw: raw, Addr: addr, over: make(chan struct{})}, nil
}

// Listener is the socket itself, for servers that have an accept loop of their own.
func (s *Socket) Listener() Listener { return s.ln }

// Start promises that Accept is about to be called, so that Stop waits for its end. After Park it makes the socket
// ready to go on.
func (s *Socket) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil && End(s.end.Load()) == Park {
		_ = s.ln.SetDeadline(time.Time{})
		s.over = make(chan struct{})
		s.end.Store(int32(goOn))
	}
	s.done = make(chan struct{})
}

// Accept serves what comes in until Stop, and then ends as Stop said. The queue is accepted one connection after the
// other without waiting while there are any, so a burst costs one wake-up. Start was called before.
func (s *Socket) Accept(h *Handler) {
	for s.ending() == goOn {
		c, err := s.ln.Accept()
		s.turn.Add(1)
		switch {
		case err == nil:
			h.Take(c)
		case s.ending() != goOn: // woken by Stop
		case noDescriptor(err):
			if !h.Spare.dropOne(s, h) {
				s.pause()
			}
		default:
			h.Failed("accept failed", "err", err)
			s.pause()
		}
	}
	defer s.ended()
	how := s.ending()
	if s.Kept || how == Park {
		s.end.Store(int32(Park))
		return
	}
	switch how {
	case Retire:
		s.drain(h, retireFor)
	case Leave:
		s.drain(h, leaveFor)
	}
	s.discard()
}

// ended tells those who wait for the loop.
func (s *Socket) ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.done)
	s.done = nil
}

func (s *Socket) ending() End { return End(s.end.Load()) }

// Stop ends the accept loop. The channel is closed when it has ended. A socket whose loop does not run is ended here and
// now: Retire and Leave then leave its queue to whoever holds it too, or else close it.
func (s *Socket) Stop(how End) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		ended := make(chan struct{})
		close(ended)
		if was := s.ending(); how != Park && (was == goOn || was == Park) {
			s.end.Store(int32(how))
			s.discard()
		}
		return ended
	}
	switch {
	case s.end.CompareAndSwap(int32(goOn), int32(how)):
		close(s.over)
		_ = s.ln.SetDeadline(time.Unix(1, 0)) // wakes Accept; the loop looks at end before it accepts again
	case how == Drop:
		s.end.Store(int32(Drop))
	}
	return s.done
}

// Keep makes a socket that a predecessor gave ours alone: until then its queue and its file are the predecessor's.
func (s *Socket) Keep() { s.lent.Store(false) }

// Release closes our descriptor of a parked socket that a successor has: its queue and the file of a unix socket are the
// successor's.
func (s *Socket) Release() {
	s.end.Store(int32(Drop))
	s.file = nil
	s.ln.Close()
}

// drain takes in what the kernel has accepted, and what it accepts within d. Where the kernel lets us, no new handshake
// begins from here on: a client that comes now finds no answer, tries again after a second, and is refused then or
// reaches the socket that took our place. One whose handshake takes longer than d is reset. Its last packet is let in
// until the end: without it the client would think itself connected, and wait for ever where the server speaks first.
func (s *Socket) drain(h *Handler, d time.Duration) {
	if s.file != nil {
		s.unlink() // the queue of a unix socket is closed to newcomers by taking its name away
	}
	shut(s.raw)
	s.empty(h)
	<-time.After(d)
	s.empty(h)
}

// empty serves the queue as it is.
func (s *Socket) empty(h *Handler) {
	limit := time.Now().Add(drainTime)
	for s.waiting() && time.Now().Before(limit) && s.ending() != Drop {
		_ = s.ln.SetDeadline(time.Now().Add(fdPause)) // not reached: something waits, and nobody else accepts here
		c, err := s.ln.Accept()
		if err == nil {
			h.Take(c)
		} else if noDescriptor(err) && !h.Spare.dropOne(s, h) {
			<-time.After(fdPause)
		}
	}
}

func noDescriptor(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }

// discard closes the socket. Whoever is still queued is accepted and closed first, and so sees an end and no reset. A
// socket of systemd stays open.
func (s *Socket) discard() {
	if s.Kept {
		s.end.Store(int32(Park))
		return
	}
	if s.lent.Load() {
		s.ln.Close()
		return
	}
	s.unlink()
	shut(s.raw)
	for limit := time.Now().Add(drainTime); s.waiting() && time.Now().Before(limit); {
		if _, ok := s.acceptAndClose(); !ok {
			break
		}
	}
	s.ln.Close()
}

// unlink removes the file of a unix socket, unless somebody has put another in its place.
func (s *Socket) unlink() {
	if s.file == nil {
		return
	}
	if is, err := os.Lstat(s.Addr.Path); err == nil && os.SameFile(is, s.file) {
		_ = os.Remove(s.Addr.Path)
	}
	s.file = nil
}

// Turns counts the rounds of the accept loop. A connection that waits while the count stands still is not being taken
// in; waits is false where no loop is meant to run.
func (s *Socket) Turns() (n uint64, waits bool) {
	s.mu.Lock()
	runs := s.done != nil
	s.mu.Unlock()
	n = s.turn.Load() // first, so that a turn in between counts
	return n, runs && s.waiting()
}

// waiting reports whether a connection is queued.
func (s *Socket) waiting() bool {
	ready := false
	_ = s.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		ready = err == unix.EINTR || n > 0 && p[0].Revents&unix.POLLIN != 0
	})
	return ready
}

// acceptAndClose takes one connection off the queue without making a net.Conn of it. It does not wait.
func (s *Socket) acceptAndClose() (client netip.AddrPort, ok bool) {
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
func (s *Socket) pause() {
	s.mu.Lock()
	over := s.over
	s.mu.Unlock()
	t := time.NewTimer(fdPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-over:
	}
}
