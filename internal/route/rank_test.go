package route

import (
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

func ofContainer(rank int) func(*plan.Route) {
	return func(r *plan.Route) { r.Source, r.Rank = "container x (podman)", rank }
}

// A rank orders routes of containers for the same host, whatever their paths, and lifts none over a narrower host or over
// a priority.
func TestARankCountsAfterTheHostAndBeforeThePath(t *testing.T) {
	p := portOf(t,
		route("narrow", hosts("a.x"), paths("/p/*"), ofContainer(5)), route("whole", hosts("a.x"), ofContainer(20)),
		route("low", hosts("b.x"), ofContainer(1)), route("part", hosts("b.x"), paths("/p/*"), ofContainer(30)),
		route("first", hosts("*.x"), paths("/first"), priority(1)), route("any", hosts("*.x")),
		route("wild", hosts("*.x"), paths("/w"), ofContainer(1000)), route("exact", hosts("c.x")),
		route("plainest", hosts("d.x"), paths("/p/*"), ofContainer(0)), route("plain", hosts("d.x"), ofContainer(0)))
	checkAll(t, p, []asked{
		{"GET a.x/p/q", "whole"},
		{"GET b.x/p/q", "part"},
		{"GET b.x/q", "low"},
		{"GET a.x/first", "first"},
		{"GET c.x/w", "exact"},
		{"GET e.x/w", "wild"},
		{"GET e.x/v", "any"},
		{"GET d.x/p/q", "plainest"},
		{"GET d.x/", "plain"},
	})
}

func TestAContainerComesAfterTheAPI(t *testing.T) {
	api := route("api", clients("10.0.0.0/8"))
	api.Source = plan.FromAPI
	p := portOf(t, route("box", clients("10.0.0.0/9"), ofContainer(0)), api)
	checkAll(t, p, []asked{{"GET h/", "api"}})
}
