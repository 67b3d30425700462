// Package leash runs a program that ends when the one who runs it does, in whatever way that happens.
//
// It promises that a hidden verb of our own binary stands between the two: it holds one end of a pipe, and when the other
// end is gone, also by SIGKILL, it ends the program and all that the program has started. On Linux it is the reaper of
// all those, so that none of them gets away by a session or a process group of its own; elsewhere the program leads a
// process group, and that group is ended. The program has the terminal, the environment and the folder of the one who
// runs it. Nothing else is ever signalled, and nothing is started again.
package leash

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// The clocks of an end.
const (
	Natural = 2 * time.Second // for a program that the terminal has told already
	Grace   = 8 * time.Second // from TERM to KILL
	Rest    = 2 * time.Second // from TERM to KILL for what a program has left behind
	again   = 50 * time.Millisecond
	linkFD  = 3 // of the leash: orders come in
	newsFD  = 4 // of the leash: what becomes of the program
)

// A Spec is a program to run.
type Spec struct {
	Launcher string   // our own program
	Args     []string // that make it call Become
	Path     string   // of the program, absolute
	Argv     []string // the first is the program's name
	Env      []string
	Dir      string
	In       *os.File // nil: nothing
	Out, Err *os.File
}

// news is what the leash says: first the pid or why there is none, at the end how the program ended.
type news struct {
	PID    int    `json:"pid,omitempty"`
	Error  string `json:"error,omitempty"`
	Code   int    `json:"code,omitempty"`
	Signal int    `json:"signal,omitempty"`
	Ended  bool   `json:"ended,omitempty"`
}

// An Exit is how a program ended.
type Exit struct {
	Code   int
	Signal syscall.Signal // 0: none
	Lost   bool           // the leash was ended by somebody; nobody knows what became of the program
}

// String is how a person is told.
func (e Exit) String() string {
	switch {
	case e.Lost:
		return "unknown: the process that watched it was killed"
	case e.Signal != 0:
		return fmt.Sprintf("signal %d (%v)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// OK reports whether it ended as programs do that are done.
func (e Exit) OK() bool { return !e.Lost && e.Signal == 0 && e.Code == 0 }

// A Leash is one program that runs.
type Leash struct {
	PID    int // of the program
	Keeper int // of the process above it, from which all descend that the program starts

	mu    sync.Mutex // guards what follows
	link  *os.File
	ended Exit
	done  chan struct{}
}

// Start runs the program and returns once it has begun, or why it has not.
func Start(s *Spec) (*Leash, error) {
	in := s.In
	if in == nil {
		null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		defer null.Close()
		in = null
	}
	orders, link, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer orders.Close()
	heard, said, err := os.Pipe()
	if err != nil {
		_ = link.Close()
		return nil, err
	}
	argv := append([]string{"quaymaster"}, s.Args...)
	argv = append(append(argv, "--", s.Path), s.Argv...)
	p, err := os.StartProcess(s.Launcher, argv, &os.ProcAttr{Dir: s.Dir, Env: s.Env, Files: []*os.File{in, s.Out, s.Err, orders, said}})
	_ = said.Close()
	if err != nil {
		_, _ = link.Close(), heard.Close()
		return nil, err
	}
	l := &Leash{link: link, done: make(chan struct{})}
	d := json.NewDecoder(heard)
	var first news
	if err := d.Decode(&first); err != nil || first.Error != "" {
		_, _ = link.Close(), heard.Close()
		_, _ = p.Wait()
		if first.Error != "" {
			return nil, errors.New(first.Error)
		}
		return nil, fmt.Errorf("our own binary ended too early: %w", err)
	}
	l.PID, l.Keeper = first.PID, p.Pid
	go l.watch(p, d, heard)
	return l, nil
}

// watch reads how the program ended, and waits for the leash.
func (l *Leash) watch(p *os.Process, d *json.Decoder, heard io.Closer) {
	defer close(l.done)
	e := Exit{Lost: true}
	for {
		var n news
		if d.Decode(&n) != nil {
			break
		}
		if n.Ended {
			e = Exit{Code: n.Code, Signal: syscall.Signal(n.Signal)}
		}
	}
	_ = heard.Close()
	_, _ = p.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = e
	_ = l.link.Close()
	l.link = nil
}

// Done is closed when the program and all that it started have ended.
func (l *Leash) Done() <-chan struct{} { return l.done }

// Exit is how the program ended, after Done.
func (l *Leash) Exit() Exit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// An Order is what a leash is told.
type Order byte

// The orders, each stronger than the one before.
const (
	Expect Order = 1 + iota // the terminal has told the program: TERM if it has not ended after Natural
	Term                    // TERM, and KILL after Grace
	Kill                    // KILL
)

// Stop ends the program, in the way of the order. It does not wait.
func (l *Leash) Stop(o Order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link != nil {
		_, _ = l.link.Write([]byte{byte(o)}) // a leash that is gone has ended it
	}
}
