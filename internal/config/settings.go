package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

var emptyNode = &yaml.Node{Kind: yaml.MappingNode}

// settings makes the plan's settings of the form.
func (l *load) settings(s *plan.Settings) {
	f := &l.file
	*s = plan.Settings{
		Timeouts: globalClocks(&f.Timeouts), MaxConnections: f.MaxConnections, MaxPerIP: f.MaxConnectionsPerIP,
		RatePerIP: float64(f.ConnectionRatePerIP), MaxHeaderBytes: int(f.MaxHeaderBytes),
		ShutdownTimeout: time.Duration(f.ShutdownTimeout), ShutdownDelay: time.Duration(f.ShutdownDelay), DrainTimeout: time.Duration(f.DrainTimeout),
		TrustedProxies: networks(f.TrustedProxies),
		ByName:         plan.ByNameSettings{Allowlist: texts(f.Allowlist), AllowPrivate: f.ByName.AllowPrivate, Resolver: string(f.ByName.Resolver)},
		Metrics:        plan.MetricsSettings{Enabled: f.Metrics.Enabled, Address: string(f.Metrics.Address)},
		StateDir:       f.StateDir,
		LogLevel:       f.Log.Level, LogFormat: f.Log.Format,
		AppPorts:  plan.PortRange{Lo: f.AppPorts.Lo, Hi: f.AppPorts.Hi},
		Engine:    engineSettings(&f.Engine),
		AccessLog: plan.AccessLog{Enabled: f.Log.Access.Enabled, Format: f.Log.Access.Format, Sample: f.Log.Access.Sample, File: f.Log.Access.File},
	}
	for _, p := range f.ByName.Ports {
		s.ByName.Ports = append(s.ByName.Ports, uint16(p))
	}
	slices.Sort(s.ByName.Ports)
	if s.StateDir == "" {
		s.StateDir = l.stateDir()
	}
	if f.MaxHeaderBytes < 1<<10 || f.MaxHeaderBytes > 16<<20 {
		l.fault("max_header_bytes", "write a size from 1KiB to 16MiB", "%d bytes are out of range", f.MaxHeaderBytes)
	}
	if !f.Metrics.Enabled && f.Metrics.Address != "" {
		l.fault("metrics.address", "write enabled: true, or leave the address out", "metrics are turned off")
	}
	for i, name := range f.Allowlist {
		if slices.Contains(f.Allowlist[:i], name) {
			l.fault(fmt.Sprintf("allowlist[%d]", i), "leave it out", "%s stands here twice", name)
		}
	}
	l.admin(&s.Admin)
	s.Previews = l.shown
	l.labels(&s.Labels)
}

// labels says what labels of containers may ask for.
func (l *load) labels(s *plan.LabelSettings) {
	f := &l.file.Engine
	*s = plan.LabelSettings{Enabled: f.Labels, Domains: texts(f.Domains), Traefik: f.ImportTraefik}
	for i, p := range f.Ports {
		if p.Unix != "" || p.FD != "" {
			l.fault(fmt.Sprintf("engine.ports[%d]", i), "write a number, such as 443", "%s is no port that a label could name", p.Text)
		}
		s.Ports = append(s.Ports, p.Text)
	}
}

func (l *load) admin(a *plan.AdminSettings) {
	f := &l.file.Admin
	*a = plan.AdminSettings{
		Socket: f.Socket, Mode: string(f.Mode), Group: f.Group, Address: string(f.Address), TokenFile: f.TokenFile, Allow: texts(f.Allow),
	}
	if a.Socket == "" {
		a.Socket = DefaultSocket()
	} else if err := form.SocketPath(a.Socket); err != nil {
		message, remedy := strict.Say(err)
		l.fault("admin.socket", remedy, "%s", message)
	}
	switch {
	case f.TokenFile == "" && f.Address != "":
		l.fault("admin.address", "write token_file: PATH", "TCP clients would need no token")
	case f.TokenFile != "" && f.Address == "":
		l.fault("admin.token_file", "write address: HOST:PORT, or leave it out", "only TCP clients send a token")
	case f.TokenFile != "":
		token, err := readSecret(f.TokenFile)
		if err != nil {
			l.fault("admin.token_file", "write the path of a file that this user can read", "%s cannot be read: %v", f.TokenFile, reason(err))
		} else if token == "" {
			l.fault("admin.token_file", "write a token into it, such as the output of openssl rand -hex 32", "%s is empty", f.TokenFile)
		}
		a.Token = plan.Secret(token)
	}
}

// maxSecret bounds what is read of a file that holds one secret.
const maxSecret = 64 << 10

func readSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Size() > maxSecret || !info.Mode().IsRegular() {
		return "", fmt.Errorf("it is no file of at most %d bytes", maxSecret)
	}
	text, err := os.ReadFile(path)
	return strings.TrimSpace(string(text)), err
}

// stateDir is where state goes when no file says so.
func (l *load) stateDir() string {
	if dirs, _ := l.Env("STATE_DIRECTORY"); dirs != "" {
		first, _, _ := strings.Cut(dirs, ":")
		return first
	}
	if dir, _ := l.Env("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "quaymaster")
	}
	if home, _ := l.Env("HOME"); filepath.IsAbs(home) && os.Geteuid() != 0 {
		return filepath.Join(home, ".local", "state", "quaymaster")
	}
	return "/var/lib/quaymaster"
}

// DefaultSocket is the admin socket when no file says another: in a folder of its own below the runtime folder of the
// system for root, else of the user. A folder that systemd made for a unit counts if it bears our name: the unit may be
// of somebody who only asks us.
func DefaultSocket() string {
	for _, dir := range strings.Split(os.Getenv("RUNTIME_DIRECTORY"), ":") {
		if filepath.IsAbs(dir) && filepath.Base(dir) == "quaymaster" {
			return filepath.Join(dir, "admin.sock")
		}
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	switch {
	case os.Geteuid() == 0:
		dir = "/run/quaymaster"
	case dir != "":
		dir = filepath.Join(dir, "quaymaster")
	default:
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("quaymaster-%d", os.Geteuid()))
	}
	return filepath.Join(dir, "admin.sock")
}
