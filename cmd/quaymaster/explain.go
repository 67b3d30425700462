package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) explainVerb() *cobra.Command {
	var method, client string
	var fields []string
	c := verb(
		"explain URL|HOST:PORT|REQUEST_ID", "Say which route takes a request, why the others do not, and what would happen",
		"quaymaster explain https://api.example.com/v1/users", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			q, err := api.Ask(args[0])
			if err != nil {
				return &coded{exitUsage, fmt.Errorf("cannot explain: %w", err)}
			}
			q.Client = client
			if method != "" {
				q.Method = method
			}
			for _, f := range fields {
				name, value, ok := strings.Cut(f, ":")
				if !ok {
					return &coded{exitUsage, fmt.Errorf("cannot use the header %q: write it as \"Name: value\"", f)}
				}
				if q.Header == nil {
					q.Header = make(map[string]string)
				}
				q.Header[strings.ToLower(name)] = strings.TrimSpace(value)
			}
			return s.explain(ctx, q)
		},
	)
	c.Flags().StringVarP(&method, "method", "X", "", "method of the request (default GET)")
	c.Flags().StringVar(&client, "client", "", "`IP` the request comes from")
	c.Flags().StringArrayVarP(&fields, "header", "H", nil, "header of the request, \"Name: value\"; may be repeated")
	return c
}

func (s *shell) explain(ctx context.Context, q api.Question) error {
	c := s.client()
	defer c.Close()
	e, err := c.Explain(ctx, q)
	if err != nil {
		return cannot("explain "+q.Text, err)
	}
	if s.json {
		return s.printJSON(e)
	}
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(s.out, "%-12s %s\n", name, clean(value))
		}
	}
	line("question", e.Question)
	line("outcome", e.Outcome)
	if p := e.Port; p != nil {
		line("port", strings.TrimSpace(p.Wanted+" "+p.State+" "+holder(p.Holder)))
	}
	line("stage", e.Stage)
	from := e.Source
	if e.Place != nil {
		from = fmt.Sprintf("%s:%d", e.Place.File, e.Place.Line)
	}
	if e.Route != "" {
		line("route", e.Route+" ("+from+")")
	}
	line("action", e.Action)
	line("certificate", e.Certificate)
	line("upstream", e.Upstream)
	line("target", e.Target)
	for _, n := range e.Notes {
		line("note", n)
	}
	s.printTargets(e.Targets)
	if len(e.Steps) > 0 {
		rows := make([][]string, 0, len(e.Steps))
		for _, st := range e.Steps {
			verdict := "no"
			if st.Matched {
				verdict = "yes"
			}
			rows = append(rows, []string{st.Route, verdict, st.Reason})
		}
		fmt.Fprintln(s.out)
		table(s.out, "ROUTE MATCHES WHY", rows)
	}
	return nil
}

func (s *shell) printTargets(list []api.Target) {
	if len(list) == 0 {
		return
	}
	rows := make([][]string, 0, len(list))
	for _, t := range list {
		rows = append(rows, []string{t.Target, t.State, t.Reason})
	}
	fmt.Fprintln(s.out)
	table(s.out, "TARGET STATE REASON", rows)
}
