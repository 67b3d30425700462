package strict

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// expand replaces ${VAR} and ${VAR:-default} once; $${ is a literal ${.
func (r *Reader) expand(n *yaml.Node) (string, bool) {
	s, ok := n.Value, true
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			b.WriteString(s)
			break
		}
		if i > 0 && s[i-1] == '$' {
			b.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		b.WriteString(s[:i])
		end := strings.IndexByte(s[i:], '}')
		if end < 0 {
			r.Problem(n, "write ${NAME}, or $${ for the two characters themselves", "${ has no end")
			return "", false
		}
		name, fallback, has := strings.Cut(s[i+2:i+end], ":-")
		s = s[i+end+1:]
		value, set := r.variable(name)
		switch {
		case !variableName(name):
			r.Problem(n, "write ${NAME}, or $${ for the two characters themselves", "%q is not the name of a variable", cut(name))
			ok = false
		case set && (value != "" || !has):
			b.WriteString(value)
		case has:
			b.WriteString(fallback)
		default:
			r.Problem(n, "set it, or write ${"+name+":-default}", "the variable %s is not set", name)
			ok = false
		}
	}
	return b.String(), ok
}

func (r *Reader) variable(name string) (string, bool) {
	value, ok := r.Env(name)
	if r.Vars == nil {
		r.Vars = map[string]*string{}
	}
	r.Vars[name] = nil
	if ok {
		r.Vars[name] = &value
	}
	return value, ok
}

func variableName(s string) bool {
	for i, c := range s {
		letter := c == '_' || (c|0x20 >= 'a' && c|0x20 <= 'z')
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// secret is the text itself, or what the file holds that it names.
func (r *Reader) secret(n *yaml.Node, s string) Secret {
	path, ok := strings.CutPrefix(s, "file:")
	switch {
	case !ok:
		return Secret(s)
	case r.Options.Secret == nil:
		r.Problem(n, "write the secret into a configuration file instead", "file: is read in files only")
		return ""
	}
	text, err := r.Options.Secret(path)
	if err != nil {
		r.Problem(n, "write the path of a file that this user can read", "the secret cannot be read: %v", err)
	}
	return Secret(strings.TrimRight(text, "\r\n"))
}
