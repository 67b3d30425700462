package ports

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

	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	maxCommand = 120 // characters of a command line that are shown
	maxHolders = 256 // listening sockets that one lookup looks into
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

	Addr netip.AddrPort `json:"-"` // what it listens on; zero for a unix socket
	UID  int            `json:"-"`

	name   string // what a person calls it
	engine string // the command that stops its container
	inode  uint64
}

// Who lists the processes that listen on a TCP port, from the kernel's table of listening sockets; proto is "tcp". The
// error says which command can tell where this process cannot look.
func Who(proto string, port uint16) ([]Holder, error) {
	if proto != "tcp" {
		return nil, fmt.Errorf("holders of %s ports cannot be looked up in this version; try: lsof -nP -i%s:%d", proto, strings.ToUpper(proto), port)
	}
	return listening(func(a netip.AddrPort) bool { return a.Port() == port }, nil)
}

// String is the holder in a sentence: nginx (pid 812, user www-data, nginx.service) for 3 d.
func (h *Holder) String() string {
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
		s += " for " + span(time.Since(h.Started))
	}
	return s
}

// remedy is how to make the holder of e's port let go.
func (h *Holder) remedy(e *BindError) string {
	switch {
	case h == nil && e.Proto == "unix":
		return "stop whoever listens on it"
	case h == nil || h.Pid == 0:
		return fmt.Sprintf("find it with %q and stop it", "sudo lsof -nP -iTCP:"+strconv.Itoa(int(e.Addr.Port))+" -sTCP:LISTEN")
	case h.Container != "" && h.engine != "":
		return fmt.Sprintf("stop it with %q", h.engine+" stop "+h.Container)
	case h.Pid == 1:
		return fmt.Sprintf("find its socket unit with %q and stop that", "systemctl list-sockets")
	case strings.HasSuffix(h.Unit, ".service") && h.Container == "":
		return fmt.Sprintf("stop it with %q", "systemctl stop "+strings.TrimSuffix(h.Unit, ".service"))
	}
	return fmt.Sprintf("stop it with %q", "kill "+strconv.Itoa(h.Pid))
}

// explain finds out who holds the ports that are in use, all in one go, and counts the failures.
func (ps *Ports) explain(busy map[*port]*BindError) {
	wanted := make(map[uint16]bool)
	known := make(map[uint64]*Holder)
	for p, e := range busy {
		ps.metrics.failed(p.plan.Addr, e.Kind)
		if p.err != nil && p.err.Holder != nil && p.err.Holder.inode != 0 {
			known[p.err.Holder.inode] = p.err.Holder
		}
		if e.Kind == InUse && !e.looked && e.Proto == "tcp" {
			wanted[e.Addr.Port] = true
		}
	}
	if len(wanted) == 0 {
		return
	}
	holders, err := listening(func(a netip.AddrPort) bool { return wanted[a.Port()] }, known)
	for _, e := range busy {
		if e.Kind == InUse && !e.looked && e.Proto == "tcp" {
			e.blame(holders, err)
		}
	}
}

// blame picks the holder that stands in the way of e.
func (e *BindError) blame(holders []Holder, err error) {
	e.looked, e.blind = true, err
	var best *Holder
	for i := range holders {
		h := &holders[i]
		is := plan.TCPAddr(h.Addr.Addr(), h.Addr.Port())
		if is.IP.Is6() && is.IP.IsUnspecified() {
			is.Family, is.IP = plan.Dual, netip.Addr{} // may be dual: the table does not tell
		}
		if e.Addr.Overlaps(is) && (best == nil || is == e.Addr) {
			best = h
		}
	}
	if best == nil {
		return
	}
	e.Holder = best
	if best.Pid == os.Getpid() {
		e.Kind, e.owner = Own, "a listener of its own on "+best.Addr.String()
	}
}

// foreign is a process that listens on a or an overlapping address and does not run our program; nil when there is none.
func (ps *Ports) foreign(a plan.Addr) *Holder {
	holders, err := listening(func(l netip.AddrPort) bool { return l.Port() == a.Port && a.Port != 0 }, nil)
	if err != nil {
		return nil
	}
	exe, _ := os.Executable()
	holders = slices.DeleteFunc(holders, func(h Holder) bool { return h.Exe == exe && exe != "" })
	e := &BindError{Addr: a}
	e.blame(holders, nil)
	return e.Holder
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
