package project

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// packageJSON is the part of a package.json that counts here.
type packageJSON struct {
	Scripts        map[string]string `json:"scripts"`
	PackageManager string            `json:"packageManager"` // "pnpm@9.1.0"
}

func (f folder) packageJSON() (*packageJSON, error) {
	text, err := f.read("package.json")
	if err != nil {
		return nil, err
	}
	p := &packageJSON{}
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("package.json cannot be read: %w", err)
	}
	return p, nil
}

// node is a project with a dev script, or else a start script.
func node(f folder) (*Project, error) {
	p, err := f.packageJSON()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	script := "dev"
	if p.Scripts[script] == "" {
		script = "start"
	}
	if p.Scripts[script] == "" {
		if len(p.Scripts) > 0 && !f.has("Procfile") && !f.has("manage.py") {
			return nil, &CommandError{`package.json has no script "dev"`, "npx vite"}
		}
		return nil, nil
	}
	manager, by := f.manager()
	if words, _ := split(p.Scripts[script]); len(words) > 1 && path.Base(bare(words)[0]) == "quaymaster" && slices.Contains(words, "dev") {
		return nil, fmt.Errorf("the script %s of package.json is quaymaster again; start it with %q", script, manager+" run "+script)
	}
	command := []string{manager, "run", script}
	q := &Project{
		Source: fmt.Sprintf("script %s of package.json, %s", script, by), Program: manager, Install: installs[manager],
	}
	if info, err := fs.Stat(f.FS, path.Join(f.dir, "node_modules")); err != nil || !info.IsDir() {
		q.Failed = fmt.Sprintf("is it installed? run %q", manager+" install")
	}
	q.Apps = []App{{Command: append(command, flags(command, f, 0)...)}}
	return q, nil
}

// installs are how the package managers are had.
var installs = map[string]string{
	"npm": "install Node.js from https://nodejs.org", "pnpm": `install it with "corepack enable pnpm", or "npm install -g pnpm"`,
	"yarn": `install it with "corepack enable yarn", or "npm install -g yarn"`, "bun": "install it from https://bun.sh",
}

// lockFiles tell who installed a project.
var lockFiles = []struct{ file, manager string }{
	{"pnpm-lock.yaml", "pnpm"},
	{"yarn.lock", "yarn"},
	{"bun.lock", "bun"},
	{"bun.lockb", "bun"},
	{"package-lock.json", "npm"},
	{"npm-shrinkwrap.json", "npm"},
}

// manager is the package manager of a project, and how it is known: by its lock file here or above (a workspace), up to
// the top of the repository, unless package.json beside it names one.
func (f folder) manager() (name, by string) {
	for ok := true; ok; f, ok = f.up() {
		if p, err := f.packageJSON(); err == nil {
			name, _, _ = strings.Cut(p.PackageManager, "@")
			if installs[name] != "" {
				return name, name + " by packageManager"
			}
		}
		for _, l := range lockFiles {
			if f.has(l.file) {
				return l.manager, l.manager + " by " + l.file
			}
		}
		if _, err := fs.Stat(f.FS, path.Join(f.dir, ".git")); err == nil {
			break
		}
	}
	return "npm", "npm, since there is no lock file"
}
