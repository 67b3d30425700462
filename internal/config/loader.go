package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/form"
	"github.com/quaymaster/quaymaster/internal/config/strict"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// A Loader makes plans and remembers the pieces they were made of, so that the next load reads only what changed. It is
// used by one goroutine at a time.
type Loader struct {
	Env func(string) (string, bool) // for ${VAR}; os.LookupEnv unless set

	types  *strict.Types
	whole  bool // parse every file whole: what pieces are tested against
	loads  uint64
	scope  scope
	pieces map[pieceKey]*item
	// What the last plan held, by name: an object that was built again and came out equal is replaced by these.
	routes    map[string]*plan.Route
	upstreams map[string]*plan.Upstream
	ports     map[plan.Addr]*plan.Port
}

// pieceKey is a piece of text and where it stands. The same text in another folder or section means something else.
type pieceKey struct{ dir, section, text string }

// NewLoader returns a loader that remembers nothing yet.
func NewLoader() *Loader {
	return &Loader{Env: os.LookupEnv, types: strict.NewTypes(), pieces: map[pieceKey]*item{}}
}

// sections are cut at their items.
var sections = strict.Sections{"routes": yaml.SequenceNode, "sites": yaml.MappingNode, "upstreams": yaml.MappingNode}

// breath is how many items are worked on before others may run.
const breath = 100

// load is one load under way.
type load struct {
	*Loader
	file     form.File
	places   map[string]strict.Place // where the keys of file were written
	refs     []ref
	errs     Errors
	warnings []Warning
	work     int
}

// ref is an item in its file.
type ref struct {
	file  string
	dir   string
	piece strict.Piece
	layer plan.Source
	*item
}

// pos is a place of an item in its file.
func (r *ref) pos(s spot) plan.Pos {
	return plan.Pos{File: r.file, Line: s.line + r.piece.Line, Col: s.col}
}

// path is the path of an item for errors.
func (r *ref) path() []string {
	p := &r.piece
	if p.Key != nil {
		return []string{p.Section, p.Key.Value}
	}
	return []string{p.Section, fmt.Sprintf("[%d]", p.Index)}
}

func (l *load) breathe() {
	if l.work++; l.work%breath == 0 {
		runtime.Gosched()
	}
}

// Load makes one plan of the files and the API layer, which may be nil. The error is Errors.
func (l *Loader) Load(sources []Source, layer *Layer) (*plan.Plan, []Warning, error) {
	l.loads++
	ld := &load{Loader: l, places: map[string]strict.Place{}}
	ld.file.Defaults()
	for _, s := range sources {
		ld.read(s)
	}
	if now := (scope{ld.file.Bind, ld.file.Timeouts}); !reflect.DeepEqual(now, l.scope) {
		l.scope = now
		clear(l.pieces)
		for i := range ld.refs { // found before it was known that they do not hold any more
			if r := &ld.refs[i]; r.item != nil {
				r.item = nil
				r.piece.Parse()
			}
		}
	}
	ld.addLayer(layer)
	for i := range ld.refs {
		ld.build(&ld.refs[i])
		ld.breathe()
	}
	p := ld.assemble()
	if len(ld.errs) > 0 {
		return nil, ld.warnings, ld.errs.Sort()
	}
	l.remember(p)
	return p, ld.warnings, nil
}

// remember keeps what the next load compares with, and lets go of pieces that were not used for a while.
func (l *Loader) remember(p *plan.Plan) {
	l.routes = make(map[string]*plan.Route, len(p.Routes))
	for _, r := range p.Routes {
		l.routes[r.Name] = r
	}
	l.upstreams = make(map[string]*plan.Upstream, len(p.Upstreams))
	for _, u := range p.Upstreams {
		l.upstreams[u.Name] = u
	}
	l.ports = make(map[plan.Addr]*plan.Port, len(p.Ports))
	for _, port := range p.Ports {
		l.ports[port.Addr] = port
	}
	if len(l.pieces) > 2*len(p.Routes)+len(p.Upstreams)+1000 {
		maps.DeleteFunc(l.pieces, func(_ pieceKey, it *item) bool { return it.used != l.loads })
	}
}

// read takes the single keys of a file into the form and notes its items.
func (l *load) read(s Source) {
	dir, err := filepath.Abs(filepath.Dir(s.Name))
	if err != nil {
		dir = "" // relative paths are then refused
	}
	pieces, cut := []strict.Piece(nil), false
	if !l.whole {
		pieces, cut = strict.Cut(s.Bytes, sections)
	}
	for i := 0; cut && i < len(pieces); i++ {
		if p := &pieces[i]; !p.Item {
			cut = p.Parse() // the judge of whether the cuts were right; items are judged below
		}
	}
	from := len(l.refs)
	if cut && l.items(s, dir, pieces) {
		l.keys(s, dir, pieces)
		return
	}
	l.refs = l.refs[:from]
	r := strict.NewReader(l.options(s.Name))
	pieces = r.Whole(s.Bytes, sections)
	l.errs = append(l.errs, r.Problems...)
	for _, p := range pieces {
		if p.Item {
			l.refs = append(l.refs, ref{file: s.Name, dir: dir, piece: p, layer: plan.FromFile})
		}
	}
	l.keys(s, dir, pieces)
}

// items notes the items among the pieces and finds those that an earlier load has built. It reports false when a new one
// does not parse by itself or stands twice: then the file must be parsed whole.
func (l *load) items(s Source, dir string, pieces []strict.Piece) bool {
	l.refs = slices.Grow(l.refs, len(pieces))
	seen := map[[2]string]bool{}
	for _, p := range pieces {
		l.breathe()
		if !p.Item {
			continue
		}
		it := l.pieces[pieceKey{dir, p.Section, string(p.Text)}]
		if it != nil && !it.valid(l.Env) {
			it = nil
		}
		if it == nil && !p.Parse() {
			return false
		}
		if sections[p.Section] == yaml.MappingNode {
			if it != nil {
				p.Key = it.entry
			}
			if entry := [2]string{p.Section, p.Key.Value}; seen[entry] {
				return false
			} else {
				seen[entry] = true
			}
		}
		l.refs = append(l.refs, ref{file: s.Name, dir: dir, piece: p, layer: plan.FromFile, item: it})
	}
	return true
}

// valid reports whether the variables that the item was built with are the same.
func (it *item) valid(env func(string) (string, bool)) bool {
	for name, was := range it.vars {
		value, ok := env(name)
		if ok != (was != nil) || ok && value != *was {
			return false
		}
	}
	return true
}

func (l *load) options(file string) strict.Options {
	return strict.Options{File: file, Env: l.Env, Later: later, Types: l.types}
}

// keys reads the pieces that are not items into the form.
func (l *load) keys(s Source, dir string, pieces []strict.Piece) {
	o := l.options(s.Name)
	o.Places = l.places
	r := strict.NewReader(o)
	for _, p := range pieces {
		if p.Item {
			continue
		}
		r.Line = p.Line
		for _, part := range r.Split(p, sections) {
			if part.Item { // a section in flow style, which Cut leaves whole
				l.refs = append(l.refs, ref{file: s.Name, dir: dir, piece: part, layer: plan.FromFile})
				continue
			}
			r.Read(&yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{p.Key, p.Value}, Line: p.Key.Line, Column: p.Key.Column}, &l.file)
			l.noteOlder(&p, s.Name)
		}
	}
	l.errs = append(l.errs, r.Problems...)
	l.resolve(dir)
}

// noteOlder warns about a key of the older form that does nothing.
func (l *load) noteOlder(p *strict.Piece, file string) {
	if instead, ok := olderForm[p.Section]; ok {
		l.warnings = append(l.warnings, Warning{Error: Error{
			File: file, Line: p.Key.Line + p.Line, Col: p.Key.Column, Path: p.Section,
			Message: "it is accepted and does nothing here", Remedy: instead,
		}})
	}
}

// resolve makes the paths of a file's keys absolute. It runs after each file, since each has its own folder.
func (l *load) resolve(dir string) {
	for _, p := range []*string{&l.file.StateDir, &l.file.Admin.Socket, &l.file.Admin.TokenFile, &l.file.Log.Access.File} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// addLayer notes the routes of the API.
func (l *load) addLayer(layer *Layer) {
	if layer == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(layer.Routes)) {
		var text bytes.Buffer
		if err := json.Compact(&text, layer.Routes[name]); err != nil {
			text.Reset()
			text.Write(layer.Routes[name])
		}
		p := strict.Piece{Section: "api", Text: text.Bytes()}
		p.Key = &yaml.Node{Kind: yaml.ScalarNode, Value: name}
		r := ref{file: "api", piece: p, layer: plan.FromAPI, item: l.pieces[pieceKey{"", "api", text.String()}]}
		if r.item == nil {
			var doc yaml.Node
			if err := yaml.Unmarshal(text.Bytes(), &doc); err != nil || len(doc.Content) != 1 {
				l.errs = append(l.errs, Error{File: "api", Path: "api." + name, Message: "the stored route cannot be read", Remedy: "put it again, or delete it"})
				continue
			}
			r.piece.Value = doc.Content[0]
		}
		l.refs = append(l.refs, r)
	}
}

// build reads and builds an item unless an earlier load did.
func (l *load) build(r *ref) {
	if r.item != nil {
		r.used = l.loads
		return
	}
	o := l.options(r.file)
	if r.layer == plan.FromAPI {
		o.Env = nil
	}
	reader := strict.NewReader(o)
	reader.Line = r.piece.Line
	r.item = &item{used: l.loads, entry: r.piece.Key}
	b := &builder{scope: &l.scope, r: reader, root: r.piece.Value, dir: r.dir, it: r.item}
	reader.Under(r.path(), func() { b.item(r) })
	r.vars = reader.Vars
	if len(reader.Problems) == 0 {
		if r.piece.Text != nil {
			l.pieces[pieceKey{r.dir, r.piece.Section, string(r.piece.Text)}] = r.item
		}
		return
	}
	l.errs = append(l.errs, reader.Problems...)
}
