// Package engine asks podman and docker, through the API that both speak on a unix socket.
//
// It promises that an engine which is silent, slow or talkative costs a second and 16 MiB at the most, and that once in
// two seconds, however often it is asked; and that the version of the API is agreed on with each engine. It never starts,
// stops or changes anything.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// The bounds of one question.
const (
	within    = time.Second
	keepFor   = 2 * time.Second
	maxAnswer = 16 << 20 // bytes that one connection to an engine may carry
	maxName   = 100      // bytes of a container's name that are repeated
)

// Options are what an Engine needs from others.
type Options struct {
	// Settings are the settings in force, asked for anew with each question. nil: the defaults.
	Settings func() plan.EngineSettings
	Env      func(string) string // for DOCKER_HOST and XDG_RUNTIME_DIR; nil: os.Getenv
}

// Engine asks the engines of this host. It holds no connection between questions.
type Engine struct {
	opt Options

	mu    sync.Mutex // guards what follows, and is held for the question: one at a time is enough
	asked plan.EngineSettings
	at    time.Time // zero: never asked
	ports map[uint16]string
	err   error
}

// New returns an Engine that has asked nobody yet.
func New(o Options) *Engine {
	if o.Settings == nil {
		o.Settings = func() plan.EngineSettings { return plan.EngineSettings{Kind: "auto"} }
	}
	if o.Env == nil {
		o.Env = os.Getenv
	}
	return &Engine{opt: o}
}

// Published lists the TCP ports of this host that running containers publish, and which container each belongs to:
// `container db (podman)`. The answer is up to two seconds old. Where no engine is set up there are none. An engine that
// does not answer is an error that names it; what the others said is returned all the same.
//
// The map is the caller's to read alone.
func (e *Engine) Published(ctx context.Context) (map[uint16]string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	set := e.opt.Settings()
	if e.at.IsZero() || time.Since(e.at) > keepFor || set != e.asked {
		ports, err := e.ask(ctx, set)
		if ctx.Err() != nil {
			return ports, err // the caller's haste says nothing about the engine
		}
		e.asked, e.ports, e.err = set, ports, err
		e.at = time.Now()
	}
	return e.ports, e.err
}

// ask asks every engine at once.
func (e *Engine) ask(ctx context.Context, set plan.EngineSettings) (map[uint16]string, error) {
	ctx, stop := context.WithTimeout(ctx, within)
	defer stop()
	places := e.places(set)
	found := make([]map[uint16]string, len(places))
	errs := make([]error, len(places))
	var wg sync.WaitGroup
	for i, p := range places {
		wg.Go(func() { found[i], errs[i] = p.published(ctx) })
	}
	wg.Wait()
	all := make(map[uint16]string)
	for i := len(places) - 1; i >= 0; i-- { // the first place has the last word
		maps.Copy(all, found[i])
	}
	return all, errors.Join(errs...)
}

// A place is a unix socket where an engine may listen.
type place struct {
	path string
	must bool // configuration names it: that it is missing is an error
}

// places are where the settings say that engines are, each once.
func (e *Engine) places(set plan.EngineSettings) []place {
	if set.Socket != "" {
		return []place{{set.Socket, true}}
	}
	var list []place
	add := func(path string) {
		info, err := os.Stat(path)
		for _, p := range list { // docker.sock is often another name of podman's
			if other, second := os.Stat(p.path); err == nil && second == nil && os.SameFile(info, other) {
				return
			}
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			list = append(list, place{path: path})
		}
	}
	if set.Kind != "podman" {
		// An engine elsewhere, by tcp:// or ssh://, publishes no ports of this host.
		if path, ok := strings.CutPrefix(e.opt.Env("DOCKER_HOST"), "unix://"); ok {
			add(path)
		}
	}
	if set.Kind != "docker" {
		add("/run/podman/podman.sock")
		if dir := e.opt.Env("XDG_RUNTIME_DIR"); dir != "" {
			add(dir + "/podman/podman.sock")
		}
	}
	if set.Kind != "podman" {
		add("/var/run/docker.sock")
	}
	if len(list) == 0 && set.Kind == "podman" {
		list = append(list, place{"/run/podman/podman.sock", true})
	} else if len(list) == 0 && set.Kind == "docker" {
		list = append(list, place{"/var/run/docker.sock", true})
	}
	return list
}

// published asks one engine.
func (p place) published(ctx context.Context) (map[uint16]string, error) {
	kind := "docker"
	c, err := client.New(
		client.WithHost("unix://"+p.path),
		client.WithDialContext(p.dial),
		client.WithHTTPResponseHook(func(r *http.Response) {
			if strings.HasPrefix(r.Header.Get("Server"), "Libpod/") {
				kind = "podman"
			}
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("container engine at %s: %w", p.path, err)
	}
	defer func() { _ = c.Close() }() // closes idle connections, and cannot fail
	list, err := c.ContainerList(ctx, client.ContainerListOptions{})
	switch {
	case errors.Is(err, fs.ErrNotExist) && !p.must: // it went away meanwhile
		return nil, nil
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("container engine at %s: no answer within %v", p.path, within)
	case err != nil:
		return nil, fmt.Errorf("container engine at %s: %w", p.path, cause(err))
	}
	ports := make(map[uint16]string)
	for _, item := range list.Items {
		who := "container " + nameOf(&item) + " (" + kind + ")"
		for _, port := range item.Ports {
			if port.PublicPort != 0 && port.Type == "tcp" {
				ports[port.PublicPort] = who
			}
		}
	}
	return ports, nil
}

// cause leaves out what the client library tells people to do with a docker of their own.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// nameOf is what people call a container, made fit to be shown.
func nameOf(c *container.Summary) string {
	name := c.ID
	if len(c.Names) > 0 {
		name = strings.TrimPrefix(c.Names[0], "/")
	}
	name = strings.Trim(strconv.QuoteToASCII(name[:min(len(name), maxName)]), `"`)
	if name == "" {
		return "without a name"
	}
	return name
}

// dial connects to the engine, for so many bytes and no more.
func (p place) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", p.path)
	if err != nil {
		return nil, err
	}
	return &bounded{Conn: conn, left: maxAnswer}, nil
}

var errTooLong = errors.New("the answer is larger than " + strconv.Itoa(maxAnswer>>20) + " MiB")

// bounded is a connection from which only so much is read.
type bounded struct {
	net.Conn
	left int // used by the one goroutine that reads
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
