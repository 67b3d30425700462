package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// A framework is made by npm as people make it, and shows a page that can be changed.
type framework struct {
	name   string
	create string // a line for a shell, in an empty folder, that makes the folder of that name
	alone  string // starts it without us on $PORT
	files  []string
	page   string // a file
	old    string // a text of it, which the page shows
}

var frameworks = []framework{
	{
		name: "vite", create: `npm create --yes vite@latest vite -- --template react-ts --no-interactive && cd vite && npm install --no-audit --no-fund`,
		alone: `npm run dev -- --port $PORT --strictPort --host 127.0.0.1`, page: "src/App.tsx", old: "Get started",
	},
	{
		name: "next", create: `npx --yes create-next-app@latest next --ts --app --no-eslint --no-tailwind --no-src-dir --import-alias "@/*" --use-npm --yes`,
		alone: `npm run dev`, page: "app/page.tsx", old: "Page of the test",
		files: []string{ // without letters from elsewhere
			"app/layout.tsx", "export default function Layout({ children }: { children: React.ReactNode }) { return <html><body>{children}</body></html> }\n",
			"app/page.tsx", "export default function Page() { return <h1>Page of the test</h1> }\n",
		},
	},
}

// TestA18_RealFrameworks needs the npm registry: `make test-frameworks`. QM_FRAMEWORKS is a folder for the projects, which
// are made there if they are not there already.
func TestA18_RealFrameworks(t *testing.T) {
	home := os.Getenv("QM_FRAMEWORKS")
	if home == "" {
		t.Skip("make test-frameworks runs it")
	}
	for _, f := range frameworks {
		t.Run(f.name, func(t *testing.T) {
			dir := filepath.Join(home, f.name)
			if _, err := os.Stat(dir + "/node_modules"); err != nil {
				f.make(t, home)
			}
			for i := 0; i < len(f.files); i += 2 {
				if err := os.WriteFile(filepath.Join(dir, f.files[i]), []byte(f.files[i+1]), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			f.alonePage(t, dir) // it fills its caches
			h := newDevHome(t)
			var alone, ours []time.Duration
			for range 5 {
				alone = append(alone, f.alonePage(t, dir))
				ours = append(ours, f.devPage(t, h, dir))
			}
			slices.Sort(alone)
			slices.Sort(ours)
			t.Logf("%s: the page shows after %v alone and after %v by dev (median of 5; %v, %v)", f.name, alone[2], ours[2], alone, ours)
			if ours[2] > alone[2]+time.Second {
				t.Errorf("dev takes %v longer than the server alone", ours[2]-alone[2])
			}
			f.hotReload(t, h, dir)
		})
	}
}

func (f *framework) make(t *testing.T, home string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", f.create)
	cmd.Dir = home
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", f.create, err, out)
	}
}

// alonePage is how long the page takes without us.
func (f *framework) alonePage(t *testing.T, dir string) time.Duration {
	t.Helper()
	port := freePort(t)
	cmd := exec.Command("sh", "-c", f.alone)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), fmt.Sprintf("PORT=%d", port), "NEXT_TELEMETRY_DISABLED=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	untilPage(t, c, fmt.Sprintf("http://127.0.0.1:%d/", port))
	return time.Since(begun)
}

// devPage is how long it takes with us: from our start, a daemon included, to the page over https.
func (f *framework) devPage(t *testing.T, h *devHome, dir string) time.Duration {
	t.Helper()
	begun := time.Now()
	p := h.dev(dir, []string{"NEXT_TELEMETRY_DISABLED=1"})
	at := p.said(`will be at (\S+)`)
	_, port, _ := strings.Cut(strings.TrimPrefix(at, "https://"), ":")
	c := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // its root is known when the daemon is, and is not waited for
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+cmp.Or(port, "443"))
		},
	}}
	untilPage(t, c, at)
	took := time.Since(begun)
	p.signal(syscall.SIGTERM)
	p.wait()
	h.nothingLeft()
	return took
}

// untilPage asks for a page until it is there, not so often that asking for it keeps it from being made.
func untilPage(t *testing.T, c *http.Client, at string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		res, err := c.Get(at)
		if err != nil {
			continue
		}
		_, err = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if err == nil && res.StatusCode == 200 {
			return
		}
	}
	t.Fatalf("%s does not show", at)
}

// hotReload changes a file while a browser shows the page over https: the page changes without being loaded again.
func (f *framework) hotReload(t *testing.T, h *devHome, dir string) {
	t.Helper()
	p := h.dev(dir, []string{"NEXT_TELEMETRY_DISABLED=1"})
	at := p.ready(f.name)
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(
		chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.IgnoreCertErrors,
		chromedp.Flag("no-proxy-server", true), chromedp.Flag("disable-background-networking", true), chromedp.WSURLReadTimeout(time.Minute),
	)...)
	defer cancel()
	tab, cancel := chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {}))
	defer cancel()
	visit(t, tab, at)
	shows(t, tab, fmt.Sprintf(`document.body.innerText.includes(%q) && (window.marked = "yes")`, f.old))
	file := filepath.Join(dir, f.page)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.WriteFile(file, text, 0o600) }()
	deadline := time.Now().Add(20 * time.Second)
	for n := 0; ; n++ { // the page may not listen for changes yet
		now := fmt.Sprintf("changed %d", n)
		if err := os.WriteFile(file, bytes.ReplaceAll(text, []byte(f.old), []byte(now)), 0o600); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Second)
		got, err := chromedp.Run(tab, chromedp.Evaluate[string](`String(window.marked) + " " + document.body.innerText`))
		if err == nil && strings.HasPrefix(got, "yes ") && strings.Contains(got, now) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the page has not changed by itself: %v %q", err, got)
		}
	}
	p.signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	h.nothingLeft()
}
