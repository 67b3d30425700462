package control

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"time"

	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/engine/labels"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// What is logged of refused labels: so many for one change, each once in so long, and so many are remembered.
const (
	shownRefusals = 20
	tellAgain     = time.Minute
	maxTold       = 1000
)

// Containers follows what the labels of the running containers ask for. A container whose routes cannot be had, such as
// one that wants a port that is taken, is left out alone and stays left out until it is tried again: with the next list,
// the next reload or edit, or by the next call. left is how many there are. The files are not read again, a reload that
// waits for its confirmation goes on waiting, and the revision stays: it names what people have written.
func (l *Loop) Containers(ctx context.Context, list []labels.Container) (left int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.closed(); err != nil {
		return 0, err
	}
	l.wanted = list
	err = l.relabel(ctx)
	return len(l.unhad), err
}

// relabel follows the list of containers that was told last. mu is held.
func (l *Loop) relabel(ctx context.Context) error {
	l.unhad = nil
	err := l.label(ctx, l.wanted)
	if !unavailable(err) {
		return err
	}
	// Somebody cannot be had: those that are as they were first, and then the others.
	now := l.now.Load()
	in := make([]bool, len(l.wanted))
	for i := range l.wanted {
		in[i] = slices.ContainsFunc(now.Containers, func(c labels.Container) bool { return reflect.DeepEqual(c, l.wanted[i]) })
	}
	if err := l.label(ctx, picked(l.wanted, in)); err != nil {
		return err
	}
	var rest []int
	for i := range l.wanted {
		if !in[i] {
			rest = append(rest, i)
		}
	}
	if err := l.add(ctx, in, rest); err != nil {
		return err
	}
	return l.label(ctx, picked(l.wanted, in)) // with those that were left out told
}

// add follows some more containers, and finds those among them that cannot be had by halves.
func (l *Loop) add(ctx context.Context, in []bool, more []int) error {
	if len(more) == 0 {
		return nil
	}
	mark := func(to bool) {
		for _, i := range more {
			in[i] = to
		}
	}
	mark(true)
	err := l.label(ctx, picked(l.wanted, in))
	if !unavailable(err) {
		return err
	}
	mark(false)
	if len(more) > 1 {
		half := len(more) / 2
		if err := l.add(ctx, in, more[:half]); err != nil {
			return err
		}
		return l.add(ctx, in, more[half:])
	}
	l.unhad = append(l.unhad, config.Refusal{
		Container: l.wanted[more[0]].Source(), Message: "its routes cannot be had: " + err.Error(),
		Remedy: "it is tried again by itself; `quaymaster ports` shows what is taken",
	})
	return nil
}

func picked(list []labels.Container, in []bool) []labels.Container {
	out := []labels.Container{}
	for i := range list {
		if in[i] {
			out = append(out, list[i])
		}
	}
	return out
}

// unavailable reports whether a valid plan could not be had.
func unavailable(err error) bool {
	var f *FollowError
	return errors.As(err, &f)
}

// label follows the files and the API layer in force with these containers. mu is held.
func (l *Loop) label(ctx context.Context, list []labels.Container) error {
	now := l.now.Load()
	loaded, err := compile(l.loader, now.sources, now.Layer, list)
	if err != nil {
		return err
	}
	next := loaded.state(now.Layer)
	next.Error, next.LoadedAt = now.Error, now.LoadedAt
	next.Refused = append(next.Refused, l.unhad...)
	if changes := plan.Diff(now.Plan, next.Plan); len(changes) > 0 {
		if err := l.follow(ctx, next); err != nil {
			return err
		}
		l.o.Log.Info("routes of containers changed", "changes", len(changes), "first", changes[0].String(), "containers", len(list))
		return nil
	}
	l.now.Store(next)
	l.tell(now.Refused, next.Refused)
	return nil
}

// containers are those whose labels are followed. mu is held.
func (l *Loop) containers() []labels.Container {
	if now := l.now.Load(); now != nil {
		return now.Containers
	}
	return nil
}

// sure are the containers that have all their routes: what is new for the others may be what cannot be had. mu is held.
func (l *Loop) sure() []labels.Container {
	now := l.now.Load()
	return slices.DeleteFunc(slices.Clone(now.Containers), func(c labels.Container) bool {
		return slices.ContainsFunc(now.Refused, func(r config.Refusal) bool { return r.Container == c.Source() })
	})
}

// try changes to what compile makes of a list of containers. If that cannot be had, it is tried without those that have
// not all their routes so far, and these alone are left out. mu is held.
func (l *Loop) try(ctx context.Context, o ReloadOptions, compile func([]labels.Container) (*State, error)) (Result, error) {
	list := l.containers()
	next, err := compile(list)
	if err != nil {
		return Result{}, err
	}
	res, err := l.change(ctx, next, o)
	if unavailable(err) {
		if sure := l.sure(); len(sure) < len(list) {
			if next, err = compile(sure); err == nil {
				res, err = l.change(ctx, next, o)
			}
		}
	}
	if err == nil && !o.DryRun && len(l.wanted) != len(l.containers()) {
		if err := l.relabel(ctx); err != nil {
			l.o.Log.Warn("routes of containers", "err", err)
		}
	}
	return res, err
}

// tell logs labels that are newly refused, each once a minute at the most: a container may come and go as fast as it
// likes. mu is held.
func (l *Loop) tell(was, now []config.Refusal) {
	news := 0
	for i := range now {
		r := now[i]
		if slices.Contains(was, r) || time.Since(l.told[r]) < tellAgain {
			continue
		}
		if news++; news > shownRefusals {
			continue
		}
		if len(l.told) >= maxTold {
			clear(l.told)
		}
		if l.told == nil {
			l.told = map[config.Refusal]time.Time{}
		}
		l.told[r] = time.Now()
		l.o.Log.Warn("label refused", "container", r.Container, "label", r.Label, "err", r.Message, "remedy", r.Remedy)
		l.o.Event("label.refused", r.Container, r.String())
	}
	if news > shownRefusals {
		l.o.Log.Warn("more labels refused; the status shows them", "labels", news-shownRefusals)
	}
}

// With is the same with the labels of containers.
func (l *Loaded) With(list []labels.Container) (*Loaded, error) {
	return compile(l.loader, l.sources, l.layer, list)
}
