package holder

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Everyone lists every process that has a listening socket for which match is true. Where Find names the one that a
// person would, this names all that must let go before the port is free: a process that has two such sockets is listed
// twice. A socket of which no process can be seen is listed once, with Pid 0.
func Everyone(match func(netip.AddrPort) bool) ([]Holder, error) {
	rows, err := tables(match)
	if err != nil {
		return lsof(match, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	sockets := make(map[uint64][]int)
	for _, r := range rows {
		sockets[r.inode] = nil
	}
	findOwners(sockets)
	var out []Holder
	for _, r := range rows {
		seen := false
		for _, pid := range sockets[r.inode] {
			if h, ok := process(pid); ok {
				h.Addr, h.Inode = r.addr, r.inode
				out, seen = append(out, h), true
			}
		}
		if !seen {
			out = append(out, identify(r, nil))
		}
	}
	return out, nil
}

// Process describes a process, whether it listens or not; false when there is none of that pid.
func Process(pid int) (Holder, bool) { return process(pid) }

// Parent is the pid of the process that pid descends from; 0 when there is none, or none can be seen.
func Parent(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	field := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])) // state ppid ...
	if len(field) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(field[1])
	return ppid
}
