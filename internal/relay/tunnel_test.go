package relay

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var networks = []string{"tcp", "unix", "tcp-wrapped"}

// eachNetwork runs f with every combination of ends.
func eachNetwork(t *testing.T, f func(t *testing.T, client, target string)) {
	for _, c := range networks {
		for _, s := range networks {
			t.Run(c+" to "+s, func(t *testing.T) { f(t, c, s) })
		}
	}
}

func TestC07_HalfCloseKeepsTheOtherDirection(t *testing.T) {
	eachNetwork(t, func(t *testing.T, c, s string) {
		j := join(t, c, s, &Tunnel{Idle: time.Minute})
		send(t, j.client, "request")
		j.client.(interface{ CloseWrite() error }).CloseWrite()
		expect(t, j.target, "request")
		expectEOF(t, j.target)
		for i := range 3 {
			send(t, j.target, fmt.Sprint("answer", i))
			expect(t, j.client, fmt.Sprint("answer", i))
		}
		j.target.Close()
		expectEOF(t, j.client)
		r := j.wait(t)
		if want := (Result{7, 21, EOF}); r != want {
			t.Fatalf("%+v, want %+v", r, want)
		}
	})
}

func TestHalfCloseByTheTarget(t *testing.T) {
	eachNetwork(t, func(t *testing.T, c, s string) {
		j := join(t, c, s, &Tunnel{})
		j.target.(interface{ CloseWrite() error }).CloseWrite()
		expectEOF(t, j.client)
		send(t, j.client, "more")
		expect(t, j.target, "more")
		j.client.Close()
		expectEOF(t, j.target)
		j.wantCause(t, EOF)
	})
}

func TestC07_ResetGoesThrough(t *testing.T) {
	for _, side := range []Cause{ClientReset, TargetReset} {
		t.Run(side.String(), func(t *testing.T) {
			j := join(t, "tcp", "tcp", &Tunnel{})
			broken, other := j.client, j.target
			if side == TargetReset {
				broken, other = other, broken
			}
			send(t, broken, "x")
			expect(t, other, "x")
			broken.(*net.TCPConn).SetLinger(0)
			broken.Close()
			other.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("the other side sees %v, want a reset", err)
			}
			j.wantCause(t, side)
		})
	}
}

// fill writes to c until it takes nothing more, and returns how much it took.
func fill(t *testing.T, c net.Conn) (total int) {
	t.Helper()
	b := make([]byte, 64<<10)
	for {
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Write(b)
		total += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return total
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A target that answers and breaks off while the client still sends: what it said before still arrives.
func TestLastWordsOfABrokenSide(t *testing.T) {
	tun := &Tunnel{}
	j := join(t, "tcp", "tcp", tun)
	j.client.(*net.TCPConn).SetReadBuffer(128 << 10)
	fill(t, j.target)
	j.target.(*net.TCPConn).SetLinger(0)
	j.target.Close()
	send(t, j.client, "more")
	for lost := false; !lost; {
		tun.mu.Lock()
		lost = tun.lost || tun.done
		tun.mu.Unlock()
	}
	j.client.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.Copy(io.Discard, struct{ io.Reader }{j.client}); n < 1<<20 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client got %d bytes, then %v", n, err)
	}
	j.wantCause(t, TargetReset)
}

// A target that has said all and is gone answers further bytes with a reset, which must not overtake what it said.
func TestResetBehindAnEndDestroysNothing(t *testing.T) {
	tun := &Tunnel{}
	j := join(t, "tcp", "tcp", tun)
	j.client.(*net.TCPConn).SetReadBuffer(128 << 10)
	const size = 1 << 20
	if _, err := j.target.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	j.target.Close()
	for said := false; !said; {
		tun.mu.Lock()
		said = tun.p != nil && tun.p.down.ended
		tun.mu.Unlock()
	}
	send(t, j.client, "x") // goes out, and the reset comes back
	<-time.After(50 * time.Millisecond)
	send(t, j.client, "x") // finds it
	j.wantCause(t, TargetReset)
	j.client.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.Copy(io.Discard, struct{ io.Reader }{j.client}); n != size {
		t.Errorf("the client got %d bytes of %d, then %v", n, size, err)
	}
}

func TestHeadsGoFirst(t *testing.T) {
	eachNetwork(t, func(t *testing.T, c, s string) {
		sent := make(chan struct{})
		var up, down atomic.Int64
		tun := &Tunnel{Up: &up, Down: &down, Sent: func() { close(sent) }}
		tun.Client.Head, tun.Target.Head = []byte("hello "), []byte("banner ")
		j := join(t, c, s, tun)
		<-sent
		send(t, j.client, "world")
		expect(t, j.target, "hello world")
		send(t, j.target, "ok")
		expect(t, j.client, "banner ok")
		j.client.Close()
		j.target.Close()
		r := j.wait(t)
		if r.Up != 11 || r.Down != 9 || up.Load() != 11 || down.Load() != 9 {
			t.Fatalf("%+v, counters %d and %d", r, up.Load(), down.Load())
		}
	})
}

func TestC05_OneWayStreamOutlivesIdle(t *testing.T) {
	const idle = time.Second
	for _, dir := range []string{"up", "down"} {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			j := join(t, "tcp", "tcp", &Tunnel{Idle: idle})
			from, to := j.client, j.target
			if dir == "down" {
				from, to = to, from
			}
			tick := time.NewTicker(idle / 20)
			defer tick.Stop()
			for start := time.Now(); time.Since(start) < 3*idle; {
				<-tick.C
				send(t, from, "x")
				expect(t, to, "x")
			}
			start := time.Now()
			j.wantCause(t, Idle)
			if d := time.Since(start); d < idle*9/10 || d > 10*idle {
				t.Errorf("silence ended it after %v", d)
			}
		})
	}
}

func TestC05_SilenceEndsIt(t *testing.T) {
	eachNetwork(t, func(t *testing.T, c, s string) {
		j := join(t, c, s, &Tunnel{Idle: 80 * time.Millisecond})
		j.wantCause(t, Idle)
		expectEOF(t, j.client)
		expectEOF(t, j.target)
	})
}

func TestSilenceAfterHalfCloseEndsIt(t *testing.T) {
	j := join(t, "tcp", "tcp", &Tunnel{Idle: 80 * time.Millisecond})
	j.client.(*net.TCPConn).CloseWrite()
	j.wantCause(t, Idle)
}

// Both peers send and neither reads: nothing waits for reading, so the stall clock must end it.
func TestStallEndsIt(t *testing.T) {
	eachNetwork(t, func(t *testing.T, c, s string) {
		j := join(t, c, s, &Tunnel{Stall: 300 * time.Millisecond})
		done := make(chan struct{}, 2)
		for _, far := range []net.Conn{j.client, j.target} {
			go func() {
				b := make([]byte, 1<<16)
				for {
					if _, err := far.Write(b); err != nil {
						done <- struct{}{}
						return
					}
				}
			}()
		}
		j.wantCause(t, Stall)
		<-done
		<-done
	})
}

// A write deadline that passed while nothing was written means nothing.
func TestStallIsCountedFromTheWrite(t *testing.T) {
	eachNetwork(t, func(t *testing.T, c, s string) {
		j := join(t, c, s, &Tunnel{Stall: 50 * time.Millisecond})
		for range 3 {
			<-time.After(80 * time.Millisecond)
			send(t, j.client, "ping")
			expect(t, j.target, "ping")
			send(t, j.target, "pong")
			expect(t, j.client, "pong")
		}
		j.client.Close()
		j.target.Close()
		j.wantCause(t, EOF)
	})
}

func TestCutSendsFIN(t *testing.T) {
	eachNetwork(t, func(t *testing.T, c, s string) {
		j := join(t, c, s, &Tunnel{Idle: time.Hour})
		send(t, j.client, "x")
		expect(t, j.target, "x")
		j.Cut()
		j.wantCause(t, Cut)
		expectEOF(t, j.client)
		expectEOF(t, j.target)
		j.Cut()
	})
}

func TestCutBeforeRun(t *testing.T) {
	tun := &Tunnel{}
	tun.Cut()
	join(t, "tcp", "tcp", tun).wantCause(t, Cut)
}

func TestCutWhileStalled(t *testing.T) {
	eachNetwork(t, func(t *testing.T, c, s string) {
		var up atomic.Int64
		j := join(t, c, s, &Tunnel{Up: &up})
		written := make(chan struct{})
		go func() {
			defer close(written)
			b := make([]byte, 1<<20)
			for {
				j.client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
				if _, err := j.client.Write(b); err != nil {
					return
				}
			}
		}()
		<-written
		j.Cut()
		j.wantCause(t, Cut)
	})
}

func TestPastDeadlineFromOutsideCuts(t *testing.T) {
	for _, idle := range []time.Duration{0, time.Hour} {
		tun := &Tunnel{Idle: idle}
		j := join(t, "tcp", "tcp", tun)
		client, target := tun.Client.Conn, tun.Target.Conn
		send(t, j.client, "x")
		expect(t, j.target, "x")
		client.SetDeadline(time.Unix(1, 0))
		target.SetDeadline(time.Unix(1, 0))
		j.wantCause(t, Cut)
	}
}

func TestCloseFromOutsideCuts(t *testing.T) {
	tun := &Tunnel{}
	j := join(t, "tcp", "tcp", tun)
	client, target := tun.Client.Conn, tun.Target.Conn
	send(t, j.client, "x")
	expect(t, j.target, "x")
	client.Close()
	target.Close()
	j.wantCause(t, Cut)
}

// pour writes n random bytes and returns their sum.
func pour(c io.Writer, seed int64, n int64) (hash.Hash, error) {
	h := sha256.New()
	_, err := io.CopyN(io.MultiWriter(struct{ io.Writer }{c}, h), rand.New(rand.NewSource(seed)), n)
	return h, err
}

func TestMuchBothWaysArrivesWhole(t *testing.T) {
	for nets, n := range map[[2]string]int64{
		{"tcp", "tcp"}: 100 << 20, {"tcp", "unix"}: 16 << 20, {"tcp-wrapped", "tcp"}: 16 << 20,
	} {
		t.Run(nets[0]+" to "+nets[1], func(t *testing.T) {
			j := join(t, nets[0], nets[1], &Tunnel{Idle: 10 * time.Second})
			type outcome struct {
				what string
				sum  string
				err  error
			}
			out := make(chan outcome, 4)
			for i, c := range []net.Conn{j.client, j.target} {
				go func() {
					h, err := pour(c, int64(i), n)
					if err == nil {
						err = c.(interface{ CloseWrite() error }).CloseWrite()
					}
					out <- outcome{fmt.Sprint("sent ", i), fmt.Sprintf("%x", h.Sum(nil)), err}
				}()
				go func() {
					h := sha256.New()
					_, err := io.Copy(h, struct{ io.Reader }{c})
					out <- outcome{fmt.Sprint("got ", 1-i), fmt.Sprintf("%x", h.Sum(nil)), err}
				}()
			}
			sums := map[string]string{}
			for range 4 {
				o := <-out
				if o.err != nil {
					t.Fatal(o.what, o.err)
				}
				sums[o.what] = o.sum
			}
			if sums["sent 0"] != sums["got 0"] || sums["sent 1"] != sums["got 1"] {
				t.Fatalf("what arrived is not what was sent: %v", sums)
			}
			if r, want := j.wait(t), (Result{n, n, EOF}); r != want {
				t.Fatalf("%+v, want %+v", r, want)
			}
		})
	}
}

// Bursts of odd sizes go from copying to splicing and back; nothing is lost or turned round.
func TestBurstsArriveWhole(t *testing.T) {
	j := join(t, "tcp", "tcp", &Tunnel{Idle: 10 * time.Second})
	r := rand.New(rand.NewSource(1))
	sizes := []int{1, 16 << 10, 32 << 10, 33 << 10, 48 << 10, 100, 200 << 10, 64 << 10, 17 << 10}
	for range 200 {
		b := make([]byte, sizes[r.Intn(len(sizes))])
		r.Read(b)
		from, to := j.client, j.target
		if r.Intn(2) == 0 {
			from, to = to, from
		}
		go from.Write(b)
		expect(t, to, string(b))
	}
}

func TestManyTunnelsLeaveNoDescriptor(t *testing.T) {
	fds := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(d)
	}
	before := fds()
	for range 50 {
		j := join(t, "tcp", "tcp", &Tunnel{})
		send(t, j.client, "x")
		expect(t, j.target, "x")
		j.client.Close()
		j.target.Close()
		j.wait(t)
	}
	if after := fds(); after > before+2 {
		t.Fatalf("%d descriptors before, %d after", before, after)
	}
}

// What was written long ago may still be on its way to a slow client.
func TestC05_SlowClientOfASilentTargetIsNotIdle(t *testing.T) {
	const idle = 500 * time.Millisecond
	j := join(t, "tcp", "tcp", &Tunnel{Idle: idle})
	j.client.(*net.TCPConn).SetReadBuffer(128 << 10)
	if _, err := j.target.Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	b := make([]byte, 8<<10)
	for start := time.Now(); time.Since(start) < 4*idle; {
		<-tick.C
		if _, err := j.client.Read(b); err != nil {
			t.Fatal(err)
		}
		if len(j.result) > 0 {
			t.Fatalf("ended after %v: %+v", time.Since(start), j.wait(t))
		}
	}
	go io.Copy(io.Discard, j.client)
	j.wantCause(t, Idle)
}
