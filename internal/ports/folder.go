package ports

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Folder reports whether somebody else could put a socket of his own at path: a folder above it lies where everybody may
// make one, such as /tmp, and is neither ours nor root's. Whoever speaks to a daemon at a path that can be guessed asks it
// first.
func Folder(path string) error {
	for dir := filepath.Dir(path); dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		above, err := os.Stat(filepath.Dir(dir))
		if err != nil || above.Mode().Perm()&0o002 == 0 {
			continue
		}
		info, err := os.Lstat(dir)
		if err != nil {
			continue // nobody's yet
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
			return fmt.Errorf("%s was made by user %d, who could answer there in the daemon's place; remove it, set XDG_RUNTIME_DIR, or name a socket elsewhere (admin.socket, --socket)", dir, owner.Uid)
		}
	}
	return nil
}
