package api

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// Leases gives ports to apps. Errors are answered as those of Control are.
type Leases interface {
	Leases() []Lease
	// Lease is the port of a name: the one it has, or with another a different one.
	Lease(ctx context.Context, name string, another bool) (*Lease, error)
	// Release gives the port back, and returns what was leased.
	Release(ctx context.Context, name string) (*Lease, error)
}

// Lease is one port that is leased to an app.
type Lease struct {
	Name  string    `json:"name"`
	Port  int       `json:"port"`
	State string    `json:"state"` // provisional, held, in_use, promised, busy or released
	Since time.Time `json:"since"` // of State
	New   bool      `json:"new"`   // made by this request
	// Listeners are the processes that listen on the port at this moment, where the answer is about one lease: the app,
	// or somebody who is in its way. Nobody can tell which for a lease that is promised.
	Listeners []Holder   `json:"listeners,omitempty"`
	Error     string     `json:"error"`
	NextTry   *time.Time `json:"next_try"`
}

func (a *API) leases(w http.ResponseWriter, _ *request) error {
	if a.o.Leases == nil {
		return missing("a list of leases")
	}
	return reply(w, http.StatusOK, solid(a.o.Leases.Leases()))
}

func (a *API) lease(w http.ResponseWriter, r *request) error {
	if a.o.Leases == nil {
		return missing("leasing")
	}
	another := false
	if v := r.URL.Query().Get("new"); v != "" {
		var err error
		if another, err = strconv.ParseBool(v); err != nil {
			return problem(http.StatusBadRequest, "new is true or false, not "+clip(v))
		}
	}
	var l *Lease
	var err error
	if id := r.URL.Query().Get("leash"); id != "" && a.o.Leashes != nil {
		l, err = a.o.Leashes.Lease(r.Context(), id, r.arg, another)
	} else {
		l, err = a.o.Leases.Lease(r.Context(), r.arg, another)
	}
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, l)
}

// release needs no If-Match: a lease is no part of the configuration, and has no revision.
func (a *API) release(w http.ResponseWriter, r *request) error {
	if a.o.Leases == nil {
		return missing("leasing")
	}
	l, err := a.o.Leases.Release(r.Context(), r.arg)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, l)
}
