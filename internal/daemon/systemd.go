package daemon

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/handover"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports"
	"github.com/quaymaster/quaymaster/internal/systemd"
)

const (
	tellEvery = time.Second      // how often the status line is made anew
	drainMore = 15 * time.Second // asked for again every second of a drain, so that a drain that hangs ends
	mainTime  = 5 * time.Second  // for the service manager to take note of our successor
)

// A service is the daemon as its service manager sees it. Without a manager its notifier is nil and says nothing.
type service struct {
	*systemd.Notifier
	sockets []systemd.Socket
	busy    atomic.Int64 // since when a change is under way, in unix nanoseconds; 0: none is
	hung    string       // why the watchdog was not told; for watch alone
}

// openService reads what the service manager has put into the environment, and takes it out: it is for this process.
func (d *Daemon) openService() {
	d.service.Notifier = systemd.New(systemd.Options{
		Env: os.LookupEnv, PID: os.Getpid(), Log: d.log.With("component", "systemd"), Hold: d.heir != nil,
	})
	d.undo.push("service manager", func(context.Context) { d.service.Close() })
	d.service.sockets = systemd.Sockets(os.LookupEnv, os.Getpid())
	for _, name := range systemd.Variables() {
		_ = os.Unsetenv(name) // fails for an invalid name alone
	}
}

// safe is where the sockets of the plan are kept, nil if nowhere.
func (d *Daemon) safe() ports.Safe {
	if d.service.Notifier == nil {
		return nil
	}
	return vault{d.service.Notifier}
}

// vault is the service manager's store of descriptors.
type vault struct{ n *systemd.Notifier }

func (v vault) Store(a plan.Addr, fd int) { v.n.Store(systemd.Name(a.String()), fd) }
func (v vault) Forget(a plan.Addr)        { v.n.Forget(systemd.Name(a.String())) }

// changing tells the manager of each change, whatever becomes of it.
func (d *Daemon) changing(begins bool) {
	if begins {
		d.service.busy.Store(time.Now().UnixNano())
		d.service.Reloading("loading the configuration")
		return
	}
	d.service.busy.Store(0)
	d.service.Ready(d.line())
}

// report keeps the status line up to date, asks for time while we drain, and says that we live, until ctx ends.
func (d *Daemon) report(ctx context.Context) error {
	if d.service.Notifier == nil {
		return nil
	}
	status := time.NewTicker(tellEvery)
	defer status.Stop()
	var look <-chan time.Time
	if every := d.service.Watchdog(); every > 0 {
		t := time.NewTicker(every / 4) // one look that fails is made good before the manager notices
		defer t.Stop()
		look = t.C
		d.service.Alive()
	}
	said, lived := "", time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-look:
			if d.living(now) && now.Sub(lived) > d.service.Watchdog()*7/8 { // the second clock of a ticker is not exact
				d.service.Alive()
				lived = now
			}
		case <-status.C:
			line := d.line()
			switch {
			case d.phase.Load().name == "draining":
				d.service.Draining(line, drainMore)
			case line != said:
				d.service.Status(line)
			}
			said = line
		}
	}
}

// living reports whether configuration changes come to an end and connections are taken in. It asks for the locks that
// serving needs, and does not return if one of them is never given back.
func (d *Daemon) living(now time.Time) bool {
	why := ""
	limit := 2 * d.service.Watchdog()
	if since := d.service.busy.Load(); since != 0 && now.Sub(time.Unix(0, since)) > limit {
		why = fmt.Sprintf("a change of the configuration has not ended after %s", limit)
	}
	if stuck := d.ports.Stuck(); len(stuck) > 0 {
		why = fmt.Sprintf("connections wait on %s and are not taken in", stuck[0])
	}
	_, _ = d.guard.Status(), d.ports.Status()
	if why != "" && why != d.service.hung {
		d.log.Error("watchdog: not well; the service manager ends this process if that lasts", "err", why)
	}
	d.service.hung = why
	return why == ""
}

// line says for people what the daemon does.
func (d *Daemon) line() string {
	switch name := d.phase.Load().name; {
	case name == "draining":
		_, n := d.edge.Connections(0)
		return "draining: " + count(n, "connection")
	case name == "starting" || d.loop.Now() == nil:
		return "starting"
	}
	now := d.loop.Now()
	var missing []string
	for _, p := range d.ports.Status() {
		if p.State == ports.Retrying || p.State == ports.Failed {
			missing = append(missing, p.Wanted)
		}
	}
	all := len(now.Plan.Ports)
	text := "serving " + count(all, "port")
	if len(missing) > 0 {
		text = fmt.Sprintf("serving %d of %s", all-len(missing), count(all, "port"))
	}
	text += ", " + count(len(now.Plan.Routes), "route")
	if len(missing) > 0 {
		text += "; not bound: " + strings.Join(missing, ", ")
	}
	if now.Error != "" {
		text += "; the newest reload was refused: " + now.Error
	}
	return text
}

// count is a number of things.
func count(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	return fmt.Sprintf("%d %ss", n, of)
}

// passService makes the manager look to our successor, which is told when it is heard. We say nothing from then on.
func (d *Daemon) passService(ctx context.Context, link *handover.Link, pid int) {
	if d.service.Notifier == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), mainTime)
	defer stop()
	d.service.MainPID(pid)
	if err := d.service.Sync(ctx); err != nil {
		d.log.Warn("the service manager may not know the new process", "pid", pid, "err", err)
	}
	_ = link.Send(sayMain, nil) // it takes our end for the same
	d.service.Close()
}
