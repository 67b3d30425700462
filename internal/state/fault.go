package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The sizes of what Check tries to write.
const (
	probeLeast = 4 << 10
	probeMost  = 1 << 20
)

// Fault is why the folder keeps nothing at present: the error of the newest write, or of Open; nil when that went well.
func (d *Dir) Fault() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fault
}

// note keeps what the newest write of so many bytes came to.
func (d *Dir) note(err error, size int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault, d.need = err, size
}

// Check finds out whether the folder can be written, and returns what Fault says from then on. It writes, and removes,
// a file of its own only when the last write failed or the file system says that it is full or read-only: as large as
// what could not be written, up to 1 MiB.
func (d *Dir) Check() error {
	d.mu.Lock()
	fault, left, size := d.fault, d.left, min(max(d.need, probeLeast), probeMost)
	d.mu.Unlock()
	if left || fault == nil && Room(d.path) == nil {
		return nil
	}
	err := d.probe(size)
	if err != nil {
		err = fmt.Errorf("write in %s: %w", d.path, cause(err))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = err // need stays: the write that failed is still the one to be made
	if err == nil {
		d.need = 0
	}
	return err
}

// probe writes a file of that size and removes it.
func (d *Dir) probe(size int) error {
	if err := d.again(); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(d.path, tmpPrefix+"probe-")
	if err != nil {
		return err
	}
	return errors.Join(fill(tmp, make([]byte, size)), os.Remove(tmp.Name()))
}

// again makes and locks the folder where that was not possible before, and says so where the folder we have locked is
// no longer the one at its path.
func (d *Dir) again() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left {
		return errLeft
	}
	if d.lock == nil {
		if err := d.open(); d.lock == nil {
			return err
		}
	}
	now, err := os.Lstat(filepath.Join(d.path, lockName))
	held, second := d.lock.Stat()
	if second == nil && !held.IsDir() && (err != nil || !os.SameFile(now, held)) {
		return fmt.Errorf("%s is no longer the folder that was locked at start: %w", d.path, errReplaced)
	}
	return nil
}

var (
	errReplaced = errors.New("it was removed or replaced")
	errLeft     = errors.New("the state folder was handed over to another process")
)

// cause cuts the name of a temporary file off an error: it means nothing to a person, and differs each time.
func cause(err error) error {
	var of *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &of) && strings.Contains(of.Path, tmpPrefix):
		return of.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}

// ofDisk reports whether err is the disk's fault: nothing that a right or another path would mend.
func ofDisk(err error) bool {
	for _, e := range []error{unix.EROFS, unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Remedy is what a person can do about an error of the state folder dir.
func Remedy(dir string, err error) string {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Sprintf("make room: \"df -h %s\" and \"df -i %s\" show how full it is", dir, dir)
	case errors.Is(err, unix.EROFS):
		return fmt.Sprintf("make it writable: mount -o remount,rw \"$(findmnt -no TARGET -T %s)\"; or set state_dir to a folder on a disk that is", dir)
	case errors.Is(err, unix.EIO):
		return "the disk fails: see \"dmesg\", and set state_dir to a folder on another one"
	case errors.Is(err, unix.EPERM):
		return fmt.Sprintf("see whether it is immutable (\"lsattr -d %s\"), and then: chattr -i %s", dir, dir)
	case errors.Is(err, errReplaced), errors.Is(err, fs.ErrNotExist):
		return "restart quaymaster, which makes the folder anew"
	}
	return fmt.Sprintf("make it by hand (install -d -m 700 -o %d %s), or set state_dir to a folder that user %d may write", os.Geteuid(), dir, os.Geteuid())
}
