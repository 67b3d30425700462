package daemon

import (
	"log/slog"
	"path/filepath"

	"github.com/quaymaster/quaymaster/internal/apps/process"
	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// runners are those who run apps, by kind.
func (d *Daemon) runners(log *slog.Logger) func(*plan.App) run.Runner {
	processes := process.New(process.Options{
		Log: log, Launcher: d.o.Program, Args: []string{"launch"}, Dir: filepath.Join(d.state.Path(), "run"),
	})
	return func(a *plan.App) run.Runner {
		if a.Image != "" {
			return nil
		}
		return processes
	}
}
