package pools

import (
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A Member is the living side of one plan.Target in a Pool.
type Member struct {
	pool   *Pool
	target plan.Target // without weight and limit: what makes a member this one and no other

	// All below is guarded by pool.mu.
	cookie []byte // sticky value; nil when the upstream sets none
	weight int64
	limit  int // connections at once; 0 = no limit
	gone   bool
	seat   *seat   // of an app's instance; nil for any other
	active int     // connections in use, being dialled, or promised to a waiter
	idle   []*conn // last used at the end
	since  time.Time
	reason string // of the last failure
	failed time.Time
	near   nearby
	sec    *secure // what tls was made of
	tls    *tls.Config

	// Choice.
	live    bool  // may be chosen
	share   int64 // weight now, slow start counted in
	current int64 // smooth round robin
	risen   int64 // slow start counts from here; 0 = at full weight

	// Health.
	down     bool // active checks say so
	streak   int  // checks in a row that contradict down
	faults   []int64
	outUntil int64 // passive health; 0 = in
	check    *watch
}

// Target is the target as configuration wrote it.
func (m *Member) Target() string { return m.target.Text }

// Retired reports whether the plan no longer has this target; its tunnels follow on_remove then.
func (m *Member) Retired() bool {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	return m.gone
}

// Release ends the use of a connection that Dial gave. ok false counts as a failure of the target.
func (m *Member) Release(ok bool) {
	fault := ""
	if !ok {
		fault = "connection failed"
	}
	m.pool.leave(m, nil, false, fault)
}

// take and give count a connection in use.
func (m *Member) take() {
	m.active++
	if m.seat != nil {
		m.seat.enter()
	}
}

func (m *Member) give() {
	m.active--
	if m.seat != nil {
		m.seat.leave()
	}
}

// free reports whether one more connection may be in use.
func (m *Member) free() bool { return m.limit == 0 || m.active < m.limit }

// pop takes the idle connection that was used last; nil if none fits key.
func (m *Member) pop(key connKey, now int64) *conn {
	for i := len(m.idle) - 1; i >= 0; i-- {
		c := m.idle[i]
		if idle := m.pool.want.Pool.Idle; idle > 0 && now-c.idle > int64(idle) {
			return nil // and so are all before it; the reaper takes them
		}
		if c.key != key {
			continue
		}
		copy(m.idle[i:], m.idle[i+1:])
		m.idle[len(m.idle)-1] = nil
		m.idle = m.idle[:len(m.idle)-1]
		return c
	}
	return nil
}

// address is where m is dialled; a preserved port is part of key.
func (m *Member) address(key connKey) (network, address string) {
	if m.target.Network == plan.Unix {
		return "unix", m.target.Host
	}
	port := m.target.Port
	if m.target.PreservePort {
		port = key.port
	}
	return "tcp", net.JoinHostPort(m.target.Host, strconv.Itoa(int(port)))
}

// dialTarget opens a connection to a configured target, without keep-alive: pooled connections are short of idle time,
// and who takes one for a tunnel knows how long that may be silent.
func dialTarget(ctx context.Context, m *Member, key connKey) (net.Conn, error) {
	network, address := m.address(key)
	d := net.Dialer{KeepAlive: -1}
	return d.DialContext(ctx, network, address)
}

// blame counts a failure, and returns for how long it takes m out, 0 if it does not.
func (p *Pool) blame(m *Member, reason string, now int64) time.Duration {
	m.reason, m.failed = reason, time.Now()
	set := &p.want.Passive
	if set.Fails <= 0 || m.gone || m.outUntil > now {
		return 0
	}
	kept := m.faults[:0]
	for _, t := range m.faults {
		if now-t < int64(set.Within) {
			kept = append(kept, t)
		}
	}
	m.faults = append(kept, now)
	if len(m.faults) < min(set.Fails, maxFaults) {
		return 0
	}
	m.faults = m.faults[:0]
	m.outUntil = now + int64(set.Out)
	m.since = time.Now()
	p.balance.dirty = true
	return set.Out
}

// maxFaults bounds what passive health remembers of a target.
const maxFaults = 100

func (p *Pool) logOut(m *Member, out time.Duration, reason string) {
	p.ps.log.Warn("target taken out after failures", "upstream", p.name, "target", m.target.Text, "out", out, "reason", reason)
}
