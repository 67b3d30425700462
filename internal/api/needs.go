package api

import (
	"context"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Control owns the configuration in force. An error that is a *Problem is answered as it stands; any other is a 500.
// A change against a revision that is no longer in force is a *Problem of Stale, an invalid one of Invalid, and a valid
// one that could not be had of Unavailable.
type Control interface {
	Plan() (p *plan.Plan, revision string) // of the last Commit; never nil while the API answers
	Reload(ctx context.Context, o ReloadOptions) (*Change, error)
	Confirm(ctx context.Context) error
}

// ReloadOptions say how a reload is done.
type ReloadOptions struct {
	DryRun  bool
	Confirm time.Duration // > 0: goes back by itself unless confirmed in time
}

// Editor changes the API's own layer of the configuration. Each edit is applied alone, at once, in order of arrival,
// and is durable before the method returns. match is the revision the caller saw, "*" for any.
type Editor interface {
	// PutRoute makes or replaces a route of the layer. body is the route as configuration writes it, JSON or YAML.
	PutRoute(ctx context.Context, name string, body []byte, match string) (*Change, error)
	// DeleteRoute takes a route out of the layer.
	DeleteRoute(ctx context.Context, name, match string) (*Change, error)
	// PutApp makes or replaces an app of the layer, and DeleteApp takes one out.
	PutApp(ctx context.Context, name string, body []byte, match string) (*Change, error)
	DeleteApp(ctx context.Context, name, match string) (*Change, error)
	// PutConfig replaces the layer as a whole.
	PutConfig(ctx context.Context, body []byte, match string) (*Change, error)
}

// Configs shows and judges configurations without following them.
type Configs interface {
	Config(ctx context.Context) (*ConfigView, error)
	// Check judges body as a whole configuration; an empty body stands for the files the daemon was started with.
	Check(ctx context.Context, body []byte) (*Change, error)
}

// Ports tells of every port held or wanted.
type Ports interface {
	Ports() []Port
	History(port uint16) []PortEvent
}
