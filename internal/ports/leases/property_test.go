package leases

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// owners says who has each port: what P16 holds the leases against.
type owners struct {
	t  *testing.T
	mu sync.Mutex
	of map[uint16]string
}

func (o *owners) got(port uint16, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if other, ok := o.of[port]; ok {
		o.t.Errorf("port %d was leased to %s while %s has it", port, name, other)
	}
	o.of[port] = name
}

// lost is called before the port is given back, so that the next owner cannot come first.
func (o *owners) lost(port uint16, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of[port] != name {
		o.t.Errorf("port %d of %s is in the hands of %q", port, name, o.of[port])
	}
	delete(o.of, port)
}

// An actor has names of its own and does what apps, people and changes of the configuration do.
type actor struct {
	b      *bench
	o      *owners
	r      *rand.Rand
	id     int
	leases map[string]*Lease
}

func (a *actor) act() {
	name := fmt.Sprintf("app-%d-%d", a.id, a.r.IntN(3))
	l := a.leases[name]
	switch n := a.r.IntN(10); {
	case l == nil:
		a.ask(Want{Name: name, Promise: a.r.IntN(3) == 0})
	case n < 3:
		a.ask(Want{Name: name, New: true})
	case n < 5:
		c, err := a.b.Ask(a.b.t.Context(), Want{Name: name})
		if err != nil || c.Leases()[0] != l {
			a.b.t.Errorf("%s asked again and got another port: %v", name, err)
		}
	case n < 7:
		a.run(l)
	default:
		a.o.lost(l.Port(), name)
		if ok, err := a.b.Release(a.b.t.Context(), name); !ok || err != nil {
			a.b.t.Errorf("release %s: %v %v", name, ok, err)
		}
		delete(a.leases, name)
	}
}

// ask leases a port, and aborts one time in three.
func (a *actor) ask(w Want) {
	old := a.leases[w.Name]
	c, err := a.b.Ask(a.b.t.Context(), w)
	var full *ExhaustedError
	if errors.As(err, &full) {
		if len(full.Who) != int(full.Range.Hi-full.Range.Lo)+1 {
			a.b.t.Errorf("exhausted, and not every port has an owner: %v", err)
		}
		return
	}
	if err != nil {
		a.b.t.Errorf("%+v: %v", w, err)
		return
	}
	l := c.Leases()[0]
	a.o.got(l.Port(), w.Name)
	if a.r.IntN(3) == 0 {
		a.o.lost(l.Port(), w.Name)
		c.Abort()
		return
	}
	if old != nil {
		a.o.lost(old.Port(), w.Name)
	}
	c.Commit()
	a.leases[w.Name] = l
}

// run is an app that is started, listens on its port, and ends.
func (a *actor) run(l *Lease) {
	if err := l.Handoff(); err != nil {
		a.b.t.Errorf("hand off %s: %v", l.Name(), err)
		return
	}
	app, err := net.Listen("tcp", fmt.Sprintf(":%d", l.Port()))
	if err != nil {
		a.b.t.Errorf("%s could not have its port: %v", l.Name(), err)
		return
	}
	_ = app.Close()
	if err := l.Reclaim(a.b.t.Context()); err != nil {
		a.b.t.Errorf("reclaim %s: %v", l.Name(), err)
	}
}

func TestP16_TenThousandOperationsOfSixteenLeaveNoPortWithTwoOwners(t *testing.T) {
	b := open(t, "", free(t, 30), nil) // fewer ports than names: the range runs out again and again
	o := &owners{t: t, of: make(map[uint16]string)}
	actors := make([]*actor, 16)
	var wg sync.WaitGroup
	for i := range actors {
		actors[i] = &actor{b: b, o: o, r: rand.New(rand.NewPCG(16, uint64(i))), id: i, leases: make(map[string]*Lease)}
		wg.Go(func() {
			for range 625 {
				actors[i].act()
			}
		})
	}
	wg.Wait()
	want := 0
	for _, a := range actors {
		for name, l := range a.leases {
			want++
			if o.of[l.Port()] != name {
				t.Errorf("%s has %d, which %q owns", name, l.Port(), o.of[l.Port()])
			}
			if l.State() == Held {
				heldEverywhere(t, l.Port())
			}
		}
	}
	if len(b.Status()) != want || len(o.of) != want {
		t.Errorf("%d leases are listed, %d ports are owned, %d are known to their apps", len(b.Status()), len(o.of), want)
	}
	b.flush()
	if b.file() != b.memory() {
		t.Errorf("on the disk: %s\nin memory: %s", b.file(), b.memory())
	}
	b.counts(want)
	for port := b.ports.Lo; port <= b.ports.Hi; port++ {
		if o.of[port] == "" {
			listen(t, "::", port)
		}
	}
}

// counts holds the metrics against what Status lists.
func (b *bench) counts(want int) {
	b.t.Helper()
	found, err := b.reg.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	states := make(map[State]float64)
	for _, s := range b.Status() {
		states[s.State]++
	}
	sum, asked := 0.0, 0.0
	for _, f := range found {
		for _, m := range f.GetMetric() {
			value := m.GetLabel()[0].GetValue()
			if strings.HasSuffix(f.GetName(), "_requests_total") {
				asked += m.GetCounter().GetValue()
				continue
			}
			sum += m.GetGauge().GetValue()
			if states[State(value)] != m.GetGauge().GetValue() {
				b.t.Errorf("%s{%s} is %v, and %v are listed", f.GetName(), value, m.GetGauge().GetValue(), states[State(value)])
			}
		}
	}
	if int(sum) != want || asked == 0 {
		b.t.Errorf("the metrics count %v leases and %v requests, %d leases are there", sum, asked, want)
	}
}

var _ prometheus.Collector = (*metrics)(nil)
