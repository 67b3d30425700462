package route

import (
	"bytes"
	"math"
	"math/bits"
	"net/netip"
	"strings"
	"sync"
)

// noRank is the rank of no rule. Rank 0 is the first of a port's rules.
const noRank = int32(math.MaxInt32)

// index finds the rules of one stage by host and path.
type index struct {
	exact, wild, deep map[string]*group
	labels            uint64 // bit n: a deep pattern has n labels; bit 63: that many or more
	any               *group
}

// group holds the rules of one host pattern.
type group struct {
	best  int32   // first rank in this group
	chain int32   // first rank in this group and those above it
	up    *group  // the next less specific pattern that takes every host this one takes
	any   []entry // rules without a path, by rank
	root  *node   // rules with a path
	paths bool    // this group or one above it has rules with a path
	plain bool    // holds a rule that is neither by_name nor of our own nor of a preview

	space [1]entry // of any, beside the rest of the group: most groups have one rule
}

// entry is one rule at one place.
type entry struct {
	rank   int32
	free   bool // there are no conditions besides host and path
	byName bool
	rule   *rule
}

// node is a place in the tree of path segments.
type node struct {
	best  int32 // first rank in this subtree
	lits  map[string]*node
	param *node
	here  []entry // patterns that end here, by rank
	rest  []entry // patterns that end here in a star, by rank
}

// find returns the most specific group that takes the host; its chain holds all others that do. It is nil when there is
// none.
func (x *index) find(host []byte) *group {
	if host == nil {
		return x.any
	}
	if g, ok := x.exact[string(host)]; ok {
		return g
	}
	if len(x.wild)+len(x.deep) == 0 {
		return x.any
	}
	dot := bytes.IndexByte(host, '.')
	if dot < 0 {
		return x.any
	}
	if g, ok := x.wild[string(host[dot+1:])]; ok {
		return g
	}
	return x.findDeep(host[dot+1:])
}

// findDeep returns the group of the longest deep pattern equal to the suffix or an ending of it.
func (x *index) findDeep(suffix []byte) *group {
	if len(x.deep) == 0 {
		return x.any
	}
	for n := bytes.Count(suffix, dotBytes) + 1; ; n-- {
		if x.labels>>min(n, 63)&1 != 0 {
			if g, ok := x.deep[string(suffix)]; ok {
				return g
			}
		}
		dot := bytes.IndexByte(suffix, '.')
		if dot < 0 || x.labels&(1<<min(n, 63)-1) == 0 && n < 63 {
			return x.any
		}
		suffix = suffix[dot+1:]
	}
}

var dotBytes = []byte(".")

// add puts a rule in the index. Rules come in the order of their ranks.
func (x *index) add(h hostPattern, path *pathPattern, e entry) {
	g := x.group(h)
	if g.best == noRank {
		g.best = e.rank
	}
	g.plain = g.plain || !e.rule.byName && !e.rule.internal && e.rule.shown == nil
	if path == nil {
		g.any = append(g.any, e)
		return
	}
	if g.root == nil {
		g.root = &node{best: noRank}
	}
	n := g.root
	n.best = min(n.best, e.rank)
	for _, s := range path.segs {
		n = n.child(s)
		n.best = min(n.best, e.rank)
	}
	if path.rest {
		n.rest = append(n.rest, e)
	} else {
		n.here = append(n.here, e)
	}
}

func newGroup() *group {
	g := &group{best: noRank}
	g.any = g.space[:0]
	return g
}

func (x *index) group(h hostPattern) *group {
	if h.class == anyHost {
		if x.any == nil {
			x.any = newGroup()
		}
		return x.any
	}
	m := [...]*map[string]*group{&x.exact, &x.wild, &x.deep}[h.class]
	if *m == nil {
		*m = map[string]*group{}
	}
	g := (*m)[h.name]
	if g == nil {
		g = newGroup()
		(*m)[h.name] = g
		if h.class == deepHost {
			x.labels |= 1 << min(strings.Count(h.name, ".")+1, 63)
		}
	}
	return g
}

func (n *node) child(s segment) *node {
	if s.param {
		if n.param == nil {
			n.param = &node{best: noRank}
		}
		return n.param
	}
	c := n.lits[s.text]
	if c == nil {
		c = &node{best: noRank}
		if n.lits == nil {
			n.lits = make(map[string]*node, 1)
		}
		n.lits[s.text] = c
	}
	return c
}

// link ties each group to the next less specific one, once all rules are in.
func (x *index) link(yield func()) {
	above := func(name string) *group { // of a name that is not itself one
		if i := strings.IndexByte(name, '.'); i >= 0 {
			return x.findDeep([]byte(name[i+1:]))
		}
		return x.any
	}
	settle := func(g, up *group) {
		g.up, g.chain, g.paths = up, g.best, g.root != nil
		if up != nil {
			g.chain, g.paths = min(g.chain, up.chain), g.paths || up.paths
		}
	}
	if x.any != nil {
		settle(x.any, nil)
	}
	// Deep patterns from the shortest, so that the one above is settled first.
	byLabels := make([][]string, maxHost)
	for name := range x.deep {
		n := strings.Count(name, ".")
		byLabels[n] = append(byLabels[n], name)
	}
	for _, list := range byLabels {
		for _, name := range list {
			yield()
			settle(x.deep[name], above(name))
		}
	}
	for name, g := range x.wild {
		yield()
		settle(g, x.findDeep([]byte(name)))
	}
	for name, g := range x.exact {
		yield()
		up := above(name)
		if i := strings.IndexByte(name, '.'); i >= 0 {
			if w := x.wild[name[i+1:]]; w != nil {
				up = w
			}
		}
		settle(g, up)
	}
}

// walk is one search for the best rule of a request.
type walk struct {
	q       *Request
	client  netip.Addr
	scratch *sync.Pool
	best    int32
	hit     *rule
	byName  bool // hit is by_name
}

// groups searches a group and those above it. path is nil when the target has none, or when no rule asks for it.
func (w *walk) groups(g *group, path []byte) {
	for ; g != nil && g.chain < w.best; g = g.up {
		w.list(g.any)
		if path != nil && g.root != nil {
			w.node(g.root, path[1:], true)
		}
	}
}

// node searches a subtree for what is left of the path; more says that another segment is to come.
func (w *walk) node(n *node, rest []byte, more bool) {
	if n.best >= w.best {
		return
	}
	if more {
		seg, after := rest, []byte(nil)
		i := bytes.IndexByte(rest, '/')
		if i >= 0 {
			seg, after = rest[:i], rest[i+1:]
		}
		if c := n.lits[string(seg)]; c != nil {
			w.node(c, after, i >= 0)
		}
		if n.param != nil && len(seg) > 0 {
			w.node(n.param, after, i >= 0)
		}
	} else {
		w.list(n.here)
	}
	w.list(n.rest)
}

// list takes the first rule of a list whose other conditions hold.
func (w *walk) list(entries []entry) {
	for i := range entries {
		e := &entries[i]
		if e.rank >= w.best {
			return
		}
		if !e.free {
			if f, _ := e.rule.requestFault(w.q, w.client, w.scratch); f != faultNone {
				continue
			}
		}
		w.best, w.hit, w.byName = e.rank, e.rule, e.byName
		return
	}
}

// readings searches under each plausible reading of the path. It reports false when two readings fall under different
// rules, or when the path is too odd to be worth the question.
func (w *walk) readings(g *group, path []byte) bool {
	odd, escaped := survey(path)
	if odd == 0 && !escaped {
		w.groups(g, path)
		return true
	}
	if odd != 0 && (len(path) > maxOdd || bits.OnesCount16(uint16(odd)) > maxOddities) {
		return false
	}
	s := w.scratch.Get().(*scratch)
	defer w.scratch.Put(s)
	for f := odd; ; f = (f - 1) & odd {
		again := walk{q: w.q, client: w.client, scratch: w.scratch, best: noRank}
		again.groups(g, s.read(path, f))
		if f == odd {
			w.best, w.hit, w.byName = again.best, again.hit, again.byName
		} else if ruleOf(again.hit) != ruleOf(w.hit) {
			return false
		}
		if f == 0 {
			return true
		}
	}
}

func ruleOf(r *rule) *Rule {
	if r == nil {
		return nil
	}
	return &r.Rule
}
