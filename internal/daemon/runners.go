package daemon

import (
	"log/slog"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// runners are those who run apps, by kind.
func (d *Daemon) runners(*slog.Logger) func(*plan.App) run.Runner {
	return func(*plan.App) run.Runner { return nil }
}
