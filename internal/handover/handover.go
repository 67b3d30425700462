// Package handover carries the belongings of a daemon to the process that takes its place: a socketpair that the new
// process inherits, and messages over it that may carry descriptors.
//
// It promises that nothing but the socketpair and the three standard descriptors is inherited, that every message is
// bounded and every wait ends, and that a descriptor which was received is closed on exec. It does not know what it
// carries, nor who says what when: daemon does.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxMessage = 128 << 10 // bytes; a default socket buffer takes one
	MaxFDs     = 100       // descriptors in one message; the kernel takes 253
	inheritsAs = 3         // the descriptor of the link in the new process
)

// Env names the variable that tells a process the descriptor of its link to the process before it.
const Env = "QUAYMASTER_HANDOVER"

// ErrGone says that the other process has ended, or has closed the link.
var ErrGone = errors.New("the other process is gone")

// A Message is what the other process says. Whoever receives it closes FDs.
type Message struct {
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body,omitempty"`
	FDs  []int           `json:"-"`
}

// Into reads the body into v.
func (m *Message) Into(v any) error {
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("message %q of the other process: %w", m.Kind, err)
	}
	return nil
}

// A Link is one end of the socketpair. One goroutine may send while another receives.
type Link struct{ c *net.UnixConn }

// Inherited is the link to the process before this one, or nil where there is none. The variable is taken out of the
// environment, so that no child thinks the link is its own.
func Inherited() (*Link, error) {
	text, ok := os.LookupEnv(Env)
	if !ok {
		return nil, nil
	}
	if err := os.Unsetenv(Env); err != nil {
		return nil, err
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < inheritsAs {
		return nil, fmt.Errorf("%s=%q is no descriptor; the variable is set by an upgrade alone", Env, text)
	}
	return Open(fd)
}

// Open makes a link of a descriptor, which it takes over.
func Open(fd int) (*Link, error) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("link to the other process: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("link to the other process: not a unix socket")
	}
	return &Link{c: u}, nil
}

// Copy returns a descriptor of the link, to be sent to a third process; the caller closes it.
func (l *Link) Copy() (int, error) {
	raw, err := l.c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if second := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, inheritsAs) }); second != nil {
		return -1, second
	}
	return fd, err
}

// Close ends the link; a Receive under way returns.
func (l *Link) Close() error { return l.c.Close() }

// Send says something within a second. The descriptors stay the caller's.
func (l *Link) Send(kind string, body any, fds ...int) error {
	m := Message{Kind: kind}
	var err error
	if body != nil {
		if m.Body, err = json.Marshal(body); err != nil {
			return err
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(text) > maxMessage || len(fds) > MaxFDs {
		return fmt.Errorf("message %q to the other process: %d bytes and %d descriptors are too much", kind, len(text), len(fds))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := l.c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, _, err = l.c.WriteMsgUnix(text, rights, nil)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return ErrGone
	}
	return err
}

// Receive waits for the next message until the deadline; the zero time waits for as long as the link lives. ErrGone is
// the end of the other process.
func (l *Link) Receive(until time.Time) (*Message, error) {
	if err := l.c.SetReadDeadline(until); err != nil {
		return nil, err
	}
	text := make([]byte, maxMessage)
	rights := make([]byte, unix.CmsgSpace(MaxFDs*4))
	n, k, flags, _, err := l.c.ReadMsgUnix(text, rights)
	if errors.Is(err, unix.ECONNRESET) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	fds, err := descriptors(rights[:k])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("message of the other process is too long")
	}
	if err == nil && n == 0 {
		err = ErrGone
	}
	m := &Message{FDs: fds}
	if err == nil {
		err = json.Unmarshal(text[:n], m)
	}
	if err != nil {
		m.Discard()
		return nil, err
	}
	return m, nil
}

// Discard closes the descriptors of a message that nobody wants.
func (m *Message) Discard() {
	for _, fd := range m.FDs {
		_ = unix.Close(fd)
	}
	m.FDs = nil
}

func descriptors(rights []byte) ([]int, error) {
	list, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, m := range list {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return out, err
		}
		out = append(out, fds...)
	}
	return out, nil
}

// Start runs the program at path with a link to it. The standard descriptors are ours; env gets the variable that tells
// of the link. The caller waits for the process.
func Start(path string, args, env []string) (*Link, *os.Process, error) {
	ours, theirs, err := pair()
	if err != nil {
		return nil, nil, fmt.Errorf("make a link to a new process: %w", err)
	}
	defer func() { _ = unix.Close(theirs) }()
	// Not os/exec: it makes every descriptor that it passes blocking, and with it all copies.
	pid, err := syscall.ForkExec(path, append([]string{path}, args...), &syscall.ProcAttr{
		Env: append(env, Env+"="+strconv.Itoa(inheritsAs)), Files: []uintptr{0, 1, 2, uintptr(theirs)},
	})
	if err != nil {
		_ = ours.Close()
		return nil, nil, fmt.Errorf("start %s: %w", path, err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		_ = ours.Close()
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return nil, nil, err
	}
	return ours, p, nil
}

// pair makes the socketpair: messages keep their bounds, and an end tells when the other is gone.
func pair() (ours *Link, theirs int, err error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	if ours, err = Open(fds[0]); err != nil {
		_ = unix.Close(fds[1])
		return nil, -1, err
	}
	return ours, fds[1], nil
}
