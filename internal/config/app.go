package config

import (
	"encoding/json"
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// defaultIdleStop ends an app that was started by a request.
const defaultIdleStop = 10 * time.Minute

// appUse is a target that is an app.
type appUse struct {
	name string
	at   spot
}

// apps makes the plan's apps of the form and of the API layer.
func (l *load) apps(p *plan.Plan) {
	for name := range l.apiApps {
		if _, ok := l.file.Apps[name]; ok {
			l.warnings = append(l.warnings, Warning{Conflict: name, Error: Error{
				File: "api", Path: "apps." + name, Message: "the app is also written in a file, which wins", Remedy: "remove the one of the API",
			}})
			delete(l.apiApps, name)
			continue
		}
		l.places["apps."+name] = strict.Place{File: "api"}
	}
	known := slices.Sorted(maps.Keys(l.file.Apps))
	known = sorted(append(known, slices.Collect(maps.Keys(l.apiApps))...), strings.Compare)
	for _, name := range known {
		l.breathe()
		f, api := l.apiApps[name]
		if !api {
			f = l.file.Apps[name].App
		}
		at := l.placeOf("apps." + name)
		var n form.Name
		if err := n.ReadText(name); err != nil {
			message, remedy := strict.Say(err)
			path := "apps." + name
			if strings.ContainsAny(name, ".:/[] ") { // as the reader writes it
				path = "apps[" + strconv.Quote(name) + "]"
			}
			l.fault(path, remedy, "%s", message)
			continue
		}
		dir := filepath.Dir(at.File)
		if api {
			dir = "/"
		}
		a := l.app(name, &f, dir)
		if api {
			a.Source = plan.FromAPI
			if f.Dir != "" && !filepath.IsAbs(f.Dir) {
				l.fault("apps."+name+".dir", "write an absolute path", "%q is relative, and there is no file it could be relative to", f.Dir)
			}
		}
		if old := l.oldApps[name]; old != nil && reflect.DeepEqual(old, a) {
			a = old
		}
		p.Apps = append(p.Apps, a)
		if api {
			continue
		}
		p.Where["app/"+name] = plan.Pos{File: at.File, Line: at.Line, Col: at.Col}
	}
	l.dependencies(p, known)
	l.fixedPorts(p)
	l.appTargets(known)
}

// ParseApp checks one app as the API gets it (no ${} but the app's own names, no file:) and returns it as a Layer keeps it.
func ParseApp(name string, body []byte) (json.RawMessage, error) {
	if !json.Valid(body) {
		var v any
		err := json.Unmarshal(body, &v)
		return nil, Errors{{Path: "apps." + name, Message: "the body is not JSON: " + err.Error(), Remedy: "send one app as a JSON object"}}
	}
	if !isText(body) {
		return nil, Errors{{Path: "apps." + name, Message: "the body holds what is no character of Unicode", Remedy: "send UTF-8, and pairs of surrogates whole; what a program is given is passed on as it is or not at all"}}
	}
	body = plainJSON(body)
	l := NewLoader()
	ld := l.begin()
	defer ld.breath.End()
	ld.addApp(name, body)
	if len(ld.errs) > 0 {
		return nil, ld.errs.Sort()
	}
	return body, nil
}

// addApp reads an app of the API layer.
func (l *load) addApp(name string, text []byte) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil || len(doc.Content) != 1 {
		l.errs = append(l.errs, Error{File: "api", Path: "apps." + name, Message: "the stored app cannot be read", Remedy: "put it again, or remove it"})
		return
	}
	o := l.options("api")
	o.Env = nil
	r := strict.NewReader(o)
	var f form.App
	f.Defaults()
	r.Under([]string{"apps", name}, func() { r.Read(doc.Content[0], &f) })
	l.errs = append(l.errs, r.Problems...)
	if l.apiApps == nil {
		l.apiApps = map[string]form.App{}
	}
	l.apiApps[name] = f
}

// app makes one. dir is the folder of its file.
func (l *load) app(name string, f *form.App, dir string) *plan.App {
	path := "apps." + name
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	a := &plan.App{
		Name: name, Source: plan.FromFile, Command: f.Command, Image: string(f.Image), ContainerPort: uint16(f.ContainerPort), Dir: dir, User: f.User, InheritEnv: f.InheritEnv, Port: uint16(f.Port),
		Socket: f.Socket, OnPortBusy: f.OnPortBusy, Start: f.Start, DependsOn: texts(f.DependsOn), EnvRequired: texts(f.EnvRequired),
		Ready: plan.Ready{Path: string(f.Ready.HTTP), Log: string(f.Ready.Log), Timeout: time.Duration(f.Ready.Timeout)},
		Restart: plan.Restart{
			Policy: f.Restart.Policy, Backoff: time.Duration(f.Restart.Backoff), MaxBackoff: time.Duration(f.Restart.MaxBackoff),
			Max: f.Restart.Max, Within: time.Duration(f.Restart.Within), MinUptime: time.Duration(f.Restart.MinUptime),
		},
		Stop:   plan.AppStop{Signal: string(f.Stop.Signal), Timeout: time.Duration(f.Stop.Timeout)},
		Limits: plan.AppLimits{CPU: float64(f.Limits.CPU), Memory: int64(f.Limits.Memory), NoFile: uint64(f.Limits.NoFile)},
		Logs:   plan.AppLogs{Lines: f.Logs.Lines, Files: f.Logs.Files},

		Preview: f.Preview,
	}
	switch {
	case filepath.IsAbs(f.Dir):
		a.Dir = filepath.Clean(f.Dir)
	case f.Dir != "":
		a.Dir = filepath.Join(dir, f.Dir)
	}
	for _, key := range slices.Sorted(maps.Keys(f.Env)) {
		var n form.EnvName
		if err := n.ReadText(key); err != nil {
			message, remedy := strict.Say(err)
			l.fault(path+".env", remedy, "%s", message)
		}
		if slices.Contains(form.ChildNames, key) {
			l.fault(path+".env."+key, "leave it out; write it into another variable where the app wants another name", "%s is what quaymaster tells the app", key)
		}
		a.Env = append(a.Env, plan.EnvVar{Name: key, Value: string(f.Env[key])})
	}
	if len(f.Command) == 0 && a.Image == "" && len(l.errs) == 0 {
		l.fault(path, "write command: [PROGRAM, ARGUMENT], or image: NAME", "the app says nothing that could be run")
	}
	l.appImage(path, f, a)
	l.appClocks(path, f, a)
	l.appPort(path, f, a)
	return a
}

// appImage finds what cannot be with an app in a container, or only there.
func (l *load) appImage(path string, f *form.App, a *plan.App) {
	if a.Image == "" {
		if a.ContainerPort != 0 {
			l.fault(path+".container_port", "write image too, or leave it out", "an app without an image has no container")
		}
		return
	}
	a.Dir, a.Engine = "", engineSettings(&l.file.Engine)
	if f.Dir != "" {
		l.fault(path+".dir", "leave it out; the image says where its program starts (WORKDIR)", "an app in a container does not see the folders of this machine")
	}
	if f.InheritEnv {
		l.fault(path+".inherit_env", "leave it out, and write under env what it needs", "an app in a container does not get the environment of the daemon")
	}
	if a.Socket != "tcp" {
		l.fault(path+".socket", "leave it out", "an app in a container listens on a port that is published, not on a socket of ours")
	}
}

func engineSettings(f *form.Engine) plan.EngineSettings {
	return plan.EngineSettings{Kind: f.Kind, Socket: string(f.Socket), Pull: f.Pull}
}

// appClocks fills in what depends on other keys, and finds what cannot be.
func (l *load) appClocks(path string, f *form.App, a *plan.App) {
	switch {
	case f.IdleStop != nil:
		a.IdleStop = time.Duration(*f.IdleStop)
	case f.Start == "on_request":
		a.IdleStop = defaultIdleStop
	}
	ways := 0
	for _, set := range []bool{f.Ready.TCP, f.Ready.HTTP != "", f.Ready.Log != ""} {
		if set {
			ways++
		}
	}
	if ways > 1 {
		l.fault(path+".ready", "keep one of them", "http, log and tcp are three ways to be ready")
	}
	l.appPath(path+".ready.http", string(f.Ready.HTTP))
	if _, err := regexp.Compile(a.Ready.Log); err != nil {
		l.fault(path+".ready.log", "write it in RE2 syntax (no look-around, no back-references)", "the expression cannot be read: %v", err)
	}
	if a.Ready.Timeout <= 0 {
		l.fault(path+".ready.timeout", "write 30s", "an app needs some time to be ready")
	}
	if a.Restart.MaxBackoff < a.Restart.Backoff {
		l.fault(path+".restart.max_backoff", "write at least that", "it is shorter than backoff, %s", a.Restart.Backoff)
	}
	h := f.Health
	if h == nil {
		return
	}
	l.appPath(path+".health.http", string(h.HTTP))
	if h.Interval < form.Duration(10*time.Millisecond) {
		l.fault(path+".health.interval", "write 10s", "the interval is too short")
	}
	if h.Timeout == 0 {
		l.fault(path+".health.timeout", "write 2s", "a check needs a timeout")
	}
	a.Health = &plan.AppHealth{
		Path: string(h.HTTP), Interval: time.Duration(h.Interval), Timeout: time.Duration(h.Timeout), Fall: h.Fall, OnUnhealthy: h.OnUnhealthy,
	}
}

func (l *load) appPath(key, path string) {
	if path == "" {
		return
	}
	var p form.PlainPath
	text, _, _ := strings.Cut(path, "?")
	if err := p.ReadText(text); err != nil {
		message, remedy := strict.Say(err)
		l.fault(key, remedy, "%s", message)
	}
}

// appPort finds what cannot be with the port of an app, and says what happens when it is taken.
func (l *load) appPort(path string, f *form.App, a *plan.App) {
	if a.OnPortBusy == "" {
		a.OnPortBusy = "next"
		if a.Port != 0 {
			a.OnPortBusy = "retry"
		}
	}
	if a.OnPortBusy == "take_over" {
		a.TakeOver = "own"
		if l.file.PortPolicy.TakeOver == "any" {
			a.TakeOver = "any"
		}
	}
	switch {
	case a.OnPortBusy == "take_over" && a.Socket == "unix":
		l.fault(path+".on_port_busy", "leave it out", "an app with a unix socket has no port")
	case a.Port != 0 && a.Socket == "unix":
		l.fault(path+".port", "leave it out, or write socket: tcp", "an app with a unix socket has no port")
	case a.Port != 0 && f.OnPortBusy == "next":
		l.fault(path+".on_port_busy", "write port: auto, or on_port_busy: retry", "port %d is fixed, so there is no next one", a.Port)
	}
}

// dependencies finds what depends on nothing that there is, or on itself.
func (l *load) dependencies(p *plan.Plan, known []string) {
	byName := make(map[string]*plan.App, len(p.Apps))
	for _, a := range p.Apps {
		byName[a.Name] = a
	}
	for _, a := range p.Apps {
		l.breathe()
		path := "apps." + a.Name + ".depends_on"
		for _, d := range a.DependsOn {
			if byName[d] == nil {
				l.fault(path, l.nearApp(d, known), "there is no app %q", d)
			}
		}
		if way := circle(byName, a.Name); way != nil {
			l.fault(path, "take one of them out", "%s waits for itself: %s", a.Name, strings.Join(way, " -> "))
		}
	}
}

func (l *load) nearApp(name string, known []string) string {
	if near := strict.Nearest(name, known); near != "" {
		return "write " + near
	}
	return "write it under apps"
}

// circle is a way from an app back to itself, nil if there is none.
func circle(byName map[string]*plan.App, from string) []string {
	seen := map[string]bool{}
	var walk func(name string, way []string) []string
	walk = func(name string, way []string) []string {
		a := byName[name]
		if a == nil {
			return nil
		}
		for _, d := range a.DependsOn {
			if d == from {
				return append(way, d)
			}
			if !seen[d] {
				seen[d] = true
				if found := walk(d, append(way, d)); found != nil {
					return found
				}
			}
		}
		return nil
	}
	return walk(from, []string{from})
}

// fixedPorts finds numbers that somebody else of this configuration has.
func (l *load) fixedPorts(p *plan.Plan) {
	taken := map[uint16]string{}
	for _, port := range p.Ports {
		for _, a := range append([]plan.Addr{port.Addr}, port.Fallback...) {
			local := !a.IP.IsValid() || a.IP.IsUnspecified() || a.IP.IsLoopback()
			if a.Network == plan.TCP && a.Port != 0 && local && len(port.Users) > 0 {
				where := p.Where["port/"+port.Addr.String()]
				taken[a.Port] = "the port of " + port.Users[0] + " at " + place(where)
			}
		}
	}
	for path, address := range map[string]string{"metrics.address": string(l.file.Metrics.Address), "admin.address": string(l.file.Admin.Address)} {
		if _, text, err := net.SplitHostPort(address); err == nil {
			if n, err := strconv.ParseUint(text, 10, 16); err == nil && n > 0 {
				at := l.placeOf(path)
				taken[uint16(n)] = path + " at " + place(plan.Pos{File: at.File, Line: at.Line, Col: at.Col})
			}
		}
	}
	leases := plan.PortRange{Lo: l.file.AppPorts.Lo, Hi: l.file.AppPorts.Hi}
	for _, a := range p.Apps {
		l.breathe()
		if a.Port == 0 {
			continue
		}
		key := "apps." + a.Name + ".port"
		switch {
		case taken[a.Port] != "":
			l.fault(key, "choose another port", "%d is %s", a.Port, taken[a.Port])
		case leases.Has(a.Port):
			l.fault(key, "write port: auto, or a number outside of the range", "%d is one of app_ports %s, which are leased", a.Port, leases)
		}
		taken[a.Port] = "the port of app " + a.Name + " at " + place(p.Where["app/"+a.Name])
	}
}

// appTargets finds targets that are no app.
func (l *load) appTargets(known []string) {
	for i := range l.refs {
		l.breathe()
		r := &l.refs[i]
		for _, u := range r.apps {
			if _, ok := slices.BinarySearch(known, u.name); !ok {
				l.errs = append(l.errs, l.at(r, u.at, l.nearApp(u.name, known), "there is no app %q", u.name))
			}
		}
	}
}
