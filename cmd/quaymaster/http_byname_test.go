package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A nameServer answers A queries over UDP, as its table says at the moment; several answers for a name take turns.
type nameServer struct {
	addr  string
	asked atomic.Int32

	mu    sync.Mutex // guards the two below
	names map[string][]string
	turn  map[string]int
}

func startNameServer(t testing.TB, names map[string][]string) *nameServer {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{addr: c.LocalAddr().String(), names: names, turn: map[string]int{}}
	over := make(chan struct{})
	go func() {
		defer close(over)
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if out := s.answer(b[:n]); out != nil {
				_, _ = c.WriteTo(out, from)
			}
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-over })
	return s
}

func (s *nameServer) answer(query []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: h.ID, Response: true, RecursionAvailable: true, RCode: dnsmessage.RCodeNameError},
		Questions: []dnsmessage.Question{q},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimSuffix(q.Name.String(), ".")
	if list := s.names[name]; len(list) > 0 {
		m.RCode = dnsmessage.RCodeSuccess
		if q.Type == dnsmessage.TypeA {
			s.asked.Add(1)
			ip := [4]byte(net.ParseIP(list[s.turn[name]%len(list)]).To4())
			s.turn[name]++
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, // TTL 0
				Body:   &dnsmessage.AResource{A: ip},
			}}
		}
	}
	out, _ := m.Pack()
	return out
}

// webAt serves HTTP at exactly this address, and ends each connection after one answer. It answers with its name and
// the Host it was asked for.
func webAt(t testing.TB, addr, name string, hits *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("needs a port below 1024: %v", err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hits != nil {
			hits.Add(1)
		}
		fmt.Fprintf(w, "%s %s", name, r.Host)
	})}
	srv.SetKeepAlivesEnabled(false)
	go srv.Serve(l)
	t.Cleanup(func() { _ = srv.Close() })
}

// askFor asks at a local port for a host.
func askFor(t testing.TB, port int, host string) (int, string) {
	t.Helper()
	c := dial(t, port)
	defer c.Close()
	res, body := say(t, c, bufio.NewReader(c), "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
	return res.StatusCode, body
}

// alertFor opens with a ClientHello for a name and returns the alert that comes, 0 if there is none.
func alertFor(t testing.TB, port int, name string) byte {
	t.Helper()
	c := dial(t, port)
	defer c.Close()
	_, _ = c.Write(hello(name))
	if b := untilEnd(t, c, 10*time.Second); len(b) == 7 && b[0] == 21 {
		return b[6]
	}
	return 0
}

func TestC09_ByNameReachesWhatIsAllowed(t *testing.T) {
	t.Parallel()
	var got [2]atomic.Int32
	other := freePort(t)
	webAt(t, "127.0.0.77:80", "eighty", &got[0])
	webAt(t, fmt.Sprintf("127.0.0.77:%d", other), "other", nil)
	six, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "six "+r.Host) })}
	go srv.Serve(six)
	t.Cleanup(func() { _ = srv.Close() })
	_, sixPort, _ := net.SplitHostPort(six.Addr().String())
	tls, err := net.Listen("tcp", "127.0.0.77:443")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tls.Close() })
	first := make(chan []byte, 1)
	go func() {
		for {
			c, err := tls.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			n, _ := c.Read(b)
			first <- b[:n]
			_, _ = io.WriteString(c, "tls server")
			_ = c.Close()
		}
	}()
	dns := startNameServer(t, map[string][]string{
		"example.test": {"127.0.0.77"}, "www.example.test": {"127.0.0.77"}, "a.b.example.test": {"127.0.0.77"},
		"exact.test": {"127.0.0.77"}, "sub.exact.test": {"127.0.0.77"}, "never.test": {"127.0.0.77"},
	})
	p := freePort(t)
	q := start(t, fmt.Sprintf("listen_addrs: [\"127.0.0.1:%d\"]\nallowlist: [\"*.Example.test\", \"EXACT.test.:443\", \"[::1]\", gone.test]\n", p)+
		fmt.Sprintf("by_name: {allow_private: true, resolver: %q, ports: [80, 443, %d, %s]}\n", dns.addr, other, sixPort))
	for host, want := range map[string]string{
		"www.example.test": "eighty www.example.test", "example.test": "eighty example.test", "WWW.Example.TEST": "eighty WWW.Example.TEST",
		"www.example.test.": "eighty www.example.test.", "exact.test:80": "eighty exact.test:80", "exact.test": "eighty exact.test",
		fmt.Sprintf("www.example.test:%d", other): fmt.Sprintf("other www.example.test:%d", other), "[::1]:" + sixPort: "six [::1]:" + sixPort,
	} {
		if status, body := askFor(t, p, host); status != 200 || body != want {
			t.Errorf("Host %s: %d %q, want %q", host, status, body, want)
		}
	}
	for _, name := range []string{"www.example.test", "exact.test"} {
		c := dial(t, p)
		h := hello(name)
		_, _ = c.Write(h)
		if b := untilEnd(t, c, 10*time.Second); string(b) != "tls server" || !bytes.Equal(<-first, h) {
			t.Errorf("SNI %s: %q", name, b)
		}
		_ = c.Close()
	}
	before := got[0].Load()
	for host, want := range map[string]int{
		"never.test": 403, "a.b.example.test": 403, "sub.exact.test": 403, "example.test.evil.test": 403, "xexample.test": 403, "127.0.0.77": 403,
		"www.example.test:25": 403, "www.example.test:0": 403, "[::2]": 403, "gone.test": 502,
	} {
		if status, body := askFor(t, p, host); status != want {
			t.Errorf("Host %s: %d %q, want %d", host, status, body, want)
		}
	}
	if a := alertFor(t, p, "never.test"); a != 49 {
		t.Errorf("SNI never.test: alert %d, want access_denied", a)
	}
	if got[0].Load() != before {
		t.Error("a name that is not allowed was reached")
	}
	q.until("it is counted", func() bool { return q.rejected("not_allowed") >= 1 })
	// A request may not borrow the connection of another: the second one is judged by its own Host.
	c := dial(t, p)
	r := bufio.NewReader(c)
	say(t, c, r, "GET / HTTP/1.1\r\nHost: www.example.test\r\n\r\n")
	if res, _ := say(t, c, r, "GET / HTTP/1.1\r\nHost: never.test\r\n\r\n"); res.StatusCode != 403 {
		t.Errorf("the second request of a connection: %d", res.StatusCode)
	}
}

func TestC09_PrivateAddressesAndOurselvesAreRefused(t *testing.T) {
	t.Parallel()
	var hits atomic.Int32
	p, m := freePort(t), freePort(t)
	webAt(t, fmt.Sprintf("127.0.0.78:%d", p), "neighbour", &hits)
	dns := startNameServer(t, map[string][]string{
		"ten.test": {"10.1.2.3"}, "loop.test": {"127.0.0.78"}, "link.test": {"169.254.169.254"}, "cgn.test": {"100.64.1.1"}, "zero.test": {"0.0.0.0"},
		"many.test": {"224.0.0.1"}, "us.test": {"127.0.0.1"}, "changes.test": {"127.0.0.78", "10.0.0.1", "127.0.0.1"}, "flips.test": {"127.0.0.78", "127.0.0.1"},
	})
	body := func(private bool) string {
		return fmt.Sprintf("listen_addrs: [\"127.0.0.1:%d\"]\nmetrics: {enabled: true, address: %q}\nby_name: {allow_private: %v, resolver: %q, ports: [80, 443, %d, %d]}\n", p, at(m), private, dns.addr, p, m)
	}
	q := start(t, body(false))
	for _, host := range []string{
		"ten.test", "loop.test", "link.test", "cgn.test", "zero.test", "many.test", "us.test", "changes.test", "localhost", "127.0.0.78", "10.0.0.1", "169.254.169.254",
		"[::1]", "[::ffff:127.0.0.78]", "[fd00::1]", "[fe80::1]", "[64:ff9b::7f00:4e]", "[2002:7f00:4e::]", "[::]", "0.0.0.0", "2130706510", "0x7f.0.0.78", "0177.0.0.78",
	} {
		for _, port := range []string{"", fmt.Sprintf(":%d", p), fmt.Sprintf(":%d", m)} {
			if status, body := askFor(t, p, host+port); status != 403 && status != 508 && status != 502 {
				t.Errorf("Host %s%s: %d %q", host, port, status, body)
			}
		}
	}
	for _, name := range []string{"loop.test", "us.test", "localhost"} {
		if a := alertFor(t, p, name); a != 49 && a != 80 {
			t.Errorf("SNI %s: alert %d", name, a)
		}
	}
	if hits.Load() != 0 {
		t.Error("a private address was reached")
	}
	q.until("it is counted", func() bool { return q.rejected("private_address") >= 1 })
	q.reload(body(true))
	if status, body := askFor(t, p, fmt.Sprintf("loop.test:%d", p)); status != 200 || !strings.HasPrefix(body, "neighbour") {
		t.Errorf("allowed private address: %d %q", status, body)
	}
	// Ourselves are never reached, however we are called.
	for _, host := range []string{"us.test", "127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		for _, port := range []int{p, m} {
			if status, body := askFor(t, p, fmt.Sprintf("%s:%d", host, port)); status != 508 {
				t.Errorf("Host %s:%d, which is us: %d %q, want 508", host, port, status, body)
			}
		}
	}
	// A name whose address changes from one answer to the next is judged by the one that is dialled.
	reached, refused, asked := 0, 0, dns.asked.Load()
	for range 20 {
		status, body := askFor(t, p, fmt.Sprintf("flips.test:%d", p))
		switch {
		case status == 200 && strings.HasPrefix(body, "neighbour"):
			reached++
		case status == 508:
			refused++
		default:
			t.Errorf("flips.test: %d %q", status, body)
		}
	}
	if n := dns.asked.Load() - asked; reached != 10 || refused != 10 || n != 20 {
		t.Errorf("%d reached, %d refused after %d look-ups; want 10, 10, 20", reached, refused, n)
	}
}

func TestC09_TLSToOurselvesIsAnsweredByAnAlert(t *testing.T) {
	t.Parallel()
	dns := startNameServer(t, map[string][]string{"us.test": {"127.0.0.79"}})
	q := start(t, fmt.Sprintf("listen_addrs: [\"127.0.0.79:443\"]\nby_name: {allow_private: true, resolver: %q}\n", dns.addr))
	until(t, "the port is bound", func() bool { return q.wanted(443).State == "bound" })
	c, err := net.Dial("tcp", "127.0.0.79:443")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write(hello("us.test"))
	if b := untilEnd(t, c, 10*time.Second); len(b) != 7 || b[0] != 21 || b[6] != 80 {
		t.Errorf("answer % x, want the alert internal_error", b)
	}
	q.until("it is counted", func() bool { return q.rejected("loop") == 1 })
}

// need is the path of a program that a test cannot do without.
func need(t testing.TB, name string) string {
	t.Helper()
	bin, err := exec.LookPath(name)
	if err == nil {
		return bin
	}
	if _, err := os.Stat("/usr/sbin/" + name); err == nil {
		return "/usr/sbin/" + name
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: apt-get install openssh-server openssh-client", name)
	}
	t.Skipf("%s is missing: apt-get install openssh-server openssh-client", name)
	return ""
}

func TestC21_RealSSHThroughAMixedPort(t *testing.T) {
	t.Parallel()
	sshd, ssh, keygen := need(t, "sshd"), need(t, "ssh"), need(t, "ssh-keygen")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid == "0" { // sshd wants its empty folder
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	for _, name := range []string{"host", "id"} {
		if out, err := exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	port := freePort(t)
	config := fmt.Sprintf("ListenAddress 127.0.0.1:%d\nHostKey %[2]s/host\nAuthorizedKeysFile %[2]s/id.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"+
		"PermitRootLogin prohibit-password\nPidFile none\nPrintMotd no\n", port, dir)
	if err := os.WriteFile(dir+"/sshd_config", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	server := exec.Command(sshd, "-D", "-e", "-f", dir+"/sshd_config")
	server.Stderr = log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	until(t, "sshd listens", func() bool { return strings.Contains(log.String(), "Server listening") })
	mixed, only := freePort(t), freePort(t)
	q := start(t, fmt.Sprintf("routes:\n  - {name: ssh, match: {ports: [%d], protocols: [ssh]}, action: {targets: [%q]}}\n", mixed, at(port))+
		fmt.Sprintf("  - {name: own, match: {ports: [%d], protocols: [tcp]}, action: {targets: [%q]}}\n", only, at(port))+
		route("web", mixed, "a.test", httpTarget(t, "web", nil))+
		fmt.Sprintf("  - {name: tls, match: {ports: [%d], domains: [s.test]}, action: {targets: [\"127.0.0.1:9\"], tls: {mode: passthrough}}}\n", mixed))
	known, err := os.ReadFile(dir + "/host.pub")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MB
	for name, p := range map[string]int{"mixed port": mixed, "own port": only} {
		t.Run("C21 "+name, func(t *testing.T) {
			hosts := filepath.Join(t.TempDir(), "known")
			if err := os.WriteFile(hosts, []byte(fmt.Sprintf("[127.0.0.1]:%d %s", p, known)), 0o600); err != nil {
				t.Fatal(err)
			}
			run := func(stdin []byte, command string) []byte {
				t.Helper()
				cmd := exec.Command(ssh, "-F", "none", "-p", fmt.Sprint(p), "-i", dir+"/id", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
					"-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile="+hosts, me.Username+"@127.0.0.1", command)
				cmd.Stdin = bytes.NewReader(stdin)
				var complaint bytes.Buffer
				cmd.Stderr = &complaint
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("ssh: %v\n%s\nsshd:\n%s", err, complaint.String(), tail(log.String(), 20))
				}
				return out
			}
			if out := run(nil, "echo hello"); string(out) != "hello\n" {
				t.Errorf("echo: %q", out)
			}
			if out := run(data, "cat"); sha256.Sum256(out) != sha256.Sum256(data) {
				t.Errorf("1 MB there and back: %d bytes", len(out))
			}
		})
	}
	mustFetch(t, mixed, "a.test", "/", "web")
	if a := alertFor(t, mixed, "none.test"); a != 112 {
		t.Errorf("TLS on the same port: alert %d", a)
	}
	if n := q.rejected("unknown_protocol"); n != 0 {
		t.Errorf("unknown_protocol %v", n)
	}
}
