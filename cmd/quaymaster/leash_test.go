package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
)

// held is a leash of a test.
type held struct {
	c   *api.Client
	id  string
	end func() // returns when our side of it is over
}

func (q *qm) leash(t *testing.T, note string) *held {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	l := &held{c: api.NewClient(q.sock)}
	first, over := make(chan string, 1), make(chan error, 1)
	go func() { over <- l.c.Hold(ctx, note, func(id string) error { first <- id; return nil }) }()
	select {
	case l.id = <-first:
	case err := <-over:
		t.Fatalf("leash: %v", err)
	}
	l.end = func() { cancel(); <-over; l.c.Close() }
	return l
}

// TestA18_ARouteThatIsTakenOutIsNobodys deletes a route of a leash: its name is free for others, and stays theirs when the
// leash ends.
func TestA18_ARouteThatIsTakenOutIsNobodys(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := start(t, "log: {access: {enabled: false}}\n")
	body := func(text string) []byte {
		return []byte(fmt.Sprintf(`{"match":{"ports":["127.0.0.1:%d"],"domains":["x.localhost"]},"action":{"respond":{"body":%q}}}`, port, text))
	}
	one, two := q.leash(t, "one"), q.leash(t, "two")
	defer two.end()
	if _, err := one.c.PutRoute(context.Background(), one.id, "r", body("one")); err != nil {
		t.Fatal(err)
	}
	var p *api.Problem
	if _, err := two.c.PutRoute(context.Background(), two.id, "r", body("two")); !errors.As(err, &p) || p.Type != api.Leashed {
		t.Errorf("a route of another leash: %v", err)
	}
	if err := two.c.Do(context.Background(), http.MethodDelete, "/v1/routes/r", "*", nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := two.c.PutRoute(context.Background(), two.id, "r", body("two")); err != nil {
		t.Errorf("a name that is free: %v", err)
	}
	one.end()
	if _, err := two.c.PutRoute(context.Background(), two.id, "r", body("still two")); err != nil {
		t.Error(err)
	}
	if status, text, err := fetch(port, "x.localhost", "/"); status != 200 || text != "still two" || err != nil {
		t.Errorf("%d %q %v", status, text, err)
	}
}
