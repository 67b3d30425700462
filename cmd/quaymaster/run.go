package main

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/daemon"
)

func (s *shell) runVerb() *cobra.Command {
	var watch, strict, leashed bool
	c := &cobra.Command{
		Use: "run", Short: "Serve until a signal or \"quaymaster stop\" ends it", Args: cobra.NoArgs,
		Long: `Serves the configuration until a signal or "quaymaster stop" ends it.

TERM and INT drain, a second one ends at once; HUP and USR1 reload, USR2 upgrades. Exit codes: 0 stopped well, 1 failed, 2 invalid
configuration, 3 a port could not be had, 4 connections were cut at the deadline or by a second signal.`,
		Example: "  quaymaster run -c quaymaster.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			return s.run(c.Context(), daemon.Options{
				Config: s.config, Socket: s.socket, Watch: watch, Strict: strict, Leashed: leashed, Version: version, Out: s.out, Err: s.err,
				Program: program(), Args: os.Args[1:],
			})
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "reload when the files change")
	c.Flags().BoolVar(&strict, "strict", false, "end with exit code 3 if a port is busy at start, instead of retrying or falling back")
	c.Flags().BoolVar(&leashed, "leashed", false, "stop when nobody holds a leash any more; \"quaymaster dev\" starts such a daemon")
	_ = c.Flags().MarkHidden("leashed")
	return c
}

// program is the file that this process was started from, by the name it was started by: another file may stand there
// when the daemon is upgraded.
func program() string {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		path, _ = os.Executable()
	}
	return path
}

// run turns signals into what they ask of the daemon.
func (s *shell) run(ctx context.Context, o daemon.Options) error {
	d := daemon.New(o)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Stop(signals)
	over := make(chan struct{})
	heard := make(chan struct{})
	go obey(ctx, d, signals, over, heard)
	code := d.Run(ctx)
	close(over)
	<-heard
	if code != daemon.ExitOK {
		return &coded{code, nil} // the daemon has said why
	}
	return nil
}

// obey passes signals on until over is closed, and then closes heard.
func obey(ctx context.Context, d *daemon.Daemon, signals <-chan os.Signal, over <-chan struct{}, heard chan<- struct{}) {
	defer close(heard)
	stopping := false
	for {
		select {
		case <-over:
			return
		case sig := <-signals:
			switch sig {
			case syscall.SIGHUP, syscall.SIGUSR1:
				d.Reload()
			case syscall.SIGUSR2:
				go func() { _, _ = d.Upgrade(ctx, api.UpgradeOptions{}) }() // it logs what becomes of it, and ends with ctx or Run
			default:
				if stopping {
					d.Cut()
				}
				stopping = true
				d.Stop()
			}
		}
	}
}
