package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/state"
)

// layerFile holds the API's part of the configuration, asideFile one that could not be used.
const (
	layerFile = "api.json"
	asideFile = "api-refused.json"
)

// stateEvery is how often the state folder is looked at.
const stateEvery = 3 * time.Second

// asideLayer is an API layer that was left out at start.
type asideLayer struct {
	why  string
	kept error // nil: it is safe under asideFile
}

// readLayer returns nil when there is none that can be used. The files are served all the same: a machine that was
// restarted at night shall serve what it can.
func (d *Daemon) readLayer() *config.Layer {
	data, err := d.state.Read(layerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	layer := &config.Layer{}
	if err == nil {
		err = json.Unmarshal(data, layer)
	}
	if err != nil {
		d.setAside(err)
		return nil
	}
	return layer
}

// setAside keeps an API layer that does not fit under another name, so that the next edit does not overwrite it.
func (d *Daemon) setAside(why error) {
	a := &asideLayer{why: why.Error(), kept: d.keepAside()}
	d.aside.Store(a)
	path := d.state.Path() + "/" + asideFile
	if a.kept != nil {
		path = d.state.Path() + "/" + layerFile
	}
	d.log.Error("routes set by API are left out; mend the file or the configuration and set them again", "path", path, "err", why)
	d.event("config.refused", layerFile, a.why)
}

// keepAside copies the layer's file, or moves it where it cannot be read.
func (d *Daemon) keepAside() error {
	data, err := d.state.Read(layerFile)
	if err != nil {
		return d.state.Rename(layerFile, asideFile)
	}
	return d.state.Write(asideFile, data)
}

// saveLayer makes the API layer durable. It replaces no layer that was left out at start and is kept nowhere else.
func (d *Daemon) saveLayer(l *config.Layer) error {
	l, _ = d.leashes.split(l)
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	if a := d.aside.Load(); a != nil && a.kept != nil {
		if err := d.keepAside(); err != nil {
			return fmt.Errorf("keep the API layer that was left out at start: %w; %s", err, state.Remedy(d.state.Path(), err))
		}
		d.aside.Store(&asideLayer{why: a.why})
	}
	if err := d.state.Write(layerFile, data); err != nil {
		return fmt.Errorf("%w; %s", err, state.Remedy(d.state.Path(), err))
	}
	d.aside.Store(nil)
	return nil
}

// watchState notices a state folder that has become unusable before there is anything to keep, and one that is well
// again. Each change is logged once.
func (d *Daemon) watchState(ctx context.Context) error {
	tick := time.NewTicker(stateEvery)
	defer tick.Stop()
	was := d.state.Fault()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := d.state.Check()
		switch {
		case now != nil && (was == nil || was.Error() != now.Error()):
			d.log.Error("state folder", "err", now, "remedy", state.Remedy(d.state.Path(), now))
		case now == nil && was != nil:
			d.log.Info("state folder is well again", "path", d.state.Path())
		}
		was = now
	}
}

// stateTroubles are what is wrong with what the daemon keeps.
func (d *Daemon) stateTroubles() []api.Trouble {
	var out []api.Trouble
	if err := d.state.Fault(); err != nil {
		out = append(out, api.Trouble{
			Kind: "state", Object: d.state.Path(), Message: "nothing can be kept: " + err.Error(), Remedy: state.Remedy(d.state.Path(), err),
		})
	}
	if a := d.aside.Load(); a != nil {
		t := api.Trouble{
			Kind: "state", Object: d.state.Path() + "/" + layerFile, Message: "the routes set by API are left out: " + a.why,
			Remedy: "they are kept in " + asideFile + "; set them again, or mend the configuration and restart",
		}
		if a.kept != nil {
			t.Remedy = "mend the file or the configuration and restart; until then no edit replaces it (" + a.kept.Error() + ")"
		}
		out = append(out, t)
	}
	return out
}
