package holder

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
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
	if h.Pid != os.Getpid() || h.Addr != at || h.Exe != exe || h.UID != os.Getuid() || h.User == "" || !strings.Contains(h.Command, "holder.test") {
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
	if ls, err := exec.LookPath("lsof"); err != nil {
		t.Log("LOUD SKIP: lsof is not installed")
	} else if got, err := lsof(func(a netip.AddrPort) bool { return a.Port() == at.Port() }, nil); err != nil || len(got) != 1 || got[0].Pid != h.Pid || got[0].Addr != at || got[0].UID != h.UID {
		t.Errorf("%s says %+v, %v", ls, got, err)
	}
}

// A socket that several processes have is its master's, the oldest; systemd counts only alone.
func TestOldestProcessIsTheHolder(t *testing.T) {
	worker := exec.Command("sleep", "60")
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { worker.Process.Kill(); worker.Wait() }()
	if h := identify(row{uid: 5}, []int{worker.Process.Pid, os.Getpid()}); h.Pid != os.Getpid() {
		t.Errorf("holder %+v, want the older process", h)
	}
	if h := identify(row{uid: 5}, []int{1, worker.Process.Pid}); h.Pid != worker.Process.Pid || h.name != "sleep" {
		t.Errorf("holder %+v, want the service and not pid 1", h)
	}
	if h := identify(row{uid: 5}, []int{1}); h.Pid != 1 || !strings.Contains(h.Stop(), "list-sockets") {
		t.Errorf("holder %+v, %q", h, h.Stop())
	}
	if h := identify(row{uid: 54321}, nil); h.Pid != 0 || h.User != "54321" || h.Stop() != "" || !strings.Contains(h.String(), "uid 54321") {
		t.Errorf("holder %+v: %s", h, h.String())
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
	for in, want := range map[string][3]string{
		"0::/system.slice/nginx.service\n":                                           {"nginx.service", "", ""},
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/caddy.service\n": {"caddy.service", "", ""},
		"0::/user.slice/user-0.slice/session-3.scope\n":                              {"", "", ""},
		"0::/system.slice/docker-" + id + ".scope\n":                                 {"", id[:12], "docker"},
		"12:cpu:/x\n1:name=systemd:/docker/" + id + "\n0::/\n":                       {"", id[:12], "docker"},
		"0::/machine.slice/libpod-" + id + ".scope/container\n":                      {"", id[:12], "podman"},
		"0::/machine.slice/libpod-conmon-" + id + ".scope\n":                         {"", id[:12], "podman"},
		"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope\n":   {"", id[:12], ""},
		"0::/\n": {"", "", ""}, "": {"", "", ""}, "nonsense": {"", "", ""},
	} {
		unit, container, engine := unitOf(in)
		if got := [3]string{unit, container, engine}; got != want {
			t.Errorf("unitOf(%q) = %q, want %q", in, got, want)
		}
	}
	for args, want := range map[string]string{
		"conmon -c 0123 -n web --x":                                   "web",
		"docker-proxy -proto tcp -container-ip 172.17.0.2 -host-port": "172.17.0.2",
		"conmon -n": "", "nginx -n web": "", "": "",
	} {
		f := strings.Split(args, " ")
		if got := monitored(f[0], f); got != want {
			t.Errorf("monitored(%q) = %q, want %q", args, got, want)
		}
	}
}
