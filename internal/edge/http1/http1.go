// Package http1 serves the HTTP/1 requests of one client connection, one after the other.
//
// It promises that every request it hands over has one reading and gets one answer, that a connection without a request
// holds no buffer, and that no client can keep it waiting longer than its settings say. It never closes a connection,
// and it does not know what a request is for.
package http1

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// Settings are asked for anew with each request. A duration of 0 is no bound.
type Settings struct {
	RequestHeader time.Duration // from the first byte of a head to its last
	KeepAlive     time.Duration // between requests
	BodyStall     time.Duration // each wait for a body that does not come, or for a client that takes nothing
	MaxHeader     int           // bytes of one head; 0 = 64 KiB
}

// Options say what to do with requests. One value may serve all connections: ConnInfo tells them apart.
type Options struct {
	// Handle acts the exchange out; when it returns the exchange is over.
	Handle func(ex *wire.Exchange)
	// Settings are asked for anew with each request.
	Settings func() Settings
	// Leaving makes answers carry Connection: close. nil: never.
	Leaving func() bool
	// Draining, which goes with Leaving, makes connections end after a second without a byte. nil: never.
	Draining func() bool
	// Refuse is told about a request that could not be read, and the id that its answer names; it has been answered
	// already. nil: nobody is told.
	Refuse func(info *wire.ConnInfo, e *wire.ParseError, id string)
}

const (
	maxFields     = 100
	defaultHeader = 64 << 10
	// lastByte is how long a connection may still begin a request while everything drains.
	lastByte = time.Second
)

// A waiter is a connection that can wait for bytes without being given a buffer to read into.
type waiter interface{ Await() error }

// conn is one client connection. It is all that stays while the connection is idle.
type conn struct {
	c           net.Conn
	raw         syscall.RawConn // nil where c is no socket
	await       waiter          // nil where c is none
	info        *wire.ConnInfo
	o           *Options
	read, write wire.Clock
	keepAlive   time.Duration

	try func(fd uintptr) bool // tryRead, made once
	got *wire.Buffer          // what try read
	err error                 // why it read nothing
}

// Serve reads requests from c and hands them over until the connection is over, and then returns why; nil is a clean
// end. first holds bytes that were already read, if any; it belongs to Serve from now on. Serve does not close c: the
// caller does, at once.
//
// Between requests info.State is Idle from before the deadline is set and Draining is asked. Whoever begins a drain may
// therefore look for idle connections and set a read deadline on them.
func Serve(c net.Conn, info *wire.ConnInfo, first *wire.Buffer, o *Options) error {
	k := &conn{c: c, info: info, o: o}
	k.read.Start(c, false)
	k.write.Start(c, true)
	k.keepAlive = o.Settings().KeepAlive
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			k.raw, k.try = raw, k.tryRead
		}
	}
	k.await, _ = c.(waiter)
	k.got = first
	for {
		if k.got == nil {
			if err := k.park(); err != nil || k.got == nil {
				return err
			}
		}
		if again, err := k.converse(); !again {
			return err
		}
	}
}

// park waits for the first bytes of a request, without a buffer and on a shallow stack. Nothing got and no error is the
// end of the connection.
func (k *conn) park() error {
	k.info.State.Store(uint32(wire.Idle))
	var until time.Time
	if k.keepAlive > 0 {
		until = time.Now().Add(k.keepAlive)
	}
	last := false
	k.read.Set(until)
	for {
		if !last && k.draining() {
			last = true
			k.read.Set(time.Now().Add(lastByte))
		}
		err := k.receive()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, io.EOF):
			return nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case !k.read.Early(err):
			return nil
		}
	}
}

func (k *conn) leaving() bool { return k.o.Leaving != nil && k.o.Leaving() }

func (k *conn) draining() bool { return k.o.Draining != nil && k.o.Draining() }

// receive reads once, into a buffer that it takes when bytes are there.
func (k *conn) receive() error {
	k.err = nil
	if k.raw != nil {
		if err := k.raw.Read(k.try); err != nil {
			return err
		}
		return k.err
	}
	if k.await != nil {
		if err := k.await.Await(); err != nil {
			return err
		}
		b := wire.GetBuffer()
		n, err := b.Fill(k.c, defaultHeader)
		if n == 0 {
			b.Put()
			return err
		}
		k.got = b
		return nil
	}
	var one [1]byte
	if n, err := k.c.Read(one[:]); n == 0 {
		return err
	}
	k.got = wire.GetBuffer()
	k.got.Append(one[:])
	return nil
}

// tryRead is the func for RawConn.Read: false means that nothing is there and that no buffer is held.
func (k *conn) tryRead(fd uintptr) bool {
	b := wire.GetBuffer()
	p, _ := b.Room(1) // an empty buffer has room
	for {
		n, err := syscall.Read(int(fd), p)
		switch {
		case err == syscall.EINTR:
			continue
		case err == nil && n > 0:
			b.Extend(n)
			k.got = b
			return true
		case err == nil:
			k.err = io.EOF
		case err != syscall.EAGAIN:
			k.err = os.NewSyscallError("read", err)
		}
		b.Put()
		return err != syscall.EAGAIN
	}
}

// converse answers the requests that have come, and gives buffer and exchange back. again is true when the connection
// can carry more.
func (k *conn) converse() (again bool, err error) {
	e := exchanges.Get().(*exchange)
	e.k, e.buf, k.got = k, k.got, nil
	for again = true; again && len(e.buf.Bytes()) > 0; {
		again, err = e.act()
	}
	e.release()
	return again, err
}
