package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
)

// table prints rows with aligned columns. An empty cell is a dash; control characters of foreign text become "?".
func table(w io.Writer, head string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		for i, cell := range r {
			r[i] = clean(cell)
			if r[i] == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush()
}

// clean keeps what others wrote (command lines, reasons) from moving the cursor of a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}

// holder is a process in a few words: nginx (pid 812, user www-data, nginx.service).
func holder(h *api.Holder) string {
	if h == nil {
		return ""
	}
	name := h.Command
	if name == "" {
		name = h.Exe
	}
	if name == "" {
		name = "a process"
	}
	var about []string
	if h.PID > 0 {
		about = append(about, fmt.Sprintf("pid %d", h.PID))
	}
	if h.User != "" {
		about = append(about, "user "+h.User)
	}
	for _, s := range []string{h.Unit, h.Container} {
		if s != "" {
			about = append(about, s)
		}
	}
	if len(about) == 0 {
		return name
	}
	return name + " (" + strings.Join(about, ", ") + ")"
}

// ago is how long something has lasted, in its largest unit.
func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(time.Since(t))
}

func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// plural counts things: 1 route, 2 routes.
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
