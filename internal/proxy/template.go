package proxy

import (
	"bytes"
	"strings"
)

// placeholder is one of the names that may stand in braces in a configured value.
type placeholder uint8

const (
	literal placeholder = iota
	theClientIP
	theHost
	thePath
	theQuery
	theRequestID
	theRoute
	theScheme
)

// placeholders are the names configuration knows. Anything else in braces stays as it was written.
var placeholders = map[string]placeholder{
	"client_ip": theClientIP, "host": theHost, "path": thePath, "query": theQuery,
	"request_id": theRequestID, "route": theRoute, "scheme": theScheme,
}

// A template is a configured value, cut at its placeholders once. What it yields never holds a control byte, whatever
// stood in the configuration or in the request, so that it can be sent as a field value.
type template struct {
	fixed []byte // the whole value, where no placeholder stands in it
	parts []part
}

type part struct {
	kind placeholder
	text []byte // of a literal
}

func compile(s string) template {
	var tp template
	var lit []byte
	for s != "" {
		i := strings.IndexByte(s, '{')
		if i < 0 {
			lit = appendClean(lit, []byte(s))
			break
		}
		lit = appendClean(lit, []byte(s[:i]))
		s = s[i:]
		end := strings.IndexByte(s, '}')
		kind, known := placeholder(0), false
		if end > 0 {
			kind, known = placeholders[s[1:end]]
		}
		if !known {
			lit = append(lit, '{')
			s = s[1:]
			continue
		}
		if len(lit) > 0 {
			tp.parts = append(tp.parts, part{text: lit})
			lit = nil
		}
		tp.parts = append(tp.parts, part{kind: kind})
		s = s[end+1:]
	}
	if len(tp.parts) == 0 {
		tp.fixed = bytes.Trim(lit, " ")
		return tp
	}
	if len(lit) > 0 {
		tp.parts = append(tp.parts, part{text: lit})
	}
	return tp
}

// value is the template filled in for t. It lives as long as the exchange.
func (tp *template) value(t *turn) []byte {
	if tp.parts == nil {
		return tp.fixed
	}
	n := len(t.ex.Scratch)
	for i := range tp.parts {
		t.ex.Scratch = tp.parts[i].append(t.ex.Scratch, t)
	}
	return bytes.Trim(t.ex.Scratch[n:len(t.ex.Scratch):len(t.ex.Scratch)], " ")
}

func (p *part) append(dst []byte, t *turn) []byte {
	switch p.kind {
	case theClientIP:
		return append(dst, t.clientText...)
	case theHost:
		return appendClean(dst, hostOf(t.ex.Req.Authority))
	case thePath:
		before, _, _ := bytes.Cut(t.ex.Req.Target, []byte{'?'})
		return appendClean(dst, before)
	case theQuery:
		_, after, _ := bytes.Cut(t.ex.Req.Target, []byte{'?'})
		return appendClean(dst, after)
	case theRequestID:
		return append(dst, t.ex.Log.ID...)
	case theRoute:
		return append(dst, t.r.Plan.Name...)
	case theScheme:
		return append(dst, schemeOf(t.ex)...)
	}
	return append(dst, p.text...)
}

// appendClean appends s without the bytes that no field value may hold.
func appendClean(dst, s []byte) []byte {
	start := 0
	for i, c := range s {
		if c >= 0x20 && c != 0x7f {
			continue
		}
		dst = append(dst, s[start:i]...)
		if c == '\t' {
			dst = append(dst, ' ')
		}
		start = i + 1
	}
	return append(dst, s[start:]...)
}

// isToken reports whether s can be a field name (RFC 9110 section 5.6.2).
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' {
			continue
		}
		if strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// hostOf is an authority without its port and without a trailing dot.
func hostOf(authority []byte) []byte {
	if i := bytes.LastIndexByte(authority, ':'); i >= 0 && bytes.IndexByte(authority[i:], ']') < 0 {
		authority = authority[:i]
	}
	if n := len(authority); n > 1 && authority[n-1] == '.' {
		authority = authority[:n-1]
	}
	return authority
}
