package logs

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSwitch_ChangesLevelAndFormatOfLoggersAlreadyMade(t *testing.T) {
	var out bytes.Buffer
	s := &Switch{}
	log := New(Options{Level: "warn", Format: "json", Out: &out, Switch: s}).With("component", "x").WithGroup("g")
	log.Info("unheard")
	log.Warn("heard", "port", 80)
	if got := out.String(); strings.Contains(got, "unheard") || !strings.Contains(got, `"g":{"port":80}`) {
		t.Fatalf("at warn: %s", got)
	}
	out.Reset()
	if err := s.Set("debug", "text"); err != nil {
		t.Fatal(err)
	}
	log.Debug("fine", "port", 81)
	if got := out.String(); !strings.Contains(got, "component=x g.port=81") || !strings.Contains(got, "level=DEBUG") {
		t.Fatalf("at debug, as text: %s", got)
	}
}

func TestSwitch_RefusedWordChangesNothing(t *testing.T) {
	for _, c := range [][2]string{{"loud", ""}, {"info+2", "text"}, {"debug", "xml"}} {
		var out bytes.Buffer
		s := &Switch{}
		log := New(Options{Out: &out, Switch: s})
		if err := s.Set(c[0], c[1]); err == nil {
			t.Errorf("Set(%q, %q) was taken", c[0], c[1])
		}
		log.Debug("no")
		log.Info("yes")
		if got := out.String(); !strings.HasPrefix(got, `{"time"`) || strings.Contains(got, `"no"`) {
			t.Errorf("after Set(%q, %q): %s", c[0], c[1], got)
		}
	}
}

func TestNew_NeverPrintsSecrets(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		log := New(Options{Format: format, Out: &out})
		log.Info(
			"m", "Authorization", "Bearer hush", "set-cookie", "hush", slog.Group("admin", "token", "hush"),
			"url", "see https://ann:hush@h.example/x?y and redis://:hush@r", "err", errors.New("get http://a:hush@b: refused"),
			"mail", "http://a@b/", "plain", "a://b",
		)
		got := out.String()
		if strings.Contains(got, "hush") {
			t.Errorf("%s: a secret was printed: %s", format, got)
		}
		for _, want := range []string{"https://ann:***@h.example/x?y", "redis://:***@r", "http://a:***@b: refused", "http://a@b/", "a://b"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is missing in %s", format, want, got)
			}
		}
	}
}

func TestNew_DurationsAreSecondsInJSONAndWordsInText(t *testing.T) {
	for format, want := range map[string]string{"json": `"took":1.5}`, "text": "took=1.5s"} {
		var out bytes.Buffer
		New(Options{Format: format, Out: &out}).Info("m", "took", 1500*time.Millisecond)
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: %s", format, out.String())
		}
	}
}
