package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/apps/leash"
	"github.com/quaymaster/quaymaster/internal/project"
)

func (s *shell) devVerb() *cobra.Command {
	return &cobra.Command{
		Use: "dev [NAME] [-- COMMAND...]", Short: "Run the project in this folder at https://NAME.localhost until Ctrl-C",
		Long: `Runs the project in this folder, on a port of its own, at https://NAME.localhost, until Ctrl-C.

COMMAND is found: apps of a quaymaster.yaml, Procfile.dev, the dev script of package.json (by npm, pnpm, yarn or
bun, as the lock file says), Procfile, "go run .", manage.py. It gets PORT, HOST and QUAYMASTER_URL, which may stand
in it as '${PORT}'; servers that do not listen on PORT by themselves, such as Vite, get their flags.

NAME is the folder's; in a git worktree the branch stands before it: login.shop.localhost. Several projects run at
once. A running daemon is used, or one is started that ends with the last project. Nothing is left when this ends, in
whatever way.

Exit codes: 0 stopped, or the command ended well; 1 it failed; 2 wrong usage, or no command was found.`,
		Example: "  quaymaster dev\n  quaymaster dev shop -- ./server --port '${PORT}'",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			var name string
			var command []string
			if at := c.ArgsLenAtDash(); at >= 0 {
				args, command = args[:at], args[at:]
			}
			if len(args) > 1 {
				return fmt.Errorf("dev takes one NAME; write -- before a command: quaymaster dev %s -- %s", args[0], strings.Join(args[1:], " "))
			}
			if len(args) == 1 {
				name = args[0]
			}
			return failed(s.dev(c.Context(), name, command))
		},
	}
}

// leashVerb is what dev runs to become the parent of an app that must not outlive it. It is no verb for people.
func (s *shell) leashVerb() *cobra.Command {
	return &cobra.Command{
		Use: "leash -- PATH NAME [ARGUMENT...]", Hidden: true, Args: cobra.MinimumNArgs(2),
		Short: "Run an app that ends with the one who runs this",
		RunE: func(_ *cobra.Command, args []string) error {
			if code := leash.Become(args[0], args[1:]); code != 0 {
				return &coded{code, nil}
			}
			return nil
		},
	}
}

// devNames is what NAME may be: labels with dots between.
var devNames = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,5}$`)

func (s *shell) dev(ctx context.Context, name string, command []string) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	name = strings.TrimSuffix(name, ".localhost") // as the URL has it
	d := &devRun{s: s, dir: dir, given: name != ""}
	d.say = newDevSay(s.out, s.err)
	if name != "" && !devNames.MatchString(name) {
		hint := project.Label(name)
		if hint == "" {
			hint = "shop"
		}
		return &coded{exitUsage, fmt.Errorf("cannot call a project %q: a name is of small letters, digits and dashes, such as %s", name, hint)}
	}
	if d.base = name; name == "" {
		d.base = project.Name(os.DirFS("/"), inRoot(dir))
	}
	if err := d.find(command); err != nil {
		return &coded{exitUsage, err}
	}
	return d.run(ctx)
}

// inRoot is a path in terms of os.DirFS("/").
func inRoot(dir string) string {
	if dir = strings.TrimPrefix(filepath.ToSlash(filepath.Clean(dir)), "/"); dir == "" {
		return "."
	}
	return dir
}

// find decides what is run: the command that was given, the apps of a configuration, or what the folder says.
func (d *devRun) find(command []string) error {
	root, in := os.DirFS("/"), inRoot(d.dir)
	if len(command) > 0 {
		more := project.Flags(root, in, command)
		return d.take(&project.Project{Apps: []project.App{{Command: append(slices.Clone(command), more...)}}, Source: "the command line"})
	}
	if file := d.appsFile(); file != "" {
		d.file = file
		return d.readFile()
	}
	p, err := project.Find(root, in)
	var less *project.CommandError
	switch {
	case errors.As(err, &less):
		return fmt.Errorf("cannot tell how %s is started: %w; say it, such as: quaymaster dev %s-- %s", d.dir, err, d.nameAgain(), less.Example)
	case errors.Is(err, project.ErrNone):
		return fmt.Errorf("cannot tell how %s is started: %w; say it, such as: quaymaster dev %s-- ./server --port '${PORT}'", d.dir, err, d.nameAgain())
	case err != nil:
		return fmt.Errorf("cannot tell how %s is started: %w", d.dir, err)
	}
	return d.take(p)
}

func (d *devRun) nameAgain() string {
	if d.given {
		return d.base + " "
	}
	return ""
}

// take makes the apps of a project.
func (d *devRun) take(p *project.Project) error {
	if p.Program != "" && !strings.Contains(p.Program, "/") {
		if _, err := exec.LookPath(p.Program); err != nil {
			return fmt.Errorf("cannot start %s: %s is needed (%s) and is not in PATH; %s", d.dir, p.Program, p.Source, p.Install)
		}
	}
	d.source, d.failed = p.Source, p.Failed
	for _, a := range p.Apps {
		app := &devApp{name: a.Name, command: a.Command, dir: d.dir}
		if a.Shell != "" {
			app.command = []string{"sh", "-c", a.Shell}
			app.shown = a.Shell
		}
		d.apps = append(d.apps, app)
	}
	d.place()
	return nil
}

// place gives each app its host name: the project's to the only one, to "web" or else to the first, and NAME.PROJECT to the others.
func (d *devRun) place() {
	front := slices.IndexFunc(d.apps, func(a *devApp) bool { return a.name == "web" })
	for i, a := range d.apps {
		if a.label = a.name; a.label == "" {
			a.label = d.base
		}
		a.host = d.base + ".localhost"
		if i != max(front, 0) {
			a.host = a.name + "." + a.host
		}
	}
}

// environ is what an app finds: our own environment, and where it listens and is reached.
func (a *devApp) environ(color bool) []string {
	put := a.placeholders()
	var out []string
	own := map[string]string{
		"PORT": put.Replace("${PORT}"), "HOST": put.Replace("${HOST}"), "QUAYMASTER_URL": a.url(),
	}
	for _, e := range a.env {
		own[e[0]] = put.Replace(e[1])
	}
	if color {
		if _, set := os.LookupEnv("FORCE_COLOR"); !set {
			own["FORCE_COLOR"] = "1" // it writes to us, who write to a terminal
		}
	}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if _, ours := own[name]; !ours && !slices.Contains(notForApps, name) {
			out = append(out, v)
		}
	}
	for name, value := range own {
		out = append(out, name+"="+value)
	}
	slices.Sort(out)
	return out
}

// notForApps are variables that a service manager means for us alone.
var notForApps = []string{"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"}

func (a *devApp) placeholders() *strings.Replacer {
	public := ""
	if u, err := url.Parse(a.url()); err == nil {
		if public = u.Port(); public == "" {
			public = "443"
		}
	}
	return strings.NewReplacer(
		"${PORT}", fmt.Sprint(a.port), "${HOST}", "127.0.0.1", "${QUAYMASTER_URL}", a.url(), "${QUAYMASTER_PORT}", public, "${SOCKET}", "",
	)
}

// argv is the command with what is known by now.
func (a *devApp) argv() []string {
	put := a.placeholders()
	out := make([]string, len(a.command))
	for i, w := range a.command {
		out[i] = put.Replace(w)
	}
	if a.shown != "" { // a shell puts in what it knows
		copy(out, a.command)
		out[2] = strings.ReplaceAll(a.command[2], "${QUAYMASTER_PORT}", put.Replace("${QUAYMASTER_PORT}"))
	}
	return out
}

// url is where the app is reached.
func (a *devApp) url() string { return publicURL("https", a.host, int(a.https.Load()), 443) }

// plainURL is where it is reached without TLS; "" if it is not.
func (a *devApp) plainURL() string {
	if a.http.Load() == 0 {
		return ""
	}
	return publicURL("http", a.host, int(a.http.Load()), 80)
}

func publicURL(scheme, host string, port, usual int) string {
	if port == usual {
		return scheme + "://" + host
	}
	return fmt.Sprintf("%s://%s:%d", scheme, host, port)
}
