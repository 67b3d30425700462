package doctor

import (
	"bufio"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// unit is what the files of a systemd service say.
type unit struct {
	name        string // "quaymaster.service"
	user, group string
	set         map[string]string // of [Service]; the last word counts
}

func (u *unit) value(key string) string { return u.set[key] }

// unitFolders hold units; an earlier one hides the same name in a later one.
var unitFolders = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"}

// findUnit is the service that the running daemon belongs to, or the one that would start it; nil when there is none.
func (x *examination) findUnit() *unit {
	name := "quaymaster.service"
	if x.Running != nil {
		h, ok := holder.Process(x.Running.PID)
		if !ok || !strings.HasSuffix(h.Unit, ".service") {
			return nil
		}
		name = h.Unit
	}
	for _, dir := range unitFolders {
		text, ok := x.host.text(dir + "/" + name)
		if !ok {
			continue
		}
		u := &unit{name: name, set: map[string]string{}}
		u.read(text)
		for _, file := range x.dropIns(name) {
			if text, ok := x.host.text(file); ok {
				u.read(text)
			}
		}
		u.user, u.group = u.value("User"), u.value("Group")
		return u
	}
	return nil
}

// dropIns are the *.conf files that add to a unit, in the order of their names.
func (x *examination) dropIns(name string) []string {
	found := map[string]string{}
	for _, dir := range slices.Backward(unitFolders) {
		files, _ := filepath.Glob(filepath.Join(x.host.path(dir), name+".d", "*.conf"))
		for _, f := range files {
			found[filepath.Base(f)] = filepath.Join(dir, name+".d", filepath.Base(f))
		}
	}
	var out []string
	for _, base := range sortedKeys(found) {
		out = append(out, found[base])
	}
	return out
}

// read takes the settings of [Service] in.
func (u *unit) read(text string) {
	section, carry := "", ""
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if rest, more := strings.CutSuffix(line, `\`); more {
			carry += rest + " "
			continue
		}
		line, carry = carry+line, ""
		if line[0] == '[' {
			section = line
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok && section == "[Service]" {
			u.set[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
}

// service holds the unit against what the daemon needs of systemd.
func (x *examination) service() {
	if x.unit == nil {
		return
	}
	u, set := x.unit, x.settings()
	before := len(x.found)
	want := func(good bool, line, why string) {
		if !good {
			x.add(Warn, u.name, "systemctl edit "+u.name+", write "+line+" below [Service], and: systemctl restart "+u.name, "%s", why)
		}
	}
	kind := u.value("Type")
	want(strings.HasPrefix(kind, "notify"), "Type=notify", "Type="+kind+": systemd calls it started before it serves, and knows nothing of a reload or an upgrade")
	want(u.value("KillMode") == "process", "KillMode=process", "KillMode is not process: a stop ends everything in its control group, the successor of an upgrade included")
	want(slices.Contains(strings.Fields(u.value("SuccessExitStatus")), "4"), "SuccessExitStatus=4", "a stop that had to cut connections (exit code 4) counts as a failure")
	if d, ok := unitSpan(u.value("TimeoutStopSec")); ok && d <= set.ShutdownTimeout+set.ShutdownDelay {
		enough := (set.ShutdownTimeout + set.ShutdownDelay + 10*time.Second).Round(time.Second)
		want(false, "TimeoutStopSec="+strconv.Itoa(int(enough.Seconds())),
			"TimeoutStopSec is "+d.String()+": systemd kills it before shutdown_timeout and shutdown_delay, "+(set.ShutdownTimeout+set.ShutdownDelay).String()+", are over")
	}
	if len(x.found) == before {
		x.ok(u.name, "Type, KillMode, SuccessExitStatus and TimeoutStopSec are as they should be")
	}
}

// unitSpan reads a span of time as systemd writes it; false when there is no end, or when it cannot be read.
func unitSpan(text string) (time.Duration, bool) {
	if text == "" {
		return 90 * time.Second, true // DefaultTimeoutStopSec
	}
	if n, err := strconv.Atoi(text); err == nil {
		return time.Duration(n) * time.Second, n > 0 // 0 is no end
	}
	text = strings.NewReplacer("min", "m", "sec", "s", "hours", "h", "hour", "h", "hr", "h", " ", "").Replace(text)
	d, err := time.ParseDuration(text)
	return d, err == nil && d > 0
}

func sortedKeys(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
