package ports

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// Kind says why a port could not be had. "" is anything that is not the port's fault, such as a lack of descriptors.
type Kind string

// The kinds.
const (
	InUse      Kind = "in_use"
	Permission Kind = "permission"
	NoAddress  Kind = "no_address"
	Own        Kind = "own" // held by ourselves, for something else
)

// A BindError says which port could not be had, who has it, and what to do.
type BindError struct {
	Proto  string // "tcp", "udp" or "unix"
	Addr   plan.Addr
	Kind   Kind
	Holder *Holder       // nil: unknown
	Next   time.Duration // until the next attempt; 0: there is none
	Err    error

	takeover string // what take_over did about the holder, or why it does nothing; "" without it

	gaveUp time.Duration // after that long; 0: not
	owner  string        // of kind own: what has it
	looked bool          // the holder was looked up
	blind  error         // why the holder could not be looked up
	client string        // nobody listens: whose connection has the port
	final  bool          // waiting cannot help
}

// Unwrap gives the error of the system call.
func (e *BindError) Unwrap() error { return e.Err }

func (e *BindError) Error() string {
	target := e.Addr.String()
	if e.Proto == "unix" {
		target = e.Addr.Path
	}
	next := ""
	switch {
	case e.Next > 0:
		next = ": next try in " + holder.Span(e.Next)
	case e.gaveUp > 0:
		next = ", and reload: gave up after " + holder.Span(e.gaveUp)
	}
	if e.takeover != "" {
		next += " (take_over: " + e.takeover + ")"
	}
	return fmt.Sprintf("cannot bind %s %s: %s; %s%s", e.Proto, target, e.Cause(), e.Remedy(), next)
}

// Cause is what stands in the way.
func (e *BindError) Cause() string {
	switch e.Kind {
	case InUse:
		if e.Holder != nil {
			return "held by " + e.Holder.String()
		}
		if e.blind != nil {
			return fmt.Sprintf("already in use, and who holds it cannot be looked up (%v)", e.blind)
		}
		if e.client != "" {
			return "nobody listens there, but a connection has that port as its own: " + e.client
		}
		if info, err := os.Lstat(e.Addr.Path); e.Proto == "unix" && err == nil && info.Mode().Type() != os.ModeSocket {
			return "the file exists and is not a socket"
		}
		return "already in use by a process that cannot be seen from here"
	case Own:
		return "quaymaster itself holds an overlapping address for " + e.owner
	case NoAddress:
		if e.final {
			return e.Err.Error()
		}
		cause, _ := absent(e.Addr.IP, e.Err)
		return cause
	case Permission:
		if e.Proto == "unix" {
			return "permission denied"
		}
		cause, _ := denied(e.Addr.Port)
		return "permission denied: " + cause
	}
	return plain(e.Err)
}

// Remedy is what a person can do about it.
func (e *BindError) Remedy() string {
	switch e.Kind {
	case InUse:
		return e.stopHolder() + ", or " + e.waitOr("choose another address")
	case Own:
		if e.owner == "metrics" { // the only one that a reload can move
			return "choose another port, or move metrics away by a reload of its own first"
		}
		return "choose another port"
	case NoAddress:
		if e.final {
			return "give the socket that name (FileDescriptorName= in its .socket unit), or write an address"
		}
		_, remedy := absent(e.Addr.IP, e.Err)
		return remedy + ", or " + e.waitOr("add the address to an interface first")
	case Permission:
		if e.Proto == "unix" {
			return fmt.Sprintf("let user %d write in %s", os.Getuid(), filepath.Dir(e.Addr.Path))
		}
		_, remedy := denied(e.Addr.Port)
		return remedy
	}
	return e.waitOr("see the cause and reload")
}

// stopHolder is how to make the holder let go, or how to find it.
func (e *BindError) stopHolder() string {
	switch {
	case e.Holder != nil && e.Holder.Pid > 0:
		return e.Holder.Stop()
	case e.Proto == "unix":
		return fmt.Sprintf("find who listens on it with %q and stop that", asRoot("lsof "+e.Addr.Path))
	case e.client != "":
		return fmt.Sprintf("keep connections away from that port with %q", asRoot("sysctl net.ipv4.ip_local_reserved_ports="+strconv.Itoa(int(e.Addr.Port))))
	}
	lsof := asRoot(holder.Command(e.Proto, e.Addr.Port))
	if e.Holder != nil && os.Geteuid() != 0 { // root sees it, and ours says how to stop it too
		return fmt.Sprintf("find it with %q or %q and stop it", asRoot("quaymaster ports who "+strconv.Itoa(int(e.Addr.Port))), lsof)
	}
	return fmt.Sprintf("find it with %q and stop it", lsof)
}

// asRoot is a command that only root can give.
func asRoot(cmd string) string {
	if os.Geteuid() == 0 {
		return cmd
	}
	return "sudo " + cmd
}

// waitOr tells a person to wait where that may help.
func (e *BindError) waitOr(other string) string {
	if e.Next > 0 {
		return "wait"
	}
	return other
}

// same reports whether e tells a person the same as f.
func (e *BindError) same(f *BindError) bool {
	x, y := *e, *f
	x.Next, y.Next = 0, 0
	return x.Kind == y.Kind && x.takeover == y.takeover && x.Cause() == y.Cause()
}

// bindError sorts the errors of a bind.
func bindError(a plan.Addr, err error) *BindError {
	e := &BindError{Proto: a.Network.String(), Addr: a, Err: err}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		e.Kind = InUse
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.Kind = Permission
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT):
		e.Kind = NoAddress
	}
	return e
}

// plain cuts an error of package net down to its cause: the rest of the sentence names the address already.
func plain(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err.Error()
	}
	return fmt.Sprint(err)
}

// list joins words for a person, at most 16.
func list(words []string, none string) string {
	if len(words) == 0 {
		return none
	}
	if more := len(words) - 16; more > 0 {
		words = append(words[:16:16], strconv.Itoa(more)+" more")
	}
	return strings.Join(words, ", ")
}
