package wire

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// Clock keeps the read or the write deadline of one connection without telling the connection more often than it must.
//
// A deadline that moves into the future costs nothing: the connection keeps the earlier one, and when that strikes too
// early the operation goes on with the one that is wanted. One that somebody else set on the connection is honoured when
// it strikes, and forgotten when a new one is set. Set may be called from any goroutine, and one in the past ends an
// operation that waits. The other methods belong to the goroutine that reads or writes.
type Clock struct {
	c     net.Conn
	write bool
	want  atomic.Int64 // nanoseconds after epoch; 0 = none
	armed atomic.Int64 // what the connection was told last; 0 = nothing, or unknown
}

// epoch is what clocks count from. Times made of it need no look at the machine's clock.
var epoch = time.Now()

// Start begins the clock of one direction of c, on which no deadline is set.
func (k *Clock) Start(c net.Conn, write bool) {
	k.c, k.write = c, write
	k.want.Store(0)
	k.armed.Store(0)
}

// Set moves the deadline to t; the zero time is none.
func (k *Clock) Set(t time.Time) {
	if t.IsZero() {
		k.want.Store(0)
		return
	}
	w := max(int64(t.Sub(epoch)), 1)
	k.want.Store(w)
	k.settle(w)
}

// settle tells the connection of w, unless it has an earlier deadline already.
func (k *Clock) settle(w int64) {
	if a := k.armed.Load(); a == 0 || w < a {
		k.agree(w)
	}
}

// agree tells the connection of w, and of what is wanted instead if another goroutine came between: whoever tells the
// connection last tells it what is wanted.
func (k *Clock) agree(w int64) {
	for {
		k.arm(w)
		now := k.want.Load()
		if now == 0 || now == w {
			return
		}
		w = now
	}
}

// allow sets the deadline d from now, unless somebody has set or sets one: then timed is true.
func (k *Clock) allow(d time.Duration, timed *atomic.Bool) {
	old := k.want.Load()
	if timed.Load() {
		return
	}
	w := int64(time.Since(epoch) + d)
	if k.want.CompareAndSwap(old, w) {
		k.settle(w)
	}
}

// Clear takes the deadline off the connection, for somebody else to set.
func (k *Clock) Clear() {
	k.want.Store(0)
	if k.armed.Load() != 0 {
		k.arm(0)
	}
}

// Forget says that the connection's deadline is no longer known, so that the next Set tells it.
func (k *Clock) Forget() { k.armed.Store(0) }

// Early reports whether err is a deadline that struck before its time. The wanted one has then been set, and the
// operation may go on.
func (k *Clock) Early(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) || k.Struck() {
		return false
	}
	for {
		w := k.want.Load()
		if w != 0 && int64(time.Since(epoch)) >= w {
			return false
		}
		k.arm(w)
		if k.want.Load() == w {
			return true
		}
	}
}

// Struck reports whether a deadline that fired just now was set by somebody else.
func (k *Clock) Struck() bool {
	a := k.armed.Load()
	return a == 0 || int64(time.Since(epoch)) < a
}

// drop takes the wanted deadline back and leaves the connection alone.
func (k *Clock) drop() {
	if k.want.Load() != 0 {
		k.want.Store(0)
	}
}

// extend tells the connection to wait that much longer from now, unless something else is wanted.
func (k *Clock) extend(d time.Duration) { k.agree(int64(time.Since(epoch) + d)) }

// quiet stores false where it is not stored already: a load costs a tenth of a store.
func quiet(b *atomic.Bool) {
	if b.Load() {
		b.Store(false)
	}
}

// arm tells the connection. Errors say that it is closed, which its next use says too.
func (k *Clock) arm(w int64) {
	k.armed.Store(w)
	var t time.Time
	if w != 0 {
		t = epoch.Add(time.Duration(w))
	}
	if k.write {
		_ = k.c.SetWriteDeadline(t)
		return
	}
	_ = k.c.SetReadDeadline(t)
}
