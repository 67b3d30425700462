package holder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxFile  = 1 << 20 // bytes that are read of one file
	maxNames = 1 << 20 // names that are read of one folder
)

// A host is the folder under which /proc and the files of engines and systemd are; "" is this host.
type host string

// read is what a file holds, its first MiB at the most; "" when it cannot be read.
func (t host) read(path string) string {
	text, _ := t.tryRead(path)
	return text
}

func (t host) tryRead(path string) (string, error) {
	// Some paths are a stranger's choice: a pipe must not hold us.
	f, err := os.OpenFile(filepath.Join(string(t), path), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err
}

// link is where a symbolic link leads; "" when it cannot be read.
func (t host) link(path string) string {
	to, _ := os.Readlink(filepath.Join(string(t), path))
	return to
}

// names are those of a folder, unsorted.
func (t host) names(path string) ([]string, error) {
	f, err := os.Open(filepath.Join(string(t), path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxNames)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}

// pids lists the processes.
func (t host) pids() []int {
	names, _ := t.names("/proc")
	out := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

func proc(pid int, file string) string { return "/proc/" + strconv.Itoa(pid) + "/" + file }

// hidepid is the option by which /proc hides processes; "" when it does not.
func (t host) hidepid() string {
	for line := range strings.Lines(t.read("/proc/self/mountinfo")) {
		// id parent major:minor root mountpoint options ... - type source super-options
		field := strings.Fields(line)
		if len(field) < 10 || field[4] != "/proc" {
			continue
		}
		for option := range strings.SplitSeq(field[len(field)-1], ",") {
			if value, is := strings.CutPrefix(option, "hidepid="); is && value != "0" && value != "off" {
				return clean(option)
			}
		}
	}
	return ""
}
