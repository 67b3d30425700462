// Package doctor looks at the machine as Quaymaster needs it, and says what is not well and how to mend it.
//
// It promises that every finding that is not ok names the object, what is wrong with it and the command or line that
// mends it, and that one thing which cannot be looked at keeps nothing else from being looked at. It changes nothing,
// signals nobody, contacts nothing but this host and its resolver, and binds a port for no longer than the blink of ports.Probe.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports"
)

// Level is how a finding is.
type Level string

// The levels. Warn works, but not as well, as safely or as long as it should; Fail does not work.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// A Finding is one thing that was looked at.
type Finding struct {
	Area    string `json:"area"`   // "limits", "ports", ...: what is printed together
	Object  string `json:"object"` // what was looked at: "open files", ":443"
	Level   Level  `json:"level"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"` // "" where there is nothing to do
}

// Subject is what is looked at. The zero value is a machine without configuration and without a daemon.
type Subject struct {
	Plan    *plan.Plan // nil: no configuration could be read; what depends on it is left out
	Files   []string   // the files it was read from
	Socket  string     // admin socket
	Running *Running   // nil: no daemon answers there
	Silent  error      // why none answers, when one seems to be there

	// Published are the ports that container engines publish, and the container of each. EngineErr is why an engine did
	// not say.
	Published map[uint16]string
	EngineErr error

	Root  string                             // where /proc, /sys and /etc stand; "" = "/"
	Probe func(a plan.Addr) *ports.BindError // nil: ports.Probe

	Lookup func(ctx context.Context, host string) ([]string, error) // nil: the system's resolver
}

// Running is what a daemon says of itself.
type Running struct {
	PID      int
	State    string
	Held     map[string]bool // the ports it has, as configuration writes them
	Problems []Finding       // of its status
}

// Examine looks at everything. The findings come area by area.
func Examine(s Subject) []Finding {
	x := &examination{Subject: s, host: host{s.Root}}
	x.user = x.whose()
	x.unit = x.findUnit()
	if x.Probe == nil {
		x.Probe = ports.Probe
	}
	for _, area := range []struct {
		name string
		look func()
	}{
		{"daemon", x.daemon},
		{"limits", x.limits},
		{"ports", x.ports},
		{"permissions", x.permissions},
		{"certificates", x.certificates},
		{"dns", x.dns},
		{"clock", x.clock},
		{"system", x.system},
	} {
		x.area = area.name
		area.look()
	}
	return x.found
}

// Healthy reports whether nothing has failed.
func Healthy(list []Finding) bool {
	for _, f := range list {
		if f.Level == Fail {
			return false
		}
	}
	return true
}

// examination is one look at everything.
type examination struct {
	Subject
	host  host
	user  user // as whom the daemon runs, or would
	unit  *unit
	area  string
	found []Finding
}

func (x *examination) add(l Level, object, remedy, format string, args ...any) {
	x.found = append(x.found, Finding{Area: x.area, Object: object, Level: l, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (x *examination) ok(object, format string, args ...any) { x.add(OK, object, "", format, args...) }

// settings are those of the plan, or the defaults that matter here.
func (x *examination) settings() plan.Settings {
	if x.Plan != nil {
		return x.Plan.Settings
	}
	return plan.Settings{MaxConnections: 10000}
}

// daemon says whether one runs, and repeats what it has to say.
func (x *examination) daemon() {
	switch r := x.Running; {
	case r != nil && r.State == "serving":
		x.ok("quaymaster", "pid %d is serving", r.PID)
	case r != nil:
		x.add(Warn, "quaymaster", "see what follows, and: quaymaster status", "pid %d is %s", r.PID, r.State)
	case errors.Is(x.Silent, fs.ErrPermission):
		x.add(Warn, "quaymaster", "run this as root, or as the user of the daemon", "%s may not be asked: %v", x.Socket, x.Silent)
	case x.Silent != nil:
		x.add(Fail, "quaymaster", "see who has it (ss -xlp src "+x.Socket+"), and restart that",
			"somebody listens on %s and gives no answer: %v", x.Socket, x.Silent)
	default:
		x.ok("quaymaster", "none runs (nobody answers at %s)", x.Socket)
	}
	if x.Running != nil {
		for _, f := range x.Running.Problems {
			x.add(f.Level, f.Object, f.Remedy, "%s", f.Message)
		}
	}
}

// host is a machine, or the recorded files of one.
type host struct{ root string }

// maxFile bounds what is read of a file of the system.
const maxFile = 1 << 20

func (h host) path(name string) string { return filepath.Join(cmp.Or(h.root, "/"), name) }

// text is the content of a file without white space around it; false when it cannot be read.
func (h host) text(name string) (string, bool) {
	f, err := os.Open(h.path(name))
	if err != nil {
		return "", false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return strings.TrimSpace(string(b)), err == nil
}

// numbers are the numbers that a file consists of; false when it cannot be read or holds fewer than n.
func (h host) numbers(name string, n int) ([]int64, bool) {
	text, ok := h.text(name)
	if !ok {
		return nil, false
	}
	var out []int64
	for _, w := range strings.Fields(text) {
		v, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			return nil, false
		}
		out = append(out, v)
	}
	return out, len(out) >= n
}
