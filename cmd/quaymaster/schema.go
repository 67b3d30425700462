package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/config"
)

func (s *shell) schemaVerb() *cobra.Command {
	return verb(
		"schema", "Print the JSON Schema of the configuration", "quaymaster schema > quaymaster.schema.json", cobra.NoArgs,
		func(context.Context, []string) error {
			_, err := fmt.Fprintf(s.out, "%s\n", config.Schema())
			return err
		},
	)
}
