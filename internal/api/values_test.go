package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestDraw_SaysWhatWouldHangInTheAir(t *testing.T) {
	m := newMachine()
	g := Draw(m.plan, m.Ports(), m.options().Upstreams())
	type fate struct{ Orphans, Breaks []string }
	got := map[string]fate{}
	for _, n := range g.Nodes {
		got[n.ID] = fate{n.Orphans, n.Breaks}
	}
	none := []string{}
	want := map[string]fate{
		"port/:80":             {[]string{"route/api", "route/hello", "upstream/web", "target/10.0.0.5:8080"}, none},
		"port/:443":            {[]string{"route/mysql", "upstream/db"}, none},
		"route/api":            {[]string{"upstream/web", "target/10.0.0.5:8080"}, none},
		"route/hello":          {none, none},
		"route/mysql":          {[]string{"upstream/db"}, []string{"port/:443"}},
		"upstream/web":         {[]string{"target/10.0.0.5:8080"}, []string{"route/api"}},
		"upstream/db":          {none, []string{"route/mysql", "port/:443"}},
		"target/10.0.0.5:8080": {none, none},
		"target/10.0.0.6:8080": {none, []string{"upstream/db", "route/mysql", "port/:443"}},
	}
	// The order within a list is that of the graph.
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, n := range g.Nodes {
		if n.ID == "port/:443" && (n.State != "retrying" || n.Note != "held") {
			t.Errorf("%+v", n)
		}
		if n.ID == "target/10.0.0.6:8080" && n.State != "down" {
			t.Errorf("%+v", n)
		}
	}
}

func TestDraw_TenThousandRoutesInNoTime(t *testing.T) {
	p := &plan.Plan{Ports: []*plan.Port{{Addr: plan.Addr{Port: 443}}}}
	for i := range 10_000 {
		name := fmt.Sprintf("r%d", i)
		u := &plan.Upstream{Name: name, Targets: []plan.Target{{Text: fmt.Sprintf("10.0.0.1:%d", i%60000+1)}}}
		p.Upstreams = append(p.Upstreams, u)
		p.Routes = append(p.Routes, &plan.Route{Name: name, Match: plan.Match{Ports: []plan.Addr{{Port: 443}}}, Action: plan.Forward{Upstream: name}})
	}
	start := time.Now()
	g := Draw(p, nil, nil)
	if took := time.Since(start); took > 5*time.Second || len(g.Nodes) != 30_001 || len(g.Edges) != 30_000 {
		t.Errorf("%d nodes, %d edges in %v", len(g.Nodes), len(g.Edges), took)
	}
}

func TestAsk(t *testing.T) {
	for _, q := range []struct {
		text string
		want Question
		ok   bool
	}{
		{"https://A.Example./x?y#z", Question{Scheme: "https", Host: "a.example", Port: 443, Target: "/x?y"}, true},
		{"http://a", Question{Scheme: "http", Host: "a", Port: 80, Target: "/"}, true},
		{"http://[::1]:8080/%2e", Question{Scheme: "http", Host: "::1", Port: 8080, Target: "/%2e"}, true},
		{"wss://a/s", Question{Scheme: "https", Host: "a", Port: 443, Target: "/s", Header: map[string]string{"upgrade": "websocket", "connection": "Upgrade"}}, true},
		{"a.example", Question{Scheme: "https", Host: "a.example", Port: 443, Target: "/"}, true},
		{"a.example/x", Question{Scheme: "https", Host: "a.example", Port: 443, Target: "/x"}, true},
		{"10.0.0.1:22", Question{Host: "10.0.0.1", Port: 22, Target: "/"}, true},
		{"[::1]:22", Question{Host: "::1", Port: 22, Target: "/"}, true},
		{":22", Question{Port: 22, Target: "/"}, true},
		{"0123456789abcdef", Question{RequestID: "0123456789abcdef", Target: "/"}, true},
		{"550e8400-e29b-41d4-a716-446655440000", Question{RequestID: "550e8400-e29b-41d4-a716-446655440000", Target: "/"}, true},
		{"", Question{}, false},
		{"ftp://a", Question{}, false},
		{"http://", Question{}, false},
		{"http://:80", Question{}, false},
		{"a:99999", Question{}, false},
		{"a:0", Question{}, false},
		{"http://a:0/", Question{}, false},
		{strings.Repeat("a", 9000), Question{}, false},
	} {
		got, err := Ask(q.text)
		if (err == nil) != q.ok {
			t.Errorf("Ask(%.40q): %v", q.text, err)
			continue
		}
		q.want.Text, q.want.Method = q.text, "GET"
		if d := cmp.Diff(q.want, got); q.ok && d != "" {
			t.Errorf("Ask(%q): %s", q.text, d)
		}
	}
}

func FuzzAsk(f *testing.F) {
	for _, s := range []string{"https://a/x", "a:1", "[::1]:2", "0123456789abcdef", "http://a:b@c:9/?%", ":1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := Ask(s)
		if err == nil && q.RequestID == "" && q.Port == 0 {
			t.Errorf("Ask(%q) has no port: %+v", s, q)
		}
	})
}

func TestQuestion_Authority(t *testing.T) {
	for text, want := range map[string]string{
		"https://a/": "a", "http://a:8080/": "a:8080", "https://[::1]/": "[::1]", "http://[::1]:81/": "[::1]:81", "http://a:443": "a:443",
	} {
		q, err := Ask(text)
		if got := q.Authority(); got != want || err != nil {
			t.Errorf("%s: %s %v", text, got, err)
		}
	}
}

func TestClient_ErrorsSayWhatToDo(t *testing.T) {
	gone := NewClient(filepath.Join(t.TempDir(), "none.sock"))
	err := gone.Get(context.Background(), "/v1/status", nil)
	var away *Unreachable
	if !errors.As(err, &away) || !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "cannot reach ") || !strings.Contains(err.Error(), "--socket") {
		t.Errorf("nobody there: %v", err)
	}
	c, _ := onSocket(t, newMachine())
	err = c.Do(context.Background(), "PUT", "/v1/routes/api", "*", []byte("{}"), nil)
	var p *Problem
	if !errors.As(err, &p) || p.Type != InFile || len(p.Errors) != 1 || p.Errors[0].Line != 12 {
		t.Errorf("held by a file: %#v", err)
	}
	if want := "q.yaml:12:5: routes: route api is written in this file; change the file and reload, or choose another name"; !strings.Contains(err.Error(), want) {
		t.Errorf("it says: %v", err)
	}
}

func TestClient_TypedCalls(t *testing.T) {
	c, _ := onSocket(t, newMachine())
	ctx := context.Background()
	ch, err := c.Reload(ctx, ReloadOptions{DryRun: true, Confirm: time.Minute})
	if err != nil || !ch.DryRun || ch.Touched != 2 {
		t.Error(ch, err)
	}
	if err := c.Do(ctx, "PUT", "/v1/routes/fresh", "*", []byte("{}"), nil); err != nil {
		t.Error(err)
	}
	if err := c.Do(ctx, "PUT", "/v1/routes/fresh", "r8", []byte("{}"), nil); err != nil {
		t.Error(err)
	}
	e, err := c.Explain(ctx, Question{Text: "http://a.test/p?q=1", Method: "PUT", Client: "10.0.0.9", Header: map[string]string{"x-a": "8"}})
	if err != nil || e.Outcome != "PUT a.test /p?q=1 8 10.0.0.9" {
		t.Error(e, err)
	}
}

func TestWho_NamesThisProcess(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	found, err := Who(port)
	if err != nil || len(found) != 1 || found[0].Holder.PID == 0 || found[0].Address != "127.0.0.1" || found[0].Port != int(port) {
		t.Errorf("%+v %v", found, err)
	}
}
