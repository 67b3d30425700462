package daemon

import (
	"context"
	"fmt"
	"net"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/logs"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// settings follows the keys that belong to the daemon itself: log level and format, access log file, metrics address.
// The admin endpoint and the state folder cannot follow; a plan that changes them is refused.
type settings struct {
	d *Daemon

	now *plan.Settings // committed last; control calls one method at a time
	met net.Listener   // of metrics.address; nil when there is none
}

type settingsStep struct {
	s       *settings
	next    *plan.Settings
	lines   *logs.Lines // nil: unchanged
	met     net.Listener
	changed bool // met replaces s.met
	old     *logs.Lines
	oldMet  net.Listener
}

// Prepare opens what the new settings name.
func (s *settings) Prepare(_ context.Context, p *plan.Plan) (plan.Step, error) {
	next := &p.Settings
	step := &settingsStep{s: s, next: next}
	if s.now != nil {
		if !reflect.DeepEqual(s.now.Admin, next.Admin) {
			return nil, fmt.Errorf("cannot change admin while running: it needs upgrade; restart quaymaster, or put the old value back")
		}
		if s.now.StateDir != next.StateDir {
			return nil, fmt.Errorf("cannot change state_dir from %s to %s while running: it needs upgrade; restart quaymaster, or put the old value back", s.now.StateDir, next.StateDir)
		}
	}
	if s.now == nil || s.now.AccessLog.File != next.AccessLog.File {
		lines, err := logs.NewLines(logs.LinesOptions{File: next.AccessLog.File, Out: s.d.o.Out, Log: s.d.log.With("component", "logs")})
		if err != nil {
			return nil, err
		}
		step.lines = lines
	}
	if was := s.metricsAddress(); was != metricsAddress(next) {
		step.changed = true
		if addr := metricsAddress(next); addr != "" {
			l, err := s.d.ports.ListenTCP("metrics", addr)
			if err != nil {
				step.Abort()
				return nil, err
			}
			step.met = l
		}
	}
	return step, nil
}

func (s *settings) metricsAddress() string {
	if s.now == nil {
		return ""
	}
	return metricsAddress(s.now)
}

func metricsAddress(s *plan.Settings) string {
	if !s.Metrics.Enabled {
		return ""
	}
	return s.Metrics.Address
}

// Commit makes the new settings effective.
func (t *settingsStep) Commit() {
	s := t.s
	_ = s.d.level.Set(t.next.LogLevel, t.next.LogFormat) // config has refused unknown words
	if t.lines != nil {
		t.old = s.d.access.swap(t.lines)
		s.d.work(s.d.life, "access log", t.lines.Run)
	}
	if t.changed {
		t.oldMet, s.met = s.met, t.met
		if t.met != nil {
			l := t.met
			s.d.work(s.d.life, "metrics", func(context.Context) error { return s.d.api.Serve(l, api.Metrics) })
		}
	}
	s.now = t.next
	s.d.watch.Poke()
}

// Retire closes what the old settings had open.
func (t *settingsStep) Retire() {
	if t.old != nil {
		t.old.Close()
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		if err := t.old.Wait(ctx); err != nil {
			t.s.d.log.Warn("access log", "err", err)
		}
	}
	if t.oldMet != nil {
		_ = t.oldMet.Close()
	}
}

// Abort closes what only the refused settings had open.
func (t *settingsStep) Abort() {
	if t.lines != nil {
		t.lines.Discard()
	}
	if t.met != nil {
		_ = t.met.Close()
	}
}

// accessLog is the access log of the settings in force. It may be written to by every connection while it is swapped.
type accessLog struct{ now atomic.Pointer[logs.Lines] }

// Write hands whole lines on. Before the first settings are in force there is nobody to write any.
func (a *accessLog) Write(p []byte) (int, error) {
	if l := a.now.Load(); l != nil {
		return l.Write(p)
	}
	return len(p), nil
}

func (a *accessLog) swap(l *logs.Lines) (old *logs.Lines) { return a.now.Swap(l) }

// reopen opens the file anew after it was rotated away.
func (a *accessLog) reopen() error {
	if l := a.now.Load(); l != nil {
		return l.Reopen()
	}
	return nil
}
