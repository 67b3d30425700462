package relay

import (
	"syscall"
	"time"
)

// A queue is what the kernel still holds for a peer that takes its time. While it shrinks the peer is neither idle nor
// stalled, however long no write has come through: a socket takes more only when a third of its buffer is free.
type queue struct {
	left int
	at   time.Duration // when left was counted
}

// pulse is what a look at a queue tells.
type pulse uint8

const (
	still   pulse = iota // empty, or as long as before
	unknown              // too soon to tell
	moving
)

// look compares with the last look, which was at least a while ago unless the answer is unknown.
func (q *queue) look(raw syscall.RawConn, now, while time.Duration) pulse {
	n := unsent(raw)
	switch {
	case n < q.left:
		q.left, q.at = n, now
		return moving
	case n == 0:
		return still
	case n == q.left && now-q.at >= while:
		return still
	case n > q.left:
		q.left, q.at = n, now
	}
	return unknown
}

// wait is how long to go on for a pulse; 0: no longer. bound is the clock that has run out.
func (p pulse) wait(bound time.Duration) time.Duration {
	switch p {
	case moving:
		return bound
	case unknown:
		return max(bound/2, 1)
	}
	return 0
}
