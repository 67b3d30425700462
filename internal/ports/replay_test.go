package ports

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func goroutineList() []string {
	buf := make([]byte, 1<<20)
	return strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
}

// line is what P24 promises of every log line.
type line struct {
	Msg, Port, Address string
	State              State
	Before, After      int
	Added, Removed     []string
}

type tableRow struct {
	State  State
	Routes []string
}

// replay builds the table from the lines alone, and checks that references add up.
func replay(t *testing.T, table map[string]tableRow, text string) {
	var l line
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatalf("line %q: %v", text, err)
	}
	if !strings.HasPrefix(l.Msg, "port ") {
		return
	}
	r := table[l.Port]
	if len(r.Routes) != l.Before {
		t.Fatalf("line %q: %d references before, the lines so far say %d", text, l.Before, len(r.Routes))
	}
	if l.State == Released {
		if l.After != 0 {
			t.Fatalf("line %q: released with references", text)
		}
		delete(table, l.Port)
		return
	}
	for _, gone := range l.Removed {
		i := slices.Index(r.Routes, gone)
		if i < 0 {
			t.Fatalf("line %q removes %s, which is not there", text, gone)
		}
		r.Routes = slices.Delete(r.Routes, i, i+1)
	}
	r.Routes = append(r.Routes, l.Added...)
	if len(r.Routes) != l.After {
		t.Fatalf("line %q: %d references after, the lines say %d", text, l.After, len(r.Routes))
	}
	r.State = l.State
	table[l.Port] = r
}

func TestP24_ReplayingTheLogGivesTheTable(t *testing.T) {
	h := open(t, Options{})
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	_, busy := occupy(t, "127.0.0.1:0")
	var numbers []uint16
	for range 4 {
		numbers = append(numbers, freePort(t))
	}
	// Wildcards, specific addresses beside them, and a port that a foreign process holds.
	random := func(first bool) *plan.Plan {
		p := &plan.Plan{}
		for _, n := range numbers {
			choice := []plan.Addr{{Port: n}, plan.TCPAddr(netip.IPv4Unspecified(), n), plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), n), plan.TCPAddr(netip.IPv6Unspecified(), n)}
			if rnd.IntN(4) == 0 {
				continue
			}
			port := &plan.Port{Addr: choice[rnd.IntN(len(choice))]}
			for r := range 600 * (rnd.IntN(20) / 19) { // now and then more than fit one line
				port.Users = append(port.Users, fmt.Sprintf("route many%d", r))
			}
			for r := range 5 {
				if rnd.IntN(2) == 0 || r == 0 {
					port.Users = append(port.Users, fmt.Sprintf("route r%d", r))
				}
			}
			slices.Sort(port.Users)
			p.Ports = append(p.Ports, port)
		}
		if first || rnd.IntN(4) == 0 {
			p.Ports = append(p.Ports, &plan.Port{Addr: busy, Users: []string{"route b"}})
		}
		slices.SortFunc(p.Ports, func(a, b *plan.Port) int { return a.Addr.Compare(b.Addr) })
		return p
	}
	table := map[string]tableRow{}
	read, refused := 0, 0
	for i := range 1000 {
		p := random(i == 0)
		step, err := h.Prepare(t.Context(), p)
		switch {
		case err != nil:
			refused++
		case rnd.IntN(10) == 0:
			step.Abort()
		default:
			step.Commit()
			step.Retire()
		}
		h.lock(t.Context()) // an attempt of the retry loop writes its line under the change lock
		lines := h.log.all()
		for ; read < len(lines); read++ {
			replay(t, table, lines[read])
		}
		got := map[string]tableRow{}
		for _, s := range h.Status() {
			got[s.Wanted] = tableRow{s.State, s.Routes}
		}
		h.unlock()
		if d := compare(got, table); d != "" {
			t.Fatalf("after change %d: %s", i, d)
		}
	}
	t.Logf("%d lines, %d refused", read, refused)
	if refused == 0 || refused > 700 {
		t.Errorf("%d of 1,000 changes were refused: the test does not try what it should", refused)
	}
}

func compare(got, want map[string]tableRow) string {
	for k, w := range want {
		g, ok := got[k]
		slices.Sort(g.Routes)
		slices.Sort(w.Routes)
		if !ok || g.State != w.State || !slices.Equal(g.Routes, w.Routes) {
			return fmt.Sprintf("port %s: Status says %v, the lines say %v", k, g, w)
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("Status has %d ports, the lines %d", len(got), len(want))
	}
	return ""
}
