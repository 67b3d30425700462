package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/launch"
)

const (
	hookTime  = 2 * time.Minute // for one call
	hookDelay = 2 * time.Second // for its output to end once it was killed
	maxSaid   = 1 << 10         // bytes of its output in an error; the last ones
)

// A Hook is a program that makes and removes records. It is called as
//
//	PROGRAM present|cleanup NAME VALUE
//
// with the daemon's environment, without what is meant for the daemon alone, and with
//
//	QUAYMASTER_ACTION   present or cleanup
//	QUAYMASTER_RECORD   NAME, without a dot at the end: _acme-challenge.example.com
//	QUAYMASTER_VALUE    VALUE, the content of the TXT record
//
// in the folder of the program, with an empty standard input, in a process group of its own. Exit code 0 says that it is
// done; of anything else the last lines of its output are shown. After two minutes the group is killed. It may be called
// for several records at once, also for two of one name, and cleanup also for a record that is not there.
type Hook struct {
	Program string
	Time    time.Duration // for one call; 0 = two minutes
}

// Present calls the program with "present".
func (h *Hook) Present(ctx context.Context, r Record) error { return h.run(ctx, "present", r) }

// Cleanup calls the program with "cleanup".
func (h *Hook) Cleanup(ctx context.Context, r Record) error { return h.run(ctx, "cleanup", r) }

func (h *Hook) run(ctx context.Context, action string, r Record) error {
	most := h.Time
	if most <= 0 {
		most = hookTime
	}
	within, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	cmd := exec.CommandContext(within, h.Program, action, r.Name, r.Value)
	cmd.Dir = dirOf(h.Program)
	cmd.Env = append(launch.Clean(os.Environ()), "QUAYMASTER_ACTION="+action, "QUAYMASTER_RECORD="+r.Name, "QUAYMASTER_VALUE="+r.Value)
	said := &tail{}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookDelay
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it ended well; what it left behind holds its output
		return nil
	case ctx.Err() != nil:
		err = ctx.Err()
	case within.Err() != nil:
		err = fmt.Errorf("gave no end within %v and was killed", most)
	}
	text := fmt.Sprintf("%s %s %s: ", h.Program, action, r.Name)
	if out := said.String(); out != "" {
		return fmt.Errorf("%s%w; it said %q", text, err, out)
	}
	return fmt.Errorf("%s%w", text, err)
}

func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	}
	return "/"
}

// tail keeps the last bytes of what is written. One goroutine at a time writes: both outputs are the same Writer.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p[max(len(p)-maxSaid, 0):]...)
	t.kept = t.kept[max(len(t.kept)-maxSaid, 0):]
	return len(p), nil
}

func (t *tail) String() string {
	return string(bytes.ToValidUTF8(bytes.TrimSpace(t.kept), []byte("?")))
}
