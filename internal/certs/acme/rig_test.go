package acme

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/state"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// A rig is an Issuer that runs.
type rig struct {
	*Issuer
	t      testing.TB
	dir    string
	state  *state.Dir
	log    *lines
	stop   func()
	mu     sync.Mutex
	events []string
}

// lines keeps what is logged.
type lines struct {
	t    testing.TB
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// run starts an Issuer over a state folder; what set and names say is its wish. show hears
// of it before it begins.
func run(t testing.TB, show func(*Issuer), dir string, o Options, set *plan.ACME, names ...*plan.Certificate) *rig {
	t.Helper()
	r := &rig{t: t, dir: dir, log: &lines{t: t}}
	d, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r.state = d
	o.State = d
	o.Log = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.Events = func(kind, object, message string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, kind+" "+object)
	}
	r.Issuer = New(o)
	if show != nil {
		show(r.Issuer)
	}
	r.follow(set, names...)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		<-over
		if n := r.answers.Len(); n != 0 {
			t.Errorf("%d tokens or names are left behind at the stop", n)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *rig) follow(set *plan.ACME, names ...*plan.Certificate) {
	r.t.Helper()
	if err := r.Load(set, names); err != nil {
		r.t.Fatal(err)
	}
	r.Follow(set, names)
}

// seenEvents are the events so far.
func (r *rig) seenEvents() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// until waits for what must come true.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	eventually(r.t, what, ok)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// one is the State of a name.
func (r *rig) one(name string) State {
	for _, s := range r.Status() {
		if s.Name == name {
			return s
		}
	}
	return State{}
}

// auto are certificates of the plan.
func auto(names ...string) []*plan.Certificate {
	var out []*plan.Certificate
	for _, n := range names {
		out = append(out, &plan.Certificate{
			Names: []string{n}, Source: plan.CertSource{Kind: plan.CertAuto},
			OnDemand: strings.HasPrefix(n, "?"), Users: []string{"route " + n},
		})
		if c := out[len(out)-1]; c.OnDemand {
			c.Names[0] = n[1:]
		}
	}
	return out
}

// A clock goes as the test says.
type clock struct {
	mu    sync.Mutex
	off   time.Duration
	waits map[chan time.Time]time.Time
}

func newClock() *clock { return &clock{waits: map[chan time.Time]time.Time{}} }

// Now is the system's time and what was added.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Round(0).Add(c.off)
}

// After wakes when the clock is set, or when so much time is over.
func (c *clock) After(d time.Duration) (<-chan time.Time, func() bool) {
	ch := make(chan time.Time, 1)
	t := time.AfterFunc(d, func() {
		select {
		case ch <- time.Now():
		default:
		}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits[ch] = time.Now()
	return ch, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waits, ch)
		return t.Stop()
	}
}

// set moves the clock, and wakes whoever waits.
func (c *clock) set(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += by
	for ch := range c.waits {
		select {
		case ch <- time.Now():
		default:
		}
	}
}
