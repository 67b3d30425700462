//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	web "net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// figure is one line of the table of apps. Its limit is what was promised; 0: nothing was.
type figure struct {
	workload, what string
	n              int
	median, p95    float64
	unit           string
	limit          float64
	exact          bool // 0 is what was promised
}

// late says whether the promise was not kept.
func (f figure) late() bool {
	return f.exact && f.p95 != 0 || f.limit > 0 && max(f.median, f.p95) >= f.limit
}

// appWorkload is what only a program that runs apps has to do. There are no peers.
type appWorkload struct {
	name  string
	about string
	run   func(ctx context.Context, b *bench) ([]figure, error)
}

func appWorkloads() []appWorkload {
	return []appWorkload{
		{"apps woken", "time from the first request to the first byte of its answer, beyond what the same program takes to answer when it is started by hand; the two in turn, daemon and apps on one core", appsWoken},
		{"apps at rest", "200 apps with health checks every 10 s and no request: what the daemon itself uses in a minute", appsAtRest},
		{"apps at once", "50 sleeping apps whose first requests come at the same moment, beside the same 50 programs started at one moment by hand", appsAtOnce},
	}
}

// measureApps runs the workloads of apps that are wanted.
func (b *bench) measureApps(ctx context.Context) ([]figure, error) {
	var out []figure
	for _, w := range appWorkloads() {
		if !wanted(b.o.only, w.name) {
			continue
		}
		list, err := w.run(ctx, b)
		if err != nil {
			return out, fmt.Errorf("%s: %w", w.name, err)
		}
		for i := range list {
			list[i].workload = w.name
			fmt.Fprintf(os.Stderr, "%-16s %-46s %10.2f %10.2f %s\n", w.name, list[i].what, list[i].median, list[i].p95, list[i].unit)
		}
		out = append(out, list...)
	}
	return out, nil
}

// appTable is the table of apps.
func appTable(list []figure) string {
	var b strings.Builder
	b.WriteString("| workload | figure | runs | median | p95 | unit | promised |\n|---|---|--:|--:|--:|---|---|\n")
	for _, f := range list {
		promised := ""
		switch {
		case f.exact:
			promised = "0"
		case f.limit > 0:
			promised = fmt.Sprintf("< %g", f.limit)
		}
		if f.late() {
			promised += " **missed**"
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %.2f | %.2f | %s | %s |\n", f.workload, f.what, f.n, f.median, f.p95, f.unit, promised)
	}
	return b.String()
}

// spread is the median and the 95th percentile.
func spread(what, unit string, v []float64, limit float64) figure {
	v = slices.Clone(v)
	slices.Sort(v)
	return figure{what: what, n: len(v), median: v[len(v)/2], p95: v[min(len(v)-1, len(v)*95/100)], unit: unit, limit: limit}
}

// An appKind is a program to run as an app. ${PORT} is put in.
type appKind struct {
	name    string
	command []string
}

// appFile is the configuration of a daemon that runs apps.
var appFile = template.Must(template.New("").Parse(`state_dir: {{.Dir}}/state
admin: {socket: {{.Dir}}/admin.sock}
log: {level: warn, access: {enabled: false}}
app_ports: 18200-18599
apps:
{{- range .Apps}}
  {{.Name}}: {command: {{.Command}}, {{$.Common}}}
{{- end}}
routes:
{{- range .Apps}}
  - {match: {ports: [{{$.Port}}], domains: [{{.Name}}.bench.test]}, action: {targets: ["app:{{.Name}}"]}}
{{- end}}
`))

// appsDaemon is a quaymaster that runs apps.
type appsDaemon struct {
	*process
	admin       web.Client
	binary, dir string
}

// startApps starts quaymaster with apps that have these keys in common.
func (b *bench) startApps(ctx context.Context, common string, kinds []appKind) (*appsDaemon, error) {
	dir := filepath.Join(b.dir, "apps")
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		common += ", user: root"
	}
	type entry struct{ Name, Command string }
	s := struct {
		Dir, Common string
		Port        int
		Apps        []entry
	}{Dir: dir, Common: common, Port: proxyPort}
	for _, k := range kinds {
		text, err := json.Marshal(k.command)
		if err != nil {
			return nil, err
		}
		s.Apps = append(s.Apps, entry{k.name, string(text)})
	}
	file := filepath.Join(dir, "quaymaster.yaml")
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	err = appFile.Execute(f, s)
	if bad := f.Close(); err == nil {
		err = bad
	}
	if err != nil {
		return nil, err
	}
	d := &appsDaemon{binary: b.o.binary, dir: dir}
	d.admin.Transport = &web.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "admin.sock"))
	}}
	if d.process, err = pinned(b.appCores(), filepath.Join(dir, "out.log"), b.o.binary, "run", "-c", file); err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	if err := awaitPort(ctx, proxyPort); err != nil {
		d.end()
		return nil, fmt.Errorf("does not listen: %w", err)
	}
	return d, nil
}

// end stops the daemon in order, and with it its apps.
func (d *appsDaemon) end() {
	_ = syscall.Kill(d.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-d.process.end:
	case <-time.After(40 * time.Second):
	}
	d.stop()
}

// states asks for all apps.
func (d *appsDaemon) states() (list []appState, err error) {
	res, err := d.admin.Get("http://quaymaster/v1/apps")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return list, json.NewDecoder(res.Body).Decode(&list)
}

type appState struct {
	Name, State, Reason string
	Port, PID           int
}

// until waits until all apps are in a state.
func (d *appsDaemon) until(ctx context.Context, state string, limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		list, err := d.states()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(a appState) bool { return a.State != state })
		if i < 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is %s after %s: %s", list[i].Name, list[i].State, limit, list[i].Reason)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// runApp is the program of most apps: it waits, listens on PORT, and answers with its port.
func runApp(args []string) {
	if len(args) > 0 {
		d, err := time.ParseDuration(args[0])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		time.Sleep(d)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	text := []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + fmt.Sprintf("%05s", os.Getenv("PORT")))
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		go serveOne(c, text)
	}
}

func serveOne(c net.Conn, text []byte) {
	defer c.Close()
	buf := make([]byte, 8192)
	for { // requests here come one at a time and whole
		if _, err := c.Read(buf); err != nil {
			return
		}
		if _, err := c.Write(text); err != nil {
			return
		}
	}
}

// first asks over a connection and returns when the first byte is there.
func first(c net.Conn, host string) error {
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nAccept: */*\r\n\r\n", host); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	head := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	if !strings.HasSuffix(string(head), " 200") {
		rest, _ := io.ReadAll(io.LimitReader(c, 600))
		return fmt.Errorf("answer: %s%s", head, rest)
	}
	return nil
}

// byHand starts a program as an app is started, and returns the time until it has answered. pause is how long it waits
// between two attempts to connect; 0 is not at all.
func byHand(ctx context.Context, dir, core string, k appKind, port int, pause time.Duration) (time.Duration, error) {
	args := make([]string, len(k.command))
	for i, a := range k.command {
		args[i] = strings.ReplaceAll(a, "${PORT}", strconv.Itoa(port))
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LANG=C.UTF-8", "HOST=127.0.0.1", "PORT=" + strconv.Itoa(port)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	begin := time.Now()
	if err := onCore(core, cmd.Start); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for ctx.Err() == nil && time.Since(begin) < time.Minute {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			time.Sleep(pause)
			continue
		}
		err = first(c, "bench.test")
		took := time.Since(begin)
		_ = c.Close()
		return took, err
	}
	return 0, fmt.Errorf("%s does not answer on %d", k.name, port)
}
