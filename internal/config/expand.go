package config

import (
	"bytes"
	"encoding"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Expand prints the whole plan as YAML, after defaults and merging, with secrets as *** and without what is empty. It is for reading: the plan has
// parts that no configuration file has.
func Expand(p *plan.Plan) []byte {
	n := &yaml.Node{Kind: yaml.MappingNode}
	pair(n, "settings", value(reflect.ValueOf(p.Settings)))
	pair(n, "ports", value(reflect.ValueOf(p.Ports)))
	pair(n, "routes", value(reflect.ValueOf(p.Routes)))
	pair(n, "upstreams", value(reflect.ValueOf(p.Upstreams)))
	pair(n, "apps", value(reflect.ValueOf(p.Apps)))
	pair(n, "certificates", value(reflect.ValueOf(p.Certificates)))
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		panic(err) // nodes of our own making
	}
	return out.Bytes()
}

func pair(n *yaml.Node, key string, v *yaml.Node) {
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, v)
}

func scalar(tag, text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: text}
}

// value prints any part of a plan. Texts go through MarshalText, which is where a plan.Secret hides.
func value(v reflect.Value) *yaml.Node {
	switch x := v.Interface().(type) {
	case time.Duration:
		return scalar("!!str", x.String())
	case plan.Protocols:
		return value(reflect.ValueOf(x.Names()))
	case plan.EnvVar: // which may be a secret
		return value(reflect.ValueOf(struct {
			Name  string
			Value plan.Secret
		}{x.Name, plan.Secret(x.Value)}))
	case plan.Network:
		return scalar("!!str", x.String())
	case encoding.TextMarshaler:
		text, _ := x.MarshalText()
		return scalar("!!str", string(text))
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return pointed(v)
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		fields(n, v)
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, value(v.Index(i)))
		}
		if v.Len() > 0 && n.Content[0].Kind == yaml.ScalarNode || v.Len() == 0 {
			n.Style = yaml.FlowStyle
		}
		return n
	case reflect.Bool:
		return scalar("!!bool", strconv.FormatBool(v.Bool()))
	case reflect.Int, reflect.Int64:
		return scalar("!!int", strconv.FormatInt(v.Int(), 10))
	case reflect.Uint16, reflect.Uint8, reflect.Uint64:
		return scalar("!!int", strconv.FormatUint(v.Uint(), 10))
	case reflect.Float64:
		text := strconv.FormatFloat(v.Float(), 'f', -1, 64)
		if !strings.Contains(text, ".") {
			return scalar("!!int", text)
		}
		return scalar("!!float", text)
	}
	return scalar("!!str", v.String())
}

func pointed(v reflect.Value) *yaml.Node {
	if v.IsNil() {
		return scalar("!!null", "null")
	}
	n := value(v.Elem())
	if v.Kind() == reflect.Interface { // an action, which is known by its type
		typed := &yaml.Node{Kind: yaml.MappingNode}
		pair(typed, "type", scalar("!!str", snake(v.Elem().Type().Name())))
		typed.Content = append(typed.Content, n.Content...)
		return typed
	}
	return n
}

// fields prints the fields of a struct but those that hold nothing: an empty text or list, no pointer. Numbers and
// switches are always printed, since 0 and false say something.
func fields(n *yaml.Node, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		if x := value(v.Field(i)); x.Tag != "!!null" && (x.Value != "" || len(x.Content) > 0) {
			pair(n, snake(f.Name), x)
		}
	}
}

// snake turns MaxHeaderBytes into max_header_bytes.
func snake(name string) string {
	var b strings.Builder
	upper := func(i int) bool { return i < len(name) && name[i] >= 'A' && name[i] <= 'Z' }
	for i := range len(name) {
		if upper(i) && i > 0 && (!upper(i-1) || i+1 < len(name) && !upper(i+1)) {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToLower(name[i : i+1]))
	}
	return b.String()
}
