package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) portsVerb() *cobra.Command {
	c := verb(
		"ports", "List every port the daemon holds or wants", "quaymaster ports --json", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			return show(ctx, s, "/v1/ports", func(list *[]api.Port) { s.printPorts(*list) })
		},
	)
	c.AddCommand(
		s.portsFreeVerb(),
		s.leaseVerb(), s.releaseVerb(),
		verb(
			"who PORT", "Say who has a port, TCP or UDP, and what makes them let go; exit 1 if nobody does. Needs no daemon", "quaymaster ports who 443",
			cobra.ExactArgs(1), func(_ context.Context, args []string) error { return s.who(args[0]) },
		),
		verb(
			"history PORT", "Say what happened to a port", "quaymaster ports history 443",
			cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return s.history(ctx, args[0]) },
		),
	)
	return c
}

func (s *shell) printPorts(list []api.Port) {
	rows := make([][]string, 0, len(list))
	for _, p := range list {
		at := p.Address
		if p.Proto != "unix" {
			at = net.JoinHostPort(p.Address, strconv.Itoa(p.Port))
		}
		by := holder(p.Holder)
		if by == "" && p.Error != "" {
			by = p.Error
		}
		next := ""
		if p.NextTry != nil {
			next = "in " + span(time.Until(*p.NextTry))
		}
		rows = append(rows, []string{p.Wanted, p.Proto, at, p.State, ago(p.Since), users(p), by, next})
	}
	table(s.out, "PORT PROTO ADDRESS STATE FOR ROUTES HOLDER NEXT-TRY", rows)
}

// users are what a port is for.
func users(p api.Port) string {
	if p.App != "" {
		return "app " + p.App
	}
	return strings.Join(p.Routes, ",")
}

// portNumber reads an argument that must be a port.
func portNumber(text string) (uint16, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(text, ":"), 10, 16)
	if err != nil || n == 0 {
		return 0, &coded{exitUsage, fmt.Errorf("cannot use %q as a port: write a number from 1 to 65535", text)}
	}
	return uint16(n), nil
}

func (s *shell) who(text string) error {
	port, err := portNumber(text)
	if err != nil {
		return err
	}
	found, err := api.Who(port)
	if err != nil {
		return fmt.Errorf("cannot look up who listens on port %d: %w", port, err)
	}
	switch {
	case s.json:
		if err := s.printJSON(found); err != nil {
			return err
		}
	case len(found) > 0:
		s.printListening(found)
	}
	if len(found) > 0 {
		return nil
	}
	if !s.json {
		fmt.Fprintf(s.out, "nobody listens on port %d\n", port)
	}
	return &coded{exitFailed, nil}
}

// printListening shows who has which socket, and below it what makes them let go.
func (s *shell) printListening(found []api.Listening) {
	rows := make([][]string, 0, len(found))
	var notes []string
	for _, l := range found {
		h := l.Holder
		if h == nil {
			h = &api.Holder{}
		}
		pid, note := "", h.Text
		if h.PID > 0 {
			pid, note = strconv.Itoa(h.PID), "pid "+strconv.Itoa(h.PID)+": "+h.Stop
		} else if os.Geteuid() != 0 {
			note += ": sudo quaymaster ports who " + strconv.Itoa(l.Port)
		}
		rows = append(rows, []string{
			net.JoinHostPort(l.Address, strconv.Itoa(l.Port)), l.Proto, pid, h.User, h.Unit, h.Container, ago(h.Started), h.Command,
		})
		if !slices.Contains(notes, note) {
			notes = append(notes, note)
		}
	}
	table(s.out, "PORT PROTO PID USER UNIT CONTAINER FOR COMMAND", rows)
	for _, n := range notes {
		fmt.Fprintln(s.out, clean(n))
	}
}

func (s *shell) history(ctx context.Context, text string) error {
	port, err := portNumber(text)
	if err != nil {
		return err
	}
	path := "/v1/ports/" + strconv.Itoa(int(port))
	return show(ctx, s, path, func(d *api.PortDetail) {
		rows := make([][]string, 0, len(d.History))
		for _, e := range d.History {
			rows = append(rows, []string{strconv.Itoa(int(port)), e.Time.Local().Format(time.DateTime), e.State, e.Address, e.Message})
		}
		table(s.out, "PORT TIME STATE ADDRESS WHAT", rows)
	})
}
