package holder

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFindNamesTheProcessThatListensAndNoClient(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	at := netip.MustParseAddrPort(ln.Addr().String())
	for range 10 { // clients of the port, and connections accepted on it
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	find := func(known map[uint64]*Holder) Holder {
		t.Helper()
		got, err := Find(func(a netip.AddrPort) bool { return a.Port() == at.Port() }, known)
		if err != nil || len(got) != 1 {
			t.Fatalf("Find = %+v, %v; want one holder", got, err)
		}
		return got[0]
	}
	h := find(nil)
	exe, _ := os.Executable()
	if h.Pid != os.Getpid() || h.Addr != at || h.Exe != exe || h.UID != os.Getuid() || h.User == "" || !strings.Contains(h.Command, "holder.test") || h.Proto != "tcp" {
		t.Errorf("holder %+v", h)
	}
	if age := time.Since(h.Started); age < -time.Second || age > 10*time.Minute {
		t.Errorf("started %v ago", age)
	}
	if s := h.String(); !strings.HasPrefix(s, "holder.test (pid ") {
		t.Errorf("String %q", s)
	}
	// One that is known is not looked for again, unless it is another process by now.
	known := h
	known.Command = "from memory"
	if got := find(map[uint64]*Holder{h.Inode: &known}); got.Command != "from memory" {
		t.Errorf("a known holder was looked for again: %+v", got)
	}
	known.Started = known.Started.Add(-time.Hour)
	if got := find(map[uint64]*Holder{h.Inode: &known}); got.Command == "from memory" {
		t.Error("another process under the pid of a known holder was taken for it")
	}
}

func TestUDPSocketsAreFoundAndConnectedOnesAreNot(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	peer, err := net.Dial("udp4", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	l := &Look{}
	for _, c := range []struct {
		at   net.Addr
		want int
	}{{pc.LocalAddr(), 1}, {peer.LocalAddr(), 0}} {
		at := netip.MustParseAddrPort(c.at.String())
		got, err := l.UDP(func(a netip.AddrPort) bool { return a == at })
		if err != nil || len(got) != c.want || c.want > 0 && (got[0].Pid != os.Getpid() || got[0].Proto != "udp") {
			t.Errorf("%s: %+v, %v; want %d of ours", at, got, err, c.want)
		}
	}
}

func TestUnixListenerIsFoundByItsPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "with a space.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := FindUnix(path); err != nil || len(got) != 1 || got[0].Pid != os.Getpid() || got[0].Proto != "unix" {
		t.Errorf("%+v, %v", got, err)
	}
}

// What lsof says of a real listener is what the tables say.
func TestP26_LsofAgreesWithTheTables(t *testing.T) {
	needs(t, "lsof")
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	for proto, at := range map[string]netip.AddrPort{"tcp": netip.MustParseAddrPort(ln.Addr().String()), "udp": netip.MustParseAddrPort(pc.LocalAddr().String())} {
		got, err := lsof(proto, func(a netip.AddrPort) bool { return a == at }, nil)
		if err != nil || len(got) != 1 || got[0].Pid != os.Getpid() || got[0].UID != os.Getuid() || got[0].Proto != proto {
			t.Errorf("%s %s: %+v, %v", proto, at, got, err)
		}
	}
}

// needs skips where a program is missing, except on the machine that must have them all.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing", p)
		}
		t.Skipf("LOUD SKIP: %s is not installed", p)
	}
}

// A socket that several processes have is its master's, the oldest; systemd counts only alone.
func TestOldestProcessIsTheHolder(t *testing.T) {
	worker := exec.Command("sleep", "600")
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = worker.Process.Kill(); _ = worker.Wait() }()
	identify := func(r row, pids ...int) Holder { return (&Look{}).identify(r, pids) }
	if h := identify(row{uid: 5}, worker.Process.Pid, os.Getpid()); h.Pid != os.Getpid() {
		t.Errorf("holder %+v, want the older process", h)
	}
	if h := identify(row{uid: 5}, 1, worker.Process.Pid); h.Pid != worker.Process.Pid || h.name != "sleep" {
		t.Errorf("holder %+v, want the service and not pid 1", h)
	}
	if h := identify(row{uid: 5}, 1); h.Pid != 1 || !strings.Contains(h.Stop(), "list-sockets") {
		t.Errorf("holder %+v, %q", h, h.Stop())
	}
	if h := identify(row{uid: 54321}); h.Pid != 0 || h.User != "54321" || h.Stop() != "" || !strings.Contains(h.String(), "uid 54321") {
		t.Errorf("holder %+v: %s", h, h.String())
	}
}

// One look walks the processes once for all that is asked, and again only for a socket that is younger.
func TestProcessesAreWalkedOnceForEachLook(t *testing.T) {
	open := func() (net.Listener, netip.AddrPort) {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		return ln, netip.MustParseAddrPort(ln.Addr().String())
	}
	l := &Look{}
	find := func(at netip.AddrPort) {
		t.Helper()
		if got, err := l.TCP(func(a netip.AddrPort) bool { return a == at }); err != nil || len(got) != 1 || got[0].Pid != os.Getpid() {
			t.Fatalf("%s: %+v, %v", at, got, err)
		}
	}
	_, a := open()
	_, b := open()
	find(a)
	find(b)
	if l.walks != 1 {
		t.Errorf("%d walks for two sockets", l.walks)
	}
	_, c := open()
	find(c)
	find(a)
	if l.walks != 2 {
		t.Errorf("%d walks with a younger socket, want 2", l.walks)
	}
	_, d := open()
	if got, _ := l.TCP(func(x netip.AddrPort) bool { return x == d }); len(got) != 1 || l.walks != 2 {
		t.Errorf("%d walks: they are not bounded", l.walks)
	}
}

func TestParseHex(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:1F90": "127.0.0.1:8080", "00000000:0050": "0.0.0.0:80",
		"00000000000000000000000000000000:01BB": "[::]:443", "00000000000000000000000001000000:01BB": "[::1]:443",
		"B80D0120000000000000000001000000:0001": "[2001:db8::1]:1",
		"":                                      "", "zz": "", "0100007F": "", "0100007F:10000": "", "01:0050": "",
	} {
		got, err := parseHex(in)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Errorf("parseHex(%q) = %v, %v; want %q", in, got, err, want)
		}
	}
}

func TestUnitAndContainerFromCgroup(t *testing.T) {
	id := strings.Repeat("0123456789ab", 5) + "cdef"
	for in, want := range map[string]groups{
		"0::/system.slice/nginx.service\n":                                                                {unit: "nginx.service"},
		"0::/system.slice/nginx.service/workers\n":                                                        {unit: "nginx.service"},
		"0::/system.slice/system-getty.slice/getty@tty1.service\n":                                        {unit: "getty@tty1.service"},
		"0::/web.slice/web-shop.slice\n":                                                                  {unit: "web-shop.slice"},
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/caddy.service\n":                      {unit: "caddy.service", user: true},
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1.scope\n":                       {unit: "run-r1.scope", user: true},
		"0::/user.slice/user-1000.slice/user@1000.service/init.scope\n":                                   {unit: "init.scope", user: true},
		"0::/user.slice/user-0.slice/session-3.scope\n":                                                   {unit: "session-3.scope"},
		"0::/system.slice/docker-" + id + ".scope\n":                                                      {engine: "docker", id: id},
		"12:cpu:/x\n1:name=systemd:/docker/" + id + "\n0::/\n":                                            {engine: "docker", id: id},
		"0::/machine.slice/libpod-" + id + ".scope/container\n":                                           {engine: "podman", id: id},
		"8:pids:/libpod_parent/libpod-" + id + "\n1:name=systemd:/\n0::/\n":                               {engine: "podman", id: id},
		"0::/system.slice/web.service/libpod-payload-" + id + "\n":                                        {unit: "web.service", engine: "podman", id: id},
		"0::/machine.slice/libpod-conmon-" + id + ".scope\n":                                              {engine: "podman", id: id},
		"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container\n": {unit: "user@1000.service", engine: "podman", id: id},
		"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope\n":                        {engine: "containerd", id: id},
		"0::/kubepods/besteffort/pod1-2/" + id + "\n":                                                     {engine: "containerd", id: id},
		"0::/kubepods.slice/kubepods-pod1.slice/crio-" + id + ".scope\n":                                  {engine: "cri-o", id: id},
		"0::/lxc.payload.mail/system.slice\n":                                                             {engine: "lxc", name: "mail"},
		"0::/\n":                                                                                          {}, "": {}, "nonsense": {},
	} {
		if got := groupsOf(in); got != want {
			t.Errorf("groupsOf(%q) = %+v, want %+v", in, got, want)
		}
	}
}
