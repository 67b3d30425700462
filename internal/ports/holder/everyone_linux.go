package holder

import "net/netip"

// Everyone lists every process that has a listening socket for which match is true. Where Find names the one that a
// person would, this names all that must let go before the port is free: a process that has two such sockets is listed
// twice. A socket of which no process can be seen is listed once, with Pid 0.
func Everyone(match func(netip.AddrPort) bool) ([]Holder, error) {
	l := &Look{}
	rows, err := l.host().tables("tcp", match)
	if err != nil {
		return lsof("tcp", match, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	l.walk(rows)
	var out []Holder
	for _, r := range rows {
		found := l.host().describe(l.owners[r.inode])
		for i := range found {
			found[i].Proto, found[i].Addr, found[i].Inode = r.proto, r.addr, r.inode
			if found[i].Pid == 1 || found[i].manager() {
				found[i].sockets = l.host().socketUnits(&found[i], r)
			}
			l.enrich(&found[i])
		}
		if len(found) == 0 {
			found = []Holder{l.identify(r, nil)}
		}
		out = append(out, found...)
	}
	return out, nil
}

// Process describes a process by its own files alone, whether it listens or not; false when there is none of that pid.
func Process(pid int) (Holder, bool) { return host("").process(pid) }

// Parent is the pid of the process that pid descends from; 0 when there is none, or none can be seen.
func Parent(pid int) int { return host("").parent(pid) }
