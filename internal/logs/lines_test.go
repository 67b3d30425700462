package logs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// start runs l until the test ends.
func start(t *testing.T, l *Lines) {
	t.Helper()
	go l.Run(context.Background())
	t.Cleanup(func() {
		l.Close()
		if err := l.Wait(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestLines_CloseWritesWhatIsWaiting(t *testing.T) {
	name := filepath.Join(t.TempDir(), "access.log")
	l, err := NewLines(LinesOptions{File: name})
	if err != nil {
		t.Fatal(err)
	}
	go l.Run(context.Background())
	for range 5000 {
		_, _ = l.Write([]byte("one line of some length\n"))
	}
	l.Close()
	if err := l.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(name)
	if n := strings.Count(string(got), "one line of some length\n"); n != 5000 || len(got) != 5000*24 {
		t.Errorf("%d lines, %d bytes", n, len(got))
	}
	if i, _ := os.Stat(name); i.Mode().Perm()&0o007 != 0 {
		t.Errorf("mode %v: others can read it", i.Mode())
	}
	if _, _ = l.Write([]byte("late\n")); l.Status().Dropped != 1 {
		t.Error("a line after Close was not counted as lost")
	}
}

func TestLines_EndOfContextWritesWhatIsWaiting(t *testing.T) {
	r, w := io.Pipe()
	l, _ := NewLines(LinesOptions{Out: w})
	ctx, cancel := context.WithCancel(context.Background())
	_, _ = l.Write([]byte("a\n"))
	cancel()
	go l.Run(ctx)
	b := make([]byte, 8)
	if n, _ := r.Read(b); string(b[:n]) != "a\n" {
		t.Errorf("read %q", b[:n])
	}
	if err := l.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestLines_WriteWithoutHaste(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		l, _ := NewLines(LinesOptions{Out: w})
		start(t, l)
		begin := time.Now()
		_, _ = l.Write([]byte("a\n"))
		_, _ = l.Write([]byte("b\n"))
		b := make([]byte, 8)
		n, _ := r.Read(b)
		if string(b[:n]) != "a\nb\n" || time.Since(begin) != flushAfter {
			t.Errorf("%q after %v", b[:n], time.Since(begin))
		}
		// A full buffer does not wait for the clock.
		begin = time.Now()
		_, _ = l.Write(make([]byte, flushSize))
		if _, err := io.ReadFull(r, make([]byte, flushSize)); err != nil || time.Since(begin) != 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

func TestLines_SlowReaderHoldsNobody(t *testing.T) {
	r, w := io.Pipe()
	l, _ := NewLines(LinesOptions{Out: w, Hold: 64 << 10})
	go l.Run(context.Background())
	line := []byte(strings.Repeat("x", 1023) + "\n")
	for range 1000 { // nobody reads; a writer that waited would hang here
		_, _ = l.Write(line)
	}
	lost := l.Status().Dropped
	if lost < 1000-64-64-2 || lost == 1000 {
		t.Errorf("%d of 1000 lines lost with room for 64 waiting and as many being written", lost)
	}
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Wait(ctx); err == nil {
		t.Error("Wait did not say that the reader takes nothing")
	}
	got := make(chan int)
	go func() {
		b, _ := io.ReadAll(r)
		got <- len(b) / len(line)
	}()
	if err := l.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if n := <-got; uint64(n)+lost != 1000 {
		t.Errorf("%d written and %d lost of 1000", n, lost)
	}
}

type failing struct{ err error }

func (f *failing) Write([]byte) (int, error) { return 0, f.err }

func TestLines_FullDiskIsShownAndCounted(t *testing.T) {
	l, _ := NewLines(LinesOptions{Out: &failing{errors.New("no space left on device")}})
	_, _ = l.Write([]byte("a\n"))
	_, _ = l.Write([]byte("b\n"))
	l.Close()
	_ = l.Run(context.Background())
	if s := l.Status(); s.Dropped != 2 || s.Err == nil {
		t.Errorf("status %+v", s)
	}
}

func TestLines_ReopenFollowsRotation(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a.log")
	l, err := NewLines(LinesOptions{File: name})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = l.Write([]byte("old\n"))
	l.flush()
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	_, _ = l.Write([]byte("new\n"))
	l.Close()
	_ = l.Run(context.Background())
	if err := l.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{name: "new\n", name + ".1": "old\n"} {
		if got, _ := os.ReadFile(file); string(got) != want {
			t.Errorf("%s: %q", filepath.Base(file), got)
		}
	}
	if l.Reopen() == nil {
		t.Error("a closed log was opened again")
	}
	if _, err := NewLines(LinesOptions{File: filepath.Join(dir, "no", "a.log")}); err == nil || !strings.HasPrefix(err.Error(), "cannot ") {
		t.Errorf("missing folder: %v", err)
	}
}

func TestLines_WriteDoesNotAllocate(t *testing.T) {
	l, _ := NewLines(LinesOptions{Out: io.Discard})
	line := []byte(strings.Repeat("x", 200) + "\n")
	n := testing.AllocsPerRun(100, func() {
		for range 100 {
			_, _ = l.Write(line)
		}
		l.flush()
	})
	if n > 0 {
		t.Errorf("%v allocations for a hundred lines", n)
	}
}
