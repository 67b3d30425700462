//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/chaos/load"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "target" { // a child of a test
		main()
		return
	}
	os.Exit(m.Run())
}

// underTest is the program under test.
func underTest(t *testing.T) string {
	t.Helper()
	if made := os.Getenv("QUAYMASTER_TEST_BINARY"); made != "" {
		return made
	}
	made := filepath.Join(t.TempDir(), "quaymaster")
	if out, err := exec.Command("go", "build", "-o", made, "../cmd/quaymaster").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return made
}

// short is a run that is over soon, and in which nothing is judged by how long it took. Its files stay when the test
// fails.
func short(t *testing.T, seed uint64, only string) (*chaos, load.Tally, string) {
	t.Helper()
	o := options{
		duration: 3 * time.Second, seed: seed, only: only, binary: underTest(t), every: 80 * time.Millisecond, long: 200 * time.Millisecond,
		patience: 2 * time.Minute, race: true,
	}
	var err error
	if o.self, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	if o.dir, err = os.MkdirTemp("", "chaos-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("files are kept in", o.dir)
		} else if err := os.RemoveAll(o.dir); err != nil {
			t.Error(err)
		}
	})
	var out bytes.Buffer
	o.out = &out
	c, tally, err := run(t.Context(), o)
	if err != nil {
		t.Fatalf("seed %d: %v\n%s", seed, err, out.String())
	}
	return c, tally, out.String()
}

// TestChaos_Short is `make chaos` in short: every act at least once, with clients of all kinds, but for halts, which take
// their time on a busy machine. Other seeds are for `make chaos`.
func TestChaos_Short(t *testing.T) {
	c, tally, found := short(t, 7, "")
	if tally.Bad > 0 {
		t.Errorf("%s", found)
	}
	t.Log(c.summary(tally))
	for _, a := range c.acts() {
		if c.count[a.name] == 0 {
			t.Errorf("nothing of %q has happened", a.name)
		}
	}
	for _, k := range load.Kinds() {
		if n := tally.ByKind[k.Name]; n == nil || n[load.Answered] == 0 {
			t.Errorf("no exchange of kind %q was answered", k.Name)
		}
	}
	if tally.Strict < tally.Exchanges/2 {
		t.Errorf("of %d exchanges only %d could end in one way", tally.Exchanges, tally.Strict)
	}
}

// TestChaos_ALieIsFound: targets that now and then answer as somebody else are what a proxy that mixes clients up looks
// like. Where the answer tells who it was it is found wrong, and elsewhere it is missing in the journal.
func TestChaos_ALieIsFound(t *testing.T) {
	t.Setenv("CHAOS_LIE", "100")
	_, tally, _ := short(t, 1, "reload,edit")
	if tally.Bad == 0 {
		t.Fatal("targets that lie were not found")
	}
	for _, v := range tally.Violations {
		if !strings.Contains(fmt.Sprint(v), "impostor") {
			t.Errorf("found besides: %v", v)
		}
	}
}
