package project

import (
	"io/fs"
	"path"
	"strings"
)

// maxLabel is what DNS gives a label.
const maxLabel = 63

// Label makes a DNS label of a text: small letters, digits and single dashes. "" is a text without any.
func Label(text string) string {
	var b strings.Builder
	dash := false
	for _, c := range strings.ToLower(text) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			if dash && b.Len() > 0 {
				b.WriteByte('-')
			}
			dash = false
			b.WriteRune(c)
		default:
			dash = true
		}
	}
	out := b.String()
	if len(out) > maxLabel {
		out = strings.TrimRight(out[:maxLabel], "-")
	}
	return out
}

// Name is what the project in a folder is called: after the folder, with the branch before it in a git worktree that is
// not the first one ("login.shop"). The top of such a worktree is called like the repository, not like its own folder.
func Name(root fs.FS, dir string) string {
	name := Label(path.Base(dir))
	w := worktree(folder{root, dir})
	if w != nil && w.top == dir && w.repository != "" {
		name = w.repository
	}
	if name == "" {
		name = "app"
	}
	if w != nil && w.branch != "" {
		name = w.branch + "." + name
	}
	return name
}

// tree is a git worktree beside the first one.
type tree struct {
	top        string // its folder
	branch     string // label of what is checked out
	repository string // label of the first worktree's folder
}

// worktree is the linked worktree that a folder is in, nil if it is in none.
func worktree(f folder) *tree {
	for ok := true; ok; f, ok = f.up() {
		if info, err := fs.Stat(f.FS, path.Join(f.dir, ".git")); err == nil && info.IsDir() {
			return nil
		}
		text, err := f.read(".git")
		if err != nil {
			continue
		}
		at, found := strings.CutPrefix(strings.TrimSpace(string(text)), "gitdir: ")
		if !found {
			return nil
		}
		at = f.path(at)
		if path.Base(path.Dir(at)) != "worktrees" {
			return nil // a submodule
		}
		git := folder{f.FS, at}
		w := &tree{top: f.dir, branch: Label(path.Base(at))}
		if head, err := git.read("HEAD"); err == nil {
			if ref, ok := strings.CutPrefix(strings.TrimSpace(string(head)), "ref: refs/heads/"); ok && Label(ref) != "" {
				w.branch = Label(ref)
			}
		}
		common := path.Dir(path.Dir(at))
		if path.Base(common) == ".git" {
			common = path.Dir(common)
		}
		w.repository = Label(strings.TrimSuffix(path.Base(common), ".git")) // a bare one: shop.git
		return w
	}
	return nil
}

// path is a path of a file of git's in terms of the file system.
func (f folder) path(p string) string {
	if path.IsAbs(p) {
		return strings.TrimPrefix(path.Clean(p), "/")
	}
	return path.Join(f.dir, p)
}
