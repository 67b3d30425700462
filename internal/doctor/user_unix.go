package doctor

import (
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

// access asks the system whether this process has rights to path.
func access(path string, rights uint32) bool {
	return unix.Faccessat(unix.AT_FDCWD, path, rights, unix.AT_EACCESS) == nil
}

// owner is whose a file is.
func owner(info fs.FileInfo) (uid, gid int, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(st.Uid), int(st.Gid), true
}
