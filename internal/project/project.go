// Package project says how the project in a folder is started for development, and what it is called.
//
// It promises that the same files always give the same answer, that the answer names the file it comes from, and that a
// folder that says nothing is told what could be said. It reads files of the folder and of those above it and nothing
// else: it runs nothing, asks no network, and knows no port.
package project

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// An App is one program of a project.
type App struct {
	Name    string   // of a Procfile; "" for the only one
	Command []string // ${PORT}, ${HOST}, ${QUAYMASTER_URL} and ${QUAYMASTER_PORT} are put in at the start
	Shell   string   // the line, where a shell runs it
}

// A Project is how a folder is started.
type Project struct {
	Apps    []App
	Source  string // "package.json: script dev", "Procfile", ...
	Program string // that must be installed
	Install string // what to do when Program is missing
	Failed  string // what to do when it ends at once
}

// ErrNone says that a folder does not tell how it is started.
var ErrNone = errors.New("this folder does not say how it is started: there is no dev script in package.json, no Procfile, no Go program, no manage.py")

// maxFile bounds a file that is read.
const maxFile = 1 << 20

// Find looks how the folder dir of root is started, a path such as "home/ann/shop". *CommandError and ErrNone say what is
// missing.
func Find(root fs.FS, dir string) (*Project, error) {
	at := folder{root, dir}
	for _, find := range []func(folder) (*Project, error){procfileDev, node, procfile, golang, django} {
		if p, err := find(at); p != nil || err != nil {
			return p, err
		}
	}
	if at.has("go.mod") {
		return nil, &CommandError{"there is a go.mod and no main package in this folder", "go run ./cmd/web"}
	}
	return nil, ErrNone
}

// A CommandError is a folder that says something, but not enough.
type CommandError struct {
	What    string
	Example string // a command line that may be meant
}

func (e *CommandError) Error() string { return e.What }

// folder is a folder of a file system.
type folder struct {
	fs.FS
	dir string
}

func (f folder) read(name string) ([]byte, error) {
	file, err := f.Open(path.Join(f.dir, name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s is no file of at most 1 MiB", name)
	}
	return fs.ReadFile(f.FS, path.Join(f.dir, name))
}

func (f folder) has(name string) bool {
	info, err := fs.Stat(f.FS, path.Join(f.dir, name))
	return err == nil && !info.IsDir()
}

// up is the folder above; false at the top.
func (f folder) up() (folder, bool) {
	if f.dir == "." || f.dir == "" {
		return f, false
	}
	return folder{f.FS, path.Dir(f.dir)}, true
}

func procfileDev(f folder) (*Project, error) { return f.procfile("Procfile.dev") }
func procfile(f folder) (*Project, error)    { return f.procfile("Procfile") }

// procfile reads a list of processes: NAME: COMMAND. "release" is for deployments alone.
func (f folder) procfile(name string) (*Project, error) {
	text, err := f.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &Project{Source: name}
	seen := map[string]bool{}
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		who, command, ok := strings.Cut(line, ":")
		who, command = Label(who), strings.TrimSpace(command)
		switch {
		case !ok || who == "" || command == "":
			return nil, fmt.Errorf(`%s:%d: write "web: COMMAND", not %q`, name, n+1, line)
		case seen[who]:
			return nil, fmt.Errorf("%s:%d: %s is there twice", name, n+1, who)
		case who == "release" && name == "Procfile":
			continue
		case len(p.Apps) == maxApps:
			return nil, fmt.Errorf("%s:%d: more than %d processes", name, n+1, maxApps)
		}
		seen[who] = true
		p.Apps = append(p.Apps, App{Name: who, Shell: withFlags(f, command)})
	}
	if len(p.Apps) == 0 {
		return nil, &CommandError{name + " names no process", "./server"}
	}
	return p, nil
}

// maxApps bounds a Procfile.
const maxApps = 50

// golang is a Go program in the folder itself.
func golang(f folder) (*Project, error) {
	if !f.module() {
		return nil, nil
	}
	list, err := fs.ReadDir(f.FS, f.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		text, err := f.read(e.Name())
		if err == nil && packageOf(string(text)) == "main" {
			return &Project{
				Apps: []App{{Command: []string{"go", "run", "."}}}, Source: "go.mod", Program: "go", Install: "install Go from https://go.dev/dl",
			}, nil
		}
	}
	return nil, nil
}

// module reports whether the folder belongs to a Go module.
func (f folder) module() bool {
	for ok := true; ok; f, ok = f.up() {
		if f.has("go.mod") {
			return true
		}
	}
	return false
}

// packageOf is the package that a Go file says it belongs to. Files that are not built by default count as none.
func packageOf(text string) string {
	comment := false
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "//go:build ignore"):
			return ""
		case comment || strings.HasPrefix(line, "/*"):
			comment = !strings.Contains(line, "*/")
		case strings.HasPrefix(line, "package "):
			name, _, _ := strings.Cut(strings.TrimPrefix(line, "package "), " ")
			return name
		}
	}
	return ""
}

// django is a manage.py, run by the Python of the project.
func django(f folder) (*Project, error) {
	if !f.has("manage.py") {
		return nil, nil
	}
	python := []string{"python3"}
	switch {
	case f.has(".venv/bin/python"):
		python = []string{".venv/bin/python"}
	case f.has("venv/bin/python"):
		python = []string{"venv/bin/python"}
	case f.has("uv.lock"):
		python = []string{"uv", "run", "python"}
	case f.has("poetry.lock"):
		python = []string{"poetry", "run", "python"}
	case f.has("Pipfile.lock"):
		python = []string{"pipenv", "run", "python"}
	}
	return &Project{
		Apps: []App{{Command: append(python, "manage.py", "runserver", "${HOST}:${PORT}")}}, Source: "manage.py",
		Program: python[0], Install: "install " + path.Base(python[0]), Failed: "are the requirements installed?",
	}, nil
}
