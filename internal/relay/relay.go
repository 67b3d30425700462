// Package relay moves bytes until both sides are done: half-close, splice, idle clocks, counts.
//
// It promises that a stream which still moves is never ended as idle, that nothing it was given to carry is lost or
// sent twice, and that a side which breaks off is never made to look like one that ended. It never dials and never
// closes a connection: whoever opened one closes it, right after relay is done with it.
package relay

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// What ends a wait. Both wrap os.ErrDeadlineExceeded.
var (
	// ErrIdle: nothing more came from a source for as long as was allowed.
	ErrIdle = fmt.Errorf("relay: nothing moved in time: %w", os.ErrDeadlineExceeded)
	// ErrStall: a receiver did not take bytes that were there for it.
	ErrStall = fmt.Errorf("relay: receiver takes nothing: %w", os.ErrDeadlineExceeded)
)

// Activity is when a byte last moved, shared by both directions of an exchange. Its zero value has not moved since the
// program began: Touch it when the exchange starts.
type Activity struct{ at atomic.Int64 }

// Touch says that something moves now.
func (a *Activity) Touch() { a.at.Store(int64(clock())) }

// TouchAt says that something moved at t, which the caller has just read off the clock.
func (a *Activity) TouchAt(t time.Time) { a.at.Store(int64(t.Sub(epoch))) }

// Quiet is how long nothing has moved.
func (a *Activity) Quiet() time.Duration { return clock() - time.Duration(a.at.Load()) }

// clock is monotonic; only differences between two readings mean anything.
func clock() time.Duration { return time.Since(epoch) }

var epoch = time.Now()

// Side is one end of a direction.
type Side uint8

// The sides.
const (
	Source Side = iota
	Dest
)

func (s Side) String() string { return [...]string{"source", "destination"}[s] }

// A SideError tells which side of a body failed.
type SideError struct {
	Side Side
	Err  error
}

func (e *SideError) Error() string { return e.Side.String() + ": " + e.Err.Error() }

func (e *SideError) Unwrap() error { return e.Err }

// Cause is why a tunnel ended.
type Cause uint8

// The causes.
const (
	EOF         Cause = iota // both sides said that they were done
	Idle                     // no byte moved in either direction for Tunnel.Idle
	Stall                    // a side took no byte for Tunnel.Stall although some were there for it
	ClientReset              // the client's connection broke
	TargetReset              // the target's connection broke
	Cut                      // ended from outside
)

func (c Cause) String() string {
	return [...]string{"eof", "idle", "stall", "client_reset", "target_reset", "cut"}[c]
}

// A Result says what a tunnel carried and why it ended.
type Result struct {
	Up, Down int64 // bytes the target got, bytes the client got
	Cause    Cause
}
