package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/doctor"
	"github.com/quaymaster/quaymaster/internal/engine"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// askedWithin bounds how long a daemon or an engine is asked.
const askedWithin = 5 * time.Second

func (s *shell) doctorVerb() *cobra.Command {
	c := verb(
		"doctor", "Look at limits, ports, permissions and certificates, and say what to do. Needs no daemon", "quaymaster doctor -c quaymaster.yaml", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return s.doctor(ctx) },
	)
	c.Long = `Looks at this machine as the configuration needs it: the limits of the system, each port,
files and folders, certificates and the names they are ordered for (looked up by DNS), the
clock, the running daemon, the kernel and the systemd unit. Everything that is not well comes
with the command or line that mends it. Run it as root to see who holds what.

Nothing is changed. A port that no daemon of ours holds is bound for a moment, without
listening, to see whether it could be had: a program that binds the same port in that
moment without SO_REUSEADDR fails.

Exit codes: 0 nothing fails (there may be warnings), 1 something does.`
	return c
}

// examined is what `doctor --json` prints.
type examined struct {
	OK       bool             `json:"ok"`
	Findings []doctor.Finding `json:"findings"`
}

func (s *shell) doctor(ctx context.Context) error {
	subject := doctor.Subject{Socket: s.findSocket()}
	var v verdict
	var found []doctor.Finding
	p, err := v.load(s.config)
	subject.Files = v.Files
	if err != nil {
		found = append(found, unloadable(err, s.config != "" || len(v.Files) > 0))
	} else {
		subject.Plan = p
		subject.Published, subject.EngineErr = published(ctx, p)
	}
	subject.Running, subject.Silent = s.askDaemon(ctx)
	found = append(found, doctor.Examine(subject)...)
	return s.diagnosis(examined{OK: doctor.Healthy(found), Findings: found})
}

// unloadable is a configuration that cannot be used. Where none was named and none is in a usual place, there is none yet.
func unloadable(err error, named bool) doctor.Finding {
	f := doctor.Finding{Area: "configuration", Object: "configuration", Level: doctor.Fail, Message: err.Error(), Remedy: "quaymaster check says every mistake and what to write instead"}
	var bad config.Errors
	switch {
	case !named:
		f.Level, f.Remedy = doctor.Warn, "name one with -c FILE"
	case errors.As(err, &bad) && len(bad) > 0:
		f.Object, f.Message = bad[0].File, fmt.Sprintf("%s, the first: %s", plural(len(bad), "mistake"), bad[0].Error())
	}
	return f
}

// published asks the container engines.
func published(ctx context.Context, p *plan.Plan) (map[uint16]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askedWithin)
	defer cancel()
	return engine.New(engine.Options{Settings: func() plan.EngineSettings { return p.Settings.Engine }}).Published(ctx)
}

// askDaemon lets a running daemon speak for itself; nil when none answers. The error says that somebody is there all the
// same.
func (s *shell) askDaemon(ctx context.Context) (*doctor.Running, error) {
	ctx, cancel := context.WithTimeout(ctx, askedWithin)
	defer cancel()
	c := s.client()
	defer c.Close()
	var st api.Status
	if err := c.Get(ctx, "/v1/status", &st); err != nil {
		var nobody *api.Unreachable
		if errors.As(err, &nobody) && (errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)) {
			return nil, nil
		}
		return nil, err
	}
	r := &doctor.Running{PID: st.PID, State: st.State, Held: s.running(ctx)}
	for _, t := range st.Problems {
		level := doctor.Warn
		if t.Kind == "port" || t.Kind == "state" {
			level = doctor.Fail
		}
		r.Problems = append(r.Problems, doctor.Finding{Object: t.Object, Level: level, Message: t.Message, Remedy: t.Remedy})
	}
	return r, nil
}

// diagnosis prints what was found, area by area, and returns exit code 1 if anything fails.
func (s *shell) diagnosis(e examined) error {
	if s.json {
		if err := s.printJSON(e); err != nil {
			return err
		}
	} else {
		s.printFindings(e.Findings)
	}
	if !e.OK {
		return &coded{exitFailed, nil}
	}
	return nil
}

func (s *shell) printFindings(list []doctor.Finding) {
	area, bad := "", map[doctor.Level]int{}
	for _, f := range list {
		if f.Area != area {
			area = f.Area
			fmt.Fprintf(s.out, "%s\n", area)
		}
		bad[f.Level]++
		fmt.Fprintf(s.out, "  %-4s  %s: %s\n", f.Level, clean(f.Object), clean(f.Message))
		if f.Remedy != "" {
			fmt.Fprintf(s.out, "        do: %s\n", clean(f.Remedy))
		}
	}
	fmt.Fprintf(s.out, "%d looked at: %s, %s\n", len(list), plural(bad[doctor.Fail], "failure"), plural(bad[doctor.Warn], "warning"))
}
