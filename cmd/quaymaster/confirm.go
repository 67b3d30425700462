package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) confirmVerb() *cobra.Command {
	return verb(
		"confirm", "Keep what \"reload --confirm\" applied", "quaymaster confirm", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			c := s.client()
			defer c.Close()
			var done api.Confirmed
			if err := c.Do(ctx, http.MethodPost, "/v1/confirm", "", nil, &done); err != nil {
				return cannot("confirm", err)
			}
			if s.json {
				return s.printJSON(done)
			}
			fmt.Fprintf(s.out, "confirmed revision %s\n", done.Revision)
			return nil
		},
	)
}
