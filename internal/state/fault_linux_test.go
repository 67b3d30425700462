package state

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a small file system of its own in a folder; with the options of tmpfs. It is gone when the test ends.
func disk(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "" {
			t.Skip("LOUD SKIP: only root can mount a disk to fill")
		}
		t.Fatal("only root can mount a disk to fill")
	}
	dir := t.TempDir()
	if err := unix.Mount("state-test", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// remount makes a disk read-only, or writable again.
func remount(t *testing.T, dir string, readOnly bool) {
	t.Helper()
	flags := uintptr(unix.MS_REMOUNT)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("state-test", dir, "tmpfs", flags, ""); err != nil {
		t.Fatalf("remount: %v", err)
	}
}

// fillUp leaves no block of the disk free, and returns what makes room again.
func fillUp(t *testing.T, dir string) func() {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, dir string) *Dir {
	t.Helper()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// locked wants the folder to be ours alone.
func locked(t *testing.T, dir string) {
	t.Helper()
	var is *LockedError
	if _, err := Open(dir); !errors.As(err, &is) {
		t.Errorf("a second Open: %v, want a LockedError", err)
	}
}

func TestD02_FullDiskKeepsTheOldValue(t *testing.T) {
	dir := disk(t, "size=128k")
	d := open(t, dir)
	if err := d.Write("value", pattern(0)); err != nil {
		t.Fatal(err)
	}
	room := fillUp(t, dir)
	if d.Fault() != nil {
		t.Errorf("a fault before anything was written: %v", d.Fault())
	}
	if err := d.Check(); !errors.Is(err, unix.ENOSPC) || !errors.Is(d.Fault(), unix.ENOSPC) {
		t.Errorf("Check on a full disk: %v, Fault %v", err, d.Fault())
	}
	if err := d.Write("value", pattern(1)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Write on a full disk: %v", err)
	}
	if b, err := d.Read("value"); err != nil || !bytes.Equal(b, pattern(0)) {
		t.Errorf("the old value is %d bytes, %v", len(b), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, tmpPrefix+"*")); len(left) > 0 {
		t.Errorf("half-written files are left: %v", left)
	}
	room()
	if err := d.Check(); err != nil || d.Fault() != nil {
		t.Errorf("with room again: Check %v, Fault %v", err, d.Fault())
	}
	if err := d.Write("value", pattern(1)); err != nil {
		t.Error(err)
	}
}

// What did not fit is what Check tries: room for less does not mend the fault.
func TestD02_CheckTriesWhatDidNotFit(t *testing.T) {
	dir := disk(t, "size=128k")
	d := open(t, dir)
	if err := d.Write("value", make([]byte, 200<<10)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("Write: %v", err)
	}
	for range 2 {
		if err := d.Check(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("Check: %v, though 200 KiB still do not fit", err)
		}
	}
	if err := unix.Mount("state-test", dir, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := d.Check(); err != nil {
		t.Error(err)
	}
}

func TestD02_FullDiskAtStart(t *testing.T) {
	for name, options := range map[string]string{"no block": "size=64k", "no inode": "size=1m,nr_inodes=2"} {
		t.Run(name, func(t *testing.T) {
			dir := disk(t, options)
			room := fillUp(t, dir)
			d := open(t, dir)
			if name == "no inode" && !errors.Is(d.Fault(), unix.ENOSPC) {
				t.Errorf("Fault is %v", d.Fault())
			}
			if err := d.Check(); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("Check: %v", err)
			}
			locked(t, dir)
			if _, err := d.Read("value"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Read: %v", err)
			}
			room()
			if err := unix.Mount("state-test", dir, "tmpfs", unix.MS_REMOUNT, "nr_inodes=100"); err != nil {
				t.Fatal(err)
			}
			locked(t, dir) // also for one that finds room for a lock file by now
			if err := d.Write("value", pattern(2)); err != nil || d.Fault() != nil {
				t.Errorf("with room: %v, %v", err, d.Fault())
			}
		})
	}
}

func TestD02_ReadOnlyDisk(t *testing.T) {
	dir := disk(t, "size=256k")
	old := open(t, dir)
	if err := old.Write("value", pattern(3)); err != nil {
		t.Fatal(err)
	}
	old.Close()
	for _, lock := range []string{"with a lock file", "without"} {
		if lock == "without" {
			if err := os.Remove(filepath.Join(dir, lockName)); err != nil {
				t.Fatal(err)
			}
		}
		remount(t, dir, true)
		d := open(t, dir)
		if !errors.Is(d.Fault(), unix.EROFS) || !errors.Is(d.Check(), unix.EROFS) {
			t.Errorf("%s: Fault %v, Check %v", lock, d.Fault(), d.Check())
		}
		locked(t, dir)
		if b, err := d.Read("value"); err != nil || !bytes.Equal(b, pattern(3)) {
			t.Errorf("%s: read %d bytes, %v", lock, len(b), err)
		}
		if err := d.Write("value", nil); !errors.Is(err, unix.EROFS) || !strings.Contains(Remedy(dir, err), "remount,rw") {
			t.Errorf("%s: Write: %v; %s", lock, err, Remedy(dir, err))
		}
		remount(t, dir, false)
		locked(t, dir)
		if err := d.Check(); err != nil {
			t.Errorf("%s: writable again: %v", lock, err)
		}
		if err := d.Write("value", pattern(3)); err != nil {
			t.Errorf("%s: writable again: %v", lock, err)
		}
		remount(t, dir, true) // while it runs, and before it has anything to write
		if err := d.Check(); !errors.Is(err, unix.EROFS) || !errors.Is(d.Fault(), unix.EROFS) {
			t.Errorf("%s: read-only once more: %v", lock, err)
		}
		remount(t, dir, false)
		d.Close()
	}
}

func TestD02_FolderThatCannotBeMadeYet(t *testing.T) {
	dir := disk(t, "size=256k")
	remount(t, dir, true)
	d := open(t, filepath.Join(dir, "state"))
	if !errors.Is(d.Fault(), unix.EROFS) || d.Lock() != nil {
		t.Errorf("Fault %v, lock %v", d.Fault(), d.Lock())
	}
	if err := d.Write("value", nil); !errors.Is(err, unix.EROFS) {
		t.Errorf("Write: %v", err)
	}
	remount(t, dir, false)
	if err := d.Check(); err != nil || d.Lock() == nil {
		t.Errorf("writable: %v, lock %v", err, d.Lock())
	}
	locked(t, d.Path())
}

func TestD02_ImmutableFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("LOUD SKIP: only root can make a folder immutable")
	}
	dir := t.TempDir()
	if out, err := exec.Command("chattr", "+i", dir).CombinedOutput(); err != nil {
		t.Skipf("LOUD SKIP: this file system knows no immutable folders: %s", out)
	}
	defer exec.Command("chattr", "-i", dir).Run()
	d := open(t, dir)
	if !errors.Is(d.Fault(), unix.EPERM) || !strings.Contains(Remedy(dir, d.Fault()), "chattr -i") {
		t.Errorf("Fault %v", d.Fault())
	}
	locked(t, dir)
}

// A folder without a right to it is a mistake that the disk has no part in.
func TestD02_NoRightIsAnError(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("LOUD SKIP: only root can be another user")
	}
	dir, err := os.MkdirTemp("/tmp", "state-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "test") // where another user can run it
	if out, err := exec.Command("cp", os.Args[0], program).CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, dir)
	cmd.Env = append(os.Environ(), "QM_STATE_CHILD=once")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "permission denied") || !strings.Contains(string(out), "state_dir") {
		t.Errorf("%s, %v", out, err)
	}
}

func TestD02_FolderThatWasRemovedIsAFault(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	d := open(t, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("value", nil); !errors.Is(err, errReplaced) || !strings.Contains(Remedy(dir, err), "restart") {
		t.Errorf("Write: %v", err)
	}
	open(t, dir) // another daemon's folder now
	if err := d.Write("value", nil); !errors.Is(err, errReplaced) {
		t.Errorf("Write into a folder that another has locked: %v", err)
	}
}

func TestD02_RenameNeedsNoReading(t *testing.T) {
	d := open(t, t.TempDir())
	if err := os.Mkdir(filepath.Join(d.Path(), "value"), 0o700); err != nil { // what stands there is no file at all
		t.Fatal(err)
	}
	if err := d.Rename("value", "aside"); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("value", pattern(0)); err != nil {
		t.Error(err)
	}
	if err := d.Rename("value", "../x"); err == nil {
		t.Error("a name outside the folder was taken")
	}
}

// The order of system calls is what survives a power cut: bytes, sync, name, sync.
func TestD02_PowerCutOrder(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("LOUD SKIP: strace is not installed")
		}
		t.Fatal(err)
	}
	dir := t.TempDir()
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-y", "-s", "8", "-e", "trace=openat,write,fsync,close,renameat,renameat2,rename", "-o", trace, os.Args[0], dir)
	cmd.Env = append(os.Environ(), "QM_STATE_CHILD=once")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	at := regexp.QuoteMeta(dir)
	rest := string(text)
	for _, call := range []string{
		`openat\([^)]*"` + at + `/\.tmp-value-[^)]*O_CREAT\|O_EXCL`,
		`write\(\d+<` + at + `/\.tmp-value-`,
		`fsync\(\d+<` + at + `/\.tmp-value-`,
		`close\(\d+<` + at + `/\.tmp-value-`,
		`rename(at2?)?\([^\n]*` + at + `/\.tmp-value-[^\n]*` + at + `/value"`,
		`fsync\(\d+<` + at + `>`,
	} {
		where := regexp.MustCompile(call).FindStringIndex(rest)
		if where == nil {
			t.Fatalf("no %s after what came before; the whole trace:\n%s", call, text)
		}
		rest = rest[where[1]:]
	}
}
