//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	web "net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	directPort = 18600 // those started by hand listen from here on
	handPause  = time.Millisecond
)

// appsWoken compares a first request with a start by hand.
func appsWoken(ctx context.Context, b *bench) ([]figure, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	kinds := []appKind{
		{"go", []string{self, "app"}},
		{"echo", []string{b.o.binary, "echo", "127.0.0.1:${PORT}"}},
		{"python", []string{"/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "${PORT}"}},
		{"slow", []string{self, "app", "1s"}},
	}
	about := map[string]string{"go": "a small Go server", "echo": "`quaymaster echo`", "python": "`python3 -m http.server`", "slow": "a server that sleeps 1 s first"}
	b.cores = proxyCore
	defer func() { b.cores = "" }()
	if err := pinSelf(loadCore); err != nil {
		return nil, err
	}
	defer func() { _ = pinSelf("") }()
	d, err := b.startApps(ctx, "start: on_request, idle_stop: 200ms, dir: "+b.dir, kinds)
	if err != nil {
		return nil, err
	}
	defer d.end()
	var out []figure
	for _, k := range kinds {
		var own, first []float64
		for n := range b.o.wakes + 1 { // the first finds cold caches
			alone, err := byHand(ctx, b.dir, proxyCore, k, directPort+n%100, 0)
			if err != nil {
				return nil, err
			}
			woken, err := d.wake(ctx, k.name)
			if err != nil {
				return nil, err
			}
			if n > 0 {
				own, first = append(own, ms(alone)), append(first, ms(woken))
			}
		}
		hand, all := spread(about[k.name]+": by hand", "ms", own, 0), spread(about[k.name]+": first request", "ms", first, 0)
		more := figure{what: about[k.name] + ": beyond that", n: all.n, median: all.median - hand.median, p95: all.p95 - hand.p95, unit: "ms", limit: 20}
		out = append(out, hand, all, more)
	}
	return out, nil
}

// wake waits until the app sleeps, and returns the time from its first request to the first byte.
func (d *appsDaemon) wake(ctx context.Context, name string) (time.Duration, error) {
	if err := d.until(ctx, "sleeping", 30*time.Second); err != nil {
		return 0, err
	}
	time.Sleep(50 * time.Millisecond) // what the end of the last one left to do
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(proxyPort))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	begin := time.Now()
	err = first(c, name+".bench.test")
	return time.Since(begin), err
}

// appsAtRest is what many apps cost that do nothing.
func appsAtRest(ctx context.Context, b *bench) ([]figure, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var kinds []appKind
	for n := range 200 {
		kinds = append(kinds, appKind{fmt.Sprintf("a%d", n), []string{self, "app"}})
	}
	begin := time.Now()
	d, err := b.startApps(ctx, "health: {http: /, interval: 10s}", kinds)
	if err != nil {
		return nil, err
	}
	defer d.end()
	if err := d.until(ctx, "ready", 2*time.Minute); err != nil {
		return nil, err
	}
	took := time.Since(begin)
	if !b.o.quick {
		settle(ctx)
	}
	rest := time.Duration(b.o.rest) * time.Second
	before, from := d.cpu(), time.Now()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(rest):
	}
	share := 100 * float64(d.cpu()-before) / float64(time.Since(from))
	open, err := os.ReadDir("/proc/" + strconv.Itoa(d.cmd.Process.Pid) + "/fd")
	if err != nil {
		return nil, err
	}
	if err := d.until(ctx, "ready", 0); err != nil {
		return nil, err
	}
	one := func(what, unit string, v, limit float64) figure {
		return figure{what: what, n: 1, median: v, p95: v, unit: unit, limit: limit}
	}
	return []figure{
		one(fmt.Sprintf("CPU of the daemon over %s", rest), "% of a core", share, 2),
		one("resident memory of the daemon", "MB", float64(d.rss())/1e6, 0),
		one("descriptors of the daemon", "", float64(len(open)), 0),
		one("all ready after its start", "ms", ms(took), 0),
	}, nil
}

// appsAtOnce wakes many at one moment. Each answers with its port.
func appsAtOnce(ctx context.Context, b *bench) ([]figure, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var kinds []appKind
	for n := range 50 {
		kinds = append(kinds, appKind{fmt.Sprintf("a%d", n), []string{self, "app"}})
	}
	d, err := b.startApps(ctx, "start: on_request, idle_stop: 1s", kinds)
	if err != nil {
		return nil, err
	}
	defer d.end()
	var all, hand, twice []float64
	for range b.o.rounds {
		begin := time.Now()
		err := together(len(kinds), func(n int) error {
			_, err := byHand(ctx, filepath.Dir(self), "", kinds[n], directPort+n, handPause)
			return err
		})
		if err != nil {
			return nil, err
		}
		hand = append(hand, ms(time.Since(begin)))
		if err := d.until(ctx, "sleeping", time.Minute); err != nil {
			return nil, err
		}
		ports := make([]string, len(kinds))
		begin = time.Now()
		if err := together(len(kinds), func(n int) (err error) { ports[n], err = portOf(ctx, kinds[n].name); return err }); err != nil {
			return nil, err
		}
		all = append(all, ms(time.Since(begin)))
		seen := make(map[string]bool)
		for _, p := range ports {
			seen[p] = true
		}
		twice = append(twice, float64(len(ports)-len(seen)))
	}
	same := spread("ports given to two apps", "", twice, 0)
	same.exact = true
	return []figure{spread("50 started by hand: all answered", "ms", hand, 0), spread("50 woken: all answered", "ms", all, 0), same}, nil
}

// portOf asks an app and returns the port that it says it has.
func portOf(ctx context.Context, name string) (string, error) {
	r, err := web.NewRequestWithContext(ctx, "GET", urlOf(proxyPort, "/"), nil)
	if err != nil {
		return "", err
	}
	r.Host, r.Close = name+".bench.test", true
	res, err := web.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1000))
	if err == nil && res.StatusCode != 200 {
		err = fmt.Errorf("%s: status %d: %s", name, res.StatusCode, text)
	}
	return string(text), err
}

// together runs f for each number at the same time and returns the first error.
func together(n int, f func(int) error) error {
	errs := make(chan error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f(i); err != nil {
				errs <- err
			}
		}()
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// appCores is where the daemon of apps and its apps run.
func (b *bench) appCores() string {
	if b.cores != "" {
		return b.cores
	}
	return fmt.Sprintf("0-%d", runtime.NumCPU()-1)
}

// cpus is a set of one core, or of all for "".
func cpus(core string) (set unix.CPUSet) {
	if n, err := strconv.Atoi(core); err == nil {
		set.Set(n)
		return set
	}
	for n := range runtime.NumCPU() {
		set.Set(n)
	}
	return set
}

// pinSelf puts every thread of this process on one core, or on all.
func pinSelf(core string) error {
	set := cpus(core)
	list, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, e := range list {
		id, _ := strconv.Atoi(e.Name())
		if err := unix.SchedSetaffinity(id, &set); err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}

// onCore calls f, which starts a process, on a core that the process then stays on; "" is any.
func onCore(core string, f func() error) error {
	if core == "" {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	set := cpus(core)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	return f()
}
