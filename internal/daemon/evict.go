package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/evict"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// owns reports whether a process came of an app that is run here.
func (d *Daemon) owns(pid int, _ time.Time) bool { return d.processes != nil && d.processes.Owns(pid) }

// evictFor ends who listens where an app is to: what quaymaster has started, and with TakeOver any what else its user runs.
func (d *Daemon) evictFor(ctx context.Context, a *plan.App, port uint16) (ended bool, err error) {
	at := plan.TCPAddr(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	if a.Port == 0 {
		at = plan.Addr{Port: port} // a lease holds the port at every address
	}
	look := func() ([]holder.Holder, error) {
		all, err := holder.Everyone(func(l netip.AddrPort) bool { return l.Port() == port })
		return slices.DeleteFunc(all, func(h holder.Holder) bool {
			ip := h.Addr.Addr().Unmap()
			return a.Port != 0 && !ip.IsUnspecified() && ip != at.IP
		}), err
	}
	free := func() bool { return evict.Probe(at) == nil }
	holders, err := look()
	switch {
	case err != nil:
		return false, fmt.Errorf("who holds it cannot be looked up: %w", err)
	case len(holders) == 0 && !free():
		return false, errors.New("nobody is seen who listens there, so nobody is ended")
	}
	e, err := evict.Begin(evict.Rules{Own: d.owns, OnlyOwn: a.TakeOver != "any"}, holders, look, time.Time{}, evict.Grace)
	if err != nil {
		return false, err
	}
	defer e.Close()
	tell := func(signal string, to []holder.Holder) {
		var list []string
		for i := range to {
			list = append(list, to[i].String())
		}
		if len(list) > 0 {
			d.event("app.take_over", a.Name, fmt.Sprintf("%s at port %d was sent to %s", signal, port, strings.Join(list, ", ")))
		}
	}
	tell("TERM", e.Asked())
	if e.Wait(ctx, free, func() { tell("KILL", e.Killed()) }) != evict.Gone {
		return true, errors.New("it was asked to end (TERM), and killed, and still listens")
	}
	return len(e.Asked()) > 0, nil
}
