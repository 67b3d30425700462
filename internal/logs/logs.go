// Package logs is where this program says what it does: slog outputs whose level and format change while it runs, a
// line writer for the access log, and bounded rings that people can follow.
//
// It promises that nobody waits for a slow reader and that what it holds is bounded: lines and entries too many are
// dropped and counted. It never prints the value of a key that names a secret, nor the password of a URL.
package logs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
)

// Options say what a logger writes, and where. The zero value writes level info to stderr, as text on a terminal and
// as JSON otherwise.
type Options struct {
	Level  string    // "debug", "info", "warn" or "error"; "" is info
	Format string    // "auto", "json" or "text"; "" is auto
	Out    io.Writer // nil: os.Stderr
	Switch *Switch   // changes both later; nil: they stay. Level and Format, where given, are set in it.
}

// A Switch changes level and format of a running logger and of every logger made from it. The zero value is info and
// auto. It may be used from several goroutines.
type Switch struct {
	level  slog.LevelVar
	format atomic.Uint32 // one of the form constants
}

const (
	formAuto uint32 = iota
	formJSON
	formText
)

// Set changes level and format at once; "" leaves one as it is. A word it does not know changes nothing.
func (s *Switch) Set(level, format string) error {
	l, f := s.level.Level(), s.format.Load()
	if level != "" {
		if err := l.UnmarshalText([]byte(level)); err != nil || strings.ContainsAny(level, "+-") {
			return fmt.Errorf("log level %q: not one of debug, info, warn, error", level)
		}
	}
	switch format {
	case "":
	case "auto":
		f = formAuto
	case "json":
		f = formJSON
	case "text":
		f = formText
	default:
		return fmt.Errorf("log format %q: not one of auto, json, text", format)
	}
	s.level.Set(l)
	s.format.Store(f)
	return nil
}

// New returns a logger. A level or format it does not know counts as the default, since whoever read the
// configuration has refused it before.
func New(o Options) *slog.Logger {
	if o.Out == nil {
		o.Out = os.Stderr
	}
	if o.Switch == nil {
		o.Switch = &Switch{}
	}
	_ = o.Switch.Set(o.Level, "")
	_ = o.Switch.Set("", o.Format)
	text := &slog.HandlerOptions{Level: &o.Switch.level, ReplaceAttr: redact}
	js := &slog.HandlerOptions{Level: &o.Switch.level, ReplaceAttr: inSeconds}
	return slog.New(&handler{
		set: o.Switch, tty: terminal(o.Out), json: slog.NewJSONHandler(o.Out, js), text: slog.NewTextHandler(o.Out, text),
	})
}

// inSeconds is redact, and writes durations as JSON has them everywhere here: in seconds.
func inSeconds(groups []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.Float64(a.Key, a.Value.Duration().Seconds())
	}
	return redact(groups, a)
}

// handler writes each record in the format that the switch names at that moment.
type handler struct {
	set        *Switch
	tty        bool
	json, text slog.Handler
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.set.level.Level() }

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	f := h.set.format.Load()
	if f == formText || f == formAuto && h.tty {
		return h.text.Handle(ctx, r)
	}
	return h.json.Handle(ctx, r)
}

func (h *handler) WithAttrs(a []slog.Attr) slog.Handler {
	return &handler{set: h.set, tty: h.tty, json: h.json.WithAttrs(a), text: h.text.WithAttrs(a)}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{set: h.set, tty: h.tty, json: h.json.WithGroup(name), text: h.text.WithGroup(name)}
}

// terminal reports whether w is a character device that people look at. /dev/null is one too, and does no harm.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	i, err := f.Stat()
	return err == nil && i.Mode()&os.ModeCharDevice != 0
}

// secretKeys are the keys whose values are never written, compared without case.
var secretKeys = []string{
	"authorization", "proxy-authorization", "cookie", "set-cookie", "token", "password", "secret", "hmac", "tsig_secret",
}

const hidden = "***"

// redact hides secrets by key, and the password of any URL by its shape.
func redact(_ []string, a slog.Attr) slog.Attr {
	for _, k := range secretKeys {
		if strings.EqualFold(a.Key, k) {
			return slog.String(a.Key, hidden)
		}
	}
	switch a.Value.Kind() {
	case slog.KindString:
		if s := a.Value.String(); strings.Contains(s, "://") {
			return slog.String(a.Key, hidePasswords(s))
		}
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok && strings.Contains(err.Error(), "://") {
			return slog.String(a.Key, hidePasswords(err.Error()))
		}
	}
	return a
}

// hidePasswords replaces the password of every scheme://user:password@ in s.
func hidePasswords(s string) string {
	var out strings.Builder
	for {
		i := strings.Index(s, "://")
		if i < 0 {
			break
		}
		i += len("://")
		out.WriteString(s[:i])
		s = s[i:]
		end := strings.IndexAny(s, "/?# \t\r\n\"'<>")
		if end < 0 {
			end = len(s)
		}
		at := strings.LastIndexByte(s[:end], '@')
		if at < 0 {
			continue
		}
		if user, _, ok := strings.Cut(s[:at], ":"); ok {
			out.WriteString(user + ":" + hidden)
		} else {
			out.WriteString(s[:at])
		}
		s = s[at:]
	}
	out.WriteString(s)
	return out.String()
}
