package process

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxLine  = 64 << 10 // bytes of a line that are passed on at once; longer ones come in parts
	readSize = 32 << 10
	pipeSize = 1 << 20 // that a FIFO may hold while no daemon reads it, where we may have so much
	lastMost = 8 << 20 // bytes that are read after the end, in case somebody still writes
	lastTime = 2 * time.Second
	halfLine = 100 * time.Millisecond // for the rest of a line, when another daemon is to read on
)

// pipes are the two FIFOs of an instance's output. The app has them open for reading as well, so that it is never told of
// a daemon that is gone: it goes on writing, and waits when they are full.
type pipes struct {
	base     string // path without .out and .err; "": there are none
	out, err *pipe
}

// newPipes makes the FIFOs of a new instance. They belong to its user, who could not open /dev/stdout otherwise.
func (r *Runner) newPipes(app string, u *account) (*pipes, error) {
	if err := os.MkdirAll(r.opt.Dir, 0o700); err != nil {
		return nil, err
	}
	var salt [6]byte
	_, _ = rand.Read(salt[:]) // never fails
	p := &pipes{base: filepath.Join(r.opt.Dir, app+"-"+hex.EncodeToString(salt[:]))}
	for _, path := range p.paths() {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			p.remove()
			return nil, fmt.Errorf("make a pipe for the output: %w", &os.PathError{Op: "mkfifo", Path: path, Err: err})
		}
		if u.other() {
			if err := os.Chown(path, u.uid, u.gid); err != nil {
				p.remove()
				return nil, err
			}
		}
	}
	return p, nil
}

func (p *pipes) paths() []string {
	if p.base == "" {
		return nil
	}
	return []string{p.base + ".out", p.base + ".err"}
}

// writers are the ends for the app: blocking, and of their own, so that ours can be otherwise.
func (p *pipes) writers() (out, errs *os.File, err error) {
	if out, err = openPipe(p.base+".out", 0); err != nil {
		return nil, nil, err
	}
	if errs, err = openPipe(p.base+".err", 0); err != nil {
		_ = out.Close()
		return nil, nil, err
	}
	if os.Geteuid() == 0 { // what others may have is counted for all their pipes together
		widen(out)
		widen(errs)
	}
	return out, errs, nil
}

func openPipe(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s is no pipe", path)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// open opens our ends. Those of an instance that cannot be heard are silent.
func (p *pipes) open() error {
	p.out, p.err = newPipe(), newPipe()
	if p.base == "" {
		return errors.New("no pipes are known")
	}
	for n, to := range []*pipe{p.out, p.err} {
		f, err := openPipe(p.paths()[n], unix.O_NONBLOCK)
		if err != nil {
			return err
		}
		to.file = f
	}
	return nil
}

// finish ends reading when everything that was written has been read.
func (p *pipes) finish() { p.each(func(one *pipe) { one.stop(true) }) }

// leave ends reading at once.
func (p *pipes) leave() { p.each(func(one *pipe) { one.stop(false) }) }

func (p *pipes) close() {
	p.each(func(one *pipe) {
		if one.file != nil {
			_ = one.file.Close()
		}
	})
}

func (p *pipes) each(f func(*pipe)) {
	for _, one := range []*pipe{p.out, p.err} {
		if one != nil {
			f(one)
		}
	}
}

// remove takes the FIFOs away.
func (p *pipes) remove() {
	p.close()
	for _, path := range p.paths() {
		_ = os.Remove(path) // another daemon may have been faster
	}
}

// pipe is one of them, as it is read here.
type pipe struct {
	file  *os.File // nil: nothing to read
	drain atomic.Bool
	ended chan struct{} // closed when the reader has ended
}

func newPipe() *pipe { return &pipe{ended: make(chan struct{})} }

// stop ends the reader and waits for it.
func (p *pipe) stop(drain bool) {
	p.drain.Store(drain)
	if p.file != nil {
		_ = p.file.SetReadDeadline(time.Unix(1, 0))
	}
	<-p.ended
}

// read passes lines on until stop.
func (p *pipe) read(line func(time.Time, []byte)) {
	defer close(p.ended)
	if p.file == nil {
		return
	}
	s := splitter{line: line}
	buf := make([]byte, readSize)
	for {
		n, err := p.file.Read(buf)
		s.add(buf[:n])
		if err != nil {
			break
		}
	}
	if p.drain.Load() {
		p.last(&s, buf)
	} else if len(s.part) > 0 {
		p.endOfLine(&s, buf[:1])
	}
	s.flush()
}

// endOfLine reads on to the end of a line that is half read, and not a byte further: what follows is the next reader's.
func (p *pipe) endOfLine(s *splitter, one []byte) {
	if p.file.SetReadDeadline(time.Now().Add(halfLine)) != nil {
		return
	}
	for range maxLine {
		if n, err := p.file.Read(one); n == 0 || err != nil {
			return
		}
		s.add(one)
		if one[0] == '\n' {
			return
		}
	}
}

// last reads what is still in the pipe, without waiting for more.
func (p *pipe) last(s *splitter, buf []byte) {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return
	}
	until := time.Now().Add(lastTime)
	_ = raw.Control(func(fd uintptr) {
		for left := lastMost; left > 0 && time.Now().Before(until); {
			n, err := unix.Read(int(fd), buf)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if err != nil || n <= 0 {
				return
			}
			s.add(buf[:n])
			left -= n
		}
	})
}

// splitter makes lines of what is written, whatever its portions were.
type splitter struct {
	line func(time.Time, []byte)
	part []byte // of a line whose end is yet to come
}

func (s *splitter) add(b []byte) {
	now := time.Now()
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		whole := end >= 0
		if !whole {
			end = len(b)
		}
		if room := maxLine - len(s.part); end > room {
			s.part, b = append(s.part, b[:room]...), b[room:]
			s.out(now)
			continue
		}
		s.part, b = append(s.part, b[:end]...), b[end:]
		if whole {
			b = b[1:]
			s.out(now)
		}
	}
}

// out passes on what there is, as a line.
func (s *splitter) out(now time.Time) {
	s.line(now, bytes.TrimSuffix(s.part, []byte{'\r'}))
	s.part = s.part[:0]
}

// flush passes on a last line without an end.
func (s *splitter) flush() {
	if len(s.part) > 0 {
		s.out(time.Now())
	}
	s.part = nil
}
