package apps

import (
	"context"
	"slices"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/run"
)

// The limits of take_over: a holder that comes back as often as it is ended is kept alive by somebody.
const (
	evictMost   = 3 // within evictWindow
	evictWindow = 10 * time.Minute
)

// evict ends who has the port of the app, where that is allowed, and then starts the app. Nothing is started meanwhile.
// Where it is not, failed is called with the reason.
func (a *app) evict(e *run.PortError, text string, failed func(reason string)) {
	a.evicted = slices.DeleteFunc(a.evicted, func(t time.Time) bool { return time.Since(t) > evictWindow })
	if len(a.evicted) >= evictMost {
		failed(text + "; 3 holders were ended within 10 min and it was taken again each time: something starts them, stop that first")
		return
	}
	want, was := a.want, a.lease
	a.s.opt.Log.Warn("app takes its port over", "app", a.name, "port", e.Port, "reason", text)
	a.s.opt.Events("app.port_taken", a.name, text+"; it is taken over")
	a.portWork(func(ctx context.Context) {
		ended, err := a.s.opt.Evict(ctx, want, e.Port)
		if err == nil && was != nil && was.Port() == e.Port {
			err = reclaim(ctx, was)
		}
		a.post(func() {
			if ended {
				a.evicted = append(a.evicted, time.Now())
			}
			if err != nil {
				failed(text + "; " + err.Error())
			}
		})
	})
}
