package apps

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/run"
)

const (
	busyFirst = 250 * time.Millisecond // pause before a port that was taken is tried again; it doubles
	busyMost  = 30 * time.Second
	busyPorts = 10 // other ports that are tried at once
)

// exited follows the restart policy after an end that nobody had asked for.
func (a *app) exited(i *instance, exit run.Exit, e *Exit) {
	if a.next != nil {
		a.cur, a.next = a.next, nil
		if a.cur.phase == serving {
			a.tellPools()
		}
	}
	if a.want == nil {
		return
	}
	policy := a.want.Restart.Policy
	if policy == "no" || policy == "on-failure" && exit.OK() {
		a.on = false
		switch {
		case !exit.OK():
			a.fail(e.Text + " after " + span(e.Uptime) + said(i.tap.lastErrors()))
		case a.want.Start == "always":
			a.why = "it ended: " + e.Text
		}
		return
	}
	a.crashed(e, i.tap.lastErrors())
}

// crashed counts an end that is a fault, and says when the app is started again: never, when it has ended too often.
func (a *app) crashed(e *Exit, stderr []string) {
	a.last, a.late = e, false
	if a.want == nil {
		return
	}
	r := &a.want.Restart
	a.restarts++
	a.s.metrics.restarts.WithLabelValues(a.name).Inc()
	a.exits = slices.DeleteFunc(append(a.exits, e.At), func(t time.Time) bool { return time.Since(t) > r.Within })
	if e.Uptime >= r.MinUptime {
		a.delay = 0
	}
	a.delay = min(max(2*a.delay, r.Backoff), r.MaxBackoff)
	what := fmt.Sprintf("%s after %s; attempt %d of %d within %s", e.Text, span(e.Uptime), len(a.exits), r.Max, r.Within)
	if len(a.exits) >= r.Max {
		a.stuck, a.why = CrashLooping, what+"; not started again: mend it, then \"quaymaster apps start "+a.name+"\""+said(stderr)
		return
	}
	a.pause = time.Now().Add(a.delay)
	a.why = what + "; next start in " + span(a.delay) + said(stderr)
}

// portTaken does what the policy says about a port that somebody else has.
func (a *app) portTaken(e *run.PortError) {
	if a.want == nil {
		return
	}
	a.busy++
	text := a.taken(e)
	switch {
	case a.want.OnPortBusy == "fail":
		a.fail(text + "; free it, or write another one, then \"quaymaster apps start " + a.name + "\"")
	case a.want.OnPortBusy == "take_over" && e.Port != 0 && a.s.opt.Evict != nil:
		a.evict(e, text, a.tryLater)
	case a.want.OnPortBusy == "next" && e.Port != 0 && a.want.Port == 0 && a.want.Socket != "unix" && a.busy <= busyPorts:
		a.anew = true
		a.s.opt.Log.Warn("app goes to another port", "app", a.name, "port", e.Port, "reason", text)
		a.s.opt.Events("app.port_taken", a.name, text)
	default:
		a.tryLater(text)
	}
}

// tryLater tries a port again after a pause, which grows.
func (a *app) tryLater(text string) {
	pause := min(busyFirst<<min(max(a.busy-1, 0), 10), busyMost)
	a.pause = time.Now().Add(pause)
	a.why = text + "; next start in " + span(pause)
}

// taken says which port somebody else has, and who.
func (a *app) taken(e *run.PortError) string {
	if e.Port == 0 { // there is none left
		return e.Text
	}
	if a.s.opt.Holder != nil {
		if who := a.s.opt.Holder(e.Port); who != "" {
			return fmt.Sprintf("port %d is taken by %s", e.Port, who)
		}
	}
	return fmt.Sprintf("port %d is taken (%s)", e.Port, e.Text)
}

// fail is for good until somebody changes something.
func (a *app) fail(why string) { a.stuck, a.why = Failed, why }

// said is what an app wrote last, for a reason.
func said(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return "; stderr: " + strings.Join(lines, " | ")
}

// span is a duration as people read it.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
