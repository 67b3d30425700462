package containers

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const maxTable = 8 << 20 // bytes of a table of sockets that are read

// apart is how far the start of a process may be from what the engine calls the start of its container.
const apart = 3 * time.Second

// listening are the TCP ports on which somebody listens in the network of a process that is of the container: the engine's
// number may be one of another machine.
func listening(pid int, id string, at time.Time) ([]uint16, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	groups, err := os.ReadFile(dir + "/cgroup")
	if err != nil || !bytes.Contains(groups, []byte(id)) && !startedAt(dir, at) {
		return nil, errElsewhere
	}
	var out []uint16
	for _, name := range []string{"/net/tcp", "/net/tcp6"} {
		f, err := os.Open(dir + name)
		if err != nil {
			if os.IsNotExist(err) && name == "/net/tcp6" {
				continue
			}
			return nil, err
		}
		lines := bufio.NewScanner(io.LimitReader(f, maxTable))
		for lines.Scan() {
			w := strings.Fields(lines.Text())
			if len(w) < 4 || w[3] != "0A" { // LISTEN
				continue
			}
			_, hex, _ := strings.Cut(w[1], ":")
			if p, err := strconv.ParseUint(hex, 16, 16); err == nil && !slices.Contains(out, uint16(p)) {
				out = append(out, uint16(p))
			}
		}
		_ = f.Close()
	}
	return out, nil
}

// startedAt reports whether a process began when the container did, for engines that make no control groups.
func startedAt(dir string, at time.Time) bool {
	stat, err := os.ReadFile(dir + "/stat")
	_, after, ok := bytes.Cut(stat, []byte(") "))
	w := strings.Fields(string(after))
	if err != nil || !ok || len(w) < 20 || at.IsZero() {
		return false
	}
	ticks, err := strconv.ParseInt(w[19], 10, 64) // starttime, of which there are a hundred a second
	if err != nil {
		return false
	}
	up := unix.Timespec{}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return false
	}
	age := time.Duration(up.Nano()) - time.Duration(ticks)*10*time.Millisecond
	return (time.Since(at) - age).Abs() < apart
}
