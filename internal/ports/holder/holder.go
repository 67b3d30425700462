// Package holder finds out who listens on a port: the process, its user, its systemd unit, its container.
//
// It promises to look among listening sockets alone, so that a client of a port is never taken for its holder, and to say
// why when it cannot see. Whatever it reads is bounded, and what strangers wrote is made fit to be shown. It never touches
// the process it finds.
package holder

import (
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"regexp"
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
	Pid         int       `json:"pid"`
	Started     time.Time `json:"started,omitzero"`
	Command     string    `json:"command"` // the command line, shortened
	Exe         string    `json:"exe"`
	User        string    `json:"user"`
	Unit        string    `json:"unit,omitempty"`         // of systemd: a service, a scope, or else a slice
	Container   string    `json:"container,omitempty"`    // its name, or as much as is known of it: its id, its address
	ContainerID string    `json:"container_id,omitempty"` // the whole of it
	Engine      string    `json:"engine,omitempty"`       // docker, podman, containerd, cri-o, lxc
	Helper      string    `json:"helper,omitempty"`       // the program that holds the port for a container: docker-proxy
	StateDir    string    `json:"state_dir,omitempty"`    // of another quaymaster, where it could be read

	Proto string         `json:"-"` // "tcp", "udp" or "unix"
	Addr  netip.AddrPort `json:"-"` // what it listens on
	UID   int            `json:"-"`
	Inode uint64         `json:"-"` // of the socket, on Linux

	name       string   // what a person calls it
	hidden     string   // why there is no pid
	userUnit   bool     // Unit belongs to the manager of User
	sockets    []string // the socket units of systemd that hold the port too
	quaymaster bool     // it runs this program
	pod        string   // NAMESPACE/NAME of its Kubernetes pod
	starter    *starter // what would start it again
}

// Ours reports whether h is another instance of this program.
func (h *Holder) Ours() bool { return h.quaymaster }

// Nameless reports whether h holds the port for a container of which the host does not show the name: one in a virtual
// machine, or in an engine whose files may not be read.
func (h *Holder) Nameless() bool {
	_, err := netip.ParseAddr(h.Container)
	return h.Helper != "" && (h.Container == "" || err == nil)
}

// Publishes notes what an engine says about the port of h: container db (podman). "" is nothing.
func (h *Holder) Publishes(who string) {
	name, is := strings.CutPrefix(who, "container ")
	if at := strings.LastIndex(name, " ("); is && at > 0 && strings.HasSuffix(name, ")") {
		h.Container, h.Engine = clean(name[:at]), clean(name[at+2:len(name)-1])
	}
}

// String is the holder in a sentence: nginx (pid 812, user www-data, nginx.service) for 3 d.
func (h *Holder) String() string {
	if h.Pid == 0 {
		return h.unseen()
	}
	in := []string{"pid " + strconv.Itoa(h.Pid), "user " + h.User}
	if h.Unit != "" {
		in = append(in, h.Unit)
	}
	if c := h.where(); c != "" {
		in = append(in, c)
	}
	if h.StateDir != "" {
		in = append(in, "state folder "+h.StateDir)
	}
	s := h.called() + " (" + strings.Join(in, ", ") + ")"
	if !h.Started.IsZero() {
		s += " for " + Span(time.Since(h.Started))
	}
	return s
}

// interpreters run programs of which their own name says nothing.
var interpreters = regexp.MustCompile(`^(python|node|nodejs|java|ruby|perl|php|deno|bun|dotnet|sh|bash|dash|npm|MainThread)[0-9.]*$`)

// called is what a person calls it.
func (h *Holder) called() string {
	const long = 60
	switch {
	case h.quaymaster:
		return "another quaymaster"
	case !interpreters.MatchString(h.name):
		return h.name
	}
	if r := []rune(h.Command); len(r) > long {
		return string(r[:long-3]) + "..."
	}
	return h.Command
}

// where is its container in a few words: docker container web 0123456789ab.
func (h *Holder) where() string {
	if h.Container == "" {
		return ""
	}
	words := []string{"container", h.Container}
	if h.Engine != "" {
		words = append([]string{h.Engine}, words...)
	}
	if id := short(h.ContainerID); id != "" && id != h.Container {
		words = append(words, id)
	}
	s := strings.Join(words, " ")
	if h.pod != "" {
		s += " of pod " + h.pod
	}
	return s
}

// unseen is a holder of which nothing is known but its user.
func (h *Holder) unseen() string {
	who := fmt.Sprintf("a process of user %s (uid %d)", h.User, h.UID)
	switch {
	case h.hidden != "":
		return who + h.hidden
	case os.Geteuid() == 0:
		return who + " that cannot be seen from here, such as one in another container or the kernel itself"
	}
	return who + "; run as root to see who"
}

// short is a container's id as engines show it.
func short(id string) string { return id[:min(len(id), 12)] }

// clean makes the words of a stranger fit to be shown: printable, on one line, not long.
func clean(s string) string {
	s = s[:min(len(s), 8*maxCommand)]
	s = strings.Map(func(r rune) rune {
		if r == 0 || unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
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
		return clean(u.Username)
	}
	return strconv.Itoa(uid)
}

// Span writes a duration as a person says it.
func Span(d time.Duration) string {
	d = max(d, 0) // clocks are set back
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
