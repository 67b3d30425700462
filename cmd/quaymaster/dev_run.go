package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/leash"
	"github.com/quaymaster/quaymaster/internal/plan"
	ports "github.com/quaymaster/quaymaster/internal/ports/holder"
)

// devRun is one `quaymaster dev`.
type devRun struct {
	s      *shell
	say    *devSay
	dir    string
	base   string // of host names, without .localhost
	given  bool   // a person chose it
	source string // where the command was found
	failed string // what to do when an app ends at once
	file   string // a configuration that names the apps, or ""
	text   []byte // of file, as it is followed

	apps   []*devApp // owned by the loop of run once that begins
	hold   *devHold
	events chan devEvent
	ending bool
	result error // of the first app that failed
	probes sync.WaitGroup
}

// devApp is one program of a project.
type devApp struct {
	name    string // of a Procfile or a configuration; "" for the only one
	label   string // for people
	host    string // host name
	command []string
	shown   string // the line of a shell
	dir     string
	env     [][2]string
	after   []string  // apps that must be ready before
	entry   *plan.App // of a configuration

	// Known once a daemon has it; guarded by devHold.mu until the app is started.
	port        int
	https, http atomic.Int32 // in public; another daemon may have others
	leased      bool
	moves       int    // to other ports, since its own was taken
	taken       string // by whom
	at          string // where it listens on its port, if not at 127.0.0.1

	leash  *leash.Leash
	output *devOutput
	begun  time.Time
	ready  bool
	done   bool               // it ended well
	stop   context.CancelFunc // of the probe
	remove bool               // it is no app any more: its end is none of ours
	next   *devApp            // that takes its place
}

// A devEvent is what happened to an app.
type devEvent struct {
	app   *devApp
	ready bool
	ended bool
	hint  string
	taken string // by whom its port is
}

const (
	devProbe = 25 * time.Millisecond // between two looks whether an app listens
	devSlow  = 15 * time.Second      // after which one that does not is told of
	devEnd   = 15 * time.Second      // for everything to end
	devFile  = 500 * time.Millisecond
	devAsked = 100 * time.Millisecond
	devDrain = 2 * time.Second // for output of an app that has ended
	maxMoves = 5
)

// run holds the names, runs the apps, and returns when nothing is left of them.
func (d *devRun) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 8)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(s) { // nohup quaymaster dev &
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)
	held := make(chan struct{})
	defer func() { cancel(); <-held }()
	known := make(chan bool, 1)
	go func() { known <- resolves(ctx, d.apps[0].host) }() // beside what takes long anyway
	stopped, err := d.holdNames(ctx, signals, held)
	if err != nil || stopped {
		return err
	}
	d.events = make(chan devEvent, 64)
	for _, a := range d.apps {
		d.say.note("%s will be at %s", a.label, a.url())
	}
	d.startReady()
	d.sayMissing(ctx, <-known)
	all := d.loop(ctx, signals)
	for _, a := range d.apps {
		a.stopProbe()
	}
	if all {
		d.probes.Wait()
	}
	return d.result
}

// holdNames holds what the apps need in a daemon. A name that was made of the folder and is another project's gets a number.
func (d *devRun) holdNames(ctx context.Context, signals <-chan os.Signal, held chan struct{}) (stopped bool, err error) {
	d.hold = &devHold{note: devNote(d.dir), apps: append([]*devApp(nil), d.apps...)}
	d.hold.daemon = &devDaemon{s: d.s, note: d.say.note}
	base := d.base
	for n := 2; ; n++ {
		first := make(chan error, 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.hold.keep(ctx, func(err error) { first <- err }, d.say.note)
		}()
		select {
		case err = <-first:
		case <-signals:
			close(held)
			return true, nil
		}
		if err == nil {
			go func() { <-done; close(held) }()
			return false, nil
		}
		<-done
		var taken *devTakenError
		if !errors.As(err, &taken) || d.given || n > 9 || strings.Contains(err.Error(), " in "+d.dir+" (pid ") {
			close(held)
			if taken == nil {
				err = fmt.Errorf("cannot run %s: %w", d.dir, err)
			}
			return false, err
		}
		d.base = fmt.Sprintf("%s-%d", base, n)
		d.say.note("%s is taken (%v), so this one is %s; \"quaymaster dev NAME\" chooses a name", taken.host, taken.err, d.base)
		d.place()
	}
}

// loop takes what happens until no app is left; false if one could not be ended.
func (d *devRun) loop(ctx context.Context, signals <-chan os.Signal) bool {
	tick := time.NewTicker(devFile)
	defer tick.Stop()
	var late <-chan time.Time
	for d.running() > 0 {
		select {
		case e := <-d.events:
			if e.ended && !d.ending {
				d.asked(signals)
			}
			d.happened(ctx, e)
		case s := <-signals:
			d.signal(s)
		case <-tick.C:
			d.reread(ctx)
		case <-late:
			d.say.note("something of it cannot be ended; look at it with ps")
			return false
		}
		if d.ending && late == nil {
			t := time.NewTimer(devEnd)
			defer t.Stop()
			late = t.C
		}
	}
	return true
}

// signal ends all; a second one at once.
func (d *devRun) signal(s os.Signal) {
	switch {
	case d.ending:
		d.end(leash.Kill)
	case s == syscall.SIGINT && isTerminal(os.Stdin):
		d.end(leash.Expect)
	default:
		d.end(leash.Term)
	}
}

// asked looks whether an app has ended because the terminal told it to, which tells us too.
func (d *devRun) asked(signals <-chan os.Signal) {
	t := time.NewTimer(devAsked)
	defer t.Stop()
	select {
	case s := <-signals:
		d.signal(s)
	case <-t.C:
	}
}

// running counts the apps that run or are to be run.
func (d *devRun) running() (n int) {
	for _, a := range d.apps {
		if a.leash != nil || !d.ending && a.begun.IsZero() {
			n++
		}
	}
	return n
}

// end ends all apps.
func (d *devRun) end(o leash.Order) {
	d.ending = true
	for _, a := range d.apps {
		if a.leash != nil {
			a.leash.Stop(o)
		}
	}
}

// happened takes one event.
func (d *devRun) happened(ctx context.Context, e devEvent) {
	a := e.app
	switch {
	case e.taken != "":
		a.taken = e.taken
	case e.hint != "":
		d.say.note("%s", e.hint)
	case e.ready && a.leash != nil && !d.ending:
		a.ready = true
		d.say.ready(a, time.Since(a.begun))
		d.startReady()
	case e.ended:
		d.ended(ctx, a)
	}
}

// ended takes the end of an app.
func (d *devRun) ended(ctx context.Context, a *devApp) {
	exit, up, keeper, was := a.leash.Exit(), time.Since(a.begun), a.leash.Keeper, a.ready
	a.leash, a.ready = nil, false
	a.stopProbe()
	if a.remove {
		d.replace(ctx, a)
		return
	}
	if d.ending {
		return
	}
	if exit.OK() {
		a.done = true
		d.say.note("%s has ended after %s", a.label, devSpan(up))
		d.startReady()
		return
	}
	if !was && d.moved(ctx, a, keeper) {
		return
	}
	text := fmt.Sprintf("%s has failed after %s: %v", a.label, devSpan(up), exit)
	switch {
	case exit.Code == 127:
		text += "; the shell did not find a program"
		if d.failed != "" {
			text += ": " + d.failed
		}
	case d.failed != "" && up < devSlow:
		text += "; " + d.failed
	default:
		text += "; what it said stands above"
	}
	d.result = &coded{exitFailed, errors.New(d.say.plain(text))}
	d.end(leash.Term)
}

// moved starts an app again on another port, if it has ended since somebody else has its own.
func (d *devRun) moved(ctx context.Context, a *devApp, keeper int) bool {
	if _, who := portOwner(a.port, keeper); who != "" {
		a.taken = who
	}
	if a.taken == "" || !a.leased || a.moves == maxMoves {
		return false
	}
	was := a.port
	if err := d.hold.move(ctx, a); err != nil {
		return false
	}
	d.say.note("port %d is taken (%s), so %s is started again on port %d", was, a.taken, a.label, a.port)
	a.moves++
	a.taken, a.begun = "", time.Time{}
	d.startReady()
	return true
}

// startReady starts the apps whose turn it is.
func (d *devRun) startReady() {
	for _, a := range d.apps {
		if d.ending || !a.begun.IsZero() || !d.met(a) {
			continue
		}
		if err := d.start(a); err != nil {
			a.begun = time.Now()
			d.result = &coded{exitFailed, fmt.Errorf("cannot start %s: %w", a.label, err)}
			d.end(leash.Term)
		}
	}
}

// met reports whether the apps are ready that one waits for.
func (d *devRun) met(a *devApp) bool {
	for _, name := range a.after {
		for _, b := range d.apps {
			if b.name == name && !b.ready && !b.done {
				return false
			}
		}
	}
	return true
}

// start starts an app and looks after it.
func (d *devRun) start(a *devApp) error {
	argv := a.argv()
	path, err := lookIn(a.dir, argv[0])
	if err != nil {
		return err
	}
	spec := &leash.Spec{
		Launcher: launcherPath(), Args: []string{"leash"}, Path: path, Argv: argv, Dir: a.dir,
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
	}
	several := len(d.apps) > 1 || d.file != ""
	if several {
		if a.output, err = d.say.open(a.label); err != nil {
			return err
		}
		spec.In, spec.Out, spec.Err = nil, a.output.out, a.output.err
	} else if !stdinWorks() {
		spec.In = nil
	}
	spec.Env = a.environ(several && d.say.color)
	d.say.command(a, argv, d.source)
	a.begun = time.Now()
	l, err := leash.Start(spec)
	if a.output != nil {
		a.output.started()
	}
	if err != nil {
		return err
	}
	a.leash = l
	probe, stop := context.WithCancel(context.Background())
	a.stop = stop
	port := a.port
	d.probes.Add(2)
	go func() {
		defer d.probes.Done()
		<-l.Done()
		if a.output != nil {
			a.output.wait()
		}
		d.events <- devEvent{app: a, ended: true}
	}()
	go func() {
		defer d.probes.Done()
		d.probe(probe, a, l, port)
	}()
	return nil
}

func (a *devApp) stopProbe() {
	if a.stop != nil {
		a.stop()
		a.stop = nil
	}
}

// lookIn finds a program as the app's own folder and PATH have it.
func lookIn(dir, name string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not in PATH", name)
	}
	return filepath.Abs(path)
}

// probe waits until an app listens on its port, and tells of one that takes long.
func (d *devRun) probe(ctx context.Context, a *devApp, l *leash.Leash, port int) {
	begun, told, slow := time.Now(), "", false
	send := func(e devEvent) {
		select {
		case d.events <- e:
		case <-ctx.Done():
		}
	}
	for devPause(ctx, devProbe) == nil {
		for _, host := range []string{"127.0.0.1", "::1"} {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), time.Second)
			if err != nil {
				continue
			}
			_ = c.Close()
			mine, who := portOwner(port, l.Keeper)
			if who != "" && who != told {
				told = who
				send(devEvent{app: a, taken: who})
			}
			if !mine {
				break
			}
			if host != "127.0.0.1" {
				if err := d.hold.aim(ctx, a, host); err != nil {
					send(devEvent{app: a, hint: fmt.Sprintf("%s listens on %s, and its route could not follow: %v", a.label, host, err)})
				}
			}
			send(devEvent{app: a, ready: true})
			return
		}
		if !slow && time.Since(begun) > devSlow {
			slow = true
			send(devEvent{app: a, hint: a.slow(port, l.Keeper)})
		}
	}
}

// portOwner says whether what listens on a port descends from the keeper, or else who it is. What cannot be looked up counts
// as ours; nobody at all does not.
func portOwner(port, keeper int) (mine bool, who string) {
	found, err := ports.Everyone(func(at netip.AddrPort) bool { return int(at.Port()) == port })
	if err != nil {
		return true, ""
	}
	for _, f := range found {
		if f.Pid == 0 && f.UID == os.Geteuid() || f.Pid > 0 && descends(f.Pid, keeper) {
			return true, ""
		}
		who = f.String()
	}
	return false, who
}

// descends reports whether a process is below another.
func descends(pid, from int) bool {
	for range 64 {
		if pid == from || pid <= 1 {
			break
		}
		pid = ports.Parent(pid)
	}
	return pid == from
}

// slow says what is with an app that does not listen on its port.
func (a *devApp) slow(port, keeper int) string {
	if other := listensOn(keeper, port); len(other) > 0 {
		return fmt.Sprintf("%s listens on %s, not on %d: add --port '${PORT}' to its command, or read PORT in it", a.label, strings.Join(other, " and "), port)
	}
	if a.name != "" && a.name != "web" {
		return fmt.Sprintf("%s does not listen on port %d; nothing is wrong if it serves nobody", a.label, port)
	}
	return fmt.Sprintf("%s does not listen on port %d yet; it is told by PORT, and can be told by '${PORT}' in its command", a.label, port)
}

// listensOn are the ports that a process and those below it listen on.
func listensOn(pid, not int) (out []string) {
	found, err := ports.Everyone(func(netip.AddrPort) bool { return true })
	if err != nil {
		return nil
	}
	seen := map[uint16]bool{}
	for _, f := range found {
		if f.Pid > 0 && descends(f.Pid, pid) && int(f.Addr.Port()) != not && !seen[f.Addr.Port()] && len(out) < 4 {
			seen[f.Addr.Port()] = true
			out = append(out, strconv.Itoa(int(f.Addr.Port())))
		}
	}
	return out
}
