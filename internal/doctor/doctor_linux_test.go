package doctor

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports"
)

// healthy are the files of a machine with nothing to complain of, as far as they are read.
var healthy = map[string]string{
	"/proc/sys/fs/file-nr":                          "1000\t0\t100000",
	"/proc/sys/fs/nr_open":                          "1048576",
	"/proc/sys/net/core/somaxconn":                  "4096",
	"/proc/sys/net/ipv4/ip_local_port_range":        "32768\t60999",
	"/proc/sys/net/ipv4/ip_local_reserved_ports":    "",
	"/proc/sys/net/ipv4/tcp_tw_reuse":               "2",
	"/proc/sys/net/ipv4/ip_unprivileged_port_start": "1024",
	"/proc/sys/net/netfilter/nf_conntrack_count":    "10",
	"/proc/sys/net/netfilter/nf_conntrack_max":      "65536",
	"/proc/net/tcp":                                 "",
	"/proc/self/mountinfo":                          "22 27 0:21 / /proc rw,relatime - proc proc rw",
	"/proc/4242/limits":                             "Limit Soft Hard Units\nMax open files            65536                65536                files\n",
	"/proc/4242/status":                             "Name:\tquaymaster\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0\nCapEff:\t000001ffffffffff\n",
}

// machine is a recorded machine with some files changed; "-" takes one away.
func machine(t *testing.T, changes map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, files := range []map[string]string{healthy, changes} {
		for name, text := range files {
			path := filepath.Join(root, name)
			if text == "-" {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// wanting is a plan for these ports whose files are all well.
func wanting(t *testing.T, list ...uint16) *plan.Plan {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := &plan.Plan{Settings: plan.Settings{
		MaxConnections: 10000, StateDir: dir, ShutdownTimeout: 30 * time.Second,
		Admin: plan.AdminSettings{Socket: dir + "/admin.sock", Mode: "0600"},
	}}
	for _, n := range list {
		p.Ports = append(p.Ports, &plan.Port{Addr: plan.Addr{Port: n}})
	}
	return p
}

// find is the finding about an object that is of a level; it fails the test when there is none.
func find(t *testing.T, list []Finding, level Level, object string) Finding {
	t.Helper()
	for _, f := range list {
		if f.Object == object && f.Level == level {
			if f.Level != OK && f.Remedy == "" {
				t.Errorf("%s: nothing is said to be done: %+v", object, f)
			}
			return f
		}
	}
	t.Errorf("no %s about %s in:", level, object)
	for _, f := range list {
		t.Errorf("  %+v", f)
	}
	return Finding{}
}

func says(t *testing.T, f Finding, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(f.Message+" | "+f.Remedy, w) {
			t.Errorf("%s does not say %q: %s | %s", f.Object, w, f.Message, f.Remedy)
		}
	}
}

func nothingHeld(plan.Addr) *ports.BindError { return nil }

func TestD06_AWellMachineHasNothingToMend(t *testing.T) {
	s := Subject{
		Plan: wanting(t, 80, 8080), Root: machine(t, nil), Probe: nothingHeld,
		Running: &Running{PID: 4242, State: "serving", Held: map[string]bool{":80": true, ":8080": true}},
	}
	for _, f := range Examine(s) {
		if f.Level != OK || f.Remedy != "" {
			t.Errorf("%+v", f)
		}
		if f.Area == "" || f.Object == "" || f.Message == "" {
			t.Errorf("something is left out: %+v", f)
		}
	}
	if f := find(t, Examine(s), OK, ":80 :8080"); f.Message != "held by the running quaymaster (pid 4242)" {
		t.Errorf("%+v", f)
	}
}

func TestD06_Limits(t *testing.T) {
	for name, c := range map[string]struct {
		changes map[string]string
		plan    func(p *plan.Plan)
		level   Level
		object  string
		words   []string
	}{
		"few files": {
			map[string]string{"/proc/4242/limits": "Max open files            4096                 4096                 files"},
			nil, Warn, "open files",
			[]string{"pid 4242 may have 4096", "needs 20129 (2 each, and 129 of our own)", "only 1983 connections", "nofile 20129", "lower max_connections to 1983"},
		},
		"hardly any files": {
			map[string]string{"/proc/4242/limits": "Max open files            64                 64                 files"},
			nil, Fail, "open files",
			[]string{"only 16 connections"},
		},
		"more files than the kernel lets anybody have": {
			nil, func(p *plan.Plan) { p.Settings.MaxConnections = 1000000 }, Warn, "open files", []string{"sysctl -w fs.nr_open=2000129"},
		},
		"unlimited files": {
			map[string]string{"/proc/4242/limits": "Max open files            unlimited            unlimited            files"}, nil, OK, "open files", nil,
		},
		"host nearly out of files": {
			map[string]string{"/proc/sys/fs/file-nr": "85000 0 100000"}, nil, Warn, "open files of the host", []string{"85 % full", "fs.file-max=200000"},
		},
		"host out of files": {
			map[string]string{"/proc/sys/fs/file-nr": "99000 0 100000"}, nil, Fail, "open files of the host", []string{"new connections fail"},
		},
		"short queue": {
			map[string]string{"/proc/sys/net/core/somaxconn": "128"}, nil, Warn, "listen queue", []string{"sysctl -w net.core.somaxconn=4096"},
		},
		"conntrack": {
			map[string]string{"/proc/sys/net/netfilter/nf_conntrack_count": "63000"}, nil, Fail, "nf_conntrack", []string{"63000 of 65536", "nf_conntrack_max=131072"},
		},
		"port among the ephemeral ones": {
			nil, func(p *plan.Plan) {
				for _, n := range []uint16{40000, 40001, 50000} {
					p.Ports = append(p.Ports, &plan.Port{Addr: plan.Addr{Port: n}})
				}
			}, Warn, "ephemeral ports", []string{"one may take 40000-40001,50000", "ip_local_reserved_ports=40000-40001,50000"},
		},
		"some are reserved": {
			map[string]string{"/proc/sys/net/ipv4/ip_local_reserved_ports": "3000,39990-40010"}, func(p *plan.Plan) {
				for _, n := range []uint16{40000, 50000} {
					p.Ports = append(p.Ports, &plan.Port{Addr: plan.Addr{Port: n}})
				}
			}, Warn, "ephemeral ports", []string{"one may take 50000", "ip_local_reserved_ports=3000,39990-40010,50000"},
		},
		"app_ports among the ephemeral ones": {
			nil, func(p *plan.Plan) { p.Settings.AppPorts = plan.PortRange{Lo: 32100, Hi: 33000} }, Warn, "app_ports", []string{"32100-33000", "below 32768"},
		},
		"few outgoing ports": {
			map[string]string{"/proc/sys/net/ipv4/ip_local_port_range": "60000 60999"}, nil, Warn, "outgoing ports", []string{"1000 ports", "ip_local_port_range="},
		},
		"TIME_WAIT": {nil, nil, OK, "TIME_WAIT", []string{"never in the way", "needs no change"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := wanting(t, 8080)
			if c.plan != nil {
				c.plan(p)
			}
			got := Examine(Subject{Plan: p, Root: machine(t, c.changes), Probe: nothingHeld, Running: &Running{PID: 4242, State: "serving"}})
			says(t, find(t, got, c.level, c.object), c.words...)
			if Healthy(got) != (c.level != Fail) {
				t.Errorf("healthy: %v", Healthy(got))
			}
		})
	}
}

func TestD06_Ports(t *testing.T) {
	busy := func(a plan.Addr) *ports.BindError {
		if a.Port == 8080 {
			return &ports.BindError{Proto: "tcp", Addr: a, Kind: ports.InUse, Holder: &ports.Holder{Pid: 812, User: "www-data", Command: "nginx", Unit: "nginx.service"}, Err: unix.EADDRINUSE}
		}
		return nil
	}
	p := wanting(t, 8080, 8081, 8082)
	p.Ports = append(p.Ports, &plan.Port{Addr: plan.TCPAddr(netip.MustParseAddr("10.0.0.1"), 8080), Fallback: []plan.Addr{{Port: 9090}}})
	p.Settings.Admin.Address = "127.0.0.1:8080"
	got := Examine(Subject{Plan: p, Root: machine(t, nil), Probe: busy, Published: map[uint16]string{8081: "container db (podman)"}})
	says(t, find(t, got, Fail, ":8080"), "pid 812", "www-data", "systemctl stop nginx")
	says(t, find(t, got, Fail, ":8081"), "container db (podman)")
	says(t, find(t, got, OK, ":8082"), "free")
	says(t, find(t, got, Warn, "10.0.0.1:8080"), ":9090 would serve")
	says(t, find(t, got, Fail, "admin 127.0.0.1:8080"), "pid 812")

	got = Examine(Subject{Plan: p, Root: machine(t, nil), Probe: busy, EngineErr: errors.New("docker does not answer")})
	says(t, find(t, got, Warn, "container engine"), "docker does not answer")
	says(t, find(t, Examine(Subject{Root: machine(t, nil)}), Warn, "ports"), "quaymaster check")
}

// What the one who asks may do says nothing about a daemon of another user.
func TestD06_PrivilegeOfTheDaemonsUser(t *testing.T) {
	status := func(caps string) string {
		return "Name:\tquaymaster\nUid:\t54321\t54321\t54321\t54321\nGid:\t54321\t54321\t54321\t54321\nGroups:\t\nCapEff:\t" + caps
	}
	for caps, want := range map[string]Level{"0000000000000000": Fail, "0000000000000400": OK} {
		got := Examine(Subject{
			Plan: wanting(t, 443), Root: machine(t, map[string]string{"/proc/4242/status": status(caps)}), Probe: nothingHeld,
			Running: &Running{PID: 4242, State: "degraded"},
		})
		f := find(t, got, want, ":443")
		if want == Fail {
			says(t, f, "user 54321", "CAP_NET_BIND_SERVICE", "ip_unprivileged_port_start=443")
		}
	}
}

func TestD06_Unit(t *testing.T) {
	base := "[Unit]\nType=oneshot\n[Service]\nType=notify\nExecStart=/usr/bin/quaymaster run \\\n  -c x\nKillMode=process\nSuccessExitStatus=4\n"
	for name, c := range map[string]struct {
		files  map[string]string
		level  Level
		words  []string
		object string
	}{
		"good":          {map[string]string{"/etc/systemd/system/quaymaster.service": base + "TimeoutStopSec=1min 30s"}, OK, nil, "quaymaster.service"},
		"default time":  {map[string]string{"/lib/systemd/system/quaymaster.service": base}, OK, nil, "quaymaster.service"},
		"short":         {map[string]string{"/etc/systemd/system/quaymaster.service": base + "TimeoutStopSec=10"}, Warn, []string{"TimeoutStopSec is 10s", "TimeoutStopSec=40", "systemctl edit quaymaster.service"}, "quaymaster.service"},
		"no end":        {map[string]string{"/etc/systemd/system/quaymaster.service": base + "TimeoutStopSec=infinity"}, OK, nil, "quaymaster.service"},
		"kills all":     {map[string]string{"/etc/systemd/system/quaymaster.service": strings.Replace(base, "KillMode=process", "", 1)}, Warn, []string{"KillMode=process"}, "quaymaster.service"},
		"simple":        {map[string]string{"/etc/systemd/system/quaymaster.service": strings.Replace(base, "Type=notify", "Type=simple", 1)}, Warn, []string{"Type=notify"}, "quaymaster.service"},
		"exit code":     {map[string]string{"/etc/systemd/system/quaymaster.service": strings.Replace(base, "SuccessExitStatus=4", "", 1)}, Warn, []string{"exit code 4"}, "quaymaster.service"},
		"drop-in mends": {map[string]string{"/lib/systemd/system/quaymaster.service": base + "TimeoutStopSec=1", "/etc/systemd/system/quaymaster.service.d/a.conf": "[Service]\nTimeoutStopSec=60"}, OK, nil, "quaymaster.service"},
		"local hides": {
			map[string]string{"/lib/systemd/system/quaymaster.service": base + "TimeoutStopSec=1", "/etc/systemd/system/quaymaster.service": base}, OK, nil, "quaymaster.service",
		},
		"no right": {
			map[string]string{"/etc/systemd/system/quaymaster.service": base + "User=nobody"}, Fail, []string{"user nobody", "AmbientCapabilities=CAP_NET_BIND_SERVICE"}, ":443",
		},
		"right": {
			map[string]string{"/etc/systemd/system/quaymaster.service": base + "User=nobody\nAmbientCapabilities=CAP_NET_BIND_SERVICE"}, OK, []string{"free"}, ":443",
		},
		"no folder": {
			map[string]string{"/etc/systemd/system/quaymaster.service": base + "User=nobody"}, Fail, []string{"user nobody may not write in", "chown -R nobody"}, "state_dir",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 && c.level == Fail {
				t.Log("as another user than root, who is who asks does not matter")
			}
			got := Examine(Subject{Plan: wanting(t, 443), Root: machine(t, c.files), Probe: nothingHeld})
			says(t, find(t, got, c.level, c.object), c.words...)
		})
	}
}

func TestD06_Surroundings(t *testing.T) {
	status := "Name:\tquaymaster\nUid:\t54321\t54321\t54321\t54321\nGid:\t54321\t54321\t54321\t54321\nGroups:\t77\nCapEff:\t0000000000000400"
	mount := "22 27 0:21 / /proc rw,relatime - proc proc rw,"
	look := func(changes map[string]string) []Finding {
		return Examine(Subject{Root: machine(t, changes), Running: &Running{PID: 4242, State: "serving"}})
	}
	says(t, find(t, look(map[string]string{"/proc/4242/status": status, "/proc/self/mountinfo": mount + "hidepid=invisible"}), Warn, "/proc"), "hidepid", "remount,hidepid=0")
	find(t, look(map[string]string{"/proc/4242/status": status, "/proc/self/mountinfo": mount + "hidepid=2,gid=77"}), OK, "/proc")
	find(t, look(map[string]string{"/proc/self/mountinfo": mount + "hidepid=2"}), OK, "/proc") // root sees all
	says(t, find(t, look(map[string]string{"/proc/net/tcp": "-"}), Warn, "/proc"), "mount -t proc", "lsof")
	says(t, find(t, look(map[string]string{"/.dockerenv": ""}), OK, "container"), "docker")
	says(t, find(t, look(map[string]string{"/run/.containerenv": ""}), OK, "container"), "podman")
	says(t, find(t, look(nil), OK, "kernel"), "pidfd", "SO_REUSEPORT", "splice")
}

func TestD06_Daemon(t *testing.T) {
	root := machine(t, nil)
	find(t, Examine(Subject{Root: root}), OK, "quaymaster")
	says(t, find(t, Examine(Subject{Root: root, Socket: "/run/x", Silent: errors.New("timed out")}), Fail, "quaymaster"), "timed out", "ss -xlp")
	says(t, find(t, Examine(Subject{Root: root, Socket: "/run/x", Silent: os.ErrPermission}), Warn, "quaymaster"), "as root")
	got := Examine(Subject{Root: root, Running: &Running{PID: 4242, State: "degraded", Problems: []Finding{{Object: ":80", Level: Fail, Message: "held by nginx", Remedy: "stop it"}}}})
	find(t, got, Warn, "quaymaster")
	says(t, find(t, got, Fail, ":80"), "nginx")
}

func TestUnitSpan(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 90 * time.Second, "5": 5 * time.Second, "1min 30s": 90 * time.Second, "2h": 2 * time.Hour, "500ms": 500 * time.Millisecond, "infinity": 0, "0": 0, "x": 0, "-3": 0,
	} {
		got, ok := unitSpan(text)
		if !ok {
			got = 0
		}
		if got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
