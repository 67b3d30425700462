package plan

import (
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// processorTime is what this process has had of the processors: neighbours do not count.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// echoes counts how often a byte goes to another goroutine and back through pipes while one goroutine computes with the
// only processor and calls take for each item.
func echoes(t *testing.T, take func()) (n int) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	thereOut, thereIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	backOut, backIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	asked, answered := make(chan int), make(chan struct{})
	go func() {
		defer close(answered)
		defer backIn.Close()
		b := make([]byte, 1)
		for {
			if _, err := thereOut.Read(b); err != nil {
				return
			}
			if _, err := backIn.Write(b); err != nil {
				return
			}
		}
	}()
	go func() {
		count, b := 0, make([]byte, 1)
		for {
			if _, err := thereIn.Write(b); err != nil {
				break
			}
			if _, err := backOut.Read(b); err != nil {
				break
			}
			count++
		}
		asked <- count
	}()
	for began, x := processorTime(t), 1; processorTime(t)-began < 200*time.Millisecond; take() {
		for range 1000 {
			x = x*3 + 1
		}
	}
	thereIn.Close()
	n = <-asked
	<-answered
	thereOut.Close()
	backOut.Close()
	return n
}

func TestBreath_TheNetworkIsServedWhileSomebodyComputes(t *testing.T) {
	var b Breath
	defer b.End()
	if n := echoes(t, b.Take); n < 40 {
		t.Errorf("%d echoes in 200 ms of computing", n)
	}
	b.End()
	if n := echoes(t, b.Take); n < 40 {
		t.Errorf("%d echoes after End", n)
	}
}

func TestBreath_WithoutAPipe(t *testing.T) {
	b := Breath{failed: true} // as after an error of os.Pipe
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	ran := make(chan struct{})
	go close(ran)
	for range 4 { // the scheduler may choose us again once
		b.last = time.Time{}
		for range breathCalls {
			b.Take()
		}
	}
	select {
	case <-ran:
	default:
		t.Error("nobody else ran")
	}
	if b.in != nil {
		t.Error("it opened a pipe")
	}
	b.End()
}

func BenchmarkBreath(b *testing.B) {
	var breath Breath
	defer breath.End()
	for b.Loop() {
		breath.Take()
	}
}

func BenchmarkBreath_Wait(b *testing.B) {
	var breath Breath
	defer breath.End()
	for b.Loop() {
		breath.yield()
	}
}
