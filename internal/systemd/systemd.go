// Package systemd speaks with the service manager that started us: it says how we are, takes the sockets that were
// opened for us, and gives ours away for safekeeping.
//
// It promises that nothing here waits for the manager: what is said goes into a bounded queue, in order, and what cannot
// be said is told to the log once and left out. It never reads a configuration and never decides what is true of the
// daemon.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	maxQueue  = 4096            // messages that wait to be sent
	maxStatus = 512             // bytes of a status line
	sendTime  = 5 * time.Second // for one message, while the manager does not read
	closeTime = time.Second     // for everything still queued at Close
)

// Options say who started us.
type Options struct {
	Env func(string) (string, bool) // os.LookupEnv
	PID int
	Log *slog.Logger
	// Hold keeps everything back until Begin: the manager does not hear us before a predecessor has named us.
	Hold bool
}

// A Notifier tells the service manager how we are (sd_notify). A nil one, and one without a manager, say nothing. Its
// methods may be called from any goroutine and never wait; Sync and Close do, for a bounded time.
type Notifier struct {
	to       *net.UnixAddr
	socket   string // as the manager wrote it
	watchdog time.Duration
	log      *slog.Logger

	more chan struct{} // something was queued, or all is over
	done chan struct{} // the sender has ended
	told sync.Once     // the first failure

	mu     sync.Mutex // guards what follows
	queue  []message
	held   bool
	closed bool
	until  time.Time     // when closed: the end of sending
	conn   *net.UnixConn // the sender's, which changes it; Close moves its deadline
}

// A message is one datagram. Its descriptors are its own and closed once it was sent.
type message struct {
	text string
	fds  []int
	sent chan<- error // has room for one; nil: nobody asks
}

// New returns the notifier for the manager that the environment names, or nil when it names none. Close ends it.
func New(o Options) *Notifier {
	socket, _ := o.Env("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	n := &Notifier{
		socket: socket, log: o.Log, watchdog: watchdog(o.Env, o.PID), held: o.Hold,
		more: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if socket[0] != '/' && socket[0] != '@' || len(socket) > maxPath {
		o.Log.Warn("NOTIFY_SOCKET is neither a path nor an abstract name; the service manager is told nothing", "socket", socket)
		return nil
	}
	n.to = &net.UnixAddr{Name: socket, Net: "unixgram"} // net knows that @ means the abstract namespace
	go n.run()
	return n
}

// maxPath is what the name of a unix socket may have on Linux (sun_path).
const maxPath = 108

// watchdog is how often the manager wants to hear that we live, 0 if it does not.
func watchdog(env func(string) (string, bool), pid int) time.Duration {
	if of, ok := env("WATCHDOG_PID"); ok && of != strconv.Itoa(pid) {
		return 0
	}
	text, _ := env("WATCHDOG_USEC")
	us, err := strconv.ParseInt(text, 10, 64)
	if err != nil || us <= 0 || us > int64(24*time.Hour/time.Microsecond) {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// Env is what a process that takes our place needs in its environment to be heard in turn. Without WATCHDOG_PID the
// watchdog is for whoever has it.
func (n *Notifier) Env() []string {
	if n == nil {
		return nil
	}
	env := []string{"NOTIFY_SOCKET=" + n.socket}
	if n.watchdog > 0 {
		env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(n.watchdog.Microseconds(), 10))
	}
	return env
}

// Begin sends what was held back, and from now on everything at once.
func (n *Notifier) Begin() {
	if n == nil {
		return
	}
	n.mu.Lock()
	n.held = false
	n.mu.Unlock()
	n.wake()
}

// Ready says that we serve: after the start, and after each Reloading.
func (n *Notifier) Ready(status string) { n.say("READY=1", line(status)) }

// Reloading says that a new configuration is looked at. Ready must follow, whatever becomes of it.
func (n *Notifier) Reloading(status string) {
	n.say("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(monotonic().Microseconds(), 10), line(status))
}

// Status says in one line for people what we do.
func (n *Notifier) Status(status string) { n.say(line(status)) }

// Stopping says that we drain and then end.
func (n *Notifier) Stopping(status string) { n.say("STOPPING=1", line(status)) }

// Draining says that the drain goes on, and asks for at least that much more time from now. Time that the manager gives
// anyway is not shortened.
func (n *Notifier) Draining(status string, more time.Duration) {
	n.say("EXTEND_TIMEOUT_USEC="+strconv.FormatInt(more.Microseconds(), 10), line(status))
}

// MainPID names the process that takes our place. The manager hears nobody else after that.
func (n *Notifier) MainPID(pid int) { n.say("MAINPID=" + strconv.Itoa(pid)) }

// Watchdog is how often at least Alive must be called, 0 for never: half of what the manager allows.
func (n *Notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog / 2
}

// Alive says that we live. Say it only after looking.
func (n *Notifier) Alive() { n.say("WATCHDOG=1") }

// Store gives the manager a copy of a descriptor under a name (see Name), to be passed to the process that follows us if
// we die. The same socket under the same name again changes nothing.
func (n *Notifier) Store(name string, fd int) {
	if n == nil {
		return
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		n.fault(os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err))
		return
	}
	n.push(message{text: "FDSTORE=1\nFDNAME=" + name + "\nFDPOLL=0", fds: []int{own}})
}

// Forget makes the manager close what it has under that name.
func (n *Notifier) Forget(name string) { n.say("FDSTOREREMOVE=1", "FDNAME="+name) }

// Sync returns when the manager has read everything said so far (sd_notify_barrier).
func (n *Notifier) Sync(ctx context.Context) error {
	if n == nil {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	own, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	w.Close()
	if err != nil {
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	sent := make(chan error, 1)
	n.push(message{text: "BARRIER=1", fds: []int{own}, sent: sent})
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = r.Read(make([]byte, 1)) // it closes its end when it comes to our message
	if ctx.Err() != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("the service manager has not read what it was told: %w", ctx.Err())
	}
	return <-sent
}

// Close sends what is queued, for at most a second, and ends the notifier.
func (n *Notifier) Close() {
	if n == nil {
		return
	}
	n.mu.Lock()
	if !n.closed {
		n.closed, n.until = true, time.Now().Add(closeTime)
		if n.conn != nil {
			_ = n.conn.SetWriteDeadline(n.until)
		}
	}
	n.mu.Unlock()
	n.wake()
	<-n.done
}

func (n *Notifier) say(lines ...string) { n.push(message{text: strings.Join(lines, "\n")}) }

// push queues a message. One that finds no room is left out.
func (n *Notifier) push(m message) {
	if n == nil || m.text == "" {
		return
	}
	n.mu.Lock()
	var err error
	switch {
	case n.closed:
		err = errClosed
	case len(n.queue) >= maxQueue:
		err = errFull
	default:
		n.queue = append(n.queue, m)
	}
	n.mu.Unlock()
	if err != nil {
		n.over(m, err)
		return
	}
	n.wake()
}

var (
	errFull   = errors.New("too much waits to be said")
	errClosed = errors.New("all has been said")
)

func (n *Notifier) wake() {
	select {
	case n.more <- struct{}{}:
	default:
	}
}

// run sends what is queued until Close.
func (n *Notifier) run() {
	defer close(n.done)
	defer n.hangUp()
	for {
		<-n.more
		for {
			m, ok := n.next()
			if !ok {
				break
			}
			n.over(m, n.send(m))
		}
		n.mu.Lock()
		over := n.closed && len(n.queue) == 0
		n.mu.Unlock()
		if over {
			return
		}
	}
}

// next takes the first message.
func (n *Notifier) next() (m message, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held && !n.closed {
		return m, false
	}
	if len(n.queue) == 0 {
		n.queue = nil // a burst leaves nothing behind
		return m, false
	}
	m = n.queue[0]
	n.queue[0] = message{}
	n.queue = n.queue[1:]
	return m, true
}

// send sends one message. The socket is kept, so that saying that we live needs no descriptor; it is made anew when
// the manager's own has been replaced.
func (n *Notifier) send(m message) error {
	var oob []byte
	if len(m.fds) > 0 {
		oob = unix.UnixRights(m.fds...)
	}
	var err error
	for range 2 {
		var c *net.UnixConn
		if c, err = n.dial(); err != nil {
			return err
		}
		if err = sendmsg(c, m.text, oob); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		n.hangUp()
	}
	return err
}

// dial is the connection, with a deadline for one message.
func (n *Notifier) dial() (*net.UnixConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == nil {
		c, err := net.DialUnix("unixgram", nil, n.to) // of a unix socket: it does not wait
		if err != nil {
			return nil, err
		}
		n.conn = c
	}
	limit := time.Now().Add(sendTime)
	if n.closed && n.until.Before(limit) {
		limit = n.until
	}
	return n.conn, n.conn.SetWriteDeadline(limit)
}

func (n *Notifier) hangUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		_ = n.conn.Close()
		n.conn = nil
	}
}

// sendmsg is one datagram with descriptors, which net does not send on a connected socket.
func sendmsg(c *net.UnixConn, text string, oob []byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		failed = unix.Sendmsg(int(fd), []byte(text), oob, nil, 0) // the descriptor is non-blocking
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err == nil {
		err = os.NewSyscallError("sendmsg", failed)
	}
	return err
}

// over tells what became of a message, and closes what it had.
func (n *Notifier) over(m message, err error) {
	if err != nil && !errors.Is(err, errClosed) {
		n.fault(err)
	}
	if m.sent != nil {
		m.sent <- err
	}
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
}

// fault logs the first failure: later ones are the same, and the log is not for a manager that is gone.
func (n *Notifier) fault(err error) {
	n.told.Do(func() {
		n.log.Warn("cannot tell the service manager how we are; later failures are not logged", "socket", n.socket, "err", err)
	})
}

// line is a STATUS= of bounded length, or nothing to say.
func line(status string) string {
	if status == "" {
		return ""
	}
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(status, "?"))
	if len(clean) > maxStatus {
		end := maxStatus
		for !utf8.RuneStart(clean[end]) {
			end--
		}
		clean = clean[:end]
	}
	return "STATUS=" + clean
}
