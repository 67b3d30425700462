// Package run is what the supervisor of apps and those who run them say to each other: one instance of an app, what it
// needs to start, and how it ended.
//
// It promises nothing by itself: processes are run by apps/process, containers by engine.
package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A Start is one instance to be started.
type Start struct {
	App      *plan.App
	Port     uint16 // that it is to listen on; 0 with a unix socket
	Host     string // 127.0.0.1
	Path     string // of its unix socket, or ""
	URL      string // where it is reached through us, or ""
	Listener int    // descriptor of its listening socket (Socket: fd), blocking, which stays ours; -1: none

	Output Output // where its output goes
	// Handoff is called immediately before the program begins: who holds the port for it lets go.
	Handoff func() error
}

// Output takes what an app says. Writers are called from one goroutine each; a partial line is a call without a newline.
type Output interface {
	// Line takes a line, or a part of one that is too long, without its newline.
	Line(at time.Time, stderr bool, text []byte)
}

// A Runner runs apps of one kind.
type Runner interface {
	// Check is what would keep the app from starting, each by name and with the next step; nothing is started.
	Check(ctx context.Context, a *plan.App) []error
	// Start returns once the instance runs. A *PortError says that its port is taken; nothing is left behind then.
	Start(ctx context.Context, s *Start) (Instance, error)
	// Adopt finds an instance that an earlier daemon started. ErrGone: there is none any more.
	Adopt(ctx context.Context, r Record, out Output) (Instance, error)
}

// An Instance is one running app. It is safe for use by many goroutines.
type Instance interface {
	Record() Record
	Done() <-chan struct{} // closed when it has ended and its whole group is gone
	Exit() Exit            // valid after Done
	// Stop ends it: the signal, the grace, KILL for the whole group. It returns when Done is closed, or with ctx.
	Stop(ctx context.Context, how plan.AppStop) error
	// Leave lets go of an instance that goes on for the next daemon.
	Leave()
	Stats() (Stats, error)
	// Listening are the TCP ports that it listens on, for the diagnosis of an app that is not ready.
	Listening() ([]uint16, error)
}

// A Clearer is a Runner that may find what an earlier start or daemon has left behind.
type Clearer interface {
	// Clear takes it away before the port of a start is chosen.
	Clear(ctx context.Context, a *plan.App) error
}

// A Sighted instance can get out of sight while it goes on: whoever knows how it is does not answer.
type Sighted interface {
	// Sight calls f when it gets out of sight, with why, and with nil when it is seen again. f does not block, and asks the
	// instance nothing.
	Sight(f func(error))
}

// An instance is Behind its port where another program takes connections for it.
type Behind interface {
	Inside() uint16                    // the port that the app itself listens on
	Answers(ctx context.Context) error // nil when the app itself takes connections
}

// Recalling is an Output that knows what was kept by an earlier daemon.
type Recalling interface {
	Newest() time.Time // the time of the newest line of the app; zero: none
}

// A Record is what a later daemon needs to find an instance again. Its Data belongs to the runner.
type Record struct {
	PID       int             `json:"pid,omitempty"`
	Container string          `json:"container,omitempty"`
	Started   time.Time       `json:"started"`
	Data      json.RawMessage `json:"data,omitempty"`
}

// Stats are what an instance uses.
type Stats struct {
	Memory int64         // bytes resident
	CPU    time.Duration // since it was started
}

// Exit says how an instance ended.
type Exit struct {
	At     time.Time
	Code   int            // -1 when it was a signal, or is not known
	Signal syscall.Signal // 0: none
	Lost   bool           // adopted: its status went to another
	OOM    bool           // the kernel ended it for its memory
	Text   string         // what happened, where it is none of these
}

// String is how a person is told.
func (e Exit) String() string {
	switch {
	case e.Text != "":
		return e.Text
	case e.Lost:
		return "unknown (adopted)"
	case e.OOM:
		return "killed: out of memory"
	case e.Signal != 0:
		return fmt.Sprintf("signal %d (%v)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// OK reports whether it ended as programs do that are done.
func (e Exit) OK() bool { return !e.Lost && e.Text == "" && e.Signal == 0 && e.Code == 0 }

// ErrGone says that an instance of an earlier daemon is there no more.
var ErrGone = errors.New("it is gone")

// A PortError says that the port of a start was taken. Text is what the program or the engine said.
type PortError struct {
	Port uint16
	Text string
}

func (e *PortError) Error() string { return fmt.Sprintf("port %d is taken: %s", e.Port, e.Text) }

// An AwayError says that whoever runs apps of a kind could not be asked: nothing is known, and it is tried again.
type AwayError struct{ Text string }

func (e *AwayError) Error() string { return e.Text }
