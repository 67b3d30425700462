package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/project"
)

// devHold keeps the routes and leases of a project in a daemon, for as long as there is one and we live.
type devHold struct {
	note   string
	daemon *devDaemon

	mu     sync.Mutex // guards what follows, and the ports of apps until they are first known
	client *api.Client
	id     string // of the leash
	apps   []*devApp
	why    string // port 443 is not ours; "" = it is
}

// The ports that are tried in public, each before the next.
var (
	devHTTPS = candidates(443, 8443)
	devHTTP  = candidates(80, 8480)
)

func candidates(first, then int) []int {
	out := []int{first}
	for i := range 20 {
		out = append(out, then+i)
	}
	return out
}

const devAgain = 250 * time.Millisecond // between two tries to reach a daemon

// keep holds a leash until ctx ends, with another daemon when the one there was is gone. first hears once how the first
// try ended.
func (h *devHold) keep(ctx context.Context, first func(error), say func(string, ...any)) {
	var once sync.Once
	lost, last := false, ""
	for ctx.Err() == nil {
		err := h.daemon.hold(ctx, h.note, func(c *api.Client, id string) error {
			if err := h.attach(ctx, c, id); err != nil {
				return &devRefused{err}
			}
			if lost {
				say("the daemon is there again")
			}
			lost, last = false, ""
			once.Do(func() { first(nil) })
			return nil
		})
		var refused *devRefused
		ended := false
		once.Do(func() { first(err); ended = true })
		if ended || ctx.Err() != nil {
			return
		}
		switch {
		case !lost:
			say("the daemon is gone, and with it the URL: %v; trying again", err)
		case errors.As(err, &refused) && err.Error() != last:
			last = err.Error()
			say("the daemon would not have us: %v; trying again", err)
		}
		lost = true
		h.detach()
		if devPause(ctx, devAgain) != nil {
			return
		}
	}
}

// devRefused is a daemon that is there and would not have us.
type devRefused struct{ err error }

func (e *devRefused) Error() string { return e.err.Error() }
func (e *devRefused) Unwrap() error { return e.err }

func devPause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// attach puts every app on the leash.
func (h *devHold) attach(ctx context.Context, c *api.Client, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.client, h.id = c, id
	for _, a := range h.apps {
		if err := h.put(ctx, a); err != nil {
			h.client, h.id = nil, ""
			return err
		}
	}
	return nil
}

func (h *devHold) detach() {
	h.mu.Lock()
	h.client, h.id = nil, ""
	h.mu.Unlock()
}

var errNoDaemon = errors.New("there is no daemon at the moment")

// add puts one more app on the leash.
func (h *devHold) add(ctx context.Context, a *devApp) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.client == nil {
		return errNoDaemon
	}
	if err := h.put(ctx, a); err != nil {
		return err
	}
	h.apps = append(h.apps, a)
	return nil
}

// drop takes the routes of an app out. Its port goes with the leash.
func (h *devHold) drop(ctx context.Context, a *devApp) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.apps = slices.DeleteFunc(h.apps, func(b *devApp) bool { return a == b })
	if h.client == nil {
		return
	}
	for _, name := range []string{a.id(), a.id() + "-http"} {
		_ = h.client.Do(ctx, http.MethodDelete, "/v1/routes/"+url.PathEscape(name), "*", nil, nil) // the leash takes it along otherwise
	}
}

// aim sends requests to another address of the app's port.
func (h *devHold) aim(ctx context.Context, a *devApp, host string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	a.at = host
	if h.client == nil {
		return nil // the next attach knows it
	}
	return h.put(ctx, a)
}

// move gives an app another port than the one it has.
func (h *devHold) move(ctx context.Context, a *devApp) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.client == nil {
		return errNoDaemon
	}
	l, err := h.lease(ctx, a, true)
	if err != nil {
		return err
	}
	a.port, a.at = l.Port, ""
	return h.put(ctx, a)
}

func (h *devHold) lease(ctx context.Context, a *devApp, another bool) (l *api.Lease, err error) {
	err = devPatient(ctx, func() error { l, err = h.client.LeasePort(ctx, h.id, a.id(), another); return err })
	return l, err
}

// devPatient asks again while the daemon starts, or takes out what an earlier one of ours had there.
func devPatient(ctx context.Context, ask func() error) (err error) {
	for range 100 {
		err = ask()
		var p *api.Problem
		if !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable || devPause(ctx, devAgain/5) != nil {
			break
		}
	}
	return err
}

// id is the name of the app's lease and route: a label.
func (a *devApp) id() string {
	name := strings.TrimSuffix(a.host, ".localhost")
	if !strings.Contains(name, ".") && len(name) <= 50 {
		return "dev-" + name
	}
	sum := sha256.Sum256([]byte(name))
	label := project.Label(name)
	return "dev-" + strings.TrimRight(label[:min(len(label), 40)], "-") + "-" + hex.EncodeToString(sum[:3])
}

// put leases the app's port and makes its routes. mu is held.
func (h *devHold) put(ctx context.Context, a *devApp) error {
	if a.port == 0 || a.leased {
		l, err := h.lease(ctx, a, false)
		switch {
		case err != nil && a.port == 0:
			return devTaken(a, err)
		case err == nil && a.port == 0:
			a.port, a.leased = l.Port, true
		}
	}
	port, why, err := h.route(ctx, a, a.id(), int(a.https.Load()), devHTTPS, true)
	if err != nil {
		return devTaken(a, err)
	}
	h.why = why
	if was := a.https.Swap(int32(port)); was != 0 && was != int32(port) {
		h.daemon.note("%s is now at %s", a.label, a.url())
	}
	port, _, err = h.route(ctx, a, a.id()+"-http", int(a.http.Load()), devHTTP, false)
	if err != nil {
		return devTaken(a, err)
	}
	a.http.Store(int32(port))
	return nil
}

// devTaken words a name that is another's.
func devTaken(a *devApp, err error) error {
	var p *api.Problem
	if errors.As(err, &p) && (p.Type == api.Leashed || p.Status == http.StatusUnprocessableEntity || p.Type == api.InFile) {
		return &devTakenError{a.host, err}
	}
	return err
}

// A devTakenError is a host name that somebody else has.
type devTakenError struct {
	host string
	err  error
}

func (e *devTakenError) Error() string {
	return fmt.Sprintf("cannot have %s: %v; choose another name: quaymaster dev NAME", e.host, e.err)
}

func (e *devTakenError) Unwrap() error { return e.err }

// route makes one route on the first public port that can be had. One that the app had before comes first.
func (h *devHold) route(ctx context.Context, a *devApp, name string, had int, ports []int, secure bool) (port int, why string, err error) {
	list, err := h.listening(ctx)
	if err != nil {
		return 0, "", err
	}
	ports = slices.Clone(ports)
	slices.SortStableFunc(ports[1:], func(p, q int) int { // those that other projects have first, so that all share one
		return devFirst(list[p] == "bound", list[q] == "bound")
	})
	if had != 0 {
		ports = append([]int{had}, slices.DeleteFunc(ports, func(p int) bool { return p == had })...)
	}
	for _, port = range ports {
		err = h.try(ctx, a, name, port, secure)
		var p *api.Problem
		if err == nil {
			if port == ports[0] && had != 0 {
				why = h.why
			}
			return port, why, nil
		}
		if !errors.As(err, &p) || p.Type != api.Unavailable {
			return 0, "", err
		}
		if why == "" {
			why, _, _ = strings.Cut(p.Error(), "\n")
			why, _, _ = strings.Cut(why, "; nothing was changed")
		}
	}
	return 0, "", err
}

func devFirst(p, q bool) int {
	switch {
	case p == q:
		return 0
	case p:
		return -1
	}
	return 1
}

// try makes one route on one public port.
func (h *devHold) try(ctx context.Context, a *devApp, name string, port int, secure bool) error {
	text, err := a.routeBody(port, secure)
	if err != nil {
		return err
	}
	if err := devPatient(ctx, func() error { _, err := h.client.PutRoute(ctx, h.id, name, text); return err }); err != nil {
		return err
	}
	list, err := h.listening(ctx)
	if why, bad := list[port]; err == nil && bad && why != "bound" {
		return &api.Problem{Type: api.Unavailable, Title: "Busy", Status: http.StatusConflict, Detail: why}
	}
	return err
}

// listening are the ports that the daemon has ("bound") or wants and does not get: why.
func (h *devHold) listening(ctx context.Context) (map[int]string, error) {
	var list []api.Port
	if err := h.client.Get(ctx, "/v1/ports", &list); err != nil {
		return nil, err
	}
	out := map[int]string{}
	for _, p := range list {
		switch {
		case p.Proto != "tcp":
		case p.State == "retrying" || p.State == "failed":
			out[p.Port] = p.Error
		case out[p.Port] == "":
			out[p.Port] = "bound"
		}
	}
	return out, nil
}

// routeBody is a route to the app at a public port of this machine's own addresses.
func (a *devApp) routeBody(port int, secure bool) ([]byte, error) {
	ports := []string{fmt.Sprintf("127.0.0.1:%d", port)}
	if hasIPv6() {
		ports = append(ports, fmt.Sprintf("[::1]:%d", port))
	}
	at := a.at
	if at == "" {
		at = "127.0.0.1"
	}
	action := map[string]any{"targets": []string{net.JoinHostPort(at, fmt.Sprint(a.port))}}
	if secure {
		action["tls"] = map[string]any{"certificate": "internal"}
	}
	return json.Marshal(map[string]any{
		"match":     map[string]any{"ports": ports, "domains": []string{a.host}},
		"action":    action,
		"timeouts":  map[string]any{"idle": "24h"}, // a page that waits for changes
		"on_remove": "close",
	})
}

// hasIPv6 reports whether this machine has ::1.
func hasIPv6() bool {
	list, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(list, func(a net.Addr) bool { return strings.HasPrefix(a.String(), "::1/") })
}

// devNote says whose a leash is.
func devNote(dir string) string {
	return fmt.Sprintf("quaymaster dev in %s (pid %d)", dir, os.Getpid())
}
