package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/control"
	"github.com/quaymaster/quaymaster/internal/engine"
	"github.com/quaymaster/quaymaster/internal/engine/labels"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// The clocks of routes from labels.
const (
	labelsFirst = time.Second      // for engines to say what runs, before the first plan
	labelsHeir  = 3 * time.Second  // the same, when routes of the process before would be missed
	labelsSoon  = time.Second      // until a list is tried again that came at a bad moment
	labelsAgain = 30 * time.Second // until routes are tried again that could not be had
	maxTroubles = 100              // of labels, in a status
)

// newWatch follows the containers of the engines that the plan in force names.
func (d *Daemon) newWatch() *engine.Watch {
	return engine.NewWatch(engine.WatchOptions{
		Log: d.log.With("component", "engine"), Found: d.labelled,
		Settings: func() (plan.EngineSettings, plan.LabelSettings) {
			now := d.loop.Now()
			if now == nil {
				return plan.EngineSettings{}, plan.LabelSettings{}
			}
			return now.Plan.Settings.Engine, now.Plan.Settings.Labels
		},
	})
}

// labelled follows what the running containers ask for.
func (d *Daemon) labelled(ctx context.Context, list []labels.Container) (again time.Duration) {
	left, err := d.loop.Containers(ctx, list)
	switch {
	case errors.Is(err, control.ErrUpgrading), errors.Is(err, control.ErrStarting), errors.Is(err, control.ErrFrozen):
		return labelsSoon
	case err != nil:
		d.log.Error("routes of containers stay as they are", "err", err)
		return labelsAgain
	case left > 0:
		return labelsAgain
	}
	return 0
}

// withLabels adds to the first plan what the running containers ask for, so that their routes are there with all others.
// Where a port that is taken would end the start, they come after it.
func (d *Daemon) withLabels(ctx context.Context, first *control.Loaded) *control.Loaded {
	set := &first.Plan.Settings
	within := labelsFirst
	if d.heir != nil {
		within = labelsHeir
	} else if d.o.Strict {
		return first
	}
	ctx, stop := context.WithTimeout(ctx, within)
	defer stop()
	list, err := d.watch.First(ctx, set.Engine, set.Labels, d.inheritedContainers())
	if err != nil && d.heir != nil {
		d.log.Warn("routes of containers are those of the process before until their engine answers", "err", err)
	}
	if len(list) == 0 {
		return first
	}
	with, err := first.With(list)
	if err != nil {
		d.log.Error("routes of containers", "err", err)
		return first
	}
	if d.heir == nil && slices.ContainsFunc(with.Plan.Ports, func(p *plan.Port) bool {
		return p.Policy.OnBusy == "fail" && !slices.ContainsFunc(first.Plan.Ports, func(own *plan.Port) bool { return own.Addr == p.Addr })
	}) {
		return first
	}
	return with
}

// containersFile holds what a process that is replaced knows of containers, for one that starts while an engine is down.
const containersFile = "containers.json"

// leaveContainers writes down what runs.
func (d *Daemon) leaveContainers() {
	data, err := json.Marshal(d.watch.Known())
	if err == nil {
		err = d.state.Write(containersFile, data)
	}
	if err != nil {
		d.log.Warn("containers are not handed over; their routes come when their engine answers", "err", err)
	}
}

// inheritedContainers is what the process before wrote down, nil where there was none.
func (d *Daemon) inheritedContainers() map[string][]labels.Container {
	if d.heir == nil {
		return nil
	}
	var out map[string][]labels.Container
	data, err := d.state.Read(containersFile)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("containers of the process before", "err", err)
	}
	return out
}

// labelTroubles are labels that are not followed, and engines that are not heard.
func (d *Daemon) labelTroubles() []api.Trouble {
	var out []api.Trouble
	for _, s := range d.watch.Status() {
		if s.Err != nil && (s.Known > 0 || s.Must) {
			out = append(out, api.Trouble{
				Kind: "engine", Object: s.Socket,
				Message: "the container engine is not heard: " + s.Err.Error() + "; the routes of its containers (" + strconv.Itoa(s.Known) + ") stay as they are",
				Remedy:  "start it; what has changed is followed as soon as it answers",
			})
		}
	}
	now := d.loop.Now()
	if now == nil {
		return out
	}
	for i := range now.Refused {
		r := &now.Refused[i]
		if i == maxTroubles {
			out = append(out, api.Trouble{Kind: "label", Message: strconv.Itoa(len(now.Refused)-i) + " more labels are refused", Remedy: "mend those above first"})
			break
		}
		message := r.Message
		if r.Label != "" {
			message = "label " + r.Label + ": " + message
		}
		out = append(out, api.Trouble{Kind: "label", Object: r.Container, Message: message, Remedy: r.Remedy})
	}
	return out
}
