package plan

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestDiffNamesWhatChanged(t *testing.T) {
	route := func(name string, change func(*Route)) *Route {
		r := &Route{Name: name, Action: Forward{Upstream: "web"}, Match: Match{Ports: []Addr{{Port: 80}}}}
		if change != nil {
			change(r)
		}
		return r
	}
	from := &Plan{
		Ports:     []*Port{{Addr: Addr{Port: 80}, Users: []string{"route a"}}, {Addr: Addr{Port: 81}}},
		Routes:    []*Route{route("a", nil), route("b", nil), route("gone", nil)},
		Upstreams: []*Upstream{{Name: "web", Targets: []Target{{Text: "a:1"}}}},
	}
	to := &Plan{
		Settings:  Settings{MaxConnections: 5, Timeouts: Timeouts{Idle: time.Second}, Admin: AdminSettings{Token: "secret"}},
		Ports:     []*Port{{Addr: Addr{Port: 80}, Users: []string{"route a", "route new"}}, {Addr: Addr{Port: 82}}},
		Routes:    []*Route{route("a", func(r *Route) { r.Priority = 1; r.Action = Block{Status: 403} }), from.Routes[1], route("new", nil)},
		Upstreams: []*Upstream{{Name: "web", Targets: []Target{{Text: "b:1"}}, Health: &Health{Path: "/x"}}},
		Where:     map[string]Pos{"route/a": {Line: 5}},
	}
	var got []string
	for _, c := range Diff(from, to) {
		got = append(got, c.String())
	}
	want := []string{
		"port :81 removed", "port :82 added",
		"route a changed: priority 0 -> 1, action forward -> block", "route gone removed", "route new added",
		"settings admin changed: token \"\" -> ***", "settings max_connections changed: 0 -> 5", "settings timeouts changed: idle 0s -> 1s",
		"upstream web changed: targets [a:1] -> [b:1], health none -> health",
	}
	for i := range max(len(got), len(want)) {
		g, w := "", ""
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("%d:\n got  %s\n want %s", i, g, w)
		}
	}
	if d := Diff(to, to); d != nil {
		t.Errorf("a plan differs from itself: %v", d)
	}
	if d := Diff(nil, from); len(d) != 6 {
		t.Errorf("from nothing: %v", d)
	}
}

func TestAddrs(t *testing.T) {
	ip := netip.MustParseAddr
	dual, v4, v6, lo := TCPAddr(netip.Addr{}, 80), TCPAddr(ip("0.0.0.0"), 80), TCPAddr(ip("::"), 80), TCPAddr(ip("::ffff:127.0.0.1"), 80)
	unix, fd := Addr{Network: Unix, Path: "/x"}, Addr{Name: "https"}
	for a, want := range map[Addr]string{dual: ":80", v4: "0.0.0.0:80", v6: "[::]:80", lo: "127.0.0.1:80", unix: "unix:/x", fd: "fd:https"} {
		if a.String() != want {
			t.Errorf("%q, want %q", a, want)
		}
		var back Addr
		if err := back.UnmarshalText([]byte(want)); a.Network != UDP && (err != nil || back != a) {
			t.Errorf("%s reads as %+v (%v), want %+v", want, back, err, a)
		}
		if text, _ := a.MarshalText(); string(text) != want {
			t.Errorf("%q, want %q", text, want)
		}
	}
	for _, c := range []struct {
		a, b    Addr
		covers  bool
		overlap bool
	}{
		{dual, v4, true, true},
		{v4, dual, false, true},
		{v4, lo, true, true},
		{v6, lo, false, false},
		{v4, v6, false, false},
		{lo, lo, true, true},
		{dual, TCPAddr(netip.Addr{}, 81), false, false},
		{unix, unix, true, true},
		{dual, fd, false, false},
		{fd, dual, false, false},
	} {
		if c.a.Covers(c.b) != c.covers || c.a.Overlaps(c.b) != c.overlap {
			t.Errorf("%s and %s: covers %v, overlaps %v", c.a, c.b, c.a.Covers(c.b), c.a.Overlaps(c.b))
		}
	}
	for _, c := range []struct {
		want Addr
		came string
		ok   bool
	}{{dual, "127.0.0.1", true}, {v4, "127.0.0.1", true}, {v4, "::1", false}, {v6, "::1", true}, {v6, "::ffff:1.2.3.4", false}, {lo, "127.0.0.1", true}, {lo, "127.0.0.2", false}} {
		if c.want.Takes(ip(c.came)) != c.ok {
			t.Errorf("%s takes %s: %v", c.want, c.came, !c.ok)
		}
	}
	if !unix.Takes(netip.Addr{}) || !lo.Takes(netip.Addr{}) {
		t.Error("a connection without an address belongs to nobody")
	}
}

func TestLifeEndsOnceWithItsLastUser(t *testing.T) {
	var l Life
	ended := 0
	l.Start(func() { ended++ })
	if !l.Hold() || l.Users() != 2 {
		t.Fatal("cannot be held")
	}
	l.Drop()
	if ended != 0 {
		t.Fatal("ended while held")
	}
	l.Drop()
	if ended != 1 || l.Hold() {
		t.Errorf("ended %d times, or held after its end", ended)
	}
	defer func() {
		if recover() == nil {
			t.Error("one Drop too many goes unnoticed")
		}
	}()
	l.Drop()
}

func TestSecretsDoNotPrint(t *testing.T) {
	s := AdminSettings{Token: "secret"}
	if got := fmt.Sprintf("%v %+v %#v %s", s, s, s.Token, s.Token); strings.Contains(got, "secret") || !strings.Contains(got, "***") {
		t.Errorf("printed as %s", got)
	}
}

func TestFindByName(t *testing.T) {
	p := &Plan{Routes: []*Route{{Name: "a"}, {Name: "c"}}, Upstreams: []*Upstream{{Name: "b"}}}
	if p.Route("c") != p.Routes[1] || p.Route("b") != nil || p.Upstream("b") == nil || p.Upstream("z") != nil {
		t.Error("found something else")
	}
}
