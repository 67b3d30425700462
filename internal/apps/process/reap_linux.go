package process

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const sweepEvery = 10 * time.Second

// sweeper is how process 1 of a container reaps what apps leave to it. Any other process is left nothing.
func (r *Runner) sweeper() (<-chan time.Time, func()) {
	if os.Getpid() != 1 {
		return nil, func() {}
	}
	t := time.NewTicker(r.every)
	return t.C, t.Stop
}

// sweep reaps zombies that nobody here waits for: those in a session that is not ours, since what other rooms start is in
// ours, which are no leader of an instance, and which were zombies a while ago, since a launch that comes to nothing reaps
// its own at once.
func (r *Runner) sweep() {
	session, err := unix.Getsid(0)
	if err != nil {
		return
	}
	all := r.table.since(time.Now().Add(-r.every / 2))
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.swept) < r.every/2 {
		return
	}
	r.swept = time.Now()
	before := r.zombies
	r.zombies = make(map[int]uint64)
	for pid, p := range all {
		if !p.dead || p.parent != os.Getpid() || p.session == session || r.ours[pid] != nil {
			continue
		}
		if begun, again := before[pid]; again && begun == p.begun {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // it is one, and stays one
			continue
		}
		r.zombies[pid] = p.begun
	}
}
