package form

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/config/strict"
)

var update = flag.Bool("update", false, "write docs/config.md anew")

const reference = "../../../docs/config.md"

// TestReferenceIsFresh fails when docs/config.md is not what the types say.
func TestReferenceIsFresh(t *testing.T) {
	want := generate(t)
	if *update {
		if err := os.WriteFile(reference, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(reference)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("docs/config.md is stale (%v): run go generate ./internal/config/form", err)
	}
}

// TestEveryKeyHasAComment keeps the reference complete.
func TestEveryKeyHasAComment(t *testing.T) {
	comments := Comments()
	for _, s := range chapters(reflect.TypeFor[File](), "") {
		for f := range keys(s.t) {
			if comments[s.t.Name()+"."+f.Name] == "" {
				t.Errorf("%s.%s has no comment", s.t.Name(), f.Name)
			}
		}
	}
}

// generate is the hand-written beginning and a table for each type.
func generate(t *testing.T) []byte {
	intro, err := os.ReadFile("testdata/intro.md")
	if err != nil {
		t.Fatal(err)
	}
	comments := Comments()
	out := bytes.NewBuffer(intro)
	for _, c := range chapters(reflect.TypeFor[File](), "") {
		title := "All keys: the top level"
		switch {
		case c.t == reflect.TypeFor[PortObject]():
			title = "A port as an object"
		case c.path != "":
			title = "`" + c.path + "`"
		}
		fmt.Fprintf(out, "## %s\n\n| key | value | default | meaning |\n|---|---|---|---|\n", title)
		for f, v := range keys(c.t) {
			fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", strict.Key(f), kind(f), code(Default(v)),
				strings.ReplaceAll(comments[c.t.Name()+"."+f.Name], "|", `\|`))
		}
		out.WriteString("\n")
	}
	return append(bytes.TrimRight(out.Bytes(), "\n"), '\n')
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

type chapter struct {
	path string
	t    reflect.Type
}

// chapters are the types that have keys, each where it is met first.
func chapters(t reflect.Type, path string) []chapter {
	var out []chapter
	seen := map[reflect.Type]bool{}
	var walk func(t reflect.Type, path string)
	walk = func(t reflect.Type, path string) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			t = t.Elem()
		}
		if l := long[t]; l != nil {
			t = l[0]
		}
		if t.Kind() != reflect.Struct || seen[t] {
			return
		}
		for range keys(t) {
			seen[t] = true
		}
		if !seen[t] {
			return
		}
		out = append(out, chapter{strings.TrimPrefix(path, "."), t})
		for f := range keys(t) {
			suffix := ""
			switch f.Type.Kind() {
			case reflect.Slice:
				suffix = "[]"
			case reflect.Map:
				suffix = ".NAME"
			}
			if f.Name == "Sites" || f.Name == "Upstreams" {
				continue // an action, which is shown with the routes
			}
			walk(f.Type, path+"."+strict.Key(f)+suffix)
		}
	}
	walk(t, path)
	return out
}

// kind is what a person writes as the value.
func kind(f reflect.StructField) string {
	t, list := f.Type, ""
	if words := f.Tag.Get("oneof"); words != "" {
		if t.Kind() == reflect.Slice {
			list = "list of "
		}
		return list + "`" + strings.ReplaceAll(words, ",", "`, `") + "`"
	}
	if r := f.Tag.Get("range"); r != "" {
		return "number " + strings.Replace(r, "..", " to ", 1)
	}
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice && t != reflect.TypeFor[Hosts]() && t != reflect.TypeFor[Command]() || t.Kind() == reflect.Map {
		switch t.Kind() {
		case reflect.Slice:
			list += "list of "
		case reflect.Map:
			list += "map to "
		}
		t = t.Elem()
	}
	if word := map[reflect.Type]string{
		reflect.TypeFor[Hosts](): "address or list of addresses", reflect.TypeFor[Port](): "port", reflect.TypeFor[PortText](): "port",
		reflect.TypeFor[Site](): "site", reflect.TypeFor[Want](): "text or `{regex}`", reflect.TypeFor[HeaderValue](): "text",
		reflect.TypeFor[Token](): "field name", reflect.TypeFor[PlainPath](): "path", reflect.TypeFor[RetryCause](): "`connect` or status",
		reflect.TypeFor[TargetPort](): "number or `preserve`", reflect.TypeFor[StatusRange](): "status or range", reflect.TypeFor[PortNumber](): "port",
		reflect.TypeFor[AllowName](): "name", reflect.TypeFor[AppEntry](): "app", reflect.TypeFor[AppText](): "text", reflect.TypeFor[Command](): "text or list of texts", reflect.TypeFor[EnvName](): "name", reflect.TypeFor[AppPort](): "`auto` or port", reflect.TypeFor[SignalName](): "signal", reflect.TypeFor[Processors](): "number", reflect.TypeFor[CertName](): "name", reflect.TypeFor[ChallengePort](): "port or map", reflect.TypeFor[Directory](): "word or URL",
		reflect.TypeFor[strict.Secret](): "secret", reflect.TypeFor[AskURL](): "URL", reflect.TypeFor[TSIGKey](): "key name", reflect.TypeFor[Email](): "address", reflect.TypeFor[RenewBefore](): "`auto` or duration", reflect.TypeFor[CertificateChoice](): "`auto`, `internal` or map", reflect.TypeFor[HostPort](): "HOST:PORT", reflect.TypeFor[ListenAddress](): "HOST:PORT",
		reflect.TypeFor[HostName](): "host", reflect.TypeFor[PathPattern](): "path", reflect.TypeFor[RateKey](): "key",
		reflect.TypeFor[PortRange](): "port or range", reflect.TypeFor[EngineSocket](): "path or unix:// URL",
		reflect.TypeFor[RedirectTo](): "`https` or URL", reflect.TypeFor[FileName](): "file name", reflect.TypeFor[Network](): "CIDR",
	}[t]; word != "" {
		return list + word
	}
	switch {
	case t.Kind() == reflect.Interface:
		return "anything"
	case t.Kind() == reflect.Struct && len(list) > 0:
		return strings.Replace(list, "list of ", "list of maps", 1) + map[bool]string{true: "maps"}[strings.HasPrefix(list, "map")]
	case t.Kind() == reflect.Struct:
		return "map"
	case t == reflect.TypeFor[string]():
		return list + "text"
	case t.Kind() == reflect.Bool:
		return "`true`, `false`"
	}
	return list + strings.ToLower(t.Name())
}
