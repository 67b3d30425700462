package state

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be the other process: QM_STATE_CHILD says which.
func TestMain(m *testing.M) {
	switch os.Getenv("QM_STATE_CHILD") {
	case "hold":
		hold(os.Args[len(os.Args)-1])
	case "write":
		writeForever(os.Args[len(os.Args)-1])
	case "once":
		writeOnce(os.Args[len(os.Args)-1])
	default:
		os.Exit(m.Run())
	}
}

// hold opens the folder, says so, and waits to be killed.
func hold(dir string) {
	if _, err := Open(dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("held")
	select {}
}

// writeForever writes one value after the other until it is killed, and says when it began.
func writeForever(dir string) {
	d, err := Open(dir)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		if err := d.Write("value", pattern(i)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if i == 0 {
			fmt.Println("writing")
		}
	}
}

// writeOnce writes one value over another.
func writeOnce(dir string) {
	d, err := Open(dir)
	if err == nil {
		err = d.Write("value", pattern(1))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("written")
}

// pattern is a value of which every byte tells which value it belongs to; lengths differ.
func pattern(i int) []byte {
	return bytes.Repeat([]byte{byte('a' + i%26)}, 10_000+(i%26)*3_000)
}

// whole reports whether b is some pattern, all of it.
func whole(b []byte) bool {
	return len(b) > 0 && bytes.Equal(b, pattern(int(b[0]-'a')))
}

// child starts this test binary in the mode and waits for its first line.
func child(t *testing.T, mode, dir string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), "QM_STATE_CHILD="+mode)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("child said %q: %v", line, err)
	}
	return cmd, strings.TrimSpace(line)
}

func TestP17_SecondInstanceIsRefusedWithThePidOfTheFirst(t *testing.T) {
	dir := t.TempDir()
	first, said := child(t, "hold", dir)
	if said != "held" {
		t.Fatalf("the first instance said %q", said)
	}
	_, err := Open(dir)
	var locked *LockedError
	if !errors.As(err, &locked) {
		t.Fatalf("second Open: %v, want a LockedError", err)
	}
	if locked.Pid != first.Process.Pid || locked.Dir != dir {
		t.Errorf("LockedError names pid %d and %s, want %d and %s", locked.Pid, locked.Dir, first.Process.Pid, dir)
	}
	if want := fmt.Sprintf("state folder %s is in use by pid %d; ", dir, first.Process.Pid); !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error is %q, want it to begin with %q", err, want)
	}
	// And from another process, with the same words.
	if _, said := child(t, "hold", dir); said != err.Error() {
		t.Errorf("third instance said %q, want %q", said, err)
	}
}

func TestP17_StaleLockIsTaken(t *testing.T) {
	dir := t.TempDir()
	first, said := child(t, "hold", dir)
	if said != "held" {
		t.Fatalf("the first instance said %q", said)
	}
	first.Process.Kill()
	first.Wait()
	text, err := os.ReadFile(filepath.Join(dir, lockName))
	if err != nil || strings.TrimSpace(string(text)) != fmt.Sprint(first.Process.Pid) {
		t.Fatalf("the dead instance left %q, %v; want its pid", text, err)
	}
	d, err := Open(dir)
	if err != nil {
		t.Fatalf("Open with a lock file of a dead process: %v", err)
	}
	defer d.Close()
	text, _ = os.ReadFile(filepath.Join(dir, lockName))
	if string(text) != fmt.Sprintf("%d\n", os.Getpid()) {
		t.Errorf("the lock file says %q, want our pid %d", text, os.Getpid())
	}
}

func TestLockEndsWithClose(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		d, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil {
			t.Fatal("the folder could be opened twice")
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnreadablePidIsAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.WriteFile(filepath.Join(dir, lockName), []byte("no pid\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("Open: %v, want it to say that another process uses the folder", err)
	}
}

func TestWriteReadRemove(t *testing.T) {
	d, err := Open(filepath.Join(t.TempDir(), "a", "b[1]*"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Read("api.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read before the first Write: %v, want fs.ErrNotExist", err)
	}
	for _, v := range []string{"one", "", "three, longer than one"} {
		if err := d.Write("api.json", []byte(v)); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Read("api.json"); err != nil || string(got) != v {
			t.Errorf("Read = %q, %v; want %q", got, err, v)
		}
	}
	info, err := os.Stat(filepath.Join(d.Path(), "api.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if info, _ := os.Stat(d.Path()); info.Mode().Perm() != 0o700 {
		t.Errorf("folder mode %v, want 0700", info.Mode())
	}
	for range 2 {
		if err := d.Remove("api.json"); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.Read("api.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read after Remove: %v, want fs.ErrNotExist", err)
	}
}

func TestNamesStayInsideTheFolder(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, name := range []string{"", "lock", ".", "..", ".hidden", "a/b", "../a", `a\b`, "a*", "a\x00", strings.Repeat("n", maxName+1)} {
		if err := d.Write(name, nil); err == nil {
			t.Errorf("Write(%q) was taken", name)
		}
		if _, err := d.Read(name); err == nil {
			t.Errorf("Read(%q) was taken", name)
		}
		if err := d.Remove(name); err == nil {
			t.Errorf("Remove(%q) was taken", name)
		}
	}
	if err := d.Write("big", make([]byte, maxSize+1)); err == nil {
		t.Error("a value above the limit was taken")
	}
}

// A killed writer leaves what a power cut leaves: any prefix of its system calls.
func TestD02_ReaderNeverSeesATornFileWhenWritersAreKilled(t *testing.T) {
	dir := t.TempDir()
	for round := range 12 {
		writer, said := child(t, "write", dir)
		if said != "writing" {
			t.Fatalf("round %d: the writer said %q", round, said)
		}
		// Readers do not lock, so they race with the writer while it lives.
		reads := 0
		for end := time.Now().Add(time.Duration(5+7*round) * time.Millisecond); time.Now().Before(end); reads++ {
			b, err := os.ReadFile(filepath.Join(dir, "value"))
			if err != nil || !whole(b) {
				t.Fatalf("round %d: read %d bytes that are no whole value: %v", round, len(b), err)
			}
		}
		writer.Process.Kill()
		writer.Wait()
		d, err := Open(dir)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if b, err := d.Read("value"); err != nil || !whole(b) {
			t.Errorf("round %d: after the kill %d bytes that are no whole value: %v", round, len(b), err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 2 {
			t.Errorf("round %d: the folder holds %v, %v; want the lock and the value alone", round, entries, err)
		}
		d.Close()
	}
}
