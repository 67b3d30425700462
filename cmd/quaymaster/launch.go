package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/apps/launch"
)

// launchVerb is what a daemon runs to become an app. It is no verb for people.
func (s *shell) launchVerb() *cobra.Command {
	return &cobra.Command{
		Use: "launch FD", Hidden: true, Args: cobra.ExactArgs(1),
		Short: "Become an app of the daemon that runs this",
		RunE: func(_ *cobra.Command, args []string) error {
			link, err := strconv.Atoi(args[0])
			if err != nil {
				link = -1
			}
			return failed(launch.Become(link))
		},
	}
}
