package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A part is a follower that writes down what is asked of it.
type part struct {
	name string
	book *book
	fail error
}

// book is what all parts were asked, in order, and the plans that were committed.
type book struct {
	mu    sync.Mutex // guards what follows
	lines []string
	plans []*plan.Plan
}

func (b *book) add(line string) {
	b.mu.Lock()
	b.lines = append(b.lines, line)
	b.mu.Unlock()
}

func (b *book) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := strings.Join(b.lines, " ")
	b.lines = nil
	return s
}

func (p *part) Prepare(_ context.Context, next *plan.Plan) (plan.Step, error) {
	p.book.add("prepare-" + p.name)
	if p.fail != nil {
		return nil, p.fail
	}
	return &partStep{p, next}, nil
}

type partStep struct {
	*part
	next *plan.Plan
}

func (s *partStep) Commit() {
	s.book.add("commit-" + s.name)
	s.book.mu.Lock()
	s.book.plans = append(s.book.plans, s.next)
	s.book.mu.Unlock()
}
func (s *partStep) Retire() { s.book.add("retire-" + s.name) }
func (s *partStep) Abort()  { s.book.add("abort-" + s.name) }

// rig is a loop over one file and two parts.
type rig struct {
	t      *testing.T
	file   string
	book   *book
	a, b   *part
	loop   *Loop
	events chan string // kinds; large enough for any test
	saved  func(*config.Layer) error
}

func one(names ...string) string {
	text := "routes:\n"
	for _, n := range names {
		text += fmt.Sprintf("  - {name: %s, match: {ports: [8080], domains: [%s.test]}, action: {respond: {status: 200}}}\n", n, n)
	}
	return text
}

func (r *rig) write(text string) {
	r.t.Helper()
	if err := os.WriteFile(r.file+".new", []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(r.file+".new", r.file); err != nil {
		r.t.Fatal(err)
	}
}

func newRig(t *testing.T, text string) *rig {
	t.Helper()
	r := &rig{t: t, file: filepath.Join(t.TempDir(), "q.yaml"), book: &book{}, events: make(chan string, 1000)}
	r.a, r.b = &part{name: "a", book: r.book}, &part{name: "b", book: r.book}
	r.write(text)
	r.loop = New(Options{
		Config: r.file, Log: slog.New(slog.DiscardHandler),
		Followers: []Named{{"a", r.a}, {"b", r.b}},
		Event:     func(kind, _, _ string) { r.events <- kind },
		Save: func(l *config.Layer) error {
			r.book.add("save")
			if r.saved != nil {
				return r.saved(l)
			}
			return nil
		},
	})
	first, err := Load(nil, r.file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.loop.Start(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.loop.Freeze(ErrFrozen) })
	r.book.take()
	return r
}

func (r *rig) names() string {
	var out []string
	for _, x := range r.loop.Now().Plan.Routes {
		out = append(out, x.Name)
	}
	return strings.Join(out, " ")
}

func (r *rig) want(names string) {
	r.t.Helper()
	if got := r.names(); got != names {
		r.t.Errorf("in force: %q, want %q", got, names)
	}
}

func (r *rig) reload(o ReloadOptions) Result {
	r.t.Helper()
	res, err := r.loop.Reload(r.t.Context(), o)
	if err != nil {
		r.t.Fatal(err)
	}
	return res
}

func (r *rig) edit(name string) error {
	_, err := r.loop.Edit(r.t.Context(), "*", func(l *config.Layer) error {
		return l.Put(name, []byte(`{"match":{"ports":[8080],"domains":["`+name+`.test"]},"action":{"respond":{"status":200}}}`))
	})
	return err
}

// wait takes events until one of that kind comes.
func (r *rig) wait(kind string) {
	r.t.Helper()
	for {
		select {
		case k := <-r.events:
			if k == kind {
				return
			}
		case <-time.After(20 * time.Second):
			r.t.Fatalf("no %s", kind)
		}
	}
}

func TestLoop_PreparesAllCommitsAllRetiresAll(t *testing.T) {
	r := newRig(t, one("x"))
	r.write(one("x", "y"))
	r.reload(ReloadOptions{})
	if got := r.book.take(); got != "prepare-a prepare-b commit-a commit-b retire-a retire-b" {
		t.Error(got)
	}
	if err := r.edit("z"); err != nil {
		t.Fatal(err)
	}
	if got := r.book.take(); got != "prepare-a prepare-b save commit-a commit-b retire-a retire-b" {
		t.Error(got)
	}
	r.want("x y z")
}

// witness is a follower that looks at the loop when it commits.
type witness func()

func (w witness) Prepare(context.Context, *plan.Plan) (plan.Step, error) { return w, nil }
func (w witness) Commit()                                                { w() }
func (w witness) Retire()                                                {}
func (w witness) Abort()                                                 {}

// While the first plan is committed ports begin to accept: what asks for the plan in force then gets one.
func TestLoop_ThereIsAPlanFromTheFirstCommitOn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "q.yaml")
	if err := os.WriteFile(file, []byte(one("x")), 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := Load(nil, file, nil)
	if err != nil {
		t.Fatal(err)
	}
	var loop *Loop
	commits := 0
	look := witness(func() {
		if now := loop.Now(); now == nil || now.Plan.Route("x") == nil {
			t.Errorf("at a commit the plan in force is %+v", now)
		}
		commits++
	})
	loop = New(Options{
		Config: file, Log: slog.New(slog.DiscardHandler), Followers: []Named{{"witness", look}}, Event: func(string, string, string) {},
	})
	if err := loop.Start(t.Context(), first); err != nil || commits != 1 {
		t.Fatalf("%d commits, %v", commits, err)
	}
	loop.Freeze(ErrFrozen)
}

func TestLoop_ARefusalLeavesThePreviousStateIntact(t *testing.T) {
	r := newRig(t, one("x"))
	before := r.loop.Now()
	r.write(one("y"))
	r.b.fail = errors.New("no room")
	_, err := r.loop.Reload(t.Context(), ReloadOptions{})
	var f *FollowError
	if !errors.As(err, &f) || f.Part != "b" || err.Error() != "no room" {
		t.Errorf("%v", err)
	}
	if got := r.book.take(); got != "prepare-a prepare-b abort-a" {
		t.Error(got)
	}
	r.b.fail = nil
	r.saved = func(*config.Layer) error { return errors.New("disk full") }
	if err := r.edit("z"); err == nil || err.Error() != "disk full" {
		t.Errorf("%v", err)
	}
	if got := r.book.take(); got != "prepare-a prepare-b save abort-b abort-a" {
		t.Error(got)
	}
	now := r.loop.Now()
	if now.Plan != before.Plan || now.Revision != before.Revision || now.Layer != before.Layer || now.Error != "no room" {
		t.Errorf("state after refusals: %+v", now)
	}
}

func TestLoop_DryRunDisturbsNothing(t *testing.T) {
	r := newRig(t, one("x", "y"))
	before := r.loop.Now()
	r.write(one("x"))
	res := r.reload(ReloadOptions{DryRun: true})
	if len(res.Changes) != 1 || res.Changes[0].Name != "y" || r.book.take() != "" || r.loop.Now() != before {
		t.Errorf("dry run: %+v", res)
	}
	// A file that was seen by a dry run or a refusal alone leaves no trace: what comes back is the same object.
	r.write(strings.ReplaceAll(one("x", "y"), "200", "204"))
	r.reload(ReloadOptions{DryRun: true})
	r.a.fail = errors.New("no")
	_, _ = r.loop.Reload(t.Context(), ReloadOptions{})
	r.a.fail = nil
	r.write(one("x", "y"))
	r.reload(ReloadOptions{})
	for i, route := range r.loop.Now().Plan.Routes {
		if route != before.Plan.Routes[i] {
			t.Errorf("route %s is another object although nothing changed", route.Name)
		}
	}
}

func TestLoop_AnEditIsAppliedAlone(t *testing.T) {
	r := newRig(t, one("x"))
	r.write(one("x", "half-written"))
	if err := r.edit("z"); err != nil {
		t.Fatal(err)
	}
	r.want("x z")
	r.write("routes: [")
	if err := r.edit("w"); err != nil {
		t.Errorf("a broken file refuses an edit that has nothing to do with it: %v", err)
	}
	if _, err := r.loop.Reload(t.Context(), ReloadOptions{}); err == nil {
		t.Error("reload took a broken file")
	}
	if err := r.edit("v"); err != nil || r.loop.Now().Error == "" {
		t.Errorf("an edit hides that the file is broken: %v", err)
	}
	r.write(one("x", "whole"))
	r.reload(ReloadOptions{})
	r.want("v w whole x z")
	if r.loop.Now().Error != "" {
		t.Error("the fault stays shown")
	}
}

func TestLoop_EditWantsTheRevisionInForce(t *testing.T) {
	r := newRig(t, one("x"))
	start := r.loop.Now().Revision
	r.reload(ReloadOptions{})
	if now := r.loop.Now().Revision; now != start {
		t.Errorf("the revision of the same bytes was %s and is %s", start, now)
	}
	nothing := func(*config.Layer) error { return nil }
	if _, err := r.loop.Edit(t.Context(), start, nothing); err != nil {
		t.Error(err)
	}
	r.write(one("y"))
	r.reload(ReloadOptions{})
	if _, err := r.loop.Edit(t.Context(), start, nothing); !errors.Is(err, ErrStale) {
		t.Errorf("%v, want stale", err)
	}
}

func TestLoop_UnconfirmedReloadGoesBack(t *testing.T) {
	r := newRig(t, one("x"))
	start := r.loop.Now().Revision
	r.write(one("y"))
	r.reload(ReloadOptions{Confirm: 30 * time.Millisecond})
	if r.loop.Unconfirmed().IsZero() {
		t.Error("status does not say that it goes back")
	}
	r.wait("config.undone")
	r.want("x")
	if now := r.loop.Now(); now.Revision != start || now.Error == "" || !r.loop.Unconfirmed().IsZero() {
		t.Errorf("%+v", now)
	}
	if err := r.loop.Confirm(); !errors.Is(err, ErrNothingToConfirm) {
		t.Error(err)
	}
}

func TestLoop_AnEditMeanwhileNeitherConfirmsNorIsLost(t *testing.T) {
	r := newRig(t, one("x"))
	r.write(one("y"))
	r.reload(ReloadOptions{Confirm: time.Hour})
	if err := r.edit("z"); err != nil {
		t.Fatal(err)
	}
	r.want("y z")
	if r.loop.Unconfirmed().IsZero() {
		t.Fatal("the edit confirmed the reload")
	}
	r.loop.undo.timer.Reset(0) // the hour is over
	r.wait("config.undone")
	r.want("x z")
}

func TestLoop_ASecondUnconfirmedReloadGoesBackToWhatWasConfirmed(t *testing.T) {
	r := newRig(t, one("x"))
	r.write(one("y"))
	r.reload(ReloadOptions{Confirm: time.Hour})
	r.write(one("z"))
	r.reload(ReloadOptions{Confirm: time.Millisecond})
	r.wait("config.undone")
	r.want("x")

	r.reload(ReloadOptions{Confirm: time.Hour})
	if err := r.loop.Confirm(); err != nil {
		t.Error(err)
	}
	r.want("z")
}

func TestLoop_FreezeEndsEverything(t *testing.T) {
	r := newRig(t, one("x"))
	r.write(one("y"))
	r.reload(ReloadOptions{Confirm: time.Hour})
	r.loop.Freeze(ErrFrozen)
	if _, err := r.loop.Reload(t.Context(), ReloadOptions{}); !errors.Is(err, ErrFrozen) {
		t.Error(err)
	}
	if err := r.edit("z"); !errors.Is(err, ErrFrozen) {
		t.Error(err)
	}
	r.want("y")
}

func TestLoop_NothingIsTakenBeforeTheFirstPlan(t *testing.T) {
	l := New(Options{Log: slog.New(slog.DiscardHandler)})
	if _, err := l.Reload(t.Context(), ReloadOptions{}); !errors.Is(err, ErrStarting) {
		t.Error(err)
	}
	if _, err := l.Check(t.Context()); !errors.Is(err, ErrStarting) {
		t.Error(err)
	}
	if _, err := l.Edit(t.Context(), "*", nil); !errors.Is(err, ErrStarting) {
		t.Error(err)
	}
}

func TestLoop_ChangesAtOnceAreAppliedOneByOne(t *testing.T) {
	r := newRig(t, one("x"))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if err := r.edit(fmt.Sprintf("n%02d", i)); err != nil {
				t.Error(err)
			}
			_, _ = r.loop.Check(t.Context())
		})
	}
	wg.Wait()
	if n := len(r.loop.Now().Plan.Routes); n != 17 {
		t.Errorf("%d routes, want 17: an edit was lost", n)
	}
	steps := strings.Fields(r.book.take())
	for i := 0; i+6 < len(steps); i += 7 {
		if strings.Join(steps[i:i+7], " ") != "prepare-a prepare-b save commit-a commit-b retire-a retire-b" {
			t.Fatalf("two changes mixed: %v", steps[i:i+7])
		}
	}
}

func TestLoop_ThousandsOfMistakesAreToldBriefly(t *testing.T) {
	r := newRig(t, one("x"))
	r.write("routes:\n" + strings.Repeat("  - {nmae: x}\n", 5000))
	_, err := r.loop.Reload(t.Context(), ReloadOptions{})
	var all config.Errors
	if !errors.As(err, &all) || len(all) < 5000 {
		t.Fatalf("the caller gets %d mistakes, want all", len(all))
	}
	if text := r.loop.Now().Error; len(text) > 16<<10 || !strings.Contains(text, "more mistakes") {
		t.Errorf("status holds %d bytes", len(text))
	}
}

// eye is a follower that looks at the plan in force while it commits.
type eye struct {
	loop *Loop
	seen []*State
	next []*plan.Plan
}

func (e *eye) Prepare(_ context.Context, next *plan.Plan) (plan.Step, error) {
	e.next = append(e.next, next)
	return e, nil
}
func (e *eye) Commit() { e.seen = append(e.seen, e.loop.Now()) }
func (e *eye) Retire() {}
func (e *eye) Abort()  {}

// A socket with clients in its queue serves the first of them while its port commits.
func TestThePlanInForceIsThereWhenItsPartsCommit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "q.yaml")
	if err := os.WriteFile(file, []byte(one("a")), 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := Load(nil, file, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := &eye{}
	busy := 0
	e.loop = New(Options{Config: file, Log: slog.New(slog.DiscardHandler), Followers: []Named{{"eye", e}}, Busy: func(begins bool) {
		if begins {
			busy++
		} else {
			busy += 10
		}
	}})
	if err := e.loop.Start(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if _, err := e.loop.Reload(t.Context(), ReloadOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, s := range e.seen {
		if s == nil || s.Plan != e.next[i] {
			t.Errorf("commit %d saw another plan in force: %v", i, s)
		}
	}
	if len(e.seen) != 2 || busy != 11 {
		t.Errorf("%d commits, busy %d", len(e.seen), busy)
	}
	if err := os.WriteFile(file, []byte("nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := e.loop.Reload(t.Context(), ReloadOptions{DryRun: true}); err == nil || busy != 11 {
		t.Errorf("a dry run: %v, busy %d", err, busy)
	}
	if _, err := e.loop.Reload(t.Context(), ReloadOptions{}); err == nil || busy != 22 {
		t.Errorf("a reload that is refused: %v, busy %d", err, busy)
	}
}
