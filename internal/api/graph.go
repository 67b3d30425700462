package api

import (
	"net/http"
	"slices"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Graph is what hangs on what: port -> route -> upstream -> target.
type Graph struct {
	Nodes []Node `json:"nodes"`
	Edges []Edge `json:"edges"`
}

// Node is one port, route, upstream or target.
type Node struct {
	ID    string `json:"id"` // kind/name
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	State string `json:"state"`
	Note  string `json:"note,omitempty"`
	// Orphans are the nodes below that nothing would lead to any more if this one went.
	Orphans []string `json:"orphans"`
	// Breaks are the nodes above that would have nothing left to lead to.
	Breaks []string `json:"breaks"`
}

// Edge leads from a user to what it uses.
type Edge struct {
	From string `json:"from"`
	To   string `json:"to"`
}

func (a *API) graph(w http.ResponseWriter, _ *request) error {
	if a.o.Control == nil {
		return missing("a graph")
	}
	p, revision := a.o.Control.Plan()
	w.Header().Set("ETag", etag(revision))
	return reply(w, http.StatusOK, Draw(p, a.portList(), a.upstreams()))
}

// drawing is a graph under construction. Nodes are known by their index.
type drawing struct {
	Graph
	index    map[string]int
	down, up [][]int
}

// Draw makes the graph of a plan, with the states of its ports and targets as far as they are given.
func Draw(p *plan.Plan, ports []Port, ups []Upstream) *Graph {
	d := &drawing{Graph: Graph{Nodes: []Node{}, Edges: []Edge{}}, index: make(map[string]int)}
	states := make(map[string]Port, len(ports))
	for _, s := range ports {
		states[s.Wanted] = s
	}
	for _, s := range p.Ports {
		name := s.Addr.String()
		d.node("port", name, states[name].State, states[name].Error)
	}
	for _, r := range Routes(p, ups) {
		n := d.node("route", r.Name, "", r.Action)
		if r.Upstream == "" {
			d.Nodes[n].Note = r.Action + " " + r.Detail
			continue
		}
		u := d.node("upstream", r.Upstream, "", "")
		d.edge(n, u)
		for _, t := range r.Targets {
			d.edge(u, d.node("target", t.Target, t.State, t.Reason))
		}
	}
	for _, r := range p.Routes {
		n := d.index["route/"+r.Name]
		for _, want := range r.Match.Ports {
			if at, ok := d.socket(p, want); ok {
				d.edge(at, n)
			}
		}
	}
	d.consequences()
	return &d.Graph
}

// socket is the port that takes the connections of a wish: itself, or the wildcard that swallowed it.
func (d *drawing) socket(p *plan.Plan, want plan.Addr) (int, bool) {
	if at, ok := d.index["port/"+want.String()]; ok {
		return at, true
	}
	for _, s := range p.Ports {
		if s.Addr.Covers(want) {
			return d.index["port/"+s.Addr.String()], true
		}
	}
	return 0, false
}

func (d *drawing) node(kind, name, state, note string) int {
	id := kind + "/" + name
	if at, ok := d.index[id]; ok {
		return at
	}
	d.index[id] = len(d.Nodes)
	d.Nodes = append(d.Nodes, Node{ID: id, Kind: kind, Name: name, State: state, Note: note})
	d.down, d.up = append(d.down, nil), append(d.up, nil)
	return len(d.Nodes) - 1
}

func (d *drawing) edge(from, to int) {
	if slices.Contains(d.up[to], from) && slices.Contains(d.down[from], to) {
		return
	}
	d.down[from], d.up[to] = append(d.down[from], to), append(d.up[to], from)
	d.Edges = append(d.Edges, Edge{From: d.Nodes[from].ID, To: d.Nodes[to].ID})
}

// consequences says for each node what would hang in the air without it.
func (d *drawing) consequences() {
	for i := range d.Nodes {
		d.Nodes[i].Orphans = d.lost(i, d.down, d.up)
		d.Nodes[i].Breaks = d.lost(i, d.up, d.down)
	}
}

// lost lists the nodes that can be reached along the edges from i and have no way back that does not lead through a
// node already lost. Edges lead from kind to kind, so one pass from kind to kind finds them all.
func (d *drawing) lost(i int, along, back [][]int) []string {
	gone := map[int]bool{i: true}
	out := []string{}
	for layer := []int{i}; len(layer) > 0; {
		var next []int
		for _, n := range layer {
			for _, m := range along[n] {
				if !gone[m] && !slices.ContainsFunc(back[m], func(b int) bool { return !gone[b] }) {
					gone[m] = true
					next = append(next, m)
					out = append(out, d.Nodes[m].ID)
				}
			}
		}
		layer = next
	}
	return out
}
