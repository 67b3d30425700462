package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// portLine is what P24 promises of every log line about a port.
type portLine struct {
	Msg, Component, Port, Address, State string
	PID, To                              int
	Before, After                        int
	Added, Removed                       []string
}

// tables are the ports of each process: state and users, as the lines so far tell.
type tables map[int]portTable

type portTable map[string]*portUse

type portUse struct {
	state string
	users []string
}

// replay puts the log's port lines one on top of the other. Two processes write during an upgrade; each has a table of
// its own, and a port that is handed over leaves that of its giver. The error is the first line that does not fit.
func replay(log string) (tables, error) {
	all := tables{}
	for _, text := range strings.SplitAfter(log, "\n") {
		var l portLine
		if !strings.HasSuffix(text, "\n") || json.Unmarshal([]byte(text), &l) != nil || l.Component != "ports" || l.State == "" || l.Port == "" {
			continue
		}
		if l.PID == 0 || l.Address == "" {
			return nil, fmt.Errorf("%s: no pid, or no address", text)
		}
		t := all[l.PID]
		if t == nil {
			t = portTable{}
			all[l.PID] = t
		}
		if err := t.apply(&l); err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
	}
	return all, nil
}

func (t portTable) apply(l *portLine) error {
	p := t[l.Port]
	if p == nil {
		p = &portUse{}
		t[l.Port] = p
	}
	if len(p.users) != l.Before {
		return fmt.Errorf("%d users before, by the lines so far %v", l.Before, p.users)
	}
	if l.Msg == "port handed over" {
		if l.After != l.Before || l.To == 0 || l.To == l.PID || l.State != p.state {
			return fmt.Errorf("a hand-over that changes something, or to nobody; it was %s", p.state)
		}
		delete(t, l.Port)
		return nil
	}
	p.users = append(p.users, l.Added...)
	for _, gone := range l.Removed {
		i := slices.Index(p.users, gone)
		if i < 0 {
			return fmt.Errorf("%s goes, and was not there: %v", gone, p.users)
		}
		p.users = slices.Delete(p.users, i, i+1)
	}
	if len(p.users) != l.After || l.State == "released" && l.After != 0 {
		return fmt.Errorf("%d users after, by the lines so far %v", l.After, p.users)
	}
	p.state = l.State
	if l.State == "released" {
		delete(t, l.Port)
	}
	return nil
}

// text is a table to compare.
func (t portTable) text() string {
	var rows []string
	for port, p := range t {
		rows = append(rows, port+" "+p.state+" "+strings.Join(sorted(p.users), ","))
	}
	return strings.Join(sorted(rows), "\n")
}

// table is what `ports --json` shows, in the same form.
func (q *qm) table() string {
	t := portTable{}
	for _, r := range q.ports() {
		if r.Source != "admin" && r.Source != "metrics" {
			t[r.Wanted] = &portUse{r.State, r.Routes}
		}
	}
	return t.text()
}

// replays waits until the lines, which come behind the answer, tell what the daemon of that pid shows; all other
// processes must have nothing left.
func (q *qm) replays(pid int) {
	q.t.Helper()
	var got tables
	want := q.table()
	fits := func() bool {
		var err error
		if got, err = replay(q.log.String()); err != nil {
			q.t.Fatal(err)
		}
		for other, t := range got {
			if other != pid && len(t) > 0 {
				return false
			}
		}
		return got[pid].text() == want
	}
	defer func() {
		if q.t.Failed() {
			q.t.Errorf("ports --json of %d:\n%s", pid, want)
			for p, t := range got {
				q.t.Errorf("by the lines, %d:\n%s", p, t.text())
			}
		}
	}()
	q.until("the lines tell what ports shows", fits)
}

func TestP24_LogLinesReplayToTheTable(t *testing.T) {
	t.Parallel()
	a := httpTarget(t, "a", nil)
	first := freePorts(t, 6)
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	q := start(t, "routes:\n"+route("base", first, "base.test", a))
	state := uint32(1)
	next := func(n int) int { // a small generator of our own: the same changes each run
		state = state*1664525 + 1013904223
		return int(state>>8) % n
	}
	pid := q.pid()
	for i := range rounds {
		body := "routes:\n" + route("base", first, "base.test", a)
		for r := range 5 {
			if next(2) == 0 {
				body += route("r"+fmt.Sprint(r), first+next(6), "r"+fmt.Sprint(r)+".test", a)
			}
		}
		q.write(body)
		if i%(rounds/4) == rounds/8 { // four times a new process comes with the change
			before := pid
			pid = q.upgrade()
			vanished(t, before)
			q.replays(pid)
			continue
		}
		if res, b, err := q.admin("POST", "/v1/reload", nil); err != nil || res.StatusCode != 200 {
			t.Fatalf("reload: %v %s %v", res, b, err)
		}
		if i%100 == 99 {
			q.replays(pid)
		}
	}
	q.replays(pid)
	if n := strings.Count(q.log.String(), `"msg":"port handed over"`); n < 4 {
		t.Errorf("%d ports were handed over in four upgrades", n)
	}
}
