//go:build !race

package http1

import (
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/quaymaster/quaymaster/internal/wire"
)

func TestOneExchangeAllocatesNothing(t *testing.T) {
	exchange, end := conversation(t, browser)
	defer end()
	exchange()
	if n := testing.AllocsPerRun(500, exchange); n != 0 {
		t.Errorf("%v allocations for one exchange, want none", n)
	}
}

// TestIdleConnectionIsSmall counts what one idle connection holds: its goroutine's stack, the socket, and ours. The
// clients are bare descriptors, so that they do not count.
func TestIdleConnectionIsSmall(t *testing.T) {
	const n, limit = 500, 6650
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	to := ln.Addr().(*net.TCPAddr)
	sa := &syscall.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}
	o := &Options{Handle: echo, Settings: settings}
	infos := make([]wire.ConnInfo, n)
	fds := make([]int, n)
	var served sync.WaitGroup
	before := memory()
	for i := range n {
		if fds[i], err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Connect(fds[i], sa); err != nil {
			t.Fatal(err)
		}
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		served.Add(1)
		go func() {
			defer served.Done()
			_ = Serve(s, &infos[i], nil, o)
			_ = s.Close()
		}()
		p := make([]byte, 4096)
		if _, err := syscall.Write(fds[i], []byte(browser)); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Read(fds[i], p); err != nil {
			t.Fatal(err)
		}
		for wire.ConnState(infos[i].State.Load()) != wire.Idle {
			runtime.Gosched()
		}
	}
	per := (memory() - before) / n
	t.Logf("%d bytes for one idle connection", per)
	if per > limit {
		t.Errorf("%d bytes for one idle connection, want at most %d", per, limit)
	}
	for _, fd := range fds {
		_ = syscall.Close(fd)
	}
	served.Wait()
}

// memory is what is in use behind garbage collections, which also shrink stacks and empty pools.
func memory() int {
	var m runtime.MemStats
	for range 4 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}
