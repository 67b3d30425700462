// Package strict reads YAML the way a careful person does: every key known, every value of the type its key wants, every
// mistake with its place and what to write instead, all mistakes at once.
//
// It promises that a text read in pieces gives exactly what the whole text gives. It knows nothing of what the keys mean,
// opens no file but a secret it was told to open, and never guesses: what it does not understand is a Problem.
package strict

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Problem is one mistake in a text. Line and Col count from 1; 0 means that the place is not known.
type Problem struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Col     int    `json:"col,omitempty"`
	Path    string `json:"path,omitempty"` // routes[2].match.ports
	Message string `json:"message"`        // what is wrong
	Remedy  string `json:"remedy,omitempty"`
}

func (p Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
	}
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", p.Line, p.Col)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	if p.Remedy != "" {
		b.WriteString("; " + p.Remedy)
	}
	return b.String()
}

// Problems are an error as long as there is one. Sort them before they are shown.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Sort orders by file and place, and drops repetitions.
func (ps Problems) Sort() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Path, b.Path))
	})
	return slices.Compact(ps)
}

// A Fault is what a type's ReadText says about a text it does not take. The reader adds the place.
type Fault struct{ Message, Remedy string }

func (f *Fault) Error() string { return f.Message + "; " + f.Remedy }

// Faultf returns a fault whose message is formatted.
func Faultf(remedy, format string, args ...any) error {
	return &Fault{Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// Say returns what an error says is wrong, and what to write instead if it is a *Fault.
func Say(err error) (message, remedy string) {
	var f *Fault
	if errors.As(err, &f) {
		return f.Message, f.Remedy
	}
	return err.Error(), ""
}
