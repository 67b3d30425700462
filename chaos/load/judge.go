//go:build linux

package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Judge joins what clients report with what targets wrote down, and holds both against the World.
type Judge struct {
	World    *World
	Journals []string        // paths of the targets' journals; they may not exist yet
	Found    func(Violation) // called for each violation, one at a time; may be nil

	mu      sync.Mutex // guards what follows
	reports []Report   // not judged yet
	tally   Tally

	// Owned by Run and Finish.
	files   map[string]*journal
	entries map[string][]string // by nonce: the targets that wrote it down and no report has asked for
	judged  map[string]done     // lately, for entries that come late
}

// done is what is remembered of a judged report.
type done struct {
	r       Report
	reached []string
}

// A Violation is something that may never be.
type Violation struct {
	What   string
	Detail string
}

func (v Violation) String() string { return v.What + ": " + v.Detail }

// A Tally counts what was judged.
type Tally struct {
	Exchanges  int
	Strict     int // those that could end in one way only
	ByKind     map[string]*[outcomes]int
	Violations []Violation // the first hundred
	Bad        int         // all of them
}

// String is a table of kinds and how their exchanges ended.
func (t Tally) String() string {
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(t.ByKind)) {
		fmt.Fprintf(&b, "  %-13s", kind)
		for o, n := range t.ByKind[kind] {
			if n > 0 {
				fmt.Fprintf(&b, " %s %d;", Outcome(o), n)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Take is given every report. It may be called from many goroutines.
func (j *Judge) Take(r Report) {
	j.mu.Lock()
	j.reports = append(j.reports, r)
	j.mu.Unlock()
}

// Violate notes a violation that somebody else found.
func (j *Judge) Violate(what, format string, args ...any) {
	v := Violation{what, fmt.Sprintf(format, args...)}
	j.mu.Lock()
	j.tally.Bad++
	if len(j.tally.Violations) < 100 {
		j.tally.Violations = append(j.tally.Violations, v)
	}
	found := j.Found
	j.mu.Unlock()
	if found != nil {
		found(v)
	}
}

// Run judges what can be judged until ctx ends.
func (j *Judge) Run(ctx context.Context) {
	for wait(ctx, 200*time.Millisecond) {
		j.round(j.World.settled())
	}
}

// Finish judges the rest, after Run has returned and every client has ended, and tells what it all came to.
func (j *Judge) Finish() Tally {
	j.round(forever)
	for nonce, who := range j.entries {
		j.Violate("a request that nobody made", "%s at %v", nonce, who)
	}
	for _, o := range j.files {
		_ = o.f.Close()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.tally
}

// Counts is the tally so far, without violations and kinds.
func (j *Judge) Counts() (exchanges, violations int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.tally.Exchanges, j.tally.Bad
}

// round judges the reports that ended before a moment.
func (j *Judge) round(until int64) {
	if j.files == nil {
		j.files, j.entries, j.judged = map[string]*journal{}, map[string][]string{}, map[string]done{}
	}
	j.mu.Lock()
	var ripe []Report
	rest := j.reports[:0]
	for _, r := range j.reports {
		if r.Ended < until {
			ripe = append(ripe, r)
		} else {
			rest = append(rest, r)
		}
	}
	j.reports = rest
	j.mu.Unlock()
	if err := j.read(); err != nil { // after the reports: what a target answered it wrote down before
		j.Violate("journal", "%v", err)
	}
	for i := range ripe {
		r := &ripe[i]
		reached := j.entries[r.Nonce]
		delete(j.entries, r.Nonce)
		j.judge(r, reached)
	}
	j.late(until)
}

// judge holds one report against the rules.
func (j *Judge) judge(r *Report, reached []string) {
	f := gather(j.World, r, reached)
	may, why := f.allowed()
	j.mu.Lock()
	j.tally.Exchanges++
	if len(may) == 1 {
		j.tally.Strict++
	}
	if j.tally.ByKind == nil {
		j.tally.ByKind = map[string]*[outcomes]int{}
	}
	if j.tally.ByKind[r.Kind] == nil {
		j.tally.ByKind[r.Kind] = &[outcomes]int{}
	}
	j.tally.ByKind[r.Kind][r.Outcome]++
	j.mu.Unlock()
	if what := f.violation(); what != "" {
		j.Violate(what, "%s; reached %v; allowed %v because %q; the configurations said %+v; began %s", r, reached, may, why,
			f.values, time.Unix(0, r.Began).Format("15:04:05.000000"))
	}
	j.judged[r.Nonce] = done{*r, reached}
}

// late looks at entries whose report was judged before they came, and forgets reports that are a minute old.
func (j *Judge) late(until int64) {
	for nonce, who := range j.entries {
		d, ok := j.judged[nonce]
		if !ok {
			continue
		}
		delete(j.entries, nonce)
		d.reached = append(d.reached, who...)
		j.judged[nonce] = d
		if what := gather(j.World, &d.r, d.reached).violation(); what != "" {
			j.Violate(what, "%s; reached %v, written down late", &d.r, d.reached)
		}
	}
	for nonce, d := range j.judged {
		if until != forever && d.r.Ended < until-int64(time.Minute) {
			delete(j.judged, nonce)
		}
	}
}

// journal is a file that grows.
type journal struct {
	f    *os.File
	r    *bufio.Reader
	half string // a line whose end was not written yet
}

// read takes in what the targets have written since.
func (j *Judge) read() error {
	for _, path := range j.Journals {
		o := j.files[path]
		if o == nil {
			f, err := os.Open(path)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			o = &journal{f: f, r: bufio.NewReader(f)}
			j.files[path] = o
		}
		for {
			line, err := o.r.ReadString('\n')
			o.half += line
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			w := strings.Fields(o.half)
			o.half = ""
			if len(w) != 3 {
				j.Violate("a request without a nonce", "%q in %s", w, path)
				continue
			}
			j.entries[w[0]] = append(j.entries[w[0]], w[1])
		}
	}
	return nil
}
