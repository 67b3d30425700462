package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// leaseRow is what the API says of a lease.
type leaseRow struct {
	Name  string `json:"name"`
	Port  int    `json:"port"`
	State string `json:"state"`
	New   bool   `json:"new"`
}

// lease asks for a port by command; it must be had.
func (q *qm) lease(name string, flags ...string) int {
	q.t.Helper()
	cmd := exec.Command(binary, append([]string{"ports", "lease", name, "--socket", q.sock}, flags...)...)
	out, err := cmd.Output() // what a shell takes with $(...)
	port, second := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || second != nil {
		q.t.Fatalf("ports lease %s: %q, %v", name, out, err)
	}
	return port
}

// leased is what `ports` lists as leased: app to port.
func (q *qm) leased() map[string]int {
	q.t.Helper()
	out := map[string]int{}
	var list []struct {
		Port       int
		State, App string
	}
	q.get("/v1/ports", &list)
	for _, p := range list {
		if p.State == "leased" {
			out[p.App] = p.Port
		}
	}
	return out
}

// onDiskLeases is what the state folder holds: app to port.
func (q *qm) onDiskLeases() map[string]int {
	q.t.Helper()
	text, err := os.ReadFile(q.dir + "/state/leases.json")
	if err != nil {
		q.t.Fatal(err)
	}
	var f struct{ Leases []leaseRow }
	if err := json.Unmarshal(text, &f); err != nil {
		q.t.Fatal(err)
	}
	out := map[string]int{}
	for _, l := range f.Leases {
		out[l.Name] = l.Port
	}
	return out
}

// leasing is a configuration that leases n ports, and serves one.
func leasing(t testing.TB, n int) (body string, first, serves int) {
	t.Helper()
	serves, first = freePort(t), freePorts(t, n)
	return fmt.Sprintf("app_ports: %d-%d\nengine: {socket: %s/none.sock}\nroutes:\n%s", first, first+n-1, t.TempDir(), fileRoute("f", serves, "f.test", "served")), first, serves
}

// podman starts an engine with everything of its own and a container called db that publishes the port.
func podman(t *testing.T, port int) (socket string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers with published ports are made as root")
	}
	for _, name := range []string{"podman", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("LOUD SKIP: %s is missing: apt-get install podman runc", name)
		}
	}
	dir, err := os.MkdirTemp("", "qm-podman-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name, text := range map[string]string{
		"Containerfile": "FROM scratch\nCOPY hold /hold\nENTRYPOINT [\"/hold\"]\n",
		"main.go":       "package main\n\nimport \"time\"\n\nfunc main() { time.Sleep(time.Hour) }\n",
		"go.mod":        "module hold\n",
		"containers.conf": "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\nruntime = \"runc\"\n" +
			"cgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n[network]\nnetwork_backend = \"netavark\"\n" +
			"network_config_dir = \"" + dir + "/net\"\ndefault_subnet = \"10.89.118.0/24\"\n",
	} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", "hold", ".")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command("podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}, args...)...)
		cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+dir+"/containers.conf")
		return cmd
	}
	for _, args := range [][]string{
		{"build", "-q", "-t", "hold", dir}, {"run", "-d", "--name", "db", "-p", fmt.Sprintf("%d:80", port), "hold"},
	} {
		if out, err := command(args...).CombinedOutput(); err != nil {
			t.Fatalf("podman %v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := command("rm", "-f", "-t", "0", "-a").CombinedOutput(); err != nil {
			t.Errorf("podman rm: %v\n%s", err, out)
		}
	})
	socket = dir + "/podman.sock"
	service := command("system", "service", "--time=0", "unix://"+socket)
	service.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Process.Kill(); _ = service.Wait() })
	until(t, "podman answers", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return socket
}

func TestP13_FiftyLeasesAtOnceAndBusyPortsPassedOver(t *testing.T) {
	t.Parallel()
	serves, first := freePort(t), freePorts(t, 60)
	busy := map[string]int{}
	four, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", first))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = four.Close() })
	busy[four.Addr().String()] = os.Getpid()
	for i, ip := range []string{"127.0.0.1", "[::]", "[::1]"} {
		addr := fmt.Sprintf("%s:%d", ip, first+1+i)
		busy[addr] = hold(t, addr).Process.Pid
	}
	socket := podman(t, first+4)
	q := start(t, fmt.Sprintf("app_ports: %d-%d\nengine: {kind: podman, socket: \"unix://%s\"}\nroutes:\n%s",
		first, first+59, socket, fileRoute("f", serves, "f.test", "served")))
	got := make([]int, 50)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			name := fmt.Sprintf("app-%d", i)
			res, b, err := q.admin("POST", "/v1/leases/"+name, nil)
			var l leaseRow
			if err != nil || res.StatusCode != 200 || json.Unmarshal(b, &l) != nil || l.Name != name || !l.New {
				t.Errorf("%s: %v %s", name, err, b)
			}
			got[i] = l.Port
		})
	}
	wg.Wait()
	slices.Sort(got)
	for i, p := range got {
		if p != first+5+i {
			t.Fatalf("the ports are %v, want %d and the 49 after it", got, first+5)
		}
	}
	log := q.log.String()
	for addr, pid := range busy {
		if !strings.Contains(log, fmt.Sprintf("(pid %d,", pid)) || !strings.Contains(log, "on "+addr) {
			t.Errorf("the log does not say that pid %d has %s:\n%s", pid, addr, log)
		}
	}
	if !strings.Contains(log, "published by container db (podman)") {
		t.Errorf("the log does not name the container:\n%s", log)
	}
	if n := q.metric(`quaymaster_port_lease_requests_total{result="new"}`); n != 50 {
		t.Errorf("%v requests counted", n)
	}
	if n := q.metric(`quaymaster_port_leases{state="promised"}`); n != 50 {
		t.Errorf("%v leases counted", n)
	}
	mustFetch(t, serves, "f.test", "/", "served")
}

func TestP14_AppKeepsItsPortOverStopsAndKills(t *testing.T) {
	t.Parallel()
	body, first, _ := leasing(t, 10)
	q := start(t, body)
	gone, web := q.lease("gone"), q.lease("web")
	if gone != first || web != first+1 {
		t.Fatalf("gone %d, web %d, want %d and the next", gone, web, first)
	}
	if out, code := q.cli("ports", "release", "gone"); code != 0 || !strings.Contains(out, strconv.Itoa(gone)) {
		t.Fatalf("release: %d %s", code, out)
	}
	if out, code := q.cli("ports", "release", "gone"); code != 1 || !strings.Contains(out, "no port is leased to gone") {
		t.Errorf("released twice: %d %s", code, out)
	}
	app := hold(t, fmt.Sprintf(":%d", web)) // it can bind what it was given
	if out, code := q.cli("ports", "lease", "web"); code != 0 || !strings.Contains(out, fmt.Sprintf("pid %d", app.Process.Pid)) {
		t.Errorf("asked again beside the app: %d %s", code, out)
	}
	release(app)
	if got := q.lease("web"); got != web {
		t.Errorf("after the app ended: %d, was %d", got, web)
	}
	for _, how := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		app := hold(t, fmt.Sprintf(":%d", web)) // outlives us
		q.signal(how)
		q.wait(20 * time.Second)
		q.run()
		q.serving()
		if l := q.leased(); len(l) != 1 || l["web"] != web || q.lease("web") != web {
			t.Errorf("after %v: %v, web had %d", how, l, web)
		}
		release(app)
	}
	another := q.lease("web", "--new")
	if another != gone || q.lease("web") != another {
		t.Errorf("--new gave %d, want %d, which is free again", another, gone)
	}
	if got := q.lease("late"); got != web {
		t.Errorf("late got %d, and %d was given back", got, web)
	}
	q.signal(syscall.SIGKILL)
	q.wait(20 * time.Second)
	q.run()
	q.serving()
	if l := q.leased(); l["web"] != another || l["late"] != web || len(l) != 2 {
		t.Errorf("after a kill: %v", l)
	}
	out, _ := q.cli("ports", "history", strconv.Itoa(another))
	if !strings.Contains(out, "leased") || !strings.Contains(out, "app web") {
		t.Errorf("history:\n%s", out)
	}
	if out, _ := q.cli("ports"); !strings.Contains(out, "app web") {
		t.Errorf("ports:\n%s", out)
	}
}

func TestP15_ExhaustedRangeSaysWhoHasItAndOneReleaseIsEnough(t *testing.T) {
	t.Parallel()
	body, first, serves := leasing(t, 3)
	child := hold(t, fmt.Sprintf("127.0.0.1:%d", first+1))
	q := start(t, body)
	q.lease("web")
	q.lease("api")
	out, code := q.cli("ports", "lease", "late")
	for _, want := range []string{
		fmt.Sprintf("app_ports %d-%d", first, first+2), fmt.Sprintf("%d leased to web", first), fmt.Sprintf("(pid %d,", child.Process.Pid),
		fmt.Sprintf("%d leased to api", first+2), "quaymaster ports release NAME",
	} {
		if code != 1 || !strings.Contains(out, want) {
			t.Errorf("exit %d, without %q: %s", code, want, out)
		}
	}
	if n := q.metric(`quaymaster_port_lease_requests_total{result="exhausted"}`); n != 1 {
		t.Errorf("%v counted as exhausted", n)
	}
	if out, code := q.cli("ports", "release", "api"); code != 0 {
		t.Fatal(out)
	}
	if got := q.lease("late"); got != first+2 {
		t.Errorf("leased %d after the release of %d", got, first+2)
	}
	if out, code := q.cli("ports", "lease", "No Name"); code != 2 || !strings.Contains(out, "no name of an app") {
		t.Errorf("a bad name: %d %s", code, out)
	}
	mustFetch(t, serves, "f.test", "/", "served")
}

func TestP16_SixteenAskersAndReloadsLeaveNoPortWithTwoOwners(t *testing.T) {
	t.Parallel()
	body, first, serves := leasing(t, 30)
	q := start(t, body)
	const each = 120
	var mu sync.Mutex
	owner := map[int]string{}
	own := make([]map[string]int, 16)
	var wg sync.WaitGroup
	for i := range own {
		own[i] = map[string]int{}
		r := rand.New(rand.NewPCG(13, uint64(i)))
		wg.Go(func() {
			for range each {
				name := fmt.Sprintf("app-%d-%d", i, r.IntN(3))
				was := own[i][name]
				if was != 0 && r.IntN(2) == 0 {
					mu.Lock() // it is nobody's before it is given back
					delete(owner, was)
					mu.Unlock()
					if res, b, err := q.admin("DELETE", "/v1/leases/"+name, nil); err != nil || res.StatusCode != 200 {
						t.Errorf("release %s: %v %s", name, err, b)
					}
					delete(own[i], name)
					continue
				}
				res, b, err := q.admin("POST", "/v1/leases/"+name, nil)
				var l leaseRow
				switch {
				case err != nil:
					t.Error(err)
				case res.StatusCode == 409 && was == 0 && strings.Contains(string(b), "is free"):
				case res.StatusCode != 200 || json.Unmarshal(b, &l) != nil:
					t.Errorf("lease %s: %s", name, b)
				case was != 0 && l.Port != was:
					t.Errorf("%s had %d and got %d", name, was, l.Port)
				case was == 0:
					mu.Lock()
					if other := owner[l.Port]; other != "" {
						t.Errorf("port %d was leased to %s while %s has it", l.Port, name, other)
					}
					owner[l.Port] = name
					mu.Unlock()
					own[i][name] = l.Port
				}
			}
		})
	}
	for range 10 {
		q.reload(body)
	}
	wg.Wait()
	want := map[string]int{}
	for port, name := range owner {
		want[name] = port
		if port < first || port >= first+30 {
			t.Errorf("%s has %d, outside of the range", name, port)
		}
	}
	for _, got := range []map[string]int{q.leased(), q.onDiskLeases()} {
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("leases %v, want %v", got, want)
		}
	}
	if n := q.metric(`quaymaster_port_leases{state="promised"}`); int(n) != len(want) {
		t.Errorf("%v leases are counted, there are %d", n, len(want))
	}
	mustFetch(t, serves, "f.test", "/", "served")
}

func TestLeasesAndRoutesDoNotMeet(t *testing.T) {
	t.Parallel()
	body, first, serves := leasing(t, 5)
	q := start(t, body)
	web := q.lease("web")
	route := "\n" + fileRoute("g", web, "g.test", "g")
	q.write(body + route)
	out, code := q.cli("check", "-c", q.file)
	if code != 2 || !strings.Contains(out, fmt.Sprintf("app_ports: %d-%d covers :%d, the port of route g at %s:", first, first+4, web, q.file)) {
		t.Errorf("check: %d %s", code, out)
	}
	moved := strings.Replace(body, fmt.Sprintf("app_ports: %d-%d", first, first+4), fmt.Sprintf("app_ports: %d-%d", first+1, first+4), 1)
	q.write(moved + route) // valid, but the lease is still there
	out, code = q.cli("reload")
	if code != 1 || !strings.Contains(out, "leased to web") || !strings.Contains(out, "quaymaster ports release web") {
		t.Errorf("reload: %d %s", code, out)
	}
	mustFetch(t, serves, "f.test", "/", "served")
	q.reload(moved)
	if q.lease("web") != web || !strings.Contains(q.log.String(), "stays until it is released") {
		t.Errorf("a lease outside of the new range: %v\n%s", q.leased(), q.log)
	}
	q.cli("ports", "release", "web")
	if got := q.lease("web"); got != first+1 {
		t.Errorf("leased %d, outside of the new range", got)
	}
	q.reload(moved + route)
	mustFetch(t, web, "g.test", "/", "g")
}

func TestLeasesGoOverInAnUpgrade(t *testing.T) {
	t.Parallel()
	body, _, _ := leasing(t, 5)
	q := start(t, body)
	web := q.lease("web")
	q.upgrade()
	if q.lease("web") != web || q.lease("new") == web {
		t.Errorf("after the upgrade: %v, web had %d", q.leased(), web)
	}
	if fmt.Sprint(q.leased()) != fmt.Sprint(q.onDiskLeases()) {
		t.Errorf("listed %v, on the disk %v", q.leased(), q.onDiskLeases())
	}
	// An upgrade that fails leaves leasing as it was.
	if _, code := q.cli("upgrade", "--binary", "/bin/false"); code != 1 {
		t.Errorf("exit %d", code)
	}
	q.lease("third")
}

func TestSilentEngineDelaysALeaseAndIsWarnedOf(t *testing.T) {
	t.Parallel()
	serves, first := freePort(t), freePorts(t, 4)
	dir, err := os.MkdirTemp("", "qm-engine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", dir+"/e.sock") // whose queue nobody empties
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	hold(t, fmt.Sprintf("[::1]:%d", first))
	q := start(t, fmt.Sprintf("app_ports: %d-%d\nengine: {socket: %s/e.sock}\nroutes:\n%s", first, first+3, dir, fileRoute("f", serves, "f.test", "served")))
	if a, b := q.lease("a"), q.lease("b"); a != first+1 || b != first+2 {
		t.Errorf("leased %d and %d, want %d and the next", a, b, first+1)
	}
	if n := strings.Count(q.log.String(), "container engine does not answer"); n != 1 {
		t.Errorf("%d warnings", n)
	}
}
