package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) routesVerb() *cobra.Command {
	var asTree, asDot bool
	c := verb(
		"routes", "List every route, as a table, a tree or a graph", "quaymaster routes --tree", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			switch {
			case asTree && asDot:
				return &coded{exitUsage, errors.New("cannot print a tree and a graph at once: write --tree or --dot")}
			case asTree:
				return show(ctx, s, "/v1/graph", func(g *api.Graph) { printTree(s.out, g) })
			case asDot:
				return show(ctx, s, "/v1/graph", func(g *api.Graph) { printDot(s.out, g) })
			}
			return show(ctx, s, "/v1/routes", func(list *[]api.Route) { s.printRoutes(*list) })
		},
	)
	c.Flags().BoolVar(&asTree, "tree", false, "port -> route -> upstream -> target, and what would be orphaned")
	c.Flags().BoolVar(&asDot, "dot", false, "the same for Graphviz")
	return c
}

func (s *shell) printRoutes(list []api.Route) {
	rows := make([][]string, 0, len(list))
	for _, r := range list {
		from := r.Source
		if r.Place != nil {
			from = fmt.Sprintf("%s:%d", r.Place.File, r.Place.Line)
		}
		rows = append(rows, []string{
			r.Name, strings.Join(r.Match.Ports, ","), strings.Join(r.Match.Domains, ","), strings.Join(r.Match.Path, ","), r.Action, r.Detail, from,
		})
	}
	table(s.out, "NAME PORTS DOMAINS PATH ACTION TO FROM", rows)
}

// tree prints a graph from its ports down. A node used by several stands under each of them.
type tree struct {
	out   io.Writer
	nodes map[string]*api.Node
	below map[string][]string
}

func printTree(w io.Writer, g *api.Graph) {
	t := tree{w, make(map[string]*api.Node, len(g.Nodes)), make(map[string][]string)}
	used := make(map[string]bool)
	for i := range g.Nodes {
		t.nodes[g.Nodes[i].ID] = &g.Nodes[i]
	}
	for _, e := range g.Edges {
		t.below[e.From] = append(t.below[e.From], e.To)
		used[e.To] = true
	}
	for i := range g.Nodes {
		if n := &g.Nodes[i]; !used[n.ID] {
			fmt.Fprintln(w, label(n))
			t.children(n.ID, "")
		}
	}
}

func (t *tree) children(id, indent string) {
	list := t.below[id]
	for i, child := range list {
		n := t.nodes[child]
		if n == nil {
			continue
		}
		fork, next := "├─ ", "│  "
		if i == len(list)-1 {
			fork, next = "└─ ", "   "
		}
		fmt.Fprintln(t.out, indent+fork+label(n))
		t.children(child, indent+next)
	}
}

// label is a node in one line, with what would hang in the air without it.
func label(n *api.Node) string {
	parts := []string{n.Kind + " " + n.Name}
	for _, s := range []string{n.State, n.Note} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	text := strings.Join(parts, ", ")
	if len(n.Orphans) > 0 {
		text += "  [orphans " + some(n.Orphans) + "]"
	}
	if len(n.Breaks) > 0 {
		text += "  [breaks " + some(n.Breaks) + "]"
	}
	return clean(text)
}

// some names the first three of a list and counts the rest.
func some(list []string) string {
	if len(list) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:3], " "), len(list)-3)
	}
	return strings.Join(list, " ")
}

func printDot(w io.Writer, g *api.Graph) {
	quote := func(s string) string { return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(clean(s)) + `"` }
	shapes := map[string]string{"port": "house", "route": "box", "upstream": "ellipse", "target": "cylinder"}
	fmt.Fprintln(w, "digraph quaymaster {\n  rankdir=LR;")
	for _, n := range g.Nodes {
		text := n.Name
		if n.State != "" {
			text += " (" + n.State + ")"
		}
		fmt.Fprintf(w, "  %s [label=%s, shape=%s];\n", quote(n.ID), quote(text), shapes[n.Kind])
	}
	for _, e := range g.Edges {
		fmt.Fprintf(w, "  %s -> %s;\n", quote(e.From), quote(e.To))
	}
	fmt.Fprintln(w, "}")
}
