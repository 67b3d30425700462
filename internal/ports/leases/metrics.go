package leases

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count leases by state when they are asked for, and requests by what came of them.
type metrics struct {
	ls       *Leases
	leases   *prometheus.Desc
	requests *prometheus.CounterVec
}

// The results of a request.
const (
	resultNew       = "new"
	resultSame      = "same" // the port that the name had
	resultExhausted = "exhausted"
	resultBusy      = "busy"
	resultUnsaved   = "unsaved" // it could not be written down
	resultRefused   = "refused" // a bad name, or at a bad time
)

func newMetrics(ls *Leases, r prometheus.Registerer) *metrics {
	m := &metrics{
		ls:     ls,
		leases: prometheus.NewDesc("quaymaster_port_leases", "Ports leased to apps, by state.", []string{"state"}, nil),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "quaymaster_port_lease_requests_total", Help: "Requests for a leased port, by result.",
		}, []string{"result"}),
	}
	for _, result := range []string{resultNew, resultSame, resultExhausted, resultBusy, resultUnsaved, resultRefused} {
		m.requests.WithLabelValues(result)
	}
	if r != nil {
		r.MustRegister(m, m.requests)
	}
	return m
}

// Describe is part of prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) { out <- m.leases }

// Collect is part of prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	count := make(map[State]int)
	m.ls.mu.Lock()
	for _, l := range m.ls.byPort {
		count[l.state]++
	}
	m.ls.mu.Unlock()
	for _, s := range States {
		out <- prometheus.MustNewConstMetric(m.leases, prometheus.GaugeValue, float64(count[s]), string(s))
	}
}

// asked counts a request for n ports.
func (m *metrics) asked(c *Claim, err error, n int) {
	var exhausted *ExhaustedError
	var busy *BusyError
	var store *StoreError
	result := resultRefused
	switch {
	case err == nil:
		m.requests.WithLabelValues(resultNew).Add(float64(len(c.made)))
		m.requests.WithLabelValues(resultSame).Add(float64(n - len(c.made)))
		return
	case errors.As(err, &exhausted):
		result = resultExhausted
	case errors.As(err, &busy):
		result = resultBusy
	case errors.As(err, &store):
		result = resultUnsaved
	}
	m.requests.WithLabelValues(result).Add(float64(n))
}
