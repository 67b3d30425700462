package holder

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A row is one listening socket of the kernel's table.
type row struct {
	proto string
	addr  netip.AddrPort
	uid   int
	inode uint64
}

// The states of the tables.
const (
	listens     = "0A" // TCP_LISTEN
	unconnected = "07" // TCP_CLOSE, which is what a UDP socket without a peer is in
)

// tables reads the rows of /proc/net/tcp and tcp6, or of udp and udp6.
func (t host) tables(proto string, match func(netip.AddrPort) bool) ([]row, error) {
	var rows []row
	for _, name := range []string{proto, proto + "6"} {
		got, err := t.table(proto, "/proc/net/"+name, match)
		if err != nil && !(name != proto && errors.Is(err, fs.ErrNotExist)) { // a kernel without IPv6
			return nil, err
		}
		rows = append(rows, got...)
	}
	return rows, nil
}

// table reads one of them. The kernel lists the TCP sockets that listen before those that are connected, so it stops at
// the first row of another state and costs the same with a hundred thousand connections.
func (t host) table(proto, name string, match func(netip.AddrPort) bool) ([]row, error) {
	f, err := os.Open(filepath.Join(string(t), name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var rows []row
	lines := bufio.NewScanner(f)
	lines.Scan() // the heading
	for lines.Scan() && len(rows) < maxRows {
		// sl local_address rem_address st tx:rx tr:tm->when retrnsmt uid timeout inode ...
		field := strings.Fields(lines.Text())
		if len(field) < 10 {
			continue
		}
		if proto == "tcp" && field[3] != listens {
			break
		}
		addr, err := parseHex(field[1])
		if err != nil || proto == "udp" && field[3] != unconnected || !match(addr) {
			continue
		}
		r := row{proto: proto, addr: addr}
		r.uid, _ = strconv.Atoi(field[7])
		r.inode, _ = strconv.ParseUint(field[9], 10, 64)
		rows = append(rows, r)
	}
	return rows, lines.Err()
}

// A link is a connection that has a port as its own.
type link struct {
	row
	peer netip.AddrPort
}

// timeWait is TCP_TIME_WAIT, which is in nobody's way.
const timeWait = "06"

// connection is the first connection that has port as its own, of whatever state but listening.
func (t host) connection(port uint16) (link, bool) {
	for _, name := range []string{"tcp", "tcp6"} {
		f, err := os.Open(filepath.Join(string(t), "/proc/net", name))
		if err != nil {
			continue
		}
		defer f.Close()
		want := fmt.Sprintf(":%04X", port)
		for lines := bufio.NewScanner(f); lines.Scan(); {
			field := strings.Fields(lines.Text())
			if len(field) < 10 || !strings.HasSuffix(field[1], want) || field[3] == listens || field[3] == timeWait {
				continue
			}
			addr, err := parseHex(field[1])
			peer, err2 := parseHex(field[2])
			if err != nil || err2 != nil {
				continue
			}
			l := link{row{proto: "tcp", addr: addr}, peer}
			l.uid, _ = strconv.Atoi(field[7])
			l.inode, _ = strconv.ParseUint(field[9], 10, 64)
			return l, true
		}
	}
	return link{}, false
}

// maxRows bounds what is kept of one table.
const maxRows = 1 << 17

// unixTable reads the listening rows of /proc/net/unix.
func (t host) unixTable(match func(path string) bool) ([]row, error) {
	f, err := os.Open(filepath.Join(string(t), "/proc/net/unix"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const accepts = 1 << 16 // __SO_ACCEPTCON
	var rows []row
	lines := bufio.NewScanner(f)
	for lines.Scan() && len(rows) < maxRows {
		// Num RefCount Protocol Flags Type St Inode Path
		field := strings.Fields(lines.Text())
		if len(field) < 8 {
			continue
		}
		_, path, _ := strings.Cut(lines.Text(), " "+field[6]+" ") // a path may have spaces
		flags, _ := strconv.ParseUint(field[3], 16, 32)
		inode, err := strconv.ParseUint(field[6], 10, 64)
		if err == nil && flags&accepts != 0 && match(path) {
			rows = append(rows, row{proto: "unix", uid: -1, inode: inode})
		}
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
