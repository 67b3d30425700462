package apps

import "github.com/prometheus/client_golang/prometheus"

// metrics are the figures of apps. The states are read off at each scrape, so that those of apps that are gone are gone
// with them.
type metrics struct {
	s        *Apps
	restarts *prometheus.CounterVec
}

var descState = prometheus.NewDesc("quaymaster_app_state", "1 for the state that an app is in.", []string{"app", "state"}, nil)

func newMetrics(s *Apps, r prometheus.Registerer) *metrics {
	m := &metrics{s: s, restarts: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "quaymaster_app_restarts_total", Help: "Ends of an app that nobody had asked for.",
	}, []string{"app"})}
	if r != nil {
		r.MustRegister(m, m.restarts)
	}
	return m
}

// Describe names the series.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { ch <- descState }

// Collect reads them.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, a := range m.s.all() {
		v := a.seen()
		if v.want == nil {
			continue
		}
		for _, state := range States {
			n := 0.0
			if state == v.state {
				n = 1
			}
			ch <- prometheus.MustNewConstMetric(descState, prometheus.GaugeValue, n, a.name, string(state))
		}
	}
}
