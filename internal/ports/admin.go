package ports

import (
	"errors"
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
	"github.com/quaymaster/quaymaster/internal/ports/listen"
)

// An ownListener serves the daemon itself: admin and metrics. It is no part of the plan, and lives until it is closed.
type ownListener struct {
	listen.Listener
	ps     *Ports
	socket *socket
	source string
	wanted string
	since  time.Time
	once   sync.Once
	over   chan struct{} // closed by Close
	mu     sync.Mutex    // held while Accept is in the kernel

	reserve listen.Reserve
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
	if err := Folder(path); err != nil {
		return nil, fmt.Errorf("cannot have the admin socket: %w", err)
	}
	a := plan.Addr{Network: plan.Unix, Path: path}
	s, err := ps.bindAdmin(a, os.FileMode(bits))
	if err != nil {
		failed := bindError(a, err)
		failed.lookUp()
		return nil, failed
	}
	if group != "" {
		if err := chgrp(path, group); err != nil {
			s.Stop(listen.Drop)
			return nil, err
		}
	}
	return ps.keep(s, "admin", a.String()), nil
}

// bindAdmin takes the socket of a predecessor, or binds.
func (ps *Ports) bindAdmin(a plan.Addr, mode os.FileMode) (*socket, error) {
	ps.mu.Lock()
	i := slices.IndexFunc(ps.idle, func(s *socket) bool { return s.Addr == a })
	if i >= 0 {
		s := ps.idle[i]
		ps.idle = slices.Delete(ps.idle, i, i+1)
		ps.mu.Unlock()
		if err := os.Chmod(a.Path, mode); err != nil {
			return nil, err
		}
		return s, nil
	}
	ps.mu.Unlock()
	s, err := listen.BindUnix(a.Path, mode)
	if err != nil {
		return nil, err
	}
	return newSocket(s), nil
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
	o := &ownListener{Listener: s.Listener(), ps: ps, socket: s, source: source, wanted: wanted, since: time.Now(), over: make(chan struct{})}
	o.reserve.Hold()
	ps.mu.Lock()
	ps.own = append(ps.own, o)
	ps.mu.Unlock()
	ps.index()
	ps.opt.Log.Info("listening", "source", source, "address", s.Addr.String())
	return o
}

// Accept waits while the process is not the one that accepts.
func (o *ownListener) Accept() (net.Conn, error) {
	for {
		if opens := o.ps.gate.closed(); opens != nil {
			select {
			case <-opens:
			case <-o.over:
				return nil, net.ErrClosed
			}
		}
		c, err := o.accept()
		if c != nil || err != nil {
			return c, err
		}
	}
}

// accept returns nothing when it was woken because another process accepts.
func (o *ownListener) accept() (net.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ps.gate.closed() != nil {
		return nil, nil
	}
	c, err := o.reserve.Accept(o.socket.Socket)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil
	}
	return c, err
}

// rest wakes Accept after the gate was shut, and returns when it takes no connection any more.
func (o *ownListener) rest() {
	_ = o.SetDeadline(time.Unix(1, 0))
	o.mu.Lock()
	defer o.mu.Unlock()
}

// Close closes the socket and takes it off the list.
func (o *ownListener) Close() error {
	o.once.Do(func() {
		o.ps.mu.Lock()
		o.ps.own = slices.DeleteFunc(o.ps.own, func(x *ownListener) bool { return x == o })
		o.ps.mu.Unlock()
		o.ps.index()
		close(o.over)
		o.socket.Stop(listen.Drop)
		o.reserve.Close()
	})
	return nil
}
