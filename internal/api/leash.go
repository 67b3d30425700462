package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Leashes hold what shall be there only as long as the connection that asked for it: routes and leases of a program that
// may end at any moment, and without a word.
type Leashes interface {
	// Hold begins a leash. note says whose it is, for those who want the same. over is closed when another process serves
	// instead, which wants to be asked anew. end takes out all that hangs on it.
	Hold(note string) (id string, over <-chan struct{}, end func())
	// PutRoute is Editor.PutRoute for a route that goes with the leash and is written nowhere.
	PutRoute(ctx context.Context, id, name string, body []byte, match string) (*Change, error)
	// Lease is Leases.Lease for a port that is given back with the leash.
	Lease(ctx context.Context, id, name string, another bool) (*Lease, error)
}

// Leash is the first event of a leash: what to name in ?leash= of routes and leases.
type Leash struct {
	ID string `json:"id"`
}

// leash answers with a stream: what hangs on the leash that its first event names is there until it ends.
func (a *API) leash(w http.ResponseWriter, r *request) error {
	if a.o.Leashes == nil {
		return missing("a leash")
	}
	id, over, end := a.o.Leashes.Hold(clip(r.URL.Query().Get("note")))
	defer end()
	said := false
	return a.stream(w, r, func(ctx context.Context) (bool, error) {
		text := ": still here\n\n"
		if !said {
			data, err := json.Marshal(Leash{ID: id})
			if err != nil {
				return false, err
			}
			text, said = fmt.Sprintf("event: leash\ndata: %s\n\n", data), true
		} else if err := pause(ctx, over, heartbeat); err != nil {
			return false, err
		}
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(streamWrite))
		_, err := fmt.Fprint(w, text)
		return true, err
	})
}

// pause passes time until ctx ends or over is closed, which is an error.
func pause(ctx context.Context, over <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-over:
		return context.Canceled
	case <-t.C:
		return nil
	}
}

// Hold opens a leash and hands its id to f. It returns why it ended: with ctx, with an error of f, or because the daemon
// left. What hangs on it is gone then, or will be in a moment.
func (c *Client) Hold(ctx context.Context, note string, f func(id string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.send(ctx, http.MethodGet, "/v1/leash?note="+url.QueryEscape(note), "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		var l Leash
		if !ok || json.Unmarshal(data, &l) != nil || l.ID == "" {
			continue
		}
		if err := f(l.ID); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := lines.Err(); err != nil {
		return &Unreachable{Socket: c.socket, Err: err}
	}
	return &Unreachable{Socket: c.socket, Err: errors.New("it has ended")}
}

// PutRoute puts a route that hangs on the leash.
func (c *Client) PutRoute(ctx context.Context, leash, name string, body []byte) (*Change, error) {
	var out Change
	return &out, c.Do(ctx, http.MethodPut, "/v1/routes/"+url.PathEscape(name)+"?leash="+url.QueryEscape(leash), "*", body, &out)
}

// LeasePort leases a port that hangs on the leash; with another a different one than it has.
func (c *Client) LeasePort(ctx context.Context, leash, name string, another bool) (*Lease, error) {
	var out Lease
	path := "/v1/leases/" + url.PathEscape(name) + "?leash=" + url.QueryEscape(leash)
	if another {
		path += "&new=true"
	}
	return &out, c.Do(ctx, http.MethodPost, path, "", nil, &out)
}

// LeashHeld is the answer to a name that hangs on another leash.
func LeashHeld(kind, name, note string) *Problem {
	p := problem(http.StatusConflict, kind+" "+name+" belongs to "+strings.TrimSpace(note)+", which is running")
	p.Type, p.Title = Leashed, "Held by another"
	return p
}
