package project

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// files makes a file system of paths and contents.
func files(pairs ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return m
}

const viteJSON = `{"scripts": {"dev": "vite"}}`

func TestA18_AFolderSaysHowItIsStarted(t *testing.T) {
	for _, c := range []struct {
		name   string
		fs     fstest.MapFS
		want   string // commands, one a line
		source string
	}{
		{"npm by its lock file", files("p/package.json", viteJSON, "p/package-lock.json", ""), "npm run dev -- --port ${PORT} --strictPort --host ${HOST}", "package-lock.json"},
		{"pnpm takes arguments as they are", files("p/package.json", viteJSON, "p/pnpm-lock.yaml", ""), "pnpm run dev --port ${PORT} --strictPort --host ${HOST}", "pnpm-lock.yaml"},
		{"yarn", files("p/package.json", viteJSON, "p/yarn.lock", ""), "yarn run dev --port ${PORT} --strictPort --host ${HOST}", "yarn.lock"},
		{"bun", files("p/package.json", viteJSON, "p/bun.lock", ""), "bun run dev --port ${PORT} --strictPort --host ${HOST}", "bun.lock"},
		{"bun's older lock file", files("p/package.json", viteJSON, "p/bun.lockb", ""), "bun run dev --port ${PORT} --strictPort --host ${HOST}", "bun.lockb"},
		{"no lock file", files("p/package.json", `{"scripts": {"dev": "node server.js"}}`), "npm run dev", "no lock file"},
		{"packageManager before a lock file", files("p/package.json", `{"scripts": {"dev": "x"}, "packageManager": "pnpm@9.1.0+sha"}`, "p/package-lock.json", ""), "pnpm run dev", "packageManager"},
		{"a workspace has its lock file above", files("r/apps/p/package.json", `{"scripts": {"dev": "x"}}`, "r/pnpm-lock.yaml", "", "r/.git/HEAD", ""), "", ""},
		{"a lock file above the repository is another's", files("p/package.json", `{"scripts": {"dev": "x"}}`, "p/.git/HEAD", "", "yarn.lock", ""), "npm run dev", "no lock file"},
		{"start where there is no dev", files("p/package.json", `{"scripts": {"start": "ng serve"}}`, "p/package-lock.json", ""), "npm run start -- --port ${PORT} --host ${HOST}", "script start"},
		{"dev before a Procfile", files("p/package.json", `{"scripts": {"dev": "x"}}`, "p/Procfile", "web: y"), "npm run dev", "package.json"},
		{"Procfile.dev before dev", files("p/package.json", `{"scripts": {"dev": "x"}}`, "p/Procfile.dev", "web: y\n# no\n\njob: z -v"), "web: y\njob: z -v", "Procfile.dev"},
		{"a release is none for development", files("p/Procfile", "release: migrate\nweb: ./web\n"), "web: ./web", "Procfile"},
		{"a line of a Procfile gets flags", files("p/Procfile", "web: npx vite\nall: npx vite & x"), `web: npx vite "--port" "${PORT}" "--strictPort" "--host" "${HOST}"` + "\nall: npx vite & x", "Procfile"},
		{"a Procfile where package.json has no script for it", files("p/package.json", `{"scripts": {"build": "x"}}`, "p/Procfile", "web: y"), "web: y", "Procfile"},
		{"Go", files("p/go.mod", "module x", "p/main.go", "// Package main.\npackage main\n"), "go run .", "go.mod"},
		{"Go below its module", files("go.mod", "module x", "p/x.go", "/*\npackage no\n*/\npackage main"), "go run .", "go.mod"},
		{"Django", files("p/manage.py", ""), "python3 manage.py runserver ${HOST}:${PORT}", "manage.py"},
		{"Django in a virtual environment", files("p/manage.py", "", "p/.venv/bin/python", ""), ".venv/bin/python manage.py runserver ${HOST}:${PORT}", "manage.py"},
		{"Django by uv", files("p/manage.py", "", "p/uv.lock", ""), "uv run python manage.py runserver ${HOST}:${PORT}", "manage.py"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := "p"
			if c.want == "" {
				dir, c.want, c.source = "r/apps/p", "pnpm run dev", "pnpm-lock.yaml"
			}
			p, err := Find(c.fs, dir)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range p.Apps {
				line := strings.Join(a.Command, " ")
				if a.Shell != "" {
					line = a.Name + ": " + a.Shell
				}
				got = append(got, line)
			}
			if g := strings.Join(got, "\n"); g != c.want || !strings.Contains(p.Source, c.source) {
				t.Errorf("%s\nby %s, want\n%s\nby %s", g, p.Source, c.want, c.source)
			}
		})
	}
}

func TestA18_AFolderThatDoesNotSayHow(t *testing.T) {
	for _, c := range []struct {
		name string
		fs   fstest.MapFS
		want string
	}{
		{"nothing", files("p/readme", ""), "dev script"},
		{"scripts, and none to start", files("p/package.json", `{"scripts": {"build": "x"}}`), `no script "dev"`},
		{"broken JSON", files("p/package.json", `{"scripts"`), "package.json cannot be read"},
		{"a script that is ourselves", files("p/package.json", `{"scripts": {"dev": "npx quaymaster dev -- vite"}}`, "p/yarn.lock", ""), `start it with "yarn run dev"`},
		{"a library", files("p/go.mod", "module x", "p/x.go", "package x"), "no main package"},
		{"a generator is no program", files("p/go.mod", "module x", "p/gen.go", "//go:build ignore\n\npackage main"), "no main package"},
		{"a Procfile without processes", files("p/Procfile", "# none\n"), "names no process"},
		{"a line that is none", files("p/Procfile", "web: x\nnonsense\n"), "Procfile:2:"},
		{"a name twice", files("p/Procfile", "web: x\nweb: y\n"), "Procfile:2: web is there twice"},
		{"a file too large", files("p/Procfile", strings.Repeat("#", maxFile+1)), "1 MiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Find(c.fs, "p")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%+v, %v, want an error with %q", p, err, c.want)
			}
			var less *CommandError
			if errors.As(err, &less) && less.Example == "" {
				t.Error("no example")
			}
		})
	}
}

func TestA18_ServersThatIgnorePortGetTheirFlags(t *testing.T) {
	scripts := files("p/package.json", `{"scripts": {
		"dev": "vite", "again": "npm run dev", "yet": "pnpm dev", "both": "vite & node api.js", "after": "tsc -b && vite --open",
		"loop": "npm run loop", "fixed": "next dev -p 3000", "told": "vite --port $PORT"
	}}`)
	const usual, strict = "--port ${PORT} --host ${HOST}", "--port ${PORT} --strictPort --host ${HOST}"
	for command, want := range map[string]string{
		"vite":                        strict,
		"vite --open":                 strict,
		"vite dev":                    strict,
		"vite build":                  "",
		"vite preview":                "",
		"npx -y vite":                 strict,
		"pnpm exec vite":              strict,
		"pnpm vite":                   strict, // no such script
		"./node_modules/.bin/vite":    strict,
		"node node_modules/.bin/vite": strict,
		"cross-env A=b vite":          strict,
		"A=b vite":                    strict,
		"npm run dev":                 "-- " + strict,
		"npm run dev --":              strict,
		"npm run again":               "-- -- " + strict,
		"pnpm run dev":                strict,
		"yarn dev":                    strict,
		"bun run dev":                 strict,
		"npm run yet":                 "-- " + strict,
		"npm run both":                "",
		"npm run after":               "-- " + strict,
		"npm run loop":                "",
		"npm run told":                "",
		"npm run none":                "",
		"npm install":                 "",
		"astro dev":                   usual,
		"astro build":                 "",
		"ng serve":                    usual,
		"ng build":                    "",
		"react-router dev":            strict,
		"remix vite:dev":              strict,
		"vitepress dev docs":          strict,
		"vinxi dev":                   usual,
		"webpack serve":               usual,
		"webpack":                     "",
		"webpack-dev-server":          usual,
		"rsbuild dev":                 usual,
		"vue-cli-service serve":       usual,
		"parcel index.html":           usual,
		"gatsby develop":              usual,
		"docusaurus start":            usual + " --no-open",
		"storybook dev":               usual + " --exact-port --ci",
		"ember serve":                 usual,
		"eleventy --serve":            "--port ${PORT}",
		"eleventy":                    "",
		"wrangler dev":                "--port ${PORT} --ip ${HOST}",
		"bundle exec jekyll serve":    usual,
		"hugo server":                 "--port ${PORT} --bind ${HOST} --baseURL ${QUAYMASTER_URL} --appendPort=false --liveReloadPort ${QUAYMASTER_PORT}",
		"flask run":                   usual,
		"uv run fastapi dev":          usual,
		"uvicorn main:app":            usual,
		"php artisan serve":           usual,
		"python manage.py runserver":  "${HOST}:${PORT}",
		"python3 manage.py migrate":   "",
		"python3 -m http.server":      "${PORT} --bind ${HOST}",
		"next dev":                    "", // it obeys PORT
		"next dev -p 3000":            "--port ${PORT}",
		"npm run fixed":               "-- --port ${PORT}",
		"nuxt dev":                    "",
		"nuxi dev --port 3000":        usual,
		"rails server":                "",
		"react-scripts start":         "",
		"./server":                    "",
		"vite --port ${PORT}":         "",
	} {
		if got := strings.Join(Flags(scripts, "p", strings.Fields(command)), " "); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

func TestA18_ANameIsMadeOfTheFolder(t *testing.T) {
	for text, want := range map[string]string{
		"shop": "shop", "My Shop": "my-shop", "shop_2.0": "shop-2-0", "--x--": "x", "Ünï": "n", "": "", "...": "",
		strings.Repeat("a", 62) + "-b": strings.Repeat("a", 62), strings.Repeat("a", 70): strings.Repeat("a", 63),
	} {
		if got := Label(text); got != want {
			t.Errorf("Label(%q) = %q, want %q", text, got, want)
		}
	}
	linked := func(head string) fstest.MapFS {
		return files("src/shop/.git/HEAD", "", "src/shop/.git/worktrees/wt/HEAD", head, "src/wt/.git", "gitdir: /src/shop/.git/worktrees/wt\n", "src/wt/apps/web/x", "")
	}
	for _, c := range []struct {
		name string
		fs   fstest.MapFS
		dir  string
		want string
	}{
		{"a folder", files("src/shop/x", ""), "src/shop", "shop"},
		{"no letters", files("src/___/x", ""), "src/___", "app"},
		{"the top of everything", files("x", ""), ".", "app"},
		{"a repository", files("src/shop/.git/HEAD", "ref: refs/heads/login"), "src/shop", "shop"},
		{"a worktree is called like the repository", linked("ref: refs/heads/feature/Login\n"), "src/wt", "feature-login.shop"},
		{"a folder in a worktree", linked("ref: refs/heads/login\n"), "src/wt/apps/web", "login.web"},
		{"nothing but a commit", linked("0123456789abcdef\n"), "src/wt", "wt.shop"},
		{"a relative gitdir", files("s/.git/worktrees/w/HEAD", "ref: refs/heads/b", "w/.git", "gitdir: ../s/.git/worktrees/w"), "w", "b.s"},
		{"a bare repository", files("s.git/worktrees/w/HEAD", "ref: refs/heads/b", "w/.git", "gitdir: /s.git/worktrees/w"), "w", "b.s"},
		{"a submodule", files("s/.git/modules/m/HEAD", "ref: refs/heads/b", "s/m/.git", "gitdir: ../.git/modules/m"), "s/m", "m"},
	} {
		if got := Name(c.fs, c.dir); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// FuzzProcfile: files come from anywhere.
func FuzzProcfile(f *testing.F) {
	f.Add("web: npm run dev\n", `{"scripts": {"dev": "vite"}}`)
	f.Add("web: 'a", `{"scripts": {"dev": "npm run dev"}}`)
	f.Fuzz(func(t *testing.T, proc, pack string) {
		fs := files("p/Procfile.dev", proc, "p/package.json", pack)
		p, err := Find(fs, "p")
		if err == nil && len(p.Apps) == 0 {
			t.Error("no app and no error")
		}
		words, _ := split(proc)
		if len(words) > 0 && slices.Contains(Flags(fs, "p", words), "") {
			t.Error("an empty flag")
		}
	})
}
