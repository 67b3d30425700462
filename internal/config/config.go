// Package config turns text and API edits into one plan, or into every mistake in them with its place and its remedy.
//
// It promises that the same bytes always give an equal plan, and that what did not change between two loads is the same
// pointer in both plans. It never binds, dials, starts or writes anything, and never lets a key pass that has no effect.
package config

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// Error is one mistake: file, line, column, path, what is wrong and what to write instead.
type Error = strict.Problem

// Errors are all mistakes of a configuration, in the order of their places.
type Errors = strict.Problems

// A Warning is a mistake that does not keep the configuration from being loaded.
type Warning struct {
	Error
	// Conflict names a route of the API layer that gave way to the file. An edit that caused it should be refused.
	Conflict string `json:"conflict,omitempty"`
}

// A Source is one configuration file in memory. Name is its path as errors show it; relative paths inside are relative
// to its folder.
type Source struct {
	Name  string
	Bytes []byte
}

// A Layer holds what was set through the API. The file wins over it. Values are never changed in place: Put replaces.
type Layer struct {
	Routes map[string]json.RawMessage `json:"routes,omitempty"`
	Apps   map[string]json.RawMessage `json:"apps,omitempty"`
}

// Clone returns a copy that may be altered.
func (l *Layer) Clone() *Layer {
	if l == nil {
		return &Layer{}
	}
	return &Layer{Routes: maps.Clone(l.Routes), Apps: maps.Clone(l.Apps)}
}

// Put sets a route after ParseRoute has accepted it.
func (l *Layer) Put(name string, body []byte) error {
	route, err := ParseRoute(name, body)
	if err != nil {
		return err
	}
	if l.Routes == nil {
		l.Routes = map[string]json.RawMessage{}
	}
	l.Routes[name] = route
	return nil
}

// Delete removes a route and reports whether there was one.
func (l *Layer) Delete(name string) bool {
	_, ok := l.Routes[name]
	delete(l.Routes, name)
	return ok
}

// PutApp sets an app after ParseApp has accepted it.
func (l *Layer) PutApp(name string, body []byte) error {
	app, err := ParseApp(name, body)
	if err != nil {
		return err
	}
	if l.Apps == nil {
		l.Apps = map[string]json.RawMessage{}
	}
	l.Apps[name] = app
	return nil
}

// DeleteApp removes an app and reports whether there was one.
func (l *Layer) DeleteApp(name string) bool {
	_, ok := l.Apps[name]
	delete(l.Apps, name)
	return ok
}

// A Conflict says that the API may not change an object because a file holds it.
type Conflict struct {
	Kind  string // "route" or "app"
	Name  string
	Where plan.Pos
}

func (c *Conflict) Error() string {
	return fmt.Sprintf("%s %q is written in %s:%d; change it there", c.Kind, c.Name, c.Where.File, c.Where.Line)
}

// FileHolds returns a *Conflict when the route of that name comes from a file, else nil.
func FileHolds(p *plan.Plan, name string) error {
	for _, r := range p.Routes {
		if r.Name == name && r.Source == plan.FromFile {
			return &Conflict{Kind: "route", Name: name, Where: p.Where["route/"+name]}
		}
	}
	return nil
}

// FileHoldsApp is FileHolds for the app of that name.
func FileHoldsApp(p *plan.Plan, name string) error {
	for _, a := range p.Apps {
		if a.Name == name && a.Source == plan.FromFile {
			return &Conflict{Kind: "app", Name: name, Where: p.Where["app/"+name]}
		}
	}
	return nil
}
