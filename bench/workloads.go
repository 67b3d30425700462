//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// workload is one row of the table.
type workload struct {
	name   string
	about  string
	who    []string // families of programs that can do it
	routes int      // hosts configured, besides the one that is asked; 0 = none
	single bool     // one round is enough: nothing in it is timed
	run    func(ctx context.Context, b *bench, p *process) result
}

var (
	http = []string{"quaymaster", "haproxy", "nginx", "caddy"}
	sni  = []string{"quaymaster", "haproxy", "nginx", "sniproxy"}
)

// browserHeaders are ten headers of the size that a browser sends.
var browserHeaders = []string{
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8",
	"Accept-Encoding: gzip, deflate, br, zstd",
	"Accept-Language: en-GB,en;q=0.9,de;q=0.8",
	"Cache-Control: max-age=0",
	"Cookie: session=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08; theme=dark; seen=1,2,3,4,5",
	"Referer: https://www.example.com/some/page/that/is/long/enough?with=a&query=string",
	"Sec-Fetch-Dest: document",
	"Sec-Fetch-Mode: navigate",
	"Upgrade-Insecure-Requests: 1",
}

func workloads() []workload {
	return []workload{
		{name: "keep-alive small", about: "64 keep-alive connections, 63-byte body", who: http, run: wrk("/", 64)},
		{name: "ten headers", about: "the same with ten browser-size request headers", who: http, run: wrk("/", 64, browserHeaders...)},
		{name: "new connections", about: "16 clients, a connection per request", who: http, run: wrk("/", 16, "Connection: close")},
		{name: "100 KiB body", about: "16 keep-alive connections", who: http, run: wrk("/100k", 16)},
		{name: "64 MiB body", about: "4 connections, 64 bodies; CPU per GB", who: http, run: load("large", proxyPort, 64, true)},
		{name: "SNI new connections", about: "16 clients, ClientHello, 100 bytes back", who: sni, run: timed("sni-new", sniPort)},
		{name: "SNI small requests", about: "64 tunnels, 64 bytes forth and back", who: sni, run: timed("sni-small", sniPort)},
		{name: "SNI bulk", about: "2 at a time, 24 x 256 MiB; CPU per GB", who: sni, run: load("sni-bulk", sniPort, 24, true)},
		{name: "TLS keep-alive small", about: "64 keep-alive connections, 63-byte body", who: http, run: wrkTLS("/", 64)},
		{name: "TLS full handshakes", about: "16 clients, TLS 1.3, ECDSA P-256, X25519, a request each", who: http, run: timed("tls-new", tlsPort)},
		{name: "TLS resumed handshakes", about: "the same with the session of the first", who: http, run: timed("tls-resumed", tlsPort)},
		{name: "TLS 64 MiB body", about: "4 connections, 32 bodies; CPU per GB", who: http, run: load("tls-large", tlsPort, 32, true)},
		{name: "TLS idle connections", about: "3,000 after one request each; bytes each", who: http, single: true, run: idleMemory("tls-idle", tlsPort, 3000)},
		{name: "idle connections", about: "3,000 after one request each; bytes each", who: http, single: true, run: idleMemory("idle", proxyPort, 3000)},
		{name: "10,000 hosts", about: "64 keep-alive connections, another host each time", who: http, routes: 10000, run: wrkHosts(64)},
		{name: "10,000 hosts, reload", about: "slowest answer while the configuration is reloaded", who: []string{"quaymaster", "haproxy", "nginx"}, routes: 10000, run: reloadStall},
		{name: "8,000 at once", about: "connections opened at the same moment, one request each", who: http, single: true, run: burstMemory(8000)},
	}
}

// result is what one program did in one workload. Members that do not apply are 0.
type result struct {
	rate   float64 // requests or connections per second
	p99    float64 // ms
	perReq float64 // CPU microseconds per request or connection
	perGB  float64 // CPU milliseconds per GB
	rss    float64 // MB, when the load had ended
	each   float64 // bytes per connection
	worst  float64 // ms
	extra  string
	err    string
}

func (r result) String() string {
	if r.err != "" {
		return "void: " + r.err
	}
	return fmt.Sprintf("%.0f/s p99 %.2f ms, %.2f us/req, %.0f ms/GB, %.1f MB, %.0f B each, worst %.2f ms %s",
		r.rate, r.p99, r.perReq, r.perGB, r.rss, r.each, r.worst, r.extra)
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in ([\d.]+)(ms|s|m)`)
	wrkP99      = regexp.MustCompile(`99%\s+([\d.]+)(us|ms|s)`)
	wrkErrors   = regexp.MustCompile(`(?m)^\s*(Socket errors:.*|Non-2xx.*)$`)
	wrkRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
)

// wrk loads one path with so many connections; the first second is not counted.
func wrk(path string, conns int, headers ...string) func(context.Context, *bench, *process) result {
	return func(ctx context.Context, b *bench, p *process) result {
		args := []string{"-H", "Host: bench.test"}
		for _, h := range headers {
			args = append(args, "-H", h)
		}
		closes := len(headers) == 1 && headers[0] == "Connection: close"
		return b.wrk(ctx, p, urlOf(proxyPort, path), conns, closes, args...)
	}
}

// wrkTLS is wrk over TLS.
func wrkTLS(path string, conns int) func(context.Context, *bench, *process) result {
	return func(ctx context.Context, b *bench, p *process) result {
		return b.wrk(ctx, p, urlOf(tlsPort, path), conns, false, "-H", "Host: bench.test")
	}
}

// urlOf is where a program is asked.
func urlOf(port int, path string) string {
	scheme := "http"
	if port == tlsPort {
		scheme = "https"
	}
	return fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, port, path)
}

// wrkHosts asks for another of the 10,000 hosts each time.
func wrkHosts(conns int) func(context.Context, *bench, *process) result {
	return func(ctx context.Context, b *bench, p *process) result {
		script := filepath.Join(b.dir, "hosts.lua")
		text := `local reqs, i = {}, 0
init = function() for n = 0, 9999 do reqs[n] = wrk.format("GET", "/", {["Host"] = "h" .. n .. ".bench.test"}) end end
request = function() i = (i * 1103515245 + 12345) % 2147483648; return reqs[i % 10000] end
`
		if err := os.WriteFile(script, []byte(text), 0o644); err != nil {
			return result{err: err.Error()}
		}
		return b.wrk(ctx, p, urlOf(proxyPort, "/"), conns, false, "-s", script)
	}
}

// wrk runs the load once to warm up and once for the figures. Where every connection ends after a request wrk counts
// the ends as read errors, so those are not held against the proxy there.
func (b *bench) wrk(ctx context.Context, p *process, url string, conns int, closes bool, args ...string) result {
	run := func(seconds int) (string, error) {
		full := append([]string{"-c", loadCore, "wrk", "-t1", "-c", strconv.Itoa(conns), "-d", strconv.Itoa(seconds) + "s", "--latency"}, args...)
		full = append(full, url)
		out, err := exec.CommandContext(ctx, "taskset", full...).CombinedOutput()
		return string(out), err
	}
	if out, err := run(1); err != nil {
		return result{err: "wrk: " + err.Error() + ": " + out}
	}
	before := p.cpu()
	out, err := run(b.o.seconds)
	used := p.cpu() - before
	if err != nil {
		return result{err: "wrk: " + err.Error() + ": " + out}
	}
	if bad := wrkErrors.FindString(out); bad != "" && !closes {
		return result{err: strings.TrimSpace(bad)}
	}
	m := wrkRequests.FindStringSubmatch(out)
	if m == nil {
		return result{err: "wrk printed no count"}
	}
	n, _ := strconv.ParseFloat(m[1], 64)
	r := result{perReq: float64(used.Nanoseconds()) / 1000 / n, rss: float64(p.rss()) / 1e6}
	if m := wrkRate.FindStringSubmatch(out); m != nil {
		r.rate, _ = strconv.ParseFloat(m[1], 64)
	}
	if m := wrkP99.FindStringSubmatch(out); m != nil {
		v, _ := strconv.ParseFloat(m[1], 64)
		r.p99 = v * map[string]float64{"us": 0.001, "ms": 1, "s": 1000}[m[2]]
	}
	return r
}

// timed runs one of our own loads for the length of a timed workload.
func timed(kind string, port int) func(context.Context, *bench, *process) result {
	return func(ctx context.Context, b *bench, p *process) result {
		return load(kind, port, b.o.seconds, false)(ctx, b, p)
	}
}

// load runs one of our own loads. Any failure voids the figures.
func load(kind string, port, n int, bulk bool) func(context.Context, *bench, *process) result {
	return func(ctx context.Context, b *bench, p *process) result {
		warm := 1
		if bulk {
			warm = 2
		}
		if _, err := b.load(ctx, kind, port, warm); err != nil {
			return result{err: err.Error()}
		}
		before := p.cpu()
		l, err := b.load(ctx, kind, port, n)
		used := p.cpu() - before
		switch {
		case err != nil:
			return result{err: err.Error()}
		case l.Failed > 0 || l.Count == 0:
			return result{err: fmt.Sprintf("%d of %d failed", l.Failed, l.Failed+l.Count)}
		}
		r := result{rate: float64(l.Count) / l.Took, p99: l.P99, rss: float64(p.rss()) / 1e6}
		if bulk {
			r.rate, r.perGB = 0, float64(used.Milliseconds())/(float64(l.Bytes)/1e9)
			r.extra = fmt.Sprintf("%.1f GB/s", float64(l.Bytes)/1e9/l.Took)
		} else {
			r.perReq = float64(used.Nanoseconds()) / 1000 / float64(l.Count)
		}
		return r
	}
}

func (b *bench) load(ctx context.Context, kind string, port, n int) (loaded, error) {
	self, err := os.Executable()
	if err != nil {
		return loaded{}, err
	}
	var l loaded
	out, err := exec.CommandContext(ctx, "taskset", "-c", loadCore, self, "load", kind, strconv.Itoa(port), strconv.Itoa(n)).Output()
	if err != nil {
		return loaded{}, fmt.Errorf("load %s: %w", kind, err)
	}
	err = json.Unmarshal(bytes.TrimSpace(out), &l)
	return l, err
}

// held starts a load that keeps its connections until its input is closed, and waits for its first report.
func (b *bench) held(ctx context.Context, kind string, port, n int) (l loaded, over func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return l, nil, err
	}
	cmd := exec.CommandContext(ctx, "taskset", "-c", loadCore, self, "load", kind, strconv.Itoa(port), strconv.Itoa(n))
	in, err := cmd.StdinPipe()
	if err != nil {
		return l, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return l, nil, err
	}
	if err := cmd.Start(); err != nil {
		return l, nil, err
	}
	over = func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}
	if err := json.NewDecoder(out).Decode(&l); err != nil {
		over()
		return l, nil, err
	}
	return l, over, nil
}

// idleMemory is what a connection costs that has asked once and now waits. The proxy gets a while to tidy up.
func idleMemory(kind string, port, n int) func(context.Context, *bench, *process) result {
	return func(ctx context.Context, b *bench, p *process) result {
		if r := b.wrk(ctx, p, urlOf(port, "/"), 64, false, "-H", "Host: bench.test"); r.err != "" {
			return r
		}
		settle(ctx)
		before := p.rss()
		l, over, err := b.held(ctx, kind, port, n)
		if err != nil {
			return result{err: err.Error()}
		}
		defer over()
		if l.Failed > 0 {
			return result{err: fmt.Sprintf("%d of %d failed", l.Failed, n)}
		}
		settle(ctx)
		after := p.rss()
		return result{each: float64(after-before) / float64(n), rss: float64(after) / 1e6}
	}
}

// settle is how long a proxy is left alone before its memory is read: quaymaster collects its garbage by itself within
// ten seconds of a change in its number of connections, and then ten more pass.
func settle(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(22 * time.Second):
	}
}

// burstMemory opens n connections at one moment.
func burstMemory(n int) func(context.Context, *bench, *process) result {
	return func(ctx context.Context, b *bench, p *process) result {
		before := p.cpu()
		l, over, err := b.held(ctx, "burst", proxyPort, n)
		if err != nil {
			return result{err: err.Error()}
		}
		defer over()
		if l.Failed > 0 {
			return result{err: fmt.Sprintf("%d of %d failed", l.Failed, n)}
		}
		return result{
			rate: float64(l.Count) / l.Took, p99: l.P99, worst: l.Worst, rss: float64(p.rss()) / 1e6,
			perReq: float64((p.cpu() - before).Microseconds()) / float64(l.Count),
		}
	}
}

// reloadStall asks every millisecond while the configuration is reloaded five times.
func reloadStall(ctx context.Context, b *bench, p *process) result {
	ctx, stop := context.WithTimeout(ctx, 60*time.Second)
	defer stop()
	polled := make(chan loaded, 1)
	var failed error
	go func() {
		var l loaded
		l, failed = b.load(ctx, "poll", proxyPort, 6)
		polled <- l
	}()
	var slowest time.Duration
	for range 5 {
		begin := time.Now()
		if err := b.reload(p); err != nil {
			<-polled
			return result{err: "reload: " + err.Error()}
		}
		slowest = max(slowest, time.Since(begin))
		time.Sleep(500 * time.Millisecond)
	}
	l := <-polled
	if failed != nil {
		return result{err: failed.Error()}
	}
	r := result{worst: l.Worst, p99: l.P99, rss: float64(p.rss()) / 1e6}
	if l.Failed > 0 {
		r.extra = fmt.Sprintf("%d connections cut;", l.Failed)
	}
	if b.reloadWaits() {
		r.extra += fmt.Sprintf(" reload took %d ms", slowest.Milliseconds())
	}
	return r
}
