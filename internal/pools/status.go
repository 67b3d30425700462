package pools

import (
	"errors"
	"net"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// UpstreamStatus is what is known of an upstream now.
type UpstreamStatus struct {
	Name    string         `json:"name"`
	Queued  int            `json:"queued"`
	Targets []TargetStatus `json:"targets"`
}

// A State is how a target is.
type State string

// The states. All but Up and Starting are not chosen, unless passive health alone took out every target.
const (
	Up       State = "up"
	Starting State = "starting" // slow start
	Out      State = "out"      // passive health
	Down     State = "down"     // active checks
	Away     State = "away"     // an app that is not ready; one that sleeps is woken by the first who comes
)

// TargetStatus is what is known of a target. Reason is of its last failure, also when that is over.
type TargetStatus struct {
	Target string    `json:"target"`
	State  State     `json:"state"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	Failed time.Time `json:"failed,omitzero"` // when that was
	Weight int       `json:"weight"`
	Active int       `json:"active"`
	Idle   int       `json:"idle"`
}

// Status lists the upstreams of the committed plan by name, their targets in the order of the plan.
func (ps *Pools) Status() []UpstreamStatus {
	ps.mu.Lock()
	all := ps.pools
	ps.mu.Unlock()
	out := make([]UpstreamStatus, len(all))
	for i, p := range all {
		out[i] = p.status()
	}
	return out
}

func (p *Pool) status() UpstreamStatus {
	now := p.ps.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.balance.dirty || p.balance.next != 0 && now >= p.balance.next {
		p.refresh(now)
	}
	out := UpstreamStatus{Name: p.name, Queued: p.queue.n, Targets: make([]TargetStatus, len(p.members))}
	for i, m := range p.members {
		out.Targets[i] = TargetStatus{
			Target: m.target.Text, State: m.state(), Since: m.since, Reason: m.reason, Failed: m.failed,
			Weight: int(m.weight), Active: m.active, Idle: len(m.idle),
		}
	}
	for _, t := range p.want.Targets {
		if t.App != "" && !slices.ContainsFunc(p.members, func(m *Member) bool { return m.target.App == t.App }) {
			out.Targets = append(out.Targets, TargetStatus{Target: t.Text, State: Away, Weight: t.Weight})
		}
	}
	return out
}

// state is up to date after refresh. The pool's mu is held.
func (m *Member) state() State {
	switch {
	case m.down:
		return Down
	case m.outUntil != 0:
		return Out
	case m.share < m.weight*shareUnit:
		return Starting
	}
	return Up
}

// nearby remembers what listens near a target that refuses, so that it is not looked up for each of a thousand dials.
type nearby struct {
	at   int64
	text string
}

const nearbyAge = int64(time.Second)

// near says what listens near m, which has just refused with err.
func (ps *Pools) near(m *Member, err error) string {
	var op *net.OpError
	if ps.listening == nil || m == nil || !errors.As(err, &op) {
		return ""
	}
	addr, ok := op.Addr.(*net.TCPAddr)
	if !ok {
		return ""
	}
	p, now := m.pool, ps.now()
	p.mu.Lock()
	last := m.near
	known := last.at != 0 && now-last.at <= nearbyAge
	if !known {
		m.near.at = now // whoever comes meanwhile gets the last answer
	}
	p.mu.Unlock()
	if known {
		return last.text
	}
	text := ps.listening(addr.AddrPort())
	p.mu.Lock()
	m.near.text = text
	p.mu.Unlock()
	return text
}

// A collector shows Status as metrics. The series are made at each scrape, so that those of objects that are gone are
// gone with them.
type collector struct{ ps *Pools }

var (
	descUp    = prometheus.NewDesc("quaymaster_upstream_up", "Whether a target may be chosen.", []string{"upstream", "target"}, nil)
	descConns = prometheus.NewDesc("quaymaster_upstream_connections", "Connections to the targets of an upstream, and exchanges that wait for one.",
		[]string{"upstream", "state"}, nil)
)

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descUp
	ch <- descConns
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	for _, u := range c.ps.Status() {
		active, idle := 0, 0
		seen := make(map[string]int, len(u.Targets)) // a target may be written twice
		for _, t := range u.Targets {
			active, idle = active+t.Active, idle+t.Idle
			if t.State == Up || t.State == Starting {
				seen[t.Target] = 1
			} else {
				seen[t.Target] += 0
			}
		}
		for target, up := range seen {
			gauge(descUp, up, u.Name, target)
		}
		gauge(descConns, active, u.Name, "active")
		gauge(descConns, idle, u.Name, "idle")
		gauge(descConns, u.Queued, u.Name, "queued")
	}
}
