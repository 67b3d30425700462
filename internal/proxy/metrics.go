package proxy

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// histogramRoutes is how many routes have a histogram of their own; the others share one under route="".
const histogramRoutes = 500

// methods are the label values of method; the last stands for everything else.
var methods = [...]string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "other"}

// protos are the label values of proto.
var protos = [...]string{"http1", "h2", "h3"}

// buckets are the upper bounds of a duration histogram, in nanoseconds.
var buckets = [...]int64{1e6, 25e5, 5e6, 1e7, 25e6, 5e7, 1e8, 25e7, 5e8, 1e9, 25e8, 5e9, 1e10, 3e10}

var (
	requestsDesc = prometheus.NewDesc("quaymaster_http_requests_total", "HTTP exchanges by route, status code, method and protocol.",
		[]string{"route", "code", "method", "proto"}, nil)
	durationDesc = prometheus.NewDesc("quaymaster_http_request_duration_seconds", "Time from a request's head to the end of its answer.",
		[]string{"route"}, nil)
	bytesDesc = prometheus.NewDesc("quaymaster_bytes_total", "Bytes of bodies and tunnels by route and direction.",
		[]string{"route", "direction"}, nil)
)

// metrics holds the series of every route. An exchange touches a few atomics of its route's series; labels are made
// only when somebody collects.
type metrics struct {
	mu     sync.Mutex // guards what follows
	routes map[string]*series
	own    int        // routes that have a histogram of their own
	shared *histogram // of the others
}

// series are the numbers of one route name. Successive values of a route share them.
type series struct {
	users int // guarded by metrics.mu
	own   bool
	took  *histogram
	in    atomic.Int64
	out   atomic.Int64
	count tally
}

// tally counts exchanges by status, method and protocol: a list of small blocks whose cells are claimed once. A route
// sees few combinations, and there are at most 501 x 10 x 3.
type tally struct {
	cells [7]cell
	next  atomic.Pointer[tally]
}

type cell struct {
	key atomic.Uint32 // 0 = free
	n   atomic.Uint64
}

type histogram struct {
	counts [len(buckets) + 1]atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{routes: make(map[string]*series), shared: new(histogram)}
	if r != nil {
		r.MustRegister(m)
	}
	return m
}

// hold returns the series of a route; drop gives them back, and the last user's drop deletes them.
func (m *metrics) hold(route string) *series {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.routes[route]
	if s == nil {
		s = &series{took: m.shared}
		if m.own < histogramRoutes {
			s.own, s.took = true, new(histogram)
			m.own++
		}
		m.routes[route] = s
	}
	s.users++
	return s
}

func (m *metrics) drop(route string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.routes[route]
	if s.users--; s.users > 0 {
		return
	}
	delete(m.routes, route)
	if s.own {
		m.own--
	}
}

// Describe is part of prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- requestsDesc
	ch <- durationDesc
	ch <- bytesDesc
}

// Collect is part of prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	all := make(map[string]*series, len(m.routes))
	shared := false
	for name, s := range m.routes {
		all[name] = s
		shared = shared || !s.own
	}
	m.mu.Unlock()
	for name, s := range all {
		s.count.collect(name, ch)
		ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(s.in.Load()), name, "in")
		ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(s.out.Load()), name, "out")
		if s.own {
			ch <- s.took.metric(name)
		}
	}
	if shared {
		ch <- m.shared.metric("")
	}
}

// add counts one exchange.
func (y *tally) add(status int, method []byte, proto int) {
	key := tallyKey(status, method, proto)
	for {
		for i := range y.cells {
			c := &y.cells[i]
			k := c.key.Load()
			if k == 0 && c.key.CompareAndSwap(0, key) {
				k = key
			} else if k == 0 {
				k = c.key.Load()
			}
			if k == key {
				c.n.Add(1)
				return
			}
		}
		next := y.next.Load()
		if next == nil {
			y.next.CompareAndSwap(nil, new(tally))
			next = y.next.Load()
		}
		y = next
	}
}

func tallyKey(status int, method []byte, proto int) uint32 {
	if status < 100 || status > 599 {
		status = 0
	}
	m := len(methods) - 1
	for i, name := range methods[:m] {
		if string(method) == name {
			m = i
			break
		}
	}
	return 1<<31 | uint32(status)<<8 | uint32(m)<<4 | uint32(proto) //nolint:gosec // all three are small and not negative
}

func (y *tally) collect(route string, ch chan<- prometheus.Metric) {
	for ; y != nil; y = y.next.Load() {
		for i := range y.cells {
			key := y.cells[i].key.Load()
			if key == 0 {
				return
			}
			code := "other"
			if n := key >> 8 & 0x3ff; n != 0 {
				code = strconv.Itoa(int(n))
			}
			ch <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(y.cells[i].n.Load()),
				route, code, methods[key>>4&15], protos[key&15])
		}
	}
}

func (h *histogram) observe(d time.Duration) {
	i := 0
	for i < len(buckets) && int64(d) > buckets[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

func (h *histogram) metric(route string) prometheus.Metric {
	var n uint64
	upTo := make(map[float64]uint64, len(buckets))
	for i := range buckets {
		n += h.counts[i].Load()
		upTo[float64(buckets[i])/1e9] = n
	}
	n += h.counts[len(buckets)].Load()
	return prometheus.MustNewConstHistogram(durationDesc, n, float64(h.sum.Load())/1e9, upTo, route)
}
