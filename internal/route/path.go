package route

import (
	"bytes"
	"fmt"
	"strings"
)

// Bounds of path patterns, and of the odd paths that are looked at under all readings. What is odder is refused.
const (
	maxPattern  = 1024
	maxOdd      = 2048
	maxOddities = 7
)

// pathPattern is one entry of a route's paths.
type pathPattern struct {
	segs []segment
	rest bool   // ends in a star
	rank string // compares like the pattern: literal < :name < *, segment by segment
	text string
}

type segment struct {
	text  string // of a literal
	param bool
}

// noPath is the rank of a rule without a path: behind every pattern.
const noPath = "\xff"

// parsePath reads a pattern as configuration writes it.
func parsePath(text string) (*pathPattern, error) {
	rest, ok := strings.CutPrefix(text, "/")
	if !ok || len(text) > maxPattern {
		return nil, fmt.Errorf("path %q: a path begins with / and has at most %d bytes", text, maxPattern)
	}
	p := &pathPattern{text: text}
	rank := make([]byte, 0, 8)
	for more := true; more; {
		var s string
		s, rest, more = strings.Cut(rest, "/")
		switch {
		case s == "*" && !more:
			p.rest = true
			rank = append(rank, 3)
			continue
		case strings.HasPrefix(s, ":") && len(s) > 1:
			p.segs = append(p.segs, segment{param: true})
			rank = append(rank, 2)
			continue
		case s == ":":
			return nil, fmt.Errorf("path %q: a : needs a name behind it, as in /users/:id", text)
		case strings.Contains(s, "*"):
			return nil, fmt.Errorf("path %q: a * is a whole segment and the last one, as in /v1/*", text)
		case s == "." || s == ".." || s == "" && more:
			return nil, fmt.Errorf("path %q: no request can have it, since paths are matched after . .. and // are resolved", text)
		}
		p.segs = append(p.segs, segment{text: s})
		rank = append(rank, 1)
	}
	p.rank = string(rank)
	return p, nil
}

// key is equal for two patterns that match the same paths.
func (p *pathPattern) key() string {
	var b strings.Builder
	for _, s := range p.segs {
		b.WriteByte('/')
		if s.param {
			b.WriteByte(':')
		} else {
			b.WriteString(s.text)
		}
	}
	if p.rest {
		b.WriteString("/*")
	}
	return b.String()
}

// pathOf is the path of a request target, nil when it has none ("*", an authority).
func pathOf(target []byte) []byte {
	if len(target) == 0 || target[0] != '/' {
		return nil
	}
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		return target[:i]
	}
	return target
}

// oddity is a set of things in a path that servers are known to read differently. As a reading, a set bit means that it
// is done and a clear bit that it is not.
type oddity uint16

const (
	cutHash      oddity = 1 << iota // what follows a # is dropped
	cutRawParam                     // ;... is dropped from a segment before it is decoded
	cutParam                        // ;... is dropped from a segment after it is decoded
	decodeTwice                     // %252f means %2f
	cutNUL                          // what follows a NUL is dropped
	splitEscaped                    // %2f separates segments
	splitBack                       // \ and %5c separate segments
	dropEmpty                       // // means /
	dropDots                        // . and .. are resolved
	dotsFirst                       // .. takes an empty segment away
)

// survey says what is odd about a path, and whether it has escapes at all. It may say too much, never too little.
func survey(path []byte) (odd oddity, escaped bool) {
	var dot bool // a dot stands somewhere
	for i := 0; i < len(path); i++ {
		switch path[i] {
		case '%':
			v, ok := unhex(path, i)
			if !ok || v == '%' {
				// What the first decoding leaves may be an escape for the second.
				if inner, ok := innerEscape(path, i, ok); ok {
					odd |= decodeTwice | oddEscape(inner)
					dot = true
				}
			}
			if !ok {
				continue
			}
			escaped = true
			odd |= oddEscape(v)
			dot = dot || v == '.'
			i += 2
		case ';':
			odd |= cutRawParam | cutParam
		case '\\':
			odd |= splitBack
		case '#':
			odd |= cutHash
		case 0: // the reader refuses it, but nothing here depends on that
			odd |= cutNUL
		case '/':
			if i+1 < len(path) && path[i+1] == '/' {
				odd |= dropEmpty
			}
		case '.':
			dot = true
			if i > 0 && path[i-1] == '/' && dotSegment(path[i:]) {
				odd |= dropDots
			}
		}
	}
	// What is dropped or split may leave empty segments and dots behind.
	if odd&^(dropEmpty|dropDots|cutHash|cutNUL) != 0 {
		odd |= dropEmpty
		if dot {
			odd |= dropDots
		}
	}
	if odd&(dropEmpty|dropDots) == dropEmpty|dropDots {
		odd |= dotsFirst
	}
	return odd, escaped
}

// oddEscape is what an escaped byte adds to a path's oddities.
func oddEscape(v byte) oddity {
	switch v {
	case '/':
		return splitEscaped
	case '\\':
		return splitBack
	case ';':
		return cutParam
	case 0:
		return cutNUL
	case '.':
		return dropDots
	}
	return 0
}

// innerEscape reads the escape that a second decoding would find at p[i], which is a bare % or, if escaped, %25. The
// digits of it may be escaped themselves.
func innerEscape(p []byte, i int, escaped bool) (byte, bool) {
	i++
	if escaped {
		i += 2
	}
	v := 0
	for range 2 {
		if i >= len(p) {
			return 0, false
		}
		c := p[i]
		i++
		if c == '%' {
			d, ok := unhexPair(p, i)
			if !ok {
				return 0, false
			}
			c = d
			i += 2
		}
		x := unhexByte(c)
		if x < 0 {
			return 0, false
		}
		v = v<<4 | x
	}
	return byte(v), true
}

// dotSegment reports whether p begins with a segment of one or two dots.
func dotSegment(p []byte) bool {
	n := 1
	if len(p) > 1 && p[1] == '.' {
		n = 2
	}
	return len(p) == n || p[n] == '/' || p[n] == ';' || p[n] == '%' || p[n] == '\\' || p[n] == '#'
}

// scratch is where odd paths and query values are decoded.
type scratch struct{ buf []byte }

// read returns the path as a server would see it that does what f says. It is valid until the next call.
func (s *scratch) read(path []byte, f oddity) []byte {
	if path == nil {
		return nil
	}
	if f&cutHash != 0 {
		path, _, _ = bytes.Cut(path, hashBytes)
	}
	s.buf = append(s.buf[:0], path...)
	p := s.buf
	if f&cutRawParam != 0 {
		p = cutParams(p)
	}
	p = decode(p, f)
	if f&decodeTwice != 0 {
		p = decode(p, f)
	}
	if f&cutNUL != 0 {
		if i := bytes.IndexByte(p, 0); i >= 0 {
			p = p[:i]
		}
	}
	if f&splitBack != 0 {
		for i := range p {
			if p[i] == '\\' {
				p[i] = '/'
			}
		}
	}
	if f&cutParam != 0 {
		p = cutParams(p)
	}
	if f&dotsFirst != 0 && f&dropDots != 0 {
		p = resolve(p)
	}
	if f&dropEmpty != 0 {
		p = collapse(p)
	}
	if f&dotsFirst == 0 && f&dropDots != 0 {
		p = resolve(p)
	}
	return p
}

var hashBytes = []byte("#")

// decode resolves escapes in place. An escaped slash stays as it is unless it separates; what is not an escape stays.
func decode(p []byte, f oddity) []byte {
	out := p[:0]
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '%' {
			if v, ok := unhex(p, i); ok && (v != '/' || f&splitEscaped != 0) {
				c = v
				i += 2
			}
		}
		out = append(out, c)
	}
	return out
}

// cutParams drops ;... from each segment, in place.
func cutParams(p []byte) []byte {
	out, cut := p[:0], false
	for _, c := range p {
		cut = c != '/' && (cut || c == ';')
		if !cut {
			out = append(out, c)
		}
	}
	return out
}

// collapse makes runs of slashes one, in place.
func collapse(p []byte) []byte {
	out := p[:0]
	for i, c := range p {
		if c != '/' || i == 0 || out[len(out)-1] != '/' {
			out = append(out, c)
		}
	}
	return out
}

// resolve takes out . and .. as RFC 3986 section 5.2.4 does, in place.
func resolve(p []byte) []byte {
	out := p[:0]
	for i := 0; i < len(p); {
		j := i + 1
		for j < len(p) && p[j] != '/' {
			j++
		}
		seg, last := p[i+1:j], j == len(p)
		switch {
		case len(seg) == 1 && seg[0] == '.':
		case len(seg) == 2 && seg[0] == '.' && seg[1] == '.':
			out = out[:max(bytes.LastIndexByte(out, '/'), 0)]
		default:
			out = append(out, p[i:j]...)
			i = j
			continue
		}
		if last {
			out = append(out, '/')
		}
		i = j
	}
	if len(out) == 0 {
		out = append(out, '/')
	}
	return out
}

// unhex reads the escape at p[i], which is a %.
func unhex(p []byte, i int) (byte, bool) { return unhexPair(p, i+1) }

func unhexPair(p []byte, i int) (byte, bool) {
	if i+1 >= len(p) {
		return 0, false
	}
	hi, lo := unhexByte(p[i]), unhexByte(p[i+1])
	if hi < 0 || lo < 0 {
		return 0, false
	}
	return byte(hi<<4 | lo), true
}

func unhexByte(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}
