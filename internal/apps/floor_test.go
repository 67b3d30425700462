package apps_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/apps"
	"github.com/quaymaster/quaymaster/internal/apps/launch"
	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/logs"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/ports/leases"
	"github.com/quaymaster/quaymaster/internal/state"
)

// TestMain makes the test program the app of its own tests.
func TestMain(m *testing.M) {
	if how := os.Getenv("QM_APP"); how != "" {
		child(how)
	}
	goleak.VerifyTestMain(m)
}

// child is an app. How is a list of words.
func child(how string) {
	has := func(word string) bool { return strings.Contains(" "+how+" ", " "+word+" ") }
	fmt.Println("hello from", os.Getpid())
	if has("stubborn") {
		signal.Ignore(syscall.SIGTERM)
	}
	if has("crash") {
		fmt.Fprintln(os.Stderr, "first words")
		fmt.Fprintln(os.Stderr, "it is broken")
		os.Exit(3)
	}
	if has("done") {
		os.Exit(0)
	}
	if has("mute") {
		select {}
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if path := os.Getenv("SOCKET"); path != "" {
		_ = os.MkdirAll(filepath.Dir(path), 0o700)
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for has("endless") {
		if c, err := l.Accept(); err == nil {
			_, err := fmt.Fprint(c, "HTTP/1.1 200 OK\r\n")
			for err == nil {
				_, err = fmt.Fprint(c, "X-Header: and so on\r\n")
			}
			_ = c.Close()
		}
	}
	http.HandleFunc("/die", func(http.ResponseWriter, *http.Request) { os.Exit(7) })
	http.HandleFunc("/sick", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(os.Getenv("SICK")); err == nil {
			http.Error(w, "feeling bad", http.StatusInternalServerError)
		}
	})
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "pid %d", os.Getpid()) })
	srv := &http.Server{}
	stop := make(chan os.Signal, 1)
	if !has("stubborn") {
		signal.Notify(stop, syscall.SIGTERM)
	}
	go func() {
		<-stop
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		os.Exit(0)
	}()
	_ = srv.Serve(l)
	select {}
}

// runner runs apps as plain children. What only the real runner can do is tested there.
type runner struct {
	mu     sync.Mutex
	starts map[string]int
	busy   map[uint16]bool // ports on which a start is refused
}

func (r *runner) Check(_ context.Context, a *plan.App) []error {
	if a.Command[0] == "missing" {
		return []error{errors.New("there is no program missing")}
	}
	return nil
}

func (r *runner) Start(_ context.Context, s *run.Start) (run.Instance, error) {
	r.mu.Lock()
	r.starts[s.App.Name]++
	busy := r.busy[s.Port]
	r.mu.Unlock()
	if busy {
		return nil, &run.PortError{Port: s.Port, Text: "address already in use"}
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("PORT=%d", s.Port), "SOCKET="+s.Path, "QM_APP="+strings.Join(s.App.Command, " "))
	for _, v := range s.App.Env {
		cmd.Env = append(cmd.Env, v.Name+"="+v.Value)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, _ := cmd.StdoutPipe()
	errs, _ := cmd.StderrPipe()
	if err := s.Handoff(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	i := &instance{cmd: cmd, started: time.Now(), done: make(chan struct{})}
	var read sync.WaitGroup
	for n, pipe := range []io.Reader{out, errs} {
		read.Add(1)
		go func() {
			defer read.Done()
			for sc := bufio.NewScanner(pipe); sc.Scan(); {
				s.Output.Line(time.Now(), n == 1, sc.Bytes())
			}
		}()
	}
	go func() {
		read.Wait()
		_ = cmd.Wait()
		close(i.done)
	}()
	return i, nil
}

func (r *runner) Adopt(context.Context, run.Record, run.Output) (run.Instance, error) {
	return nil, run.ErrGone
}

func (r *runner) count(app string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.starts[app]
}

type instance struct {
	cmd     *exec.Cmd
	started time.Time
	done    chan struct{}
}

func (i *instance) Record() run.Record {
	return run.Record{PID: i.cmd.Process.Pid, Started: i.started}
}
func (i *instance) Done() <-chan struct{}        { return i.done }
func (i *instance) Leave()                       {}
func (i *instance) Stats() (run.Stats, error)    { return run.Stats{}, nil }
func (i *instance) Listening() ([]uint16, error) { return nil, nil }

func (i *instance) Exit() run.Exit {
	e := run.Exit{At: time.Now(), Code: i.cmd.ProcessState.ExitCode()}
	if w, ok := i.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		e.Signal = w.Signal()
	}
	return e
}

func (i *instance) Stop(ctx context.Context, how plan.AppStop) error {
	_ = syscall.Kill(-i.cmd.Process.Pid, map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[how.Signal])
	timer := time.NewTimer(how.Timeout)
	defer timer.Stop()
	select {
	case <-i.done:
		return nil
	case <-timer.C:
		_ = syscall.Kill(-i.cmd.Process.Pid, syscall.SIGKILL)
	case <-ctx.Done():
		return ctx.Err()
	}
	<-i.done
	return nil
}

// floor is everything below and beside apps, real.
type floor struct {
	t      testing.TB
	apps   *apps.Apps
	pools  *pools.Pools
	leases *leases.Leases
	runner *runner
	events *logs.Ring[string]
	range_ plan.PortRange
	log    *lines
	reg    *prometheus.Registry
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newFloor(t testing.TB, list ...*plan.App) *floor {
	t.Helper()
	return newFloorAt(t, t.TempDir(), list...)
}

// newFloorAt is newFloor with the folder for sockets.
func newFloorAt(t testing.TB, sockets string, list ...*plan.App) *floor {
	t.Helper()
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &floor{
		t: t, runner: &runner{starts: map[string]int{}, busy: map[uint16]bool{}}, events: logs.NewRing[string](1000), range_: freeRange(t),
		log: &lines{}, reg: prometheus.NewRegistry(),
	}
	log := logs.New(logs.Options{Format: "text", Level: "debug", Out: f.log})
	f.pools = pools.New(pools.Options{Log: slog.New(slog.DiscardHandler), Wake: func(ctx context.Context, app string) error { return f.apps.Wake(ctx, app) }})
	f.leases = leases.New(leases.Options{Store: dir, Log: log, Runs: func(n string, p uint16) bool { return f.apps.Has(n, p) }})
	f.apps = apps.New(apps.Options{
		Log: log, Registry: f.reg, Store: dir, Runner: func(*plan.App) run.Runner { return f.runner }, Ports: ports{f.leases}, Pools: f.pools,
		Listen: listen, Sockets: sockets, Output: t.TempDir(), Events: func(kind, object, message string) { f.events.Add(kind + " " + object + " " + message) },
	})
	ctx, end := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, r := range []func(context.Context) error{f.pools.Run, f.leases.Run, f.apps.Run} {
		running.Add(1)
		go func() { defer running.Done(); _ = r(ctx) }()
	}
	t.Cleanup(func() {
		late, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		if err := f.apps.Close(late); err != nil {
			t.Errorf("close: %v", err)
		}
		end()
		running.Wait()
		_ = dir.Close()
		if t.Failed() {
			t.Log(f.log.String())
		}
	})
	f.follow(list...)
	return f
}

// listen is what the daemon does for a socket of an app.
func listen(at plan.Addr) (int, error) {
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", at.Port))
	if err != nil {
		return -1, err
	}
	return launch.Detach(l)
}

// follow makes a plan of the apps, each with an upstream of its name, the wish.
func (f *floor) follow(list ...*plan.App) {
	f.t.Helper()
	if err := f.try(list...); err != nil {
		f.t.Fatal(err)
	}
}

func (f *floor) try(list ...*plan.App) error {
	p := &plan.Plan{Apps: list, Settings: plan.Settings{AppPorts: f.range_}}
	for _, a := range list {
		p.Upstreams = append(p.Upstreams, &plan.Upstream{
			Name: a.Name, Connect: 5 * time.Second, Balance: plan.Balance{Policy: "round_robin"},
			Targets: []plan.Target{{Text: "app:" + a.Name, App: a.Name, Weight: 1}}, Pool: plan.PoolSettings{MaxIdle: 4, Idle: time.Minute, Queue: 10},
		})
	}
	var steps []plan.Step
	for _, follower := range []plan.Follower{f.leases, f.pools, f.apps} {
		s, err := follower.Prepare(context.Background(), p)
		if err != nil {
			for _, s := range steps {
				s.Abort()
			}
			return err
		}
		steps = append(steps, s)
	}
	for _, s := range steps {
		s.Commit()
	}
	for _, s := range steps {
		s.Retire()
	}
	return nil
}

// app is an entry as the configuration's defaults make it, with short clocks.
func app(name, how string, change ...func(*plan.App)) *plan.App {
	a := &plan.App{
		Name: name, Source: plan.FromFile, Command: []string{how}, Socket: "tcp", OnPortBusy: "next", Start: "always",
		Ready:   plan.Ready{Path: "/", Timeout: 20 * time.Second},
		Restart: plan.Restart{Policy: "always", Backoff: 20 * time.Millisecond, MaxBackoff: 100 * time.Millisecond, Max: 5, Within: time.Minute, MinUptime: 10 * time.Second},
		Stop:    plan.AppStop{Signal: "TERM", Timeout: 10 * time.Second}, Logs: plan.AppLogs{Lines: 100, Files: 2},
	}
	for _, c := range change {
		c(a)
	}
	return a
}

type ports struct{ ls *leases.Leases }

func (p ports) Lease(ctx context.Context, app string, another bool) (apps.Lease, error) {
	l, _, err := p.ls.Take(ctx, leases.Want{Name: app, New: another})
	var busy *leases.BusyError
	if errors.As(err, &busy) {
		return nil, &run.PortError{Port: busy.Port, Text: busy.Who}
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (p ports) Release(ctx context.Context, app string) error {
	_, err := p.ls.Release(ctx, app)
	return err
}

var ranges struct {
	sync.Mutex
	next int
}

// freeRange is a range of ports of a test's own, below the ephemeral ones.
func freeRange(t testing.TB) plan.PortRange {
	t.Helper()
	ranges.Lock()
	defer ranges.Unlock()
	ranges.next++
	lo := uint16(12000 + (os.Getpid()%40)*100 + ranges.next%10*10)
	return plan.PortRange{Lo: lo, Hi: lo + 9}
}

// is is the state of an app at this moment.
func (f *floor) is(name string) apps.Status {
	s, err := f.apps.One(name)
	if err != nil {
		return apps.Status{}
	}
	return s
}

// until waits until an app is in a state.
func (f *floor) until(name string, want apps.State) apps.Status {
	f.t.Helper()
	var s apps.Status
	f.wait(fmt.Sprintf("%s is %s", name, want), func() bool { s = f.is(name); return s.State == want })
	return s
}

func (f *floor) wait(what string, ok func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited 20 s for: %s\n%+v", what, f.apps.Status())
		}
		<-time.After(2 * time.Millisecond)
	}
}

// get asks an app by way of its pool.
func (f *floor) get(name, path string) (string, error) {
	c, m, err := f.pools.Pool(name).Dial(context.Background(), &pools.Ask{})
	if err != nil {
		return "", err
	}
	defer m.Release(true)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path)
	b, err := io.ReadAll(c)
	_, body, _ := strings.Cut(string(b), "\r\n\r\n")
	return body, err
}

// history lists the events of an app.
func (f *floor) history(name string) []string {
	var out []string
	for _, e := range f.events.Last(1000) {
		if strings.Contains(e, " "+name+" ") {
			out = append(out, e)
		}
	}
	return out
}
