package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// The bounds of a live check.
const (
	probesAtOnce = 16
	probeWithin  = 10 * time.Second
)

// probe is what trying one port or target came to.
type probe struct {
	Object string `json:"object"` // "port :443" or "target 10.0.0.5:8080"
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// probeAll tries to bind every port and to reach every target of the plan, in the plan's order.
func (s *shell) probeAll(ctx context.Context, p *plan.Plan) []probe {
	held := s.running(ctx)
	var jobs []func() probe
	for _, port := range p.Ports {
		jobs = append(jobs, func() probe { return probePort(port.Addr, held) })
	}
	for _, u := range p.Upstreams {
		for _, t := range u.Targets {
			jobs = append(jobs, func() probe { return probeTarget(ctx, u, t) })
		}
	}
	out := make([]probe, len(jobs))
	slots := make(chan struct{}, probesAtOnce)
	var wg sync.WaitGroup
	for i, job := range jobs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i] = job()
		})
	}
	wg.Wait()
	return out
}

// running lists the ports that a running daemon holds for this configuration; those are no conflict.
func (s *shell) running(ctx context.Context) map[string]bool {
	c := s.client()
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var list []api.Port
	if c.Get(ctx, "/v1/ports", &list) != nil {
		return nil
	}
	held := make(map[string]bool, len(list))
	for _, p := range list {
		held[p.Wanted] = p.State == "bound" || p.State == "activated" || p.State == "fallback"
	}
	return held
}

func probePort(a plan.Addr, held map[string]bool) probe {
	r := probe{Object: "port " + a.String(), OK: true, Detail: "free"}
	switch {
	case held[a.String()]:
		r.Detail = "held by the running quaymaster"
		return r
	case a.Name != "":
		r.Detail = "not tried: systemd hands it over at start"
		return r
	case a.Network == plan.Unix:
		return probeSocket(a.Path, r)
	}
	err := tryBind(a)
	if err == nil {
		return r
	}
	r.OK, r.Detail = false, err.Error()
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		r.Remedy = "stop what listens there, or choose another port"
		if found, err := api.Who(a.Port); err == nil {
			for _, l := range found {
				if l.Holder != nil {
					r.Detail = "held by " + holder(l.Holder)
				}
			}
		}
	case errors.Is(err, syscall.EACCES):
		r.Remedy = "run as root, grant CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		r.Remedy = "write an address of this host, or leave it out"
	}
	return r
}

// tryBind binds as a start would, but does not listen: no client can come in by it, while a socket that others listen
// on refuses it. Reuse of the address keeps TIME_WAIT from looking like a conflict.
func tryBind(a plan.Addr) error {
	domain := unix.AF_INET6
	if a.Family == plan.V4 {
		domain = unix.AF_INET
	}
	kind := unix.SOCK_STREAM
	if a.Network == plan.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) && a.Family == plan.Dual {
		domain = unix.AF_INET // a host without IPv6
		fd, err = unix.Socket(domain, kind, 0)
	}
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if kind == unix.SOCK_STREAM {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if domain == unix.AF_INET {
		to := &unix.SockaddrInet4{Port: int(a.Port)}
		if a.IP.IsValid() {
			to.Addr = a.IP.As4()
		}
		return os.NewSyscallError("bind", unix.Bind(fd, to))
	}
	to := &unix.SockaddrInet6{Port: int(a.Port)}
	if a.IP.IsValid() {
		to.Addr = a.IP.As16()
	}
	only := 0
	if a.Family == plan.V6 {
		only = 1
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	return os.NewSyscallError("bind", unix.Bind(fd, to))
}

// probeSocket tells a socket that somebody answers on from a stale one.
func probeSocket(path string, r probe) probe {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		r.OK, r.Detail, r.Remedy = false, "somebody listens there", "stop it, or choose another path"
	}
	return r
}

func probeTarget(ctx context.Context, u *plan.Upstream, t plan.Target) probe {
	r := probe{Object: "target " + t.Text, OK: true}
	if t.PreservePort {
		r.Detail = "not tried: it has the port the client comes to"
		return r
	}
	network, address := "tcp", net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
	if t.Network == plan.Unix {
		network, address = "unix", t.Host
	}
	within := u.Connect
	if within <= 0 || within > probeWithin {
		within = probeWithin
	}
	d := net.Dialer{Timeout: within}
	start := time.Now()
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		r.OK, r.Detail, r.Remedy = false, err.Error(), "start it, or mend upstream "+u.Name
		return r
	}
	_ = c.Close()
	r.Detail = fmt.Sprintf("reached in %v", time.Since(start).Round(time.Millisecond))
	return r
}

// probed prints what would fail and returns exit code 1 if anything would.
func (s *shell) probed(list []probe, print bool) error {
	bad := 0
	rows := make([][]string, 0, len(list))
	for _, p := range list {
		state := "well"
		if !p.OK {
			state = "fails"
			bad++
		}
		rows = append(rows, []string{p.Object, state, p.Detail, p.Remedy})
	}
	if print && len(rows) > 0 {
		table(s.out, "OBJECT STATE DETAIL REMEDY", rows)
	}
	if bad > 0 {
		return &coded{exitFailed, fmt.Errorf("cannot have all of it now: %s would fail; the list says what to do", plural(bad, "thing"))}
	}
	return nil
}
