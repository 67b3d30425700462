package state

import "golang.org/x/sys/unix"

// Room says why the file system of dir takes no file: EROFS or ENOSPC; nil when it says that it does. It writes nothing,
// and so cannot see every reason.
func Room(dir string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return err
	}
	const readOnly = 1 // ST_RDONLY
	switch {
	case s.Flags&readOnly != 0:
		return unix.EROFS
	case s.Bavail*uint64(max(s.Bsize, 1)) < probeLeast, s.Files > 0 && s.Ffree == 0: // btrfs says 0 files of 0
		return unix.ENOSPC
	}
	return nil
}
