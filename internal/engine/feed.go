package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/quaymaster/quaymaster/internal/engine/labels"
)

// A burst of events is one change: containers are listed after quiet without another event, and after patience at the
// latest. What an engine writes a moment after it has told of it is found by another look after echo, and what it does not
// tell at all by one at everything after poll.
const (
	quiet    = 100 * time.Millisecond
	patience = 500 * time.Millisecond
	echo     = time.Second
	poll     = time.Minute
)

// The bounds of one list.
const (
	openWithin = 10 * time.Second // for the beginning of a stream
	listWithin = 30 * time.Second
	maxListed  = 1100     // containers that are looked at; config takes fewer, and says so
	maxPorts   = 256      // of one container
	maxText    = 64 << 10 // bytes of the labels of one container
	maxID      = 128      // bytes of the id of a container
	maxNets    = 64       // networks of one container
	maxNet     = 255      // bytes of the name of one
	together   = 8        // containers that are looked at at once, so that a thousand are within the time of a list
)

// A link speaks with one engine.
type link struct {
	*client.Client
	conn atomic.Pointer[meter] // dialled last
	kind atomic.Pointer[string]
}

// open returns a client; nothing is asked yet.
func (f *feed) open() (*link, error) {
	l := &link{}
	kind := "docker"
	l.kind.Store(&kind)
	var err error
	l.Client, err = client.New(
		client.WithHost("unix://"+f.place.path),
		client.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", f.place.path)
			if err != nil {
				return nil, err
			}
			m := &meter{Conn: conn, left: maxAnswer}
			l.conn.Store(m)
			return m, nil
		}),
		client.WithHTTPResponseHook(func(r *http.Response) {
			if strings.HasPrefix(r.Header.Get("Server"), "Libpod/") {
				kind := "podman"
				l.kind.Store(&kind)
			}
		}),
	)
	return l, err
}

// follow opens the stream, lists, and lists again as the events say. It returns when the engine is lost.
func (f *feed) follow(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ask, err := f.open()
	if err != nil {
		return err
	}
	defer func() { _ = ask.Close() }() // closes idle connections, and cannot fail
	stream, err := f.open()
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	f.known, f.touched = nil, map[string]bool{}
	if err := f.list1(ctx, ask); err != nil { // what the stream does not begin with would wait for it
		return err
	}
	late := time.AfterFunc(openWithin, stop)
	// What happened while the list was made is told, too.
	since := strconv.FormatInt(time.Now().Add(-2*time.Second).Unix(), 10)
	told := stream.Events(ctx, client.EventsListOptions{
		Since: since, Filters: make(client.Filters).Add("type", string(events.ContainerEventType), string(events.NetworkEventType)),
	})
	if !late.Stop() {
		return fmt.Errorf("no answer within %v", openWithin)
	}
	if err := f.list1(ctx, ask); err != nil {
		return err
	}
	return f.events(ctx, ask, stream, told)
}

// events lists again after each burst.
func (f *feed) events(ctx context.Context, ask, stream *link, told client.EventsResult) error {
	settle, after, tick := time.NewTimer(time.Hour), time.NewTimer(time.Hour), time.NewTicker(poll)
	defer settle.Stop()
	defer after.Stop()
	defer tick.Stop()
	var first time.Time // of the burst under way
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-told.Err:
			if err == nil || errors.Is(err, io.EOF) {
				err = errors.New("it has ended the stream of events")
			}
			return err
		case m := <-told.Messages:
			if c := stream.conn.Load(); c != nil {
				c.refill()
			}
			if !f.news(&m) {
				continue
			}
			now := time.Now()
			if first.IsZero() {
				first = now
			}
			settle.Reset(max(0, min(quiet, patience-now.Sub(first))))
			continue
		case <-tick.C:
			f.known = nil
		case <-after.C:
			for id := range f.touched {
				delete(f.known, id)
			}
			clear(f.touched)
		case <-settle.C:
			first = time.Time{}
			settle.Reset(time.Hour)
			after.Reset(echo)
		}
		if err := f.list1(ctx, ask); err != nil {
			return err
		}
	}
}

// news reports whether an event may change what containers ask for, and forgets what it makes old.
func (f *feed) news(m *events.Message) bool {
	action, _, _ := strings.Cut(string(m.Action), ":")
	switch action {
	case "start", "restart", "die", "died", "stop", "kill", "oom", "destroy", "remove", "cleanup", "pause", "unpause", "rename", "update", "health_status", "init", "sync":
		delete(f.known, m.Actor.ID)
		if len(f.touched) < maxListed && len(m.Actor.ID) <= maxID { // the others are looked at when all are
			f.touched[m.Actor.ID] = true
		}
	case "connect", "disconnect":
		f.known = nil
	default:
		return false
	}
	return true
}

// list1 asks which containers run, and tells what it hears.
func (f *feed) list1(ctx context.Context, c *link) error {
	list, err := f.ask(ctx, c)
	if err != nil {
		return err
	}
	f.told(list)
	return nil
}

// ask lists the running containers with labels for routes. Those that are known are not looked at again.
func (f *feed) ask(ctx context.Context, c *link) ([]labels.Container, error) {
	ctx, stop := context.WithTimeout(ctx, listWithin)
	defer stop()
	found := map[string]*container.Summary{}
	words := []string{labels.Enable}
	if f.traefik {
		words = append(words, labels.EnableTraefik)
	}
	for _, word := range words {
		res, err := c.ContainerList(ctx, client.ContainerListOptions{
			Filters: make(client.Filters).Add("status", "running").Add("label", word),
		})
		if err != nil {
			return nil, err
		}
		for i := range res.Items {
			if id := res.Items[i].ID; len(found) < maxListed && id != "" && len(id) <= maxID {
				found[res.Items[i].ID] = &res.Items[i]
			}
		}
	}
	if f.known == nil {
		near, err := reachable(ctx, c)
		if err != nil {
			return nil, err
		}
		f.known, f.near = map[string]*labels.Container{}, near
	}
	for id := range f.known {
		if found[id] == nil {
			delete(f.known, id)
		}
	}
	last := map[string]*labels.Container{}
	var news []*container.Summary
	for id, item := range found {
		if one := f.known[id]; one != nil {
			last[id] = one
		} else {
			news = append(news, item)
		}
	}
	seen := f.lookAll(ctx, c, news)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("it does not tell of %d containers within %v: %w", len(news), listWithin, err)
	}
	for i, s := range seen {
		id := news[i].ID
		var gone interface{ NotFound() }
		switch {
		case s.err == nil && s.one != nil:
			f.known[id], last[id] = s.one, s.one
		case s.err != nil && !errors.As(s.err, &gone) && f.last[id] != nil: // it runs, and is as it was as far as anybody knows
			last[id] = f.last[id]
		} // else it has ended meanwhile
	}
	f.last = last
	out := make([]labels.Container, 0, len(last))
	for _, one := range last {
		out = append(out, *one)
	}
	oldestFirst(out)
	return out, nil
}

// seen is what came of a look at one container.
type seen struct {
	one *labels.Container
	err error
}

// lookAll looks at containers, some at once.
func (f *feed) lookAll(ctx context.Context, c *link, items []*container.Summary) []seen {
	out, nearby := make([]seen, len(items)), interfaces()
	var next atomic.Int32
	var wg sync.WaitGroup
	for range min(together, len(items)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(items) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				out[i].one, out[i].err = f.look(ctx, c, items[i], nearby)
			}
		})
	}
	wg.Wait()
	return out
}

func oldestFirst(list []labels.Container) {
	slices.SortStableFunc(list, func(a, b labels.Container) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Engine, b.Engine))
	})
}

// reachable reports whether this host is where the engine makes its networks. One without root makes them elsewhere, and
// an address there may be another container's here.
func reachable(ctx context.Context, c *link) (bool, error) {
	res, err := c.Info(ctx, client.InfoOptions{})
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(res.Info.SecurityOptions, func(s string) bool { return strings.Contains(s, "rootless") }), nil
}

// interfaces are the networks that this host is in.
func interfaces() []netip.Prefix {
	var out []netip.Prefix
	list, _ := net.InterfaceAddrs() // without them, containers are reached where they are published
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
			out = append(out, p.Masked())
		}
	}
	return out
}

// look describes one container; nil when it does not run any more.
func (f *feed) look(ctx context.Context, c *link, item *container.Summary, nearby []netip.Prefix) (*labels.Container, error) {
	res, err := c.ContainerInspect(ctx, item.ID, client.ContainerInspectOptions{})
	if err != nil {
		return nil, err
	}
	in := &res.Container
	if in.State == nil || !in.State.Running || in.State.Paused || in.Config == nil {
		return nil, nil
	}
	out := &labels.Container{Name: nameOf(item), Engine: *c.kind.Load(), Created: item.Created * int64(time.Second), Labels: map[string]string{}}
	if at, err := time.Parse(time.RFC3339Nano, in.Created); err == nil { // else to the second
		out.Created = at.UnixNano()
	}
	size := 0
	for k, v := range in.Config.Labels {
		if labels.Ours(k) {
			out.Labels[k] = v
			size += len(k) + len(v)
		}
	}
	if size > maxText {
		out.Labels, out.TooLong = nil, true
	}
	if h := in.State.Health; h != nil && h.Status != container.NoHealthcheck {
		out.Health = string(h.Status)
		if len(out.Health) > maxName {
			out.Health = "unknown"
		}
	}
	out.Shares = in.HostConfig != nil && in.HostConfig.NetworkMode.IsHost() && (f.near || out.Engine == "podman")
	f.ports(in, out)
	if in.NetworkSettings == nil {
		return out, nil
	}
	for name, n := range in.NetworkSettings.Networks {
		if n == nil || len(name) > maxNet || len(out.Networks) == maxNets {
			continue
		}
		ip := n.IPAddress.Unmap()
		if !ip.IsValid() {
			ip = n.GlobalIPv6Address
		}
		near := f.near && slices.ContainsFunc(nearby, func(p netip.Prefix) bool { return p.Contains(ip) })
		out.Networks = append(out.Networks, labels.Network{Name: name, IP: ip, Near: near})
	}
	slices.SortFunc(out.Networks, func(a, b labels.Network) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// ports notes what the container exposes and publishes.
func (f *feed) ports(in *container.InspectResponse, out *labels.Container) {
	add := func(p network.Port, at netip.AddrPort) {
		if p.Proto() == network.TCP && len(out.Ports) < maxPorts {
			out.Ports = append(out.Ports, labels.Port{Number: p.Num(), At: at})
		}
	}
	if in.NetworkSettings != nil {
		for p, list := range in.NetworkSettings.Ports {
			for _, b := range list {
				n, err := strconv.ParseUint(b.HostPort, 10, 16)
				if err != nil || n == 0 {
					continue
				}
				ip := b.HostIP
				if !ip.IsValid() {
					ip = netip.IPv4Unspecified()
				}
				add(p, netip.AddrPortFrom(ip, uint16(n)))
			}
		}
	}
	for p := range in.Config.ExposedPorts {
		if !slices.ContainsFunc(out.Ports, func(have labels.Port) bool { return have.Number == p.Num() }) {
			add(p, netip.AddrPort{})
		}
	}
	slices.SortFunc(out.Ports, func(a, b labels.Port) int { // published ones first, IPv4 before IPv6
		return cmp.Or(cmp.Compare(a.Number, b.Number), -compareBool(a.At.IsValid(), b.At.IsValid()), a.At.Compare(b.At))
	})
	out.Ports = slices.Compact(out.Ports)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
