package config

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// manyRoutes is a file of n routes: a fifth wildcards, a fifth paths under one host, the rest hosts of their own. version
// changes the targets of the first hundred.
func manyRoutes(n, version int) []byte {
	var b bytes.Buffer
	b.WriteString("max_connections: 1000\nroutes:\n")
	for i := range n {
		target := fmt.Sprintf("10.0.%d.%d:8080", i/250%250, i%250+1)
		if i < 100 {
			target = fmt.Sprintf("10.9.%d.%d:8080", version%250, i+1)
		}
		host, path := fmt.Sprintf("host-%d.example.com", i), ""
		switch i % 5 {
		case 0:
			host = fmt.Sprintf("*.wild-%d.example.com", i)
		case 1:
			host, path = "paths.example.com", fmt.Sprintf(", path: [/p%d/*]", i)
		}
		fmt.Fprintf(&b, "  - name: r-%d\n    match: {ports: [8080], domains: [%q]%s}\n    action:\n      targets: [%q]\n", i, host, path, target)
	}
	return b.Bytes()
}

// manySites is a file of n sites, each with a certificate of its own and a redirect. version changes the targets of the
// first hundred.
func manySites(n, version int) []byte {
	var b bytes.Buffer
	b.WriteString("acme: {email: ops@example.com}\nsites:\n")
	for i := range n {
		target := fmt.Sprintf("10.0.%d.%d:8080", i/250%250, i%250+1)
		if i < 100 {
			target = fmt.Sprintf("10.9.%d.%d:8080", version%250, i+1)
		}
		fmt.Fprintf(&b, "  host-%d.example.com: %s\n", i, target)
	}
	return b.Bytes()
}

// TestTenThousandSitesLoadQuickly is the same for sites, of which each is two routes and a certificate.
func TestTenThousandSitesLoadQuickly(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures time")
	}
	first, change := time.Hour, time.Hour
	for range 3 {
		l := NewLoader()
		var old *plan.Plan
		for v := range 4 {
			text := manySites(10_000, v)
			start := begun()
			p, _, err := l.Load([]Source{{Name: "/etc/q.yaml", Bytes: text}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Certificates) != 10_000 || len(p.Routes) != 20_002 {
				t.Fatalf("%d certificates, %d routes", len(p.Certificates), len(p.Routes))
			}
			if old == nil {
				first = min(first, start.spent())
			} else {
				change = min(change, start.spent())
				if r, u := newPointers(old, p); r != 0 || u != 100 {
					t.Fatalf("%d routes and %d upstreams are new pointers; only the targets of 100 were changed", r, u)
				}
				for i, c := range p.Certificates {
					if c != old.Certificates[i] {
						t.Fatalf("%s is a new pointer", c.Label())
					}
				}
			}
			old = p
		}
	}
	t.Logf("first load %v, change of 100 %v", first, change)
	if first > time.Second || change > 250*time.Millisecond {
		t.Errorf("first load took %v (at most 1s), a change of 100 sites %v (at most 250ms)", first, change)
	}
}

// TestTenThousandRoutesLoadQuickly holds config's share of the promise about large configurations, on a machine half as
// fast as the one it was made on.
func TestTenThousandRoutesLoadQuickly(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures time")
	}
	files := make([]Source, 6)
	for v := range files {
		files[v] = Source{Name: "/etc/q.yaml", Bytes: manyRoutes(10_000, v)}
	}
	first, change := time.Hour, time.Hour
	for range 3 { // the best of some: others use this machine, too
		l := NewLoader()
		start := begun()
		old, _, err := l.Load(files[:1], nil)
		if err != nil {
			t.Fatal(err)
		}
		first = min(first, start.spent())
		for v := 1; v < len(files); v++ {
			start = begun()
			p, _, err := l.Load(files[v:v+1], nil)
			if err != nil {
				t.Fatal(err)
			}
			change = min(change, start.spent())
			if r, u := newPointers(old, p); r != 0 || u != 100 {
				t.Fatalf("%d routes and %d upstreams are new pointers; only the targets of 100 were changed", r, u)
			}
			old = p
		}
	}
	t.Logf("first load %v, change of 100 %v", first, change)
	if first > 600*time.Millisecond || change > 150*time.Millisecond {
		t.Errorf("first load took %v (at most 600ms), a change of 100 routes %v (at most 150ms)", first, change)
	}
}

// stopwatch measures what a load costs, whoever else uses the machine: the shorter of wall and processor time.
type stopwatch struct {
	wall time.Time
	cpu  time.Duration
}

func begun() stopwatch { return stopwatch{time.Now(), processor()} }

func (s stopwatch) spent() time.Duration { return min(time.Since(s.wall), processor()-s.cpu) }

func processor() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// newPointers counts what is another pointer in b, for plans that hold the same names.
func newPointers(a, b *plan.Plan) (routes, upstreams int) {
	for i := range b.Routes {
		if a.Routes[i] != b.Routes[i] {
			routes++
		}
	}
	for i := range b.Upstreams {
		if a.Upstreams[i] != b.Upstreams[i] {
			upstreams++
		}
	}
	return routes, upstreams
}

func BenchmarkFirstLoad(b *testing.B) {
	text := manyRoutes(10_000, 0)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := NewLoader().Load([]Source{{Name: "/q.yaml", Bytes: text}}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChangeOfHundred(b *testing.B) {
	l := NewLoader()
	texts := [][]byte{manyRoutes(10_000, 0), manyRoutes(10_000, 1), manyRoutes(10_000, 2), manyRoutes(10_000, 3)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		clear(l.pieces)
		b.StopTimer()
		if _, _, err := l.Load([]Source{{Name: "/q.yaml", Bytes: texts[i%4]}}, nil); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, _, err := l.Load([]Source{{Name: "/q.yaml", Bytes: texts[(i+1)%4]}}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
