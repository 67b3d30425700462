// Command quaymaster is an edge proxy that owns the ports of a host. Each verb stands in the file of its name.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/config"
)

// The exit codes, fixed for scripts that rely on them. 3 and 4 come from a daemon alone.
const (
	exitFailed = 1
	exitUsage  = 2 // wrong usage, or an invalid configuration
	exitCut    = 4 // stopped, but connections were cut
)

func main() {
	os.Exit(command(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// shell is what every verb shares: the global flags and where it prints.
type shell struct {
	config string
	socket string
	json   bool
	out    io.Writer
	err    io.Writer
}

// coded is an error with an exit code. One without a text was told already.
type coded struct {
	code int
	err  error
}

func (e *coded) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *coded) Unwrap() error { return e.err }

// command runs one command line and returns the exit code.
func command(ctx context.Context, args []string, out, errs io.Writer) int {
	s := &shell{out: out, err: errs}
	root := s.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	return s.told(root.ExecuteContext(ctx))
}

// told prints an error and returns the exit code for it. What a verb did not return itself is wrong usage.
func (s *shell) told(err error) int {
	if err == nil {
		return 0
	}
	var c *coded
	if !errors.As(err, &c) {
		s.complain(fmt.Sprintf("cannot do that: %v; \"quaymaster --help\" lists the verbs, \"quaymaster VERB --help\" their flags", err))
		return exitUsage
	}
	s.complain(c.Error())
	return c.code
}

// complain prints an error, which may repeat what somebody else has said.
func (s *shell) complain(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(s.err, clean(strings.TrimRight(line, "\n")))
	}
}

// failed gives an error of a verb its exit code: 2 for an invalid configuration, else 1.
func failed(err error) error {
	var c *coded
	var p *api.Problem
	var bad config.Errors
	switch {
	case err == nil, errors.As(err, &c):
		return err
	case errors.As(err, &bad), errors.As(err, &p) && p.Type == api.Invalid:
		return &coded{exitUsage, err}
	}
	return &coded{exitFailed, err}
}

func (s *shell) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "quaymaster",
		Short: "An edge proxy that owns the ports of a host",
		Long: `Quaymaster binds the ports of a host, shares them between routes, and never drops
a connection because something else changed.

Verbs that talk to a running daemon find it by --socket, $QUAYMASTER_SOCKET, or
admin.socket of the configuration.`,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown verb %q", args[0])
			}
			c.SetOut(s.err)
			_ = c.Help()
			return &coded{exitUsage, nil}
		},
	}
	f := root.PersistentFlags()
	f.StringVarP(&s.config, "config", "c", "", "configuration `FILE` or folder (default quaymaster.yaml, /etc/quaymaster/quaymaster.yaml)")
	f.StringVar(&s.socket, "socket", "", "admin socket `PATH` of the daemon")
	f.BoolVar(&s.json, "json", false, "print JSON")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		s.runVerb(), s.checkVerb(), s.reloadVerb(), s.confirmVerb(), s.stopVerb(), s.upgradeVerb(), s.statusVerb(), s.portsVerb(),
		s.routesVerb(), s.appsVerb(), s.devVerb(), s.waitVerb(), s.certsVerb(), s.trustVerb(), s.doctorVerb(), s.explainVerb(), s.schemaVerb(), s.echoVerb(), s.versionVerb(), s.launchVerb(), s.leashVerb(),
	)
	return root
}

// verb makes a command whose errors carry their exit code, and whose context ends with Ctrl-C.
func verb(use, short, example string, args cobra.PositionalArgs, do func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Example: "  " + example, Args: args,
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return failed(do(ctx, args))
		},
	}
}

// printJSON writes v as people like to read it.
func (s *shell) printJSON(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.out, "%s\n", text)
	return err
}

// show asks the daemon for the object at path and prints it: as the daemon wrote it with --json, else by print.
func show[T any](ctx context.Context, s *shell, path string, print func(*T)) error {
	c := s.client()
	defer c.Close()
	var raw json.RawMessage
	if err := c.Get(ctx, path, &raw); err != nil {
		return cannot("ask the daemon", err)
	}
	if s.json {
		return s.printJSON(raw)
	}
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("cannot read the daemon's answer to %s: %w; are both of one version?", path, err)
	}
	print(&v)
	return nil
}

// cannot words a refusal as a sentence; an unreachable daemon says it all itself.
func cannot(what string, err error) error {
	var away *api.Unreachable
	if errors.As(err, &away) {
		return err
	}
	return fmt.Errorf("cannot %s: %w", what, err)
}
