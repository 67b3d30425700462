package evict

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	// Force also allows other users' processes and those of systemd services.
	Force bool
}

// A Refusal says why a holder is not ended, and what a person can do about it.
type Refusal struct {
	Holder holder.Holder
	Reason string
	Remedy string
}

func (r *Refusal) Error() string {
	s := r.Holder.String() + " is not ended: " + r.Reason
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
	helper, isHelper := helperOf(h)
	switch {
	case h.Pid <= 0:
		return no("run as root", "its process cannot be seen from here")
	case h.Pid == 1:
		return no(h.Stop(), "process 1 is the system")
	case h.Pid == os.Getpid():
		return no("", "that is this program")
	case descends(h.Pid):
		return no("", "this program was started by it")
	case isHelper:
		return no(h.Stop(), "%s holds the port for %s, which would not know that it is gone", helper, cmp.Or(h.Container, "somebody else"))
	case r.Own != nil && r.Own(h.Pid, h.Started):
		return nil
	case r.OnlyOwn:
		return no(h.Stop(), "quaymaster did not start it")
	case h.Container != "" && h.Container != self.Container:
		return no(h.Stop(), "it runs in container %s", h.Container)
	case h.UID != os.Geteuid() && !r.Force:
		return no(h.Stop(), "it belongs to user %s", h.User)
	case service(h.Unit) && h.Unit != self.Unit && !r.Force:
		return no(h.Stop(), "systemd runs it as %s, and may start it again", h.Unit)
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

// helpers are the programs that hold ports in the name of somebody else: a container engine, its virtual machine, a unit.
var helpers = []string{
	"systemd", // for the socket units of a session
	"docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta", "pasta.avx2", "passt", "passt.avx2", "conmon", "conmonrs",
	"gvproxy", "vpnkit", "com.docker.backend", "limactl",
}

// helperOf says which helper h is, by its executable, or by what it is called where that cannot be read.
func helperOf(h holder.Holder) (string, bool) {
	word, _, _ := strings.Cut(h.Command, " ")
	for _, name := range []string{filepath.Base(h.Exe), filepath.Base(word)} {
		name = strings.TrimSuffix(strings.TrimPrefix(name, "containers-"), "-child") // rootlessport calls itself so
		if slices.Contains(helpers, name) {
			return name, true
		}
	}
	return "", false
}
