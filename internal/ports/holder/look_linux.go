package holder

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Look is one look at this host. The tables of sockets are read each time, since that is cheap and what a failed bind
// was about may have changed; the processes are walked once, and a second time only for sockets that are younger than the
// walk. The zero value looks at the host as it is. A Look is for one goroutine.
type Look struct {
	Root  string             // the folder under which /proc and the files of container engines are; "": /
	Known map[uint64]*Holder // found earlier, by inode: not looked for again while they live

	walks  int
	owners map[uint64][]int // by inode, of every socket that somebody may be asked about
	denied int              // processes that could not be looked into
	kin    []relative
}

// Find lists who holds the listening TCP sockets for which match is true, one holder for each; see Look.
func Find(match func(netip.AddrPort) bool, known map[uint64]*Holder) ([]Holder, error) {
	return (&Look{Known: known}).TCP(match)
}

// FindUnix lists who listens on the unix socket at path.
func FindUnix(path string) ([]Holder, error) { return (&Look{}).Unix(path) }

// TCP lists who holds the listening sockets for which match is true: the table says which sockets there are, and the
// descriptors of every process say who has them. One holder is named for each socket. An error says why nobody could be
// looked for.
func (l *Look) TCP(match func(netip.AddrPort) bool) ([]Holder, error) {
	rows, err := l.host().tables("tcp", match)
	if err != nil {
		return lsof("tcp", match, err)
	}
	return l.name(rows), nil
}

// UDP does the same for UDP sockets that are not connected.
func (l *Look) UDP(match func(netip.AddrPort) bool) ([]Holder, error) {
	rows, err := l.host().tables("udp", match)
	if err != nil {
		return lsof("udp", match, err)
	}
	return l.name(rows), nil
}

// Unix lists who listens on the unix socket at path.
func (l *Look) Unix(path string) ([]Holder, error) {
	rows, err := l.host().unixTable(func(p string) bool { return p == path })
	if err != nil {
		return nil, err
	}
	var file unix.Stat_t
	if unix.Stat(filepath.Join(l.Root, path), &file) == nil { // the table does not tell whose a socket is
		for i := range rows {
			rows[i].uid = int(file.Uid)
		}
	}
	return l.name(rows), nil
}

// Client describes the connection that has a TCP port as its own, for the case that nobody listens there and it cannot be
// bound all the same; "" when there is none. Whoever has it is no holder: it must not be stopped for that.
func (l *Look) Client(port uint16) string {
	c, ok := l.host().connection(port)
	switch {
	case !ok:
		return ""
	case c.inode == 0:
		return "one to " + c.peer.String() + " that is ending"
	}
	l.walk([]row{c.row})
	h := l.identify(c.row, l.owners[c.inode])
	return h.String() + ", connected to " + c.peer.String()
}

func (l *Look) host() host { return host(l.Root) }

// name finds the holder of each row.
func (l *Look) name(rows []row) []Holder {
	if len(rows) == 0 {
		return nil
	}
	rows = rows[:min(len(rows), maxHolders)]
	holders := make([]Holder, len(rows))
	var missing []row
	for i, r := range rows {
		if h := l.Known[r.inode]; h != nil && l.host().alive(h) {
			holders[i] = *h
			holders[i].Addr, holders[i].Proto = r.addr, r.proto
			continue
		}
		missing = append(missing, r)
	}
	l.walk(missing)
	for i, r := range rows {
		if holders[i].Pid == 0 {
			holders[i] = l.identify(r, l.owners[r.inode])
		}
	}
	return holders
}

// walk makes sure that the owners of rows were looked for. A walk notes those of every listening socket, so that one
// serves for all that is asked later.
func (l *Look) walk(rows []row) {
	fresh := false
	for _, r := range rows {
		_, noted := l.owners[r.inode]
		fresh = fresh || !noted
	}
	if !fresh || l.walks >= 2 {
		return
	}
	l.walks++
	l.owners, l.kin = make(map[uint64][]int), nil
	any := func(netip.AddrPort) bool { return true }
	for _, proto := range []string{"tcp", "udp"} {
		all, _ := l.host().tables(proto, any)
		for _, r := range all {
			l.owners[r.inode] = nil
		}
	}
	all, _ := l.host().unixTable(func(string) bool { return true })
	for _, r := range append(all, rows...) {
		l.owners[r.inode] = nil
	}
	l.denied = l.host().findOwners(l.owners)
}

// identify describes the holder of r. Where several processes have the socket it is the oldest one, a master before its
// workers, but systemd only if it is alone with it.
func (l *Look) identify(r row, pids []int) Holder {
	found := l.host().describe(pids)
	if len(found) == 0 {
		return Holder{Proto: r.proto, Addr: r.addr, UID: r.uid, User: userName(r.uid), Inode: r.inode, hidden: l.hidden()}
	}
	h := found[0]
	h.Proto, h.Addr, h.Inode = r.proto, r.addr, r.inode
	for _, other := range found {
		if other.Pid == 1 || other.manager() {
			h.sockets = l.host().socketUnits(&other, r)
		}
	}
	l.enrich(&h)
	return h
}

// hidden is why a process could not be seen, where that is not plain.
func (l *Look) hidden() string {
	option := l.host().hidepid()
	switch {
	case os.Geteuid() == 0 && l.denied > 0:
		return fmt.Sprintf(" that cannot be seen from here: %d processes may not be looked into (CAP_SYS_PTRACE is missing)", l.denied)
	case os.Geteuid() != 0 && option != "":
		return "; /proc hides other users' processes (" + option + "): run as root to see who"
	}
	return ""
}
