package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) appsVerb() *cobra.Command {
	c := verb(
		"apps", "List the apps that the daemon runs", "quaymaster apps --json", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			return show(ctx, s, "/v1/apps", func(list *[]api.App) { s.printApps(*list) })
		},
	)
	var newPort bool
	restart := verb(
		"restart NAME", "Stop and start an app; requests wait meanwhile", "quaymaster apps restart web",
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return s.moveApp(ctx, args[0], "restart", newPort) },
	)
	restart.Flags().BoolVar(&newPort, "new-port", false, "on another port than the one it has")
	c.AddCommand(
		verb(
			"start NAME", "Start an app, one in a crash loop too; exit 1 unless it becomes ready", "quaymaster apps start web",
			cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return s.moveApp(ctx, args[0], "start", false) },
		),
		verb(
			"stop NAME", "Stop an app until it is started again", "quaymaster apps stop web",
			cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return s.moveApp(ctx, args[0], "stop", false) },
		),
		restart, s.appLogsVerb(),
		verb(
			"remove NAME", "End an app that was set by API, and give its port back", "quaymaster apps remove web",
			cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return s.removeApp(ctx, args[0]) },
		),
	)
	return c
}

func (s *shell) printApps(list []api.App) {
	rows := make([][]string, 0, len(list))
	for _, a := range list {
		pid, port, up, mem, cpu := "", "", "", "", ""
		if a.PID > 0 {
			pid = strconv.Itoa(a.PID)
		}
		if a.Port > 0 {
			port = strconv.Itoa(a.Port)
		}
		if a.Path != "" {
			port = a.Path
		}
		if a.Uptime > 0 {
			up = span(time.Duration(a.Uptime * float64(time.Second)))
		}
		if a.Memory > 0 {
			mem = fmt.Sprintf("%.1f MiB", float64(a.Memory)/(1<<20))
		}
		if a.Memory > 0 || a.CPU > 0 { // it is measured
			cpu = fmt.Sprintf("%.1f s", a.CPU)
		}
		rows = append(rows, []string{a.Name, a.State, port, a.URL, pid, up, strconv.Itoa(a.Restarts), mem, cpu, a.Reason})
	}
	table(s.out, "APP STATE PORT URL PID UPTIME RESTARTS MEMORY CPU REASON", rows)
}

// moveApp starts, stops or restarts an app and says what came of it.
func (s *shell) moveApp(ctx context.Context, name, verb string, newPort bool) error {
	path := "/v1/apps/" + url.PathEscape(name) + "/" + verb
	if newPort {
		path += "?new_port=true"
	}
	c := s.client()
	defer c.Close()
	var raw json.RawMessage
	if err := c.Do(ctx, http.MethodPost, path, "", nil, &raw); err != nil {
		return cannot(verb+" "+name, err)
	}
	var a api.App
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("cannot read the daemon's answer: %w; are both of one version?", err)
	}
	if s.json {
		if err := s.printJSON(raw); err != nil {
			return err
		}
	}
	done := a.State == "ready" || verb == "stop" && (a.State == "stopped" || a.State == "sleeping")
	switch {
	case !done:
		return fmt.Errorf("%s is %s: %s; \"quaymaster apps logs %s\" shows what it says", name, a.State, a.Reason, name)
	case s.json:
	case a.URL != "" && a.State == "ready":
		fmt.Fprintf(s.out, "%s is %s at %s\n", name, a.State, a.URL)
	default:
		fmt.Fprintf(s.out, "%s is %s\n", name, a.State)
	}
	return nil
}

// removeApp takes an app out of the API layer. One of a file is taken out of the file.
func (s *shell) removeApp(ctx context.Context, name string) error {
	c := s.client()
	defer c.Close()
	var raw json.RawMessage
	if err := c.Do(ctx, http.MethodDelete, "/v1/apps/"+url.PathEscape(name), "*", nil, &raw); err != nil {
		return cannot("remove "+name, err)
	}
	if s.json {
		return s.printJSON(raw)
	}
	fmt.Fprintf(s.out, "removed %s\n", name)
	return nil
}

func (s *shell) appLogsVerb() *cobra.Command {
	var lines int
	var since string
	var follow bool
	c := verb(
		"logs NAME", "Show what an app has said", "quaymaster apps logs -f web", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error { return s.appLogs(ctx, args[0], lines, since, follow) },
	)
	c.Flags().IntVarP(&lines, "lines", "n", 0, "the last `N` lines (default 100)")
	c.Flags().StringVar(&since, "since", "", "lines since a `TIME` (RFC 3339), or for a duration such as 10m")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "and those to come")
	return c
}

func (s *shell) appLogs(ctx context.Context, name string, lines int, since string, follow bool) error {
	q := url.Values{}
	if lines > 0 {
		q.Set("lines", strconv.Itoa(lines))
	}
	if since != "" {
		q.Set("since", since)
	}
	path := "/v1/apps/" + url.PathEscape(name) + "/logs?"
	c := s.client()
	defer c.Close()
	if follow {
		q.Set("follow", "true")
		err := c.Lines(ctx, path+q.Encode(), s.printLine)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			return fmt.Errorf("the daemon has ended, and what %s says is not followed any more; ask again when one runs", name)
		}
		return cannot("follow the output of "+name, err)
	}
	var list []api.AppLine
	if err := c.Get(ctx, path+q.Encode(), &list); err != nil {
		return cannot("show the output of "+name, err)
	}
	if s.json {
		return s.printJSON(list)
	}
	w := bufio.NewWriter(s.out)
	for _, l := range list {
		fmt.Fprintln(w, line(l))
	}
	return w.Flush()
}

func (s *shell) printLine(l api.AppLine) bool {
	if s.json {
		text, err := json.Marshal(l)
		if err != nil {
			return false
		}
		_, err = fmt.Fprintf(s.out, "%s\n", text)
		return err == nil
	}
	_, err := fmt.Fprintln(s.out, line(l))
	return err == nil
}

// line is a line of output for people. What we say about the app stands between dashes.
func line(l api.AppLine) string {
	text := plainly(l.Text)
	if l.Stream == "quaymaster" {
		return l.Time.Local().Format("15:04:05.000") + " -- " + text + " --"
	}
	return text
}

// colour is how a program asks for a colour, and for nothing else that a terminal can do.
var colour = regexp.MustCompile(`^\x1b\[[0-9;:]*m`)

// plainly is a line of an app without what would take a terminal over: its colours are kept.
func plainly(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		if c := colour.FindString(text); c != "" {
			b.WriteString(c)
			text = text[len(c):]
			continue
		}
		r, n := utf8.DecodeRuneInString(text)
		if r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 {
			r = '?'
		}
		b.WriteRune(r)
		text = text[n:]
	}
	return b.String()
}
