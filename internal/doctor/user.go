package doctor

import (
	"io/fs"
	"os"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// user is as whom the daemon runs: the running one, the unit's, or whoever asks.
type user struct {
	name    string
	uid     int
	gids    []int
	self    bool // it is the user who asks: the system itself can be asked what it may do
	mayBind bool // CAP_NET_BIND_SERVICE, where it is not self
}

func (u user) String() string { return "user " + u.name }

// netBind is the bit of CAP_NET_BIND_SERVICE.
const netBind = 1 << 10

func (x *examination) whose() user {
	if x.Running != nil {
		if u, ok := x.userOf(x.Running.PID); ok {
			return u
		}
	}
	me := user{uid: os.Geteuid(), self: true}
	if u := x.findUnit(); u != nil && x.Running == nil && u.user != "" {
		if other, ok := named(u.user, u.group); ok && other.uid != me.uid {
			other.mayBind = other.uid == 0 || strings.Contains(strings.ToUpper(u.value("AmbientCapabilities")), "CAP_NET_BIND_SERVICE")
			return other
		}
	}
	me.gids, _ = os.Getgroups()
	me.gids = append(me.gids, os.Getegid())
	me.name = nameOf(me.uid)
	return me
}

// userOf is the user of a process.
func (x *examination) userOf(pid int) (user, bool) {
	text, ok := x.host.text("/proc/" + strconv.Itoa(pid) + "/status")
	if !ok {
		return user{}, false
	}
	field := func(name string) []string {
		_, rest, _ := strings.Cut("\n"+text, "\n"+name+":")
		line, _, _ := strings.Cut(rest, "\n")
		return strings.Fields(line)
	}
	uids, gids := field("Uid"), field("Gid")
	if len(uids) < 2 || len(gids) < 2 {
		return user{}, false
	}
	u := user{}
	u.uid, _ = strconv.Atoi(uids[1]) // the effective one
	for _, g := range append(gids[1:2], field("Groups")...) {
		if n, err := strconv.Atoi(g); err == nil {
			u.gids = append(u.gids, n)
		}
	}
	if caps := field("CapEff"); len(caps) > 0 {
		bits, _ := strconv.ParseUint(caps[0], 16, 64)
		u.mayBind = bits&netBind != 0
	}
	u.name, u.self = nameOf(u.uid), u.uid == os.Geteuid()
	return u, true
}

// named is a user of the system, with the group instead of its own where one is said.
func named(name, group string) (user, bool) {
	found, err := osuser.Lookup(name)
	if err != nil {
		found, err = osuser.LookupId(name)
	}
	if err != nil {
		return user{}, false
	}
	u := user{name: found.Username}
	u.uid, _ = strconv.Atoi(found.Uid)
	ids, _ := found.GroupIds()
	if g, err := osuser.LookupGroup(group); err == nil && group != "" {
		ids = append(ids, g.Gid)
	}
	for _, id := range ids {
		if n, err := strconv.Atoi(id); err == nil {
			u.gids = append(u.gids, n)
		}
	}
	return u, true
}

func nameOf(uid int) string {
	if u, err := osuser.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// The rights of a file.
const (
	mayRead  = 4
	mayWrite = 2
	mayEnter = 1
)

// may reports whether the user has the rights to what is at path. For another user than the one who asks the bits of
// the modes are read, from the root down: ACLs are not.
func (u user) may(path string, info fs.FileInfo, rights uint32) bool {
	if u.self {
		return access(path, rights)
	}
	if !u.has(info, rights) {
		return false
	}
	abs, err := filepath.Abs(path)
	for dir := filepath.Dir(abs); err == nil; dir = filepath.Dir(dir) {
		if above, second := os.Stat(dir); second == nil && !u.has(above, mayEnter) {
			return false
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	return true
}

// has reports whether the mode of a file gives the user those rights.
func (u user) has(info fs.FileInfo, rights uint32) bool {
	uid, gid, ok := owner(info)
	mode := uint32(info.Mode().Perm())
	switch {
	case u.uid == 0 || !ok:
		return true
	case uid == u.uid:
		mode >>= 6
	case slices.Contains(u.gids, gid):
		mode >>= 3
	}
	return mode&rights == rights
}

// groupName is the first group of the user, as chgrp takes it.
func (u user) groupName() string {
	if len(u.gids) == 0 {
		return u.name
	}
	id := strconv.Itoa(u.gids[0])
	if g, err := osuser.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}
