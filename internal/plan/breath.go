package plan

import (
	"os"
	"runtime"
	"syscall"
	"time"
)

// Breath lets requests be served while one goroutine computes for long, as those do who load and follow a plan of ten
// thousand routes. The zero value is ready; it belongs to one goroutine, and End gives back what it opened.
//
// runtime.Gosched alone is not enough. It runs what is ready to run, and with every processor computing nobody finds out
// what has become ready: the scheduler looks at the network only when a processor has nothing else to do, and otherwise
// every 10 ms. So Take waits, on a pipe of its own that it has just written to. Nothing is ready then, the scheduler
// asks the kernel, and finds our byte together with whatever has come for connections. A short timer would do the same
// and cost a millisecond, the least that the poller sleeps.
//
// A call costs a few nanoseconds, and the wait, two or three microseconds, comes at most every breathEvery.
type Breath struct {
	calls uint
	last  time.Time // when the wait was over

	in, out *os.File // the pipe; nil until the first wait, and where there is none to be had
	wait    syscall.RawConn
	asked   func(fd uintptr) bool
	sent    bool
	failed  bool
}

const (
	breathEvery = 300 * time.Microsecond
	breathCalls = 8 // between two looks at the clock
)

// Take is called for each item of a long computation, while no lock is held that a request may want. An item should
// take less than 50 µs.
func (b *Breath) Take() {
	if b.calls++; b.calls%breathCalls == 0 && time.Since(b.last) >= breathEvery {
		b.yield()
	}
}

func (b *Breath) yield() {
	if b.in != nil || b.open() {
		b.sent = false
		var one [1]byte
		if b.wait.Read(b.asked) != nil {
			b.End()
			b.failed = true
		} else if b.sent {
			_, _ = b.in.Read(one[:])
		}
	}
	runtime.Gosched() // those found together with us go first
	b.last = time.Now()
}

// open makes the pipe. Without one, where descriptors are short, there is only Gosched.
func (b *Breath) open() bool {
	if b.failed {
		return false
	}
	b.failed = true
	in, out, err := os.Pipe()
	if err != nil {
		return false
	}
	b.in, b.out = in, out
	if b.wait, err = in.SyscallConn(); err != nil {
		b.End()
		return false
	}
	b.asked = func(uintptr) bool {
		if b.sent {
			return true
		}
		n, _ := b.out.Write([]byte{0})
		b.sent = n == 1
		return !b.sent
	}
	b.failed = false
	return true
}

// End closes the pipe. A Breath may be used again afterwards.
func (b *Breath) End() {
	if b.in != nil {
		_ = b.in.Close()
		_ = b.out.Close()
		b.in, b.out = nil, nil
	}
}
