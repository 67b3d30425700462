package state

import "golang.org/x/sys/unix"

// roomy reports whether the file system of dir says that it is writable and has room for a file.
func roomy(dir string) bool {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return false
	}
	const readOnly = 1 // ST_RDONLY
	// A file system without a number of files of its own, such as btrfs, says 0 of 0.
	return s.Flags&readOnly == 0 && s.Bavail*uint64(max(s.Bsize, 1)) >= probeLeast && (s.Files == 0 || s.Ffree > 0)
}
