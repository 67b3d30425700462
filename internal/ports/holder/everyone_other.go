//go:build !linux && !darwin

package holder

import (
	"net/netip"
	"os"
)

// Everyone lists the processes that listen where match is true: one for each socket, all of them turn by turn. Their
// start times are unknown.
func Everyone(match func(netip.AddrPort) bool) ([]Holder, error) {
	return lsof("tcp", match, errNoTable)
}

// Process is false here: start times, by which a process is told from another of its pid, cannot be read.
func Process(int) (Holder, bool) { return Holder{}, false }

// Parent is the pid of the process that pid descends from; 0 when it cannot be seen.
func Parent(pid int) int {
	if pid == os.Getpid() {
		return os.Getppid()
	}
	return 0
}
