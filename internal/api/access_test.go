package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// onTCP serves m on a TCP listener and returns its address.
func onTCP(t *testing.T, m *machine, kind Kind, admin plan.AdminSettings) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := m.options()
	if admin.Address == "" {
		admin.Address = l.Addr().String()
	}
	o.Admin = admin
	serve(t, New(o), l, kind)
	return l.Addr().String()
}

func get(t *testing.T, method, addr, path string, set func(*http.Request)) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if set != nil {
		set(req)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

func TestAccess_TCP(t *testing.T) {
	addr := onTCP(t, newMachine(), TCP, plan.AdminSettings{Token: "hush"})
	_, port, _ := net.SplitHostPort(addr)
	for _, q := range []struct {
		name, method, path string
		token, host        string
		origin             string
		want               int
	}{
		{"with the token", "GET", "/v1/status", "Bearer hush", "", "", 200},
		{"case of the scheme", "GET", "/v1/status", "bearer hush", "", "", 200},
		{"without a token", "GET", "/v1/status", "", "", "", 401},
		{"wrong token", "GET", "/v1/status", "Bearer hus", "", "", 401},
		{"empty token", "GET", "/v1/status", "Bearer ", "", "", 401},
		{"other scheme", "GET", "/v1/status", "Basic hush", "", "", 401},
		{"metrics need it too", "GET", "/metrics", "", "", "", 401},
		{"metrics with it", "GET", "/metrics", "Bearer hush", "", "", 200},
		{"health needs none", "GET", "/health", "", "", "", 200},
		{"ready needs none", "GET", "/ready", "", "", "", 200},
		{"rebound name", "GET", "/v1/status", "Bearer hush", "evil.example:" + port, "", 403},
		{"rebound name without port", "GET", "/v1/status", "Bearer hush", "evil.example", "", 403},
		{"another port", "GET", "/v1/status", "Bearer hush", "127.0.0.1:1", "", 403},
		{"localhost", "GET", "/v1/status", "Bearer hush", "LocalHost:" + port, "", 200},
		{"an address", "GET", "/v1/status", "Bearer hush", "[::1]:" + port, "", 200},
		{"foreign origin", "GET", "/v1/status", "Bearer hush", "", "https://evil.example", 403},
		{"own origin", "GET", "/v1/status", "Bearer hush", "", "http://" + addr, 200},
		{"writing", "POST", "/v1/reload", "Bearer hush", "", "", 403},
		{"writing without a token", "POST", "/v1/reload", "", "", "", 401},
		{"stopping", "POST", "/v1/stop", "Bearer hush", "", "", 403},
		{"checking only reads", "POST", "/v1/check", "Bearer hush", "", "", 200},
	} {
		t.Run(q.name, func(t *testing.T) {
			resp := get(t, q.method, addr, q.path, func(r *http.Request) {
				if q.token != "" {
					r.Header.Set("Authorization", q.token)
				}
				if q.origin != "" {
					r.Header.Set("Origin", q.origin)
				}
				r.Host = q.host
			})
			if resp.StatusCode != q.want {
				t.Errorf("%d, want %d", resp.StatusCode, q.want)
			}
			if q.want == 401 && resp.Header.Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate (RFC 9110, section 11.6.1)")
			}
		})
	}
}

func TestAccess_AllowSaysWhatTCPMayDo(t *testing.T) {
	bearer := func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }
	for _, q := range []struct {
		allow       []string
		read, write int
	}{
		{nil, 200, 403}, {[]string{"read"}, 200, 403}, {[]string{"read", "write"}, 200, 200}, {[]string{"write"}, 403, 200},
	} {
		addr := onTCP(t, newMachine(), TCP, plan.AdminSettings{Token: "x", Allow: q.allow})
		read := get(t, "GET", addr, "/v1/status", bearer).StatusCode
		write := get(t, "POST", addr, "/v1/reload", bearer).StatusCode
		if read != q.read || write != q.write {
			t.Errorf("allow %v: read %d, write %d", q.allow, read, write)
		}
	}
}

func TestAccess_NoTokenInTheConfigurationLetsNobodyIn(t *testing.T) {
	addr := onTCP(t, newMachine(), TCP, plan.AdminSettings{})
	for _, token := range []string{"", "Bearer", "Bearer "} {
		got := get(t, "GET", addr, "/v1/status", func(r *http.Request) { r.Header.Set("Authorization", token) })
		if got.StatusCode != 401 {
			t.Errorf("token %q: %d", token, got.StatusCode)
		}
	}
}

func TestAccess_MetricsListenerShowsNothingElse(t *testing.T) {
	addr := onTCP(t, newMachine(), Metrics, plan.AdminSettings{})
	for _, e := range endpoints() {
		want := 404
		if e.path == "/metrics" || e.path == "/health" || e.path == "/ready" {
			want = 200
		}
		got := get(t, e.method, addr, strings.NewReplacer("{port}", "80", "{name}", "x").Replace(e.path), func(r *http.Request) { r.Host = "prometheus.example" })
		if got.StatusCode != want {
			t.Errorf("%s %s: %d", e.method, e.path, got.StatusCode)
		}
	}
}

// askAsPeer is the body of a child process: it asks for the status on a socket and exits with 100 less than the code.
func askAsPeer() {
	c := NewClient(os.Getenv("QUAYMASTER_TEST_PEER"))
	err := c.Get(context.Background(), "/v1/status", nil)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func TestAccess_SocketAsksTheKernelWhoIsThere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	const stranger, member = 65533, 65532
	exe := filepath.Join("/tmp", fmt.Sprintf("peer-%d.test", os.Getpid())) // a folder that any user may enter
	text, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, text, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(exe)
	path := exe + ".sock"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	o := newMachine().options()
	o.Admin.Group = fmt.Sprint(member)
	serve(t, New(o), l, Socket)
	for _, q := range []struct {
		name string
		cred syscall.Credential
		ok   bool
	}{
		{"root", syscall.Credential{}, true},
		{"stranger", syscall.Credential{Uid: stranger, Gid: stranger}, false},
		{"first group", syscall.Credential{Uid: stranger, Gid: member}, true},
		{"further group", syscall.Credential{Uid: stranger, Gid: stranger, Groups: []uint32{1, member}}, true},
	} {
		cmd := exec.Command(exe)
		cmd.Dir = "/"
		cmd.Env = []string{"QUAYMASTER_TEST_PEER=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &q.cred}
		out, err := cmd.CombinedOutput()
		if (err == nil) != q.ok {
			t.Errorf("%s: %v %s", q.name, err, out)
		}
		if !q.ok && !strings.Contains(string(out), "admin.group") {
			t.Errorf("%s is not told what to do: %s", q.name, out)
		}
	}
}

func TestAccess_SocketWithoutAPeerIsRefused(t *testing.T) {
	// A TCP connection served as if it were the socket has no peer that the kernel vouches for.
	addr := onTCP(t, newMachine(), Socket, plan.AdminSettings{})
	if got := get(t, "GET", addr, "/v1/status", nil).StatusCode; got != 403 {
		t.Errorf("%d", got)
	}
}

func TestServe_ConnectionsAreBounded(t *testing.T) {
	addr := onTCP(t, newMachine(), Metrics, plan.AdminSettings{})
	var held []net.Conn
	for range maxConns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	// Each of them was accepted: a byte short of a request gets no answer, but the connection is served.
	over, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	ask := []byte("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if _, err := over.Write(ask); err != nil {
		t.Fatal(err)
	}
	_ = over.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	b := make([]byte, 12)
	if n, err := over.Read(b); err == nil {
		t.Fatalf("answered beyond the bound: %q", b[:n])
	}
	held[7].Close()
	_ = over.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := over.Read(b); err != nil || string(b[:n]) != "HTTP/1.1 200" {
		t.Errorf("a free slot is not used: %q %v", b[:n], err)
	}
}

func TestAccess_WhoMayWriteMayNotSayWhatIsRun(t *testing.T) {
	for _, q := range []struct {
		path, body string
		with, want int // without and with run
	}{
		{"/v1/apps/web", `{"command": ["id"]}`, 200, 403},
		{"/v1/apps/web", `{"command": ["id"], "user": "root"}`, 200, 403},
		{"/v1/apps/web", `null`, 200, 403},
		{"/v1/config", `{"apps": {"web": {"command": ["id"]}}}`, 200, 403},
		{"/v1/config", `{"Apps": {"web": {"command": ["id"]}}} and more`, 200, 403},
		{"/v1/config", `{"routes": {}}`, 200, 200},
		{"/v1/routes/web", `{}`, 200, 200},
	} {
		for _, run := range []bool{false, true} {
			allow, want := []string{"read", "write"}, q.want
			if run {
				allow, want = append(allow, "run"), q.with
			}
			addr := onTCP(t, newMachine(), TCP, plan.AdminSettings{Token: "x", Allow: allow})
			got := get(t, "PUT", addr, q.path, func(r *http.Request) {
				r.Header.Set("Authorization", "Bearer x")
				r.Header.Set("If-Match", "*")
				r.Body = io.NopCloser(strings.NewReader(q.body))
			})
			if got.StatusCode != want {
				t.Errorf("%s %s, allow %v: %d, want %d", q.path, q.body, allow, got.StatusCode, want)
			}
		}
	}
}

func TestAccess_AMemberOfTheGroupMakesAppsOfItsOwn(t *testing.T) {
	for _, q := range []struct {
		uid  uint32
		body string
		want bool
	}{
		{0, `{"user": "root"}`, true},
		{uint32(os.Geteuid()), `{}`, true},
		{4242, `{}`, false},
		{4242, `{"user": "root"}`, false},
		{4242, `{"user": 4242}`, false}, // written as a text
		{4242, `{"user": "4242"}`, true},
		{4242, `{"user": "4242", "user": "root"}`, false},
		{4242, `{"user": "4242", "image": "x"}`, false},
		{4242, `{"user": "4242", "inherit_env": true}`, false}, // it would say what the daemon knows
		{4242, `{"user": "4242", "inherit_env": "yes"}`, false},
		{4242, `{"user": "4242", "inherit_env": false}`, true},
		{0, `{"user": "root", "inherit_env": true}`, true},
		{4242, `not JSON`, false},
	} {
		r, _ := http.NewRequest("PUT", "/v1/apps/web", nil)
		r = r.WithContext(context.WithValue(context.Background(), peerKey{}, &peer{uid: q.uid}))
		a := New(Options{})
		if err := a.admitApps(r, json.RawMessage(q.body)); (err == nil) != q.want {
			t.Errorf("user %d, %s: %v", q.uid, q.body, err)
		}
		a.o.Admin.Allow = []string{"run"}
		if err := a.admitApps(r, json.RawMessage(q.body)); err != nil {
			t.Errorf("user %d, %s, with run: %v", q.uid, q.body, err)
		}
	}
}
