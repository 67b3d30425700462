package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) statusVerb() *cobra.Command {
	var ready bool
	c := verb(
		"status", "Say how the daemon is", "quaymaster status --ready && echo serving", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return s.status(ctx, ready) },
	)
	c.Flags().BoolVar(&ready, "ready", false, "exit 1 unless it is serving")
	return c
}

func (s *shell) status(ctx context.Context, ready bool) error {
	c := s.client()
	defer c.Close()
	var st api.Status
	var ports []api.Port
	if err := c.Get(ctx, "/v1/status", &st); err != nil {
		return cannot("ask for the status", err)
	}
	if s.json {
		if err := s.printJSON(st); err != nil {
			return err
		}
	} else {
		if err := c.Get(ctx, "/v1/ports", &ports); err != nil {
			return cannot("ask for the ports", err)
		}
		s.printStatus(&st, ports)
	}
	if ready && st.State != "serving" {
		return &coded{exitFailed, fmt.Errorf("not ready: %s", st.State)}
	}
	return nil
}

func (s *shell) printStatus(st *api.Status, ports []api.Port) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(s.out, "%-12s %s\n", name, clean(fmt.Sprintf(format, args...)))
	}
	line("quaymaster", "%s, pid %d", st.Version, st.PID)
	line("state", "%s for %s", st.State, ago(st.Since))
	line("config", "%s, revision %s, loaded %s", strings.Join(st.Config.Files, " "), st.Config.Revision, st.Config.LoadedAt.Format(time.RFC3339))
	if st.Config.Error != "" {
		line("refused", "%s", st.Config.Error)
	}
	if by := st.Config.ConfirmBy; by != nil {
		line("unconfirmed", "goes back in %s unless you run: quaymaster confirm", span(time.Until(*by)))
	}
	line("connections", "%d of %d", st.Connections.Active, st.Connections.Max)
	for _, b := range st.Before {
		line("draining", "pid %d, replaced %s ago, %d connections", b.PID, ago(b.Since), b.Connections)
	}
	if len(ports) > 0 {
		fmt.Fprintln(s.out)
		s.printPorts(ports)
	}
	if len(st.Problems) > 0 {
		rows := make([][]string, 0, len(st.Problems))
		for _, p := range st.Problems {
			rows = append(rows, []string{p.Object, p.Kind, p.Message, p.Remedy})
		}
		fmt.Fprintln(s.out)
		table(s.out, "PROBLEM KIND MESSAGE REMEDY", rows)
	}
}
