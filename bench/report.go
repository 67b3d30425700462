//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// medians of several rounds, each figure by itself.
func medians(all []result) result {
	pick := func(f func(result) float64) float64 {
		v := make([]float64, len(all))
		for i, r := range all {
			v[i] = f(r)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	m := all[len(all)-1]
	m.rate = pick(func(r result) float64 { return r.rate })
	m.p99 = pick(func(r result) float64 { return r.p99 })
	m.perReq = pick(func(r result) float64 { return r.perReq })
	m.perGB = pick(func(r result) float64 { return r.perGB })
	m.rss = pick(func(r result) float64 { return r.rss })
	m.worst = pick(func(r result) float64 { return r.worst })
	return m
}

// cost is the figure that a workload is judged by, and its unit.
func (r result) cost() (float64, string) {
	switch {
	case r.perGB > 0:
		return r.perGB, "CPU ms/GB"
	case r.each != 0:
		return r.each, "B/conn"
	case r.perReq > 0:
		return r.perReq, "CPU us/req"
	}
	return r.worst, "worst ms"
}

// table is one line per workload and program. The last column is the cost as a share of quaymaster's best peer.
func table(order []string, progs []program, results map[string]map[string]result) string {
	var b strings.Builder
	b.WriteString("| workload | program | per second | p99 ms | cost | RSS MB | cost / best peer | |\n|---|---|--:|--:|--:|--:|--:|---|\n")
	for _, w := range order {
		best := 0.0
		for _, p := range progs {
			if r, ok := results[w][p.name]; ok && r.err == "" && p.family != "quaymaster" {
				if c, _ := r.cost(); best == 0 || c < best {
					best = c
				}
			}
		}
		for _, p := range progs {
			r, ok := results[w][p.name]
			if !ok {
				continue
			}
			if r.err != "" {
				fmt.Fprintf(&b, "| %s | %s | | | | | | void: %s |\n", w, p.name, strings.ReplaceAll(r.err, "\n", " "))
				continue
			}
			c, unit := r.cost()
			ratio := ""
			if best > 0 {
				ratio = fmt.Sprintf("%.2f", c/best)
			}
			extra := r.extra
			if r.worst > 0 && unit != "worst ms" {
				extra += fmt.Sprintf(" worst %.1f ms", r.worst)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %.2f %s | %.1f | %s | %s |\n",
				w, p.name, number(r.rate, "%.0f"), number(r.p99, "%.2f"), c, unit, r.rss, ratio, strings.TrimSpace(extra))
		}
	}
	return b.String()
}

func number(v float64, format string) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf(format, v)
}

// machine says on what and with whom the figures were made.
func machine(progs []program) string {
	var b strings.Builder
	model := ""
	if cpu, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(cpu); m != nil {
			model = string(m[1])
		}
	}
	kernel, _ := exec.Command("uname", "-sr").Output()
	fmt.Fprintf(&b, "%d cores, %s, %s, %s\n\n", runtime.NumCPU(), model, strings.TrimSpace(string(kernel)), runtime.Version())
	for _, p := range progs {
		fmt.Fprintf(&b, "- %s: %s\n", p.name, p.about)
	}
	return b.String()
}

// page is the markdown file.
func page(machine, table string) string {
	var b strings.Builder
	b.WriteString("# Side by side\n\nMade by `make bench-deps bench`. Each program runs alone on one core; load and target share the other. Figures are\nmedians over the rounds of one run. Cost is the program's own CPU time (schedstat of all its threads and children) per\nrequest, connection or GB, or its resident memory per connection. A program whose answers fail or are short has no\nfigure. `bench/peers` says how each is configured and why; \"tuned\" is what its own engineers would write for this\nworkload. The machine is small and shared: read the ratios, not the absolute figures.\n\n")
	b.WriteString(machine + "\n" + table + "\n## Workloads\n\n")
	for _, w := range workloads() {
		fmt.Fprintf(&b, "- **%s**: %s\n", w.name, w.about)
	}
	for _, w := range appWorkloads() {
		fmt.Fprintf(&b, "- **%s**: %s\n", w.name, w.about)
	}
	return b.String()
}
