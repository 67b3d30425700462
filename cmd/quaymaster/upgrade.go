package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) upgradeVerb() *cobra.Command {
	var binary string
	var timeout time.Duration
	c := verb(
		"upgrade", "Replace the daemon by a new process without losing a connection", "quaymaster upgrade --binary /usr/local/bin/quaymaster",
		cobra.NoArgs, func(ctx context.Context, _ []string) error { return s.upgrade(ctx, binary, timeout) },
	)
	c.Long = `Starts a new process that takes over every port, the state folder and the admin socket, and
returns when it serves. The old process ends when its connections have, or after drain_timeout.
Without --binary the program is the file that the daemon was started from, as it is now.

When the new process does not start, refuses its configuration or is not ready in time, it is ended
and the old one goes on as it was. Signal USR2 asks for the same.`
	c.Flags().StringVar(&binary, "binary", "", "`PATH` of the program to start")
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long the new process may take to be ready")
	return c
}

func (s *shell) upgrade(ctx context.Context, binary string, timeout time.Duration) error {
	if binary != "" {
		path, err := exec.LookPath(binary)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return &coded{exitUsage, fmt.Errorf("cannot upgrade to %s: %w", binary, err)}
		}
		binary = path
	}
	body, err := json.Marshal(map[string]any{"binary": binary, "timeout": timeout.Seconds()})
	if err != nil {
		return err
	}
	c := s.client()
	defer c.Close()
	var up api.Upgraded
	if err := c.Do(ctx, http.MethodPost, "/v1/upgrade", "", body, &up); err != nil {
		return cannot("upgrade", err)
	}
	if s.json {
		return s.printJSON(up)
	}
	fmt.Fprintf(s.out, "quaymaster (pid %d) serves; pid %d drains\n", up.PID, up.Before)
	return nil
}
