package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// routeName is what a route may be called: a DNS label.
const routeName = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`

// editable checks what every edit of a route or app needs, and returns the revision that it was made against.
func (a *API) editable(r *request) (string, error) {
	if a.o.Editor == nil || a.o.Control == nil {
		return "", missing("editing")
	}
	if ok, _ := regexp.MatchString(routeName, r.arg); !ok {
		return "", problem(http.StatusBadRequest, "not a name: "+clip(r.arg)+"; a route or app is called by lower-case letters, digits and dashes, 63 at most")
	}
	match, err := matched(r)
	if err != nil {
		return "", err
	}
	return match, nil
}

// editableRoute is editable for a route. The place is named here; the editor asks again when it is the edit's turn.
func (a *API) editableRoute(r *request) (string, error) {
	if a.o.Control != nil {
		if p, _ := a.o.Control.Plan(); p != nil {
			if held := p.Route(r.arg); held != nil && held.Source.Container() {
				return "", HeldByContainer(r.arg, held.Source)
			}
		}
	}
	match, err := a.editable(r)
	if err != nil {
		return "", err
	}
	if p, _ := a.o.Control.Plan(); p != nil {
		if held := p.Route(r.arg); held != nil && held.Source == plan.FromFile {
			return "", HeldByFile("route", r.arg, p.Where["route/"+r.arg])
		}
	}
	return match, nil
}

func (a *API) putApp(w http.ResponseWriter, r *request) error {
	match, err := a.editable(r)
	if err != nil {
		return err
	}
	return put(w, r, "app", match, func(ctx context.Context, name string, text []byte, match string) (*Change, error) {
		if err := a.admitApps(r.Request, text); err != nil {
			return nil, err
		}
		return a.o.Editor.PutApp(ctx, name, text, match)
	})
}

// put has an object written that the body holds as configuration writes it.
func put(w http.ResponseWriter, r *request, kind, match string, edit func(ctx context.Context, name string, text []byte, match string) (*Change, error)) error {
	text, err := body(r)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return problem(http.StatusBadRequest, "the body is empty; send the "+kind+" as configuration writes it")
	}
	c, err := edit(r.Context(), r.arg, text, match)
	return changed(w, c, err)
}

func (a *API) deleteApp(w http.ResponseWriter, r *request) error {
	match, err := a.editable(r)
	if err != nil {
		return err
	}
	c, err := a.o.Editor.DeleteApp(r.Context(), r.arg, match)
	return changed(w, c, err)
}

// HeldByFile is the answer to an edit of what a file holds: 409 with the place.
func HeldByFile(kind, name string, at plan.Pos) *Problem {
	where := "a file"
	if at.File != "" {
		where = at.File + ":" + strconv.Itoa(at.Line)
	}
	return &Problem{
		Type: InFile, Title: "Held by a file", Status: http.StatusConflict,
		Detail: kind + " " + name + " is written in " + where + "; change it there and reload",
		Errors: []Finding{{
			File: at.File, Line: at.Line, Col: at.Col, Path: kind + "s", Message: kind + " " + name + " is written in this file",
			Remedy: "change the file and reload, or choose another name",
		}},
	}
}

// HeldByContainer is the answer to an edit of what the labels of a container make: 409 with the container's name.
func HeldByContainer(name string, by plan.Source) *Problem {
	remedy := "stop the container, change its labels, or put a route of another name with the same match: it wins"
	return &Problem{
		Type: InContainer, Title: "Held by a container", Status: http.StatusConflict,
		Detail: "route " + name + " comes from the labels of " + string(by) + "; " + remedy,
		Errors: []Finding{{Path: "routes", Message: "route " + name + " comes from the labels of " + string(by), Remedy: remedy}},
	}
}

func (a *API) putRoute(w http.ResponseWriter, r *request) error {
	match, err := a.editableRoute(r)
	if err != nil {
		return err
	}
	edit := a.o.Editor.PutRoute
	if id := r.URL.Query().Get("leash"); id != "" {
		if a.o.Leashes == nil {
			return missing("a leash")
		}
		edit = func(ctx context.Context, name string, text []byte, match string) (*Change, error) {
			return a.o.Leashes.PutRoute(ctx, id, name, text, match)
		}
	}
	return put(w, r, "route", match, edit)
}

func (a *API) deleteRoute(w http.ResponseWriter, r *request) error {
	match, err := a.editableRoute(r)
	if err != nil {
		return err
	}
	if p, _ := a.o.Control.Plan(); p != nil && p.Route(r.arg) == nil {
		return problem(http.StatusNotFound, "there is no route "+r.arg)
	}
	c, err := a.o.Editor.DeleteRoute(r.Context(), r.arg, match)
	return changed(w, c, err)
}

func (a *API) putConfig(w http.ResponseWriter, r *request) error {
	if a.o.Editor == nil {
		return missing("editing")
	}
	match, err := matched(r)
	if err != nil {
		return err
	}
	text, err := body(r)
	if err != nil {
		return err
	}
	var layer struct {
		Apps map[string]json.RawMessage `json:"apps"`
	}
	_ = json.NewDecoder(bytes.NewReader(text)).Decode(&layer) // as the editor does, which says what it is not
	if err := a.admitApps(r.Request, slices.Collect(maps.Values(layer.Apps))...); err != nil {
		return err
	}
	c, err := a.o.Editor.PutConfig(r.Context(), text, match)
	return changed(w, c, err)
}

// changed answers with what an edit or a reload came to.
func changed(w http.ResponseWriter, c *Change, err error) error {
	if err != nil {
		return err
	}
	c.Changes = solid(c.Changes)
	w.Header().Set("ETag", etag(c.Revision))
	return reply(w, http.StatusOK, c)
}

func (a *API) check(w http.ResponseWriter, r *request) error {
	if a.o.Configs == nil {
		return missing("check")
	}
	text, err := body(r)
	if err != nil {
		return err
	}
	c, err := a.o.Configs.Check(r.Context(), text)
	return changed(w, c, err)
}

// asked are the members of the body of POST /v1/reload, which may be left out or stand in the query instead.
type asked struct {
	DryRun  bool `json:"dry_run"`
	Confirm any  `json:"confirm"` // "2m" or seconds
}

func (a *API) reload(w http.ResponseWriter, r *request) error {
	if a.o.Control == nil {
		return missing("reload")
	}
	o, err := reloadOptions(r)
	if err != nil {
		return err
	}
	c, err := a.o.Control.Reload(r.Context(), o)
	return changed(w, c, err)
}

func reloadOptions(r *request) (o ReloadOptions, err error) {
	text, err := body(r)
	if err != nil {
		return o, err
	}
	var in asked
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil && !errors.Is(err, io.EOF) {
		return o, problem(http.StatusBadRequest, `the body is not {"dry_run": bool, "confirm": "2m"}: `+clip(err.Error()))
	}
	o.DryRun = in.DryRun
	q := r.URL.Query()
	if v := q.Get("dry_run"); v != "" {
		if o.DryRun, err = strconv.ParseBool(v); err != nil {
			return o, problem(http.StatusBadRequest, "dry_run is true or false, not "+clip(v))
		}
	}
	confirm := q.Get("confirm")
	switch v := in.Confirm.(type) {
	case string:
		confirm = v
	case float64:
		confirm = strconv.FormatFloat(v, 'f', -1, 64)
	case nil:
	default:
		return o, problem(http.StatusBadRequest, `confirm is a duration: "2m" or a number of seconds`)
	}
	if confirm != "" {
		o.Confirm, err = seconds(confirm)
	}
	return o, err
}

func (a *API) confirm(w http.ResponseWriter, r *request) error {
	if a.o.Control == nil {
		return missing("confirm")
	}
	if err := a.o.Control.Confirm(r.Context()); err != nil {
		return err
	}
	_, revision := a.o.Control.Plan()
	return reply(w, http.StatusOK, Confirmed{Revision: revision})
}

func (a *API) stop(w http.ResponseWriter, _ *request) error {
	if a.o.Stop == nil {
		return missing("stop")
	}
	a.o.Log.Info("stop asked for on the admin socket")
	a.o.Stop()
	return reply(w, http.StatusAccepted, Stopping{PID: os.Getpid(), State: "draining"})
}
