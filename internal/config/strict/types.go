package strict

import (
	"math"
	"reflect"
	"strconv"
	"strings"
)

// Types remembers the keys of struct types. It is used by one goroutine at a time.
type Types struct{ known map[reflect.Type]*fields }

// NewTypes returns an empty memory.
func NewTypes() *Types { return &Types{known: map[reflect.Type]*fields{}} }

type fields struct {
	name   string
	names  []string // in the order of the type
	byName map[string]*field
}

// field is one key. A number keeps to min and max, from the tag `range:"1..100"`; a text to words, from `oneof:"a,b"`.
type field struct {
	owner    string // the type's name
	name     string
	index    int
	min, max int64
	words    []string
	inner    []string // the keys of the value, one level down
}

// Key is the name that a struct field has in a text, "" for none.
func Key(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if name == "-" {
		return ""
	}
	return name
}

func (t *Types) of(st reflect.Type) *fields {
	if f := t.known[st]; f != nil {
		return f
	}
	fs := &fields{name: st.Name(), byName: map[string]*field{}}
	t.known[st] = fs
	for i := range st.NumField() {
		sf := st.Field(i)
		name := Key(sf)
		if name == "" {
			continue
		}
		f := &field{owner: fs.name, name: name, index: i, min: 0, max: math.MaxInt32}
		if lo, hi, ok := strings.Cut(sf.Tag.Get("range"), ".."); ok {
			f.min, _ = strconv.ParseInt(lo, 10, 64)
			f.max, _ = strconv.ParseInt(hi, 10, 64)
		}
		if words := sf.Tag.Get("oneof"); words != "" {
			f.words = strings.Split(words, ",")
		}
		if inner := structOf(sf.Type); inner != nil && inner != st {
			f.inner = t.of(inner).names
		}
		fs.names = append(fs.names, name)
		fs.byName[name] = f
	}
	return fs
}

func structOf(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	return t
}

// Nearest is the word most like s, "" when none is near enough to be meant.
func Nearest(s string, words []string) string {
	best, limit := "", 1+len(s)/4
	for _, w := range words {
		if d := distance(strings.ToLower(s), w, limit); d <= limit {
			best, limit = w, d-1
		}
	}
	return best
}

// distance is the number of letters to insert, drop, change or swap; limit+1 stands for more than limit.
func distance(a, b string, limit int) int {
	if len(a) > 64 || len(b) > 64 || len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	var rows [3][66]int
	before, prev, cur := rows[0][:len(b)+1], rows[1][:len(b)+1], rows[2][:len(b)+1]
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			change := prev[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}

// cut keeps a text short enough for an error line.
func cut(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:57], "") + "..."
	}
	return s
}
