package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// version is the release that this source becomes.
const version = "0.1.0"

func (s *shell) versionVerb() *cobra.Command {
	return verb(
		"version", "Print the version", "quaymaster version --json", cobra.NoArgs,
		func(context.Context, []string) error {
			if s.json {
				return s.printJSON(map[string]string{
					"version": version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(s.out, "quaymaster %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	)
}
