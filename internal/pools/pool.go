package pools

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// stalePeek is how long a connection may have been idle before it is asked whether it still lives.
const stalePeek = int64(5 * time.Millisecond)

// defaultConnect bounds a dial for which nothing was said.
const defaultConnect = 10 * time.Second

// An Ask says for whom a connection is wanted.
type Ask struct {
	Client, Local netip.AddrPort // of the client's connection: ip_hash, PROXY header, preserved port
	Sticky        []byte         // value of the sticky cookie; nil if none came
	SendProxy     int            // PROXY version to send: 0, 1 or 2. Such a connection is never reused
	Not           [4]*Member     // tried before; chosen again only when there is nobody else
	Fresh         bool           // no idle connection, please
	Connect       time.Duration  // dial timeout; 0 = the upstream's
	Now           time.Time      // the present moment, where the caller has just asked the clock; else zero
	Patience      time.Duration  // for an app that is not ready; 0 = as long as it may take. Then the error is app_starting

	raw bool // no TLS of ours, whatever the target: a tunnel carries its own
}

func (a *Ask) tried(m *Member) bool {
	for _, t := range a.Not {
		if t == m {
			return true
		}
		if t == nil {
			return false
		}
	}
	return false
}

// A Pool is the living side of one plan.Upstream. It stays the same Pool for as long as the plan names the upstream,
// also when its targets or settings change.
type Pool struct {
	ps     *Pools
	name   string
	life   plan.Life
	cookie atomic.Pointer[string]
	apps   atomic.Bool // targets are apps

	mu      sync.Mutex // guards everything below, and the members' fields that say so
	want    *plan.Upstream
	members []*Member // in the order of the plan
	ended   bool
	balance balance
	queue   queue
	secure  *secure // nil: no target is reached by TLS
	looked  int64   // Pools.now when its files were looked at last
	broken  string  // what was last logged about them
}

// Hold takes a reference; false when the pool has ended.
func (p *Pool) Hold() bool { return p.life.Hold() }

// Drop gives a reference back. The last one, after the plan's, ends the pool.
func (p *Pool) Drop() { p.life.Drop() }

// Name is the name of the upstream.
func (p *Pool) Name() string { return p.name }

// StickyCookie is the name of the cookie that leads clients back to their target; "" if the upstream sets none.
func (p *Pool) StickyCookie() string {
	if name := p.cookie.Load(); name != nil {
		return *name
	}
	return ""
}

// HasApps reports whether a target is an app, which may have to be started first.
func (p *Pool) HasApps() bool { return p.apps.Load() }

// Open gives s a connection to a target that is up: an idle one or a new one. It waits in the queue when every target
// has as many as it may have. It makes one attempt; errors are of type *Error. Every Open that succeeded is answered by
// a Close of s.
func (p *Pool) Open(ask *Ask, s *Stream) error {
	return p.open(ask, s, connKey{}, dialTarget)
}

// dialFunc opens a connection to m under key.
type dialFunc func(ctx context.Context, m *Member, key connKey) (net.Conn, error)

func (p *Pool) open(ask *Ask, s *Stream, key connKey, dial dialFunc) error {
	if s.Aborted() {
		return &Error{Kind: "aborted", Upstream: p.name}
	}
	now := p.ps.at(ask.Now)
	p.mu.Lock()
	m, full := p.pick(ask, now)
	for range maxWakes {
		app := ""
		if m == nil && !full {
			app = p.away()
		}
		if app == "" {
			break
		}
		if err := p.rouse(ask, s, app); err != nil {
			return err
		}
		now = p.ps.now()
		m, full = p.pick(ask, now)
	}
	if m == nil {
		var err error
		if m, err = p.wait(ask, s, full); err != nil {
			return err
		}
		now = p.ps.now()
		p.mu.Lock()
	} else {
		m.take()
	}
	timeout := ask.Connect
	if timeout == 0 {
		timeout = p.want.Connect
	}
	if m.target.PreservePort {
		key.port = ask.Local.Port()
	}
	cookie := m.cookie
	var c *conn
	if ask.SendProxy == 0 && !ask.Fresh {
		c = m.pop(key, now)
	}
	p.mu.Unlock()
	for c != nil && now-c.idle > stalePeek && !c.alive() {
		p.ps.discard(c)
		p.mu.Lock()
		c = m.pop(key, now)
		p.mu.Unlock()
	}
	reused := c != nil
	if !reused {
		var err error
		if c, err = p.dial(ask, s, m, key, timeout, dial); err != nil {
			return err
		}
	}
	if !s.attach(p, m, c, reused, cookie) {
		p.leave(m, c, false, "")
		return &Error{Kind: "aborted", Upstream: p.name, Target: m.target.Text}
	}
	return nil
}

// dial opens a new connection to m, on whom the caller has a slot, and gives the slot back when that fails.
func (p *Pool) dial(ask *Ask, s *Stream, m *Member, key connKey, timeout time.Duration, dial dialFunc) (*conn, error) {
	if timeout <= 0 {
		timeout = defaultConnect
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	s.mu.Lock()
	s.cancel = cancel
	if s.aborted {
		cancel()
	}
	s.mu.Unlock()
	var hello []byte
	if ask.SendProxy != 0 {
		hello = appendProxy(nil, ask.SendProxy, ask.Client, ask.Local)
	}
	nc, err := dial(ctx, m, key)
	if err == nil && m.target.TLS && !ask.raw {
		nc, err = p.sealOrClose(ctx, m, nc, hello)
		hello = nil
	}
	s.mu.Lock()
	s.cancel = nil
	aborted := s.aborted
	s.mu.Unlock()
	if err != nil {
		e := p.dialError(m, key, err, aborted)
		fault := ""
		if !aborted {
			fault = e.short()
		}
		p.leave(m, nil, false, fault)
		return nil, e
	}
	c := newConn(p.ps, nc, key, p.ps.now())
	c.hello, c.once = hello, ask.SendProxy != 0
	p.ps.opened()
	return c, nil
}

// sealOrClose is seal that takes nc over.
func (p *Pool) sealOrClose(ctx context.Context, m *Member, nc net.Conn, hello []byte) (net.Conn, error) {
	c, err := p.seal(ctx, m, nc, hello)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return c, nil
}

func (p *Pool) dialError(m *Member, key connKey, err error, aborted bool) *Error {
	kind := dialKind(err)
	e := &Error{Kind: kind, Upstream: p.name, Target: key.name, Member: m, Err: cause(kind, err)}
	if key.name == "" {
		e.Target = m.target.Text
	}
	switch {
	case aborted:
		e.Kind, e.Err = "aborted", nil
	case kind == "refused":
		e.Near = p.ps.near(m, err)
	}
	return e
}

// leave gives back the slot on m and, if there is one, its connection: kept when it can be, else closed. fault, if not
// empty, counts against m.
func (p *Pool) leave(m *Member, c *conn, keep bool, fault string) {
	now := p.ps.now()
	p.mu.Lock()
	m.give()
	if keep && p.keeps(m, c, now) {
		c.idle = now
		m.idle = append(m.idle, c)
		c = nil
	}
	var out time.Duration
	if fault != "" {
		out = p.blame(m, fault, now)
	}
	if p.queue.n > 0 {
		p.pump(now)
	}
	p.mu.Unlock()
	if c != nil {
		p.ps.discard(c)
	}
	if out > 0 {
		p.logOut(m, out, fault)
	}
}

// keeps decides whether a clean connection goes to the idle list.
func (p *Pool) keeps(m *Member, c *conn, now int64) bool {
	set := &p.want.Pool
	return !p.ended && !m.gone && p.trusts(c) && !p.ps.closed.Load() && len(m.idle) < set.MaxIdle &&
		(set.MaxAge <= 0 || now-c.born < int64(set.MaxAge))
}

// flush drops the idle connections of m: one like them was stale.
func (p *Pool) flush(m *Member) {
	p.mu.Lock()
	idle := m.idle
	m.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		p.ps.discard(c)
	}
}

// Dial opens a connection of its own for a tunnel, after sending the PROXY header if one is asked for. The caller
// closes it and then releases the member. ctx ends waiting and dialling only. It is never TLS of ours: who speaks through
// a tunnel does so to the target itself.
func (p *Pool) Dial(ctx context.Context, ask *Ask) (net.Conn, *Member, error) {
	var s Stream
	own := *ask
	own.Fresh, own.raw = true, true
	err := under(ctx, &s, func() error { return p.Open(&own, &s) })
	if err != nil {
		return nil, nil, err
	}
	nc, m, hello := s.c.nc, s.m, s.c.hello
	p.ps.gone() // it is no pooled connection any more
	if len(hello) == 0 {
		return nc, m, nil
	}
	if _, err := nc.Write(hello); err != nil {
		_ = nc.Close()
		m.Release(false)
		return nil, nil, &Error{Kind: recvKind(err), Upstream: p.name, Target: m.target.Text, Member: m, Err: err}
	}
	return nc, m, nil
}

// under opens s by the func and ends that when ctx is done; not a moment after it has returned.
func under(ctx context.Context, s *Stream, open func() error) error {
	if ctx.Done() == nil {
		return open()
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { s.Abort(); close(ended) })
	err := open()
	if stop() {
		return err
	}
	<-ended
	s.Close(false)
	e := &Error{Kind: "aborted", Err: ctx.Err()}
	if errors.As(err, &e); errors.Is(ctx.Err(), context.DeadlineExceeded) && e.Kind == "aborted" {
		e.Kind = "timeout"
	}
	return e
}

// Fail counts a failure that only the caller can see against m: a bad status, a timeout.
func (p *Pool) Fail(m *Member, reason string) {
	now := p.ps.now()
	p.mu.Lock()
	out := p.blame(m, reason, now)
	p.mu.Unlock()
	if out > 0 {
		p.logOut(m, out, reason)
	}
}

// end closes what is idle, and lets nothing become idle any more. Open works on. The last Drop calls it too.
func (p *Pool) end() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.closeIdle()
}

func (p *Pool) closeIdle() {
	var idle []*conn
	p.mu.Lock()
	for _, m := range p.members {
		idle = append(idle, m.idle...)
		m.idle = nil
	}
	p.mu.Unlock()
	for _, c := range idle {
		p.ps.discard(c)
	}
}
