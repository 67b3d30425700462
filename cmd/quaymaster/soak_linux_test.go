package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/chaos/load"
)

// TestChildTarget is no test: it is the program behind the daemon that a soak restarts.
func TestChildTarget(t *testing.T) {
	args := strings.Fields(os.Getenv("QM_CHILD_TARGET")) // ID SHARED FIRST JOURNAL
	if len(args) != 4 {
		t.Skip("runs as a child of other tests")
	}
	var ls [2]net.Listener
	for i := range ls {
		var err error
		if ls[i], err = net.Listen("tcp", "127.0.0.1:"+args[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(args[3], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := (&load.Target{ID: args[0], Journal: f}).Serve(ls[0], ls[1]); err != nil {
		t.Fatal(err)
	}
}

// soakTarget is one such child.
type soakTarget struct {
	id            string
	shared, first int
	journal       string
	cmd           *exec.Cmd
}

func (s *soakTarget) start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command(os.Args[0], "-test.run=^TestChildTarget$", "-test.v=false", "-test.timeout=0")
	s.cmd.Env = append(os.Environ(), fmt.Sprintf("QM_CHILD_TARGET=%s %d %d %s", s.id, s.shared, s.first, s.journal))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, port := range []int{s.shared, s.first} {
		until(t, "the target listens", func() bool {
			c, err := net.DialTimeout("tcp", at(port), time.Second)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
}

func (s *soakTarget) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// A soak is one run: a daemon, its targets, clients of all kinds, and whoever changes things under them.
type soak struct {
	t       *testing.T
	q       *qm
	rng     *rand.Rand
	targets []*soakTarget
	main    int // HTTP and TLS by name
	raw     int
	first   int
	spare   int // bound and released, and held by others for a time
	world   *load.World
	judge   *load.Judge
	fleet   *load.Fleet
	count   map[string]int
}

// At and Targets are what clients may expect: no change ever touches their routes.
func (s *soak) At(e load.Endpoint) load.Value {
	v := load.Value{Route: e.Name, Held: true, Plain: e.Port == s.main, TLS: e.Port == s.main}
	switch e.Class {
	case load.Raw:
		v.Route = "raw"
	case load.First:
		v.Route = "first"
	}
	v.Targets, _ = s.Targets(v.Route)
	return v
}

func (s *soak) Targets(string) ([]string, bool) {
	var ids []string
	for _, t := range s.targets {
		ids = append(ids, t.id)
	}
	return ids, true
}

var soakHosts = []string{"a.test", "b.test", "c.test"}

// Pick says where a client goes.
func (s *soak) Pick(r *rand.Rand, c load.Class) (load.Endpoint, bool) {
	switch c {
	case load.Raw:
		return load.Endpoint{Class: c, Port: s.raw}, true
	case load.First:
		return load.Endpoint{Class: c, Port: s.first}, true
	case load.TLS:
		return load.Endpoint{Class: c, Port: s.main, Name: "tls.test"}, true
	}
	return load.Endpoint{Class: c, Port: s.main, Name: soakHosts[r.IntN(len(soakHosts))]}, true
}

// Beside is another name on the same connection.
func (s *soak) Beside(r *rand.Rand, e load.Endpoint) (load.Endpoint, bool) {
	e.Name = soakHosts[r.IntN(len(soakHosts))]
	return e, true
}

// config is the routes that stay, and more.
func (s *soak) config(more string) string {
	var shared, first []string
	for _, t := range s.targets {
		shared = append(shared, fmt.Sprintf("\"127.0.0.1:%d\"", t.shared))
		first = append(first, fmt.Sprintf("\"127.0.0.1:%d\"", t.first))
	}
	var b strings.Builder
	b.WriteString("log: {access: {enabled: false}}\nroutes:\n")
	for _, h := range soakHosts {
		fmt.Fprintf(&b, "  - {name: %s, match: {ports: [%d], domains: [%s]}, action: {targets: [%s], pool: {idle: 500ms}, "+
			"retries: {attempts: 2, on: [connect]}, passive_health: {fails: 3, within: 5s, out: 500ms}}}\n", h[:1], s.main, h, strings.Join(shared, ", "))
	}
	fmt.Fprintf(&b, "  - {name: tls, match: {ports: [%d], domains: [tls.test]}, action: {targets: [%s], tls: {mode: passthrough}}}\n", s.main, strings.Join(shared, ", "))
	fmt.Fprintf(&b, "  - {name: raw, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%s]}}\n", s.raw, strings.Join(shared, ", "))
	fmt.Fprintf(&b, "  - {name: first, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%s]}}\n", s.first, strings.Join(first, ", "))
	return b.String() + fileRoute("rude", s.main, "rude.test", "x") + more
}

func newSoak(t *testing.T) *soak {
	s := &soak{
		t: t, rng: rand.New(rand.NewPCG(1, 2)), main: freePort(t), raw: freePort(t), first: freePort(t), spare: freePort(t), count: map[string]int{},
	}
	dir := t.TempDir()
	for i := range 3 {
		id := "t" + strconv.Itoa(i+1)
		c := &soakTarget{id: id, shared: freePort(t), first: freePort(t), journal: filepath.Join(dir, id)}
		c.start(t)
		t.Cleanup(c.kill)
		s.targets = append(s.targets, c)
	}
	s.q = start(t, s.config(""))
	s.world = load.NewWorld(s)
	s.judge = &load.Judge{World: s.world, Found: func(v load.Violation) { t.Error(v) }}
	for _, c := range s.targets {
		s.judge.Journals = append(s.judge.Journals, c.journal)
	}
	s.fleet = &load.Fleet{Source: s, Report: s.judge.Take, Seed: 1, Prefix: "soak-", Long: 300 * time.Millisecond, Think: 5 * time.Millisecond}
	return s
}

// round lets every kind of change happen once, in some order.
func (s *soak) round() {
	acts := []struct {
		name string
		do   func()
	}{
		{"reload that binds a port", func() { s.q.reload(s.config(fileRoute("extra", s.spare, "x.test", "x"))) }},
		{"reload that releases it", func() { s.q.reload(s.config("")) }},
		{"reload without a change", func() { s.q.reload(s.config("")) }},
		{"reload of many routes", func() {
			var more strings.Builder
			for i := range 200 {
				more.WriteString(fileRoute("r"+strconv.Itoa(i), s.main, fmt.Sprintf("r%d.test", i), "r"))
			}
			s.q.reload(s.config(more.String()))
			s.q.reload(s.config(""))
		}},
		{"reload that is refused", func() {
			s.q.write(s.config("  - {nonsense: 1}\n"))
			if out, code := s.q.cli("reload"); code != 2 {
				s.t.Errorf("a wrong configuration: exit %d\n%s", code, out)
			}
			s.q.write(s.config(""))
		}},
		{"edit by API", func() {
			if code, b := s.q.put("edited", respond(s.main, "edited.test", "e")); code != 200 {
				s.t.Errorf("edit: %d %s", code, b)
			}
			if res, b, err := s.q.admin("DELETE", "/v1/routes/edited", nil, "If-Match", "*"); err != nil || res.StatusCode != 200 {
				s.t.Errorf("delete: %v %v %s", err, res, b)
			}
		}},
		{"target restarted", s.restartTarget},
		{"port held by another", s.heldPort},
		{"rude clients", s.rude},
	}
	for _, i := range s.rng.Perm(len(acts)) {
		began := time.Now()
		acts[i].do()
		if d := time.Since(began); d > 3*time.Second {
			s.t.Logf("%s took %v", acts[i].name, d)
		}
		s.count[acts[i].name]++
	}
}

func (s *soak) restartTarget() {
	c := s.targets[s.rng.IntN(len(s.targets))]
	up := s.world.Down(c.id)
	c.kill()
	c.start(s.t)
	// A target that failed is left out for ten seconds; what comes meanwhile goes to the others, which never fail.
	up()
}

// heldPort lets a reload fail on a foreign listener, and a later one succeed.
func (s *soak) heldPort() {
	s.q.reload(s.config(""))
	var l net.Listener
	until(s.t, "the spare port is free", func() (ok bool) {
		var err error
		l, err = net.Listen("tcp", ":"+strconv.Itoa(s.spare))
		return err == nil
	})
	s.q.write(s.config(fileRoute("extra", s.spare, "x.test", "x")))
	if out, code := s.q.cli("reload"); code != 1 {
		s.t.Errorf("a reload to a busy port: exit %d\n%s", code, out)
	}
	l.Close()
	s.q.reload(s.config(fileRoute("extra", s.spare, "x.test", "x")))
	mustFetch(s.t, s.spare, "x.test", "/", "x")
	s.q.reload(s.config(""))
}

// rude clients leave in the middle of everything.
func (s *soak) rude() {
	for i, text := range []string{"", "G", "GET / HTTP/1.1\r\nHost: rude.te", "POST / HTTP/1.1\r\nHost: rude.test\r\nContent-Length: 100\r\n\r\nhalf", "\x16\x03\x01\x02", "\x00\x01\x02\x03"} {
		c := dial(s.t, s.main)
		_, _ = io.WriteString(c, text)
		if i%2 == 0 {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		_ = c.Close()
	}
}

// still is what the daemon holds while nobody is there.
type still struct{ fds, goroutines, rss int }

// quiet lets every client end and measures.
func (s *soak) quiet(first still) (now still) {
	s.t.Helper()
	s.fleet.Pause()
	defer s.fleet.Resume()
	s.q.reload(s.config(""))
	measure := func() bool {
		if s.q.metric("quaymaster_connections_active") > 0 {
			return false
		}
		now = still{s.q.fds(), int(s.q.metric("go_goroutines")), residentKB(s.t, s.q)}
		return first.fds == 0 || now.fds <= first.fds+5 && now.goroutines <= first.goroutines+5
	}
	deadline := time.Now().Add(30 * time.Second)
	for !measure() {
		if time.Now().After(deadline) {
			s.t.Fatalf("30 s after the last client left: %+v, at the start %+v", now, first)
		}
		pass(50 * time.Millisecond)
	}
	return now
}

// A day of mixed load in short: what the daemon holds in its quiet moments does not grow. QM_SOAK says for how long.
func TestD08_SoakIsFlat(t *testing.T) {
	t.Parallel()
	length, moments := 6*time.Second, 4
	if text := os.Getenv("QM_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		moments = max(6, min(60, int(length/(10*time.Second))))
	}
	s := newSoak(t)
	ctx, stop := context.WithCancel(context.Background())
	judging, judged := context.WithCancel(context.Background())
	var fleet, judge sync.WaitGroup
	fleet.Go(func() { s.fleet.Run(ctx) })
	judge.Go(func() { s.judge.Run(judging) })
	defer func() { stop(); judged(); fleet.Wait(); judge.Wait() }()

	var seen []still
	first := s.quiet(still{})
	for i := range moments {
		for end := time.Now().Add(length / time.Duration(moments)); ; {
			s.round()
			if time.Now().After(end) {
				break
			}
		}
		seen = append(seen, s.quiet(first))
		t.Logf("quiet moment %d: %+v", i+1, seen[i])
	}
	stop()
	fleet.Wait()
	judged()
	judge.Wait()
	tally := s.judge.Finish()
	t.Logf("%d exchanges, %d violations, %v\n%s", tally.Exchanges, tally.Bad, s.count, tally)
	if tally.Exchanges < 100 {
		t.Errorf("only %d exchanges: that is no load", tally.Exchanges)
	}
	for name, n := range s.count {
		if n < moments {
			t.Errorf("%s happened %d times", name, n)
		}
	}
	flat(t, seen)
	if pr := s.q.trouble("port"); pr != nil {
		t.Errorf("at the end: %v", pr)
	}
	s.q.signal(syscall.SIGTERM)
	if code := s.q.wait(30 * time.Second); code != 0 {
		t.Errorf("it ended with %d", code)
	}
}

// flat holds the memory of the last third against that of the first: the garbage collector has its ups and downs, a leak
// only ups.
func flat(t *testing.T, seen []still) {
	t.Helper()
	third := len(seen) / 3
	least := func(list []still) int {
		return slices.MinFunc(list, func(a, b still) int { return a.rss - b.rss }).rss
	}
	before, after := least(seen[:third]), least(seen[len(seen)-third:])
	if after > before+before/10+8<<10 {
		t.Errorf("resident %d KB at least in the last third, %d KB in the first", after, before)
	}
}
