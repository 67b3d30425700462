// Package state keeps small files that survive a power cut, in a folder that one daemon at a time may use.
//
// It promises that a reader sees the whole of the last value written or the whole of the one before, never a mixture,
// and that the folder is ours until Close or the end of the process. It never looks into what it keeps.
package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	lockName  = "lock"
	tmpPrefix = ".tmp-"  // no name that Write accepts begins with a dot
	maxName   = 200      // bytes of a file's name, so that the temporary name fits any file system
	maxSize   = 64 << 20 // bytes of a file; what is larger does not belong here
	fileMode  = fs.FileMode(0o600)
	dirMode   = fs.FileMode(0o700)
)

// Dir is a state folder that this process has locked.
type Dir struct {
	path string
	lock *os.File // holds the flock for as long as any copy of this open file exists
}

// A LockedError says that another process uses the folder. Pid is 0 when that process left no readable pid.
type LockedError struct {
	Dir string
	Pid int
}

func (e *LockedError) Error() string {
	who := "another process"
	if e.Pid > 0 {
		who = "pid " + strconv.Itoa(e.Pid)
	}
	return fmt.Sprintf("state folder %s is in use by %s; stop that one first (quaymaster stop), or give this one a state_dir of its own", e.Dir, who)
}

// Open makes the folder where it is missing (mode 0700) and locks it, or returns a *LockedError.
//
// The lock is a flock on DIR/lock. The kernel drops it with the process that holds it, however that process ends, so
// that a lock file left behind by a crash, with whatever pid in it, never stands in the way; the file is never removed.
func Open(dir string) (*Dir, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("cannot make the state folder: %w; make it by hand, or set state_dir to a folder that user %d may write", err, os.Getuid())
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the state folder: %w; set state_dir to a folder that user %d may write", err, os.Getuid())
	}
	d := &Dir{path: dir, lock: lock}
	if err := d.take(); err != nil {
		lock.Close()
		return nil, err
	}
	if err := d.sweep(); err != nil {
		lock.Close()
		return nil, err
	}
	return d, nil
}

// take locks the lock file and writes our pid into it, for the message of whoever comes second.
func (d *Dir) take() error {
	err := retryEINTR(func() error { return unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &LockedError{Dir: d.path, Pid: d.holder()}
	}
	if err != nil {
		return fmt.Errorf("lock the state folder %s: %w; its file system must support flock", d.path, err)
	}
	// One write of at most 21 bytes over the old text, then the cut: a reader in between sees our pid, at worst with
	// the tail of a longer old line behind the line end.
	text := strconv.Itoa(os.Getpid()) + "\n"
	if _, err := d.lock.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("lock the state folder: %w", err)
	}
	if err := d.lock.Truncate(int64(len(text))); err != nil {
		return fmt.Errorf("lock the state folder: %w", err)
	}
	return nil
}

// holder reads the pid that the holder of the lock wrote, or 0.
func (d *Dir) holder() int {
	var buf [32]byte
	n, _ := d.lock.ReadAt(buf[:], 0)
	line, _, _ := strings.Cut(string(buf[:n]), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// sweep removes temporary files that writers left when they were killed. Nobody else can be writing: the lock is ours.
func (d *Dir) sweep() error {
	left, err := filepath.Glob(filepath.Join(globEscape(d.path), tmpPrefix+"*"))
	if err != nil {
		return fmt.Errorf("read the state folder: %w", err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("clean the state folder: %w", err)
		}
	}
	return nil
}

// Path is the absolute path of the folder.
func (d *Dir) Path() string { return d.path }

// Lock is the open lock file, for handing the folder over to the process that takes our place: whoever holds a copy of
// the descriptor holds the lock. It stays ours to close.
func (d *Dir) Lock() *os.File { return d.lock }

// Close gives the folder up. A copy of Lock that another process holds keeps it locked.
func (d *Dir) Close() error { return d.lock.Close() }

// Write makes data the content of the file called name, durably: when it returns nil the value survives a power cut,
// and at no time does a reader see anything but a whole value. The order is
//
//	openat(DIR/.tmp-NAME-N, O_CREAT|O_EXCL, 0600)
//	write(data)
//	fsync(file)                          the bytes are on the disk before the name points at them
//	close(file)
//	renameat(DIR/.tmp-NAME-N, DIR/NAME)  the one step that readers see
//	fsync(DIR)                           the name is on the disk before we say so
//
// An error leaves the old value, except one of the last step, after which either value may be found.
func (d *Dir) Write(name string, data []byte) error {
	if err := check(name); err != nil {
		return err
	}
	if len(data) > maxSize {
		return fmt.Errorf("state file %s: %d bytes are more than the %d a state file may have", name, len(data), maxSize)
	}
	tmp, err := os.CreateTemp(d.path, tmpPrefix+name+"-") // O_EXCL, 0600
	if err != nil {
		return fmt.Errorf("write state file %s: %w", name, err)
	}
	if err := fill(tmp, data); err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("write state file %s: %w", name, err)
	}
	if err := os.Rename(tmp.Name(), filepath.Join(d.path, name)); err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("write state file %s: %w", name, err)
	}
	if err := d.sync(); err != nil {
		return fmt.Errorf("write state file %s: %w", name, err)
	}
	return nil
}

// fill writes, syncs and closes f.
func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Read returns the content of the file called name. A file that was never written is an error that is fs.ErrNotExist.
func (d *Dir) Read(name string) ([]byte, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(d.path, name))
	if err != nil {
		return nil, fmt.Errorf("read state file %s: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read state file %s: %w", name, err)
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("read state file %s: it is larger than the %d bytes a state file may have", name, maxSize)
	}
	return data, nil
}

// Remove deletes the file called name, durably. One that does not exist is no error.
func (d *Dir) Remove(name string) error {
	if err := check(name); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(d.path, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return fmt.Errorf("remove state file %s: %w", name, err)
	}
	return nil
}

// sync makes the names in the folder durable.
func (d *Dir) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// check refuses names that would leave the folder, hide a file or hit the lock.
func check(name string) error {
	switch {
	case name == "" || len(name) > maxName:
		return fmt.Errorf("state file name %.40q: want 1 to %d bytes", name, maxName)
	case name == lockName, name[0] == '.', strings.ContainsAny(name, "/\\*\x00"), filepath.Base(name) != name:
		return fmt.Errorf("state file name %q: want a plain file name that is not %q", name, lockName)
	}
	return nil
}

// globEscape makes a path mean itself in a pattern.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// retryEINTR calls f until a signal does not interrupt it.
func retryEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
