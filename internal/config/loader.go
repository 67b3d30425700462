package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
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
	oldApps   map[string]*plan.App
	certs     map[wantKey]*plan.Certificate
	named     map[plan.CertSource][]string // the names in files, as they were last read
}

// pieceKey is a piece of text and where it stands. The same text in another folder or section means something else.
type pieceKey struct{ dir, section, text string }

// NewLoader returns a loader that remembers nothing yet.
func NewLoader() *Loader {
	return &Loader{Env: os.LookupEnv, types: strict.NewTypes(), pieces: map[pieceKey]*item{}, named: map[plan.CertSource][]string{}}
}

// sections are cut at their items.
var sections = strict.Sections{"routes": yaml.SequenceNode, "sites": yaml.MappingNode, "upstreams": yaml.MappingNode}

// load is one load under way.
type load struct {
	*Loader
	file     form.File
	places   map[string]strict.Place // where the keys of file were written
	refs     []ref
	apiApps  map[string]form.App // of the API layer
	shown    *plan.Previews      // where apps are shown; nil: none is
	errs     Errors
	warnings []Warning
	labelled *labelled // what containers ask for
	breath   plan.Breath
	budget   int // values read so far
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

func (l *load) breathe() { l.breath.Take() }

// Load makes one plan of the files and the API layer, which may be nil. The error is Errors.
func (l *Loader) Load(sources []Source, layer *Layer) (*plan.Plan, []Warning, error) {
	p, warnings, _, err := l.LoadWith(sources, layer, nil)
	return p, warnings, err
}

// once makes a plan of everything, or all mistakes.
func (l *Loader) once(sources []Source, layer *Layer, asked *labelled) (*plan.Plan, []Warning, error) {
	whole := make([]bool, len(sources))
	ld := l.begin()
	for i := ld.read(sources, whole, layer); i >= 0; i = ld.read(sources, whole, layer) {
		whole[i] = true
		ld.breath.End()
		ld = l.begin()
	}
	defer ld.breath.End()
	ld.labelled = asked
	p := ld.assemble()
	if len(ld.errs) > 0 {
		return nil, ld.warnings, ld.errs.Sort()
	}
	ld.remember(p)
	return p, ld.warnings, nil
}

func (l *Loader) begin() *load {
	ld := &load{Loader: l, places: map[string]strict.Place{}}
	ld.file.Defaults()
	return ld
}

// read reads all sources into the form and the items. It returns the index of a file that cannot be read in pieces: then
// begin again, with that one whole; -1 is well.
func (l *load) read(sources []Source, whole []bool, layer *Layer) int {
	files := make([]part, len(sources))
	for i, s := range sources {
		if !l.pick(&files[i], s, whole[i] || l.whole) {
			return i
		}
	}
	if now := l.now(); !reflect.DeepEqual(now, l.scope) {
		l.scope = now
		clear(l.pieces)
	}
	for i := range files {
		if !l.items(&files[i]) {
			return i
		}
	}
	l.addLayer(layer)
	return -1
}

// now is what items are built under.
func (l *load) now() scope {
	f := l.section()
	return scope{bind: l.file.Bind, timeouts: l.file.Timeouts, web: webPort(f), secure: tlsPort(f)}
}

// remember keeps what the next load compares with, and lets go of pieces that were not used for a while.
func (l *load) remember(p *plan.Plan) {
	l.routes = make(map[string]*plan.Route, len(p.Routes))
	for _, r := range p.Routes {
		l.breathe()
		l.routes[r.Name] = r
	}
	l.upstreams = make(map[string]*plan.Upstream, len(p.Upstreams))
	for _, u := range p.Upstreams {
		l.breathe()
		l.upstreams[u.Name] = u
	}
	l.ports = make(map[plan.Addr]*plan.Port, len(p.Ports))
	for _, port := range p.Ports {
		l.breathe()
		l.ports[port.Addr] = port
	}
	l.oldApps = make(map[string]*plan.App, len(p.Apps))
	for _, a := range p.Apps {
		l.breathe()
		l.oldApps[a.Name] = a
	}
	l.certs = make(map[wantKey]*plan.Certificate, len(p.Certificates))
	for _, c := range p.Certificates {
		l.breathe()
		l.certs[certKey(c)] = c
	}
	maps.DeleteFunc(l.named, func(src plan.CertSource, _ []string) bool { return l.certs[wantKey{src, ""}] == nil })
	if len(l.pieces) > 2*len(p.Routes)+len(p.Upstreams)+1000 {
		maps.DeleteFunc(l.pieces, func(_ pieceKey, it *item) bool {
			l.breathe()
			return it.used != l.loads
		})
	}
}

// part is one file of a load.
type part struct {
	name, dir string
	pieces    []strict.Piece // the items; the single keys are in the form already
}

// pick reads the single keys of a file into the form and leaves the items. It reports false when one does not parse by
// itself.
func (l *load) pick(f *part, s Source, whole bool) bool {
	f.name = s.Name
	var err error
	if f.dir, err = filepath.Abs(filepath.Dir(s.Name)); err != nil {
		f.dir = "" // relative paths are then refused
	}
	o := l.options(s.Name)
	o.Places = l.places
	r := strict.NewReader(o)
	pieces, cut := []strict.Piece(nil), false
	if !whole {
		pieces, cut = strict.Cut(s.Bytes, sections, l.breathe)
	}
	if !cut {
		pieces = r.Whole(s.Bytes, sections, l.breathe)
	}
	f.pieces = pieces[:0] // the items among them, moved up: a long list is not copied
	for _, p := range pieces {
		l.breathe()
		if p.Item {
			f.pieces = append(f.pieces, p)
			continue
		}
		if p.Value == nil && !p.Parse() {
			return false
		}
		r.Line = p.Line
		if items := r.Split(p, sections); len(items) != 1 || items[0].Item { // a section in flow style, which Cut leaves whole
			f.pieces = slices.Concat(f.pieces, items)
		} else {
			r.Read(&yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{p.Key, p.Value}, Line: p.Key.Line, Column: p.Key.Column}, &l.file)
			l.noteOlder(&p, s.Name)
		}
	}
	l.errs = append(l.errs, r.Problems...)
	l.resolve(f.dir)
	return true
}

// items finds the items that an earlier load has built and builds the others. It reports false when one does not parse by
// itself or stands twice: then the file must be parsed whole.
func (l *load) items(f *part) bool {
	room := len(f.pieces)
	for i := range f.pieces {
		if f.pieces[i].Section == "sites" { // it may bring a redirect
			room++
		}
	}
	l.refs = slices.Grow(l.refs, room)
	from := len(l.refs)
	for _, p := range f.pieces {
		l.breathe()
		r := ref{file: f.name, dir: f.dir, piece: p, layer: plan.FromFile}
		if p.Text != nil {
			r.item = l.known(pieceKey{f.dir, p.Section, string(p.Text)})
		}
		if r.item != nil {
			r.piece.Key = r.entry
		}
		l.refs = append(l.refs, r)
	}
	seen := map[[2]string]bool{}
	for i := from; i < len(l.refs); i++ {
		r := &l.refs[i]
		l.breathe()
		if r.item == nil && r.piece.Value == nil && !l.parse(f, i-from) {
			return false
		}
		if key := r.piece.Key; key != nil {
			if at := [2]string{r.piece.Section, key.Value}; !seen[at] {
				seen[at] = true
			} else if r.piece.Text != nil {
				return false
			}
		}
		l.build(r)
	}
	return true
}

// together is how many items are parsed at once.
const together = 50

// parse parses the i-th piece of the file and those after it that are unknown, too.
func (l *load) parse(f *part, i int) bool {
	refs := l.refs[len(l.refs)-len(f.pieces):]
	n := i
	for n < len(refs) && n < i+together && refs[n].item == nil && refs[n].piece.Value == nil && refs[n].piece.Section == refs[i].piece.Section {
		n++
	}
	if strict.ParseAll(f.pieces[i:n], l.breathe) {
		for ; i < n; i++ {
			refs[i].piece = f.pieces[i]
			f.pieces[i] = strict.Piece{} // let go with the ref
		}
		return true
	}
	return refs[i].piece.Parse()
}

// known is the item that an earlier load built from a piece, if it would be the same now.
func (l *load) known(key pieceKey) *item {
	it := l.pieces[key]
	if it == nil || !it.valid(l.Env) {
		return nil
	}
	it.used = l.loads
	return it
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
	secret := func(path string) (string, error) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(file), path)
		}
		text, err := readSecret(path)
		return text, reason(err)
	}
	return strict.Options{File: file, Env: l.Env, Secret: secret, Later: later, Types: l.types, Budget: &l.budget}
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
	paths := []*string{&l.file.StateDir, &l.file.Admin.Socket, &l.file.Admin.TokenFile, &l.file.Log.Access.File}
	if c := l.file.DefaultCertificate; c != nil {
		paths = append(paths, &c.CertFile, &c.KeyFile)
	}
	if a := l.file.ACME; a != nil {
		paths = append(paths, &a.CARoot)
		if a.DNS != nil {
			paths = append(paths, &a.DNS.Exec)
		}
	}
	for i := range l.file.Certificates {
		paths = append(paths, &l.file.Certificates[i].CertFile, &l.file.Certificates[i].KeyFile)
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// addLayer notes the apps and routes of the API.
func (l *load) addLayer(layer *Layer) {
	if layer == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(layer.Apps)) {
		l.addApp(name, layer.Apps[name])
	}
	for _, name := range slices.Sorted(maps.Keys(layer.Routes)) {
		l.breathe()
		var text bytes.Buffer
		if err := json.Compact(&text, layer.Routes[name]); err != nil {
			text.Reset()
			text.Write(layer.Routes[name])
		}
		p := strict.Piece{Section: "api", Text: text.Bytes()}
		p.Key = &yaml.Node{Kind: yaml.ScalarNode, Value: name}
		r := ref{file: "api", piece: p, layer: plan.FromAPI, item: l.known(pieceKey{"", "api " + name, text.String()})}
		if r.item == nil {
			var doc yaml.Node
			if err := yaml.Unmarshal(text.Bytes(), &doc); err != nil || len(doc.Content) != 1 {
				l.errs = append(l.errs, Error{File: "api", Path: "api." + name, Message: "the stored route cannot be read", Remedy: "put it again, or delete it"})
				continue
			}
			r.piece.Value = doc.Content[0]
		}
		l.build(&r)
		l.refs = append(l.refs, r)
	}
}

// build reads and builds an item unless an earlier load did. The nodes are let go.
func (l *load) build(r *ref) {
	if r.item != nil {
		return
	}
	defer func() { r.piece.Value = nil }()
	o := l.options(r.file)
	if r.layer == plan.FromAPI {
		o.Env, o.Secret = nil, nil
	}
	reader := strict.NewReader(o)
	reader.Line = r.piece.Line
	r.item = &item{used: l.loads, entry: r.piece.Key}
	b := &builder{scope: &l.scope, r: reader, root: r.piece.Value, dir: r.dir, it: r.item}
	reader.Under(r.path(), func() { b.item(r) })
	r.vars = reader.Vars
	if len(reader.Problems) == 0 {
		if r.piece.Text != nil {
			key := pieceKey{r.dir, r.piece.Section, string(r.piece.Text)}
			if r.layer == plan.FromAPI {
				key.section += " " + r.piece.Key.Value
			}
			l.pieces[key] = r.item
		}
		return
	}
	l.errs = append(l.errs, reader.Problems...)
}
