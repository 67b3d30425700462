package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// calls is a connection that keeps what each Write was given.
type calls struct {
	net.Conn
	writes []string
}

func (c *calls) Write(p []byte) (int, error) {
	c.writes = append(c.writes, string(p))
	return len(p), nil
}

func (c *calls) SetWriteDeadline(time.Time) error { return nil }

func TestSmallMessagesAreOneWrite(t *testing.T) {
	for _, c := range []struct {
		name    string
		f       Framing
		n       int64
		writes  []string
		trailer []Field
		want    string
	}{
		{"no body", NoBody, 0, nil, nil, "HEAD"},
		{"length", ByLength, 5, []string{"he", "llo"}, nil, "HEADhello"},
		{"empty", ByLength, 0, nil, nil, "HEAD"},
		{"chunks", ByChunks, -1, []string{"he", "", "llo"}, nil, "HEAD2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"},
		{"no chunks", ByChunks, -1, nil, nil, "HEAD0\r\n\r\n"},
		{"trailers", ByChunks, -1, []string{"hello"}, []Field{{b("A"), b("1\n2")}, {b("Host"), b("x")}, {b("Content-Length"), b("3")}}, "HEAD5\r\nhello\r\n0\r\nA: 1 2\r\n\r\n"},
		{"until close", ByClose, -1, []string{"hello"}, nil, "HEADhello"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var k calls
			var w BodyWriter
			w.Start(&k, b("HEAD"), c.f, c.n)
			for _, s := range c.writes {
				if n, err := w.Write(b(s)); n != len(s) || err != nil {
					t.Fatal(n, err)
				}
			}
			if len(k.writes) != 0 {
				t.Errorf("%q was not held back", k.writes)
			}
			if err := w.Close(c.trailer); err != nil {
				t.Fatal(err)
			}
			if len(k.writes) != 1 || k.writes[0] != c.want {
				t.Errorf("wrote %q, want %q", k.writes, c.want)
			}
			if w.Done() != (c.f != ByClose) || w.hold != nil {
				t.Errorf("done %v, buffer kept %v", w.Done(), w.hold != nil)
			}
		})
	}
}

func TestLargeWritesGoOutWithTheHeadAndUncopied(t *testing.T) {
	here, there := pair(t)
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<12) // 64 KiB
	for _, c := range []struct {
		f    Framing
		n    int64
		want string
	}{
		{ByLength, 2 * int64(len(large)), "HEAD" + string(large) + string(large)},
		{ByChunks, -1, "HEAD10000\r\n" + string(large) + "\r\n10000\r\n" + string(large) + "\r\n0\r\n\r\n"},
	} {
		got := make(chan []byte)
		go func() {
			p := make([]byte, len(c.want))
			n, _ := io.ReadFull(there, p)
			got <- p[:n]
		}()
		var w BodyWriter
		w.Start(here, b("HEAD"), c.f, c.n)
		for range 2 {
			if _, err := w.Write(large); err != nil {
				t.Fatal(err)
			}
			if len(w.out) != 0 {
				t.Errorf("%d bytes held back behind a large write", len(w.out))
			}
		}
		if err := w.Close(nil); err != nil || !w.Done() {
			t.Fatal(err)
		}
		if p := <-got; string(p) != c.want {
			t.Errorf("%v: %d bytes arrived, want %d", c.f, len(p), len(c.want))
		}
	}
}

func TestWhatWasAnnouncedIsWhatIsWritten(t *testing.T) {
	var k calls
	var w BodyWriter
	w.Start(&k, b("HEAD"), ByLength, 3)
	if _, err := w.Write(b("four")); err == nil {
		t.Error("took more than was announced")
	}
	if _, err := w.Write(b("ab")); err != nil {
		t.Error(err)
	}
	if err := w.Close(nil); err == nil || w.Done() {
		t.Error("took the early end for an end")
	}
	w.Start(&k, b("HEAD"), NoBody, 0)
	if _, err := w.Write(b("a")); err == nil {
		t.Error("wrote a body where there is none")
	}
	if err := w.Close(nil); err != nil || !w.Done() {
		t.Error(err)
	}
	if _, err := w.Write(b("a")); err == nil {
		t.Error("wrote behind the end")
	}
}

func TestResetIsAReset(t *testing.T) {
	here, there := pair(t)
	var w BodyWriter
	w.Start(here, b("HEAD"), ByChunks, -1)
	_, _ = w.Write(b("x"))
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	w.Reset(errors.New("target left"))
	if w.Done() || w.Close(nil) == nil {
		t.Error("a reset message counts as ended well")
	}
	here.Close()
	if _, err := io.ReadAll(there); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the receiver saw %v", err)
	}
}

func TestSwitchedConnectionIsHalfClosed(t *testing.T) {
	here, there := pair(t)
	var w BodyWriter
	w.Start(here, b("101"), ByClose, -1)
	c, ok := w.Raw()
	if !ok || c != here {
		t.Fatal("no raw connection")
	}
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(there); string(got) != "101" || err != nil {
		t.Fatalf("%q %v", got, err)
	}
	if _, err := io.WriteString(there, "back"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if _, err := io.ReadFull(here, p); err != nil {
		t.Error("the other direction ended too:", err)
	}
}

// fillUp writes until the receiver takes no more.
func fillUp(w *BodyWriter) error {
	large := make([]byte, 1<<20)
	for {
		if _, err := w.Write(large); err != nil {
			return err
		}
	}
}

func TestWriteDeadlinesStrike(t *testing.T) {
	here, _ := pair(t)
	var w BodyWriter
	w.Start(here, b("HEAD"), ByClose, -1)
	w.Deadline(time.Now().Add(10 * time.Millisecond))
	w.Deadline(time.Now().Add(100 * time.Millisecond))
	began := time.Now()
	if err := fillUp(&w); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if d := time.Since(began); d < 90*time.Millisecond {
		t.Errorf("struck after %v", d)
	}
}

func TestStallEndsAWriteThatNobodyTakes(t *testing.T) {
	here, _ := pair(t)
	var k Clock
	k.Start(here, true)
	var w BodyWriter
	w.Start(here, b("HEAD"), ByClose, -1)
	w.Share(&k, 50*time.Millisecond)
	if err := fillUp(&w); !errors.Is(err, os.ErrDeadlineExceeded) || w.Done() {
		t.Error(err)
	}
}

func TestAnotherGoroutineEndsAWriteThatWaits(t *testing.T) {
	here, _ := pair(t)
	var w BodyWriter
	w.Start(here, b("HEAD"), ByClose, -1)
	over := make(chan error)
	go func() { over <- fillUp(&w) }()
	w.Deadline(time.Unix(1, 0))
	if err := <-over; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestSlowReceiverThatMovesOutlivesTheStall(t *testing.T) {
	here, there := pair(t)
	const size = 64 << 20
	over := make(chan int64)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		p, total := make([]byte, 512<<10), int64(0)
		for {
			<-tick.C
			n, err := there.Read(p)
			if total += int64(n); err != nil {
				over <- total
				return
			}
		}
	}()
	var k Clock
	k.Start(here, true)
	var w BodyWriter
	w.Start(here, nil, ByLength, size)
	w.Share(&k, 400*time.Millisecond)
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Error(err)
	}
	if err := w.Close(nil); err != nil {
		t.Error(err)
	}
	here.Close()
	if n := <-over; n != size {
		t.Errorf("%d bytes arrived", n)
	}
}
