package plan

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// A Change is one difference between two plans.
type Change struct {
	Kind   string `json:"kind"` // "app", "certificate", "port", "route", "settings", "upstream"
	Name   string `json:"name"`
	Op     Op     `json:"op"`
	Detail string `json:"detail,omitempty"` // for a change: the fields that differ, with both values where they are short
}

// Op is what happened to an object.
type Op string

// The three operations.
const (
	Added   Op = "added"
	Changed Op = "changed"
	Removed Op = "removed"
)

func (c Change) String() string {
	s := c.Kind + " " + c.Name + " " + string(c.Op)
	if c.Detail != "" {
		s += ": " + c.Detail
	}
	return s
}

// Diff lists what is different in to, sorted by kind and name. A nil plan is an empty one. Where things are written and
// who uses a port or a certificate make no difference.
func Diff(from, to *Plan) []Change {
	if from == nil {
		from = &Plan{}
	}
	if to == nil {
		to = &Plan{}
	}
	var out []Change
	var breath Breath
	defer breath.End()
	out = diffObjects(out, &breath, "port", from.Ports, to.Ports, func(p *Port) string { return p.Addr.String() })
	out = diffObjects(out, &breath, "route", from.Routes, to.Routes, func(r *Route) string { return r.Name })
	out = diffObjects(out, &breath, "upstream", from.Upstreams, to.Upstreams, func(u *Upstream) string { return u.Name })
	out = diffObjects(out, &breath, "app", from.Apps, to.Apps, func(a *App) string { return a.Name })
	out = diffObjects(out, &breath, "certificate", from.Certificates, to.Certificates, (*Certificate).Label)
	a, b := reflect.ValueOf(from.Settings), reflect.ValueOf(to.Settings)
	for i := range a.NumField() {
		if d := differences(a.Field(i), b.Field(i), ""); len(d) > 0 {
			out = append(out, Change{Kind: "settings", Name: snake(a.Type().Field(i).Name), Op: Changed, Detail: summary(d)})
		}
	}
	slices.SortFunc(out, func(a, b Change) int {
		breath.Take()
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func diffObjects[T any](out []Change, breath *Breath, kind string, from, to []*T, name func(*T) string) []Change {
	old := make(map[string]*T, len(from))
	for _, o := range from {
		breath.Take()
		old[name(o)] = o
	}
	for _, n := range to {
		breath.Take()
		o, ok := old[name(n)]
		delete(old, name(n))
		switch {
		case !ok:
			out = append(out, Change{Kind: kind, Name: name(n), Op: Added})
		case o != n:
			if d := differences(reflect.ValueOf(o).Elem(), reflect.ValueOf(n).Elem(), ""); len(d) > 0 {
				out = append(out, Change{Kind: kind, Name: name(n), Op: Changed, Detail: summary(d)})
			}
		}
	}
	for gone := range old {
		breath.Take()
		out = append(out, Change{Kind: kind, Name: gone, Op: Removed})
	}
	return out
}

// summary keeps a line readable: five differences, then a count.
func summary(d []string) string {
	if len(d) > 5 {
		d = append(d[:5:5], fmt.Sprintf("and %d more", len(d)-5))
	}
	return strings.Join(d, ", ")
}

// differences names the fields in which a and b differ. Structs are entered; everything else is compared whole.
func differences(a, b reflect.Value, path string) []string {
	if reflect.DeepEqual(a.Interface(), b.Interface()) {
		return nil
	}
	if k := a.Kind(); (k == reflect.Pointer || k == reflect.Interface) && !a.IsNil() && !b.IsNil() && a.Elem().Type() == b.Elem().Type() {
		a, b = a.Elem(), b.Elem()
	}
	if _, text := a.Interface().(fmt.Stringer); a.Kind() != reflect.Struct || text {
		return []string{strings.TrimPrefix(strings.TrimPrefix(path, ".")+" "+short(a)+" -> "+short(b), " ")}
	}
	var out []string
	for i := range a.NumField() {
		f := a.Type().Field(i)
		if !f.IsExported() || (f.Name == "Users" && (a.Type() == reflect.TypeFor[Port]() || a.Type() == reflect.TypeFor[Certificate]())) {
			continue
		}
		out = append(out, differences(a.Field(i), b.Field(i), path+"."+snake(f.Name))...)
	}
	return out
}

// short prints a value for people, in at most 60 bytes: a struct by its type, a list by what its members are called.
// Secrets print themselves as ***.
func short(v reflect.Value) string {
	if v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return "none"
		}
		v = v.Elem()
	}
	_, text := v.Interface().(fmt.Stringer)
	var s string
	switch {
	case text:
		s = fmt.Sprint(v.Interface())
	case v.Kind() == reflect.Struct:
		s = strings.ToLower(v.Type().Name())
		if f := v.FieldByName("Text"); f.IsValid() {
			s = f.String()
		}
	case v.Kind() == reflect.Slice:
		parts := make([]string, min(v.Len(), 10)) // enough for 60 bytes
		for i := range parts {
			parts[i] = short(v.Index(i))
		}
		s = "[" + strings.Join(parts, " ") + "]"
	default:
		s = fmt.Sprint(v.Interface())
	}
	if v.Kind() == reflect.String && s == "" {
		s = `""`
	}
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:57], "") + "..."
	}
	return s
}

// snake turns MaxHeaderBytes into max_header_bytes and TLSHandshake into tls_handshake.
func snake(name string) string {
	var b strings.Builder
	upper := func(i int) bool { return i < len(name) && name[i] >= 'A' && name[i] <= 'Z' }
	for i := range len(name) {
		if upper(i) && i > 0 && (!upper(i-1) || (i+1 < len(name) && !upper(i+1))) {
			b.WriteByte('_')
		}
		b.WriteByte(name[i] | 0x20*boolByte(upper(i)))
	}
	return b.String()
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}
