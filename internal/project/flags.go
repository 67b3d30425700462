package project

import (
	"io/fs"
	"path"
	"slices"
	"strings"
)

// A tool is a program that starts a development server.
type tool struct {
	names  []string
	subs   []string // the first argument that is no flag; nil: any or none, "": none
	args   []string // that tell it its port and address
	obeys  bool     // PORT: it gets args only where its command line says another port
	except string   // a flag that must be there, such as --serve
}

var (
	usual  = []string{"--port", "${PORT}", "--host", "${HOST}"}
	strict = []string{"--port", "${PORT}", "--strictPort", "--host", "${HOST}"}
)

// tools are the servers that do not listen on PORT by themselves, each after its own documentation
// (docs/design/dev.md), and those that do unless their command line says otherwise.
var tools = []tool{
	{names: []string{"vite"}, subs: []string{"", "dev", "serve"}, args: strict},
	{names: []string{"react-router"}, subs: []string{"dev"}, args: strict},
	{names: []string{"remix"}, subs: []string{"vite:dev"}, args: strict},
	{names: []string{"vitepress"}, subs: []string{"", "dev"}, args: strict},
	{names: []string{"astro", "vinxi", "vuepress"}, subs: []string{"dev"}, args: usual},
	{names: []string{"ng"}, subs: []string{"serve", "s", "dev"}, args: usual},
	{names: []string{"webpack"}, subs: []string{"serve", "server", "s"}, args: usual},
	{names: []string{"webpack-dev-server"}, args: usual},
	{names: []string{"rspack"}, subs: []string{"serve", "server", "s", "dev"}, args: usual},
	{names: []string{"rsbuild"}, subs: []string{"", "dev"}, args: usual},
	{names: []string{"vue-cli-service"}, subs: []string{"serve"}, args: usual},
	{names: []string{"parcel"}, args: usual},
	{names: []string{"gatsby"}, subs: []string{"develop"}, args: usual},
	{names: []string{"docusaurus"}, subs: []string{"start"}, args: append(usual[:4:4], "--no-open")},
	{names: []string{"storybook"}, subs: []string{"dev"}, args: append(usual[:4:4], "--exact-port", "--ci")},
	{names: []string{"ember"}, subs: []string{"serve", "server", "s"}, args: usual},
	{names: []string{"eleventy"}, args: usual[:2], except: "--serve"},
	{names: []string{"wrangler"}, subs: []string{"dev"}, args: []string{"--port", "${PORT}", "--ip", "${HOST}"}},
	{names: []string{"jekyll"}, subs: []string{"serve", "server", "s"}, args: usual},
	{names: []string{"hugo"}, subs: []string{"server", "serve"}, args: []string{
		"--port", "${PORT}", "--bind", "${HOST}", "--baseURL", "${QUAYMASTER_URL}", "--appendPort=false", "--liveReloadPort", "${QUAYMASTER_PORT}",
	}},
	{names: []string{"flask"}, subs: []string{"run"}, args: usual},
	{names: []string{"fastapi"}, subs: []string{"dev", "run"}, args: usual},
	{names: []string{"uvicorn"}, args: usual},
	{names: []string{"next"}, subs: []string{"", "dev"}, args: usual[:2], obeys: true},
	{names: []string{"nuxt", "nuxi"}, subs: []string{"dev"}, args: usual, obeys: true},
	{names: []string{"rails"}, subs: []string{"server", "s"}, args: usual[:2], obeys: true},
}

// Flags are the arguments that make the program of a command line listen on its port, for a command that a person wrote.
// There are none for a program that is not known, or that says ${PORT} itself.
func Flags(root fs.FS, dir string, command []string) []string {
	return flags(command, folder{root, dir}, 0)
}

// withFlags adds them to a line for a shell, if it is simple enough.
func withFlags(f folder, line string) string {
	words, ok := split(line)
	if !ok {
		return line
	}
	more := flags(words, f, 0)
	for i, w := range more {
		more[i] = `"` + w + `"`
	}
	return strings.Join(append([]string{line}, more...), " ")
}

// maxScripts bounds scripts that call scripts.
const maxScripts = 5

func flags(words []string, f folder, depth int) []string {
	words = bare(words)
	if len(words) == 0 || depth > maxScripts || slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, "$PORT") || strings.Contains(w, "${PORT") }) {
		return nil
	}
	name := path.Base(words[0])
	if script, between := scriptOf(name, words[1:]); script != "" {
		if p, err := f.packageJSON(); err == nil && p.Scripts[script] != "" {
			return scriptFlags(p.Scripts[script], f, between, depth)
		}
		if words[1] == "run" || name == "npm" {
			return nil
		}
		return flags(words[1:], f, depth+1) // pnpm and the like run programs too
	}
	if strings.HasPrefix(name, "python") || name == "php" {
		return interpreted(name, words[1:])
	}
	sub := ""
	if i := slices.IndexFunc(words[1:], func(w string) bool { return !strings.HasPrefix(w, "-") }); i == 0 {
		sub = words[1]
	}
	for _, t := range tools {
		if !slices.Contains(t.names, name) || t.subs != nil && !slices.Contains(t.subs, sub) || t.except != "" && !slices.Contains(words, t.except) {
			continue
		}
		if t.obeys && !saysPort(words) {
			return nil
		}
		return slices.Clone(t.args)
	}
	return nil
}

// saysPort reports whether a command line names a port of its own.
func saysPort(words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool {
		return w == "-p" || w == "--port" || strings.HasPrefix(w, "--port=")
	})
}

// scriptOf is the script of package.json that a package manager is told to run, and what stands between it and its
// arguments.
func scriptOf(manager string, words []string) (script string, between []string) {
	if installs[manager] == "" || len(words) == 0 {
		return "", nil
	}
	if manager == "npm" && !slices.Contains(words, "--") {
		between = []string{"--"}
	}
	switch {
	case (words[0] == "run" || words[0] == "run-script") && len(words) > 1:
		return words[1], between
	case words[0] == "start":
		return "start", between
	case manager != "npm" && !strings.HasPrefix(words[0], "-"):
		return words[0], between
	}
	return "", nil
}

func scriptFlags(line string, f folder, between []string, depth int) []string {
	words, ok := split(line)
	if !ok {
		return nil
	}
	if more := flags(words, f, depth+1); more != nil {
		return append(slices.Clone(between), more...)
	}
	return nil
}

// interpreted are servers that are a script of a language.
func interpreted(name string, words []string) []string {
	at := slices.IndexFunc(words, func(w string) bool { return path.Base(w) == "manage.py" })
	switch {
	case name == "php" && len(words) > 1 && words[0] == "artisan" && words[1] == "serve":
		return slices.Clone(usual)
	case at >= 0 && len(words) == at+2 && words[at+1] == "runserver":
		return []string{"${HOST}:${PORT}"}
	case len(words) == 2 && words[0] == "-m" && words[1] == "http.server":
		return []string{"${PORT}", "--bind", "${HOST}"}
	}
	return nil
}

// wrappers run the program that follows them.
var wrappers = [][]string{
	{"npx"},
	{"bunx"},
	{"bun", "x"},
	{"npm", "exec"},
	{"pnpm", "exec"},
	{"pnpm", "dlx"},
	{"yarn", "exec"},
	{"yarn", "dlx"},
	{"cross-env"},
	{"env"},
	{"exec"},
	{"dotenv"},
	{"bundle", "exec"},
	{"poetry", "run"},
	{"pipenv", "run"},
	{"uv", "run"},
	{"time"},
}

// bare is a command without what stands before the program: variables and programs that only call another.
func bare(words []string) []string {
	for len(words) > 0 {
		rest := words
		for _, w := range wrappers {
			if len(words) > len(w) && slices.Equal(words[:len(w)], w) {
				rest = words[len(w):]
				for len(rest) > 0 && strings.HasPrefix(rest[0], "-") {
					rest = rest[1:]
				}
				break
			}
		}
		if len(rest) > 0 && strings.Contains(rest[0], "=") && !strings.HasPrefix(rest[0], "=") {
			rest = rest[1:]
		}
		if len(rest) == len(words) {
			break
		}
		words = rest
	}
	if len(words) > 1 && path.Base(words[0]) == "node" && strings.Contains(words[1], "node_modules/.bin/") {
		words = words[1:]
	}
	return words
}

// split is the last command of a line for a shell. It is not ok where what is added at the end would not reach it alone.
func split(line string) (words []string, ok bool) {
	if i := strings.LastIndex(line, "&&"); i >= 0 {
		line = line[i+2:]
	}
	word, quote, open := "", rune(0), false
	for _, c := range line {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word += string(c)
		case c == '"' || c == '\'':
			quote, open = c, true
		case strings.ContainsRune("|&;<>()`\\#\n", c):
			return nil, false
		case c == ' ' || c == '\t':
			if open || word != "" {
				words = append(words, word)
			}
			word, open = "", false
		default:
			word += string(c)
		}
	}
	if open || word != "" {
		words = append(words, word)
	}
	return words, quote == 0 && len(words) > 0
}
