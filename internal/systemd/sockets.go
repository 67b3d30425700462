package systemd

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	first      = 3    // SD_LISTEN_FDS_START
	maxSockets = 4096 // taken from the environment
	maxName    = 255  // of a descriptor, for the manager
	mark       = "quaymaster="
)

// A Socket was passed to us by the manager. It is close-on-exec, and the receiver's to close.
type Socket struct {
	FD     int
	Name   string // of its socket unit (FileDescriptorName=), "" if unknown
	Stored bool   // we have given it to the manager ourselves, with Store, before we died
}

// Sockets lists what the manager passed to this process (sd_listen_fds): nothing, unless LISTEN_PID is pid.
func Sockets(env func(string) (string, bool), pid int) []Socket {
	value := func(name string) string { v, _ := env(name); return v }
	if value("LISTEN_PID") != strconv.Itoa(pid) {
		return nil
	}
	n, err := strconv.Atoi(value("LISTEN_FDS"))
	if err != nil || n <= 0 || n > maxSockets {
		return nil
	}
	names := strings.SplitN(value("LISTEN_FDNAMES"), ":", n+1)
	out := make([]Socket, n)
	for i := range out {
		out[i].FD = first + i
		unix.CloseOnExec(out[i].FD)
		if i < len(names) {
			out[i].Name = names[i]
		}
		out[i].Stored = strings.HasPrefix(out[i].Name, mark)
	}
	return out
}

// Variables are what a manager puts into our environment for us alone. Nobody that we start may see them: whoever
// believes them would answer for us.
func Variables() []string {
	return []string{"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID", "WATCHDOG_USEC"}
}

// Name is the name under which the socket of an address is stored: made of it one to one, within what the manager
// allows (printable ASCII without a colon, 255 bytes), and told by Sockets from those of a socket unit.
func Name(address string) string {
	const digits = "0123456789ABCDEF"
	b := []byte(mark)
	for i := range len(address) {
		switch c := address[i]; {
		case c <= ' ' || c >= 0x7f || c == ':' || c == '%':
			b = append(b, '%', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	if len(b) > maxName {
		sum := sha256.Sum256([]byte(address))
		b = append(b[:maxName-2*len(sum)], hex.EncodeToString(sum[:])...)
	}
	return string(b)
}
