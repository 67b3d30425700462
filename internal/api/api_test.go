package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/logs"
	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestMain(m *testing.M) {
	if os.Getenv("QUAYMASTER_TEST_PEER") != "" {
		askAsPeer()
	}
	goleak.VerifyTestMain(m)
}

// machine is a small daemon: a plan, an API layer, and what happened.
type machine struct {
	mu       sync.Mutex
	plan     *plan.Plan
	revision int
	body     []byte // of the last edit
	reloads  []ReloadOptions
	stopped  int
	ready    bool
	events   *logs.Ring[Event]
	scrape   chan struct{} // /metrics answers when this is closed; nil: at once
}

var began = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func newMachine() *machine {
	web := &plan.Upstream{Name: "web", Targets: []plan.Target{{Text: "10.0.0.5:8080", Weight: 1}, {Text: "10.0.0.6:8080", Weight: 2}}}
	db := &plan.Upstream{Name: "db", Targets: []plan.Target{{Text: "10.0.0.6:8080", Weight: 1}}}
	http80, tls := plan.Addr{Port: 80}, plan.Addr{Port: 443}
	local := plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), 80)
	return &machine{
		revision: 7, ready: true, events: logs.NewRing[Event](16),
		plan: &plan.Plan{
			Ports:     []*plan.Port{{Addr: http80}, {Addr: tls}},
			Upstreams: []*plan.Upstream{db, web},
			Routes: []*plan.Route{
				{Name: "api", Source: plan.FromFile, Priority: 3, Match: plan.Match{
					Ports: []plan.Addr{http80}, Domains: []string{"api.test"}, Paths: []string{"/v1/*"}, Methods: []string{"GET"},
					Headers:   []plan.FieldMatch{{Name: "X-A", Value: "1"}, {Name: "X-B", Regex: "c.*"}},
					Clients:   []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
					Protocols: plan.ProtoH2 | plan.ProtoGRPC,
				}, Action: plan.Forward{Upstream: "web"}, OnRemove: plan.DrainOnRemove},
				{Name: "hello", Source: plan.FromAPI, Match: plan.Match{Ports: []plan.Addr{local}}, Action: plan.Respond{Status: 200}},
				{Name: "mysql", Source: plan.FromFile, Match: plan.Match{Ports: []plan.Addr{tls}}, TLS: &plan.TLS{Mode: plan.Passthrough}, Action: plan.Tunnel{Upstream: "db"}},
			},
			Where: map[string]plan.Pos{"route/api": {File: "q.yaml", Line: 12, Col: 5}, "route/mysql": {File: "q.yaml", Line: 30, Col: 5}},
		},
	}
}

func (m *machine) rev() string { return fmt.Sprintf("r%d", m.revision) }

func (m *machine) Plan() (*plan.Plan, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.plan, m.rev()
}

func (m *machine) Reload(_ context.Context, o ReloadOptions) (*Change, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reloads = append(m.reloads, o)
	return &Change{Revision: m.rev(), Touched: 2, DryRun: o.DryRun}, nil
}

func (m *machine) Confirm(context.Context) error {
	return &Problem{Title: "Nothing to confirm", Status: http.StatusConflict, Detail: "nothing to confirm"}
}

func (m *machine) edit(match string, body []byte) (*Change, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if match != "*" && match != m.rev() {
		return nil, &Problem{Type: Stale, Title: "Stale", Status: http.StatusPreconditionFailed}
	}
	if bytes.Contains(body, []byte("broken")) {
		return nil, &Problem{Type: Invalid, Title: "Invalid", Status: 422, Errors: []Finding{{Line: 1, Col: 2, Path: "action", Message: "no", Remedy: "yes"}}}
	}
	if bytes.Contains(body, []byte("explode")) {
		return nil, errors.New("disk: secret detail")
	}
	m.revision++
	m.body = body
	return &Change{Revision: m.rev(), Changes: []Item{{Kind: "route", Name: "x", Change: "added"}}}, nil
}

func (m *machine) PutRoute(_ context.Context, _ string, body []byte, match string) (*Change, error) {
	return m.edit(match, body)
}

func (m *machine) DeleteRoute(_ context.Context, _, match string) (*Change, error) {
	return m.edit(match, nil)
}

func (m *machine) PutApp(_ context.Context, _ string, body []byte, match string) (*Change, error) {
	return m.edit(match, body)
}

func (m *machine) DeleteApp(_ context.Context, _, match string) (*Change, error) {
	return m.edit(match, nil)
}

func (m *machine) PutConfig(_ context.Context, body []byte, match string) (*Change, error) {
	return m.edit(match, body)
}

func (m *machine) Config(context.Context) (*ConfigView, error) {
	return &ConfigView{ConfigStatus: ConfigStatus{Files: []string{"q.yaml"}, Revision: m.rev(), LoadedAt: began}}, nil
}

func (m *machine) Check(_ context.Context, body []byte) (*Change, error) {
	if bytes.Contains(body, []byte("broken")) {
		return nil, &Problem{Type: Invalid, Title: "Invalid", Status: 422, Errors: []Finding{{File: "body", Line: 1, Message: "no"}}}
	}
	return &Change{Revision: m.rev(), DryRun: true}, nil
}

func (m *machine) Ports() []Port {
	next := began.Add(time.Minute)
	return []Port{
		{Proto: "tcp", Address: "::", Port: 80, Wanted: ":80", State: "bound", Since: began, Source: "file", Routes: []string{"api", "hello"}},
		{
			Proto: "tcp", Address: "::", Port: 443, Wanted: ":443", State: "retrying", Since: began, Source: "file", Routes: []string{"mysql"},
			Error: "held", NextTry: &next,
			Holder: &Holder{PID: 812, Started: began, Command: "nginx -g daemon", Exe: "/usr/sbin/nginx", User: "www-data", Unit: "nginx.service"},
		},
	}
}

func (m *machine) History(port uint16) []PortEvent {
	if port == 8080 {
		return []PortEvent{{Time: began, State: "bound", Address: ":8080"}, {Time: began.Add(time.Hour), State: "released", Address: ":8080", Message: "the last route left"}}
	}
	return nil
}

func (m *machine) Certificates() []Certificate {
	return []Certificate{{
		Name: "a.test", Names: []string{"a.test"}, Source: "auto", State: "failing", NotAfter: &began, Error: "no answer", Attempts: 2,
		Users: []string{"route a"},
	}}
}

func (m *machine) Renew(_ context.Context, name string) (*Certificate, error) {
	if name == "nobody.test" {
		return nil, &Problem{Title: "No such certificate", Status: 404, Detail: "no certificate has that name"}
	}
	return &Certificate{Name: name, Names: []string{name}, State: "ordering", Users: []string{}}, nil
}

func (m *machine) Authority() (*Authority, error) {
	return &Authority{Root: "PEM", Name: "local", Fingerprint: "AB:CD", NotAfter: began}, nil
}

func (m *machine) options() Options {
	return Options{
		Status: func() Status {
			return Status{
				PID: 1, Version: "9", State: "degraded", Since: began, Config: ConfigStatus{Revision: m.rev(), LoadedAt: began},
				Connections: Slots{Active: 3, Max: 100}, Problems: []Trouble{{Kind: "port", Object: ":443", Message: "held", Remedy: "free it"}},
			}
		},
		Ready:   func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.ready },
		Control: m, Editor: m, Configs: m, Ports: m, Certificates: m, Events: m.events,
		Upstreams: func() []Upstream {
			return []Upstream{{Name: "web", Targets: []Target{{Target: "10.0.0.5:8080", State: "up"}, {Target: "10.0.0.6:8080", State: "down", Reason: "connection refused"}}}}
		},
		Connections: func() []Connection {
			return []Connection{{ID: "1", Client: "10.1.1.1:5", Route: "api", Since: began}}
		},
		Explain: func(_ context.Context, q Question) (*Explanation, error) {
			if q.RequestID != "" {
				return nil, nil
			}
			return &Explanation{Question: q.Text, Outcome: q.Method + " " + q.Host + " " + q.Target + " " + q.Header["x-a"] + " " + q.Client}, nil
		},
		Stop: func() { m.mu.Lock(); m.stopped++; m.mu.Unlock() },
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "up 1\n")
			_ = http.NewResponseController(w).Flush()
			if m.scrape != nil {
				<-m.scrape
			}
			_, _ = io.WriteString(w, "down 0\n")
		}),
		Admin: plan.AdminSettings{Address: "127.0.0.1:0", Token: "hush"},
	}
}

// serve runs an API on a listener until the test ends.
func serve(t *testing.T, a *API, l net.Listener, kind Kind) {
	t.Helper()
	done := make(chan error)
	go func() { done <- a.Serve(l, kind) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := a.Close(ctx); err != nil {
			t.Error("close:", err)
		}
		if err := <-done; err != nil {
			t.Error("serve:", err)
		}
	})
}

// onSocket serves m on a unix socket and returns a client and the path.
func onSocket(t *testing.T, m *machine) (*Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, New(m.options()), l, Socket)
	c := NewClient(path)
	t.Cleanup(c.Close)
	return c, path
}

// answer is what a raw request got.
type answer struct {
	status int
	head   http.Header
	body   string
}

func (c *Client) raw(t *testing.T, method, path, body string, head ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range head {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

func TestAPI_EveryEndpointAnswers(t *testing.T) {
	c, _ := onSocket(t, newMachine())
	const match = "If-Match: *"
	for _, q := range []struct {
		method, path, body string
		head               []string
		status             int
		want               string // a part of the body
	}{
		{"GET", "/v1/status", "", nil, 200, `{"pid":1,"version":"9","state":"degraded","since":"2026-05-01T12:00:00Z","config":{"files":[],"revision":"r7","loaded_at":"2026-05-01T12:00:00Z","error":""},"connections":{"active":3,"max":100},"problems":[{"kind":"port","object":":443","message":"held","remedy":"free it"}]}`},
		{"GET", "/v1/ports", "", nil, 200, `{"proto":"tcp","address":"::","port":443,"wanted":":443","state":"retrying","since":"2026-05-01T12:00:00Z","source":"file","origin":"","routes":["mysql"],"app":"","holder":{"pid":812,"started":"2026-05-01T12:00:00Z","command":"nginx -g daemon","exe":"/usr/sbin/nginx","user":"www-data","unit":"nginx.service","container":"","container_id":"","engine":"","helper":"","state_dir":"","text":"","stop":""},"error":"held","warning":"","next_try":"2026-05-01T12:01:00Z"}`},
		{"GET", "/v1/ports", "", nil, 200, `"holder":null,"error":"","warning":"","next_try":null`},
		{"GET", "/v1/ports/443", "", nil, 200, `"state":"retrying"`},
		{"GET", "/v1/ports/8080", "", nil, 200, `"state":"released"`},
		{"GET", "/v1/ports/8080", "", nil, 200, `"history":[{"time":"2026-05-01T12:00:00Z","state":"bound"`},
		{"GET", "/v1/ports/81", "", nil, 404, `quaymaster ports who 81`},
		{"GET", "/v1/ports/0", "", nil, 400, `not a port`},
		{"GET", "/v1/ports/99999", "", nil, 400, `not a port`},
		{"GET", "/v1/routes", "", nil, 200, `"name":"api","source":"file","place":{"file":"q.yaml","line":12,"col":5},"priority":3,"match":{"ports":[":80"],"domains":["api.test"],"path":["/v1/*"],"methods":["GET"],"headers":{"X-A":"1","X-B":"/c.*/"},"client_ips":["10.0.0.0/8"],"protocols":["h2","grpc"]},"tls":"","action":"forward"`},
		{"GET", "/v1/routes", "", nil, 200, `{"target":"10.0.0.6:8080","state":"down","reason":"connection refused"`},
		{"GET", "/v1/routes", "", nil, 200, `"name":"mysql","source":"file","place":{"file":"q.yaml","line":30,"col":5},"priority":0,"match":{"ports":[":443"],"domains":[],"path":[]},"tls":"passthrough","action":"tunnel"`},
		{"PUT", "/v1/routes/fresh", `{"x":1}`, []string{match}, 200, `{"revision":"r8","changes":[{"kind":"route","name":"x","change":"added"}],"connections_touched":0}`},
		{"PUT", "/v1/routes/fresh", `{"x":1}`, nil, 428, `If-Match`},
		{"PUT", "/v1/routes/fresh", `{"x":1}`, []string{`If-Match: "old"`}, 412, `urn:quaymaster:stale`},
		{"PUT", "/v1/routes/fresh", `{"x":1}`, []string{`If-Match: "*"`}, 412, `urn:quaymaster:stale`},
		{"PUT", "/v1/routes/fresh", `{"x":1}`, []string{`If-Match: W/"r8"`}, 200, `"revision":"r9"`},
		{"PUT", "/v1/routes/fresh", ``, []string{match}, 400, `empty`},
		{"PUT", "/v1/routes/fresh", `broken`, []string{match}, 422, `"errors":[{"file":"","line":1,"col":2,"path":"action","message":"no","remedy":"yes"}]`},
		{"PUT", "/v1/routes/fresh", `explode`, []string{match}, 500, `log says`},
		{"PUT", "/v1/routes/api", `{"x":1}`, []string{match}, 409, `"file":"q.yaml","line":12,"col":5`},
		{"PUT", "/v1/routes/Bad_Name", `{"x":1}`, []string{match}, 400, `not a name`},
		{"DELETE", "/v1/routes/hello", ``, []string{match}, 200, `"revision":"r10"`},
		{"DELETE", "/v1/routes/hello", ``, nil, 428, `If-Match`},
		{"DELETE", "/v1/routes/api", ``, []string{match}, 409, `q.yaml:12`},
		{"DELETE", "/v1/routes/nobody", ``, []string{match}, 404, `no route`},
		{"GET", "/v1/certificates", "", nil, 200, `[{"name":"a.test","names":["a.test"],"source":"auto","state":"failing","not_before":null,"not_after":"2026-05-01T12:00:00Z","issuer":"","challenge":"","error":"no answer","warning":"","attempts":2,"next_try":null,"renew_at":null,"on_demand":false,"users":["route a"],"file":"","ocsp":""}]`},
		{"POST", "/v1/certificates/a.test/renew", "", nil, 202, `"state":"ordering"`},
		{"POST", "/v1/certificates/%2A.w.test/renew", "", nil, 202, `"name":"*.w.test"`},
		{"POST", "/v1/certificates/nobody.test/renew", "", nil, 404, `no certificate`},
		{"GET", "/v1/certificates/a.test/renew", "", nil, 405, `takes POST`},
		{"POST", "/v1/certificates/a.test", "", nil, 404, `nothing at`},
		{"POST", "/v1/certificates//renew", "", nil, 404, `nothing at`},
		{"GET", "/v1/ca", "", nil, 200, `"fingerprint":"AB:CD"`},
		{"GET", "/v1/config", "", nil, 200, `"files":["q.yaml"],"revision":"r10"`},
		{"PUT", "/v1/config", "{}", nil, 428, `If-Match`},
		{"PUT", "/v1/config", "{}", []string{`If-Match: "r10"`}, 200, `"revision":"r11"`},
		{"POST", "/v1/check", "", nil, 200, `"dry_run":true`},
		{"POST", "/v1/check", "broken", nil, 422, `"file":"body","line":1`},
		{"POST", "/v1/reload", "", nil, 200, `"connections_touched":2`},
		{"POST", "/v1/reload", "[1]", nil, 400, `dry_run`},
		{"POST", "/v1/reload", `{"dryrun":true}`, nil, 400, `dry_run`},
		{"POST", "/v1/reload?confirm=soon", "", nil, 400, `not a duration`},
		{"POST", "/v1/confirm", "", nil, 409, `nothing to confirm`},
		{"POST", "/v1/stop", "", nil, 202, `"state":"draining"`},
		{"GET", "/v1/graph", "", nil, 200, `{"from":"port/:80","to":"route/api"}`},
		{"GET", "/v1/connections", "", nil, 200, `"client":"10.1.1.1:5"`},
		{"GET", "/v1/events?last=x", "", nil, 400, `number of events`},
		{"GET", "/v1/explain?url=https://A.test/x?y=1&method=post&header=X-A:%207&client=10.0.0.1", "", nil, 200, `"outcome":"POST a.test /x?y=1 7 10.0.0.1"`},
		{"GET", "/v1/explain", "", nil, 400, `ask for a URL`},
		{"GET", "/v1/explain?url=0123456789abcdef", "", nil, 404, `nothing is known`},
		{"GET", "/v1/openapi.json", "", nil, 200, `"openapi":"3.1.0"`},
		{"GET", "/metrics", "", nil, 200, "up 1\n"},
		{"GET", "/health", "", nil, 200, `alive`},
		{"GET", "/ready", "", nil, 200, `ready`},
		{"GET", "/v1/nothing", "", nil, 404, `openapi.json`},
		{"GET", "/v1/routes/a/b", "", nil, 404, `nothing at`},
		{"GET", "/", "", nil, 404, `nothing at`},
		{"POST", "/v1/status", "", nil, 405, `takes GET`},
		{"PATCH", "/v1/config", "", nil, 405, `takes GET, PUT`},
		{"GET", "/v1/status", "", []string{"Origin: https://evil.example"}, 403, `another origin`},
		{"GET", "/v1/status", "", []string{"Origin: null"}, 403, `another origin`},
		{"GET", "/v1/status", "", []string{"Origin: http://localhost"}, 200, `"pid"`},
	} {
		t.Run(q.method+" "+q.path+" "+fmt.Sprint(q.status), func(t *testing.T) {
			got := c.raw(t, q.method, q.path, q.body, q.head...)
			if got.status != q.status || !strings.Contains(got.body, q.want) {
				t.Fatalf("%d %s\nwant %d and %s", got.status, got.body, q.status, q.want)
			}
			if q.status < 400 {
				return
			}
			var p Problem
			if err := json.Unmarshal([]byte(got.body), &p); err != nil || p.Status != q.status || p.Title == "" || p.Type == "" {
				t.Errorf("not a problem: %s (%v)", got.body, err)
			}
			if kind := got.head.Get("Content-Type"); kind != "application/problem+json" {
				t.Errorf("content type %s", kind)
			}
			if strings.Contains(got.body, "secret") {
				t.Errorf("internals leak: %s", got.body)
			}
			if allow := got.head.Get("Allow"); q.status == 405 && "takes "+allow != q.want {
				t.Errorf("Allow: %s", allow)
			}
		})
	}
}

func TestAPI_ReadyFollowsTheDaemon(t *testing.T) {
	m := newMachine()
	c, _ := onSocket(t, m)
	m.mu.Lock()
	m.ready = false
	m.mu.Unlock()
	if got := c.raw(t, "GET", "/ready", ""); got.status != 503 {
		t.Errorf("ready answers %d while draining", got.status)
	}
	if got := c.raw(t, "GET", "/health", ""); got.status != 200 {
		t.Errorf("health answers %d while draining", got.status)
	}
}

func TestAPI_EditCarriesTheNewRevision(t *testing.T) {
	c, _ := onSocket(t, newMachine())
	tag := c.raw(t, "GET", "/v1/routes", "").head.Get("ETag")
	first := c.raw(t, "PUT", "/v1/routes/a", "{}", "If-Match: "+tag)
	second := c.raw(t, "PUT", "/v1/routes/a", "{}", "If-Match: "+first.head.Get("ETag"))
	stale := c.raw(t, "PUT", "/v1/routes/a", "{}", "If-Match: "+tag)
	if first.status != 200 || second.status != 200 || stale.status != 412 {
		t.Errorf("%d, %d, %d", first.status, second.status, stale.status)
	}
}

func TestAPI_ReloadOptionsFromBodyOrQuery(t *testing.T) {
	m := newMachine()
	c, _ := onSocket(t, m)
	for _, q := range [][2]string{
		{"/v1/reload", `{"dry_run":true}`},
		{"/v1/reload?dry_run=1", ""},
		{"/v1/reload", `{"confirm":"2m"}`},
		{"/v1/reload", `{"confirm":120}`},
		{"/v1/reload?confirm=120", ""},
	} {
		if got := c.raw(t, "POST", q[0], q[1]); got.status != 200 {
			t.Errorf("%v: %d %s", q, got.status, got.body)
		}
	}
	two := 2 * time.Minute
	want := []ReloadOptions{{DryRun: true}, {DryRun: true}, {Confirm: two}, {Confirm: two}, {Confirm: two}}
	if d := cmp.Diff(want, m.reloads); d != "" {
		t.Error(d)
	}
}

func TestAPI_BodiesAreBounded(t *testing.T) {
	m := newMachine()
	c, _ := onSocket(t, m)
	const mib = 1 << 20
	exact := strings.Repeat(" ", mib-2) + "{}"
	if got := c.raw(t, "PUT", "/v1/config", exact, "If-Match: *"); got.status != 200 || len(m.body) != mib {
		t.Errorf("1 MiB: %d", got.status)
	}
	for _, q := range [][2]string{{"PUT", "/v1/config"}, {"PUT", "/v1/routes/x"}, {"POST", "/v1/check"}, {"POST", "/v1/reload"}} {
		if got := c.raw(t, q[0], q[1], exact+" ", "If-Match: *"); got.status != 413 {
			t.Errorf("%v with 1 MiB and a byte: %d %s", q, got.status, got.body)
		}
	}
}

func TestAPI_ListsAreNeverNull(t *testing.T) {
	m := newMachine()
	m.plan = &plan.Plan{}
	o := m.options()
	o.Upstreams, o.Connections = nil, func() []Connection { return nil }
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, New(o), l, Socket)
	c := NewClient(path)
	t.Cleanup(c.Close)
	for path, want := range map[string]string{"/v1/routes": "[]\n", "/v1/connections": "[]\n", "/v1/graph": `{"nodes":[],"edges":[]}` + "\n"} {
		if got := c.raw(t, "GET", path, ""); got.body != want {
			t.Errorf("%s: %s", path, got.body)
		}
	}
}

func TestAPI_PartsThatAreNotWiredSaySo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, New(Options{}), l, Socket)
	c := NewClient(path)
	t.Cleanup(c.Close)
	for _, e := range endpoints() {
		got := c.raw(t, e.method, strings.NewReplacer("{port}", "80", "{name}", "x").Replace(e.path), "{}", "If-Match: *")
		want := map[string]int{"/health": 200, "/v1/openapi.json": 200, "/ready": 503, "/metrics": 404}[e.path]
		if want == 0 {
			want = 501
		}
		if got.status != want {
			t.Errorf("%s %s: %d", e.method, e.path, got.status)
		}
	}
}

func TestOpenAPI_DescribesEveryEndpointAndEveryReference(t *testing.T) {
	c, _ := onSocket(t, newMachine())
	text := c.raw(t, "GET", "/v1/openapi.json", "").body
	var doc struct {
		Paths      map[string]map[string]struct{ Summary string }
		Components struct{ Schemas map[string]json.RawMessage }
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	for _, e := range endpoints() {
		if doc.Paths[e.path][strings.ToLower(e.method)].Summary == "" {
			t.Errorf("%s %s is missing", e.method, e.path)
		}
	}
	for _, part := range strings.Split(text, `"$ref":"`)[1:] {
		ref, _, _ := strings.Cut(part, `"`)
		name, ok := strings.CutPrefix(ref, "#/components/schemas/")
		if _, there := doc.Components.Schemas[name]; !ok || !there {
			t.Errorf("%s leads nowhere", ref)
		}
	}
	if !slices.Contains(strings.Fields(strings.ReplaceAll(string(doc.Components.Schemas["Port"]), `"`, " ")), "next_try") {
		t.Errorf("Port is not described: %s", doc.Components.Schemas["Port"])
	}
}
