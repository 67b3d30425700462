package ports

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// An ownListener serves the daemon itself: admin and metrics. It is no part of the plan, and lives until it is closed.
type ownListener struct {
	listener
	ps     *Ports
	socket *socket
	source string
	wanted string
	since  time.Time
	once   sync.Once
}

// ListenAdmin listens on a unix socket. A missing folder is made with mode 0700; mode is octal text ("0600"), group a
// name or number that the socket is given to, or "". The caller closes the listener, which removes the file.
func (ps *Ports) ListenAdmin(path, mode, group string) (net.Listener, error) {
	bits, err := strconv.ParseUint(mode, 8, 32)
	if err != nil || bits == 0 || bits > 0o777 {
		return nil, fmt.Errorf("admin socket mode %q: want octal digits, such as \"0600\"", mode)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the folder of the admin socket: %w; set admin.socket to a folder that user %d may write", err, os.Getuid())
	}
	a := plan.Addr{Network: plan.Unix, Path: path}
	s, err := bindUnix(path, os.FileMode(bits))
	if err != nil {
		failed := bindError(a, err)
		failed.lookUp()
		return nil, failed
	}
	if group != "" {
		if err := chgrp(path, group); err != nil {
			s.stop(drop)
			return nil, err
		}
	}
	return ps.keep(s, "admin", a.String()), nil
}

// chgrp gives the file at path to a group.
func chgrp(path, group string) error {
	g, err := user.LookupGroup(group)
	if err != nil {
		g, err = user.LookupGroupId(group)
	}
	if err != nil {
		return fmt.Errorf("admin socket group: %w; make the group, or take admin.group out", err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err == nil {
		err = os.Chown(path, -1, gid)
	}
	if err != nil {
		return fmt.Errorf("give the admin socket to group %s: %w; the daemon's user must be in it", group, err)
	}
	return nil
}

// ListenTCP listens on IP:PORT, localhost:PORT or :PORT for admin or metrics, whichever source says. The caller closes
// the listener.
func (ps *Ports) ListenTCP(source, address string) (net.Listener, error) {
	a, err := parseAddress(address)
	if err != nil {
		return nil, fmt.Errorf("%s address: %w", source, err)
	}
	b := ps.binder()
	g, failed := b.one(a, &plan.Port{Addr: a})
	if failed != nil {
		failed.lookUp()
		return nil, failed
	}
	s := g.socks[0]
	ps.mu.Lock()
	ps.idle = slices.DeleteFunc(ps.idle, func(o *socket) bool { return o == s })
	ps.mu.Unlock()
	return ps.keep(s, source, address), nil
}

// parseAddress reads HOST:PORT where HOST is an IP, localhost or nothing.
func parseAddress(text string) (plan.Addr, error) {
	host, number, err := net.SplitHostPort(text)
	if err != nil {
		return plan.Addr{}, fmt.Errorf("%q is not IP:PORT", text)
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return plan.Addr{}, fmt.Errorf("%q: %q is not a port number", text, number)
	}
	switch host {
	case "":
		return plan.Addr{Port: uint16(port)}, nil
	case "localhost":
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return plan.Addr{}, fmt.Errorf("%q: %q is not an IP address; write the address to listen on", text, host)
	}
	return plan.TCPAddr(ip, uint16(port)), nil
}

// keep lists s as one of our own.
func (ps *Ports) keep(s *socket, source, wanted string) net.Listener {
	o := &ownListener{listener: s.ln, ps: ps, socket: s, source: source, wanted: wanted, since: time.Now()}
	ps.mu.Lock()
	ps.own = append(ps.own, o)
	ps.mu.Unlock()
	ps.index()
	ps.opt.Log.Info("listening", "source", source, "address", s.addr.String())
	return o
}

// Close closes the socket and takes it off the list.
func (o *ownListener) Close() error {
	o.once.Do(func() {
		o.ps.mu.Lock()
		o.ps.own = slices.DeleteFunc(o.ps.own, func(x *ownListener) bool { return x == o })
		o.ps.mu.Unlock()
		o.ps.index()
		o.socket.stop(drop)
	})
	return nil
}
