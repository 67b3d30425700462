package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"time"
)

// UpgradeOptions say how the daemon is replaced.
type UpgradeOptions struct {
	Binary  string        // absolute path of the program; "": the one the daemon was started as
	Timeout time.Duration // for the new process to be ready; 0: 30 s
}

// Upgraded is the answer to an upgrade: PID serves, Before drains.
type Upgraded struct {
	PID    int `json:"pid"`
	Before int `json:"before"`
}

// maxUpgrade bounds the timeout that a client may ask for.
const maxUpgrade = 5 * time.Minute

// upgrade replaces the daemon. To name a program is to run it with the rights of the daemon, so that only root and the
// daemon's own user may, and nobody over TCP.
func (a *API) upgrade(w http.ResponseWriter, r *request) error {
	if a.o.Upgrade == nil {
		return missing("upgrade")
	}
	text, err := body(r)
	if err != nil {
		return err
	}
	var in struct {
		Binary  string  `json:"binary"`
		Timeout float64 `json:"timeout"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil && !errors.Is(err, io.EOF) {
		return problem(http.StatusBadRequest, `the body is not {"binary": "/path", "timeout": seconds}: `+clip(err.Error()))
	}
	o := UpgradeOptions{Binary: in.Binary, Timeout: time.Duration(in.Timeout * float64(time.Second))}
	switch {
	case o.Binary != "" && !mayRun(r.Request):
		return problem(http.StatusForbidden, "only root and the daemon's own user may name the program, and only on the admin socket; leave binary out to start the one it was started as")
	case o.Binary != "" && !filepath.IsAbs(o.Binary):
		return problem(http.StatusBadRequest, "binary "+clip(o.Binary)+" is not an absolute path; the daemon may run in another folder")
	case in.Timeout < 0 || in.Timeout > maxUpgrade.Seconds():
		return problem(http.StatusBadRequest, "timeout is a number of seconds up to 300")
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(maxUpgrade + writeWithin))
	up, err := a.o.Upgrade(r.Context(), o)
	if err != nil {
		return problem(http.StatusConflict, err.Error())
	}
	return reply(w, http.StatusOK, up)
}
