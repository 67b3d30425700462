package relay

import (
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxPipes bounds the pipes that exist at once: two descriptors each. Directions beyond that copy.
	maxPipes = 64
	// pipeSize is what a pipe is asked to hold; as an ordinary user the system may allow less.
	pipeSize = 1 << 20
	minPipe  = 64 << 10
	// pipeRest is how often pipes that nobody needed meanwhile are closed.
	pipeRest = time.Second
)

// A pipe is where spliced bytes stay between two sockets.
type pipe struct {
	r, w int
	size int
}

// pipes is of the process, like the memory its buffers come from: what it bounds is the process's descriptors.
var pipes = pipePool{want: pipeSize}

// pipePool lends empty pipes. Those that were not needed for pipeRest are closed, so that a quiet process holds none.
type pipePool struct {
	mu      sync.Mutex // guards the rest
	free    []*pipe
	made    int // lent and free
	low     int // fewest free since the last trim
	trimmer *time.Timer
	want    int
}

// take lends an empty pipe, nil when there is none to be had.
func (ps *pipePool) take() *pipe {
	ps.mu.Lock()
	if n := len(ps.free); n > 0 {
		p := ps.free[n-1]
		ps.free = ps.free[:n-1]
		ps.low = min(ps.low, n-1)
		ps.mu.Unlock()
		return p
	}
	if ps.made == maxPipes {
		ps.mu.Unlock()
		return nil
	}
	ps.made++
	want := ps.want
	ps.mu.Unlock()

	p, size := openPipe(want)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p == nil {
		ps.made--
	} else {
		ps.want = min(ps.want, max(size, minPipe))
	}
	return p
}

// put takes a pipe back; one that is not empty is closed.
func (ps *pipePool) put(p *pipe, empty bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if !empty {
		ps.made--
		p.close()
		return
	}
	ps.free = append(ps.free, p)
	if ps.trimmer == nil {
		ps.low = 0
		ps.trimmer = time.AfterFunc(pipeRest, ps.trim)
	}
}

// trim closes the pipes that were free all the time since it last came, and comes again while there are any.
func (ps *pipePool) trim() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.free[:ps.low] {
		p.close()
	}
	ps.made -= ps.low
	ps.free = append(ps.free[:0], ps.free[ps.low:]...)
	ps.low = len(ps.free)
	if ps.low == 0 && ps.made == 0 {
		ps.trimmer = nil
		return
	}
	ps.trimmer.Reset(pipeRest)
}

// openPipe makes a pipe of up to want bytes and tells its real size.
func openPipe(want int) (*pipe, int) {
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil, 0
	}
	for ; want > minPipe; want /= 2 {
		if _, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, want); err == nil {
			break
		}
	}
	size, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETPIPE_SZ, 0)
	if err != nil || size <= 0 {
		size = 4 << 10
	}
	return &pipe{fds[0], fds[1], size}, size
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// fill moves up to n bytes from a socket into the empty pipe. EAGAIN: none are there. 0: the socket has ended.
func (p *pipe) fill(fd, n int) (int, error) { return splice(fd, p.w, n) }

// drain moves up to n bytes from the pipe to a socket. EAGAIN: it takes none now.
func (p *pipe) drain(fd, n int) (int, error) { return splice(p.r, fd, n) }

func splice(from, to, n int) (int, error) {
	for {
		moved, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return int(max(moved, 0)), err
		}
	}
}

// unsent is how many bytes the kernel still holds for the peer, 0 where it does not tell.
func unsent(raw syscall.RawConn) (n int) {
	if raw == nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }) // fails only on a closed one
	return n
}
