package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// bodyOf reads a body whose bytes come in the segments given, each from a Read of its own.
func bodyOf(f Framing, n int64, segments ...string) (*BodyReader, *Buffer) {
	buf := GetBuffer()
	r := new(BodyReader)
	r.Reset(&script{segments: segments}, buf, f, n, nil)
	return r, buf
}

// script is a connection that says its segments and ends.
type script struct {
	net.Conn
	segments []string
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.segments) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.segments[0])
	if s.segments[0] = s.segments[0][n:]; s.segments[0] == "" {
		s.segments = s.segments[1:]
	}
	return n, nil
}

func (s *script) SetReadDeadline(time.Time) error { return nil }

func split(s string) []string {
	out := make([]string, len(s))
	for i := range s {
		out[i] = s[i : i+1]
	}
	return out
}

func TestChunkedBodiesAreRead(t *testing.T) {
	for _, c := range []struct{ name, in, want, trailers, rest string }{
		{"one chunk", "5\r\nhello\r\n0\r\n\r\nnext", "hello", "", "next"},
		{"empty", "0\r\n\r\nnext", "", "", "next"},
		{"two chunks, hex", "a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n", "01234567890123456789a", "", ""},
		{"leading zeros", "0005\r\nhello\r\n000\r\n\r\n", "hello", "", ""},
		{"extensions", "5;a=b;c=\"d;e\"\r\nhello\r\n0 ;x\r\n\r\n", "hello", "", ""},
		{"trailers", "5\r\nhello\r\n0\r\nA: 1\r\nB:2\r\n\r\nnext", "hello", "A=1 B=2 ", "next"},
		{"forbidden trailers", "0\r\nContent-Length: 5\r\nHost: b\r\nTransfer-Encoding: chunked\r\nAuthorization: x\r\nX-Forwarded-For: y\r\nA: 1\r\n\r\n", "", "A=1 ", ""},
	} {
		for _, segments := range [][]string{{c.in}, split(c.in)} {
			for _, size := range []int{1, 3, 4096} {
				r, buf := bodyOf(ByChunks, -1, slices.Clone(segments)...)
				var got strings.Builder
				p := make([]byte, size)
				var err error
				for err == nil {
					var n int
					n, err = r.Read(p)
					got.Write(p[:n])
				}
				if !errors.Is(err, io.EOF) || got.String() != c.want || !r.Done() || r.Len() != 0 || r.Buffered() != -1 {
					t.Errorf("%s: %q %v done %v", c.name, got.String(), err, r.Done())
				}
				trailers := ""
				for _, f := range r.Trailer() {
					trailers += string(f.Name) + "=" + string(f.Value) + " "
				}
				if trailers != c.trailers {
					t.Errorf("%s: trailers %q", c.name, trailers)
				}
				if rest := string(buf.Bytes()); !strings.HasPrefix(c.rest, rest) || len(segments) == 1 && rest != c.rest {
					t.Errorf("%s: %q is left for the next message, want %q", c.name, rest, c.rest)
				}
				buf.Put()
			}
		}
	}
}

// TestH01_ChunkedBodiesWithTwoReadingsAreRefused holds the cases of H01 that a body shows.
func TestH01_ChunkedBodiesWithTwoReadingsAreRefused(t *testing.T) {
	for _, c := range []struct{ name, in string }{
		{"17 digits", "00000000000000005\r\nhello\r\n0\r\n\r\n"},
		{"64 bits", "ffffffffffffffff\r\nhello"},
		{"63 bits", "8000000000000000\r\nhello"},
		{"no digits", "\r\nhello\r\n0\r\n\r\n"},
		{"plus", "+5\r\nhello\r\n0\r\n\r\n"},
		{"0x", "0x5\r\nhello\r\n0\r\n\r\n"},
		{"space before the size", " 5\r\nhello\r\n0\r\n\r\n"},
		{"space behind the size", "5 \r\nhello\r\n0\r\n\r\n"},
		{"text behind the size", "5 a\r\nhello\r\n0\r\n\r\n"},
		{"bare LF behind the size", "5\nhello\r\n0\r\n\r\n"},
		{"bare LF behind the bytes", "5\r\nhello\n0\r\n\r\n"},
		{"bare CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"},
		{"NUL in an extension", "5;a\x00b\r\nhello\r\n0\r\n\r\n"},
		{"more bytes than said", "5\r\nhello!\r\n0\r\n\r\n"},
		{"extension of 5 KiB", "5;" + strings.Repeat("a", 5<<10) + "\r\nhello\r\n0\r\n\r\n"},
		{"extensions of 5 KiB together", strings.Repeat("1;"+strings.Repeat("a", 100)+"\r\nx\r\n", 50) + "0\r\n\r\n"},
		{"endless extension", "5;" + strings.Repeat("a", 1<<20)},
		{"endless digits", strings.Repeat("0", 1<<20)},
		{"folded trailer", "0\r\nA: 1\r\n 2\r\n\r\n"},
		{"trailer without a colon", "0\r\nA\r\n\r\n"},
		{"bare LF at the end", "0\r\n\n"},
		{"65 trailers", "0\r\n" + strings.Repeat("A: 1\r\n", 65) + "\r\n"},
		{"trailer of 20 KiB", "0\r\nA: " + strings.Repeat("a", 20<<10) + "\r\n\r\n"},
	} {
		t.Run("H01 "+c.name, func(t *testing.T) {
			for _, segments := range [][]string{{c.in}, split(c.in)} {
				r, buf := bodyOf(ByChunks, -1, slices.Clone(segments)...)
				_, err := io.Copy(io.Discard, struct{ io.Reader }{r})
				var p *ParseError
				if !errors.As(err, &p) || r.Done() {
					t.Errorf("%v, done %v; want a refusal", err, r.Done())
				}
				if cap(buf.b) > 64<<10 {
					t.Errorf("the buffer grew to %d bytes", cap(buf.b))
				}
				if _, err := r.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("Read behind the refusal: %v", err)
				}
			}
		})
	}
}

func TestBodiesThatEndTooEarly(t *testing.T) {
	for _, c := range []struct {
		f  Framing
		n  int64
		in string
	}{
		{ByLength, 6, "hello"},
		{ByChunks, -1, "5\r\nhel"},
		{ByChunks, -1, "5\r\nhello"},
		{ByChunks, -1, "5\r\nhello\r\n"},
		{ByChunks, -1, "5\r\nhello\r\n0\r\n"},
		{ByChunks, -1, "5\r\nhello\r\n0\r\nA: b\r\n"},
		{ByChunks, -1, ""},
	} {
		r, buf := bodyOf(c.f, c.n, c.in)
		if _, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) || r.Done() {
			t.Errorf("%q: %v, done %v", c.in, err, r.Done())
		}
		buf.Put()
	}
}

func TestBodyOfKnownLengthLeavesWhatFollows(t *testing.T) {
	buf := GetBuffer()
	defer buf.Put()
	buf.Append([]byte("HEADhel"))
	buf.Discard(4)
	c := &script{segments: []string{"lo, worldnext"}}
	var r BodyReader
	r.Reset(c, buf, ByLength, 12, nil)
	if r.Len() != 12 || r.Buffered() != 3 {
		t.Errorf("len %d buffered %d", r.Len(), r.Buffered())
	}
	got, err := io.ReadAll(struct{ io.Reader }{&r})
	if string(got) != "hello, world" || err != nil || !r.Done() {
		t.Errorf("%q %v", got, err)
	}
	if rest := c.segments[0]; rest != "next" {
		t.Errorf("%q is left on the connection", rest)
	}
}

func TestZeroBodyIsAtItsEnd(t *testing.T) {
	var r BodyReader
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) || !r.Done() || r.Len() != 0 || r.Buffered() != -1 {
		t.Error(n, err, r.Done(), r.Len(), r.Buffered())
	}
	if _, _, _, ok := r.Raw(); ok {
		t.Error("Raw of nothing")
	}
	r.Deadline(time.Now())
}

func TestTheHeadOutlivesTheReadingOfItsBody(t *testing.T) {
	head := "POST / HTTP/1.1\r\nHost: a.example\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n"
	body := strings.Repeat("3e8\r\n"+strings.Repeat("x", 1000)+"\r\n", 40) + "0\r\nT: v\r\n\r\nGET"
	buf := GetBuffer()
	buf.Append([]byte(head + body[:500]))
	var h Head
	n, _, err := ParseRequest(buf.Bytes(), 0, &h, manyFields)
	if err != nil {
		t.Fatal(err)
	}
	buf.Discard(n)
	var segments []string
	for rest := body[500:]; rest != ""; {
		n := min(777, len(rest))
		segments, rest = append(segments, rest[:n]), rest[n:]
	}
	var r BodyReader
	r.Reset(&script{segments: segments}, buf, ByChunks, -1, nil)
	got, err := io.ReadAll(struct{ io.Reader }{&r})
	if err != nil || len(got) != 40000 {
		t.Fatal(len(got), err)
	}
	want := "POST  a.example /|0 |minor 1 length -1 chunked\nA: b"
	if d := cmp.Diff(want, show(&h)); d != "" {
		t.Error(d)
	}
	if f := r.Trailer(); len(f) != 1 || string(f[0].Value) != "v" || string(buf.Bytes()) != "GET" {
		t.Errorf("trailers %q, rest %q", f, buf.Bytes())
	}
	if len(buf.b) != bufferSize {
		t.Errorf("the buffer grew to %d bytes", len(buf.b))
	}
}

func TestChunksAreGivenOutAsFarAsTheyAreThere(t *testing.T) {
	here, there := pair(t)
	buf := GetBuffer()
	defer buf.Put()
	var r BodyReader
	r.Reset(here, buf, ByChunks, -1, nil)
	p := make([]byte, 100)
	for _, c := range []struct{ in, want string }{{"1\r\na\r\n2\r\nbc\r\n4\r\nde", "abcde"}, {"fg\r", "fg"}, {"\n1\r\nh\r\n", "h"}} {
		if _, err := io.WriteString(there, c.in); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(p); string(p[:n]) != c.want || err != nil {
			t.Errorf("%q: read %q %v", c.in, p[:n], err)
		}
		if r.Buffered() != 0 {
			t.Errorf("%d bytes said to be there", r.Buffered())
		}
	}
}

func TestReadAsksForTheBodyOnceAndOnlyIfItMustWait(t *testing.T) {
	asked := 0
	buf := GetBuffer()
	defer buf.Put()
	buf.Append([]byte("ab"))
	var r BodyReader
	r.Reset(&script{segments: []string{"cd", "ef"}}, buf, ByLength, 6, func() error { asked++; return nil })
	p := make([]byte, 2)
	for i, want := range []int{0, 1, 1} {
		if _, err := r.Read(p); err != nil && !errors.Is(err, io.EOF) || asked != want {
			t.Errorf("read %d: %v, asked %d times", i, err, asked)
		}
	}
}

func TestRawHandsOverWhatIsBufferedAndHowMuchIsToCome(t *testing.T) {
	here, _ := pair(t)
	for _, c := range []struct {
		f        Framing
		n, left  int64
		held, by string
		rest     string
	}{
		{ByLength, 10, 10, "abc", "abc", ""}, {ByLength, 2, 2, "abc", "ab", "c"}, {ByClose, -1, -1, "abc", "abc", ""},
	} {
		buf := GetBuffer()
		buf.Append([]byte(c.held))
		var r BodyReader
		r.Reset(here, buf, c.f, c.n, nil)
		conn, head, n, ok := r.Raw()
		if !ok || conn != here || string(head) != c.by || n != c.left || !r.Done() || string(buf.Bytes()) != c.rest {
			t.Errorf("%v: %q %d %v, rest %q", c.f, head, n, ok, buf.Bytes())
		}
		r.Spoil()
		if _, err := r.Read(make([]byte, 1)); r.Done() || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error("a spoiled body counts as read")
		}
		buf.Put()
	}
	buf := GetBuffer()
	defer buf.Put()
	var r BodyReader
	r.Reset(here, buf, ByChunks, -1, nil)
	if _, _, _, ok := r.Raw(); ok || r.Done() {
		t.Error("chunks were handed over raw")
	}
}

func TestReadDeadlinesMoveAndStrike(t *testing.T) {
	here, there := pair(t)
	buf := GetBuffer()
	defer buf.Put()
	var r BodyReader
	r.Reset(here, buf, ByClose, -1, nil)
	p := make([]byte, 1)

	r.Deadline(time.Now().Add(30 * time.Millisecond))
	r.Deadline(time.Now().Add(150 * time.Millisecond)) // the connection still has the first one
	began := time.Now()
	if _, err := r.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if d := time.Since(began); d < 140*time.Millisecond {
		t.Errorf("struck after %v", d)
	}

	r.Deadline(time.Time{})
	if _, err := io.WriteString(there, "x"); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(p); n != 1 || err != nil {
		t.Fatalf("behind a cleared deadline: %d %v", n, err)
	}

	r.Deadline(time.Now().Add(time.Hour))
	over := make(chan error)
	go func() {
		_, err := r.Read(p)
		over <- err
	}()
	r.Deadline(time.Unix(1, 0)) // from another goroutine, while Read waits or is about to
	if err := <-over; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestForeignReadDeadlineIsHonoured(t *testing.T) {
	here, _ := pair(t)
	buf := GetBuffer()
	defer buf.Put()
	var r BodyReader
	r.Reset(here, buf, ByClose, -1, nil)
	r.Deadline(time.Now().Add(time.Hour))
	if err := here.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestStallBoundsAWaitThatNobodyBounds(t *testing.T) {
	here, there := pair(t)
	buf := GetBuffer()
	defer buf.Put()
	var k Clock
	k.Start(here, false)
	var r BodyReader
	r.Reset(here, buf, ByLength, 10, nil)
	r.Share(&k, 500*time.Millisecond)
	p := make([]byte, 10)
	for range 3 { // moves, and so lives longer than one stall
		tick := time.NewTimer(200 * time.Millisecond)
		go func() {
			<-tick.C
			_, _ = io.WriteString(there, "x")
		}()
		if n, err := r.Read(p); n != 1 || err != nil {
			t.Fatalf("%d %v", n, err)
		}
	}
	if _, err := r.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// TestNoInterruptIsLost lets a deadline in the past meet a Read and a Write at any moment.
func TestNoInterruptIsLost(t *testing.T) {
	for i := range 300 {
		here, there := pair(t)
		buf := GetBuffer()
		var in, out Clock
		in.Start(here, false)
		out.Start(here, true)
		if i%2 == 0 {
			in.Set(time.Now().Add(2 * time.Hour)) // what an idle connection had
		}
		var r BodyReader
		r.Reset(here, buf, ByLength, 10, nil)
		r.Share(&in, time.Hour)
		var w BodyWriter
		w.Start(here, nil, ByClose, -1)
		w.Share(&out, time.Hour)
		over := make(chan error, 2)
		go func() {
			_, err := r.Read(make([]byte, 1))
			over <- err
		}()
		go func() { over <- fillUp(&w) }()
		for range i % 50 {
			runtime.Gosched()
		}
		r.Deadline(time.Unix(1, 0))
		w.Deadline(time.Unix(1, 0))
		for range 2 {
			if err := <-over; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		}
		buf.Put()
		_ = here.Close()
		_ = there.Close()
	}
}

func TestHandedUntilSaidWhatBecameOfIt(t *testing.T) {
	c, s := pair(t)
	defer c.Close()
	defer s.Close()
	var r BodyReader
	for name, end := range map[string]func(){"landed": r.Landed, "spoiled": r.Spoil} {
		b := GetBuffer()
		r.Reset(s, b, ByLength, 10, nil)
		if r.Handed() {
			t.Error("handed before Raw")
		}
		if _, _, _, ok := r.Raw(); !ok || !r.Done() || !r.Handed() {
			t.Errorf("after Raw: %v, done %v, handed %v", ok, r.Done(), r.Handed())
		}
		if end(); r.Handed() || r.Done() != (name == "landed") {
			t.Errorf("%s: handed %v, done %v", name, r.Handed(), r.Done())
		}
		r.Release()
		b.Put()
	}
}
