package proxy

import (
	"bytes"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// rewrite is plan.Rewrite with its texts made safe to stand in a request line.
type rewrite struct {
	strip   []byte // decoded, no slash at its end
	prefix  []byte // no slash at its end
	path    []byte
	query   bool   // path brings its own
	setHost []byte // a name
	target  bool   // the host of the target
}

func compileRewrite(r *plan.Rewrite) rewrite {
	w := rewrite{
		strip:  []byte(strings.TrimRight(r.StripPrefix, "/")),
		prefix: escapeTarget(strings.TrimRight(r.AddPrefix, "/")),
		path:   escapeTarget(r.Path),
		query:  strings.Contains(r.Path, "?"),
		target: r.SetHost == "target",
	}
	if !w.target {
		w.setHost = appendClean(nil, []byte(r.SetHost))
	}
	for _, p := range []*[]byte{&w.strip, &w.prefix, &w.path} {
		if len(*p) > 0 && (*p)[0] != '/' {
			*p = append([]byte{'/'}, *p...)
		}
	}
	return w
}

// escapeTarget percent-encodes what may not stand in a request target.
func escapeTarget(s string) []byte {
	const hex = "0123456789ABCDEF"
	var out []byte
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '#' || c == '"' || c == '<' || c == '>' {
			out = append(out, '%', hex[c>>4], hex[c&15])
		} else {
			out = append(out, c)
		}
	}
	return out
}

// apply is the request target that the upstream sees. Without a rewrite it is the target as it came, byte for byte.
func (w *rewrite) apply(t *turn) []byte {
	target := t.ex.Req.Target
	if len(w.strip)+len(w.prefix)+len(w.path) == 0 || len(target) == 0 || target[0] != '/' {
		return target
	}
	raw, query, has := bytes.Cut(target, []byte{'?'})
	if len(w.path) > 0 {
		raw, has = w.path, has && !w.query
	} else {
		raw = stripPrefix(raw, w.strip)
	}
	n := len(t.ex.Scratch)
	b := append(t.ex.Scratch, w.prefix...)
	if len(raw) == 0 || raw[0] != '/' {
		b = append(b, '/')
	}
	b = append(b, raw...)
	if has {
		b = append(append(b, '?'), query...)
	}
	t.ex.Scratch = b
	return b[n:len(b):len(b)]
}

// stripPrefix takes prefix, which is decoded, from a path that may have any of it percent-encoded. A path that does
// not begin with it, at the border of a segment, stays whole.
func stripPrefix(raw, prefix []byte) []byte {
	i := 0
	for _, want := range prefix {
		if i >= len(raw) {
			return raw
		}
		c := raw[i]
		if c == '%' && i+2 < len(raw) {
			c = unhex(raw[i+1])<<4 | unhex(raw[i+2])
			i += 2
		}
		if c != want {
			return raw
		}
		i++
	}
	if i < len(raw) && raw[i] != '/' {
		return raw
	}
	return raw[i:]
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 0
}
