package evict

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// Rules say whose processes may be ended. The zero value allows those of our own user that nothing would start again.
type Rules struct {
	// Own allows the processes for which it is true, whatever their user, unit and container. nil is none.
	Own func(pid int, started time.Time) bool
	// OnlyOwn allows no others.
	OnlyOwn bool
	// Force also allows other users' processes, and those that systemd or another supervisor runs.
	Force bool
}

// A Refusal says why a holder is not ended, and what a person can do about it.
type Refusal struct {
	Holder holder.Holder
	Reason string
	Remedy string
}

func (r *Refusal) Error() string {
	who := r.Holder.String()
	if r.Holder.Pid == 0 {
		who = r.Holder.Brief() // the rest says how to see it, as the remedy does
	}
	s := who + " is not ended: " + r.Reason
	if r.Remedy != "" {
		s += "; " + r.Remedy
	}
	return s
}

// All judges every holder, and joins the refusals.
func (r Rules) All(holders []holder.Holder) error {
	var errs []error
	seen := make(map[int]bool)
	for _, h := range holders {
		if seen[h.Pid] && h.Pid > 0 {
			continue
		}
		seen[h.Pid] = true
		if no := r.Judge(h); no != nil {
			errs = append(errs, no)
		}
	}
	return errors.Join(errs...)
}

// Judge returns nil when h may be ended. Whoever would be started again is better stopped by what would start it.
func (r Rules) Judge(h holder.Holder) *Refusal {
	self, _ := holder.Process(os.Getpid())
	no := func(remedy, reason string, args ...any) *Refusal {
		return &Refusal{Holder: h, Reason: fmt.Sprintf(reason, args...), Remedy: remedy}
	}
	if h.Helper == "" && filepath.Base(h.Exe) == "systemd" {
		h.Helper = "systemd" // of a user: it listens for units of theirs
	}
	switch {
	case h.Pid <= 0:
		return no("run as root", "its process cannot be seen from here")
	case h.Pid == 1:
		return no(h.Stop(), "process 1 is the system")
	case h.Pid == os.Getpid():
		return no("", "that is this program")
	case descends(h.Pid):
		return no("", "this program was started by it")
	case h.Helper != "":
		return no(h.Stop(), "%s holds the port for %s, which would not know that it is gone", h.Helper, cmp.Or(h.Container, "somebody else"))
	case r.Own != nil && r.Own(h.Pid, h.Started):
		return nil
	case r.OnlyOwn:
		return no(h.Stop(), "quaymaster did not start it")
	case h.Container != "" && (h.ContainerID != self.ContainerID || h.ContainerID == "" && h.Container != self.Container):
		return no(h.Stop(), "it runs in container %s", h.Container)
	case h.UID != os.Geteuid() && !r.Force:
		return no(h.Stop(), "it belongs to user %s", h.User)
	case service(h.Unit) && h.Unit != self.Unit && !r.Force:
		return no(h.Stop(), "systemd runs it as %s, and may start it again", h.Unit)
	case h.Starter() != "" && !r.Force:
		return no(h.Stop(), "%s runs it, and would start it again", h.Starter())
	}
	return nil
}

// descends reports whether this process has pid among its ancestors.
func descends(pid int) bool {
	at := os.Getpid()
	for range 1 << 10 { // a chain that changes as we look must not hold us
		if at = holder.Parent(at); at <= 0 {
			return false
		}
		if at == pid {
			return true
		}
	}
	return true
}

// service reports whether unit is one that systemd keeps running; the manager of a user's session is none.
func service(unit string) bool {
	return strings.HasSuffix(unit, ".service") && !strings.HasPrefix(unit, "user@")
}
