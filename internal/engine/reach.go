package engine

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/moby/moby/client"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Sockets are the unix sockets where settings say that engines are, in the order in which they are asked.
func (e *Engine) Sockets(set plan.EngineSettings) []string {
	list := e.places(set)
	out := make([]string, 0, len(list))
	for _, p := range list {
		out = append(out, p.path)
	}
	return out
}

// Forget makes the next question about published ports a new one: a container has come or gone.
func (e *Engine) Forget() {
	e.mu.Lock()
	e.asked.Kind = "" // no settings have that
	e.mu.Unlock()
}

// A Conn speaks with one engine. Whoever opens it closes it.
type Conn struct {
	*client.Client
	kind atomic.Pointer[string]
}

// Kind is podman or docker; known after the first answer, docker before.
func (c *Conn) Kind() string {
	if k := c.kind.Load(); k != nil {
		return *k
	}
	return "docker"
}

// Open returns a client of the engine at a socket; nothing is asked yet. Each connection may carry 16 MiB of answers, or,
// where what comes is a stream that the caller bounds, any number.
func Open(socket string, stream bool) (*Conn, error) {
	out := &Conn{}
	dial := place{path: socket}.dial
	if stream {
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
	}
	var err error
	out.Client, err = client.New(client.WithHost("unix://"+socket), client.WithDialContext(dial),
		client.WithHTTPResponseHook(func(r *http.Response) {
			kind := "docker"
			if strings.HasPrefix(r.Header.Get("Server"), "Libpod/") {
				kind = "podman"
			}
			out.kind.Store(&kind)
		}))
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Cause leaves out of an error what the client library tells people to do with a docker of their own.
func Cause(err error) error { return cause(err) }
