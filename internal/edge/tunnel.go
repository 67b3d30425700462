package edge

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/proxy"
	"github.com/quaymaster/quaymaster/internal/relay"
	"github.com/quaymaster/quaymaster/internal/route"
	"github.com/quaymaster/quaymaster/internal/sniff"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// tunnel relays the connection to a target of the rule's route. head is what the client has said already; hello is
// its ClientHello, nil when it speaks no TLS. It reports false, having done nothing, when the route has ended since s.
func (c *conn) tunnel(s *snapshot, rule *route.Rule, head []byte, hello *sniff.Hello) bool {
	live := s.routes[rule.Index]
	if !live.Life.Hold() {
		return false
	}
	defer live.Life.Drop()
	if hello != nil {
		if !c.e.hellos.add(hello.Random) {
			c.alert(sniff.InternalError, guard.Loop, "the same ClientHello is already on its way through us: the target leads back here")
			return true
		}
		defer c.e.hellos.remove(hello.Random)
	}
	why, _, ok := live.Gate.Enter(c.info.Client.Addr(), nil)
	if !ok {
		c.turnAway(hello, sniff.AccessDenied, why, rule.Route.Name)
		return true
	}
	defer live.Gate.Leave()
	c.route.Store(live)
	defer c.route.Store(nil)
	c.e.overtaken(c, live, s)

	log := wire.Record{Route: rule.Route.Name}
	start := time.Now()
	target, done, err := c.dial(live, hello, &log)
	log.Dial = time.Since(start)
	if err != nil {
		c.undialled(hello, err)
		log.Reason, log.Detail = reasonOf(err), err.Error()
	} else {
		c.relay(live, target, head, &log)
		done(true)
		_ = target.Close()
	}
	name := ""
	if hello != nil {
		name = hello.Name
	}
	c.e.access.write(&s.plan.Settings.AccessLog, &entry{
		start: start, took: time.Since(start), client: c.info.Client.Addr(), kind: "tunnel", host: []byte(name), Record: &log,
	})
	return true
}

// dial opens the target's connection: of the route's upstream, or of the name the client asked for. done gives the
// member back and says whether it did well.
func (c *conn) dial(live *proxy.Route, hello *sniff.Hello, log *wire.Record) (net.Conn, func(bool), error) {
	ctx, stop := context.WithTimeout(c.e.dialling, live.Plan.Timeouts.Connect)
	defer stop()
	defer c.watchDial(stop)()
	switch a := live.Plan.Action.(type) {
	case plan.Tunnel:
		ask := pools.Ask{Client: c.info.Client, Local: c.info.Local, SendProxy: a.SendProxy}
		conn, m, err := live.Pool.Dial(ctx, &ask)
		if err != nil {
			return nil, nil, err
		}
		c.member.Store(m)
		c.e.overtaken(c, live, nil)
		log.Upstream, log.Target = a.Upstream, m.Target()
		return conn, m.Release, nil
	case plan.ByName:
		if hello == nil || hello.Name == "" {
			return nil, nil, &pools.Error{Kind: "not_allowed", Err: errors.New("the client names no host")}
		}
		conn, addr, err := c.e.o.Pools.DialName(ctx, hello.Name, 443)
		log.Target = addr
		return conn, func(bool) {}, err
	}
	return nil, nil, errors.New("this route takes requests, not connections")
}

// watchDial abandons a dial that lasts when the client leaves meanwhile. The returned func ends the watch.
func (c *conn) watchDial(abandon func()) (done func()) {
	var mu sync.Mutex // guards stop and over
	var stop func()
	over := false
	t := time.AfterFunc(dialPatience, func() {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			stop = relay.Gone(c.c, abandon)
		}
	})
	return func() {
		t.Stop()
		mu.Lock()
		over = true
		mu.Unlock()
		if stop != nil {
			stop()
		}
	}
}

// dialPatience is how long a dial goes on before anybody looks whether the client is still there.
const dialPatience = 250 * time.Millisecond

// longSilence is how long a tunnel may be silent before its target must be asked whether it is still there. Below it the
// idle clock finds out, and four system calls are saved.
const longSilence = 10 * time.Minute

// relay moves bytes both ways until both sides are done.
func (c *conn) relay(live *proxy.Route, target net.Conn, head []byte, log *wire.Record) {
	clocks := &live.Plan.Timeouts
	t := &relay.Tunnel{
		Client: relay.End{Conn: c.c, Head: head}, Target: relay.End{Conn: target}, Idle: clocks.Idle,
		Stall: clocks.BodyStall, Up: live.BytesIn(), Down: live.BytesOut(), Sent: c.forget,
	}
	if clocks.Idle == 0 || clocks.Idle > longSilence {
		if tc, ok := target.(*net.TCPConn); ok {
			_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true}) // a failure costs only the notice of a dead peer
		}
	}
	c.info.State.Store(uint32(wire.Tunneling))
	c.running.Store(t)
	if c.info.Cut.Load() { // ended while the target was dialled
		t.Cut()
	}
	res := t.Run()
	c.running.Store(nil)
	log.In, log.Out = res.Up, res.Down
	if res.Cause != relay.EOF {
		log.Reason = res.Cause.String()
	}
}

// turnAway ends a connection whose route does not take it, with an alert where TLS is spoken.
func (c *conn) turnAway(hello *sniff.Hello, a sniff.Alert, why guard.Reason, detail string) {
	if hello != nil {
		c.alert(a, why, detail)
		return
	}
	c.reject(why, detail)
}

// undialled ends a connection whose target could not be had.
func (c *conn) undialled(hello *sniff.Hello, err error) {
	var pe *pools.Error
	if errors.As(err, &pe) {
		switch pe.Kind {
		case "not_allowed":
			c.turnAway(hello, sniff.AccessDenied, guard.NotAllowed, err.Error())
			return
		case "private_address":
			c.turnAway(hello, sniff.AccessDenied, guard.PrivateAddress, err.Error())
			return
		case "loop":
			c.turnAway(hello, sniff.InternalError, guard.Loop, err.Error())
			return
		}
	}
	if !errors.Is(err, context.Canceled) {
		c.e.o.Log.Warn("target cannot be reached", "route", c.route.Load().Plan.Name, "err", err)
	}
	if hello != nil {
		c.sendAlert(sniff.InternalError)
	}
}

// reasonOf is the fixed word for a dial that failed.
func reasonOf(err error) string {
	var pe *pools.Error
	if errors.As(err, &pe) {
		return pe.Kind
	}
	return "dial"
}

// hellos are the random bytes of the ClientHellos of tunnels in flight. One that comes back in while it is on its way
// out has gone round in a circle.
type hellos struct {
	mu  sync.Mutex // guards set, which holds at most one entry per connection
	set map[[32]byte]struct{}
}

func (h *hellos) add(r [32]byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, there := h.set[r]; there {
		return false
	}
	if h.set == nil {
		h.set = make(map[[32]byte]struct{})
	}
	h.set[r] = struct{}{}
	return true
}

func (h *hellos) remove(r [32]byte) {
	h.mu.Lock()
	delete(h.set, r)
	h.mu.Unlock()
}
