package relay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// hop is a body on its way from one socket to another, in HTTP/1.
type hop struct {
	from, to net.Conn // the far ends
	in, out  net.Conn
	body     wire.BodyReader
	sink     wire.BodyWriter
}

func newHop(t testing.TB, in wire.Framing, n int64, out wire.Framing, buffered string) *hop {
	h := new(hop)
	h.from, h.in = pairOf(t, "tcp")
	h.to, h.out = pairOf(t, "tcp")
	buf := wire.GetBuffer()
	buf.Append([]byte(buffered))
	t.Cleanup(buf.Put)
	h.body.Reset(h.in, buf, in, n, nil)
	h.sink.Start(h.out, []byte("HEAD\n"), out, n)
	return h
}

func (h *hop) run(f *Flow) chan error {
	done := make(chan error, 1)
	go func() {
		_, err := Body(&h.sink, &h.body, f)
		h.out.Close()
		done <- err
	}()
	return done
}

func (h *hop) received(t *testing.T) string {
	t.Helper()
	h.to.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(h.to)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestBodyOfEveryFraming(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
	for _, tc := range []struct {
		name     string
		in       wire.Framing
		n        int64
		out      wire.Framing
		wire     string
		want     string
		fin      bool
		buffered int
	}{
		{"empty", wire.NoBody, 0, wire.NoBody, "", "", false, 0},
		{"short", wire.ByLength, 5, wire.ByLength, "hello", "hello", false, 0},
		{"short in the buffer", wire.ByLength, 5, wire.ByLength, "hello", "hello", false, 5},
		{"long", wire.ByLength, int64(len(big)), wire.ByLength, big, big, false, 0},
		{"long with a head in the buffer", wire.ByLength, int64(len(big)), wire.ByLength, big, big, false, 3000},
		{"until EOF", wire.ByClose, -1, wire.ByClose, big, big, true, 100},
		{"until EOF to chunks", wire.ByClose, -1, wire.ByChunks, "hello", "5\r\nhello\r\n0\r\n\r\n", true, 0},
		{"chunks with trailer", wire.ByChunks, -1, wire.ByChunks, "5\r\nhello\r\n0\r\nA: b\r\n\r\n", "5\r\nhello\r\n0\r\nA: b\r\n\r\n", false, 0},
		{"chunks to close", wire.ByChunks, -1, wire.ByClose, "5\r\nhello\r\n0\r\n\r\n", "hello", false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHop(t, tc.in, tc.n, tc.out, tc.wire[:tc.buffered])
			var count atomic.Int64
			done := h.run(&Flow{Read: time.Minute, Write: time.Minute, Count: &count})
			go func() {
				io.WriteString(h.from, tc.wire[tc.buffered:])
				if tc.fin {
					h.from.(*net.TCPConn).CloseWrite()
				}
			}()
			if got := h.received(t); got != "HEAD\n"+tc.want {
				t.Fatalf("received %d bytes, want %d", len(got), len(tc.want)+5)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if !h.body.Done() || !h.sink.Ended() {
				t.Error("body or sink is not at its end")
			}
			if count.Load() == 0 && tc.want != "" {
				t.Error("nothing was counted")
			}
		})
	}
}

// What follows a spliced body on the same connection stays there.
func TestBodyTakesNotAByteMore(t *testing.T) {
	const size = 300 << 10
	h := newHop(t, wire.ByLength, size, wire.ByLength, "")
	done := h.run(&Flow{Read: time.Minute})
	go h.from.Write(append(make([]byte, size), "next"...))
	if got := h.received(t); len(got) != size+5 {
		t.Fatal(len(got))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	expect(t, h.in, "next")
}

func TestH06_FirstBytesGoAtOnce(t *testing.T) {
	for _, f := range []wire.Framing{wire.ByChunks, wire.ByClose} {
		h := newHop(t, wire.ByClose, -1, f, "")
		done := h.run(&Flow{Read: time.Minute, Write: time.Minute})
		expect(t, h.to, "HEAD\n")
		for _, event := range []string{"one", "two"} {
			send(t, h.from, event)
			want := event
			if f == wire.ByChunks {
				want = "3\r\n" + event + "\r\n"
			}
			expect(t, h.to, want)
		}
		h.from.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func wantSide(t *testing.T, err error, side Side, cause error) {
	t.Helper()
	var e *SideError
	if !errors.As(err, &e) || e.Side != side || !errors.Is(err, cause) {
		t.Fatalf("%v, want %v: %v", err, side, cause)
	}
}

// Each way a body can be moved: by hand, and by the kernel.
var ways = map[string]struct {
	framing wire.Framing
	n       int64
}{"copied": {wire.ByLength, 60 << 10}, "spliced": {wire.ByLength, 10 << 20}}

func TestBodyCutShort(t *testing.T) {
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			h := newHop(t, w.framing, w.n, w.framing, "")
			done := h.run(&Flow{Read: time.Minute})
			send(t, h.from, "only this")
			h.from.Close()
			wantSide(t, <-done, Source, io.ErrUnexpectedEOF)
			h.to.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.ReadAll(h.to); err == nil {
				t.Error("the receiver takes the message for a complete one")
			}
			if h.body.Done() {
				t.Error("the source claims that its connection can be used again")
			}
		})
	}
}

func TestC05_SilentSource(t *testing.T) {
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			h := newHop(t, w.framing, w.n, w.framing, "")
			done := h.run(&Flow{Read: 80 * time.Millisecond})
			wantSide(t, <-done, Source, ErrIdle)
		})
	}
}

// While the other direction moves, this one is not idle.
func TestC05_OtherDirectionKeepsItAlive(t *testing.T) {
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			const idle = 100 * time.Millisecond
			var seen Activity
			seen.Touch()
			h := newHop(t, w.framing, w.n, w.framing, "")
			start := time.Now()
			done := h.run(&Flow{Read: idle, Activity: &seen})
			tick := time.NewTicker(idle / 4)
			defer tick.Stop()
			for time.Since(start) < 5*idle {
				select {
				case err := <-done:
					t.Fatal(err)
				case <-tick.C:
					seen.Touch()
				}
			}
			wantSide(t, <-done, Source, ErrIdle)
		})
	}
}

func TestH11_SlowButMovingBodyLives(t *testing.T) {
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			const idle = 100 * time.Millisecond
			h := newHop(t, w.framing, w.n, w.framing, "")
			done := h.run(&Flow{Read: idle})
			expect(t, h.to, "HEAD\n")
			for range 15 {
				<-time.After(idle / 4)
				send(t, h.from, "x")
				expect(t, h.to, "x")
			}
			h.from.Close()
			wantSide(t, <-done, Source, io.ErrUnexpectedEOF)
		})
	}
}

func TestBodyStalledReceiver(t *testing.T) {
	for name, n := range map[string]int64{"copied": -1, "spliced": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			in, out := wire.ByLength, wire.ByLength
			if n < 0 {
				in, out = wire.ByClose, wire.ByChunks
			}
			h := newHop(t, in, n, out, "")
			done := h.run(&Flow{Write: 100 * time.Millisecond})
			go func() {
				for b := make([]byte, 1<<20); ; {
					if _, err := h.from.Write(b); err != nil {
						return
					}
				}
			}()
			err := <-done
			h.in.Close()
			wantSide(t, err, Dest, ErrStall)
		})
	}
}

func TestBodyReceiverGone(t *testing.T) {
	h := newHop(t, wire.ByLength, 1<<30, wire.ByLength, "")
	done := h.run(&Flow{Read: time.Minute})
	h.to.(*net.TCPConn).SetLinger(0)
	h.to.Close()
	go func() {
		for b := make([]byte, 1<<20); ; {
			if _, err := h.from.Write(b); err != nil {
				return
			}
		}
	}()
	err := <-done
	h.in.Close()
	var e *SideError
	if !errors.As(err, &e) || e.Side != Dest {
		t.Fatal(err)
	}
}

func TestDeadlineFromOutsideEndsBody(t *testing.T) {
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			h := newHop(t, w.framing, w.n, w.framing, "")
			done := h.run(&Flow{Read: time.Hour})
			send(t, h.from, "x")
			expect(t, h.to, "HEAD\nx")
			h.body.Deadline(time.Unix(1, 0))
			wantSide(t, <-done, Source, os.ErrDeadlineExceeded)
		})
	}
}

func TestBodyLeavesNoDeadline(t *testing.T) {
	const size = spliceFrom + 8<<10
	h := newHop(t, wire.ByLength, size, wire.ByLength, "")
	done := make(chan error, 1)
	go func() {
		_, err := Body(&h.sink, &h.body, &Flow{Read: 200 * time.Millisecond, Write: 200 * time.Millisecond})
		done <- err
	}()
	go h.from.Write(make([]byte, size))
	expect(t, h.to, "HEAD\n"+string(make([]byte, size)))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	<-time.After(300 * time.Millisecond)
	send(t, h.out, "more")
	expect(t, h.to, "more")
	send(t, h.from, "more")
	b := make([]byte, 4)
	if n, err := h.in.Read(b); n != 4 || err != nil {
		t.Fatal(n, err)
	}
}

func TestBodyIsUnchanged(t *testing.T) {
	h := newHop(t, wire.ByClose, -1, wire.ByClose, "")
	done := h.run(&Flow{Read: 10 * time.Second, Write: 10 * time.Second})
	sums := make(chan []byte, 1)
	go func() {
		sum, err := pour(h.from, 1, 64<<20)
		if err != nil {
			t.Error(err)
		}
		h.from.Close()
		sums <- sum.Sum(nil)
	}()
	expect(t, h.to, "HEAD\n")
	got := sha256.New()
	if _, err := io.Copy(got, struct{ io.Reader }{h.to}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), <-sums) {
		t.Error("what arrived is not what was sent")
	}
}

// small is a body that is wholly there, and the sink it goes to.
type small struct {
	text []byte
	n    int
}

func (s *small) Read(p []byte) (int, error) {
	n := copy(p, s.text[s.n:])
	if s.n += n; s.n == len(s.text) {
		return n, io.EOF
	}
	return n, nil
}

func (s *small) Buffered() int {
	if s.n == len(s.text) {
		return -1
	}
	return len(s.text) - s.n
}
func (s *small) Len() int64                               { return int64(len(s.text) - s.n) }
func (s *small) Trailer() []wire.Field                    { return nil }
func (s *small) Raw() (*net.TCPConn, []byte, int64, bool) { return nil, nil, 0, false }
func (s *small) Deadline(time.Time)                       {}

type swallow struct{ n, flushes int }

func (s *swallow) Write(p []byte) (int, error) { s.n += len(p); return len(p), nil }
func (s *swallow) Flush() error                { s.flushes++; return nil }
func (s *swallow) Raw() (*net.TCPConn, bool)   { return nil, false }
func (s *swallow) Deadline(time.Time)          {}
func (s *swallow) Close([]wire.Field) error    { return nil }
func (s *swallow) Reset(error)                 {}

func TestSmallBodyAllocatesNothingAndIsNotFlushed(t *testing.T) {
	src, dst := &small{text: []byte("hello")}, &swallow{}
	var seen Activity
	var count atomic.Int64
	f := &Flow{Read: time.Minute, Write: time.Minute, Activity: &seen, Count: &count}
	if n := testing.AllocsPerRun(1000, func() {
		src.n = 0
		if _, err := Body(dst, src, f); err != nil {
			t.Fatal(err)
		}
	}); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
	if dst.flushes != 0 || dst.n == 0 {
		t.Errorf("%d flushes, %d bytes", dst.flushes, dst.n)
	}
}

func BenchmarkSmallBody(b *testing.B) {
	src, dst := &small{text: make([]byte, 512)}, &swallow{}
	var seen Activity
	f := &Flow{Read: time.Minute, Write: time.Minute, Activity: &seen}
	b.ReportAllocs()
	for b.Loop() {
		src.n = 0
		Body(dst, src, f)
	}
}
