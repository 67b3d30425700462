package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// A peer is the process at the other end of the admin socket, as the kernel tells it.
type peer struct {
	uid    uint32
	groups []uint32
	err    error // why the kernel did not tell
}

type peerKey struct{}

type lastKey struct{}

// ConnContext notes who is at the other end of c, and whether c has the last descriptor there is. It is the ConnContext
// of the http.Server behind an admin socket.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	for {
		if l, ok := c.(interface{ Last() bool }); ok && l.Last() {
			ctx = context.WithValue(ctx, lastKey{}, true)
		}
		under, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = under.NetConn()
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	p := &peer{}
	p.uid, p.groups, p.err = credentials(u)
	return context.WithValue(ctx, peerKey{}, p)
}

// admit reports why the client may not do what needs that access; nil lets it in.
func (a *API) admit(r *http.Request, kind Kind, need access) error {
	if kind == Metrics || (need == open && kind == TCP) {
		return nil
	}
	if err := sameOrigin(r); err != nil {
		return err
	}
	if kind == Socket {
		if need == open {
			return nil
		}
		return a.admitPeer(r)
	}
	if !ownHost(r.Host, a.o.Admin.Address) {
		return problem(http.StatusForbidden, "the Host "+clip(r.Host)+" is not one of the admin address; use its IP address, localhost, or the name in admin.address")
	}
	if !a.tokenMatches(r) {
		return problem(http.StatusUnauthorized, "send the token of admin.token_file as Authorization: Bearer TOKEN")
	}
	allow := a.o.Admin.Allow
	if need == write && !slices.Contains(allow, "write") {
		return problem(http.StatusForbidden, "over TCP only reading is allowed; use the admin socket, or add write to admin.allow")
	}
	if need == read && len(allow) > 0 && !slices.Contains(allow, "read") {
		return problem(http.StatusForbidden, "admin.allow does not name read")
	}
	return nil
}

// admitPeer lets in root, the daemon's own user and the members of admin.group.
func (a *API) admitPeer(r *http.Request) error {
	p, ok := r.Context().Value(peerKey{}).(*peer)
	switch {
	case !ok:
		return problem(http.StatusForbidden, "the process at the other end of the admin socket is not known")
	case p.err != nil:
		a.o.Log.Warn("admin peer not identified", "err", p.err)
		return problem(http.StatusForbidden, "the kernel does not say which process is at the other end of the admin socket")
	case p.uid == 0, int(p.uid) == os.Getuid(), int(p.uid) == os.Geteuid():
		return nil
	}
	if gid, ok := groupID(a.o.Admin.Group); ok && slices.Contains(p.groups, gid) {
		return nil
	}
	return problem(http.StatusForbidden, "user "+strconv.Itoa(int(p.uid))+" may not use the admin socket; be root, the daemon's user, or a member of admin.group")
}

// groupID finds a group by name or number, anew for each request, so that a group made later counts.
func groupID(name string) (uint32, bool) {
	if name == "" {
		return 0, false
	}
	text := name
	if g, err := user.LookupGroup(name); err == nil {
		text = g.Gid
	}
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil
}

// sameOrigin refuses what a browser sends on behalf of another site.
func sameOrigin(r *http.Request) error {
	origin, sent := r.Header["Origin"]
	if !sent {
		return nil
	}
	if len(origin) == 1 {
		if u, err := url.Parse(origin[0]); err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) {
			return nil
		}
	}
	return problem(http.StatusForbidden, "this request comes from a page of another origin")
}

// ownHost reports whether a Host cannot have been forged by DNS rebinding: an address, localhost, or the very name
// that the admin address is written with.
func ownHost(host, address string) bool {
	name, port := splitHost(host)
	wantName, wantPort := splitHost(address)
	if port != "" && wantPort != "" && wantPort != "0" && port != wantPort {
		return false
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return name == "localhost" || (name != "" && name == wantName)
}

// splitHost takes a lower-case name or address and a port, either of which may be empty, from HOST[:PORT].
func splitHost(s string) (name, port string) {
	name = s
	if h, p, err := net.SplitHostPort(s); err == nil {
		name, port = h, p
	}
	return strings.ToLower(strings.Trim(name, "[]")), port
}

// tokenMatches compares in a time that tells nothing of the token, its length included. Without a token in the
// configuration nothing matches.
func (a *API) tokenMatches(r *http.Request) bool {
	scheme, sent, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want := string(a.o.Admin.Token)
	if want == "" || !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	x, y := sha256.Sum256([]byte(strings.TrimSpace(sent))), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
