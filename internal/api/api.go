// Package api is the JSON contract of a running daemon: the HTTP handlers, the objects they answer with, and the Go
// client for both.
//
// It promises that access stands beside the path in one table, that a fault names its place and its remedy, and that
// nothing a client sends or holds is unbounded. It never decides anything itself: what it shows and changes is asked of
// the small interfaces in needs.go.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/logs"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// Options are what the API shows and whom it lets in. A nil func or interface answers 501 where it is asked.
type Options struct {
	Status       func() Status
	Ready        func() bool // false while starting and draining
	Control      Control
	Editor       Editor
	Configs      Configs
	Ports        Ports
	Leases       Leases
	Leashes      Leashes
	Certificates Certificates
	Apps         Apps
	Upstreams    func() []Upstream
	Connections  func() []Connection
	Explain      func(ctx context.Context, q Question) (*Explanation, error)
	Events       *logs.Ring[Event]
	Stop         func() // begins the drain and returns
	Upgrade      func(ctx context.Context, o UpgradeOptions) (*Upgraded, error)
	Metrics      http.Handler       // nil: metrics are disabled
	Admin        plan.AdminSettings // who may come over TCP, and which group over the socket
	Log          *slog.Logger
}

// API answers requests. Use Handler to embed it, or Serve to run it on a listener.
type API struct {
	o       Options
	streams chan struct{}   // one element per open event stream
	over    context.Context // ends with Close, and the streams with it
	end     context.CancelFunc
	serving serving
}

// The bounds of what a client may send or hold.
const (
	maxBody    = 1 << 20
	maxStreams = 32
)

// New returns an API over what o names.
func New(o Options) *API {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	over, end := context.WithCancel(context.Background())
	return &API{o: o, streams: make(chan struct{}, maxStreams), over: over, end: end}
}

// access is what a client must be allowed to do.
type access uint8

const (
	open  access = iota // anybody who reaches the listener
	read                // looks and changes nothing
	write               // changes something
)

// An endpoint is one line of the contract.
type endpoint struct {
	method string
	path   string // {x} stands for one segment
	access access
	metric bool // also on the metrics listener, where nobody is asked for a token
	serve  func(*API, http.ResponseWriter, *request) error
	about  string
	asks   []string // parameters of the query
	gives  any      // the kind of object it answers with; nil: not one of ours
}

// request is a request and the value of the {x} in its path.
type request struct {
	*http.Request
	arg string
}

func endpoints() []endpoint {
	return []endpoint{
		{"GET", "/v1/status", read, false, (*API).status, "How the daemon is", nil, Status{}},
		{"GET", "/v1/ports", read, false, (*API).ports, "Every port held or wanted", nil, []Port{}},
		{"GET", "/v1/ports/{port}", read, false, (*API).port, "One port and its history", nil, PortDetail{}},
		{"GET", "/v1/leases", read, false, (*API).leases, "Every port that is leased to an app", nil, []Lease{}},
		{"GET", "/v1/leash", write, false, (*API).leash, "Hold a leash: what is put with its id is there until this stream ends", []string{"note"}, Leash{}},
		{"POST", "/v1/leases/{name}", write, false, (*API).lease, "Lease a port to an app", []string{"new", "leash"}, Lease{}},
		{"DELETE", "/v1/leases/{name}", write, false, (*API).release, "Give the port of an app back", nil, Lease{}},
		{"GET", "/v1/routes", read, false, (*API).routes, "Every route with its targets", nil, []Route{}},
		{"PUT", "/v1/routes/{name}", write, false, (*API).putRoute, "Make or replace a route of the API layer", []string{"leash"}, Change{}},
		{"DELETE", "/v1/routes/{name}", write, false, (*API).deleteRoute, "Remove a route of the API layer", nil, Change{}},
		{"GET", "/v1/apps", read, false, (*API).apps, "Every app that is run here", nil, []App{}},
		{"GET", "/v1/apps/{name}", read, false, (*API).app, "One app", nil, App{}},
		{"PUT", "/v1/apps/{name}", write, false, (*API).putApp, "Make or replace an app of the API layer", nil, Change{}},
		{"DELETE", "/v1/apps/{name}", write, false, (*API).deleteApp, "Remove an app of the API layer: it ends, and its port is given back", nil, Change{}},
		{"POST", "/v1/apps/{name}/start", write, false, (*API).startApp, "Start an app", nil, App{}},
		{"POST", "/v1/apps/{name}/stop", write, false, (*API).stopApp, "Stop an app until it is started again", nil, App{}},
		{"POST", "/v1/apps/{name}/restart", write, false, (*API).restartApp, "Stop and start an app", []string{"new_port"}, App{}},
		{"GET", "/v1/apps/{name}/logs", read, false, (*API).appLogs, "The output of an app; with follow as server-sent events", []string{"lines", "since", "follow"}, []AppLine{}},
		{"GET", "/v1/config", read, false, (*API).config, "The configuration in force, and the API layer of it", nil, ConfigView{}},
		{"PUT", "/v1/config", write, false, (*API).putConfig, "Replace the API layer", nil, Change{}},
		{"POST", "/v1/check", read, false, (*API).check, "Judge a configuration without following it", nil, Change{}},
		{"POST", "/v1/reload", write, false, (*API).reload, "Read the files again and follow them", []string{"dry_run", "confirm"}, Change{}},
		{"POST", "/v1/confirm", write, false, (*API).confirm, "Keep a reload that waits for it", nil, Confirmed{}},
		{"POST", "/v1/stop", write, false, (*API).stop, "Drain and end", nil, Stopping{}},
		{"POST", "/v1/upgrade", write, false, (*API).upgrade, "Replace the daemon by a new process", nil, Upgraded{}},
		{"GET", "/v1/graph", read, false, (*API).graph, "What hangs on what, from port to target", nil, Graph{}},
		{"GET", "/v1/certificates", read, false, (*API).certificates, "Every certificate that is wanted", nil, []Certificate{}},
		{"POST", "/v1/certificates/{name}/renew", write, false, (*API).renew, "Make or order a certificate anew", nil, Certificate{}},
		{"GET", "/v1/ca", read, false, (*API).authority, "The root of the local CA", nil, Authority{}},
		{"GET", "/v1/connections", read, false, (*API).connections, "Every client connection", nil, []Connection{}},
		{"GET", "/v1/events", read, false, (*API).events, "What happens, as server-sent events", []string{"last"}, Event{}},
		{"GET", "/v1/explain", read, false, (*API).explain, "What would happen to a request, and why", []string{"url", "method", "client", "header"}, Explanation{}},
		{"GET", "/v1/openapi.json", read, false, (*API).openapi, "This contract", nil, nil},
		{"GET", "/metrics", read, true, (*API).metrics, "Metrics in the Prometheus text format", nil, nil},
		{"GET", "/health", open, true, (*API).health, "200 while the process lives", nil, nil},
		{"GET", "/ready", open, true, (*API).ready, "200 while it serves, 503 before and while it drains", nil, nil},
	}
}

// match reports whether path is the endpoint's, and the value of its {x}.
func (e *endpoint) match(path string) (arg string, ok bool) {
	before, rest, some := strings.Cut(e.path, "{")
	if !some {
		return "", e.path == path
	}
	_, after, _ := strings.Cut(rest, "}")
	arg, ok = strings.CutPrefix(path, before)
	if ok {
		arg, ok = strings.CutSuffix(arg, after)
	}
	return arg, ok && arg != "" && !strings.Contains(arg, "/")
}

// A Kind is where a request came in, and with it who is let in.
type Kind uint8

// The three kinds of listeners.
const (
	Socket  Kind = iota // the admin socket: everything, for peers of the right uid or group
	TCP                 // admin.address: with the token; reading, unless admin.allow says more
	Metrics             // metrics.address: metrics, health and readiness, for anybody
)

// Handler answers the requests that come in by listeners of that kind. For Socket the server must use ConnContext.
func (a *API) Handler(kind Kind) http.Handler {
	table := endpoints()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(lastKey{}) != nil {
			w.Header().Set("Connection", "close") // others want to ask too
		}
		if err := a.answer(w, r, kind, table); err != nil {
			a.fail(w, r, err)
		}
	})
}

// answer finds the endpoint, asks whether the client may, and serves.
func (a *API) answer(w http.ResponseWriter, r *http.Request, kind Kind, table []endpoint) error {
	var allowed []string
	for i := range table {
		e := &table[i]
		arg, ok := e.match(r.URL.Path)
		if !ok || (kind == Metrics && !e.metric) {
			continue
		}
		if r.Method != e.method && !(r.Method == http.MethodHead && e.method == http.MethodGet) {
			allowed = append(allowed, e.method)
			continue
		}
		if err := a.admit(r, kind, e.access); err != nil {
			return err
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		return e.serve(a, w, &request{Request: r, arg: arg})
	}
	if err := a.admit(r, kind, open); err != nil {
		return err
	}
	if allowed == nil {
		return problem(http.StatusNotFound, "there is nothing at "+clip(r.URL.Path)+"; GET /v1/openapi.json lists what there is")
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return problem(http.StatusMethodNotAllowed, clip(r.URL.Path)+" takes "+strings.Join(allowed, ", "))
}

// clip bounds what an answer repeats of a request.
func clip(s string) string {
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// fail answers with the problem that err is or stands for.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	var p *Problem
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		copied := *p
		p = &copied
	case errors.As(err, &big):
		p = problem(http.StatusRequestEntityTooLarge, "the body is larger than 1 MiB")
	case r.Context().Err() != nil:
		return // nobody is there to read it
	default:
		a.o.Log.Error("admin request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		p = problem(http.StatusInternalServerError, "the daemon's log says what went wrong")
	}
	p.answer(w)
}

// reply writes v as JSON.
func reply(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that left needs no answer
	return nil
}

// body reads the whole body, which is bounded already.
func body(r *request) ([]byte, error) { return io.ReadAll(r.Body) }

// missing is the answer of a part that was not wired.
func missing(what string) *Problem {
	return problem(http.StatusNotImplemented, what+" is not part of this daemon")
}

// seconds is the precision of a duration in an answer or a question: a number of seconds, or text such as "2m".
func seconds(text string) (time.Duration, error) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return d, nil
	}
	if d, err := time.ParseDuration(text + "s"); err == nil && d >= 0 {
		return d, nil
	}
	return 0, problem(http.StatusBadRequest, "not a duration: "+clip(text)+`; write "2m" or a number of seconds`)
}
