package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/engine"
	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	mostNames = 9                // containers of one app at once
	cleanTime = 30 * time.Second // to take back what was begun
	orphanEnd = 10 * time.Second // what a container that nobody knows of gets between TERM and KILL
)

// nameOf is the name of the n-th container of an app at once. No app has a dot in its name, so that no two of them meet.
func nameOf(app string, n int) string {
	if n == 1 {
		return "quaymaster-" + app
	}
	return fmt.Sprintf("quaymaster-%s.%d", app, n)
}

// Start makes a container and starts it.
func (r *Runner) Start(ctx context.Context, s *run.Start) (run.Instance, error) {
	image, err := r.find(ctx, s.App)
	if err != nil {
		return nil, err
	}
	if err := r.fetch(ctx, s.App, image); err != nil {
		return nil, err
	}
	owner, err := r.opt.Owner()
	if err != nil {
		return nil, fmt.Errorf("the id of this daemon: %w", err)
	}
	name, err := r.free(ctx, s.App.Name, image.engine)
	if err != nil {
		return nil, err
	}
	d := data{Socket: image.engine.socket, Name: name, Port: s.Port, Inside: s.App.ContainerPort}
	if d.Inside == 0 {
		d.Inside = s.Port
	}
	id, err := r.make(ctx, s, d, owner)
	if err == nil {
		var i *instance
		if i, err = r.launch(ctx, s, id, d); err == nil {
			return i, nil
		}
	}
	r.undo(d.Socket, name)
	if text, taken := portTaken(err, s.Port); taken {
		return nil, &run.PortError{Port: s.Port, Text: text}
	}
	return nil, err
}

// fetch pulls the image where that is wished.
func (r *Runner) fetch(ctx context.Context, a *plan.App, image *found) error {
	pull := a.Engine.Pull
	switch {
	case pull == "always", pull == "missing" && image.env == nil:
	case image.env == nil:
		return missing(a.Image, image.engine)
	default:
		return nil
	}
	r.opt.Log.Info("image is fetched", "app", a.Name, "image", a.Image, "engine", image.engine.String())
	c, err := engine.Open(image.engine.socket, true)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // closes idle connections, and cannot fail
	err = told(ctx, image.engine.socket, pullTime, c, func(ctx context.Context, c *engine.Conn) error {
		res, err := c.ImagePull(ctx, a.Image, client.ImagePullOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = res.Close() }()
		return res.Wait(ctx)
	})
	if err == nil || isAway(err) || ctx.Err() != nil {
		return err
	}
	if image.env != nil {
		return fmt.Errorf("image %s cannot be fetched from its registry: %w; engine: {pull: missing} takes the one that is there", a.Image, err)
	}
	return fmt.Errorf("there is no image %s in %s, and it cannot be fetched: %w; build it (%s build -t %s .), or see that its name is right",
		a.Image, image.engine, err, image.engine.kind, a.Image)
}

// foreign says who has the name of an app's container, if that is not us.
func (r *Runner) foreign(ctx context.Context, app string, e engineAt) error {
	box, err := r.inspect(ctx, e.socket, nameOf(app, 1))
	switch {
	case isMissing(err):
		return nil
	case err != nil:
		return err
	case r.isOurs(box.Config):
		return nil
	}
	return notOurs(nameOf(app, 1), &box, e)
}

func notOurs(name string, box *container.InspectResponse, e engineAt) error {
	whose := "not one of quaymaster's"
	if box.Config.Labels[labelApp] != "" {
		whose = "of another quaymaster, with state folder " + clip(box.Config.Labels[labelState])
	}
	return fmt.Errorf("%s has a container %s already, which is %s and is left alone; remove it (%s rm -f %s), or give the app another name",
		e, name, whose, e.kind, name)
}

// free is a name that no container has.
func (r *Runner) free(ctx context.Context, app string, e engineAt) (string, error) {
	for n := 1; n <= mostNames; n++ {
		name := nameOf(app, n)
		box, err := r.inspect(ctx, e.socket, name)
		switch {
		case isMissing(err):
			return name, nil
		case err != nil:
			return "", err
		case r.isOurs(box.Config) && r.attended(box.ID): // the one that it is to replace, or one that still ends
		case r.isOurs(box.Config):
			if err := r.remove(ctx, e.socket, box.ID); err != nil {
				return "", err
			}
			return name, nil
		case n == 1:
			return "", notOurs(name, &box, e)
		}
	}
	return "", fmt.Errorf("%s has %d containers of app %s at once", e, mostNames, app)
}

// make creates the container.
func (r *Runner) make(ctx context.Context, s *run.Start, d data, owner string) (string, error) {
	config, host := r.config(s, d, owner)
	var id string
	err := ask(ctx, d.Socket, makeTime, func(ctx context.Context, c *engine.Conn) error {
		if err := ping(ctx, c); err != nil {
			return err
		}
		if c.Kind() == "docker" { // whose default may keep everything, or nothing that can be read
			host.LogConfig = container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "10m", "max-file": "2"}}
		}
		res, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{Name: d.Name, Config: config, HostConfig: host})
		for _, w := range res.Warnings[:min(len(res.Warnings), 10)] {
			r.sayOnce(s.App.Name, clip(w))
		}
		id = res.ID
		return err
	})
	if err == nil && !validID.MatchString(id) {
		err = errors.New("the engine gave the container an id that is none")
	}
	return id, err
}

func ping(ctx context.Context, c *engine.Conn) error {
	_, err := c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	return err
}

// config is what the engine is told.
func (r *Runner) config(s *run.Start, d data, owner string) (*container.Config, *container.HostConfig) {
	a := s.App
	inside, _ := network.PortFrom(d.Inside, network.TCP) // tcp is a protocol
	put := strings.NewReplacer("${PORT}", strconv.Itoa(int(d.Inside)), "${HOST}", anywhere, "${SOCKET}", "", "${QUAYMASTER_URL}", s.URL)
	config := &container.Config{
		Image: a.Image, User: a.User, ExposedPorts: network.PortSet{inside: {}},
		Labels: map[string]string{labelApp: a.Name, labelOwner: owner, labelState: r.opt.State},
	}
	for _, word := range a.Command {
		config.Cmd = append(config.Cmd, put.Replace(word))
	}
	for _, v := range a.Env {
		config.Env = append(config.Env, v.Name+"="+put.Replace(v.Value))
	}
	config.Env = append(config.Env, "PORT="+strconv.Itoa(int(d.Inside)), "HOST="+anywhere)
	if s.URL != "" {
		config.Env = append(config.Env, "QUAYMASTER_URL="+s.URL)
	}
	host := &container.HostConfig{
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled}, // we supervise
		PortBindings:  network.PortMap{inside: {{HostIP: loopback, HostPort: strconv.Itoa(int(s.Port))}}},
	}
	host.NanoCPUs = int64(a.Limits.CPU * 1e9)
	host.Memory, host.MemorySwap = a.Limits.Memory, a.Limits.Memory // no swap besides
	if n := a.Limits.NoFile; n > 0 {
		host.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: int64(n), Hard: int64(n)}} //nolint:gosec // at most ten million
	}
	return config, host
}

// anywhere is where an app in a container listens: what comes from outside does not come to its loopback.
const anywhere = "0.0.0.0"

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// launch starts the container that was made.
func (r *Runner) launch(ctx context.Context, s *run.Start, id string, d data) (*instance, error) {
	i := r.instance(id, d, s.Output)
	fail := func(err error) (*instance, error) {
		i.end()
		r.forget(id)
		return nil, err
	}
	if err := s.Handoff(); err != nil {
		return fail(err)
	}
	defer r.opt.Changed()
	err := ask(ctx, d.Socket, startTime, func(ctx context.Context, c *engine.Conn) error {
		_, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{})
		return err
	})
	if err != nil {
		return fail(err)
	}
	i.started = time.Now()
	i.begun = i.started
	if box, err := r.inspect(ctx, d.Socket, id); err == nil {
		i.begun = timeOf(box.State.StartedAt)
	}
	i.begin()
	return i, nil
}

// undo removes what came of a start that went wrong, also where the engine's answer was not heard. What it cannot remove is
// removed before the next start.
func (r *Runner) undo(socket, name string) {
	ctx, stop := context.WithTimeout(context.Background(), cleanTime)
	defer stop()
	box, err := r.inspect(ctx, socket, name)
	if err == nil && r.isOurs(box.Config) && !r.attended(box.ID) {
		err = r.remove(ctx, socket, box.ID)
	}
	if err != nil && !isMissing(err) {
		r.opt.Log.Warn("half-made container is not removed yet", "container", name, "err", err)
	}
}

// Clear removes the containers of an app that nobody attends to: what an earlier start or daemon has left behind, in
// whatever state it is. One that runs is asked to end first.
func (r *Runner) Clear(ctx context.Context, a *plan.App) error {
	owner, err := r.opt.Owner()
	if err != nil {
		return fmt.Errorf("the id of this daemon: %w", err)
	}
	for _, socket := range r.opt.Sockets(a.Engine) {
		list, err := r.labelled(ctx, socket, a.Name, owner)
		if isAway(err) {
			continue // whether another one answers is told by the start
		}
		if err != nil {
			return err
		}
		for _, box := range list {
			r.opt.Log.Info("leftover container is removed", "app", a.Name, "container", clip(strings.Join(box.Names, " ")), "state", clip(string(box.State)))
			if box.State == container.StateRunning {
				r.endOrphan(ctx, socket, box.ID)
			}
			if err := r.remove(ctx, socket, box.ID); err != nil {
				return fmt.Errorf("leftover container %s cannot be removed: %w", box.ID[:12], err)
			}
		}
	}
	return nil
}

// endOrphan asks a container to end that nobody knows of any more.
func (r *Runner) endOrphan(ctx context.Context, socket, id string) {
	grace := int(orphanEnd / time.Second)
	err := ask(ctx, socket, orphanEnd+askTime, func(ctx context.Context, c *engine.Conn) error {
		_, err := c.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: &grace})
		return err
	})
	if err != nil {
		r.opt.Log.Warn("leftover container does not stop", "container", id, "err", err)
	}
}

// labelled are the containers of an app that bear our labels and that nobody attends to.
func (r *Runner) labelled(ctx context.Context, socket, app, owner string) ([]container.Summary, error) {
	var out []container.Summary
	err := ask(ctx, socket, askTime, func(ctx context.Context, c *engine.Conn) error {
		res, err := c.ContainerList(ctx, client.ContainerListOptions{
			All: true, Filters: make(client.Filters).Add("label", labelApp+"="+app, labelOwner+"="+owner),
		})
		out = res.Items
		return err
	})
	return slices.DeleteFunc(out, func(c container.Summary) bool {
		return c.Labels[labelApp] != app || c.Labels[labelOwner] != owner || !validID.MatchString(c.ID) || r.attended(c.ID)
	}), err
}

// record is what the next daemon needs.
func (i *instance) record() run.Record {
	text, _ := json.Marshal(i.data) // it holds nothing that cannot be marshalled
	return run.Record{Container: i.id, Started: i.started, Data: text}
}

// timeOf reads a time of an engine; one that is none is zero.
func timeOf(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() < 2000 {
		return time.Time{}
	}
	return t
}
