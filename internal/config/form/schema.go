package form

import (
	"embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/quaymaster/quaymaster/internal/config/strict"
)

//go:embed *.go
var source embed.FS

// Comments are the comments on the types and their fields: "Route", "Route.Priority".
func Comments() map[string]string {
	out := map[string]string{}
	entries, _ := source.ReadDir(".")
	for _, e := range entries {
		text, _ := source.ReadFile(e.Name())
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), text, parser.ParseComments)
		if err != nil {
			continue // it compiled, so it parses
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range g.Specs {
				if ts, ok := s.(*ast.TypeSpec); ok {
					comment(out, ts, g.Doc)
				}
			}
		}
	}
	return out
}

func comment(out map[string]string, ts *ast.TypeSpec, doc *ast.CommentGroup) {
	out[ts.Name.Name] = oneLine(doc)
	st, ok := ts.Type.(*ast.StructType)
	if !ok {
		return
	}
	for _, f := range st.Fields.List {
		for _, name := range f.Names {
			out[ts.Name.Name+"."+name.Name] = oneLine(f.Doc)
		}
	}
}

func oneLine(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }

// Schema is the JSON Schema of a File.
func Schema() []byte {
	comments := Comments()
	r := &jsonschema.Reflector{
		FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true, ExpandedStruct: true, Mapper: shape,
		LookupComment: func(t reflect.Type, field string) string {
			if field == "" {
				return comments[t.Name()]
			}
			return comments[t.Name()+"."+field]
		},
	}
	s := r.Reflect(&File{})
	s.ID, s.Title = "", "Quaymaster configuration"
	r.ExpandedStruct = false
	for _, v := range []any{PortObject{}, TargetObject{}, WantObject{}, Action{}, KeyPair{}, ChallengePortObject{}, App{}} {
		for name, def := range r.Reflect(v).Definitions {
			s.Definitions[name] = def
		}
	}
	refine(s, reflect.TypeFor[File](), s.Definitions, map[reflect.Type]bool{})
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic(err) // a value of our own making
	}
	return out
}

// refine adds ranges, words and defaults, which the reflector does not know.
func refine(s *jsonschema.Schema, t reflect.Type, defs jsonschema.Definitions, done map[reflect.Type]bool) {
	if done[t] || s == nil {
		return
	}
	done[t] = true
	for f, value := range keys(t) {
		p, ok := s.Properties.Get(strict.Key(f))
		if !ok {
			continue
		}
		if words := f.Tag.Get("oneof"); words != "" {
			if p.Items != nil {
				p = p.Items
			}
			for w := range strings.SplitSeq(words, ",") {
				p.Enum = append(p.Enum, w)
			}
		}
		if lo, hi, ok := strings.Cut(f.Tag.Get("range"), ".."); ok {
			p.Minimum, p.Maximum = json.Number(lo), json.Number(hi)
		}
		if d := Default(value); d != "" {
			p.Default = d
			if k := f.Type.Kind(); k == reflect.Int || k == reflect.Bool {
				p.Default = json.RawMessage(d)
			}
		}
		inner := f.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice || inner.Kind() == reflect.Map {
			inner = inner.Elem()
		}
		for _, one := range append([]reflect.Type{inner}, long[inner]...) {
			if one.Kind() == reflect.Struct {
				refine(defs[one.Name()], one, defs, done)
			}
		}
	}
}

// keys yields the fields of a type that are keys, with their defaults.
func keys(t reflect.Type) func(yield func(reflect.StructField, reflect.Value) bool) {
	return func(yield func(reflect.StructField, reflect.Value) bool) {
		v := reflect.New(t)
		if d, ok := v.Interface().(strict.Defaulter); ok {
			d.Defaults()
		}
		for i := range t.NumField() {
			if strict.Key(t.Field(i)) != "" && !yield(t.Field(i), v.Elem().Field(i)) {
				return
			}
		}
	}
}

// long are the types that the long form of a type is read as.
var long = map[reflect.Type][]reflect.Type{
	reflect.TypeFor[Port]():   {reflect.TypeFor[PortObject]()},
	reflect.TypeFor[Target](): {reflect.TypeFor[TargetObject]()},
	reflect.TypeFor[Want]():   {reflect.TypeFor[WantObject]()},
	reflect.TypeFor[Site]():   {reflect.TypeFor[Action]()},

	reflect.TypeFor[AppEntry](): {reflect.TypeFor[App]()},

	reflect.TypeFor[ChallengePort]():     {reflect.TypeFor[ChallengePortObject]()},
	reflect.TypeFor[CertificateChoice](): {reflect.TypeFor[KeyPair]()},
}

// shape is the schema of what is no struct with keys.
func shape(t reflect.Type) *jsonschema.Schema {
	text := &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "string"}, {Type: "number"}}}
	list := &jsonschema.Schema{Type: "array"}
	switch t {
	case reflect.TypeFor[Hosts]():
		list.Items = &jsonschema.Schema{Type: "string"}
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "string"}, list}}
	case reflect.TypeFor[AppEntry]():
		return &jsonschema.Schema{Ref: "#/$defs/App"}
	case reflect.TypeFor[AppText]():
		return &jsonschema.Schema{AnyOf: append(text.AnyOf, &jsonschema.Schema{Type: "boolean"})}
	case reflect.TypeFor[Command]():
		list.Items = text
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "string"}, list}}
	case reflect.TypeFor[Site]():
		list.Items = &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "string"}, {Type: "number"}, {Ref: "#/$defs/TargetObject"}}}
		return &jsonschema.Schema{AnyOf: append(text.AnyOf, list, &jsonschema.Schema{Ref: "#/$defs/Action"})}
	}
	if l := long[t]; l != nil {
		return &jsonschema.Schema{AnyOf: append(text.AnyOf, &jsonschema.Schema{Ref: "#/$defs/" + l[0].Name()})}
	}
	switch t.Kind() {
	case reflect.Int:
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "integer"}, {Type: "string", Pattern: `^-?[0-9]+$|\$\{`}}}
	case reflect.Bool:
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "boolean"}, {Type: "string", Pattern: `^(true|false)$|\$\{`}}}
	case reflect.String, reflect.Slice, reflect.Map, reflect.Pointer, reflect.Interface:
		if t.Kind() != reflect.String || t == reflect.TypeFor[string]() {
			return nil
		}
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[strict.TextReader]()) {
		return text
	}
	return nil
}

// Default is a default as a file would have it, "" when there is none worth telling.
func Default(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case Duration:
		return span(x)
	case Size:
		switch {
		case x == 0:
			return "0"
		case x%(1<<20) == 0:
			return fmt.Sprintf("%dMiB", x>>20)
		case x%(1<<10) == 0:
			return fmt.Sprintf("%dKiB", x>>10)
		}
		return strconv.FormatInt(int64(x), 10)
	case Percent:
		return strconv.FormatFloat(float64(x)*100, 'f', -1, 64) + "%"
	case StatusRange:
		return fmt.Sprintf("%d-%d", x.Min, x.Max)
	case PortRange:
		return fmt.Sprintf("%d-%d", x.Lo, x.Hi)
	case []RetryCause:
		if len(x) > 0 {
			return "[connect]"
		}
		return ""
	}
	switch v.Kind() {
	case reflect.Int, reflect.Bool:
		return fmt.Sprint(v.Interface())
	case reflect.String:
		return v.String()
	case reflect.Slice:
		if v.Len() > 0 && v.Index(0).Kind() != reflect.Struct {
			return strings.ReplaceAll(fmt.Sprint(v.Interface()), " ", ", ")
		}
	}
	return ""
}
