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
	Proto  string // "tcp" or "unix"
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
		if info, err := os.Lstat(e.Addr.Path); e.Proto == "unix" && err == nil && info.Mode().Type() != os.ModeSocket {
			return "the file exists and is not a socket"
		}
		return "already in use by a process that cannot be seen from here"
	case Own:
		return "quaymaster itself holds an overlapping address for " + e.owner
	case NoAddress:
		if e.final || !e.Addr.IP.IsValid() {
			return e.Err.Error()
		}
		return fmt.Sprintf("this host has no address %s (it has %s)", e.Addr.IP, list(hostAddrs(), "none"))
	case Permission:
		if e.Proto == "tcp" {
			return "permission denied: " + unprivileged()
		}
		return "permission denied"
	}
	return plain(e.Err)
}

// Remedy is what a person can do about it.
func (e *BindError) Remedy() string {
	switch e.Kind {
	case InUse:
		return e.stopHolder() + ", or " + e.waitOr("choose another address")
	case Own:
		return "give the two different ports"
	case NoAddress:
		if e.final {
			return "give the socket that name (FileDescriptorName= in its .socket unit), or write an address"
		}
		return "use one of these, or a bare port number for all of them, or " + e.waitOr("add the address to an interface first")
	case Permission:
		if e.Proto == "unix" {
			return fmt.Sprintf("let user %d write in %s", os.Getuid(), filepath.Dir(e.Addr.Path))
		}
		return fmt.Sprintf("give it CAP_NET_BIND_SERVICE (in its systemd unit: AmbientCapabilities=CAP_NET_BIND_SERVICE), lower the limit "+
			"(sysctl net.ipv4.ip_unprivileged_port_start=%d), or let systemd open the socket", e.Addr.Port)
	}
	return e.waitOr("see the cause and reload")
}

// stopHolder is how to make the holder let go, or how to find it.
func (e *BindError) stopHolder() string {
	switch {
	case e.Holder != nil && e.Holder.Pid > 0:
		return e.Holder.Stop()
	case e.Proto == "unix":
		return "stop whoever listens on it"
	}
	return fmt.Sprintf("find it with %q and stop it", "sudo lsof -nP -iTCP:"+strconv.Itoa(int(e.Addr.Port))+" -sTCP:LISTEN")
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

// unprivileged says from which port on everybody may bind.
func unprivileged() string {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return "ports below 1024 need a privilege (net.ipv4.ip_unprivileged_port_start cannot be read)"
	}
	return "ports below " + strings.TrimSpace(string(text)) + " (net.ipv4.ip_unprivileged_port_start) need CAP_NET_BIND_SERVICE"
}

// hostAddrs lists the addresses of this host.
func hostAddrs() []string {
	addrs, _ := net.InterfaceAddrs()
	var out []string
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok {
			out = append(out, ip.IP.String())
		}
	}
	return out
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
