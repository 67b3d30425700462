package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/control"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// changes is how the API sees and changes the configuration.
type changes Daemon

// Plan is the plan in force.
func (c *changes) Plan() (*plan.Plan, string) {
	now := c.loop.Now()
	if now == nil {
		return &plan.Plan{}, ""
	}
	return now.Plan, now.Revision
}

// Reload reads the files again and follows them.
func (c *changes) Reload(ctx context.Context, o api.ReloadOptions) (*api.Change, error) {
	res, err := c.loop.Reload(ctx, control.ReloadOptions{DryRun: o.DryRun, Confirm: o.Confirm})
	return change(res, err)
}

// Confirm keeps a reload that waits for it.
func (c *changes) Confirm(context.Context) error {
	if err := c.loop.Confirm(); err != nil {
		return &api.Problem{Title: "Nothing to confirm", Status: http.StatusConflict, Detail: err.Error()}
	}
	return nil
}

// PutRoute makes or replaces a route of the API layer.
func (c *changes) PutRoute(ctx context.Context, name string, body []byte, match string) (*api.Change, error) {
	return c.edit(ctx, match, func(l *config.Layer) error {
		if err := config.FileHolds(c.loop.Now().Plan, name); err != nil {
			return err
		}
		if err := c.leashes.held(name); err != nil {
			return err
		}
		return l.Put(name, body)
	})
}

// DeleteRoute takes a route out of the API layer.
func (c *changes) DeleteRoute(ctx context.Context, name, match string) (*api.Change, error) {
	leash := ""
	out, err := c.edit(ctx, match, func(l *config.Layer) error {
		if err := config.FileHolds(c.loop.Now().Plan, name); err != nil {
			return err
		}
		if !l.Delete(name) {
			return &api.Problem{Title: "No such route", Status: http.StatusNotFound, Detail: "there is no route " + name + " in the API layer"}
		}
		leash = c.leashes.letGo(name)
		return nil
	})
	if err != nil {
		c.leashes.back(name, leash)
	}
	return out, err
}

// PutApp makes or replaces an app of the API layer.
func (c *changes) PutApp(ctx context.Context, name string, body []byte, match string) (*api.Change, error) {
	return c.edit(ctx, match, func(l *config.Layer) error {
		if err := config.FileHoldsApp(c.loop.Now().Plan, name); err != nil {
			return err
		}
		return l.PutApp(name, body)
	})
}

// DeleteApp takes an app out of the API layer: it ends, and its port is given back.
func (c *changes) DeleteApp(ctx context.Context, name, match string) (*api.Change, error) {
	return c.edit(ctx, match, func(l *config.Layer) error {
		if err := config.FileHoldsApp(c.loop.Now().Plan, name); err != nil {
			return err
		}
		if !l.DeleteApp(name) {
			return &api.Problem{Title: "No such app", Status: http.StatusNotFound, Detail: "there is no app " + name + " in the API layer"}
		}
		return nil
	})
}

// PutConfig replaces the API layer as a whole.
func (c *changes) PutConfig(ctx context.Context, body []byte, match string) (*api.Change, error) {
	var next config.Layer
	dec := jsonStrict(body)
	if err := dec.Decode(&next); err != nil {
		return nil, &api.Problem{
			Type: api.Invalid, Title: "Invalid configuration", Status: http.StatusUnprocessableEntity,
			Detail: `the body is not the API layer: ` + err.Error() + `; send {"routes": {"NAME": {...}}}`,
		}
	}
	return c.edit(ctx, match, func(l *config.Layer) error {
		_, leashed := c.leashes.split(l)
		*l = config.Layer{Routes: leashed}
		for name, app := range next.Apps {
			if err := config.FileHoldsApp(c.loop.Now().Plan, name); err != nil {
				return err
			}
			if err := l.PutApp(name, app); err != nil {
				return err
			}
		}
		for name, route := range next.Routes {
			if err := config.FileHolds(c.loop.Now().Plan, name); err != nil {
				return err
			}
			if _, ok := leashed[name]; ok {
				continue // as it was read from us; it goes with its leash
			}
			if err := l.Put(name, route); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *changes) edit(ctx context.Context, match string, f func(*config.Layer) error) (*api.Change, error) {
	res, err := c.loop.Edit(ctx, match, f)
	if errors.Is(err, control.ErrStale) {
		return nil, &api.Problem{Type: api.Stale, Title: "Stale revision", Status: http.StatusPreconditionFailed, Detail: err.Error()}
	}
	return change(res, err)
}

// change is a result as the API shows it.
func change(res control.Result, err error) (*api.Change, error) {
	var p *api.Problem
	switch {
	case errors.As(err, &p):
		return nil, p
	case errors.Is(err, control.ErrFrozen):
		return nil, &api.Problem{Title: "Stopping", Status: http.StatusServiceUnavailable, Detail: err.Error()}
	case errors.Is(err, control.ErrStarting):
		return nil, &api.Problem{Title: "Starting", Status: http.StatusServiceUnavailable, Detail: err.Error()}
	case err != nil:
		return nil, problemOf(err)
	}
	out := &api.Change{
		Revision: res.Revision, Changes: items(res.Changes), Touched: res.Touched, DryRun: res.DryRun,
		ConfirmBy: confirmBy(time.Now(), res.Confirm),
	}
	for _, w := range res.Warnings {
		out.Warnings = append(out.Warnings, findings(config.Errors{w.Error})...)
	}
	return out, nil
}

// Config shows the files, the API layer and both together.
func (c *changes) Config(context.Context) (*api.ConfigView, error) {
	v := &api.ConfigView{ConfigStatus: (*Daemon)(c).configStatus()}
	if now := c.loop.Now(); now != nil {
		v.Layer = now.Layer
		v.Effective = string(config.Expand(now.Plan))
	}
	return v, nil
}

// Check judges a configuration without following it: the body, or the files of the daemon.
func (c *changes) Check(ctx context.Context, body []byte) (*api.Change, error) {
	if len(body) == 0 {
		return change(c.loop.Check(ctx))
	}
	now := c.loop.Now()
	if now == nil {
		return change(control.Result{}, control.ErrStarting)
	}
	p, warnings, _, err := config.NewLoader().LoadWith([]config.Source{{Name: "body", Bytes: body}}, nil, now.Containers)
	if err != nil {
		return nil, problemOf(err)
	}
	return change(control.Result{Changes: plan.Diff(now.Plan, p), Warnings: warnings, DryRun: true, Revision: now.Revision}, nil)
}

func jsonStrict(body []byte) *json.Decoder {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	return dec
}
