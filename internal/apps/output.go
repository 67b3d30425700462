package apps

import (
	"context"
	"math"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/quaymaster/quaymaster/internal/logs"
	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	lastLines = 5   // of stderr that a reason has
	lastBytes = 200 // of each
	defLines  = 1000
	ringBytes = 4 << 20 // of the lines in memory
	ringLine  = 1 << 10 // of each, where there are more than fit then
	lineOwn   = 100     // bytes that a line takes besides its text
)

// A Line is one line of an app's output. Stream is "stdout", "stderr" or, of ours about the app, "quaymaster".
type Line struct {
	Number uint64    `json:"number"`
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"`
	Text   string    `json:"text"`
}

const ours = "quaymaster" // the stream of what we say about an app

// output is what is kept of an app's output: a ring in memory, and files that are rotated.
type output struct {
	mu    sync.Mutex // guards what follows
	ring  *logs.Ring[Line]
	size  int
	base  uint64 // numbers go on when the ring is another one
	files *logs.Files

	recalled bool
	more     chan struct{} // closed when the ring is another one
}

func newOutput(dir, name string, log func(error)) *output {
	o := &output{more: make(chan struct{})}
	o.resize(defLines)
	if dir != "" {
		o.files = logs.NewFiles(logs.FilesOptions{Dir: dir, Name: name, Fault: log})
	}
	return o
}

// recall reads back what an earlier daemon has kept, once that writes no more.
func (o *output) recall() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.files == nil || o.recalled {
		return
	}
	o.recalled = true
	for _, l := range o.files.Last(o.size) {
		o.ring.Add(Line{Time: l.Time, Stream: l.Stream, Text: l.Text})
	}
}

// resize makes the ring another one. mu is held, or nobody else knows o.
func (o *output) resize(n int) {
	old := o.ring
	o.ring, o.size = logs.NewWeighedRing(n, max(ringBytes, n*ringLine), func(l Line) int { return len(l.Text) + lineOwn }), n
	if old == nil {
		return
	}
	kept := old.Last(n)
	o.base += old.End() - 1 - uint64(len(kept))
	for _, l := range kept {
		o.ring.Add(l)
	}
	close(o.more)
	o.more = make(chan struct{})
}

// follow makes o as large as the plan wants it.
func (o *output) follow(want plan.AppLogs) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if want.Lines > 0 && want.Lines != o.size {
		o.resize(want.Lines)
	}
	if o.files != nil {
		o.files.Keep(want.Files)
	}
}

// add keeps a line.
func (o *output) add(l Line) {
	o.mu.Lock()
	o.ring.Add(l)
	files := o.files
	o.mu.Unlock()
	if files != nil {
		files.Add(logs.FileLine{Time: l.Time, Stream: l.Stream, Text: l.Text})
	}
}

// note keeps a line of our own.
func (o *output) note(text string) { o.add(Line{Time: time.Now(), Stream: ours, Text: text}) }

// last are the newest n lines, oldest first.
func (o *output) last(n int) []Line {
	o.mu.Lock() // no line comes between the two looks
	defer o.mu.Unlock()
	list, end := o.ring.Last(n), o.base+o.ring.End()
	for i := range list {
		list[i].Number = end - uint64(len(list)) + uint64(i)
	}
	return list
}

// end is the number of the line to come.
func (o *output) end() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.base + o.ring.End()
}

// next waits for the line of that number, or the oldest one kept that comes after it.
func (o *output) next(ctx context.Context, number uint64) (Line, error) {
	for {
		o.mu.Lock()
		ring, base, more := o.ring, o.base, o.more
		o.mu.Unlock()
		from := uint64(1)
		if number > base {
			from = number - base
		}
		wait, stop := context.WithCancel(ctx)
		go func() {
			select {
			case <-more:
				stop()
			case <-wait.Done():
			}
		}()
		l, n, err := ring.Next(wait, from)
		stop()
		if err == nil {
			l.Number = base + n
			return l, nil
		}
		if ctx.Err() != nil {
			return Line{}, ctx.Err()
		}
	}
}

// close lets go of the files.
func (o *output) close() {
	o.mu.Lock()
	files := o.files
	o.mu.Unlock()
	if files != nil {
		files.Close()
	}
}

// tap is the output of one instance.
type tap struct {
	out  *output
	want *regexp.Regexp // the line that says it is ready
	said chan struct{}  // closed by that line; nil where none is waited for
	once sync.Once

	mu   sync.Mutex // guards what follows
	errs []string   // the newest lines of stderr
}

func (o *output) tap(spec *plan.App) *tap {
	t := &tap{out: o}
	if spec.Ready.Log != "" {
		t.said = make(chan struct{})
	}
	return t
}

// expect names the line that says it is ready, before the first line can come.
func (t *tap) expect(line string) error {
	if line == "" {
		return nil
	}
	var err error
	t.want, err = regexp.Compile(line)
	return err
}

// Line takes a line of the app.
func (t *tap) Line(at time.Time, stderr bool, text []byte) {
	if t.want != nil && t.want.Match(text) {
		t.once.Do(func() { close(t.said) })
	}
	l := Line{Time: at, Stream: "stdout", Text: strings.ToValidUTF8(string(text), "\uFFFD")}
	if stderr {
		l.Stream = "stderr"
		t.mu.Lock()
		if len(t.errs) == lastLines {
			t.errs = append(t.errs[:0], t.errs[1:]...)
		}
		t.errs = append(t.errs, printable(text[:min(len(text), lastBytes)]))
		t.mu.Unlock()
	}
	t.out.add(l)
}

// Newest is the time of the newest line of the app that was kept, zero where there is none.
func (t *tap) Newest() time.Time {
	list := t.out.last(math.MaxInt)
	for n := len(list) - 1; n >= 0; n-- {
		if list[n].Stream != ours {
			return list[n].Time
		}
	}
	return time.Time{}
}

// lastErrors are the newest lines of stderr.
func (t *tap) lastErrors() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.errs...)
}

// printable is a text without what would disturb a line of ours.
func printable(text []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, string(text)))
}
