package containers

import (
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// taken are the words, in lower case, by which engines and their helpers say that a port of this host is taken.
var taken = []string{
	"port is already allocated",   // docker: its own table
	"address already in use",      // docker-proxy, podman as root, rootlessport, pasta, netavark
	"proxy already running",       // gvproxy, and docker's own after an unclean end
	"failed to bind host port",    // docker since 28
	"failed to bind port",         // pasta
	"ports are not available",     // Docker Desktop
	"port is already in use",      // wslrelay, vpnkit
	"slirp_add_hostfwd failed",    // slirp4netns, which gives no reason
	"cannot listen on the tcp",    // podman as root
	"only one usage of each sock", // Windows below a virtual machine
}

// named are the ports that such a text names.
var named = regexp.MustCompile(`(?:[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}|\]|localhost|::):([0-9]{1,5})\b|\bport:? ([0-9]{1,5})\b|[0-9]/([0-9]{1,5})[-:]`)

// portTaken reports whether an engine's refusal means that the port is taken, and what it has said. A text that names
// other ports alone is about those.
func portTaken(err error, port uint16) (string, bool) {
	var said *saidError
	if !errors.As(err, &said) || port == 0 {
		return "", false
	}
	low := strings.ToLower(said.text)
	if !slices.ContainsFunc(taken, func(t string) bool { return strings.Contains(low, t) }) {
		return "", false
	}
	all := named.FindAllStringSubmatch(low, -1)
	ours := len(all) == 0
	for _, m := range all {
		ours = ours || m[1]+m[2]+m[3] == strconv.Itoa(int(port))
	}
	return said.text, ours
}
