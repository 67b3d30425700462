//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/chaos/load"
)

// target is a child process that stands behind the machine, always on the same two ports.
type target struct {
	id            string
	shared, first int
	journal       string
	busy          chan struct{} // held by whoever kills it

	cmd *exec.Cmd // of the process that runs now
}

// serveTarget is the whole life of a target's process.
func serveTarget(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: target ID PORT PORT JOURNAL")
	}
	var ls [2]net.Listener
	for i := range ls {
		var err error
		if ls[i], err = net.Listen("tcp", "127.0.0.1:"+args[i+1]); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(args[3], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	lie, _ := strconv.Atoi(os.Getenv("CHAOS_LIE"))
	return (&load.Target{ID: args[0], Journal: f, Lie: lie}).Serve(ls[0], ls[1])
}

// start runs the process and waits until it serves.
func (t *target) start(self string, log *os.File) error {
	t.cmd = exec.Command(self, "target", t.id, strconv.Itoa(t.shared), strconv.Itoa(t.first), t.journal)
	t.cmd.Stdout, t.cmd.Stderr = log, log
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // a ^C is for us alone
	if err := t.cmd.Start(); err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	return errors.Join(accepts(ctx, t.shared), accepts(ctx, t.first))
}

// kill ends the process at once.
func (t *target) kill() {
	if t.cmd != nil && t.cmd.Process != nil {
		_ = t.cmd.Process.Kill()
		_ = t.cmd.Wait()
	}
}

// accepts waits until somebody listens on a port of 127.0.0.1.
func accepts(ctx context.Context, port int) error {
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return c.Close()
		}
		if !pause(ctx, 5*time.Millisecond) {
			return fmt.Errorf("port %d: %w", port, err)
		}
	}
}

// pause passes time; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// newTargets makes n targets on ports that nobody holds; none runs yet.
func newTargets(dir string, n, from, to int) ([]*target, error) {
	var out []*target
	for port := from; len(out) < n; port += 2 {
		if port+1 >= to {
			return nil, fmt.Errorf("no free ports for targets from %d to %d", from, to)
		}
		if !free(port) || !free(port+1) {
			continue
		}
		id := fmt.Sprintf("t%d", len(out)+1)
		out = append(out, &target{id: id, shared: port, first: port + 1, journal: filepath.Join(dir, id+".journal"), busy: make(chan struct{}, 1)})
	}
	return out, nil
}

func free(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
