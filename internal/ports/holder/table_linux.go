package holder

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A row is one listening socket of the kernel's table.
type row struct {
	addr  netip.AddrPort
	uid   int
	inode uint64
}

// Find lists who holds the listening sockets for which match is true: the table says which sockets there are, and
// the descriptors of every process say who has them. Sockets in known are not looked for again, since that walk is the
// costly part. One holder is named per socket.
func Find(match func(netip.AddrPort) bool, known map[uint64]*Holder) ([]Holder, error) {
	rows, err := tables(match)
	if err != nil {
		return lsof(match, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	holders := make([]Holder, len(rows))
	missing := make(map[uint64][]int)
	for i, r := range rows {
		if h := known[r.inode]; h != nil && alive(h) {
			holders[i] = *h
			continue
		}
		missing[r.inode] = nil
	}
	if len(missing) > 0 {
		findOwners(missing)
	}
	for i, r := range rows {
		if holders[i].Pid == 0 {
			holders[i] = identify(r, missing[r.inode])
		}
	}
	return holders, nil
}

// FindUnix lists who listens on the unix socket at path.
func FindUnix(path string) ([]Holder, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const listens = 1 << 16 // __SO_ACCEPTCON
	sockets := make(map[uint64][]int)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// Num RefCount Protocol Flags Type St Inode Path
		field := strings.Fields(lines.Text())
		if len(field) < 8 || field[7] != path {
			continue
		}
		flags, _ := strconv.ParseUint(field[3], 16, 32)
		inode, err := strconv.ParseUint(field[6], 10, 64)
		if err == nil && flags&listens != 0 {
			sockets[inode] = nil
		}
	}
	findOwners(sockets)
	var out []Holder
	for inode, pids := range sockets {
		if len(pids) > 0 {
			out = append(out, identify(row{inode: inode}, pids))
		}
	}
	return out, nil
}

// alive reports whether a holder found earlier is still the same process.
func alive(h *Holder) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(h.Pid) + "/stat")
	return h.Pid > 0 && err == nil && started(string(stat)).Equal(h.Started)
}

// tables reads the listening rows of /proc/net/tcp and tcp6.
func tables(match func(netip.AddrPort) bool) ([]row, error) {
	var rows []row
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		got, err := table(name, match)
		if err != nil && !(name == "/proc/net/tcp6" && errors.Is(err, fs.ErrNotExist)) { // a kernel without IPv6
			return nil, err
		}
		rows = append(rows, got...)
	}
	return rows[:min(len(rows), maxHolders)], nil
}

// table reads one of them. The kernel lists what listens before what is connected, so it stops at the first row of
// another state and costs the same with a hundred thousand connections.
func table(name string, match func(netip.AddrPort) bool) ([]row, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var rows []row
	lines := bufio.NewScanner(f)
	lines.Scan() // the heading
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:tm->when retrnsmt uid timeout inode ...
		field := strings.Fields(lines.Text())
		if len(field) < 10 {
			continue
		}
		if field[3] != "0A" { // TCP_LISTEN
			break
		}
		addr, err := parseHex(field[1])
		if err != nil || !match(addr) {
			continue
		}
		r := row{addr: addr}
		r.uid, _ = strconv.Atoi(field[7])
		r.inode, _ = strconv.ParseUint(field[9], 10, 64)
		rows = append(rows, r)
	}
	return rows, lines.Err()
}

// parseHex reads an address of the table: 32-bit words in the byte order of the machine, a colon, the port.
func parseHex(s string) (netip.AddrPort, error) {
	ip, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(ip)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("unknown address %q", s)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

// findOwners fills in the pids that have a descriptor of each socket. Processes that may not be looked into are left out.
func findOwners(sockets map[uint64][]int) {
	proc, err := os.Open("/proc")
	if err != nil {
		return
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		dir, err := os.Open("/proc/" + name + "/fd")
		if err != nil {
			continue
		}
		fds, _ := dir.Readdirnames(-1)
		for _, fd := range fds {
			var buf [64]byte
			n, err := unix.Readlinkat(int(dir.Fd()), fd, buf[:])
			if err != nil {
				continue
			}
			text, is := strings.CutPrefix(string(buf[:n]), "socket:[")
			inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
			if !is || err != nil {
				continue
			}
			if pids, wanted := sockets[inode]; wanted && !slices.Contains(pids, pid) {
				sockets[inode] = append(pids, pid)
			}
		}
		dir.Close()
	}
}

// identify describes the holder of r. Where several processes have the socket it is the oldest one, a master before its
// workers, but systemd only if it is alone with it.
func identify(r row, pids []int) Holder {
	var found []Holder
	for _, pid := range pids {
		if h, ok := process(pid); ok {
			found = append(found, h)
		}
	}
	if len(found) == 0 {
		return Holder{Addr: r.addr, UID: r.uid, User: userName(r.uid), Inode: r.inode}
	}
	h := slices.MinFunc(found, func(a, b Holder) int {
		if (a.Pid == 1) != (b.Pid == 1) {
			return cmp.Compare(b.Pid, a.Pid)
		}
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Pid, b.Pid))
	})
	h.Addr, h.Inode = r.addr, r.inode
	return h
}

// process describes one process; false when it has ended.
func process(pid int) (Holder, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Holder{}, false
	}
	h := Holder{Pid: pid, Started: started(string(stat))}
	cmdline, _ := os.ReadFile(dir + "/cmdline")
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	h.Command = clean(strings.Join(args, " "))
	comm, _ := os.ReadFile(dir + "/comm")
	h.name = clean(string(comm))
	if h.Command == "" {
		h.Command = h.name
	}
	h.Exe, _ = os.Readlink(dir + "/exe")
	h.Exe = strings.TrimSuffix(h.Exe, " (deleted)")
	h.UID = uid(dir)
	h.User = userName(h.UID)
	groups, _ := os.ReadFile(dir + "/cgroup")
	h.Unit, h.Container, h.engine = unitOf(string(groups))
	if name := monitored(filepath.Base(args[0]), args); name != "" {
		h.Container = name
	}
	return h, true
}

// started reads the start time: field 22 of stat, in clock ticks (always 100 a second in this file) since boot.
func started(stat string) time.Time {
	_, rest, _ := strings.Cut(stat[strings.LastIndexByte(stat, ')')+1:], " ") // the name in brackets may hold anything
	field := strings.Fields(rest)
	if len(field) < 20 {
		return time.Time{}
	}
	ticks, err := strconv.ParseInt(field[19], 10, 64)
	if err != nil {
		return time.Time{}
	}
	boot, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	_, after, _ := strings.Cut(string(boot), "\nbtime ")
	line, _, _ := strings.Cut(after, "\n")
	seconds, err := strconv.ParseInt(line, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(seconds, 0).Add(time.Duration(ticks) * 10 * time.Millisecond)
}

// uid is the effective user of a process.
func uid(dir string) int {
	status, _ := os.ReadFile(dir + "/status")
	_, after, _ := strings.Cut(string(status), "\nUid:")
	line, _, _ := strings.Cut(after, "\n")
	if ids := strings.Fields(line); len(ids) > 1 {
		n, _ := strconv.Atoi(ids[1])
		return n
	}
	return -1
}

// containerID finds the id that container engines put into the name of a cgroup, behind their own name.
var containerID = regexp.MustCompile(`(docker|libpod|libpod-conmon|cri-containerd|crio)[-/]([0-9a-f]{12,64})`)

// unitOf reads the systemd service and the container out of the cgroup paths of a process.
func unitOf(groups string) (unit, container, engine string) {
	for line := range strings.Lines(groups) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3) // 0::/system.slice/nginx.service
		if len(part) < 3 || part[1] != "" && part[1] != "name=systemd" {
			continue
		}
		if m := containerID.FindStringSubmatch(part[2]); m != nil {
			container = m[2][:12]
			switch m[1] {
			case "docker":
				engine = "docker"
			case "libpod", "libpod-conmon":
				engine = "podman"
			}
		}
		for _, name := range strings.Split(part[2], "/") {
			if strings.HasSuffix(name, ".service") {
				unit = name
			}
		}
		return unit, container, engine
	}
	return "", "", ""
}

// monitored is the container for which a helper of an engine holds a port, from the helper's own arguments.
func monitored(name string, args []string) string {
	var flags []string
	switch name {
	case "conmon":
		flags = []string{"-n", "--name"}
	case "docker-proxy":
		flags = []string{"-container-ip"}
	default:
		return ""
	}
	for i, a := range args {
		if slices.Contains(flags, a) && i+1 < len(args) {
			return clean(args[i+1])
		}
	}
	return ""
}
