//go:build linux

package main

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
)

// peers holds a configuration per program; the comments in them say why they are as they are.
//
//go:embed peers
var peers embed.FS

// program is one column: a proxy as it comes, or as its own engineers would tune it.
type program struct {
	name   string // "haproxy tuned"
	family string // "haproxy"
	tuned  bool
	path   string
	about  string // version
}

// installed finds the programs there are.
func installed(o options) []program {
	out := []program{{name: "quaymaster", family: "quaymaster", path: o.binary, about: version(o.binary, "version")}}
	for _, p := range []program{
		{name: "haproxy", family: "haproxy"},
		{name: "haproxy tuned", family: "haproxy", tuned: true},
		{name: "nginx", family: "nginx"},
		{name: "nginx tuned", family: "nginx", tuned: true},
		{name: "caddy", family: "caddy"},
		{name: "sniproxy", family: "sniproxy"},
	} {
		path, err := exec.LookPath(p.family)
		if err != nil {
			path, err = exec.LookPath("/usr/sbin/" + p.family)
		}
		if err != nil || (o.peers != "" && !wanted(o.peers, p.name)) {
			continue
		}
		p.path = path
		p.about = version(path, map[string]string{"haproxy": "-v", "nginx": "-v", "caddy": "version", "sniproxy": "-V"}[p.family])
		out = append(out, p)
	}
	return out
}

func version(path, arg string) string {
	out, _ := exec.Command(path, arg).CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// listens is a port that the program accepts on when it is ready.
func (p program) listens() int {
	if p.family == "sniproxy" {
		return sniPort
	}
	return proxyPort
}

// setting is what the configurations are filled in with.
type setting struct {
	Dir              string
	HTTP, SNI, TLS   int
	Target, Raw      int
	Tuned            bool
	Hosts            []string
	Name, HTTPS, Run string
}

// startProxy writes the program's configuration for a workload and starts it on its core.
func (b *bench) startProxy(_ context.Context, w workload, p program) (*process, error) {
	dir := filepath.Join(b.dir, strings.ReplaceAll(p.name, " ", "-"))
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s := setting{Dir: dir, HTTP: proxyPort, SNI: sniPort, TLS: tlsPort, Target: targetHTTP, Raw: targetRaw, Tuned: p.tuned}
	for i := range w.routes {
		s.Hosts = append(s.Hosts, fmt.Sprintf("h%d.bench.test", i))
	}
	b.current = p
	if err := writePair(dir); err != nil {
		return nil, err
	}
	files, err := peers.ReadDir("peers/" + p.family)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := fill("peers/"+p.family+"/"+f.Name(), filepath.Join(dir, f.Name()), s); err != nil {
			return nil, err
		}
	}
	var args []string
	switch p.family {
	case "quaymaster":
		args = []string{"run", "-c", filepath.Join(dir, "quaymaster.yaml")}
	case "haproxy":
		args = []string{"-W", "-db", "-f", filepath.Join(dir, "haproxy.cfg")}
	case "nginx":
		args = []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-g", "daemon off;"}
	case "caddy":
		args = []string{"run", "--config", filepath.Join(dir, "Caddyfile"), "--adapter", "caddyfile"}
	case "sniproxy":
		args = []string{"-f", "-c", filepath.Join(dir, "sniproxy.conf")}
	}
	return pinned(proxyCore, filepath.Join(dir, "out.log"), p.path, args...)
}

func fill(from, to string, s setting) error {
	t, err := template.ParseFS(peers, from)
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	return t.Execute(f, s)
}

// reload asks the running program to read its configuration again.
func (b *bench) reload(p *process) error {
	dir := filepath.Join(b.dir, strings.ReplaceAll(b.current.name, " ", "-"))
	switch b.current.family {
	case "quaymaster":
		out, err := exec.Command("taskset", "-c", loadCore, b.o.binary, "reload", "-c", filepath.Join(dir, "quaymaster.yaml")).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return touch(filepath.Join(dir, "quaymaster.yaml"))
	case "haproxy":
		return syscall.Kill(p.cmd.Process.Pid, syscall.SIGUSR2)
	case "nginx":
		return syscall.Kill(p.cmd.Process.Pid, syscall.SIGHUP)
	}
	return fmt.Errorf("%s cannot be asked", b.current.family)
}

// touch changes a hundred routes, so that the next reload has something to do.
func touch(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	lines := strings.Split(string(text), "\n")
	n := 0
	for i, l := range lines {
		if strings.Contains(l, "priority: ") && n < 100 {
			n++
			if strings.Contains(l, "priority: 1,") {
				lines[i] = strings.Replace(l, "priority: 1,", "priority: 2,", 1)
			} else {
				lines[i] = strings.Replace(l, "priority: 2,", "priority: 1,", 1)
			}
		}
	}
	return os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644)
}

// reloadWaits reports whether reload returns when the new configuration serves; the peers are only signalled.
func (b *bench) reloadWaits() bool { return b.current.family == "quaymaster" }
