package quaymaster

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/quaymaster/quaymaster/"

// mayImport is the house: which rooms a room may enter. docs/ARCHITECTURE.md shows it as a table.
var mayImport = map[string][]string{
	"internal/plan":          {},
	"internal/sniff":         {},
	"internal/wire":          {},
	"internal/state":         {},
	"internal/logs":          {},
	"internal/handover":      {},
	"internal/systemd":       {},
	"internal/apps/launch":   {},
	"internal/apps/leash":    {},
	"internal/project":       {},
	"internal/config":        {"plan", "config/form", "config/strict", "engine/labels"},
	"internal/config/form":   {"config/strict"},
	"internal/config/strict": {},
	"internal/preview":       {},
	"internal/route":         {"plan", "preview"},
	"internal/guard":         {"plan"},
	"internal/relay":         {"wire"},
	"internal/pools":         {"plan", "wire"},
	"internal/ports":         {"plan", "ports/listen", "ports/holder", "ports/evict"},
	"internal/ports/listen":  {"plan"},
	"internal/ports/holder":  {},
	"internal/ports/evict":   {"plan", "ports/listen", "ports/holder"},
	"internal/ports/leases":  {"plan", "ports/holder"},
	"internal/certs":         {"plan", "state", "certs/ca", "certs/acme"},
	"internal/certs/ca":      {},

	"internal/certs/acme":           {"plan", "state", "certs/acme/answer", "certs/acme/authority", "certs/acme/demand", "certs/acme/record"},
	"internal/certs/acme/answer":    {},
	"internal/certs/acme/authority": {"plan"},
	"internal/certs/acme/demand":    {"plan"},
	"internal/certs/acme/record":    {"plan", "apps/launch"},
	"internal/certs/acme/acmetest":  {}, // tests alone import it

	"internal/apps":              {"plan", "state", "logs", "apps/run"},
	"internal/apps/run":          {"plan"},
	"internal/apps/process":      {"plan", "logs", "apps/run", "apps/launch", "ports/holder"},
	"internal/engine":            {"plan", "apps/run", "engine/labels"},
	"internal/engine/labels":     {},
	"internal/engine/containers": {"plan", "apps/run", "engine"},
	"internal/proxy":             {"plan", "route", "guard", "pools", "wire", "relay", "preview"},
	"internal/edge/http1":        {"plan", "wire", "relay"},
	"internal/edge/terminate":    {"plan", "wire"},
	"internal/control":           {"plan", "config", "engine/labels"},
	"internal/edge":              {"plan", "sniff", "wire", "route", "guard", "relay", "pools", "proxy", "edge/http1", "edge/terminate"},
	"internal/api":               {"plan", "config", "control", "ports", "guard", "logs"},
	"internal/trust":             {},
	"internal/doctor":            {"plan", "state", "guard", "ports", "ports/holder", "certs/ca"},
	"internal/daemon":            {"*"},
	"cmd/quaymaster":             {"daemon", "api", "config", "plan", "logs", "ports", "ports/holder", "ports/evict", "apps/launch", "apps/leash", "apps/process", "project", "doctor", "engine", "trust", "certs/ca"},
	"bench":                      {},
	"chaos":                      {"chaos/load"},
	"chaos/load":                 {},
}

// onlyIn names calls that stand in one place of the house alone.
var onlyIn = map[string][]string{
	"net.Listen":          {"internal/ports", "cmd/quaymaster", "bench", "chaos", "internal/certs/acme/acmetest"}, // cmd: the echo target; bench, chaos: what stands behind
	"net.ListenPacket":    {"internal/ports", "internal/certs/acme/acmetest"},
	"exec.Command":        {"bench", "chaos"},
	"exec.CommandContext": {"internal/trust", "internal/certs/acme/record", "internal/ports/holder", "bench", "chaos"},
	"syscall.ForkExec":    {"internal/handover", "internal/apps/launch"},
	"syscall.Exec":        {"internal/apps/launch"},
	"os.StartProcess":     {"internal/apps/leash"},
	"os.FindProcess":      {"internal/ports/evict", "internal/handover"}, // nobody else ends what it did not start
	"time.Sleep":          {"bench"},
	"os.WriteFile":        {"internal/state", "internal/logs", "internal/trust", "bench", "chaos", "internal/certs/acme/acmetest"},
	"os.Create":           {"internal/state", "internal/logs", "bench", "chaos"},
	"os.Rename":           {"internal/state", "internal/logs", "chaos"},
}

// TestArchitecture holds the imports and a few calls against the tables above.
func TestArchitecture(t *testing.T) {
	seen := map[string]bool{}
	comments := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "testdata" || d.Name() == "out") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		room := filepath.ToSlash(filepath.Dir(path))
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		seen[room] = true
		if f.Doc != nil {
			comments[room] = true
		}
		checkImports(t, room, path, f)
		checkCalls(t, room, path, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range seen {
		if !comments[room] {
			t.Errorf("%s: no file has a package comment", room)
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d packages were read; is this the root of the module?", len(seen))
	}
}

func checkImports(t *testing.T, room, path string, f *ast.File) {
	allowed, known := mayImport[room]
	if !known {
		t.Errorf("%s: package %s is not in the import table", path, room)
		return
	}
	for _, i := range f.Imports {
		name, _ := strconv.Unquote(i.Path.Value)
		rest, ours := strings.CutPrefix(name, module)
		if !ours || slices.Contains(allowed, "*") {
			continue
		}
		if !slices.Contains(allowed, strings.TrimPrefix(rest, "internal/")) {
			t.Errorf("%s: %s may not import %s", path, room, rest)
		}
	}
}

func checkCalls(t *testing.T, room, path string, f *ast.File) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		pkg, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		if rooms, guarded := onlyIn[pkg.Name+"."+sel.Sel.Name]; guarded && !slices.Contains(rooms, room) {
			t.Errorf("%s: %s.%s belongs in %v", path, pkg.Name, sel.Sel.Name, rooms)
		}
		return true
	})
}

// TestNoInit keeps package initialisation out: what a package does, it does when it is asked.
func TestNoInit(t *testing.T) {
	_ = filepath.WalkDir("internal", func(path string, d fs.DirEntry, _ error) error {
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(src), "\nfunc init()") {
			t.Errorf("%s: has an init func", path)
		}
		return nil
	})
}
