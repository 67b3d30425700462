// Package holder finds out who listens on a port: the process, its user, its systemd unit, its container.
//
// It promises to look among listening sockets alone, so that a client of a port is never taken for its holder, and to say
// why when it cannot see. It never touches the process it finds.
package holder

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	maxCommand = 120 // characters of a command line that are shown
	maxHolders = 256 // listening sockets that one search looks into
)

// A Holder is a process that listens on a port. Pid is 0 when it could not be found; UID is then the socket's.
type Holder struct {
	Pid       int       `json:"pid"`
	Started   time.Time `json:"started,omitzero"`
	Command   string    `json:"command"` // the command line, shortened
	Exe       string    `json:"exe"`
	User      string    `json:"user"`
	Unit      string    `json:"unit,omitempty"`
	Container string    `json:"container,omitempty"`

	Addr  netip.AddrPort `json:"-"` // what it listens on
	UID   int            `json:"-"`
	Inode uint64         `json:"-"` // of the socket, on Linux

	name   string // what a person calls it
	engine string // the command that stops its container
}

// String is the holder in a sentence: nginx (pid 812, user www-data, nginx.service) for 3 d.
func (h *Holder) String() string {
	if h.Pid == 0 && os.Geteuid() == 0 {
		return fmt.Sprintf("a process of user %s (uid %d) that cannot be seen from here, such as one in another container", h.User, h.UID)
	}
	if h.Pid == 0 {
		return fmt.Sprintf("a process of user %s (uid %d); run as root to see who", h.User, h.UID)
	}
	in := []string{"pid " + strconv.Itoa(h.Pid), "user " + h.User}
	if h.Unit != "" {
		in = append(in, h.Unit)
	}
	if h.Container != "" {
		in = append(in, "container "+h.Container)
	}
	s := h.name + " (" + strings.Join(in, ", ") + ")"
	if !h.Started.IsZero() {
		s += " for " + Span(time.Since(h.Started))
	}
	return s
}

// Stop is the command that makes the holder let go, and what a person does with it: `stop it with "kill 12"`. It is ""
// when the process is unknown.
func (h *Holder) Stop() string {
	switch {
	case h.Pid == 0:
		return ""
	case h.Container != "" && h.engine != "":
		return fmt.Sprintf("stop it with %q", h.engine+" stop "+h.Container)
	case h.Pid == 1:
		return fmt.Sprintf("find its socket unit with %q and stop that", "systemctl list-sockets")
	case strings.HasSuffix(h.Unit, ".service") && h.Container == "":
		return fmt.Sprintf("stop it with %q", "systemctl stop "+strings.TrimSuffix(h.Unit, ".service"))
	}
	return fmt.Sprintf("stop it with %q", "kill "+strconv.Itoa(h.Pid))
}

// lsof asks the program of that name, where the kernel's tables cannot be read; why says why.
func lsof(match func(netip.AddrPort) bool, why error) ([]Holder, error) {
	path, err := exec.LookPath("lsof")
	if err != nil {
		return nil, fmt.Errorf("%w; run as root: lsof -nP -iTCP -sTCP:LISTEN", why)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-nP", "-iTCP", "-sTCP:LISTEN", "-FpcuLn").Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) { // it exits 1 when it finds nothing
		return nil, fmt.Errorf("%w; lsof: %w", why, err)
	}
	return parseLsof(string(out), match), nil
}

// parseLsof reads the output of lsof -F: one field a line, its first letter says which.
func parseLsof(out string, match func(netip.AddrPort) bool) []Holder {
	var holders []Holder
	var h Holder
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			continue
		}
		switch value := line[1:]; line[0] {
		case 'p':
			h = Holder{}
			h.Pid, _ = strconv.Atoi(value)
		case 'c':
			h.name, h.Command = clean(value), clean(value)
		case 'u':
			h.UID, _ = strconv.Atoi(value)
		case 'L':
			h.User = clean(value)
		case 'n':
			at, err := netip.ParseAddrPort(strings.Replace(value, "*:", "[::]:", 1))
			if err == nil && match(at) && len(holders) < maxHolders && !slices.ContainsFunc(holders, func(o Holder) bool { return o.Addr == at }) {
				h.Addr = at
				holders = append(holders, h)
			}
		}
	}
	return holders
}

// clean makes the words of a stranger fit to be shown: printable, on one line, not long.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == 0 || unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if r := []rune(s); len(r) > maxCommand {
		s = string(r[:maxCommand-3]) + "..."
	}
	return s
}

// userName is the name of a uid, or the uid itself.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// Span writes a duration as a person says it.
func Span(d time.Duration) string {
	switch {
	case d < time.Second:
		return strconv.Itoa(int(d.Milliseconds())) + " ms"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Round(time.Second).Seconds())) + " s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " h"
	}
	return strconv.Itoa(int(d.Hours()/24)) + " d"
}
