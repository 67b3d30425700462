package acme

import "github.com/prometheus/client_golang/prometheus"

// metrics are labelled with the hosts of the configuration's directories, never with names.
type metrics struct {
	orders *prometheus.CounterVec
	active prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, open func() float64) *metrics {
	m := &metrics{
		orders: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "quaymaster_acme_orders_total", Help: "Orders for certificates, by issuer and result: obtained, failed or cancelled.",
		}, []string{"issuer", "result"}),
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "quaymaster_acme_orders_active", Help: "Orders and questions to CAs under way; at most 8.",
		}),
	}
	if r != nil {
		r.MustRegister(m.orders, m.active, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "quaymaster_acme_challenges_open", Help: "Tokens and names that CAs may ask for at this moment.",
		}, open))
	}
	return m
}

func (m *metrics) order(issuer, result string) { m.orders.WithLabelValues(issuer, result).Inc() }
