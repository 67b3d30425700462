package strict

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A TextReader is a leaf that is written as one scalar. It gets the text after expansion; an error is best a *Fault.
type TextReader interface{ ReadText(string) error }

// A NodeReader reads a value that has more than one shape.
type NodeReader interface{ ReadNode(*Reader, *yaml.Node) }

// A Defaulter gets its defaults before keys are read over them.
type Defaulter interface{ Defaults() }

// A Secret is a text that `file:PATH` may stand for.
type Secret string

// Options say how texts are read.
type Options struct {
	File   string                            // for places
	Env    func(string) (string, bool)       // for ${VAR}; nil: nothing is expanded
	Secret func(path string) (string, error) // for file:PATH; nil: refused
	Later  func(owner, key string) bool      // keys that are known, but not in this version
	Types  *Types                            // shared by readers that are used one after the other
	Budget *int                              // values read so far by all readers that share it
	Places map[string]Place                  // if set, learns where each leaf was read, and refuses a second time
}

// A Place is where something stands.
type Place struct {
	File      string
	Line, Col int
}

// maxNodes bounds what aliases can blow up.
const maxNodes = 3_000_000

// A Reader reads nodes into Go values. The zero Options are strict and closed: no variables, no files.
type Reader struct {
	Options
	Line     int // how many lines of the file stand before the nodes that are read
	Problems Problems
	Vars     map[string]*string // variables that were asked for and what they were
	path     []step
	field    *field // the key being read: its range and words
}

type step struct {
	key   string // "" for an index
	index int
}

// NewReader returns a reader at the root of a text.
func NewReader(o Options) *Reader {
	if o.Types == nil {
		o.Types = NewTypes()
	}
	if o.Budget == nil {
		o.Budget = new(int)
	}
	return &Reader{Options: o}
}

// In runs read with the path one key longer.
func (r *Reader) In(key string, read func()) {
	r.path = append(r.path, step{key: key})
	read()
	r.path = r.path[:len(r.path)-1]
}

// At runs read with the path one index longer.
func (r *Reader) At(index int, read func()) {
	r.path = append(r.path, step{index: index})
	read()
	r.path = r.path[:len(r.path)-1]
}

// Under runs read with the path longer by several keys and indexes ("[2]").
func (r *Reader) Under(path []string, read func()) {
	had := len(r.path)
	for _, p := range path {
		if n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(p, "["), "]")); err == nil && p[0] == '[' {
			r.path = append(r.path, step{index: n})
		} else {
			r.path = append(r.path, step{key: p})
		}
	}
	read()
	r.path = r.path[:had]
}

// Path is the path at which the reader is.
func (r *Reader) Path() string {
	var b strings.Builder
	for _, s := range r.path {
		switch {
		case s.key == "":
			b.WriteString("[" + strconv.Itoa(s.index) + "]")
		case strings.ContainsAny(s.key, ".:/[] "):
			b.WriteString("[" + strconv.Quote(s.key) + "]")
		default:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s.key)
		}
	}
	return b.String()
}

// Problem notes a mistake at a node.
func (r *Reader) Problem(n *yaml.Node, remedy, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{
		File: r.File, Line: n.Line + r.Line, Col: n.Column, Path: r.Path(), Message: fmt.Sprintf(format, args...), Remedy: remedy,
	})
}

// Read reads n into v, a pointer to a value that has its defaults.
func (r *Reader) Read(n *yaml.Node, v any) { r.read(n, reflect.ValueOf(v).Elem()) }

func (r *Reader) read(n *yaml.Node, v reflect.Value) {
	if *r.Budget++; *r.Budget > maxNodes {
		if *r.Budget == maxNodes+1 {
			r.Problem(n, "write less, or use fewer aliases", "more than %d values", maxNodes)
		}
		return
	}
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if v.CanAddr() {
		switch x := v.Addr().Interface().(type) {
		case NodeReader:
			x.ReadNode(r, n)
			return
		case TextReader:
			r.readText(n, x)
			return
		case *Secret:
			if s, ok := r.Text(n); ok {
				*x = r.secret(n, s)
			}
			return
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
			setDefaults(v.Elem())
		}
		r.read(n, v.Elem())
	case reflect.Struct:
		r.readStruct(n, v)
	case reflect.Slice:
		r.readSlice(n, v)
	case reflect.Map:
		r.readMap(n, v)
	case reflect.Interface: // kept, but not looked at
		v.Set(reflect.ValueOf(n))
	default:
		r.readScalar(n, v)
	}
}

func setDefaults(v reflect.Value) {
	if d, ok := v.Addr().Interface().(Defaulter); ok && v.IsZero() {
		d.Defaults()
	}
}

// Text is the text of a scalar after expansion. It notes a Problem and reports false when n is no scalar or has no value.
func (r *Reader) Text(n *yaml.Node) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		r.Problem(n, "write a single value", "a %s stands where a single value is wanted", kindName(n))
		return "", false
	case n.Tag == "!!null" && n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) == 0:
		r.Problem(n, "write a value or leave the key out", "there is no value")
		return "", false
	case n.Style&yaml.TaggedStyle != 0:
		r.Problem(n, "leave the tag out", "the YAML tag %s is not understood", n.Tag)
		return "", false
	}
	if r.Env == nil || !strings.Contains(n.Value, "${") {
		return n.Value, true
	}
	return r.expand(n)
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "map"
	case yaml.SequenceNode:
		return "list"
	}
	return "single value"
}

func (r *Reader) readText(n *yaml.Node, x TextReader) {
	if s, ok := r.Text(n); ok && r.once(n) {
		r.Fault(n, x.ReadText(s))
	}
}

// Fault notes the error of a ReadText, if it is one, and reports whether there was none.
func (r *Reader) Fault(n *yaml.Node, err error) bool {
	if err == nil {
		return true
	}
	message, remedy := Say(err)
	r.Problem(n, remedy, "%s", message)
	return false
}

// once notes the place of a leaf and reports whether it may be read: it may be written in one file only.
func (r *Reader) once(n *yaml.Node) bool {
	if r.Places == nil {
		return true
	}
	p := r.Path()
	if old, ok := r.Places[p]; ok {
		r.Problem(n, "keep one of the two", "also set at %s:%d:%d", old.File, old.Line, old.Col)
		return false
	}
	r.Places[p] = Place{File: r.File, Line: n.Line + r.Line, Col: n.Column}
	return true
}

func (r *Reader) readScalar(n *yaml.Node, v reflect.Value) {
	s, ok := r.Text(n)
	if !ok || !r.once(n) {
		return
	}
	f := r.field
	if f == nil {
		f = &field{max: math.MaxInt32}
	}
	switch v.Kind() {
	case reflect.String:
		if f.words != nil && !slices.Contains(f.words, s) {
			r.Word(n, s, f.words)
			return
		}
		v.SetString(s)
	case reflect.Bool:
		switch s {
		case "true", "True", "TRUE":
			v.SetBool(true)
		case "false", "False", "FALSE":
			v.SetBool(false)
		default:
			r.Problem(n, "write true or false", "%q is not a yes or no", cut(s))
		}
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(s, 10, 64)
		switch {
		case err != nil:
			r.Problem(n, fmt.Sprintf("write a whole number from %d to %d", f.min, f.max), "%q is not a whole number", cut(s))
		case i < f.min || i > f.max:
			r.Problem(n, fmt.Sprintf("write a number from %d to %d", f.min, f.max), "%d is out of range", i)
		default:
			v.SetInt(i)
		}
	default:
		panic("strict: cannot read into " + v.Type().String())
	}
}

// Word notes that s is none of the words.
func (r *Reader) Word(n *yaml.Node, s string, words []string) {
	if f := r.field; f != nil && r.Later != nil && r.Later(f.owner, f.name+"="+s) {
		r.Problem(n, "write "+choice(words), "%s is not in this version", s)
		return
	}
	remedy := "write " + choice(words)
	if near := Nearest(s, words); near != "" {
		remedy = "write " + near
	}
	r.Problem(n, remedy, "%q is not known here", cut(s))
}

// choice is "a, b or c".
func choice(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func (r *Reader) readSlice(n *yaml.Node, v reflect.Value) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		r.Problem(n, "write [ ] around it", "a %s stands where a list is wanted", kindName(n))
		return
	}
	if r.Places == nil {
		v.SetZero()
	} else if _, again := r.Places[r.Path()]; !again {
		v.SetZero() // several files add to one list; its default is not part of it
		r.Places[r.Path()] = Place{File: r.File, Line: n.Line + r.Line, Col: n.Column}
	}
	from := v.Len()
	v.Grow(len(n.Content))
	v.SetLen(from + len(n.Content))
	for i, item := range n.Content {
		r.path = append(r.path, step{index: from + i})
		r.tagged(item, v.Index(from+i))
		r.path = r.path[:len(r.path)-1]
	}
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Style == 0
}

// tagged reads an element of a list or map; structs among them get their defaults.
func (r *Reader) tagged(n *yaml.Node, v reflect.Value) {
	setDefaults(v)
	r.read(n, v)
}

func (r *Reader) readMap(n *yaml.Node, v reflect.Value) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.Problem(n, "write key: value", "a %s stands where a map is wanted", kindName(n))
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMapWithSize(v.Type(), len(n.Content)/2))
	}
	for key, value := range r.pairs(n) {
		name, ok := r.Text(key)
		if !ok {
			continue
		}
		r.path = append(r.path, step{key: name})
		item := reflect.New(v.Type().Elem()).Elem()
		r.tagged(value, item)
		v.SetMapIndex(reflect.ValueOf(name), item)
		r.path = r.path[:len(r.path)-1]
	}
}

func (r *Reader) readStruct(n *yaml.Node, v reflect.Value) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.Problem(n, "write its keys: "+strings.Join(r.Types.of(v.Type()).names, ", "), "a %s stands where a map is wanted", kindName(n))
		return
	}
	if r.Places != nil {
		if p := r.Path(); r.Places[p] == (Place{}) {
			r.Places[p] = Place{File: r.File, Line: n.Line + r.Line, Col: n.Column}
		}
	}
	fields := r.Types.of(v.Type())
	for key, value := range r.pairs(n) {
		f, ok := fields.byName[key.Value]
		r.path = append(r.path, step{key: key.Value})
		if !ok {
			r.unknown(fields, key)
		} else {
			r.field = f
			r.read(value, v.Field(f.index))
		}
		r.path = r.path[:len(r.path)-1]
	}
}

func (r *Reader) unknown(f *fields, key *yaml.Node) {
	if r.Later != nil && r.Later(f.name, key.Value) {
		r.Problem(key, "leave it out", "%s is not in this version", key.Value)
		return
	}
	if near := Nearest(key.Value, f.names); near != "" {
		r.Problem(key, "write "+near, "there is no key %q here", cut(key.Value))
		return
	}
	for _, name := range f.names {
		if slices.Contains(f.byName[name].inner, key.Value) {
			r.Problem(key, "write it under "+name, "there is no key %q here", cut(key.Value))
			return
		}
	}
	r.Problem(key, "the keys are "+strings.Join(f.names, ", "), "there is no key %q here", cut(key.Value))
}
