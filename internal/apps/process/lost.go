package process

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/quaymaster/quaymaster/internal/apps/run"
)

// saltLen is how many hex digits tell the pipes of two instances of an app apart.
const saltLen = 12

// Lost are instances that none of the records tells of, by app: those of a daemon that was killed after it had made their
// pipes and before it had noted them. Adopt ends what there is of one, and says that it is gone.
func (r *Runner) Lost(known []run.Record) map[string][]run.Record {
	noted := make(map[string]bool)
	for _, rec := range known {
		var d data
		if json.Unmarshal(rec.Data, &d) == nil {
			noted[d.Pipe] = true
		}
	}
	list, _ := os.ReadDir(r.opt.Dir) // there is none before the first start
	out := make(map[string][]run.Record)
	for _, e := range list {
		name, is := strings.CutSuffix(e.Name(), ".out")
		base := filepath.Join(r.opt.Dir, name)
		cut := len(name) - saltLen - 1
		if !is || noted[base] || cut <= 0 || name[cut] != '-' || e.Type() != os.ModeNamedPipe {
			continue
		}
		text, _ := json.Marshal(data{Boot: bootID(), Space: pidSpace(), Pipe: base, Group: r.groups.at(name)}) // nothing in it can fail
		out[name[:cut]] = append(out[name[:cut]], run.Record{Data: text})
	}
	return out
}

// Owns reports whether a process is one that was started here or came of one: it has a pipe of our output open, or is in
// the control group of an instance whose pipes are there.
func (r *Runner) Owns(pid int) bool {
	if name := r.groups.of(pid); name != "" {
		if _, err := os.Lstat(filepath.Join(r.opt.Dir, name+".out")); err == nil {
			return true
		}
	}
	return holds(pid, real(r.opt.Dir)+string(filepath.Separator))
}

// real is a path as the kernel names what a process has open.
func real(path string) string {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		return to
	}
	return path
}
