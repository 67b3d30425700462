package preview

import (
	"strconv"
	"unicode"
	"unicode/utf8"
)

// A Page is what people see where an app does not serve. Everything in it is text.
type Page struct {
	Status  int
	Title   string
	Text    string   // a sentence
	Reason  string   // of the app's state; "" = it is not told
	Lines   []string // the last of the app's output, oldest first, as it came
	Route   string
	Request string // its id
}

// Policy is the Content-Security-Policy of a Page as HTML: nothing is loaded or run, and the one style sheet is ours.
const Policy = "default-src 'none'; style-src 'sha256-" + styleHash + "'; base-uri 'none'; form-action 'none'"

const (
	style = `:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:48em;margin:12vh auto;padding:0 1em}` +
		`h1{font-size:1.4em}small{opacity:.7}code,pre{font-family:ui-monospace,monospace}` +
		`pre{font-size:.85em;padding:1em;overflow-x:auto;border:1px solid #8886;border-radius:.4em;white-space:pre-wrap;overflow-wrap:anywhere}`
	styleHash = "+F8dfcJ2oqiMs9cfbfjnF1b1WG2DwScKFxEO5wID88o="
)

// bounds of what is shown of an app's output.
const (
	maxLines = 20
	maxLine  = 400 // characters
)

// HTML appends the page as HTML.
func (p *Page) HTML(b []byte) []byte {
	b = append(b, `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>`...)
	b = Escape(b, p.Title)
	b = append(append(append(b, `</title><style>`...), style...), `</style></head><body><h1>`...)
	b = Escape(b, p.Title)
	b = append(b, "</h1><p>"...)
	b = Escape(b, p.Text)
	b = append(b, "</p>"...)
	if p.Reason != "" {
		b = append(b, "<p><code>"...)
		b = Escape(b, Clean(p.Reason))
		b = append(b, "</code></p>"...)
	}
	if lines := p.lines(); len(lines) > 0 {
		b = append(b, "<p>Its last lines:</p><pre>"...)
		for _, l := range lines {
			b = append(Escape(b, Clean(l)), '\n')
		}
		b = append(b, "</pre>"...)
	}
	b = append(b, "<p><small>Route <code>"...)
	b = Escape(b, p.Route)
	b = append(b, "</code> &middot; Request <code>"...)
	b = Escape(b, p.Request)
	return append(b, "</code></small></p></body></html>\n"...)
}

// Plain appends the page as text.
func (p *Page) Plain(b []byte) []byte {
	b = strconv.AppendInt(b, int64(p.Status), 10)
	b = append(append(b, ' '), p.Title...)
	b = append(append(b, "\n\n"...), p.Text...)
	b = append(b, '\n')
	if p.Reason != "" {
		b = append(append(b, Clean(p.Reason)...), '\n')
	}
	if lines := p.lines(); len(lines) > 0 {
		b = append(b, "\nIts last lines:\n"...)
		for _, l := range lines {
			b = append(append(append(b, "  "...), Clean(l)...), '\n')
		}
	}
	b = append(append(b, "\nroute "...), p.Route...)
	return append(append(append(b, ", request "...), p.Request...), '\n')
}

func (p *Page) lines() []string {
	return p.Lines[max(0, len(p.Lines)-maxLines):]
}

// Escape appends s as text of a page in HTML.
func Escape(b []byte, s string) []byte {
	for _, r := range s {
		switch r {
		case '<':
			b = append(b, "&lt;"...)
		case '>':
			b = append(b, "&gt;"...)
		case '&':
			b = append(b, "&amp;"...)
		case '"':
			b = append(b, "&#34;"...)
		case '\'':
			b = append(b, "&#39;"...)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}

// Clean is a line as a terminal would leave it standing: without escape sequences, control characters, characters that turn
// the direction of text, and what was written over after a carriage return; at most 400 characters.
func Clean(line string) string {
	out := make([]rune, 0, min(len(line), maxLine))
	for i := 0; i < len(line); {
		r, n := utf8.DecodeRuneInString(line[i:])
		switch {
		case r == 0x1b || r == 0x9b:
			i += sequence(line[i:], n)
			continue
		case r == '\r':
			if i+1 < len(line) {
				out = out[:0]
			}
		case r == '\t':
			out = append(out, ' ')
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
		default:
			out = append(out, r)
		}
		i += n
		if len(out) >= maxLine {
			return string(append(out[:maxLine-1], '…'))
		}
	}
	return string(out)
}

// sequence is the length of the escape sequence that s begins with; its introducer has n bytes.
func sequence(s string, n int) int {
	i := n
	if s[0] == 0x1b {
		if i == len(s) {
			return i
		}
		switch c := s[i]; {
		case c == ']' || c == 'P' || c == '_' || c == '^' || c == 'X': // a string, up to BEL or ESC \
			return text(s, i+1)
		case c != '[':
			for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
				i++
			}
			return min(i+1, len(s))
		}
		i++
	}
	for i < len(s) && s[i] >= 0x20 && s[i] <= 0x3f {
		i++
	}
	return min(i+1, len(s))
}

func text(s string, i int) int {
	for ; i < len(s); i++ {
		if s[i] == 7 {
			return i + 1
		}
		if s[i] == 0x1b {
			if i+1 < len(s) && s[i+1] == '\\' {
				return i + 2
			}
			return i
		}
	}
	return i
}
