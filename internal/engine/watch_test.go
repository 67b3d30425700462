package engine

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/engine/labels"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// heard is what a Watch has found.
type heard struct {
	mu    sync.Mutex // guards what follows
	lists [][]labels.Container
	at    []time.Time
}

func (h *heard) names() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.lists) == 0 {
		return "nothing"
	}
	var out []string
	for _, c := range h.lists[len(h.lists)-1] {
		out = append(out, c.Name)
	}
	return strings.Join(out, " ")
}

// last is the newest list.
func (h *heard) last() []labels.Container {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lists[len(h.lists)-1]
}

// watchOf runs a Watch of one engine.
func watchOf(t *testing.T, set plan.EngineSettings, lab plan.LabelSettings) (*Watch, *heard) {
	t.Helper()
	h := &heard{}
	w := NewWatch(WatchOptions{
		Log: slog.New(slog.DiscardHandler), Env: func(string) string { return "" },
		Settings: func() (plan.EngineSettings, plan.LabelSettings) { return set, lab },
		Found: func(_ context.Context, list []labels.Container) time.Duration {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.lists, h.at = append(h.lists, list), append(h.at, time.Now())
			return 0
		},
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w, h
}

// TestWatch_OneStreamIsWhatItSays: who was there, who comes and goes, and a container that starts over and over, which is
// told no oftener than the debounce lets it, whoever else runs without labels.
func TestWatch_OneStreamIsWhatItSays(t *testing.T) {
	p := newPodman(t)
	stop := p.serve()
	p.run("network", "create", "--subnet", "10.89.121.0/24", "qmw") // not the default one, whose name others have, too
	p.run("run", "-d", "--network", "qmw", "--name", "first", "-l", labels.Enable+"=true", "-l", "quaymaster.host=a.test", "-l", "other=x", "-p", "127.0.0.1:28117:80", "hold")
	w, h := watchOf(t, plan.EngineSettings{Kind: "podman", Socket: p.sock}, plan.LabelSettings{Enabled: true})
	until(t, "the first is found", func() bool { return h.names() == "first" })
	first := h.last()[0]
	if first.Engine != "podman" || len(first.Labels) != 2 || len(first.Ports) != 1 || first.Ports[0].At.String() != "127.0.0.1:28117" || first.Health != "" {
		t.Errorf("%+v", first)
	}
	if len(first.Networks) != 1 || !first.Networks[0].Near || !strings.HasPrefix(first.Networks[0].IP.String(), "10.89.121.") {
		t.Errorf("networks %+v", first.Networks)
	}
	p.run("run", "-d", "--name", "second", "--network", "host", "-l", labels.Enable+"=true", "hold")
	until(t, "the second is found", func() bool { return h.names() == "first second" })
	if c := h.last()[1]; !c.Shares {
		t.Errorf("%+v", c)
	}
	p.run("rm", "-f", "-t", "0", "first")
	until(t, "the first is gone", func() bool { return h.names() == "second" })

	// Others: events without end, and nothing to tell.
	h.mu.Lock()
	told := len(h.lists)
	h.mu.Unlock()
	for i := range 3 {
		p.run("run", "-d", "--rm", "--name", fmt.Sprint("other", i), "--network", "none", "-l", "x=y", "hold")
		p.run("rm", "-f", "-t", "0", fmt.Sprint("other", i))
	}
	// A loop of restarts. Each is two changes, and the bursts are longer than the quiet between them.
	began := time.Now()
	p.run("run", "-d", "--name", "loop", "--network", "none", "--restart", "always", "-l", labels.Enable+"=true", "hold", "once")
	until(t, "it has started over and over", func() bool {
		n, err := strconv.Atoi(strings.TrimSpace(p.run("inspect", "-f", "{{.RestartCount}}", "loop")))
		return err != nil || n > 5
	})
	p.run("rm", "-f", "-t", "0", "loop")
	p.run("run", "-d", "--name", "last", "--network", "none", "-l", labels.Enable+"=true", "hold")
	until(t, "the last is found", func() bool { return h.names() == "second last" })
	h.mu.Lock()
	for i := told + 1; i < len(h.at); i++ {
		if gap := h.at[i].Sub(h.at[i-1]); gap < quiet/2 {
			t.Errorf("told again after %v", gap)
		}
	}
	t.Logf("told %d times in %v", len(h.lists)-told, time.Since(began).Round(time.Millisecond))
	h.mu.Unlock()

	// The engine goes and comes back; what was known stays meanwhile.
	stop()
	until(t, "its loss is seen", func() bool { s := w.Status(); return len(s) == 1 && s[0].Err != nil && s[0].Known == 2 })
	p.run("rm", "-f", "-t", "0", "last")
	if h.names() != "second last" {
		t.Errorf("while the engine is down: %s", h.names())
	}
	p.serve()
	until(t, "what it missed is found", func() bool { return h.names() == "second" && w.Status()[0].Err == nil })
}

// TestWatch_FollowsItsSettings: another way to ask takes nothing away meanwhile; no labels, no engine.
func TestWatch_FollowsItsSettings(t *testing.T) {
	p := newPodman(t)
	p.serve()
	p.run("run", "-d", "--network", "none", "--name", "ours", "-l", labels.Enable+"=true", "hold")
	p.run("run", "-d", "--network", "none", "--name", "theirs", "-l", labels.EnableTraefik+"=true", "hold")
	set, lab := plan.EngineSettings{Kind: "podman", Socket: p.sock}, plan.LabelSettings{Enabled: true}
	h := &heard{}
	var mu sync.Mutex
	w := NewWatch(WatchOptions{
		Log: slog.New(slog.DiscardHandler),
		Settings: func() (plan.EngineSettings, plan.LabelSettings) {
			mu.Lock()
			defer mu.Unlock()
			return set, lab
		},
		Found: func(_ context.Context, list []labels.Container) time.Duration {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.lists = append(h.lists, list)
			return 0
		},
	})
	list, err := w.First(t.Context(), set, lab, map[string][]labels.Container{p.sock: {{Name: "stale"}}, "/elsewhere": {{Name: "gone"}}})
	if err != nil || len(list) != 1 || list[0].Name != "ours" {
		t.Fatalf("%+v %v", list, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	change := func(traefik, on bool) {
		mu.Lock()
		lab.Traefik, lab.Enabled = traefik, on
		mu.Unlock()
		w.Poke()
	}
	change(true, true)
	until(t, "both are found", func() bool { return h.names() == "ours theirs" })
	change(false, true)
	until(t, "one is found", func() bool { return h.names() == "ours" })
	change(false, false)
	until(t, "none is found", func() bool { return h.names() == "" })
	h.mu.Lock()
	for i, l := range h.lists[:len(h.lists)-1] {
		if len(l) == 0 {
			t.Errorf("list %d of %d is empty", i, len(h.lists))
		}
	}
	h.mu.Unlock()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
