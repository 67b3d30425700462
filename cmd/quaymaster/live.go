package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports"
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
	}
	if e := ports.Probe(a); e != nil {
		r.OK, r.Detail, r.Remedy = false, e.Cause(), e.Remedy()
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
