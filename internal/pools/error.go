package pools

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// An Error says why there was no connection to a target, or no answer from it.
//
// Kind is one of refused, unreachable, timeout, dns, tls (no connection, or TLS that was turned down); reset, closed, bad_answer (no answer on a
// connection that was had); app, app_late, app_starting (an app that does not serve, or not yet); down, no_targets, queue_full, queue_timeout (nothing was tried); aborted (by Stream.Abort);
// not_allowed, private_address, loop (by name only).
type Error struct {
	Kind     string
	Upstream string // "" by name
	Target   string // "" when none was chosen
	Member   *Member
	Near     string // what listens near a target that refused; "" if unknown
	Err      error  // the cause; may be nil
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Upstream != "" {
		b.WriteString("upstream " + e.Upstream + ": ")
	}
	if e.Target != "" {
		b.WriteString("target " + e.Target + ": ")
	}
	if words, ok := kindWords[e.Kind]; ok {
		b.WriteString(words)
	} else {
		b.WriteString(e.Kind)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Near != "" {
		b.WriteString("; " + e.Near)
	}
	return b.String()
}

// Unwrap gives the cause. An aborted attempt is context.Canceled.
func (e *Error) Unwrap() error {
	if e.Kind == "aborted" {
		return context.Canceled
	}
	return e.Err
}

// short is what is kept as a target's reason: the error without whose it is.
func (e *Error) short() string { return (&Error{Kind: e.Kind, Near: e.Near, Err: e.Err}).Error() }

// Status is what an HTTP client is told: 502, 503, 504, 508, 403, or 499 when it was the client that left.
func (e *Error) Status() int {
	switch e.Kind {
	case "timeout", "app_late":
		return 504
	case "app", "app_starting", "down", "no_targets", "queue_full", "queue_timeout":
		return 503
	case "loop":
		return 508
	case "not_allowed", "private_address":
		return 403
	case "aborted":
		return 499
	}
	return 502
}

var kindWords = map[string]string{
	"refused":         "connection refused",
	"unreachable":     "cannot connect",
	"timeout":         "no answer in time",
	"dns":             "name not resolved",
	"reset":           "connection reset",
	"closed":          "connection closed without an answer",
	"tls":             "cannot speak TLS",
	"bad_answer":      "not a valid answer",
	"down":            "every target is down",
	"app":             "it does not serve",
	"app_late":        "it is not ready in time",
	"app_starting":    "it is being started",
	"no_targets":      "there are no targets",
	"queue_full":      "every target is busy and the queue is full",
	"queue_timeout":   "every target stayed busy for queue_timeout",
	"aborted":         "given up by the client",
	"not_allowed":     "not on the allowlist",
	"private_address": "private address; set by_name.allow_private to reach it",
	"loop":            "this would come back to ourselves",
}

// dialKind sorts the error of a dial.
func dialKind(err error) string {
	var own *Error
	var dns *net.DNSError
	switch {
	case errors.As(err, &own):
		return own.Kind
	case errors.As(err, &dns):
		return "dns"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return "refused"
	case isTimeout(err):
		return "timeout"
	}
	return "unreachable"
}

// recvKind sorts the error of a read or write on a connection.
func recvKind(err error) string {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return "closed"
	case isTimeout(err):
		return "timeout"
	case isAlert(err):
		return "tls"
	}
	return "reset"
}

func isTimeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// cause strips what the caller says anyway ("dial tcp 127.0.0.1:1: connect: connection refused").
func cause(kind string, err error) error {
	var own *Error
	var sys *os.SyscallError
	var op *net.OpError
	switch {
	case errors.As(err, &own):
		return own.Err
	case kind == "timeout", kind == "refused" && !errors.Is(err, os.ErrNotExist):
		return nil
	case errors.As(err, &sys):
		return sys.Err
	case errors.As(err, &op):
		return op.Err
	}
	return err
}
