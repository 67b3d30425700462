package holder

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const maxUnits = 4096 // socket units of one folder that are looked at

// unitFolders of the system and of users, the strongest first.
var (
	systemFolders = []string{
		"/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
		"/lib/systemd/system",
	}
	userFolders = []string{"/etc/systemd/user", "/run/systemd/user", "/usr/local/lib/systemd/user", "/usr/lib/systemd/user"}
)

// socketUnits are the units by which manager, a systemd, listens on r: those whose files name the port, and of several
// those that are started at boot. None is returned where that does not tell.
func (t host) socketUnits(manager *Holder, r row) []string {
	folders := systemFolders
	if manager.Pid != 1 {
		folders = userFolders
	}
	var fit, enabled []string
	seen := make(map[string]bool)
	for _, folder := range folders {
		names, _ := t.names(folder)
		slices.Sort(names)
		for _, name := range names[:min(len(names), maxUnits)] {
			if !strings.HasSuffix(name, ".socket") || seen[name] {
				continue
			}
			seen[name] = true
			if !t.unitListens(folders, folder, name, r) {
				continue
			}
			fit = append(fit, clean(name))
			if slices.ContainsFunc(folders, func(f string) bool { return t.link(filepath.Join(f, "sockets.target.wants", name)) != "" }) {
				enabled = append(enabled, clean(name))
			}
		}
	}
	if len(fit) > 1 {
		fit = enabled
	}
	if len(fit) > 1 {
		return nil
	}
	return fit
}

// unitListens reports whether the unit and its drop-ins end up listening on r. An empty value forgets the ones before.
func (t host) unitListens(folders []string, folder, name string, r row) bool {
	texts := []string{t.read(filepath.Join(folder, name))}
	for _, f := range folders {
		drops, _ := t.names(filepath.Join(f, name+".d"))
		slices.Sort(drops)
		for _, d := range drops[:min(len(drops), maxUnits)] {
			if strings.HasSuffix(d, ".conf") {
				texts = append(texts, t.read(filepath.Join(f, name+".d", d)))
			}
		}
	}
	key := "ListenStream"
	if r.proto == "udp" {
		key = "ListenDatagram"
	}
	listens := false
	for line := range strings.Lines(strings.Join(texts, "\n")) {
		k, value, _ := strings.Cut(line, "=")
		if strings.TrimSpace(k) != key {
			continue
		}
		value = strings.TrimSpace(value)
		listens = value != "" && (listens || listensOn(value, r.addr))
	}
	return listens
}

// listensOn compares a value of ListenStream, 80 or 127.0.0.1:80, with what is listened on.
func listensOn(value string, at netip.AddrPort) bool {
	if port, err := strconv.ParseUint(value, 10, 16); err == nil {
		return uint16(port) == at.Port() && at.Addr().IsUnspecified()
	}
	want, err := netip.ParseAddrPort(value)
	return err == nil && want == at
}
