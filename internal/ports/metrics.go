package ports

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// metrics are labelled with the wishes of the configuration alone; what leaves the plan leaves them.
type metrics struct {
	states   *prometheus.GaugeVec
	failures *prometheus.CounterVec

	mu   sync.Mutex          // guards what follows
	last map[plan.Addr]State // the series of states there is
	seen map[string]bool     // labels with a series of failures
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		states: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "quaymaster_port_state", Help: "1 for the state that a wanted port is in.",
		}, []string{"port", "state"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "quaymaster_port_bind_failures_total", Help: "Attempts to bind a port that failed, by cause.",
		}, []string{"port", "kind"}),
		last: make(map[plan.Addr]State), seen: make(map[string]bool),
	}
	if r != nil {
		r.MustRegister(m.states, m.failures)
	}
	return m
}

func (m *metrics) state(a plan.Addr, s State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if was, ok := m.last[a]; ok && was != s {
		m.states.DeleteLabelValues(a.String(), string(was))
	}
	if s == Released {
		delete(m.last, a)
		return
	}
	m.last[a] = s
	m.states.WithLabelValues(a.String(), string(s)).Set(1)
}

func (m *metrics) failed(a plan.Addr, k Kind) {
	if k == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen[a.String()] = true
	m.failures.WithLabelValues(a.String(), string(k)).Inc()
}

// keep drops the failures of ports that are not in the plan.
func (m *metrics) keep(ports []*port) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.seen) == 0 {
		return
	}
	wanted := make(map[string]bool, len(ports))
	for _, p := range ports {
		wanted[p.plan.Addr.String()] = true
	}
	for label := range m.seen {
		if !wanted[label] {
			delete(m.seen, label)
			m.failures.DeletePartialMatch(prometheus.Labels{"port": label})
		}
	}
}
