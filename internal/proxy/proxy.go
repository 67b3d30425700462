// Package proxy acts one HTTP exchange out: forward, redirect, respond, files, block, by name, internal.
//
// It promises that every exchange gets exactly one answer, that what goes to a target says truthfully who asked, and
// that nothing a client sends is sent twice. It never chooses a route, never opens a port, never writes to the disk,
// and tells a client nothing of what lies behind.
package proxy

import (
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/relay"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// Options are what routes share. They may not be copied once a route was made of them.
type Options struct {
	Log      *slog.Logger
	Registry prometheus.Registerer // nil: metrics are kept and shown nowhere
	Pools    *pools.Pools
	Guard    *guard.Guard
	Settings func() *plan.Settings          // those in force, asked anew by each exchange; nil: nobody is trusted
	Internal func(name string) http.Handler // our own handlers; nil, or a nil handler: 404

	// App tells of an app that a request was meant for, with that many of its last lines; nil: nothing is known.
	App func(name string, lines int) App

	once    sync.Once
	metrics *metrics
	date    date
}

// App is what is known of an app.
type App struct {
	State, Reason string
	Sleeps        bool     // requests start it
	Lines         []string // the last ones of its output
}

// A Route is the living side of one plan.Route. Whoever serves an exchange holds its Life meanwhile; when the last
// holder is gone its upstream is given back and its series are deleted.
type Route struct {
	Life plan.Life
	Plan *plan.Route
	Pool *pools.Pool // nil where the action has no upstream
	Gate *guard.Gate

	o   *Options
	act actor
	*series
}

// An actor acts one kind of action out. It gives exactly one answer.
type actor interface{ serve(t *turn) }

// NewRoute makes the living side of r. pools has been prepared for the plan that r belongs to.
func NewRoute(r *plan.Route, o *Options) (*Route, error) {
	o.once.Do(func() { o.metrics = newMetrics(o.Registry) })
	live := &Route{Plan: r, o: o}
	if up := upstreamOf(r); up != "" {
		live.Pool = o.Pools.Pool(up)
		if live.Pool == nil || !live.Pool.Hold() {
			return nil, &missingUpstream{r.Name, up}
		}
	}
	live.act = live.actor()
	live.Gate = guard.NewGate(r, o.Guard)
	live.series = o.metrics.hold(r.Name)
	live.Life.Start(live.end)
	return live, nil
}

// end is called by the last holder's Drop.
func (r *Route) end() {
	if r.Pool != nil {
		r.Pool.Drop()
	}
	r.o.metrics.drop(r.Plan.Name)
}

type missingUpstream struct{ route, upstream string }

func (e *missingUpstream) Error() string {
	return "route " + e.route + ": upstream " + e.upstream + " is not in the plan: name one that is, or write its targets into the route"
}

func upstreamOf(r *plan.Route) string {
	switch a := r.Action.(type) {
	case plan.Forward:
		return a.Upstream
	case plan.Tunnel:
		return a.Upstream
	}
	return ""
}

func (r *Route) actor() actor {
	switch a := r.Plan.Action.(type) {
	case plan.Forward:
		return newForward(&a)
	case plan.ByName:
		return newByName()
	case plan.Redirect:
		return newRedirect(&a)
	case plan.Respond:
		return newRespond(&a)
	case plan.Files:
		return newFiles(&a)
	case plan.Internal:
		return &internal{name: a.Name}
	case plan.Block:
		return &block{status: a.Status}
	}
	return &block{status: http.StatusNotFound} // a tunnel takes no requests
}

// Current reports whether r still stands on the pool that the plan prepared last has for it.
func (r *Route) Current() bool {
	up := upstreamOf(r.Plan)
	return up == "" || r.o.Pools.Pool(up) == r.Pool
}

// BytesIn and BytesOut count body and tunnel bytes from and to clients as they move.
func (r *Route) BytesIn() *atomic.Int64 { return &r.in }

// BytesOut is the other direction.
func (r *Route) BytesOut() *atomic.Int64 { return &r.out }

func (o *Options) logger() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

// Serve acts one exchange out and fills in ex.Log. The caller holds r.Life.
func (r *Route) Serve(ex *wire.Exchange) {
	t, _ := turns.Get().(*turn)
	t.begin(r, ex)
	reason, after, ok := r.Gate.Enter(t.client, t.rateKey())
	if ok {
		if t.admit() {
			r.act.serve(t)
		}
		r.Gate.Leave()
	} else {
		t.turnAway(reason, after)
	}
	r.count.add(ex.Log.Status, ex.Req.Method, 0)
	if ex.Log.Status != http.StatusSwitchingProtocols {
		r.took.observe(since(ex.Start))
	}
	t.end()
	turns.Put(t)
}

var turns = sync.Pool{New: func() any { return newTurn() }}

// A turn is one exchange being acted out. It belongs to the goroutine of the exchange; what others touch says so.
type turn struct {
	r          *Route
	ex         *wire.Exchange
	client     netip.Addr // who asked, believing trusted proxies
	clientText []byte
	trusted    bool // our peer may speak for others

	stream  pools.Stream
	ask     pools.Ask
	out, in wire.Head // to the target, from the target
	up      upload
	down    relay.Flow
	seen    relay.Activity // of both directions
	limit   limited
	watch   watch
	sticky  string    // name of the cookie, "" = none
	sent    time.Time // when the whole request had gone out, as far as response_header cares
}

func newTurn() *turn {
	t := &turn{}
	t.up.done = make(chan struct{}, 1)
	t.watch.init()
	return t
}

func (t *turn) begin(r *Route, ex *wire.Exchange) {
	t.r, t.ex = r, ex
	t.client, t.clientText = ex.Conn.Client.Addr(), ex.Conn.ClientText
	t.trusted = false
	if r.o.Settings != nil {
		if list := r.o.Settings().TrustedProxies; len(list) > 0 && contains(list, t.client) {
			t.trusted = true
			if c := ForwardedClient(&ex.Req, t.client, list); c != t.client {
				t.client = c
				n := len(ex.Scratch)
				ex.Scratch = c.AppendTo(ex.Scratch)
				t.clientText = ex.Scratch[n:len(ex.Scratch):len(ex.Scratch)]
			}
		}
	}
	ex.Log.Route = r.Plan.Name
	identify(ex, t.trusted)
}

// end lets go of everything that belongs to the exchange.
func (t *turn) end() {
	if t.ex.Body == wire.Body(&t.limit) {
		t.ex.Body = t.limit.Body
	}
	t.limit = limited{}
	t.r, t.ex, t.clientText = nil, nil, nil
	clear(t.out.Fields[:cap(t.out.Fields)])
	t.out.Reset()
	t.in.Reset()
}

// rateKey is what a limit goes by where it does not go by the address.
func (t *turn) rateKey() []byte {
	name := t.r.Gate.Field()
	if name == "" {
		return nil
	}
	v, _ := t.ex.Req.Field(name)
	return v
}

// admit applies max_body: at once where the length is announced, else while the body is read.
func (t *turn) admit() bool {
	most := t.r.Plan.Security.MaxBody
	if most <= 0 {
		return true
	}
	switch n := t.ex.Body.Len(); {
	case n > most:
		t.refuse(http.StatusRequestEntityTooLarge, "body_too_large", "", 0)
		return false
	case n < 0:
		t.limit = limited{Body: t.ex.Body, left: most}
		t.ex.Body = &t.limit
	}
	return true
}

// turnAway answers an exchange that the route's gate did not let in.
func (t *turn) turnAway(reason guard.Reason, after time.Duration) {
	status := http.StatusServiceUnavailable
	switch reason {
	case guard.Denied:
		status = http.StatusForbidden
	case guard.Rate:
		status = http.StatusTooManyRequests
	}
	seconds := 0
	if status != http.StatusForbidden {
		seconds = max(1, int((after+time.Second-1)/time.Second))
	}
	t.refuse(status, string(reason), "", seconds)
}

// refuse is Refuse for an exchange of a route, whose bytes count.
func (t *turn) refuse(status int, reason, detail string, retryAfter int) {
	Refuse(t.ex, status, reason, detail, retryAfter)
	t.r.out.Add(t.ex.Log.Out)
}

func since(start time.Time) time.Duration {
	if start.IsZero() {
		return 0
	}
	return time.Since(start)
}
