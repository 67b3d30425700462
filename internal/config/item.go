package config

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// item reads and builds one item of a section.
func (b *builder) item(r *ref) {
	for b.root.Kind == yaml.AliasNode {
		b.root = b.root.Alias
	}
	if r.piece.Key != nil {
		b.it.at = spot{r.piece.Key.Line, r.piece.Key.Column}
	}
	switch r.piece.Section {
	case "sites":
		b.siteItem(r.piece.Key)
		return
	case "upstreams":
		b.upstreamItem(r.piece.Key)
		return
	}
	f := form.Route{}
	f.Defaults()
	b.r.Read(b.root, &f)
	if b.root.Kind != yaml.MappingNode {
		return
	}
	if n := strict.Find(b.root, "name"); n != nil {
		b.it.at = spot{n.Line, n.Column}
	} else {
		b.it.at = spot{b.root.Line, b.root.Column}
	}
	if r.layer == plan.FromAPI {
		name := form.Name(r.piece.Key.Value)
		if f.Name != "" && f.Name != name {
			b.fault([]string{"name"}, "write name: "+string(name)+" or leave it out", "the route is called %s here and %s in the address", f.Name, name)
		}
		if err := f.Name.ReadText(string(name)); err != nil {
			b.r.Fault(b.root, err)
		}
	}
	b.route(&f, r.layer)
}

// upstreamItem builds named targets, and what routes that use them take over.
func (b *builder) upstreamItem(key *yaml.Node) {
	var name form.Name
	if text, ok := b.r.Text(key); !ok || !b.r.Fault(key, name.ReadText(text)) {
		return
	}
	a := form.Action{}
	b.r.Read(b.root, &a)
	if b.root.Kind != yaml.MappingNode {
		return
	}
	b.site = true
	b.it.name = string(name)
	for _, k := range []string{"redirect", "respond", "files", "block", "tls", "upstream"} {
		if strict.Find(b.root, k) != nil {
			b.fault([]string{"action", k}, "write it in the route", "an upstream is only targets and how they are used")
		}
	}
	if a.Type != "" && a.Type != "forward" {
		b.fault([]string{"action", "type"}, "leave it out", "an upstream is only targets and how they are used")
	}
	b.it.upstream = b.targets(&a, b.it.name, time.Duration(b.timeouts.Connect), false)
	b.it.shared = b.use(&a)
}

// ParseRoute checks one route as the API gets it (no ${}, no file:) and returns it as a Layer keeps it.
func ParseRoute(name string, body []byte) (json.RawMessage, error) {
	if !json.Valid(body) {
		var v any
		err := json.Unmarshal(body, &v)
		return nil, Errors{{Path: "api." + name, Message: "the body is not JSON: " + err.Error(), Remedy: "send one route as a JSON object"}}
	}
	body = plainJSON(body)
	l := NewLoader()
	ld := l.begin()
	defer ld.breath.End()
	l.scope = scope{timeouts: ld.file.Timeouts}
	ld.addLayer(&Layer{Routes: map[string]json.RawMessage{name: body}})
	if len(ld.errs) > 0 {
		return nil, ld.errs.Sort()
	}
	return body, nil
}

// plainJSON writes valid JSON so that it is also YAML, as which stored routes are read: YAML has no pairs of \u escapes, no
// \/ and no bare control characters.
func plainJSON(body []byte) []byte {
	out := make([]byte, 0, len(body))
	for i := 0; i < len(body); {
		if body[i] == '\\' {
			n, text := unescape(body[i:])
			out = append(out, text...)
			i += n
			continue
		}
		r, n := utf8.DecodeRune(body[i:])
		if r == utf8.RuneError || r >= 0x7f && r <= 0x9f || r == 0x2028 || r == 0x2029 || r >= 0xfeff && r <= 0xffff {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = append(out, body[i:i+n]...)
		}
		i += n
	}
	return out
}

// isText reports whether valid JSON holds nothing but characters, of which none is made another one.
func isText(body []byte) bool {
	for i := 0; i < len(body); {
		if body[i] != '\\' {
			i++
			continue
		}
		n, text := unescape(body[i:])
		if text == `\ufffd` && !strings.EqualFold(string(body[i:i+n]), text) {
			return false
		}
		i += n
	}
	return utf8.Valid(body)
}

// unescape reads one escape, or a pair of them, and returns its length and how YAML writes it.
func unescape(s []byte) (int, string) {
	switch {
	case s[1] == '/':
		return 2, "/"
	case s[1] != 'u':
		return 2, string(s[:2])
	}
	hi, _ := strconv.ParseUint(string(s[2:6]), 16, 32) // valid JSON has four digits
	if hi>>11 != 0xD800>>11 {
		return 6, string(s[:6])
	}
	if len(s) >= 12 && s[6] == '\\' && s[7] == 'u' {
		lo, _ := strconv.ParseUint(string(s[8:12]), 16, 32)
		if r := utf16.DecodeRune(rune(hi), rune(lo)); r != utf8.RuneError {
			return 12, string(r)
		}
	}
	return 6, `\ufffd`
}
