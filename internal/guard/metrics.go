package guard

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// metrics are the guard's numbers. Labels are words of ours and ports of the plan, never what a client said.
type metrics struct {
	rejected [len(reasons)]prometheus.Counter
	total    *prometheus.CounterVec
	ports    atomic.Pointer[map[string]prometheus.Counter] // of the plan; replaced, never changed
}

func newMetrics(reg prometheus.Registerer, g *Guard) *metrics {
	m := &metrics{total: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "quaymaster", Name: "connections_total", Help: "Client connections let in, by port of the configuration.",
	}, []string{"port"})}
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "quaymaster", Name: "connections_rejected_total", Help: "Client connections and requests refused, by reason.",
	}, []string{"reason"})
	for i, r := range reasons {
		m.rejected[i] = rejected.WithLabelValues(string(r))
	}
	active := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "quaymaster", Name: "connections_active", Help: "Client connections open now.",
	}, func() float64 { return float64(g.active.Load()) })
	most := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "quaymaster", Name: "connections_max", Help: "Client connections that may be open at once: max_connections, or what the limit of open files holds.",
	}, func() float64 { return float64(g.max.Load()) })
	m.ports.Store(&map[string]prometheus.Counter{})
	if reg != nil {
		reg.MustRegister(m.total, rejected, active, most)
	}
	return m
}

func (m *metrics) arrived(port string) {
	if c := (*m.ports.Load())[port]; c != nil {
		c.Inc()
	}
}

// wantPorts makes the series of the ports of a plan; those there are stay.
func (m *metrics) wantPorts(list []*plan.Port) {
	next := make(map[string]prometheus.Counter, len(list))
	for name, c := range *m.ports.Load() {
		next[name] = c
	}
	for _, p := range list {
		if name := p.Addr.String(); next[name] == nil {
			next[name] = m.total.WithLabelValues(name)
		}
	}
	m.ports.Store(&next)
}

// dropPorts removes the series of ports that the plan no longer has.
func (m *metrics) dropPorts(list []*plan.Port) {
	next := make(map[string]prometheus.Counter, len(list))
	for _, p := range list {
		next[p.Addr.String()] = m.total.WithLabelValues(p.Addr.String())
	}
	for name := range *m.ports.Load() {
		if next[name] == nil {
			m.total.DeleteLabelValues(name)
		}
	}
	m.ports.Store(&next)
}
