package apps

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// What happens to an app is told by one method for each event. They note facts; step then does the next thing that the
// facts want, and show tells of the state that they make. So every order of events, a stop in the middle of a start
// among them, comes to the same end.

// follow is a new entry of the plan; nil takes the app out of it.
func (a *app) follow(want *plan.App) {
	if want == a.want && want != nil {
		return
	}
	first := a.want == nil
	changed := !first && want != nil && runKey(want) != runKey(a.want)
	a.want = want
	if want == nil {
		a.on = false
		return
	}
	a.freeing, a.freed = false, false
	a.out.follow(want.Logs)
	a.out.recall()
	if changed {
		a.clear() // the entry may be what was wrong
	}
	a.tune()
	if first && (want.Start == "always" || len(a.adopt) > 0) && !a.held {
		a.on = true
	}
	if !first && want.Start == "always" && !a.held && a.view.state != Sleeping {
		a.on = true
	}
}

// tune lets an instance that can stay follow what may change under it.
func (a *app) tune() {
	i := a.cur
	if i == nil || i.key != runKey(a.want) {
		return
	}
	was := i.spec.Health
	i.spec = a.want
	if i.phase == serving && !reflect.DeepEqual(was, a.want.Health) {
		i.stopHealth()
		a.sick = ""
		a.check(i)
		a.tellPools()
	}
}

// start is asked for by a person.
func (a *app) start() {
	if a.closing {
		return
	}
	a.clear()
	a.held, a.on = false, true
	a.keepRecord()
}

// stop is asked for by a person.
func (a *app) stop() {
	a.clear()
	a.held, a.on, a.redo, a.anew = true, false, false, false
	a.keepRecord()
}

// restart is asked for by a person.
func (a *app) restart(anew bool) {
	a.start()
	a.redo = a.cur != nil || a.next != nil
	a.anew = a.anew || anew
}

// clear forgets what kept the app from being started.
func (a *app) clear() {
	a.exits, a.delay, a.pause, a.stuck, a.why, a.busy, a.late, a.refused = nil, 0, time.Time{}, "", "", 0, false, ""
}

// refuse keeps the instance that serves, since the one of the new entry does not.
func (a *app) refuse(i *instance, err error) {
	if a.cur != nil {
		a.lease = a.cur.lease
	}
	a.refused, a.why = i.key, "the new entry does not come up, and the one before goes on: "+err.Error()
	a.s.opt.Log.Warn("app keeps its old entry", "app", a.name, "err", err)
	a.s.opt.Events("app.refused", a.name, a.why)
}

// unstarted is an instance that could not be started.
func (a *app) unstarted(i *instance, err error, beside bool) {
	var port *run.PortError
	var preflight *PreflightError
	var away *run.AwayError
	a.dark = false
	switch {
	case errors.As(err, &away):
		a.dark, a.why, a.pause = true, away.Text, time.Now().Add(darkPause)
	case beside && errors.As(err, &port) && i.spec.OnPortBusy == "next" && a.busy < busyPorts:
		a.busy++ // another one is tried at once
	case beside && errors.As(err, &port) && i.spec.OnPortBusy == "take_over" && a.s.opt.Evict != nil:
		a.evict(port, a.taken(port), func(reason string) { a.refuse(i, errors.New(reason)) })
	case beside:
		a.refuse(i, err)
	case errors.As(err, &port):
		a.portTaken(port)
	case errors.As(err, &preflight):
		a.fail(err.Error())
	default:
		a.crashed(&Exit{At: time.Now(), Text: "not started: " + err.Error()}, nil)
	}
}

// darkPause is how long nothing is started where nobody could be asked to.
const darkPause = 2 * time.Second

// sighted is an instance that got out of sight, or is seen again.
func (a *app) sighted(i *instance, r run.Instance, err error) {
	if i.run != r {
		return
	}
	i.unseen = ""
	if err != nil {
		i.unseen = err.Error()
	} else if sick := a.sick; i == a.cur && sick != "" && i.phase == serving && i.spec.Health.OnUnhealthy == "restart" {
		a.sick = ""
		a.checked(i, errors.New(sick)) // which had to wait
	}
}

// ready is the end of an instance's probes.
func (a *app) probed(i *instance, err error) {
	if i.phase != probing {
		return
	}
	if err == nil {
		a.serves(i)
		return
	}
	if i == a.next {
		a.refuse(i, err)
		a.retire(i)
		return
	}
	i.blame = err.Error()
	a.retire(i)
	a.crashed(&Exit{At: time.Now(), Text: i.blame, Uptime: time.Since(i.began)}, i.tap.lastErrors())
	a.late = true
}

// waits is why an instance is not ready yet.
func (a *app) waits(i *instance, reason string) {
	if i.phase == probing {
		i.blame = reason
	}
}

// checked is the result of so many health checks that it counts; nil is well.
func (a *app) checked(i *instance, err error) {
	if i != a.cur || i.phase != serving {
		return
	}
	was := a.sick
	a.sick = ""
	if err != nil {
		a.sick = err.Error()
	}
	if (was == "") == (a.sick == "") {
		return
	}
	if a.sick != "" && i.spec.Health.OnUnhealthy == "restart" && i.unseen == "" {
		a.crashed(&Exit{At: time.Now(), Text: "unhealthy: " + a.sick, Uptime: time.Since(i.began)}, nil)
		a.sick = ""
		a.retire(i)
		return
	}
	a.tellPools()
}

// ended is an instance whose group is gone.
func (a *app) ended(i *instance, r run.Instance) {
	if i.run != r {
		return // it was left, and found again
	}
	wanted, beside := i == a.cur || i == a.next, i == a.next
	was := i.phase
	a.lose(i)
	if beside && a.cur != nil {
		a.lease = a.cur.lease
	}
	if was == serving {
		a.tellPools()
	}
	exit := i.run.Exit()
	e := &Exit{At: exit.At, Text: exit.String(), Uptime: exit.At.Sub(i.began)}
	if e.At.IsZero() {
		e.At, e.Uptime = time.Now(), time.Since(i.began)
	}
	if i.blame == "" || wanted {
		a.last = e
	}
	a.out.note("ended: " + e.Text)
	if i.lease != nil {
		a.leave(i.lease)
	}
	a.keepRecord()
	switch {
	case !wanted:
		return
	case beside:
		a.refuse(i, errors.New(e.Text+said(i.tap.lastErrors())))
		return
	}
	if p, ok := i.run.(interface{ PortTaken() *run.PortError }); ok && !i.ready {
		if taken := p.PortTaken(); taken != nil {
			a.portTaken(taken)
			return
		}
	}
	a.exited(i, exit, e)
}

// drowse puts an app to sleep that nobody uses.
func (a *app) drowse() {
	if a.want == nil || a.want.IdleStop <= 0 || a.cur == nil || a.cur.phase != serving || a.next != nil {
		return
	}
	n, last := a.s.opt.Pools.Use(a.name)
	if last.Before(a.view.since) {
		last = a.view.since
	}
	if n == 0 && len(a.waiters) == 0 && time.Since(last) >= a.want.IdleStop && !a.s.leaned(a.name) {
		a.on, a.why = false, ""
	}
}

// step does the next thing that the facts want.
func (a *app) step() {
	if !a.begins {
		return
	}
	a.now = time.Now() // one moment for all, so that no clock is missed between two looks at it
	a.recall()
	a.drowse()
	if a.want == nil || !a.on || a.redo {
		a.down()
	} else {
		a.upward()
	}
	a.show()
	a.rest()
}

// down ends what runs.
func (a *app) down() {
	if a.closing && a.s.leaned(a.name) {
		return // those that depend on it end first
	}
	for _, i := range []*instance{a.next, a.cur} {
		if i != nil {
			a.retire(i)
		}
	}
	a.redo = false
	if a.living() > 0 || len(a.adopt) > 0 || a.want != nil && a.on {
		return
	}
	if a.sock != nil {
		a.dropSocket()
		if l := a.lease; l != nil {
			a.portWork(func(ctx context.Context) { _ = reclaim(ctx, l) }) // one that is busy says so where leases are listed
		}
	}
	if a.want == nil && !a.freeing && !a.closing {
		a.freeing = true
		a.portWork(func(ctx context.Context) {
			if err := a.s.opt.Ports.Release(ctx, a.name); err != nil && ctx.Err() == nil {
				a.s.opt.Log.Warn("port of an app is not given back", "app", a.name, "err", err)
			}
			a.post(func() { a.freed = a.freeing })
		})
	}
}

// portWork changes leases besides the owner. Nothing is started meanwhile.
func (a *app) portWork(f func(ctx context.Context)) {
	a.working++
	a.aside(func(ctx context.Context) {
		f(ctx)
		a.post(func() { a.working-- })
	})
}

// upward starts what is to run.
func (a *app) upward() {
	if a.cur != nil && a.cur.key != runKey(a.want) {
		a.replace()
	}
	if a.next != nil && a.next.key != runKey(a.want) {
		a.retire(a.next)
	}
	switch {
	case a.cur != nil, len(a.adopt) > 0, a.working > 0, a.stuck != "", a.now.Before(a.pause):
	case slices.ContainsFunc(a.old, func(i *instance) bool { return !a.apart(i) }):
	case len(a.waitsFor()) > 0:
	default:
		if a.want.Socket != "fd" {
			a.dropSocket() // of the entry before
		}
		a.cur = a.launch(a.anew)
		a.anew = false
	}
}

// apart reports whether an instance that ends does not stand in the way of a new one.
func (a *app) apart(i *instance) bool {
	return i.lease != nil && a.lease != nil && i.lease != a.lease && i.spec.Socket == "tcp"
}

// replace brings an instance of the new entry: beside the one that serves where both can listen, else after it.
func (a *app) replace() {
	if a.dark && a.now.Before(a.pause) || a.refused == runKey(a.want) || a.cur.adopted && a.cur.phase == probing {
		return
	}
	beside := a.cur.phase == serving && a.want.Socket != "fd" && a.cur.spec.Socket != "fd" && (a.want.Port == 0 || a.want.Port != a.cur.at.Port)
	if !beside {
		a.retire(a.cur)
		return
	}
	if a.next == nil && a.working == 0 && len(a.waitsFor()) == 0 {
		a.next = a.launch(a.cur.lease != nil)
	}
}

// waitsFor are the apps that must be ready first. Those of them that sleep are woken.
func (a *app) waitsFor() []string {
	var out []string
	for _, name := range a.want.DependsOn {
		d := a.s.app(name)
		if d == nil {
			continue
		}
		v := d.seen()
		if v.state == Ready || v.state == Unhealthy {
			continue
		}
		if !v.on {
			d.post(d.needed)
		}
		out = append(out, name+", which is "+string(v.state))
	}
	return out
}

// needed is asked for by an app that depends on this one.
func (a *app) needed() {
	if !a.held && !a.closing && a.want != nil {
		a.on = true
	}
}

// rest sets the clock for what comes by itself.
func (a *app) rest() {
	next := time.Hour
	soon := func(d time.Duration) { next = max(min(next, d), time.Millisecond) }
	if a.on && (a.cur == nil || a.dark) && a.now.Before(a.pause) {
		soon(time.Until(a.pause))
	}
	if a.want != nil && a.want.IdleStop > 0 && a.cur != nil && a.cur.phase == serving {
		soon(max(a.want.IdleStop/8, 20*time.Millisecond))
	}
	if len(a.adopt) > 0 {
		soon(2 * time.Second)
	}
	a.timer.Reset(next)
}
