package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
)

// The clocks and sizes of Lines: it writes when this much is waiting or this long after the first waiting line.
const (
	flushSize  = 32 << 10
	flushAfter = 250 * time.Millisecond
	holdMost   = 1 << 20 // bytes kept while the reader is slow
	complain   = 10 * time.Second
)

// LinesOptions say where lines go.
type LinesOptions struct {
	File string       // appended to, made with mode 0640; "" = Out
	Out  io.Writer    // nil: os.Stdout
	Hold int          // bytes kept while the reader is slow; 0 = 1 MiB
	Log  *slog.Logger // told about lost lines, at most once in ten seconds; nil: nobody is
}

// Lines is a writer of whole lines that never makes its caller wait: Write copies the line and Run writes it out. What
// does not fit, because the reader is slow or the disk is full, is dropped and counted.
type Lines struct {
	o LinesOptions

	mu      sync.Mutex // guards what follows; never held while writing
	waiting []byte     // whole lines that Run has not taken
	spare   []byte     // the other buffer, while Run does not write from it
	count   uint64     // lines in waiting
	dropped uint64
	closed  bool
	fault   error // of the last write

	wake chan struct{} // the first line is waiting
	full chan struct{} // flushSize is waiting, or Close was called
	done chan struct{} // Run has ended

	outMu sync.Mutex // guards out; held while writing
	out   io.Writer
	file  *os.File // out, when it is ours to close
}

// LinesStatus is what became of the lines so far.
type LinesStatus struct {
	Dropped uint64 // lines lost
	Err     error  // why the newest write did not succeed; nil when it did
}

// NewLines opens the file, if one is named. Nothing is written until Run is called.
func NewLines(o LinesOptions) (*Lines, error) {
	if o.Hold <= 0 {
		o.Hold = holdMost
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	l := &Lines{
		o: o, out: o.Out, wake: make(chan struct{}, 1), full: make(chan struct{}, 1), done: make(chan struct{}),
		waiting: make([]byte, 0, 2*flushSize), spare: make([]byte, 0, 2*flushSize),
	}
	if o.File != "" {
		f, err := openLines(o.File)
		if err != nil {
			return nil, err
		}
		l.file, l.out = f, f
	}
	return l, nil
}

// openLines opens a log file. O_NONBLOCK keeps a FIFO that nobody reads from holding the caller.
func openLines(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, fmt.Errorf("cannot write the access log: %w; check the folder and its rights", err)
	}
	return f, nil
}

// Write takes one or more whole lines, each with its line feed. It copies p and never waits; it always reports success,
// since the caller can do nothing about a lost line.
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	if l.closed || len(l.waiting)+len(p) > l.o.Hold {
		l.dropped++
		l.mu.Unlock()
		return len(p), nil
	}
	before := len(l.waiting)
	l.waiting = append(l.waiting, p...)
	l.count++
	after := len(l.waiting)
	l.mu.Unlock()
	if before == 0 {
		signal(l.wake)
	}
	if before < flushSize && after >= flushSize {
		signal(l.full)
	}
	return len(p), nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run writes lines out until ctx ends or Close is called; what is waiting then is still written.
func (l *Lines) Run(ctx context.Context) error {
	defer close(l.done)
	timer := time.NewTimer(flushAfter)
	timer.Stop()
	defer timer.Stop()
	var told time.Time
	var toldOf uint64
	for {
		stop := false
		select {
		case <-l.wake:
			timer.Reset(flushAfter)
			continue
		case <-timer.C:
		case <-l.full:
		case <-ctx.Done():
			stop = true
			l.Close()
		}
		more := l.flush()
		if s := l.Status(); l.o.Log != nil && s.Dropped > toldOf && time.Since(told) > complain {
			l.o.Log.Warn("access log lines lost", "lines", s.Dropped-toldOf, "err", s.Err)
			told, toldOf = time.Now(), s.Dropped
		}
		if stop || !more {
			return nil
		}
	}
}

// flush writes what is waiting and reports false once the lines were closed before.
func (l *Lines) flush() bool {
	l.mu.Lock()
	buf, n, open := l.waiting, l.count, !l.closed
	l.waiting, l.spare, l.count = l.spare[:0], nil, 0
	l.mu.Unlock()
	var err error
	if len(buf) > 0 {
		l.outMu.Lock()
		_, err = l.out.Write(buf)
		l.outMu.Unlock()
	}
	if cap(buf) > 8*flushSize {
		buf = make([]byte, 0, 2*flushSize) // one slow moment shall not cost memory for good
	}
	l.mu.Lock()
	l.spare, l.fault = buf[:0], err
	if err != nil {
		l.dropped += n
	}
	l.mu.Unlock()
	return open
}

// Reopen opens the file anew, for a log that was rotated away. On an error the old file stays in use.
func (l *Lines) Reopen() error {
	if l.o.File == "" {
		return nil
	}
	f, err := openLines(l.o.File)
	if err != nil {
		return err
	}
	l.outMu.Lock()
	old := l.file
	if old == nil {
		l.outMu.Unlock()
		return errors.Join(os.ErrClosed, f.Close())
	}
	l.file, l.out = f, f
	l.outMu.Unlock()
	return old.Close()
}

// Status says how many lines were lost and why.
func (l *Lines) Status() LinesStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LinesStatus{Dropped: l.dropped, Err: l.fault}
}

// Close takes no more lines and asks Run to write what is waiting and end.
func (l *Lines) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	signal(l.full)
}

// Wait returns when Run has ended, and then closes the file. A reader that takes nothing can hold Run for ever; ctx
// bounds the wait.
func (l *Lines) Wait(ctx context.Context) error {
	select {
	case <-l.done:
	case <-ctx.Done():
		return fmt.Errorf("access log: its reader takes nothing: %w", ctx.Err())
	}
	l.outMu.Lock()
	defer l.outMu.Unlock()
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file, l.out = nil, io.Discard
	return f.Close()
}

// Discard closes the file of lines whose Run was never called; what was written to them is lost.
func (l *Lines) Discard() {
	l.Close()
	l.outMu.Lock()
	defer l.outMu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
		l.file, l.out = nil, io.Discard
	}
}
