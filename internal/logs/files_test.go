package logs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFilesRotateAndAreReadBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "output")
	var faults []error
	o := FilesOptions{Dir: dir, Name: "web", Size: 2000, Fault: func(err error) { faults = append(faults, err) }}
	f := NewFiles(o)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	line := func(n int) FileLine {
		return FileLine{Time: at.Add(time.Duration(n)), Stream: "stdout", Text: fmt.Sprintf("line %d", n)}
	}
	f.Add(line(0)) // before Keep nothing is kept
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("%v", list)
	}
	f.Keep(3)
	for n := 1; n <= 1000; n++ {
		f.Add(line(n))
	}
	list, err := filepath.Glob(dir + "/*")
	if err != nil || len(list) != 3 {
		t.Fatalf("%v %v", list, err)
	}
	for _, name := range list {
		if info, err := os.Stat(name); err != nil || info.Size() > 2100 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	f.Close()
	again := NewFiles(o)
	got := again.Last(20)
	if len(got) != 20 || got[19] != line(1000) || got[0] != line(981) {
		t.Errorf("%+v", got)
	}
	again.Keep(1) // those that are too many go with the next rotation
	for n := 1001; n <= 1100; n++ {
		again.Add(line(n))
	}
	if list, _ := filepath.Glob(dir + "/*"); len(list) != 1 {
		t.Errorf("%v", list)
	}
	again.Close()
	if len(faults) > 0 {
		t.Error(faults)
	}
}

func TestFilesTellOfADiskThatTakesNothingOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	told := 0
	f := NewFiles(FilesOptions{Dir: file + "/sub", Name: "web", Fault: func(err error) {
		if !strings.Contains(err.Error(), "web.log") {
			t.Error(err)
		}
		told++
	}})
	f.Keep(2)
	for range 10 {
		f.Add(FileLine{Time: time.Now(), Stream: "stdout", Text: "x"})
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}
