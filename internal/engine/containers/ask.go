package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/engine"
)

// How long an engine may take.
const (
	askTime    = 5 * time.Second  // for a question
	makeTime   = 2 * time.Minute  // for a container, whose image may have to be copied
	startTime  = time.Minute      // for a start
	removeTime = time.Minute      // for a removal
	pullTime   = 30 * time.Minute // for an image
)

const maxSaid = 500 // bytes of an engine's words that are passed on

// ask asks an engine one thing. An engine that could not be asked is a *run.AwayError; everything else is its answer.
func ask(ctx context.Context, socket string, limit time.Duration, f func(context.Context, *engine.Conn) error) error {
	c, err := engine.Open(socket, false)
	if err != nil {
		return fmt.Errorf("container engine at %s: %w", socket, err)
	}
	defer func() { _ = c.Close() }() // closes idle connections, and cannot fail
	return told(ctx, socket, limit, c, f)
}

func told(ctx context.Context, socket string, limit time.Duration, c *engine.Conn, f func(context.Context, *engine.Conn) error) error {
	inner, stop := context.WithTimeout(ctx, limit)
	defer stop()
	err := f(inner, c)
	switch {
	case err == nil:
		return nil
	case inner.Err() != nil && ctx.Err() == nil:
		return &run.AwayError{Text: fmt.Sprintf("container engine at %s: no answer within %v", socket, limit)}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &run.AwayError{Text: fmt.Sprintf("container engine at %s: no answer in time", socket)}
	case ctx.Err() != nil:
		return ctx.Err()
	case away(err):
		return &run.AwayError{Text: fmt.Sprintf("container engine at %s: %v; see whether it runs", socket, engine.Cause(err))}
	}
	return &saidError{cause: err, text: clip(words(err))}
}

// saidError is what an engine has answered.
type saidError struct {
	cause error
	text  string
}

func (e *saidError) Error() string { return e.text }
func (e *saidError) Unwrap() error { return e.cause }

// words are the engine's own, without what the client puts before them.
func words(err error) string {
	return strings.TrimPrefix(err.Error(), "Error response from daemon: ")
}

// away reports whether an error is no answer of the engine: it was not reached, or went away meanwhile.
func away(err error) bool {
	var transport *url.Error
	return errors.As(err, &transport) || client.IsErrConnectionFailed(err) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		strings.HasSuffix(err.Error(), "EOF")
}

// isMissing reports whether an engine has said that there is no such thing.
func isMissing(err error) bool {
	var out *run.AwayError
	return err != nil && !errors.As(err, &out) && errdefs.IsNotFound(err)
}

// isAway reports whether the engine could not be asked.
func isAway(err error) bool {
	var out *run.AwayError
	return errors.As(err, &out)
}

// clip makes a text of others fit to be shown.
func clip(s string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xFFFD {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), maxSaid)], "")))
	return s
}

// image asks one engine for an image, and is its environment, which is not nil.
func (r *Runner) image(ctx context.Context, socket, image string) (engineAt, []string, error) {
	env, kind := []string{}, ""
	err := ask(ctx, socket, askTime, func(ctx context.Context, c *engine.Conn) error {
		res, err := c.ImageInspect(ctx, image)
		kind = c.Kind()
		if err == nil && res.Config != nil {
			env = append(env, res.Config.Env...)
		}
		return err
	})
	return engineAt{kind, socket}, env, err
}

// inspect asks for one container.
func (r *Runner) inspect(ctx context.Context, socket, id string) (container.InspectResponse, error) {
	var box container.InspectResponse
	err := ask(ctx, socket, askTime, func(ctx context.Context, c *engine.Conn) error {
		res, err := c.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		box = res.Container
		return err
	})
	if err == nil && (box.State == nil || box.Config == nil || !validID.MatchString(box.ID)) {
		err = &run.AwayError{Text: "container engine at " + socket + ": its answer about a container says too little"}
	}
	return box, err
}

// isOurs reports whether a container bears our labels.
func (r *Runner) isOurs(c *container.Config) bool {
	owner, err := r.opt.Owner()
	return err == nil && c != nil && c.Labels[labelApp] != "" && c.Labels[labelOwner] == owner
}

// remove removes a container that is ours, whatever it does. One that is not there is no error.
func (r *Runner) remove(ctx context.Context, socket, id string) error {
	box, err := r.inspect(ctx, socket, id)
	switch {
	case isMissing(err):
		return nil
	case err != nil:
		return err
	case !r.isOurs(box.Config):
		return fmt.Errorf("container %s is not ours, and is left alone", clip(box.Name))
	}
	defer r.opt.Changed()
	err = ask(ctx, socket, removeTime, func(ctx context.Context, c *engine.Conn) error {
		_, err := c.ContainerRemove(ctx, box.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		return err
	})
	if isMissing(err) {
		return nil
	}
	return err
}
