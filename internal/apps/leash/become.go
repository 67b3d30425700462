package leash

import (
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// Become makes this process the leash of a program: path, and its arguments from the name on. It returns when nothing of
// the program is left, with the exit code for this process.
func Become(path string, argv []string) int {
	orders, said := os.NewFile(linkFD, "orders"), os.NewFile(newsFD, "news")
	if orders == nil || said == nil || len(argv) == 0 {
		return 2
	}
	syscall.CloseOnExec(linkFD)
	syscall.CloseOnExec(newsFD)
	tell := json.NewEncoder(said)
	// What the terminal sends is for the program. Caught, not ignored: what is ignored would be ignored by it too.
	signals := make(chan os.Signal, 8)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGPIPE} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	runtime.LockOSThread() // the program dies with this thread, should somebody kill us
	adopt()
	p, err := os.StartProcess(path, argv, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: attributes()})
	if err != nil {
		var at *os.PathError
		if errors.As(err, &at) {
			err = at.Err
		}
		_ = tell.Encode(news{Error: err.Error()})
		return 1
	}
	if tell.Encode(news{PID: p.Pid}) != nil {
		_ = syscall.Kill(p.Pid, syscall.SIGKILL) // nobody is there any more
	}
	k := &keeper{pid: p.Pid, exit: make(chan syscall.WaitStatus, 1), gone: make(chan struct{})}
	go k.reap()
	return k.keep(listen(orders), signals, tell)
}

// listen hands on the orders; when who gives them is gone, that is one too.
func listen(orders *os.File) <-chan Order {
	out := make(chan Order, 8)
	go func() {
		var b [1]byte
		for {
			if n, err := orders.Read(b[:]); n == 0 || err != nil {
				out <- Term
				return
			}
			out <- Order(b[0])
		}
	}()
	return out
}

// keeper waits for a program and all that it has started.
type keeper struct {
	pid  int
	exit chan syscall.WaitStatus // of the program, once
	gone chan struct{}           // closed when nothing is left
}

// reap waits for every child, also those that were left to us.
func (k *keeper) reap() {
	defer close(k.gone)
	for {
		var s syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &s, 0, nil)
		switch {
		case pid == k.pid && err == nil && (s.Exited() || s.Signaled()):
			k.exit <- s
		case errors.Is(err, syscall.EINTR), err == nil:
		default:
			return // no child is left
		}
	}
}

// keep obeys orders until nothing is left.
func (k *keeper) keep(orders <-chan Order, signals <-chan os.Signal, tell *json.Encoder) int {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	at := Order(0) // the strongest that was obeyed
	do := func(o Order, then time.Duration) {
		at = o
		timer.Reset(then)
		switch o {
		case Term:
			k.send(syscall.SIGTERM, syscall.SIGCONT) // also one that the terminal has stopped
		case Kill:
			k.send(syscall.SIGKILL)
		}
	}
	pauses := map[Order]time.Duration{Expect: Natural, Term: Grace, Kill: again}
	code := 0
	for {
		select {
		case <-k.gone:
			return k.last(code, tell)
		case s := <-k.exit:
			code = k.told(s, tell)
			if at == 0 && k.left() {
				do(Term, Rest)
			}
		case o := <-orders:
			if o > at && o <= Kill {
				do(o, pauses[o])
			}
		case s := <-signals:
			if s == syscall.SIGTERM && at < Term {
				do(Term, Grace)
			}
		case <-timer.C:
			if at > 0 {
				o := min(at+1, Kill) // KILL again and again: something may have been born at the moment
				do(o, pauses[o])
			}
		}
	}
}

// told says how the program ended.
func (k *keeper) told(s syscall.WaitStatus, tell *json.Encoder) int {
	n := news{Ended: true, Code: s.ExitStatus()}
	if s.Signaled() {
		n.Code, n.Signal = -1, int(s.Signal())
	}
	_ = tell.Encode(n) // nobody may be there any more
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// last makes sure that the end of the program was told, and ends what the system does not show as ours.
func (k *keeper) last(code int, tell *json.Encoder) int {
	select {
	case s := <-k.exit:
		code = k.told(s, tell)
	default:
	}
	k.sweep()
	return code
}
