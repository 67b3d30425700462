package apps

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// show works out the state, and tells of it where it is another.
func (a *app) show() {
	state, reason := a.state()
	var told bool
	a.mu.Lock()
	v := &a.view
	if v.state != state {
		v.state, v.since, told = state, time.Now(), true
	} else if v.reason != reason && reason != "" {
		told = state == BackingOff || state == Unhealthy || state == Failed
	}
	v.reason, v.on, v.live = reason, a.on, a.living()
	v.pid, v.cid, v.at, v.began, a.alive = 0, "", plan.Addr{}, time.Time{}, nil
	if i := a.subject(); i != nil {
		v.at = i.at
		if i.run != nil {
			r := i.run.Record()
			v.pid, v.cid, v.began, a.alive = r.PID, r.Container, i.began, i.run
		}
	}
	if v.at == (plan.Addr{}) && a.lease != nil {
		v.at = plan.TCPAddr(loopback, a.lease.Port())
	}
	v.restarts, v.last = a.restarts, a.last
	a.mu.Unlock()
	if told {
		a.tell(state, reason)
	}
	a.settle(state, reason)
	if told {
		a.s.wakeRelated(a)
	}
}

// subject is the instance that the app is known by.
func (a *app) subject() *instance {
	switch {
	case a.cur != nil:
		return a.cur
	case len(a.old) > 0:
		return a.old[0]
	}
	return nil
}

// state says what the facts come to, and why.
func (a *app) state() (State, string) {
	i := a.cur
	switch {
	case i != nil && i.unseen != "":
		return Unknown, i.unseen
	case len(a.adopt) > 0 && a.why == "":
		return Starting, "being looked for"
	case len(a.adopt) > 0:
		return Unknown, a.why
	case i != nil && i.phase == serving && a.sick != "":
		return Unhealthy, a.sick
	case i != nil && i.phase == serving:
		return Ready, a.why
	case i != nil && i.phase == launching && a.dark:
		return Unknown, a.why
	case i != nil && i.phase == launching:
		return Starting, "being launched"
	case i != nil:
		return Starting, i.blame
	case len(a.old) > 0 && a.old[0].unseen != "":
		return Unknown, a.old[0].unseen
	case len(a.old) > 0 && slices.ContainsFunc(a.old, func(i *instance) bool { return i.phase == draining }):
		return Draining, a.why
	case len(a.old) > 0 && a.stuck == "":
		return Stopping, a.why
	case a.want == nil:
		return Stopped, "out of the configuration"
	case a.stuck != "":
		return a.stuck, a.why
	case a.on && a.now.Before(a.pause) && a.dark:
		return Unknown, a.why
	case a.on && a.now.Before(a.pause):
		return BackingOff, a.why
	case a.on:
		if list := a.waitsFor(); len(list) > 0 {
			return Starting, "waits for " + strings.Join(list, ", ")
		}
		return Starting, ""
	case a.held:
		return Stopped, "stopped by hand"
	case a.closing:
		return Stopped, "quaymaster is stopping"
	case a.why != "":
		return Stopped, a.why
	case a.want.Start == "on_request" || a.want.IdleStop > 0:
		return Sleeping, "starts with the first request"
	}
	return Stopped, a.why
}

// tell lets out a change of state.
func (a *app) tell(state State, reason string) {
	args := []any{"app", a.name, "state", string(state)}
	if reason != "" {
		args = append(args, "reason", reason)
	}
	if i := a.subject(); i != nil && i.run != nil {
		args = append(args, i.who(), "address", i.at.String())
	}
	switch state {
	case Unhealthy, BackingOff, CrashLooping, Failed, Unknown:
		a.s.opt.Log.Warn("app "+words(state), args...)
	default:
		a.s.opt.Log.Info("app "+words(state), args...)
	}
	message := string(state)
	if reason != "" {
		message = fmt.Sprintf("%s: %s", state, reason)
	}
	a.s.opt.Events("app."+words(state), a.name, message)
	a.out.note(message)
}

// words is a state as events and constant messages have it.
func words(s State) string { return strings.ReplaceAll(string(s), "-", "_") }
