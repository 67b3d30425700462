package process

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestA09_LinesAreWholeWhateverTheirPortionsWere(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLine)
	for _, c := range []struct {
		in   []string
		want []string
	}{
		{[]string{"a\nb\n"}, []string{"a", "b"}},
		{[]string{"a", "", "b", "\n", "\n", "c"}, []string{"ab", "", "c"}},
		{[]string{"a\r\nb\r", "\n"}, []string{"a", "b"}},
		{[]string{long + "\n" + "a\n"}, []string{long, "a"}},
		{[]string{long, "\na\n"}, []string{long, "a"}},
		{[]string{long + "y" + long + long + "\n"}, []string{long, "y" + long[1:], "x" + long[1:], "x"}},
	} {
		var got []string
		s := splitter{line: func(_ time.Time, b []byte) { got = append(got, string(b)) }}
		for _, part := range c.in {
			s.add([]byte(part))
		}
		s.flush()
		if !slices.Equal(got, c.want) {
			t.Errorf("%.40q: got %d lines of %d bytes", c.in, len(got), len(strings.Join(got, "")))
		}
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add([]byte("a\nb\r\nc"), 2)
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		size = max(size, 1)
		var got bytes.Buffer
		s := splitter{line: func(_ time.Time, b []byte) { fmt.Fprintf(&got, "%s\n", b) }}
		for part := range slices.Chunk(text, size) {
			s.add(part)
		}
		s.flush()
		want := strings.ReplaceAll(string(text), "\r\n", "\n")
		if len(text) < maxLine && strings.TrimSuffix(strings.TrimSuffix(got.String(), "\n"), "\r") != strings.TrimSuffix(strings.TrimSuffix(want, "\n"), "\r") {
			t.Errorf("%q came out as %q", text, got.String())
		}
	})
}
