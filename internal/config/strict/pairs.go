package strict

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// pairs yields the keys and values of a map, those merged by << after the others, and notes keys that stand twice.
func (r *Reader) pairs(n *yaml.Node) func(yield func(k, v *yaml.Node) bool) {
	return func(yield func(k, v *yaml.Node) bool) {
		seen := seenKeys{}
		var merged []*yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			if k.Kind != yaml.ScalarNode {
				r.Problem(k, "write a plain word before the colon", "a %s cannot be a key", kindName(k))
				continue
			}
			if k.Tag == "!!merge" {
				merged = append(merged, v)
				continue
			}
			if first := seen.add(k); first != nil {
				r.In(k.Value, func() { r.Problem(k, "keep one of the two", "also set at line %d", first.Line+r.Line) })
				continue
			}
			if !yield(k, v) {
				return
			}
		}
		for _, m := range merged {
			if !r.merge(m, &seen, yield, 0) {
				return
			}
		}
	}
}

// seenKeys remembers the keys of one map. Most maps are small, and then no hash is made of them.
type seenKeys struct {
	few  [12]*yaml.Node
	n    int
	many map[string]*yaml.Node
}

// add returns the key of the same name that was added before, or adds this one.
func (s *seenKeys) add(k *yaml.Node) *yaml.Node {
	for _, f := range s.few[:min(s.n, len(s.few))] {
		if f.Value == k.Value {
			return f
		}
	}
	if first := s.many[k.Value]; first != nil {
		return first
	}
	if s.n < len(s.few) {
		s.few[s.n] = k
	} else {
		if s.many == nil {
			s.many = map[string]*yaml.Node{}
		}
		s.many[k.Value] = k
	}
	s.n++
	return nil
}

func (r *Reader) merge(m *yaml.Node, seen *seenKeys, yield func(k, v *yaml.Node) bool, depth int) bool {
	for m.Kind == yaml.AliasNode {
		m = m.Alias
	}
	if depth > 20 || (m.Kind != yaml.MappingNode && m.Kind != yaml.SequenceNode) {
		r.Problem(m, "write <<: *NAME", "only maps can be merged")
		return true
	}
	for i := 0; i < len(m.Content); i++ {
		if m.Kind == yaml.SequenceNode {
			if !r.merge(m.Content[i], seen, yield, depth+1) {
				return false
			}
			continue
		}
		k, v := m.Content[i], m.Content[i+1]
		i++
		if k.Tag == "!!merge" {
			if !r.merge(v, seen, yield, depth+1) {
				return false
			}
		} else if k.Kind == yaml.ScalarNode && seen.add(k) == nil && !yield(k, v) {
			return false
		}
	}
	return true
}

// Find walks from n by keys and indexes ("match", "ports", "[1]") and returns the node there, nil if there is none.
func Find(n *yaml.Node, path ...string) *yaml.Node {
	for _, p := range path {
		for n != nil && n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n = child(n, p, 0); n == nil {
			return nil
		}
	}
	return n
}

func child(n *yaml.Node, p string, depth int) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil || depth > 20 {
		return nil
	}
	if n.Kind == yaml.SequenceNode {
		if i, err := strconv.Atoi(strings.Trim(p, "[]")); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
		return nil
	}
	var merged *yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == p {
			return n.Content[i+1]
		}
		if n.Content[i].Tag == "!!merge" {
			merged = child(n.Content[i+1], p, depth+1)
		}
	}
	return merged
}
