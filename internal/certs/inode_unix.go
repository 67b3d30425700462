//go:build unix

package certs

import (
	"io/fs"
	"syscall"
)

// inode is the number of a file, which another one that takes its name does not have.
func inode(i fs.FileInfo) int64 {
	if st, ok := i.Sys().(*syscall.Stat_t); ok {
		return int64(st.Ino)
	}
	return 0
}
