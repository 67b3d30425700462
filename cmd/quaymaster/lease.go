package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) leaseVerb() *cobra.Command {
	var another bool
	c := verb(
		"lease NAME", "Lease a port to an app and print it", "quaymaster ports lease web",
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return s.lease(ctx, args[0], another) },
	)
	c.Long = `Prints the port of that name: the one it has, or the lowest free one of app_ports. No other name
gets it until it is released, a restart and a crash of the daemon included. The port is not kept
bound, so that the app can bind it.`
	c.Flags().BoolVar(&another, "new", false, "another port than the one it has, which is given back")
	return c
}

func (s *shell) releaseVerb() *cobra.Command {
	return verb(
		"release NAME", "Give the port of an app back", "quaymaster ports release web",
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return s.release(ctx, args[0]) },
	)
}

func (s *shell) lease(ctx context.Context, name string, another bool) error {
	path := "/v1/leases/" + url.PathEscape(name)
	if another {
		path += "?new=true"
	}
	l, err := s.leaseDo(ctx, http.MethodPost, path, "lease a port to "+name)
	if l == nil || err != nil {
		return err
	}
	fmt.Fprintln(s.out, l.Port)
	for i := range l.Listeners {
		fmt.Fprintf(s.err, "port %d: %s listens there; if that is not %s, take another port with \"quaymaster ports lease %s --new\"\n",
			l.Port, holder(&l.Listeners[i]), name, name)
	}
	return nil
}

func (s *shell) release(ctx context.Context, name string) error {
	l, err := s.leaseDo(ctx, http.MethodDelete, "/v1/leases/"+url.PathEscape(name), "release the port of "+name)
	if l == nil || err != nil {
		return err
	}
	fmt.Fprintf(s.out, "released port %d\n", l.Port)
	for i := range l.Listeners {
		fmt.Fprintf(s.err, "port %d: %s still listens there\n", l.Port, holder(&l.Listeners[i]))
	}
	return nil
}

// leaseDo makes one request. With --json it prints the answer, and returns nothing.
func (s *shell) leaseDo(ctx context.Context, method, path, what string) (*api.Lease, error) {
	c := s.client()
	defer c.Close()
	var raw json.RawMessage
	if err := c.Do(ctx, method, path, "", nil, &raw); err != nil {
		var p *api.Problem
		if errors.As(err, &p) && p.Status == http.StatusBadRequest {
			return nil, &coded{exitUsage, cannot(what, err)}
		}
		return nil, cannot(what, err)
	}
	if s.json {
		return nil, s.printJSON(raw)
	}
	l := &api.Lease{}
	if err := json.Unmarshal(raw, l); err != nil {
		return nil, fmt.Errorf("cannot read the daemon's answer: %w; are both of one version?", err)
	}
	return l, nil
}
