package strict

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// A Piece is a part of a file that can be read alone: a top-level key with its value, or one item of a top-level list or
// map that is cut. Nodes of a piece count lines from 1; Line is how many lines of the file stand before it.
type Piece struct {
	Section string // the top-level key
	Item    bool   // an item of the section, not the section itself
	Index   int    // of an item in a list
	Line    int
	Text    []byte     // nil when the piece was found by parsing more than itself
	Key     *yaml.Node // the top-level key, or of an item in a map the item's key; nil for an item in a list
	Value   *yaml.Node
}

// Sections are the top-level keys whose values are cut at their items: lists (SequenceNode) and maps (MappingNode).
type Sections map[string]yaml.Kind

// Cut finds the pieces of a text without parsing it. It reports false where the text must be parsed whole: it cuts only
// what it is sure of. It is still not the judge: a piece that Parse refuses means that the whole must be parsed.
//
// Why that is enough: a quoted text, a flow list or a flow map that runs over a cut leaves an open end, which does not
// parse; and the lines of a plain or block text are indented deeper than any line at which is cut.
//
// It calls yield for each line.
func Cut(text []byte, sections Sections, yield func()) ([]Piece, bool) {
	c := cutter{sections: sections, seen: map[string]bool{}}
	for start := 0; start < len(text); c.line++ {
		end := len(text)
		if i := bytes.IndexByte(text[start:], '\n'); i >= 0 {
			end = start + i + 1
		}
		if line := text[start:end]; odd(line) || !c.take(line, start) {
			return nil, false
		}
		start = end
		yield()
	}
	return c.end(text, yield), true
}

// odd finds in a line, its end included, what makes lines or indentation mean something else than they look like, and
// what the parser refuses even in a comment that no piece holds.
func odd(text []byte) bool {
	if !utf8.Valid(text) {
		return true
	}
	for i, c := range text {
		switch {
		case c == '\n':
		case c == '&': // an anchor?
			if i == 0 || strings.IndexByte(" \t\r\n[{,:-?", text[i-1]) >= 0 {
				return true
			}
		case c == '\r':
			if i+1 == len(text) || text[i+1] != '\n' {
				return true
			}
		case c < ' ' && c != '\t', c == 0x7f, c == 0xc2 && text[i+1] < 0xa0: // control characters; U+0085 breaks lines
			return true
		case c == 0xe2 && text[i+1] == 0x80 && text[i+2]|1 == 0xa9: // U+2028 and U+2029 break lines
			return true
		case c == 0xef && (text[i+1] == 0xbb || text[i+1] == 0xbf): // byte order marks, and what is no letter
			return true
		}
	}
	return false
}

type cutter struct {
	sections Sections
	seen     map[string]bool
	begun    bool // --- was seen
	line     int
	section  string    // the top-level key we are in
	kind     yaml.Kind // how it is cut; 0: not at all
	column   int       // of its items; -1: none seen yet
	index    int
	found    [][]found // in chunks: to copy a growing list of thousands would be a long stretch without a yield
}

// found is a piece and where it starts.
type found struct {
	piece Piece
	start int
}

const chunk = 256

var topKey = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_-]*):(?:[ \t]+(.*))?$`)

func (c *cutter) take(line []byte, at int) bool {
	line = bytes.TrimRight(line, "\r\n")
	rest := bytes.TrimLeft(line, " ")
	col := len(line) - len(rest)
	switch {
	case len(rest) == 0:
		return true
	case rest[0] == '\t':
		return false
	case rest[0] == '#':
		return true
	}
	dash := rest[0] == '-' && (len(rest) == 1 || rest[1] == ' ')
	if col == 0 && !dash {
		return c.top(line, at)
	}
	if c.section == "" {
		return false
	}
	if c.kind == 0 {
		return true
	}
	if c.column < 0 {
		c.column = col
		if c.kind == yaml.SequenceNode && !dash || c.kind == yaml.MappingNode && dash {
			return false
		}
	}
	switch {
	case col > c.column:
		return true
	case col < c.column:
		return false
	case c.kind == yaml.MappingNode && dash: // a list that is not indented deeper than its key
		return true
	case c.kind == yaml.SequenceNode && !dash:
		return false
	}
	c.open(at, true)
	return true
}

func (c *cutter) top(line []byte, at int) bool {
	if string(line) == "---" && len(c.seen) == 0 && !c.begun {
		c.begun = true
		return true
	}
	m := topKey.FindSubmatch(line)
	if m == nil || c.seen[string(m[1])] {
		return false
	}
	c.section = string(m[1])
	c.seen[c.section] = true
	c.kind, c.column, c.index = c.sections[c.section], -1, -1
	if value := bytes.TrimSpace(m[2]); len(value) > 0 && value[0] != '#' {
		c.kind = 0
	}
	c.open(at, false)
	return true
}

func (c *cutter) open(at int, item bool) {
	if item {
		c.index++
	}
	if n := len(c.found); n == 0 || len(c.found[n-1]) == chunk {
		c.found = append(c.found, make([]found, 0, chunk))
	}
	last := &c.found[len(c.found)-1]
	*last = append(*last, found{Piece{Section: c.section, Item: item, Index: max(c.index, 0), Line: c.line}, at})
}

// end gives each piece its text, up to where the next one starts. The bare head of a section with items is no piece.
func (c *cutter) end(text []byte, yield func()) []Piece {
	out := make([]Piece, 0, len(c.found)*chunk)
	for i, list := range c.found {
		for j, f := range list {
			yield()
			p, end := f.piece, len(text)
			next := list[j+1:]
			if len(next) == 0 && i+1 < len(c.found) {
				next = c.found[i+1]
			}
			if len(next) > 0 {
				end = next[0].start
				if n := &next[0].piece; !p.Item && n.Item && n.Section == p.Section {
					continue
				}
			}
			p.Text = text[f.start:end]
			out = append(out, p)
		}
	}
	return out
}

// Parse reads a piece that Cut found. It reports false when the whole must be parsed instead.
func (p *Piece) Parse() bool {
	var doc yaml.Node
	if err := yaml.Unmarshal(p.Text, &doc); err != nil || len(doc.Content) != 1 {
		return false
	}
	n := doc.Content[0]
	switch {
	case n.Style&yaml.FlowStyle != 0: // what comes behind its end would be lost
		return false
	case n.Kind == yaml.MappingNode && len(n.Content) == 2:
		p.Key, p.Value = n.Content[0], n.Content[1]
		return p.Key.Kind == yaml.ScalarNode && p.Key.Tag != "!!merge"
	case n.Kind == yaml.SequenceNode && len(n.Content) == 1 && p.Item:
		p.Value = n.Content[0]
		return true
	}
	return false
}

// ParseAll parses adjacent items of one section together, which costs less than one by one. It reports false when they
// must be parsed otherwise, and then leaves them as they were. It calls yield now and then.
func ParseAll(pieces []Piece, yield func()) bool {
	if len(pieces) == 0 {
		return true
	}
	first, size := &pieces[0], 0
	for i := range pieces {
		size += len(pieces[i].Text)
	}
	if cap(first.Text) < size {
		return false
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(breather{bytes.NewReader(first.Text[:size]), yield}) // they are adjacent in their file
	if err := dec.Decode(&doc); err != nil || len(doc.Content) != 1 {
		return false
	}
	step, n := 1, doc.Content[0]
	if n.Kind == yaml.MappingNode {
		step = 2
	}
	if len(n.Content) != step*len(pieces) || n.Style&yaml.FlowStyle != 0 {
		return false
	}
	for i := range pieces { // each item begins in its own piece
		line := n.Content[i*step].Line + first.Line
		if line <= pieces[i].Line || i+1 < len(pieces) && line > pieces[i+1].Line {
			return false
		}
	}
	for i := range pieces {
		if step == 2 {
			pieces[i].Key = n.Content[2*i]
			if pieces[i].Key.Kind != yaml.ScalarNode || pieces[i].Key.Tag == "!!merge" {
				return false
			}
		}
		pieces[i].Value = n.Content[i*step+step-1]
		down(pieces[i].Key, pieces[i].Line-first.Line)
		down(pieces[i].Value, pieces[i].Line-first.Line)
	}
	return true
}

// down makes the lines of nodes count from the beginning of their own piece.
func down(n *yaml.Node, lines int) {
	if n == nil || lines == 0 {
		return
	}
	n.Line -= lines
	for _, c := range n.Content {
		down(c, lines)
	}
}

// Split returns the items of a section that was read whole, or the piece itself.
func (r *Reader) Split(p Piece, sections Sections) []Piece {
	kind, value := sections[p.Section], p.Value
	for value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	if p.Item || kind == 0 || value.Kind != kind || len(value.Content) == 0 {
		return []Piece{p}
	}
	var out []Piece
	item := Piece{Section: p.Section, Item: true, Line: p.Line}
	if kind == yaml.SequenceNode {
		for i, n := range value.Content {
			item.Index, item.Value = i, n
			out = append(out, item)
		}
		return out
	}
	r.In(p.Section, func() {
		for k, v := range r.pairs(value) {
			item.Key, item.Value = k, v
			out = append(out, item)
			item.Index++
		}
	})
	return out
}

// breather reads a text and calls yield before each few hundred bytes.
type breather struct {
	*bytes.Reader
	yield func()
}

func (b breather) Read(p []byte) (int, error) {
	b.yield()
	return b.Reader.Read(p[:min(len(p), 256)])
}

// Whole parses a text whole and returns the same pieces that Cut would, already parsed. It calls yield now and then.
func (r *Reader) Whole(text []byte, sections Sections, yield func()) []Piece {
	dec := yaml.NewDecoder(breather{bytes.NewReader(text), yield})
	var doc, second yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if err = dec.Decode(&second); err == nil {
			r.Problem(&second, "keep one of them, or use -c DIR with several files", "there is a second document in the file")
			return nil
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.Problems = append(r.Problems, syntax(r.File, text, err))
		return nil
	}
	root := doc.Content[0]
	for root.Kind == yaml.AliasNode {
		root = root.Alias
	}
	if isNull(root) {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		r.Problem(root, "write key: value", "a %s stands where the keys of a configuration are wanted", kindName(root))
		return nil
	}
	var out []Piece
	for k, v := range r.pairs(root) {
		out = append(out, r.Split(Piece{Section: k.Value, Key: k, Value: v}, sections)...)
	}
	return out
}

var lineOf = regexp.MustCompile(`^yaml: (?:unmarshal errors:\n\s*)?(?:line (\d+): )?`)

// syntax turns what the parser says into a problem. The parser tells no column: it is that of the line's first letter.
func syntax(file string, text []byte, err error) Problem {
	p := Problem{File: file, Line: 1, Col: 1, Message: err.Error()}
	m := lineOf.FindStringSubmatch(p.Message)
	if m != nil {
		p.Message = strings.TrimPrefix(p.Message, m[0])
		if n, err := strconv.Atoi(m[1]); err == nil && n > 0 {
			p.Line = n
		}
	}
	if lines := bytes.SplitN(text, []byte("\n"), p.Line+1); p.Line <= len(lines) {
		line := lines[p.Line-1]
		p.Col = 1 + len(line) - len(bytes.TrimLeft(line, " \t"))
		if bytes.HasPrefix(bytes.TrimLeft(line, " "), []byte("\t")) {
			p.Message, p.Remedy = "the line is indented with a tab", "indent with spaces"
			return p
		}
	}
	p.Message = "this is not YAML: " + cut(p.Message)
	p.Remedy = "check the indentation here and above, and quote texts that hold : # { [ * & % @ or a leading quote"
	return p
}
