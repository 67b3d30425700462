package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/evict"
)

// waitEvery is the pause between two looks.
const waitEvery = 100 * time.Millisecond

func (s *shell) waitVerb() *cobra.Command {
	var free bool
	var limit time.Duration
	c := verb(
		"wait PORT|URL|app:NAME", "Wait until something answers, or until a port is free", "quaymaster wait app:web --timeout 30s",
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return s.wait(ctx, args[0], free, limit) },
	)
	c.Long = `Waits until a port of this host takes connections, a URL answers with 200 to 399, or an app is ready;
with --free until a port can be bound. Exit 0 then, and 1 when the time is over. Only app:NAME needs
a daemon.`
	c.Flags().BoolVar(&free, "free", false, "wait until the port can be bound")
	c.Flags().DurationVar(&limit, "timeout", time.Minute, "how long; 0 is for ever")
	return c
}

func (s *shell) wait(ctx context.Context, what string, free bool, limit time.Duration) error {
	look, err := s.looker(what, free)
	if err != nil {
		return err
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	tick := time.NewTicker(waitEvery)
	defer tick.Stop()
	var last error
	for {
		err := look(ctx)
		if err == nil {
			return nil
		}
		var p *api.Problem
		if errors.As(err, &p) && p.Status >= 400 && p.Status < 500 { // the question is wrong, and stays it
			return cannot("wait for "+what, err)
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return &coded{exitFailed, fmt.Errorf("%s: waited %s: %w", what, limit, last)}
		case <-tick.C:
		}
	}
}

// looker is what looks once; nil is what is waited for.
func (s *shell) looker(what string, free bool) (func(context.Context) error, error) {
	name, isApp := strings.CutPrefix(what, "app:")
	isURL := strings.HasPrefix(what, "http://") || strings.HasPrefix(what, "https://")
	switch {
	case (isApp || isURL) && free:
		return nil, &coded{exitUsage, fmt.Errorf("cannot wait until %s is free: --free is for a port", what)}
	case isApp:
		c := s.client()
		return func(ctx context.Context) error {
			var a api.App
			if err := c.Get(ctx, "/v1/apps/"+url.PathEscape(name), &a); err != nil {
				return err
			}
			if a.State != "ready" {
				return fmt.Errorf("it is %s: %s", a.State, a.Reason)
			}
			return nil
		}, nil
	case isURL:
		return func(ctx context.Context) error { return answers(ctx, what) }, nil
	}
	port, err := portNumber(what)
	if err != nil {
		return nil, err
	}
	if free {
		return func(context.Context) error { return evict.Probe(plan.Addr{Port: port}) }, nil
	}
	return func(ctx context.Context) error {
		c, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort("localhost", strconv.Itoa(int(port))))
		if err != nil {
			return err
		}
		return c.Close()
	}, nil
}

// answers asks once for a URL.
func answers(ctx context.Context, where string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return &coded{exitUsage, fmt.Errorf("cannot ask for %s: %w", where, err)}
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 400 {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}
