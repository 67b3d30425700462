package daemon

import (
	"context"
	"runtime/debug"
	"time"
)

// tidyEvery is how often the number of connections is looked at.
const tidyEvery = 5 * time.Second

// tidy gives memory back after a change in the number of connections has settled. An exchange allocates nothing, so the
// garbage collector has no reason of its own to run in a process that is idle behind a burst: stacks would stay as
// large as their deepest moment, and freed pages with the process.
func (d *Daemon) tidy(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	collected, before := 0, 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := d.guard.Status().Active
		if differ(now, collected) && !differ(now, before) {
			debug.FreeOSMemory()
			collected = now
		}
		before = now
	}
}

// differ reports whether two counts are more than a tenth and more than fifty apart.
func differ(a, b int) bool {
	gap := max(a-b, b-a)
	return gap > 50 && gap > max(a, b)/10
}
