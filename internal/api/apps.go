package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Apps shows and moves what is run here. Errors are answered as those of Control are. Start, Stop and Restart return when
// what was asked for has come about or is known not to, or with ctx: then the app is as far as it is.
type Apps interface {
	Apps() []App
	App(name string) (*App, error)
	Start(ctx context.Context, name string) (*App, error)
	Stop(ctx context.Context, name string) (*App, error)
	Restart(ctx context.Context, name string, newPort bool) (*App, error)
	Output(name string) (AppOutput, error)
}

// AppOutput is what an app has said.
type AppOutput interface {
	Last(n int) []AppLine
	End() uint64                                            // the number of the line to come
	Next(ctx context.Context, from uint64) (AppLine, error) // that line, or the oldest that is kept after it; waits
}

// App is what GET /v1/apps and `apps --json` list.
type App struct {
	Name      string    `json:"name"`
	State     string    `json:"state"`
	Reason    string    `json:"reason"`
	Since     time.Time `json:"since"` // of State
	Source    string    `json:"source"`
	PID       int       `json:"pid"`
	Container string    `json:"container"`
	Port      int       `json:"port"`
	Path      string    `json:"path,omitempty"` // of its unix socket
	URL       string    `json:"url"`
	Uptime    float64   `json:"uptime_seconds"`
	Restarts  int       `json:"restarts"` // ends that nobody had asked for
	LastExit  *AppExit  `json:"last_exit"`
	Memory    int64     `json:"memory_bytes"`
	CPU       float64   `json:"cpu_seconds"`
}

// AppExit is how an app ended last.
type AppExit struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	Uptime float64   `json:"uptime_seconds"`
}

// AppLine is one line of an app's output. Stream is stdout, stderr, or quaymaster for what we say about it.
type AppLine struct {
	Number uint64    `json:"number"`
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"`
	Text   string    `json:"text"`
}

const (
	appWait  = 45 * time.Second // for what was asked for to come about
	maxLines = 100_000
)

func (a *API) apps(w http.ResponseWriter, _ *request) error {
	if a.o.Apps == nil {
		return missing("running apps")
	}
	return reply(w, http.StatusOK, solid(a.o.Apps.Apps()))
}

func (a *API) app(w http.ResponseWriter, r *request) error {
	if a.o.Apps == nil {
		return missing("running apps")
	}
	app, err := a.o.Apps.App(r.arg)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, app)
}

// moved answers with what a command came to: 202 when it takes longer than we wait.
func (a *API) moved(w http.ResponseWriter, r *request, do func(context.Context) (*App, error)) error {
	if a.o.Apps == nil {
		return missing("running apps")
	}
	ctx, cancel := context.WithTimeout(r.Context(), appWait)
	defer cancel()
	app, err := do(ctx)
	switch {
	case app != nil && errors.Is(err, context.DeadlineExceeded):
		return reply(w, http.StatusAccepted, app)
	case err != nil:
		return err
	}
	return reply(w, http.StatusOK, app)
}

func (a *API) startApp(w http.ResponseWriter, r *request) error {
	return a.moved(w, r, func(ctx context.Context) (*App, error) { return a.o.Apps.Start(ctx, r.arg) })
}

func (a *API) stopApp(w http.ResponseWriter, r *request) error {
	return a.moved(w, r, func(ctx context.Context) (*App, error) { return a.o.Apps.Stop(ctx, r.arg) })
}

func (a *API) restartApp(w http.ResponseWriter, r *request) error {
	another := false
	if v := r.URL.Query().Get("new_port"); v != "" {
		var err error
		if another, err = strconv.ParseBool(v); err != nil {
			return problem(http.StatusBadRequest, "new_port is true or false, not "+clip(v))
		}
	}
	return a.moved(w, r, func(ctx context.Context) (*App, error) { return a.o.Apps.Restart(ctx, r.arg, another) })
}

// appLogs answers with the last lines of an app's output, and with follow streams those to come.
func (a *API) appLogs(w http.ResponseWriter, r *request) error {
	if a.o.Apps == nil {
		return missing("running apps")
	}
	out, err := a.o.Apps.Output(r.arg)
	if err != nil {
		return err
	}
	n, since, follow, err := logQuestion(r)
	if err != nil {
		return err
	}
	list := out.Last(n)
	for len(list) > 0 && list[0].Time.Before(since) {
		list = list[1:]
	}
	if !follow {
		return reply(w, http.StatusOK, solid(list))
	}
	from := out.End()
	if len(list) > 0 {
		from = list[0].Number
	}
	return a.followLogs(w, r, out, from)
}

// logQuestion reads lines, since and follow.
func logQuestion(r *request) (n int, since time.Time, follow bool, err error) {
	q := r.URL.Query()
	n = 100
	if v := q.Get("lines"); v != "" {
		if n, err = strconv.Atoi(v); err != nil || n < 0 || n > maxLines {
			return 0, since, false, problem(http.StatusBadRequest, fmt.Sprintf("lines is a number up to %d, not %s", maxLines, clip(v)))
		}
	}
	if v := q.Get("since"); v != "" {
		if since, err = time.Parse(time.RFC3339Nano, v); err != nil {
			ago, bad := seconds(v)
			if bad != nil {
				return 0, since, false, problem(http.StatusBadRequest, "since is a time (RFC 3339) or a duration such as 10m, not "+clip(v))
			}
			since = time.Now().Add(-ago)
		}
		if q.Get("lines") == "" {
			n = maxLines
		}
	}
	if v := q.Get("follow"); v != "" {
		if follow, err = strconv.ParseBool(v); err != nil {
			return 0, since, false, problem(http.StatusBadRequest, "follow is true or false, not "+clip(v))
		}
	}
	return n, since, follow, nil
}

// followLogs streams lines as server-sent events. A client that reads too slowly misses lines and is told how many.
func (a *API) followLogs(w http.ResponseWriter, r *request, out AppOutput, from uint64) error {
	return a.stream(w, r, func(ctx context.Context) (bool, error) {
		next, err := sendLine(ctx, w, out, from)
		from = next
		return next == out.End(), err
	})
}

// sendLine writes one line, or a comment when none has come for a while, and returns the number of the next.
func sendLine(ctx context.Context, w http.ResponseWriter, out AppOutput, from uint64) (uint64, error) {
	wait, cancel := context.WithTimeout(ctx, heartbeat)
	defer cancel()
	l, err := out.Next(wait, from)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(streamWrite))
	if err != nil {
		if ctx.Err() != nil {
			return from, ctx.Err()
		}
		_, err = fmt.Fprint(w, ": still here\n\n")
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		return from, err
	}
	if l.Number > from {
		if _, err := fmt.Fprintf(w, "event: missed\ndata: {\"missed\":%d}\n\n", l.Number-from); err != nil {
			return from, err
		}
	}
	text, err := json.Marshal(l)
	if err != nil {
		return from, err
	}
	_, err = fmt.Fprintf(w, "id: %d\nevent: line\ndata: %s\n\n", l.Number, text)
	return l.Number + 1, err
}
