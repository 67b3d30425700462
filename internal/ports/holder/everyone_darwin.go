package holder

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Everyone lists the processes that listen where match is true: one for each socket, all of them turn by turn.
func Everyone(match func(netip.AddrPort) bool) ([]Holder, error) {
	found, err := lsof("tcp", match, errNoTable)
	for i := range found {
		if h, ok := Process(found[i].Pid); ok {
			found[i].Started, found[i].UID = h.Started, h.UID
		}
	}
	return found, err
}

// Process describes a process, whether it listens or not; false when there is none of that pid.
func Process(pid int) (Holder, bool) {
	k, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil || int(k.Proc.P_pid) != pid {
		return Holder{}, false
	}
	h := Holder{
		Pid: pid, UID: int(k.Eproc.Ucred.Uid),
		Started: time.Unix(k.Proc.P_starttime.Sec, int64(k.Proc.P_starttime.Usec)*1000),
		name:    clean(unix.ByteSliceToString(k.Proc.P_comm[:])),
	}
	h.Command, h.User = h.name, userName(h.UID)
	return h, true
}

// Parent is the pid of the process that pid descends from; 0 when there is none, or none can be seen.
func Parent(pid int) int {
	k, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil || int(k.Proc.P_pid) != pid {
		return 0
	}
	return int(k.Eproc.Ppid)
}
