package daemon

import (
	"log/slog"
	"path/filepath"
	"runtime"

	"github.com/quaymaster/quaymaster/internal/apps/process"
	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// runners are those who run apps, by kind.
func (d *Daemon) runners(log *slog.Logger) func(*plan.App) run.Runner {
	processes := process.New(process.Options{
		Log: log, Launcher: d.launcher(), Args: []string{"launch"}, Dir: filepath.Join(d.state.Path(), "run"),
	})
	d.processes = processes
	return func(a *plan.App) run.Runner {
		if a.Image != "" {
			return nil
		}
		return processes
	}
}

// launcher is our own program, also when its file has been replaced or removed since.
func (d *Daemon) launcher() string {
	if runtime.GOOS == "linux" || runtime.GOOS == "android" {
		return "/proc/self/exe"
	}
	return d.o.Program
}
