package form

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/strict"
)

// An App is a program that is run here and has a port.
type App struct {
	// The program and its arguments: a list, or one text that is split at blanks and quotes as a shell would, without a
	// shell. `${PORT}`, `${HOST}`, `${SOCKET}` and `${QUAYMASTER_URL}` are the app's own, put in at each start.
	Command Command `yaml:"command"`
	// The image of a container to run it in, as podman and docker name it. `command`, if written, is what the image is told to
	// run; `user` is the one in the container.
	Image Image `yaml:"image"`
	// The port that it listens on in its container, which is in PORT there. Default: the number of `port`.
	ContainerPort PortNumber `yaml:"container_port"`
	// The folder it is started in, relative to the file. Default: the folder of the file.
	Dir string `yaml:"dir"`
	// Whom it runs as. A daemon that is root starts no app without it, unless it has an `image`: write `root` where that is meant.
	User string `yaml:"user"`
	// Its environment, besides PATH, HOME, USER, LANG, TZ, TMPDIR and the names of `command`, which may stand in values.
	Env map[string]AppText `yaml:"env"`
	// Names that must be in its environment: it is not started without them.
	EnvRequired []EnvName `yaml:"env_required"`
	// Give it the environment of the daemon too.
	InheritEnv bool `yaml:"inherit_env"`
	// `auto` leases one of app_ports, which it keeps over restarts; or a number.
	Port AppPort `yaml:"port"`
	// How it gets its port: `tcp`, it listens on 127.0.0.1 itself; `fd`, it gets the listening socket (LISTEN_FDS), which
	// is ours and outlives it; `unix`, it listens on the path in SOCKET.
	Socket string `yaml:"socket" oneof:"tcp,fd,unix"`
	// What happens when somebody else has its port: another one (`next`), growing pauses (`retry`), nothing (`fail`), or
	// who has it is ended (`take_over`): processes that quaymaster has started, and with `port_policy.take_over: any` all
	// others of its own user. Default: next for a leased port, retry for a number.
	OnPortBusy string `yaml:"on_port_busy" oneof:"next,retry,fail,take_over"`
	// When requests may go to it.
	Ready AppReady `yaml:"ready"`
	// Checks once it is ready. Off unless written.
	Health *AppHealth `yaml:"health"`
	// What follows its end.
	Restart AppRestart `yaml:"restart"`
	// How it is ended.
	Stop AppStop `yaml:"stop"`
	// `on_request` starts it with the first request, which waits.
	Start string `yaml:"start" oneof:"always,on_request"`
	// End it when nobody has used it for so long; the next request starts it. 0 is never. Default: 10m with
	// `start: on_request`, else 0.
	IdleStop *Duration `yaml:"idle_stop"`
	// Apps that must be ready before it is started, and that end after it.
	DependsOn []Name `yaml:"depends_on"`
	// Show it where `previews` says, besides its routes.
	Preview bool `yaml:"preview"`
	// What it may use.
	Limits AppLimits `yaml:"limits"`
	// What is kept of its output.
	Logs AppLogs `yaml:"logs"`
}

// Defaults of an app.
func (a *App) Defaults() {
	a.Socket, a.Start = "tcp", "always"
	a.Ready.Defaults()
	a.Restart.Defaults()
	a.Stop.Defaults()
	a.Logs.Defaults()
}

// AppReady says when an app serves: one of `http`, `log` and `tcp`, which is the default.
type AppReady struct {
	// When it answers this path with 200 to 399.
	HTTP AppText `yaml:"http"`
	// When a line of its output matches this regular expression (RE2).
	Log AppText `yaml:"log"`
	// When it takes a connection.
	TCP bool `yaml:"tcp"`
	// It is ended and started again when it is not ready by then; requests wait no longer.
	Timeout Duration `yaml:"timeout"`
}

// Defaults of ready.
func (a *AppReady) Defaults() { a.Timeout = Duration(30 * time.Second) }

// AppHealth is a check of an app that is ready: that it answers `http`, else that it takes a connection.
type AppHealth struct {
	// A path that is answered with 200 to 399.
	HTTP AppText `yaml:"http"`
	// Between two checks.
	Interval Duration `yaml:"interval"`
	// For one check.
	Timeout Duration `yaml:"timeout"`
	// Bad checks in a row until it is unhealthy.
	Fall int `yaml:"fall" range:"1..100"`
	// What happens then: it is started again, it gets no requests until it is well, or nothing.
	OnUnhealthy string `yaml:"on_unhealthy" oneof:"restart,route_away,nothing"`
}

// Defaults of health.
func (a *AppHealth) Defaults() {
	*a = AppHealth{Interval: Duration(10 * time.Second), Timeout: Duration(2 * time.Second), Fall: 3, OnUnhealthy: "restart"}
}

// AppRestart says what follows the end of an app that nobody had asked for.
type AppRestart struct {
	// `on-failure` leaves it when it ended with code 0.
	Policy string `yaml:"policy" oneof:"always,on-failure,no"`
	// The first pause; it doubles
	Backoff Duration `yaml:"backoff"`
	// up to this.
	MaxBackoff Duration `yaml:"max_backoff"`
	// So many ends
	Max int `yaml:"max" range:"1..1000"`
	// within so long are a crash loop: it is not started again by itself.
	Within Duration `yaml:"within"`
	// An app that ran for so long begins with the first pause again.
	MinUptime Duration `yaml:"min_uptime"`
}

// Defaults of restart.
func (a *AppRestart) Defaults() {
	*a = AppRestart{
		Policy: "always", Backoff: Duration(time.Second), MaxBackoff: Duration(30 * time.Second), Max: 5,
		Within: Duration(5 * time.Minute), MinUptime: Duration(10 * time.Second),
	}
}

// AppStop is how an app is ended: first it gets no requests any more and may finish those it has, then the signal.
type AppStop struct {
	// The signal, such as TERM, INT or QUIT.
	Signal SignalName `yaml:"signal"`
	// For the requests in progress, and again from the signal to KILL for its whole group.
	Timeout Duration `yaml:"timeout"`
}

// Defaults of stop.
func (a *AppStop) Defaults() { a.Signal, a.Timeout = "TERM", Duration(10*time.Second) }

// AppLimits bound an app.
type AppLimits struct {
	// Processors, also a part of one: `1`, `0.5`. 0 is no limit. In a container it is the engine's. Otherwise, under systemd it needs `Delegate=yes` and `DelegateSubgroup=daemon` (version 254); where it cannot be set, the log says so.
	CPU Processors `yaml:"cpu"`
	// Memory of the app and all it starts; it is ended when it takes more. 0 is no limit. It needs what `cpu` needs.
	Memory Size `yaml:"memory"`
	// Open files. 0 is what the daemon was started with.
	NoFile int `yaml:"nofile" range:"0..10000000"`
}

// AppLogs bound what is kept of an app's output.
type AppLogs struct {
	// Lines in memory.
	Lines int `yaml:"lines" range:"1..100000"`
	// Files of 1MiB in the state folder. 0 is none.
	Files int `yaml:"files" range:"0..1000"`
}

// Defaults of logs.
func (a *AppLogs) Defaults() { a.Lines, a.Files = 1000, 20 }

// AppEntry is one entry of `apps`.
type AppEntry struct{ App }

// ReadNode reads it once: two files cannot share the entry of one app.
func (a *AppEntry) ReadNode(r *strict.Reader, n *yaml.Node) {
	if old, again := r.Places[r.Path()]; again {
		r.Problem(n, "give one of them another name", "the app is also at %s:%d:%d", old.File, old.Line, old.Col)
		return
	}
	a.Defaults()
	r.Read(n, &a.App)
}

// ChildNames are the variables that an app gets at each start; they are not read when the file is.
var ChildNames = []string{"PORT", "HOST", "SOCKET", "QUAYMASTER_URL"}

// childText is the text of a scalar in which the child's own variables stay.
func childText(r *strict.Reader, n *yaml.Node) (string, bool) {
	env := r.Env
	if env != nil {
		r.Env = func(name string) (string, bool) {
			if slices.Contains(ChildNames, name) {
				return "${" + name + "}", true
			}
			return env(name)
		}
	}
	s, ok := r.Text(n)
	r.Env = env
	if ok && strings.ContainsRune(s, 0) {
		r.Problem(n, "leave it out", "the text holds a NUL, which no program can be given")
		return "", false
	}
	return s, ok
}

// AppText is a text for an app.
type AppText string

// ReadNode reads it.
func (a *AppText) ReadNode(r *strict.Reader, n *yaml.Node) {
	s, _ := childText(r, n)
	*a = AppText(s)
}

// Command is a program with its arguments.
type Command []string

// ReadNode reads either shape.
func (c *Command) ReadNode(r *strict.Reader, n *yaml.Node) {
	if n.Kind == yaml.SequenceNode {
		for i, item := range n.Content {
			r.At(i, func() {
				if s, ok := childText(r, item); ok {
					*c = append(*c, s)
				}
			})
		}
	} else if s, ok := childText(r, n); ok {
		words, err := splitWords(s)
		if r.Fault(n, err) {
			*c = words
		}
	}
	if len(r.Problems) == 0 && (len(*c) == 0 || (*c)[0] == "") {
		r.Problem(n, "write [PROGRAM, ARGUMENT]", "the command names no program")
	}
}

// splitWords splits a text at blanks, as a shell does with quotes and backslashes. Nothing else of a shell is known.
func splitWords(s string) ([]string, error) {
	var out []string
	var word strings.Builder
	open, quote := false, rune(0)
	escaped := false
	for _, c := range s {
		switch {
		case escaped:
			if quote == '"' && c != '"' && c != '\\' && c != '$' && c != '`' {
				word.WriteByte('\\')
			}
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, open = true, true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteRune(c)
			}
		case c == '\'' || c == '"':
			quote, open = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if open {
				out = append(out, word.String())
			}
			word.Reset()
			open = false
		case strings.ContainsRune("|&;<>", c):
			return nil, strict.Faultf(`quote it, or write [sh, -c, "..."] where a shell is meant`, "%q means something to a shell alone", string(c))
		default:
			word.WriteRune(c)
			open = true
		}
	}
	if quote != 0 || escaped {
		return nil, strict.Faultf("close it, or write the command as a list", "a quote in the command has no end")
	}
	if open {
		out = append(out, word.String())
	}
	return out, nil
}

// EnvName is the name of a variable.
type EnvName string

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ReadText reads it.
func (e *EnvName) ReadText(s string) error {
	*e = EnvName(s)
	if !envName.MatchString(s) {
		return strict.Faultf("write letters, digits and _", "%q is not the name of a variable", short(s))
	}
	return nil
}

// AppPort is `auto` or a number.
type AppPort uint16

// ReadText reads it.
func (a *AppPort) ReadText(s string) error {
	if s == "auto" {
		*a = 0
		return nil
	}
	n, err := portNumber(s)
	*a = AppPort(n)
	if err != nil {
		return strict.Faultf("write auto, or a number from 1 to 65535", "%q is no port", short(s))
	}
	return nil
}

// SignalName is the name of a signal.
type SignalName string

// signals are those that ask a program to end.
var signals = []string{"TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL"}

// ReadText reads it.
func (a *SignalName) ReadText(s string) error {
	*a = SignalName(strings.TrimPrefix(s, "SIG"))
	if !slices.Contains(signals, string(*a)) {
		return strict.Faultf("write "+strings.Join(signals, ", "), "%q is no signal that ends a program", short(s))
	}
	return nil
}

// Image is the name of an image.
type Image string

const maxImage = 512 // bytes of its name

var imageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]*$`) // without the length: counting takes a millisecond of every start

// ReadText reads it.
func (i *Image) ReadText(s string) error {
	*i = Image(s)
	if len(s) > maxImage || !imageName.MatchString(s) {
		return strict.Faultf("write REGISTRY/NAME:TAG, such as localhost/web:1", "%q is no name of an image", short(s))
	}
	return nil
}

// Processors is a number of processors: `1`, `0.5`.
type Processors float64

// ReadText reads it.
func (p *Processors) ReadText(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > 4096 {
		return strict.Faultf("write 1, 0.5 or the like", "%q is no number of processors", short(s))
	}
	*p = Processors(f)
	return nil
}
