package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// The sizes of Files: a file is put aside when it has this much, and this much of the newest is read back.
const (
	filesSize = 1 << 20
	filesTail = 1 << 20
)

// FilesOptions say where lines are kept.
type FilesOptions struct {
	Dir   string // made where it is missing
	Name  string // of the newest file, Name.log; older ones are Name.log.1 and so on
	Size  int64  // of a file; 0 = 1 MiB
	Fault func(error)
}

// Files keep lines in a few files of a bounded size, the oldest of which goes when there is one more. Every line is
// written as it comes, so that the last words before a crash are there. A disk that takes nothing costs the lines, and is
// told once until it takes them again.
type Files struct {
	o FilesOptions

	mu     sync.Mutex // guards what follows
	keep   int        // 0: nothing is written
	f      *os.File
	size   int64
	broken bool
	buf    []byte
}

// A FileLine is one line with its time and where it was said.
type FileLine struct {
	Time   time.Time
	Stream string // one word
	Text   string
}

// NewFiles writes nothing before Keep.
func NewFiles(o FilesOptions) *Files {
	if o.Size <= 0 {
		o.Size = filesSize
	}
	if o.Fault == nil {
		o.Fault = func(error) {}
	}
	return &Files{o: o}
}

// Keep says how many files there may be. Those that are too many go with the next rotation.
func (s *Files) Keep(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep = n
}

func (s *Files) path(n int) string {
	name := filepath.Join(s.o.Dir, s.o.Name+".log")
	if n == 0 {
		return name
	}
	return fmt.Sprintf("%s.%d", name, n)
}

// Add writes a line.
func (s *Files) Add(l FileLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keep <= 0 {
		return
	}
	err := s.add(l)
	if err != nil && !s.broken {
		s.o.Fault(fmt.Errorf("write %s: %w", s.path(0), err))
	}
	s.broken = err != nil
}

func (s *Files) add(l FileLine) error {
	if err := s.open(); err != nil {
		return err
	}
	b := l.Time.UTC().AppendFormat(s.buf[:0], time.RFC3339Nano)
	b = append(append(append(b, ' '), l.Stream...), ' ')
	b = append(append(b, strings.ReplaceAll(l.Text, "\n", " ")...), '\n')
	if s.buf = b; cap(b) > 64<<10 {
		s.buf = nil
	}
	n, err := s.f.Write(b)
	s.size += int64(n)
	return err
}

// open makes the newest file, and another one when it is full.
func (s *Files) open() error {
	if s.f != nil && s.size < s.o.Size {
		return nil
	}
	if s.f != nil {
		_ = s.f.Close()
		s.f = nil
		if err := s.rotate(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.o.Dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path(0), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	s.f, s.size = f, 0
	if info, err := f.Stat(); err == nil {
		s.size = info.Size()
	}
	return nil
}

// rotate gives each file the name of the next older one.
func (s *Files) rotate() error {
	n := s.keep - 1
	for ; n < s.keep+1000; n++ { // there were more once, perhaps
		if err := os.Remove(s.path(n)); errors.Is(err, fs.ErrNotExist) && n >= s.keep {
			break
		}
	}
	for n = s.keep - 1; n > 0; n-- {
		if err := os.Rename(s.path(n-1), s.path(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Last reads the newest n lines back, oldest first; those that are too far behind are not looked for.
func (s *Files) Last(n int) []FileLine {
	var text []byte
	for i := 1; i >= 0; i-- {
		text = append(text, tailOf(s.path(i))...)
	}
	lines := bytes.Split(text, []byte{'\n'})
	var out []FileLine
	for _, line := range lines[max(0, len(lines)-n-1):] {
		at, rest, _ := strings.Cut(string(line), " ")
		stream, said, ok := strings.Cut(rest, " ")
		t, err := time.Parse(time.RFC3339Nano, at)
		if err != nil || !ok {
			continue // cut at its begin, or not written to its end
		}
		out = append(out, FileLine{Time: t, Stream: stream, Text: said})
	}
	return out
}

func tailOf(name string) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	if end, err := f.Seek(0, io.SeekEnd); err != nil || end <= filesTail {
		_, _ = f.Seek(0, io.SeekStart)
	} else {
		_, _ = f.Seek(-filesTail, io.SeekEnd)
	}
	text, _ := io.ReadAll(io.LimitReader(f, filesTail))
	return text
}

// Close lets go of the newest file.
func (s *Files) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f != nil {
		_ = s.f.Close()
		s.f = nil
	}
}
