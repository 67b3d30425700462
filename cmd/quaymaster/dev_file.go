package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/quaymaster/quaymaster/internal/apps/leash"
	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// appsFile is the configuration whose apps are run: the one of -c, or quaymaster.yaml of the folder, if it has apps.
func (d *devRun) appsFile() string {
	if d.s.config != "" {
		return d.s.config
	}
	file := filepath.Join(d.dir, "quaymaster.yaml")
	if text, err := os.ReadFile(file); err != nil || !bytes.HasPrefix(text, []byte("apps:")) && !bytes.Contains(text, []byte("\napps:")) {
		return ""
	}
	return file
}

// readFile makes the apps of the configuration. Nothing else of it is followed: routes are for where it is run for good.
func (d *devRun) readFile() error {
	list, text, err := d.appsOf(d.file)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("cannot run %s: it has no apps; write them under apps, or say a command: quaymaster dev -- ./server", d.file)
	}
	d.apps, d.source, d.text = list, filepath.Base(d.file), text
	d.place()
	return nil
}

// appsOf reads the apps of a file, and its bytes.
func (d *devRun) appsOf(file string) ([]*devApp, []byte, error) {
	files, err := config.FindFiles(file)
	if err != nil {
		return nil, nil, err
	}
	sources, err := config.ReadFiles(files)
	if err != nil {
		return nil, nil, err
	}
	var text []byte
	for _, s := range sources {
		text = append(append(text, s.Bytes...), 0)
	}
	p, _, err := config.NewLoader().Load(sources, nil)
	if err != nil {
		return nil, text, err
	}
	var out []*devApp
	for _, a := range p.Apps {
		app, err := d.fromPlan(a)
		if err != nil {
			return nil, text, err
		}
		out = append(out, app)
	}
	return out, text, nil
}

// fromPlan makes an app of an entry. Who it runs as, how it is restarted and what it may use is for where it runs for good.
func (d *devRun) fromPlan(e *plan.App) (*devApp, error) {
	switch {
	case len(e.Command) == 0:
		return nil, fmt.Errorf("cannot run app %s here: it is a container; leave it to \"quaymaster run\", or give it a command", e.Name)
	case e.Socket != "tcp":
		return nil, fmt.Errorf("cannot run app %s here: socket: %s is for \"quaymaster run\"; leave it out, or say a command: quaymaster dev %s -- ./server", e.Name, e.Socket, e.Name)
	}
	a := &devApp{name: e.Name, command: e.Command, dir: e.Dir, after: e.DependsOn, entry: e, port: int(e.Port)}
	if a.dir == "" {
		a.dir = d.dir
	}
	for _, v := range e.Env {
		a.env = append(a.env, [2]string{v.Name, v.Value})
	}
	for _, name := range e.EnvRequired {
		_, ours := os.LookupEnv(name)
		if !ours && !slices.ContainsFunc(a.env, func(v [2]string) bool { return v[0] == name }) {
			return nil, fmt.Errorf("cannot run app %s: %s is not in the environment; set it, or write it under env", e.Name, name)
		}
	}
	return a, nil
}

// reread follows a file that was changed: apps whose entry is another are started anew, the others go on.
func (d *devRun) reread(ctx context.Context) {
	if d.file == "" || d.ending {
		return
	}
	list, text, err := d.appsOf(d.file)
	if bytes.Equal(text, d.text) || text == nil {
		return
	}
	d.text = text
	if err != nil {
		d.say.note("%s is not followed, all goes on as it was: %v", d.source, err)
		return
	}
	d.say.note("%s was changed", d.source)
	for _, old := range slices.Clone(d.apps) {
		at := slices.IndexFunc(list, func(a *devApp) bool { return a.name == old.name })
		switch {
		case at < 0:
			d.retire(ctx, old, nil)
		case reflect.DeepEqual(old.entry, list[at].entry):
			list = slices.Delete(list, at, at+1)
		default:
			d.retire(ctx, old, list[at])
			list = slices.Delete(list, at, at+1)
		}
	}
	for _, a := range list {
		d.enter(ctx, a)
	}
	d.startReady()
}

// retire ends an app; next takes its place and its port.
func (d *devRun) retire(ctx context.Context, a, next *devApp) {
	a.remove, a.next = true, next
	if a.leash != nil {
		a.leash.Stop(leash.Term)
		return
	}
	d.replace(ctx, a)
}

// replace goes on after an app that was retired has ended.
func (d *devRun) replace(ctx context.Context, a *devApp) {
	d.apps = slices.DeleteFunc(d.apps, func(b *devApp) bool { return a == b })
	if a.next == nil {
		d.hold.drop(ctx, a)
		d.say.note("%s is gone", a.label)
		return
	}
	next := a.next
	next.label, next.host = a.label, a.host
	if a.entry.Port == next.entry.Port {
		next.port, next.leased = a.port, a.leased
	}
	d.hold.drop(ctx, a)
	d.join(ctx, next)
	d.startReady()
}

// enter makes an app one of ours that was not there before.
func (d *devRun) enter(ctx context.Context, a *devApp) {
	a.label, a.host = a.name, a.name+"."+d.base+".localhost"
	d.join(ctx, a)
}

func (d *devRun) join(ctx context.Context, a *devApp) {
	if d.ending {
		return
	}
	if err := d.hold.add(ctx, a); err != nil {
		d.say.note("%s cannot be run: %v", a.name, err)
		return
	}
	d.apps = append(d.apps, a)
	d.say.note("%s will be at %s", a.label, a.url())
}
