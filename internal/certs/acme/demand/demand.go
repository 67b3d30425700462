// Package demand decides which names may have a certificate that no route spells out.
//
// It promises that the answer is no unless everything says yes: the name is under the allow list, the ask URL (where
// there is one) answers 200 for it and not for a name that nobody can have meant, and the hour's budget, which outlives
// restarts, is not used up. It remembers a no for a while, so that a stranger who tries names costs little.
package demand

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	askTime    = 5 * time.Second
	askAtOnce  = 8
	noLasts    = time.Minute // how long a no is remembered
	maxNos     = 4096
	testLasts  = time.Hour // how long the ask URL is trusted after it has denied a random name
	budgetFile = "acme-on-demand.json"
)

// ErrDenied says that a name may not have a certificate; what wraps it says why.
var ErrDenied = errors.New("no certificate on demand")

// Store keeps the budget.
type Store interface {
	Read(name string) ([]byte, error)
	Write(name string, data []byte) error
}

// Options is what a Gate needs.
type Options struct {
	Log   *slog.Logger
	Store Store
	Now   func() time.Time
}

// A Gate lets names in.
type Gate struct {
	o    Options
	web  *http.Client
	asks chan struct{} // one for each question under way

	mu     sync.Mutex // guards what follows
	rule   *plan.OnDemand
	nos    map[string]no
	tested time.Time // when the ask URL last denied a random name
	begun  []time.Time
	read   bool // begun is what the store has
}

type no struct {
	until time.Time
	why   error
}

// New makes a Gate that is closed.
func New(o Options) *Gate {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Gate{
		o: o, nos: map[string]no{}, asks: make(chan struct{}, askAtOnce),
		web: &http.Client{
			Timeout:       askTime,
			Transport:     &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, DisableCompression: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Follow takes a rule; nil closes the gate.
func (g *Gate) Follow(rule *plan.OnDemand) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rule != nil && rule != nil && g.rule.Ask == rule.Ask && slices.Equal(g.rule.Allow, rule.Allow) {
		g.rule = rule
		return
	}
	g.rule, g.tested = rule, time.Time{}
	clear(g.nos)
}

// Close lets go of idle connections.
func (g *Gate) Close() { g.web.CloseIdleConnections() }

// Allowed returns nil when name is under the allow list: the part of Admit that asks nobody.
func (g *Gate) Allowed(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.rule == nil:
		return fmt.Errorf("%w: acme.on_demand is not set", ErrDenied)
	case !slices.ContainsFunc(g.rule.Allow, func(p string) bool { return Under(p, name) }):
		return fmt.Errorf("%w: %s is not under acme.on_demand.allow", ErrDenied, name)
	}
	return nil
}

// Admit returns nil when name may have a certificate, or keep the one it has. It does not touch the budget.
func (g *Gate) Admit(ctx context.Context, name string) error {
	if err := g.Allowed(name); err != nil {
		return err
	}
	g.mu.Lock()
	rule, now := g.rule, g.o.Now()
	was, known := g.nos[name]
	g.mu.Unlock()
	switch {
	case rule == nil:
		return fmt.Errorf("%w: acme.on_demand is not set", ErrDenied)
	case known && was.until.After(now) && !was.until.After(now.Add(noLasts)): // by no clock that was ahead
		return was.why
	case rule.Ask == "":
		return nil
	}
	err := g.ask(ctx, rule.Ask, name)
	if err != nil && ctx.Err() == nil {
		g.deny(name, err)
	}
	return err
}

// Under reports whether a name is a pattern's: the name itself, "*.d" (one label more) or "**.d" (one or more).
func Under(pattern, name string) bool {
	if d, ok := strings.CutPrefix(pattern, "**."); ok {
		return strings.HasSuffix(name, "."+d) && len(name) > len(d)+1
	}
	if d, ok := strings.CutPrefix(pattern, "*."); ok {
		label, rest, ok := strings.Cut(name, ".")
		return ok && label != "" && rest == d
	}
	return pattern == name
}

func (g *Gate) deny(name string, why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.o.Now()
	if len(g.nos) >= maxNos {
		for n, was := range g.nos {
			if !was.until.After(now) {
				delete(g.nos, n)
			}
		}
	}
	for n := range g.nos { // still full: any of them is as good as another
		if len(g.nos) < maxNos {
			break
		}
		delete(g.nos, n)
	}
	g.nos[name] = no{now.Add(noLasts), why}
}

// ask puts the question, after it has seen that the one who answers can say no.
func (g *Gate) ask(ctx context.Context, to, name string) error {
	select {
	case g.asks <- struct{}{}:
		defer func() { <-g.asks }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	g.mu.Lock()
	trusted := !g.tested.IsZero() && g.o.Now().Sub(g.tested) < testLasts && !g.o.Now().Before(g.tested)
	g.mu.Unlock()
	if !trusted {
		if err := g.test(ctx, to); err != nil {
			return err
		}
	}
	status, err := g.get(ctx, to, name)
	switch {
	case err != nil:
		return fmt.Errorf("%w: acme.on_demand.ask could not be asked about %s: %w", ErrDenied, name, err)
	case status != http.StatusOK:
		return fmt.Errorf("%w: acme.on_demand.ask answers %d for %s", ErrDenied, status, name)
	}
	return nil
}

// test asks for a name that cannot exist (RFC 6761 section 6.4). Who says yes to that says yes to everything.
func (g *Gate) test(ctx context.Context, to string) error {
	name := "quaymaster-" + strings.ToLower(rand.Text()) + ".invalid"
	status, err := g.get(ctx, to, name)
	switch {
	case err != nil:
		return fmt.Errorf("%w: acme.on_demand.ask could not be asked: %w", ErrDenied, err)
	case status == http.StatusOK:
		g.o.Log.Error("acme.on_demand.ask says yes to a name that nobody can have: it would let strangers order without end, so nothing is ordered on demand; let it answer 200 only for names it knows",
			"url", to, "name", name)
		return fmt.Errorf("%w: acme.on_demand.ask says yes to %s, and so to everything", ErrDenied, name)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tested = g.o.Now()
	return nil
}

func (g *Gate) get(ctx context.Context, to, name string) (int, error) {
	u, err := url.Parse(to)
	if err != nil {
		return 0, err
	}
	q := u.Query()
	q.Set("domain", name)
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("User-Agent", "quaymaster")
	resp, err := g.web.Do(req)
	if err != nil {
		var of *url.Error
		if errors.As(err, &of) {
			err = of.Err
		}
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	return resp.StatusCode, nil
}

// Spend takes one certificate from the hour's budget, durably. An error is that there is none left.
func (g *Gate) Spend(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rule == nil {
		return fmt.Errorf("%w: acme.on_demand is not set", ErrDenied)
	}
	now := g.o.Now()
	g.load()
	g.begun = slices.DeleteFunc(g.begun, func(t time.Time) bool {
		return now.Sub(t) >= time.Hour || t.Sub(now) > time.Minute // from a clock that was ahead
	})
	if len(g.begun) >= g.rule.PerHour {
		err := fmt.Errorf("%w: acme.on_demand.per_hour (%d) is used up", ErrDenied, g.rule.PerHour)
		if len(g.begun) > 0 {
			err = fmt.Errorf("%w until %s", err, g.begun[0].Add(time.Hour).Format(time.TimeOnly))
		}
		g.o.Log.Warn("no certificate on demand", "host", name, "err", err)
		return err
	}
	g.begun = append(g.begun, now)
	raw, err := json.Marshal(g.begun)
	if err == nil {
		err = g.o.Store.Write(budgetFile, raw)
	}
	if err != nil {
		g.o.Log.Error("the budget of certificates on demand is kept in memory only", "err", err)
	}
	return nil
}

// load reads the budget once. mu is held.
func (g *Gate) load() {
	if g.read {
		return
	}
	g.read = true
	raw, err := g.o.Store.Read(budgetFile)
	if err == nil {
		err = json.Unmarshal(raw, &g.begun)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.o.Log.Error("the budget of certificates on demand begins anew", "err", err)
	}
	slices.SortFunc(g.begun, time.Time.Compare)
}
