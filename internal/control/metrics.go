package control

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	ok   prometheus.Gauge
	when prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		ok: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "quaymaster_config_last_reload_successful", Help: "1 if the newest reload became the plan in force, else 0.",
		}),
		when: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "quaymaster_config_last_reload_success_timestamp_seconds", Help: "When the newest successful load was committed, in Unix seconds.",
		}),
	}
	m.reloaded(nil)
	if r != nil {
		r.MustRegister(m.ok, m.when)
	}
	return m
}

func (m metrics) reloaded(err error) {
	if err != nil {
		m.ok.Set(0)
		return
	}
	m.ok.Set(1)
	m.when.SetToCurrentTime()
}
