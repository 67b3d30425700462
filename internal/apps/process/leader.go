package process

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/apps/run"
)

// leader is the process that was started: pid, process group and session are one number. While a child of ours is not
// reaped, no other process can have it, nor can a group.
type leader struct {
	pid    int
	begun  uint64 // start time, in the unit of the kernel
	child  bool
	strict bool          // it ended long ago: who says to be of its group must have our output or our control group
	handle *os.File      // pidfd; nil where the system has none
	exited chan struct{} // closed when it has ended
	forget func()

	mu     sync.Mutex // guards what follows
	owner  *instance  // who reaps it; nil: watch does
	over   bool       // exited is closed
	reaped bool
	exit   run.Exit
	early  *run.Exit // where a child cannot be waited for without being reaped
}

func newLeader(pid int, child bool) *leader {
	l := &leader{pid: pid, child: child, exited: make(chan struct{}), handle: openHandle(pid), forget: func() {}}
	if child {
		l.begun, _ = startOf(pid) // a child has one as long as it is not reaped
	}
	return l
}

// watch waits for the end. It returns with the process, or with close.
func (l *leader) watch() {
	l.wait()
	l.mu.Lock()
	l.over = true
	close(l.exited)
	alone := l.owner == nil
	l.mu.Unlock()
	if alone {
		l.reap()
	}
}

// take makes i the one who reaps. It reports false when that was done.
func (l *leader) take(i *instance) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reaped {
		return false
	}
	l.owner = i
	return true
}

// drop is the reverse of take.
func (l *leader) drop(i *instance) {
	l.mu.Lock()
	if l.owner != i {
		l.mu.Unlock()
		return
	}
	l.owner = nil
	over := l.over
	l.mu.Unlock()
	if over {
		l.reap()
	}
}

// reap takes the status of the process, which has ended. The first call counts.
func (l *leader) reap() run.Exit {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reaped {
		return l.exit
	}
	l.reaped = true
	l.exit = run.Exit{Code: -1, Lost: true}
	switch {
	case l.early != nil:
		l.exit = *l.early
	case l.child:
		l.exit = status(l.pid)
	}
	l.close()
	l.forget()
	return l.exit
}

func (l *leader) close() {
	if l.handle != nil {
		_ = l.handle.Close()
	}
}

// status reaps a child that has ended.
func status(pid int) run.Exit {
	for {
		var s syscall.WaitStatus
		_, err := syscall.Wait4(pid, &s, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return run.Exit{Code: -1, Lost: true} // it went to somebody else, against all rules
		case s.Signaled():
			return run.Exit{Code: -1, Signal: s.Signal()}
		case s.Exited():
			return run.Exit{Code: s.ExitStatus()}
		}
	}
}

// signalGroup signals the process group. It reports false where the number may be another's by now.
func (l *leader) signalGroup(s syscall.Signal) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reaped || l.strict || !l.child && (l.over || l.ended()) {
		return false
	}
	if l.handle != nil && sendGroup(l.handle, s) {
		return true
	}
	return unix.Kill(-l.pid, s) == nil
}
