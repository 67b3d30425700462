package api

import (
	"encoding/json"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
)

// mayRun reports whether the client could start programs as the daemon anyway.
func mayRun(r *http.Request) bool {
	p, ok := r.Context().Value(peerKey{}).(*peer)
	return ok && p.err == nil && (p.uid == 0 || int(p.uid) == os.Geteuid())
}

// admitApps reports why a client who may write may not say what is run: an app is a command, run by the daemon as a user of
// its choice. Root and the daemon's own user may, others on the socket for apps that run as themselves, and everybody who
// may write where admin.allow names run.
func (a *API) admitApps(r *http.Request, apps ...json.RawMessage) error {
	if mayRun(r) || slices.Contains(a.o.Admin.Allow, "run") {
		return nil
	}
	for _, text := range apps {
		var app struct {
			User  string `json:"user"`
			Image any    `json:"image"`       // whose user is one of the container
			Ours  any    `json:"inherit_env"` // what we were given, secrets too
		}
		_ = json.Unmarshal(text, &app) // what it is not is said when it is read
		if app.Ours != nil && app.Ours != false {
			return problem(http.StatusForbidden, "an app with inherit_env is told what the daemon was told, secrets too: only root and the daemon's own user may make one, or everybody who may write where admin.allow names run; write what it needs under env")
		}
		if app.Image != nil || !isPeer(r, app.User) {
			return problem(http.StatusForbidden, "an app runs a command: only root and the daemon's own user may make one on the admin socket, and others with their own name as its user; add run to admin.allow to let everybody make apps who may write")
		}
	}
	return nil
}

// isPeer reports whether a user of an app is who asks on the socket.
func isPeer(r *http.Request, name string) bool {
	p, ok := r.Context().Value(peerKey{}).(*peer)
	if !ok || p.err != nil || name == "" {
		return false
	}
	id := name
	if u, err := user.Lookup(name); err == nil {
		id = u.Uid
	}
	return id == strconv.FormatUint(uint64(p.uid), 10)
}
