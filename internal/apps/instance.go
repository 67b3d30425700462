package apps

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// phase is how far an instance is.
type phase uint8

const (
	launching phase = iota // on its way
	probing                // it runs, and does not serve yet
	serving                // pools know it
	draining               // pools have forgotten it, and it finishes what it has
	stopping               // it was told to end
)

// instance is one run of an app. The owner of the app owns it.
type instance struct {
	spec     *plan.App
	key      string // of spec: what makes another instance necessary
	phase    phase
	another  bool // on another port than the one before
	unwanted bool // given up while it was launched
	lease    Lease
	at       plan.Addr // where it is reached
	run      run.Instance
	tap      *tap
	began    time.Time
	ready    bool // it was, once
	adopted  bool
	left     atomic.Bool        // another process may have it
	blame    string             // why it is ended although it runs, for those it is a fault of
	unseen   string             // why nobody can be asked about it; it goes on all the same
	cancel   context.CancelFunc // of launching and probing
	health   context.CancelFunc
}

// socket is a listening socket that instances of an app get, one after the other.
type socket struct {
	fd int
	at plan.Addr
}

// loopback is where apps listen.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// A PreflightError says what keeps an app from being started.
type PreflightError struct {
	App  string
	Errs []error
}

func (e *PreflightError) Error() string {
	list := make([]string, len(e.Errs))
	for i, err := range e.Errs {
		list[i] = err.Error()
	}
	return "app " + e.App + " cannot be started: " + strings.Join(list, "; ")
}

// launched is what became of a launch.
type launched struct {
	run   run.Instance
	lease Lease
	at    plan.Addr
	sock  *socket // that was opened for it
	// listens: a socket of ours has the port
	listens bool
	held    func() error // lets go of a port of a number
}

// launch begins an instance.
func (a *app) launch(another bool) *instance {
	ctx, cancel := context.WithCancel(a.s.life)
	spec, sock := a.want, a.sock
	i := &instance{spec: spec, key: runKey(spec), another: another, cancel: cancel, tap: a.out.tap(spec), began: time.Now()}
	a.aside(func(life context.Context) {
		l := &launched{}
		err := a.begin(ctx, i.tap, spec, another, sock, l)
		if l.held != nil {
			_ = l.held()
		}
		if err != nil && l.lease != nil && !l.listens {
			_ = reclaim(life, l.lease) // one that is busy says so where leases are listed
		}
		a.post(func() { a.begun(i, l, err) })
	})
	return i
}

// begin starts an instance, in a goroutine of its own. It changes nothing but l.
func (a *app) begin(ctx context.Context, out *tap, spec *plan.App, another bool, sock *socket, l *launched) error {
	r := a.s.opt.Runner(spec)
	if r == nil {
		return &PreflightError{a.name, []error{errors.New("nothing on this machine runs apps of its kind")}}
	}
	if errs := r.Check(ctx, spec); len(errs) > 0 {
		var away *run.AwayError
		if errors.As(errors.Join(errs...), &away) {
			return away
		}
		return &PreflightError{a.name, errs}
	}
	if c, ok := r.(run.Clearer); ok {
		if err := c.Clear(ctx, spec); err != nil {
			return err
		}
	}
	st := &run.Start{App: spec, Host: loopback.String(), URL: a.s.url(a.name), Listener: -1, Output: out, Handoff: func() error { return nil }}
	if err := a.place(ctx, spec, another, st, l); err != nil {
		return err
	}
	if err := out.expect(a.fill(spec.Ready.Log, l.at)); err != nil {
		return err
	}
	if spec.Socket == "fd" {
		if sock == nil || sock.at != l.at {
			var err error
			if sock, err = a.listen(ctx, st, l.at); err != nil {
				return err
			}
			l.sock = sock
		}
		l.listens = true
		if err := unix.SetNonblock(sock.fd, false); err != nil { // the app before may have made it non-blocking
			return err
		}
		st.Listener, st.Handoff = sock.fd, func() error { return nil }
	}
	var err error
	l.run, err = r.Start(ctx, st)
	return err
}

// place finds where an instance is to listen.
func (a *app) place(ctx context.Context, spec *plan.App, another bool, st *run.Start, l *launched) error {
	switch {
	case spec.Socket == "unix": // the runner makes the folder, for the app's user
		path, err := a.socketPath()
		st.Path, l.at = path, plan.Addr{Network: plan.Unix, Path: path}
		return err
	case spec.Port != 0:
		st.Port = spec.Port
		l.at = plan.TCPAddr(loopback, st.Port)
		if spec.Socket == "fd" {
			return nil // opened by us in any case
		}
		return a.hold(ctx, st, l)
	default:
		lease, err := a.s.opt.Ports.Lease(ctx, a.name, another)
		if err != nil {
			return err
		}
		l.lease, st.Port, st.Handoff = lease, lease.Port(), lease.Handoff
	}
	l.at = plan.TCPAddr(loopback, st.Port)
	return nil
}

// maxSocket is how long the path of a socket may be.
const maxSocket = len(unix.RawSockaddrUnix{}.Path) - 1

// socketPath is a path of its own for each instance. The name of the app is cut where it would be too long.
func (a *app) socketPath() (string, error) {
	var salt [4]byte
	_, _ = rand.Read(salt[:]) // never fails
	end := hex.EncodeToString(salt[:]) + "/socket"
	room := maxSocket - len(filepath.Clean(a.s.opt.Sockets)) - len("/-") - len(end)
	if room < 1 {
		return "", &PreflightError{a.name, []error{fmt.Errorf("the path of its socket would be longer than %d bytes; write a shorter admin.socket, beside which it is", maxSocket)}}
	}
	return filepath.Join(a.s.opt.Sockets, a.name[:min(len(a.name), room)]+"-"+end), nil
}

// hold keeps a port of a number bound until the app is about to bind it, as a lease does: what answers there afterwards is the
// app, and no stranger who was there before.
func (a *app) hold(ctx context.Context, st *run.Start, l *launched) error {
	k, err := a.listen(ctx, st, l.at)
	var taken *run.PortError
	switch {
	case errors.As(err, &taken), ctx.Err() != nil:
		return err
	case err != nil: // the app may have rights that we have not
		return nil //nolint:nilerr // what keeps it from the port it says itself
	}
	l.held = sync.OnceValue(func() error { closeFD(k.fd); return nil })
	st.Handoff = l.held
	return nil
}

// listenWithin is how long a port that was ours may still be busy: a program that is being started has a copy of every
// descriptor until it is what it is to be.
const listenWithin = 500 * time.Millisecond

// listen opens the socket of an app.
func (a *app) listen(ctx context.Context, st *run.Start, at plan.Addr) (*socket, error) {
	if err := st.Handoff(); err != nil {
		return nil, err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(listenWithin); ; {
		fd, err := a.s.opt.Listen(at)
		if err == nil {
			return &socket{fd: fd, at: at}, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, err
		}
		if time.Now().After(until) {
			return nil, &run.PortError{Port: at.Port, Text: err.Error()}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// begun is called when an instance runs, or does not.
func (a *app) begun(i *instance, l *launched, err error) {
	i.run, i.lease, i.at = l.run, l.lease, l.at
	if l.sock != nil {
		a.dropSocket()
		a.sock = l.sock
	}
	if i.lease != nil && i.lease != a.lease && (err == nil || !i.another) {
		before := a.lease
		if a.lease = i.lease; before != nil {
			a.leave(before)
		}
	}
	if err != nil {
		beside := i == a.next
		a.lose(i)
		if i.lease != nil {
			a.leave(i.lease)
		}
		if !i.unwanted {
			a.unstarted(i, err, beside)
		}
		return
	}
	i.began = i.run.Record().Started
	a.keepRecord()
	a.watch(i)
	if i.unwanted {
		a.halt(i)
		return
	}
	a.probe(i)
}

// who is an instance that runs, for the log.
func (i *instance) who() slog.Attr {
	r := i.run.Record()
	if r.Container != "" {
		return slog.String("container", r.Container[:min(len(r.Container), 12)])
	}
	return slog.Int("pid", r.PID)
}

// watch waits for the end of an instance.
func (a *app) watch(i *instance) {
	r, lease := i.run, i.lease
	if a.sock != nil && a.sock.at == i.at {
		lease = nil // the socket is ours, and goes on listening
	}
	if s, ok := r.(run.Sighted); ok {
		s.Sight(func(err error) { a.post(func() { a.sighted(i, r, err) }) })
	}
	a.aside(func(ctx context.Context) {
		select {
		case <-r.Done():
		case <-ctx.Done():
			return
		}
		if lease != nil {
			if err := reclaim(ctx, lease); err != nil && ctx.Err() == nil {
				a.s.opt.Log.Warn("port of an app that has ended was taken", "app", a.name, "err", err)
			}
		}
		a.post(func() { a.ended(i, r) })
	})
}

// lose takes an instance out of the facts.
func (a *app) lose(i *instance) {
	i.stopProbes()
	if a.cur == i {
		a.cur = nil
	}
	if a.next == i {
		a.next = nil
	}
	for n, o := range a.old {
		if o == i {
			a.old = append(a.old[:n], a.old[n+1:]...)
			break
		}
	}
}

func (i *instance) stopProbes() {
	if i.cancel != nil {
		i.cancel()
	}
	i.stopHealth()
}

func (i *instance) stopHealth() {
	if i.health != nil {
		i.health()
		i.health = nil
	}
}

// retire ends an instance: pools hear first, then it is told to end when nobody uses it any more or the grace is over.
func (a *app) retire(i *instance) {
	if a.cur == i {
		a.cur = nil
	}
	if a.next == i {
		a.next = nil
	}
	a.old = append(a.old, i)
	i.stopProbes()
	switch i.phase {
	case launching:
		i.unwanted = true
	case probing:
		a.halt(i)
	case serving:
		i.phase = draining
		a.tellPools()
		if a.closing {
			a.halt(i)
			return
		}
		at, grace := i.at, i.spec.Stop.Timeout
		a.aside(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, grace)
			defer cancel()
			busy := a.s.opt.Pools.Unused(ctx, a.name, at) // over the grace it is ended all the same
			a.post(func() { a.drained(i, busy) })
		})
	}
}

// drained is called when nobody uses an instance any more, or the grace is over.
func (a *app) drained(i *instance, busy error) {
	if i.phase != draining {
		return
	}
	if busy != nil {
		a.s.opt.Log.Info("app is ended with requests in progress", "app", a.name, "grace", i.spec.Stop.Timeout)
	}
	a.halt(i)
}

// halt tells an instance to end.
func (a *app) halt(i *instance) {
	if i.phase == stopping {
		return
	}
	i.phase = stopping
	how, r := i.spec.Stop, i.run
	a.aside(func(ctx context.Context) {
		if err := r.Stop(ctx, how); err != nil && ctx.Err() == nil {
			a.s.opt.Log.Error("app cannot be stopped", "app", a.name, "err", err)
		}
	})
}

// leave lets go of a lease that no instance has any more: the newest stays the app's.
func (a *app) leave(l Lease) {
	if l == a.lease && a.want != nil && a.want.Port == 0 {
		return
	}
	for _, i := range append([]*instance{a.cur, a.next}, a.old...) {
		if i != nil && i.lease == l {
			return
		}
	}
	if l == a.lease {
		a.lease = nil
	}
	a.aside(func(ctx context.Context) {
		if err := l.Release(ctx); err != nil && ctx.Err() == nil {
			a.s.opt.Log.Warn("port of an app is not given back", "app", a.name, "port", l.Port(), "err", err)
		}
	})
}

// serves is an instance that is ready.
func (a *app) serves(i *instance) {
	i.phase, i.ready = serving, true
	if i == a.next {
		before := a.cur
		a.cur, a.next = i, nil
		if before != nil {
			a.retire(before)
		}
	}
	a.busy, a.sick, a.late, a.dark, a.why, a.stuck, i.blame = 0, "", false, false, "", "", ""
	a.tellPools()
	a.keepRecord()
	a.check(i)
}

// tellPools says where the app is reached.
func (a *app) tellPools() {
	var at []plan.Addr
	if i := a.cur; i != nil && i.phase == serving && (a.sick == "" || i.spec.Health == nil || i.spec.Health.OnUnhealthy == "nothing") {
		at = append(at, i.at)
	}
	a.s.opt.Pools.SetMembers(a.name, at)
}

func (a *app) dropSocket() {
	if a.sock != nil {
		closeFD(a.sock.fd)
		a.sock = nil
	}
}
