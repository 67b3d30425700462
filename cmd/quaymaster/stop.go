package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) stopVerb() *cobra.Command {
	var noWait bool
	c := verb(
		"stop", "Drain the daemon and wait until it is gone", "quaymaster stop", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return s.stop(ctx, noWait) },
	)
	c.Flags().BoolVar(&noWait, "no-wait", false, "return when the drain has begun")
	return c
}

// stop asks for the drain and then follows the events until the process is gone.
func (s *shell) stop(ctx context.Context, noWait bool) error {
	c := s.client()
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	heard := make(chan bool, 1) // whether connections were cut; sent when the stream ends
	go listenForCut(ctx, c, heard)
	var going api.Stopping
	if err := c.Do(ctx, http.MethodPost, "/v1/stop", "", nil, &going); err != nil {
		cancel()
		<-heard
		return cannot("stop", err)
	}
	cut := false
	if noWait {
		cancel()
		<-heard
	} else {
		cut = <-heard
		if err := gone(ctx, going.PID); err != nil {
			return fmt.Errorf("cannot wait for pid %d to end: %w; it is still draining, \"quaymaster status\" shows it", going.PID, err)
		}
		going.State = "stopped"
	}
	if s.json {
		if err := s.printJSON(going); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(s.out, "quaymaster (pid %d) is %s\n", going.PID, going.State)
	}
	if cut {
		return &coded{exitCut, errors.New("connections were still open at the deadline and were cut; a longer shutdown_timeout lets them finish")}
	}
	return nil
}

// listenForCut follows the events until the daemon or ctx ends.
func listenForCut(ctx context.Context, c *api.Client, heard chan<- bool) {
	cut := false
	_ = c.Events(ctx, 0, func(e api.Event) bool {
		cut = cut || e.Kind == "drain.cut"
		return true
	})
	heard <- cut
}

// gone waits until there is no process of that id.
func gone(ctx context.Context, pid int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for syscall.Kill(pid, 0) != syscall.ESRCH {
		if ended(pid) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
