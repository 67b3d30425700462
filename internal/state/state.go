// Package state keeps small files that survive a power cut, in a folder that one daemon at a time may use.
//
// It promises that a reader sees the whole of the last value written or the whole of the one before, never a mixture,
// that the folder is ours until Close or the end of the process, and that a disk which is full or read-only stops nobody
// from starting: what is there can be read, every Write says why it could not be had, and Fault says so until it can. It
// never looks into what it keeps.
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
	"sync"

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

	mu    sync.Mutex // guards what follows
	lock  *os.File   // holds the flock for as long as any copy of this open file exists; nil while there is no folder
	fault error      // of the newest write; nil when it went well
	need  int        // bytes that the write of fault wanted to keep
	left  bool       // the folder is another process's; nothing is written any more
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
//
// A disk that takes nothing (full, read-only, immutable, failing) is no error of Open: the folder is opened for reading,
// and Fault says what is wrong. Without a right to be there, it is an error: that is a mistake of the configuration.
func Open(dir string) (*Dir, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	d := &Dir{path: dir}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.open(); err != nil && (d.lock == nil && !ofDisk(err)) {
		return nil, err
	} else if err != nil {
		d.fault = err
	}
	return d, nil
}

// open makes, locks and cleans the folder. After an error the folder may be locked all the same, to be read. mu is held.
func (d *Dir) open() error {
	if err := os.MkdirAll(d.path, dirMode); err != nil {
		return fmt.Errorf("cannot make the state folder: %w; %s", err, Remedy(d.path, err))
	}
	lock, fault := d.openLock()
	if lock == nil {
		return fmt.Errorf("cannot lock the state folder: %w; %s", fault, Remedy(d.path, fault))
	}
	if err := d.take(lock); err != nil {
		lock.Close()
		return err
	}
	d.lock = lock
	return errors.Join(fault, d.sign(), d.sweep())
}

// openLock opens the lock file. Where the disk does not let it be written it is opened for reading, and where it cannot
// even be made the folder is locked in its place; the error then says why.
func (d *Dir) openLock() (*os.File, error) {
	name := filepath.Join(d.path, lockName)
	lock, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, fileMode)
	if err == nil || !ofDisk(err) {
		return lock, err
	}
	if lock, second := os.Open(name); second == nil {
		return lock, err
	}
	lock, second := os.Open(d.path)
	if second != nil {
		return nil, second
	}
	return lock, err
}

// take locks the lock that openLock found.
func (d *Dir) take(lock *os.File) error {
	err := flock(lock)
	if err == nil && d.folderLocked(lock) {
		err = unix.EWOULDBLOCK
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &LockedError{Dir: d.path, Pid: holder(lock)}
	}
	if err != nil {
		return fmt.Errorf("lock the state folder %s: %w; its file system must support flock", d.path, err)
	}
	return nil
}

// folderLocked reports whether somebody has locked the folder itself, for want of a lock file. An error says no: some file
// systems lock files alone.
func (d *Dir) folderLocked(lock *os.File) bool {
	folder, err := os.Open(d.path)
	if err != nil {
		return false
	}
	defer folder.Close()
	return !same(folder, lock) && errors.Is(flock(folder), unix.EWOULDBLOCK)
}

func flock(f *os.File) error {
	return retryEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
}

func same(a, b *os.File) bool {
	x, err := a.Stat()
	y, second := b.Stat()
	return err == nil && second == nil && os.SameFile(x, y)
}

// sign writes our pid into the lock file, for the message of whoever comes second.
func (d *Dir) sign() error {
	// One write of at most 21 bytes over the old text, then the cut: a reader in between sees our pid, at worst with
	// the tail of a longer old line behind the line end.
	text := strconv.Itoa(os.Getpid()) + "\n"
	_, err := d.lock.WriteAt([]byte(text), 0)
	if err == nil {
		err = d.lock.Truncate(int64(len(text)))
	}
	if err != nil {
		_ = d.lock.Truncate(0) // no pid is better than that of another
		return fmt.Errorf("write the pid into the state folder's lock: %w", err)
	}
	return nil
}

// holder reads the pid that the holder of the lock wrote; 0 when there is none, or when it is that of a dead process:
// on a disk that cannot be written the one before us may have been the last to sign.
func holder(lock *os.File) int {
	var buf [32]byte
	n, _ := lock.ReadAt(buf[:], 0)
	line, _, _ := strings.Cut(string(buf[:n]), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil || pid <= 0 || errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
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
// the descriptor holds the lock. It stays ours to close. It is nil while the folder could not even be made.
func (d *Dir) Lock() *os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lock
}

// Close gives the folder up. A copy of Lock that another process holds keeps it locked.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		return nil
	}
	if err := d.lock.Close(); !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

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
	err := d.write(name, data)
	if err != nil {
		err = fmt.Errorf("write state file %s: %w", filepath.Join(d.path, name), cause(err))
	}
	d.note(err, len(data))
	return err
}

func (d *Dir) write(name string, data []byte) error {
	if err := d.again(); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(d.path, tmpPrefix+name+"-") // O_EXCL, 0600
	if err != nil {
		return err
	}
	err = fill(tmp, data)
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(d.path, name))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return err
	}
	return d.sync()
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
		err = fmt.Errorf("remove state file %s: %w", filepath.Join(d.path, name), cause(err))
		d.note(err, 0)
	}
	return err
}

// Rename gives the file called name another one, durably, without reading it. What had that name before is replaced.
func (d *Dir) Rename(name, to string) error {
	if err := errors.Join(check(name), check(to)); err != nil {
		return err
	}
	err := os.Rename(filepath.Join(d.path, name), filepath.Join(d.path, to))
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return fmt.Errorf("rename state file %s: %w", name, err)
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
