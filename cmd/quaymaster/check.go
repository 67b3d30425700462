package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/plan"
)

func (s *shell) checkVerb() *cobra.Command {
	var live, expand bool
	c := verb(
		"check", "Find every mistake of a configuration. Needs no daemon", "quaymaster check -c quaymaster.yaml --live", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return s.check(ctx, live, expand) },
	)
	c.Flags().BoolVar(&live, "live", false, "also try to bind each port and to reach each target")
	c.Flags().BoolVar(&expand, "expand", false, "print the configuration with everything filled in")
	return c
}

// verdict is what `check --json` prints.
type verdict struct {
	OK       bool             `json:"ok"`
	Files    []string         `json:"files"`
	Errors   config.Errors    `json:"errors"`
	Warnings []config.Warning `json:"warnings"`
	Notes    []config.Error   `json:"notes,omitempty"`
	Live     []probe          `json:"live,omitempty"`
}

func (s *shell) check(ctx context.Context, live, expand bool) error {
	v := verdict{Files: []string{}, Errors: config.Errors{}, Warnings: []config.Warning{}}
	p, err := v.load(s.config)
	if err != nil {
		var bad config.Errors
		if !errors.As(err, &bad) {
			return fmt.Errorf("cannot check the configuration: %w", err)
		}
		return s.mistakes(&v, bad)
	}
	if bad := v.preflight(p); len(bad) > 0 {
		return s.mistakes(&v, bad)
	}
	v.OK = true
	for _, n := range v.Notes {
		if !s.json {
			fmt.Fprintln(s.err, "note:", clean(n.Error()))
		}
	}
	for _, w := range v.Warnings {
		if !s.json {
			fmt.Fprintln(s.err, "warning:", clean(w.Error.Error()))
		}
	}
	if live {
		v.Live = s.probeAll(ctx, p)
	}
	switch {
	case expand:
		if _, err := s.out.Write(config.Expand(p)); err != nil {
			return err
		}
	case s.json:
		if err := s.printJSON(v); err != nil {
			return err
		}
	default:
		fmt.Fprintf(s.out, "%s: well: %s on %s\n", strings.Join(v.Files, " "), plural(len(p.Routes), "route"), plural(len(p.Ports), "port"))
	}
	if live {
		return s.probed(v.Live, !s.json)
	}
	return nil
}

// load reads the files that -c names and makes the plan of them.
func (v *verdict) load(arg string) (*plan.Plan, error) {
	files, err := config.FindFiles(arg)
	if err != nil {
		return nil, err
	}
	v.Files = files
	sources, err := config.ReadFiles(files)
	if err != nil {
		return nil, err
	}
	p, warnings, err := config.NewLoader().Load(sources, nil)
	v.Warnings = append(v.Warnings, warnings...)
	return p, err
}

// mistakes prints every one, a line each, and returns exit code 2.
func (s *shell) mistakes(v *verdict, bad config.Errors) error {
	v.Errors = bad
	if s.json {
		if err := s.printJSON(v); err != nil {
			return err
		}
		return &coded{exitUsage, nil}
	}
	for _, e := range bad {
		fmt.Fprintln(s.err, clean(e.Error()))
	}
	return &coded{exitUsage, fmt.Errorf("cannot use this configuration: mend %s and check again", plural(len(bad), "mistake"))}
}
