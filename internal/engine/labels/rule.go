package labels

import (
	"fmt"
	"slices"
	"strings"
)

// The bounds of one rule.
const (
	maxDepth = 16 // of parentheses
	maxAlts  = 64 // of its alternatives
)

// alt is one way to satisfy a rule: a host, and a path as configuration writes it. "" is not said.
type alt struct{ host, path string }

// Rule reads a rule of Traefik: Host, PathPrefix and Path, joined by && and || and parentheses. It returns the hosts that
// have the same paths together; no paths are every path. Anything else is an error that names it.
func Rule(text string) (hosts [][]string, paths [][]string, err error) {
	p := &rule{rest: text}
	if len(text) > maxValue {
		return nil, nil, fmt.Errorf("the rule has more than %d bytes", maxValue)
	}
	alts, err := p.or(0)
	if err != nil {
		return nil, nil, err
	}
	if p.space(); p.rest != "" {
		return nil, nil, fmt.Errorf("%s stands where && or || is wanted", clip(p.rest))
	}
	byHost := map[string][]string{}
	var order []string
	for _, a := range alts {
		if a.host == "" {
			return nil, nil, fmt.Errorf("a part of the rule names no host")
		}
		if byHost[a.host] == nil {
			order = append(order, a.host)
		}
		if !slices.Contains(byHost[a.host], a.path) {
			byHost[a.host] = append(byHost[a.host], a.path)
		}
	}
	for _, h := range order {
		mine := byHost[h]
		if slices.Contains(mine, anyPath) || slices.Contains(mine, "") {
			mine = nil // every path: the others are among them
		}
		slices.Sort(mine)
		i := slices.IndexFunc(paths, func(have []string) bool { return slices.Equal(have, mine) })
		if i < 0 {
			i = len(paths)
			hosts, paths = append(hosts, nil), append(paths, mine)
		}
		hosts[i] = append(hosts[i], h)
	}
	return hosts, paths, nil
}

// anyPath is a path that was said and excludes nothing.
const anyPath = "/*"

// rule is what is left of a rule.
type rule struct{ rest string }

func (p *rule) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

func (p *rule) take(s string) bool {
	p.space()
	rest, ok := strings.CutPrefix(p.rest, s)
	if ok {
		p.rest = rest
	}
	return ok
}

// or reads alternatives.
func (p *rule) or(depth int) ([]alt, error) {
	out, err := p.and(depth)
	for err == nil && p.take("||") {
		var more []alt
		if more, err = p.and(depth); err == nil {
			out = append(out, more...)
		}
		if len(out) > maxAlts {
			return nil, fmt.Errorf("the rule has more than %d alternatives", maxAlts)
		}
	}
	return out, err
}

// and reads conditions that must all hold.
func (p *rule) and(depth int) ([]alt, error) {
	out, err := p.one(depth)
	for err == nil && p.take("&&") {
		var more []alt
		if more, err = p.one(depth); err == nil {
			out, err = both(out, more)
		}
	}
	return out, err
}

// both is every pair of two sets of alternatives.
func both(a, b []alt) ([]alt, error) {
	if len(a)*len(b) > maxAlts {
		return nil, fmt.Errorf("the rule has more than %d alternatives", maxAlts)
	}
	var out []alt
	for _, x := range a {
		for _, y := range b {
			switch {
			case x.host != "" && y.host != "" && x.host != y.host:
				return nil, fmt.Errorf("%s and %s are both demanded, and no request has two hosts", clip(x.host), clip(y.host))
			case x.path != "" && y.path != "" && x.path != y.path:
				return nil, fmt.Errorf("%s and %s are both demanded of one path; write the narrower one alone", clip(x.path), clip(y.path))
			}
			out = append(out, alt{max(x.host, y.host), max(x.path, y.path)})
		}
	}
	return out, nil
}

// one reads a matcher, or a rule in parentheses.
func (p *rule) one(depth int) ([]alt, error) {
	if p.take("(") {
		if depth == maxDepth {
			return nil, fmt.Errorf("the rule has more than %d parentheses in each other", maxDepth)
		}
		out, err := p.or(depth + 1)
		if err == nil && !p.take(")") {
			err = fmt.Errorf("a parenthesis is not closed")
		}
		return out, err
	}
	if p.take("!") {
		return nil, fmt.Errorf("! is not known here; write what the route takes, not what it does not")
	}
	end := strings.IndexFunc(p.rest, func(c rune) bool { return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') })
	if end < 0 {
		end = len(p.rest)
	}
	name := p.rest[:end]
	switch {
	case name == "" && p.rest == "":
		return nil, fmt.Errorf("the rule ends where a matcher is wanted: Host(`app.example.com`)")
	case name == "":
		return nil, fmt.Errorf("%s stands where a matcher is wanted: Host(`app.example.com`)", clip(p.rest))
	case name != "Host" && name != "PathPrefix" && name != "Path":
		return nil, fmt.Errorf("the matcher %s is not known here: Host, PathPrefix and Path are", clipped(name))
	}
	p.rest = p.rest[end:]
	values, err := p.values(name)
	if err != nil {
		return nil, err
	}
	out := make([]alt, 0, len(values))
	for _, v := range values {
		a, err := match(name, v)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// values reads (`a`, `b`).
func (p *rule) values(name string) ([]string, error) {
	if !p.take("(") {
		return nil, fmt.Errorf("%s wants a value in parentheses: %s(`...`)", name, name)
	}
	var out []string
	for {
		p.space()
		if p.rest == "" || p.rest[0] != '`' && p.rest[0] != '"' {
			return nil, fmt.Errorf("%s wants a value between backticks: %s(`...`)", name, name)
		}
		v, rest, closed := strings.Cut(p.rest[1:], p.rest[:1])
		if !closed {
			return nil, fmt.Errorf("a value of %s has no end", name)
		}
		if out, p.rest = append(out, v), rest; len(out) > maxAlts {
			return nil, fmt.Errorf("%s has more than %d values", name, maxAlts)
		}
		if p.take(")") {
			return out, nil
		}
		if !p.take(",") {
			return nil, fmt.Errorf("a parenthesis of %s is not closed", name)
		}
	}
}

// match is what one matcher takes.
func match(name, v string) (alt, error) {
	if name == "Host" {
		if v == "" || strings.ContainsAny(v, "*{}:/ ") {
			return alt{}, fmt.Errorf("Host(%s) is no name of a host", clip(v))
		}
		return alt{host: strings.ToLower(strings.TrimSuffix(v, "."))}, nil
	}
	if !strings.HasPrefix(v, "/") || strings.ContainsAny(v, "*{}?#") || strings.Contains(v, "/:") {
		return alt{}, fmt.Errorf("%s(%s) is no plain path", name, clip(v))
	}
	if name == "Path" {
		return alt{path: v}, nil
	}
	return alt{path: strings.TrimRight(v, "/") + "/*"}, nil
}
