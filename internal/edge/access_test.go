package edge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

func sample(target, agent string) *entry {
	return &entry{
		start: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), took: 1234567 * time.Microsecond, kind: "http", proto: "HTTP/1.1",
		client: netip.MustParseAddr("2001:db8::1"), method: []byte("GET"), host: []byte("a.test"), target: []byte(target), agent: []byte(agent),
		Record: &wire.Record{Route: "api", Upstream: "web", Target: "10.0.0.5:80", Status: 200, Detail: agent, In: 5, Out: 7, Retries: 1, Reason: "x"},
	}
}

// nasty are bytes that end a string, a line or a terminal's patience.
var nasty = []string{"", "\"", "\\", "\n{\"a\":1}", "\x00\x1b[2J\x7f", "\xff\xfe", "\xe2\x80\xa8", "é\"", strings.Repeat("\"", 5000), "\xed\xa0\x80"}

func TestAccessLog_WhateverAClientSaysIsOneLine(t *testing.T) {
	for _, s := range nasty {
		e := sample("/p"+s+"?q="+s, s)
		e.host = []byte(s)
		line := e.appendJSON(nil)
		var back map[string]any
		if err := json.Unmarshal(line, &back); err != nil || !utf8.Valid(line) {
			t.Fatalf("%q: %v\n%s", s, err, line)
		}
		for kind, l := range map[string][]byte{"json": line, "text": e.appendText(nil)} {
			if bytes.IndexByte(l, '\n') != len(l)-1 || bytes.ContainsAny(l, "\x00\x1b\x7f") {
				t.Errorf("%s: %q is not one harmless line: %q", kind, s, l)
			}
		}
		if utf8.ValidString(s) && back["user_agent"] != s {
			t.Errorf("%q came back as %q", s, back["user_agent"])
		}
	}
	if got := string(sample("/", "a").appendJSON(nil)); !strings.Contains(got, `"duration":1.234567,`) {
		t.Errorf("duration: %s", got)
	}
}

func TestAccessLog_SecretsAreTakenOut(t *testing.T) {
	for in, want := range map[string]string{
		"/a?token=x&b=1":        `"/a?token=***&b=1"`,
		"/a?b=1&TOKEN=x":        `"/a?b=1&TOKEN=***"`,
		"/a?token=x&token=y":    `"/a?token=***&token=***"`,
		"/a?api_key=x=y?z":      `"/a?api_key=***"`,
		"/a?X-Amz-Signature=aa": `"/a?X-Amz-Signature=***"`,
		"/a?token":              `"/a?token"`,
		"/a?tokens=1":           `"/a?tokens=1"`,
		"/a?":                   `"/a?"`,
		"/a?&&b":                `"/a?&&b"`,
	} {
		if got := string(appendTarget(nil, []byte(in))); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestAccessLog_SampleKeepsEveryFailure(t *testing.T) {
	var out bytes.Buffer
	l := accessLog{out: &out}
	s := plan.AccessLog{Enabled: true, Format: "json", Sample: 10}
	for i := range 100 {
		e := sample("/", "")
		e.Reason = ""
		if i%20 == 0 {
			e.Status = 502
		}
		l.write(&s, e)
	}
	lines, failed := strings.Count(out.String(), "\n"), strings.Count(out.String(), `"status":502`)
	if failed != 5 || lines < 5+9 || lines > 5+10 {
		t.Errorf("%d lines, %d of them failures; want a tenth of 95 and all 5", lines, failed)
	}
	s.Enabled = false
	out.Reset()
	l.write(&s, sample("/", ""))
	if out.Len() != 0 {
		t.Error("a disabled log writes")
	}
}

func TestFailures_TheNewestAreRemembered(t *testing.T) {
	var e Edge
	for i := range len(e.failed.ring) + 10 {
		s := sample("/", "")
		s.ID = fmt.Appendf(nil, "id%d", i)
		e.failed.keep(s)
	}
	if _, ok := e.Failure("id9"); ok {
		t.Error("more are kept than the ring holds")
	}
	if line, ok := e.Failure(fmt.Sprintf("id%d", len(e.failed.ring)+9)); !ok || !json.Valid(line) {
		t.Errorf("the newest: %q", line)
	}
	if _, ok := e.Failure(""); ok {
		t.Error("the empty id finds something")
	}
}

func FuzzAccessLogLine(f *testing.F) {
	for _, s := range nasty {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, target, agent string) {
		e := sample(target, agent)
		if line := e.appendJSON(nil); !json.Valid(line) || bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("%q", line)
		}
		if line := e.appendText(nil); bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("%q", line)
		}
	})
}
