package proxy

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// series lists what a registry shows as name{labels} value.
func shown(t testing.TB, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			v := m.Counter.GetValue()
			if f.GetType() == dto.MetricType_HISTOGRAM {
				v = float64(m.Histogram.GetSampleCount())
			}
			out[strings.TrimPrefix(f.GetName(), "quaymaster_")+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return out
}

func TestMetricsCountExchanges(t *testing.T) {
	h := build(t, &wish{action: plan.Respond{Body: "hello"}})
	for _, method := range []string{"GET", "GET", "PUT", "BREW"} {
		h.ask(method, "/", "Content-Length: 0")
		h.record()
	}
	got := shown(t, h.registry)
	for series, want := range map[string]float64{
		"http_requests_total{code=200,method=GET,proto=http1,route=api}":   2,
		"http_requests_total{code=200,method=PUT,proto=http1,route=api}":   1,
		"http_requests_total{code=200,method=other,proto=http1,route=api}": 1,
		"http_request_duration_seconds{route=api}":                         4,
		"bytes_total{direction=out,route=api}":                             20,
		"bytes_total{direction=in,route=api}":                              0,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v", series, got[series], want)
		}
	}
	if len(got) != 6 {
		t.Errorf("series: %v", got)
	}
}

func TestMetricsOfAChangedRouteGoOnAndOfAGoneRouteGo(t *testing.T) {
	r := prometheus.NewRegistry()
	m := newMetrics(r)
	m.hold("a").count.add(200, []byte("GET"), 0)
	again := m.hold("a") // the route's next value
	again.count.add(200, []byte("GET"), 0)
	m.drop("a")
	if got := shown(t, r)["http_requests_total{code=200,method=GET,proto=http1,route=a}"]; got != 2 {
		t.Fatalf("counted %v", got)
	}
	m.drop("a")
	if got := shown(t, r); len(got) != 0 {
		t.Fatalf("left: %v", got)
	}
}

func TestMetricsShareAHistogramAboveTheLimit(t *testing.T) {
	r := prometheus.NewRegistry()
	m := newMetrics(r)
	for i := range histogramRoutes + 10 {
		m.hold(fmt.Sprint("r", i)).took.observe(time.Millisecond)
	}
	got := shown(t, r)
	if got["http_request_duration_seconds{route=}"] != 10 || got["http_request_duration_seconds{route=r0}"] != 1 {
		t.Fatalf("shared %v", got["http_request_duration_seconds{route=}"])
	}
	m.drop("r0")
	m.hold("new").took.observe(time.Second)
	if got := shown(t, r); got["http_request_duration_seconds{route=new}"] != 1 {
		t.Fatal("a free histogram is not used again")
	}
}

func TestTallyClaimsEachCellOnce(t *testing.T) {
	for range 3000 {
		var y tally
		var all sync.WaitGroup
		start := make(chan struct{})
		for i := range 4 {
			all.Go(func() {
				<-start
				for code := 200; code < 210; code++ {
					y.add(code+i, []byte("GET"), 0)
				}
			})
		}
		close(start)
		all.Wait()
		total := 0.0
		for _, n := range counts(t, &y) {
			total += n
		}
		if total != 40 {
			t.Fatalf("%v exchanges counted of 40", total)
		}
	}
}

// counts collects y; a combination that is there twice fails the test.
func counts(t *testing.T, y *tally) map[string]float64 {
	t.Helper()
	ch := make(chan prometheus.Metric, 10_000)
	y.collect("a", ch)
	close(ch)
	seen := map[string]float64{}
	for m := range ch {
		var d dto.Metric
		if err := m.Write(&d); err != nil {
			t.Fatal(err)
		}
		key := ""
		for _, l := range d.Label {
			key += l.GetValue() + " "
		}
		if _, twice := seen[key]; twice {
			t.Fatalf("%s is there twice", key)
		}
		seen[key] = d.Counter.GetValue()
	}
	return seen
}

func TestTallyCountsEveryCombinationOnce(t *testing.T) {
	var y tally
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for code := 95; code < 605; code++ {
				for _, m := range []string{"GET", "POST", "X", "Y"} {
					y.add(code, []byte(m), 0)
				}
			}
		})
	}
	all.Wait()
	seen := counts(t, &y)
	if len(seen) != 501*3 || seen["200 GET http1 a "] != 8 || seen["200 other http1 a "] != 16 || seen["other GET http1 a "] != 80 {
		t.Fatalf("%d series, %v", len(seen), seen["other GET http1 a "])
	}
}

func TestHistogramPutsDurationsInTheirBuckets(t *testing.T) {
	var h histogram
	for _, d := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, time.Hour} {
		h.observe(d)
	}
	var d dto.Metric
	if err := h.metric("a").Write(&d); err != nil {
		t.Fatal(err)
	}
	b := d.Histogram.Bucket
	if d.Histogram.GetSampleCount() != 4 || b[0].GetUpperBound() != 0.001 || b[0].GetCumulativeCount() != 2 || b[1].GetCumulativeCount() != 3 ||
		b[len(b)-1].GetCumulativeCount() != 3 || d.Histogram.GetSampleSum() < 3600 {
		t.Fatalf("%v", &d)
	}
}
