package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) reloadVerb() *cobra.Command {
	var o api.ReloadOptions
	c := verb(
		"reload", "Read the files again and follow them, without touching what did not change",
		"quaymaster reload --confirm 2m", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return s.reload(ctx, o) },
	)
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what would change, and how many connections it touches")
	c.Flags().DurationVar(&o.Confirm, "confirm", 0, "go back after this time unless \"quaymaster confirm\" comes")
	return c
}

func (s *shell) reload(ctx context.Context, o api.ReloadOptions) error {
	if o.Confirm < 0 || (o.Confirm > 0 && o.DryRun) {
		return &coded{exitUsage, errors.New("cannot reload: --confirm wants a time above 0, and not --dry-run beside it")}
	}
	c := s.client()
	defer c.Close()
	change, err := c.Reload(ctx, o)
	if err != nil {
		return refused(err)
	}
	if s.json {
		return s.printJSON(change)
	}
	s.printChange(change, o.Confirm)
	return nil
}

// refused words a reload that did not happen; the running configuration is what it was.
func refused(err error) error {
	var p *api.Problem
	if !errors.As(err, &p) {
		return cannot("reload", err)
	}
	err = fmt.Errorf("cannot reload: %w", p)
	if n := len(p.Errors); n > 0 {
		err = fmt.Errorf("%w\nmend %s and reload again; the old configuration keeps running", err, plural(n, "mistake"))
	} else if !strings.Contains(p.Detail, "keeps running") {
		err = fmt.Errorf("%w; the old configuration keeps running", err)
	}
	return err
}

func (s *shell) printChange(c *api.Change, confirm time.Duration) {
	for _, w := range c.Warnings {
		fmt.Fprintln(s.err, "warning:", clean(w.String()))
	}
	for _, item := range c.Changes {
		fmt.Fprintln(s.out, clean(item.String()))
	}
	done, touched := "applied", "were touched"
	if c.DryRun {
		done, touched = "would apply", "would be touched"
	}
	if len(c.Changes) == 0 {
		fmt.Fprintf(s.out, "nothing changes (revision %s)\n", c.Revision)
		return
	}
	fmt.Fprintf(s.out, "%s %s (revision %s); %s %s\n", done, plural(len(c.Changes), "change"), c.Revision, plural(c.Touched, "connection"), touched)
	if confirm > 0 {
		fmt.Fprintf(s.out, "goes back by itself in %v unless you run: quaymaster confirm\n", confirm)
	}
}
