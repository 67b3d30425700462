package daemon

import (
	"context"
	"log/slog"
	"time"
)

// undoStack is what Stop does, last thing first.
type undoStack struct {
	log   *slog.Logger
	steps []undoStep
}

type undoStep struct {
	name string
	do   func(context.Context)
}

func (u *undoStack) push(name string, do func(context.Context)) {
	u.steps = append(u.steps, undoStep{name, do})
}

// unwind does every step. Each gets ctx, which may be over already: a step then does the quick thing.
func (u *undoStack) unwind(ctx context.Context) {
	for len(u.steps) > 0 {
		s := u.steps[len(u.steps)-1]
		u.steps = u.steps[:len(u.steps)-1]
		start := time.Now()
		s.do(ctx)
		u.log.Debug("stopped", "part", s.name, "took", time.Since(start).Round(time.Millisecond))
	}
}
