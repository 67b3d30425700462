package containers

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

const maxTable = 8 << 20 // bytes of a table of sockets that are read

// listening are the TCP ports on which somebody listens in the network of a process that is of the container.
func listening(pid int, id string) ([]uint16, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	groups, err := os.ReadFile(dir + "/cgroup")
	if err != nil || !bytes.Contains(groups, []byte(id)) {
		return nil, errElsewhere // it may be another machine's number
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
