//go:build linux

// Command bench measures quaymaster side by side with the proxies that are installed: the same load, the same target,
// each proxy alone on one core while load and target share another.
//
// It promises ratios out of one run, never absolute claims: what a machine did in this minute is compared with what it
// did in the same minutes for the others. A proxy whose answers are short or fail gets no figure. It sends traffic to
// loopback alone and ends by itself.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are the flags of a run.
type options struct {
	only    string // comma-separated parts of workload names; "" = all
	peers   string // comma-separated parts of program names; "" = all installed
	seconds int    // of each timed workload
	rounds  int    // each figure is the median of so many
	out     string // markdown file; "" = print only
	binary  string
	keep    bool // leave configurations and logs
	quick   bool // one short round, to see that all of it works
	wakes   int  // of each sleeping app
	rest    int  // seconds over which apps at rest are looked at
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "target":
			serveTargets(os.Args[2:])
			return
		case "load":
			runLoad(os.Args[2:])
			return
		case "app":
			runApp(os.Args[2:])
			return
		}
	}
	var o options
	flag.StringVar(&o.only, "only", "", "workloads whose names contain one of these, comma-separated")
	flag.StringVar(&o.peers, "peers", "", "programs whose names contain one of these, comma-separated (quaymaster always runs)")
	flag.IntVar(&o.seconds, "seconds", 4, "length of a timed workload")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; figures are medians over them")
	flag.StringVar(&o.out, "out", "", "write the table to this markdown file too")
	flag.StringVar(&o.binary, "binary", "bin/quaymaster", "the program to measure")
	flag.BoolVar(&o.keep, "keep", false, "leave configurations and logs of the programs")
	flag.IntVar(&o.wakes, "wakes", 40, "first requests to each sleeping app")
	flag.IntVar(&o.rest, "rest", 60, "seconds over which apps at rest are looked at")
	flag.BoolVar(&o.quick, "quick", false, "one short round: to see that it works, not for figures")
	flag.Parse()
	if o.quick {
		o.seconds, o.rounds, o.wakes, o.rest = 1, 1, 5, 10
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures every workload with every program that can do it, and prints the table.
func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "quaymaster-bench-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "files are kept in", dir)
	} else {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	b := &bench{o: o, dir: dir}
	if err := b.startTarget(ctx); err != nil {
		return err
	}
	defer b.target.stop()
	progs := installed(o)
	fmt.Printf("%s\n\n", machine(progs))
	results := map[string]map[string]result{}
	var order []string
	for _, w := range workloads() {
		if !wanted(o.only, w.name) {
			continue
		}
		order = append(order, w.name)
		results[w.name] = map[string]result{}
		for _, p := range progs {
			if !slices.Contains(w.who, p.family) {
				continue
			}
			r := b.measure(ctx, w, p)
			results[w.name][p.name] = r
			fmt.Fprintf(os.Stderr, "%-28s %-14s %s\n", w.name, p.name, r)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	apps, err := b.measureApps(ctx)
	if err != nil {
		return err
	}
	text := ""
	if len(order) > 0 {
		text = table(order, progs, results)
	}
	if len(apps) > 0 {
		text += "\n## Apps\n\n" + appTable(apps)
	}
	fmt.Println(text)
	if o.out != "" {
		return os.WriteFile(o.out, []byte(page(machine(progs), text)), 0o644)
	}
	return nil
}

func wanted(only, name string) bool {
	if only == "" {
		return true
	}
	for _, part := range strings.Split(only, ",") {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// bench is one run.
type bench struct {
	o       options
	dir     string
	target  *process
	current program // the one under measurement
	cores   string  // where apps and their daemon run; "" is all
}

// measure runs a workload a few times against a fresh instance of the program and returns the medians.
func (b *bench) measure(ctx context.Context, w workload, p program) result {
	var all []result
	for range b.o.rounds {
		r := b.once(ctx, w, p)
		if r.err != "" {
			return r
		}
		all = append(all, r)
		if w.single {
			break
		}
	}
	return medians(all)
}

func (b *bench) once(ctx context.Context, w workload, p program) result {
	for _, port := range []int{proxyPort, sniPort, tlsPort} {
		if c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			_ = c.Close()
			return result{err: fmt.Sprintf("port %d is held by somebody else; end that first", port)}
		}
	}
	proc, err := b.startProxy(ctx, w, p)
	if err != nil {
		return result{err: err.Error()}
	}
	defer proc.stop()
	warm, stop := context.WithTimeout(ctx, 10*time.Second)
	err = awaitPort(warm, p.listens())
	stop()
	if err != nil {
		return result{err: "does not listen: " + err.Error()}
	}
	return w.run(ctx, b, proc)
}
