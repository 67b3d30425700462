package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports"
	"github.com/quaymaster/quaymaster/internal/state"
)

func (x *examination) permissions() {
	for _, f := range x.Files {
		x.configFile(f)
	}
	if x.Plan == nil {
		return
	}
	set := &x.Plan.Settings
	x.stateDir(set.StateDir)
	x.adminSocket(&set.Admin)
	if set.Admin.TokenFile != "" {
		x.secret("admin.token_file", set.Admin.TokenFile)
	}
	if set.AccessLog.Enabled && set.AccessLog.File != "" {
		x.logFile(set.AccessLog.File)
	}
}

// configFile looks at who else could say what is served here.
func (x *examination) configFile(name string) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		x.add(Fail, name, "write it, or name another with -c FILE", "cannot be read: %v", why(err))
	case !x.user.may(name, info, mayRead):
		x.add(Fail, name, fmt.Sprintf("chgrp %s %s && chmod g+r %s", x.user.groupName(), name, name), "%s may not read it", x.user)
	case info.Mode().Perm()&0o002 != 0:
		x.add(Fail, name, "chmod o-w "+name, "everybody may change it (mode %04o)", info.Mode().Perm())
	default:
		x.ok(name, "can be read, and not changed by everybody")
	}
}

// secret looks at a file that nobody else should read.
func (x *examination) secret(object, name string) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		x.add(Fail, object, "write it, such as with: openssl rand -hex 32 > "+name, "%s cannot be read: %v", name, why(err))
	case !x.user.may(name, info, mayRead):
		x.add(Fail, object, fmt.Sprintf("chown %s %s", x.user.name, name), "%s may not read %s", x.user, name)
	case info.Mode().Perm()&0o077 != 0:
		x.add(Warn, object, "chmod 600 "+name, "others than its owner may use %s (mode %04o)", name, info.Mode().Perm())
	default:
		x.ok(object, "%s is its owner's alone", name)
	}
}

// stateDir looks at the folder of state, its disk and its lock.
func (x *examination) stateDir(dir string) {
	const object = "state_dir"
	own := fmt.Sprintf("chown -R %s %s && chmod 700 %s", x.user.name, dir, dir)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		x.toBeMade(object, dir)
		return
	}
	switch {
	case err != nil:
		x.add(Fail, object, own, "%s cannot be looked at: %v", dir, why(err))
		return
	case !info.IsDir():
		x.add(Fail, object, "move it away, or write another state_dir", "%s is no folder", dir)
		return
	case !x.user.may(dir, info, mayRead|mayWrite|mayEnter) && !x.readOnly(dir):
		x.add(Fail, object, own, "%s may not write in %s (mode %04o)", x.user, dir, info.Mode().Perm())
	case info.Mode().Perm()&0o077 != 0:
		x.add(Warn, object, "chmod 700 "+dir, "others than its owner may look into %s (mode %04o)", dir, info.Mode().Perm())
	default:
		x.ok(object, "%s can be written, by its owner alone", dir)
	}
	if err := state.Room(dir); err != nil {
		x.add(Fail, "disk of state_dir", state.Remedy(dir, err), "%s: %v; what is served goes on, but nothing can be kept", dir, err)
	}
	x.lock(dir)
}

func (x *examination) readOnly(dir string) bool { return state.Room(dir) != nil }

// toBeMade looks at a folder that a start would make.
func (x *examination) toBeMade(object, dir string) {
	above := filepath.Dir(dir)
	for above != filepath.Dir(above) {
		if _, err := os.Stat(above); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		above = filepath.Dir(above)
	}
	info, err := os.Stat(above)
	if err == nil && info.IsDir() && x.user.may(above, info, mayWrite|mayEnter) {
		x.ok(object, "%s does not exist yet; a start makes it", dir)
		return
	}
	x.add(Fail, object, fmt.Sprintf("install -d -m 700 -o %s %s", x.user.name, dir), "%s does not exist, and %s may not make it in %s", dir, x.user, above)
}

// lock says who has locked the state folder, by the kernel's list: trying would keep out a daemon that starts just then.
func (x *examination) lock(dir string) {
	const object = "state lock"
	name := filepath.Join(dir, "lock")
	info, err := os.Stat(name)
	if err != nil {
		return
	}
	pid, known := x.locker(info)
	switch {
	case !known:
		return
	case x.Running != nil && pid >= 0:
		x.ok(object, "held by the running quaymaster")
	case pid > 0:
		x.add(Fail, object, fmt.Sprintf("name its socket with --socket, or end it: kill %d", pid),
			"%s is locked by %s, which does not answer at %s; no other can start on this folder", dir, whoHas(pid), x.Socket)
	case pid == 0:
		x.add(Fail, object, "find it on the host or in the other container, or write another state_dir",
			"%s is locked by a process that cannot be seen from here; no other can start on this folder", dir)
	default:
		x.ok(object, "free; the file %s is left from an earlier run and harms nobody", name)
	}
}

// locker is the pid that holds a flock on the file: 0 when it cannot be seen, -1 when nobody holds one. known is false
// where the kernel does not tell.
func (x *examination) locker(info fs.FileInfo) (pid int, known bool) {
	at, ok := inodeOf(info)
	if !ok {
		return 0, false
	}
	text, ok := x.host.text("/proc/locks")
	if !ok {
		return 0, false
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		// 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END
		w := strings.Fields(lines.Text())
		if len(w) >= 6 && w[1] == "FLOCK" && w[5] == at {
			pid, _ = strconv.Atoi(w[4])
			return max(pid, 0), true
		}
	}
	return -1, true
}

// adminSocket looks at the socket of the API and at its folder: who may write there may take its place.
func (x *examination) adminSocket(a *plan.AdminSettings) {
	const object = "admin.socket"
	path := x.Socket
	if path == "" {
		path = a.Socket
	}
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		x.toBeMade(object, dir)
		return
	}
	switch mode := infoMode(info); {
	case err != nil || !info.IsDir():
		x.add(Fail, object, "write another admin.socket", "%s cannot hold a socket: %v", dir, why(err))
		return
	case !x.user.may(dir, info, mayWrite|mayEnter):
		x.add(Fail, object, fmt.Sprintf("chown %s %s, or write an admin.socket in a folder of its own", x.user.name, dir), "%s may not write in %s", x.user, dir)
	case mode.Perm()&0o022 != 0 && mode&fs.ModeSticky == 0:
		x.add(Warn, object, "chmod go-w "+dir, "others may put a socket of theirs in its place: mode %04o of %s", mode.Perm(), dir)
	default:
		x.ok(object, "%s stands in a folder that is not everybody's", path)
	}
	x.socketFile(object, path, a)
}

func (x *examination) socketFile(object, path string, a *plan.AdminSettings) {
	info, err := os.Lstat(path)
	if err != nil {
		return
	}
	wanted, _ := strconv.ParseUint(a.Mode, 8, 32)
	switch {
	case info.Mode().Type() != fs.ModeSocket:
		x.add(Fail, object, "move it away, or write another admin.socket", "%s is no socket", path)
	case x.Running == nil && x.Silent == nil:
		if e := ports.Probe(plan.Addr{Network: plan.Unix, Path: path}); e != nil {
			x.add(Fail, object, e.Remedy(), "%s", e.Cause())
		}
	case x.Running != nil && uint64(info.Mode().Perm()) != wanted && wanted != 0:
		x.add(Warn, object, fmt.Sprintf("chmod %s %s", a.Mode, path), "the mode of %s is %04o and not %s, as admin.mode says", path, info.Mode().Perm(), a.Mode)
	}
}

// logFile looks at a file that is written to, and its folder.
func (x *examination) logFile(name string) {
	const object = "log.access.file"
	dir := filepath.Dir(name)
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if info, err = os.Stat(dir); err != nil || !x.user.may(dir, info, mayWrite|mayEnter) {
			x.add(Fail, object, fmt.Sprintf("install -d -m 750 -o %s %s", x.user.name, dir), "%s may not make %s", x.user, name)
			return
		}
	case err != nil:
		x.add(Fail, object, "write a log.access.file in a folder that "+x.user.String()+" may enter", "%s cannot get to %s: %v", x.user, name, why(err))
		return
	case !x.user.may(name, info, mayWrite):
		x.add(Fail, object, fmt.Sprintf("chown %s %s", x.user.name, name), "%s may not write %s", x.user, name)
		return
	}
	if err := state.Room(dir); err != nil {
		x.add(Fail, object, state.Remedy(dir, err), "%s: %v: lines are lost", dir, err)
		return
	}
	x.ok(object, "%s can be written", name)
}

func infoMode(info fs.FileInfo) fs.FileMode {
	if info == nil {
		return 0
	}
	return info.Mode()
}

// why cuts an error of a file down to its cause.
func why(err error) error {
	var of *fs.PathError
	if errors.As(err, &of) {
		return of.Err
	}
	if err == nil {
		return errors.New("it is no folder")
	}
	return err
}
