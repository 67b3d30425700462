package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the command lines in testdata/script against the real binary. Each script gets a free port in $PORT,
// another that somebody else listens on in $BUSY, and that process's id in $BUSY_PID.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Defer(func() { _ = l.Close() })
			e.Setenv("PATH", filepath.Dir(binary)+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("PORT", strconv.Itoa(freePort(t)))
			e.Setenv("BUSY", strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
			e.Setenv("BUSY_PID", strconv.Itoa(os.Getpid()))
			e.Setenv("XDG_RUNTIME_DIR", e.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exit": exits, "serve": serves},
	})
}

// exits runs a command line and wants an exit code: exit 2 quaymaster check.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND...")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var left *exec.ExitError
		if !errors.As(err, &left) {
			ts.Fatalf("%v", err)
		}
		code = left.ExitCode()
	}
	if want := args[0]; strconv.Itoa(code) != want {
		ts.Fatalf("exit code %d, want %s", code, want)
	}
}

// serves waits until the daemon on a socket serves: serve a.sock.
func serves(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve SOCKET")
	}
	for range 500 {
		if command(context.Background(), []string{"status", "--ready", "--socket", ts.MkAbs(args[0])}, io.Discard, io.Discard) == 0 {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	ts.Fatalf("nobody serves on %s", args[0])
}

func TestHelp_EveryVerbHasAnExample(t *testing.T) {
	s := &shell{}
	for _, c := range s.root().Commands() {
		list := append(c.Commands(), c)
		for _, v := range list {
			if v.Name() == "help" || v.Name() == "completion" || v.Hidden {
				continue
			}
			var out strings.Builder
			args := append(strings.Fields(v.CommandPath())[1:], "--help")
			if code := command(context.Background(), args, &out, io.Discard); code != 0 {
				t.Errorf("%v: exit %d", args, code)
			}
			text := out.String()
			if !strings.Contains(text, "Examples:\n  quaymaster "+v.Name()) && !strings.Contains(text, "Examples:\n  quaymaster "+c.Name()) {
				t.Errorf("%s has no example:\n%s", v.CommandPath(), text)
			}
			if n := strings.Count(text, "\n"); n > 40 {
				t.Errorf("the help of %s has %d lines", v.CommandPath(), n)
			}
		}
	}
}

func TestFindSocket_ReadsBrokenFilesToo(t *testing.T) {
	t.Setenv("QM_TEST_RUN", "/r")
	for text, want := range map[string]string{
		"admin: {socket: /x/a.sock}\n":                               "/x/a.sock",
		"admin:\n  mode: \"0600\"\n  socket: \"/x/b.sock\" # ours\n": "/x/b.sock",
		"admin: {socket: /x/c.sock}\nroutes: 5\nbogus: [\n":          "/x/c.sock",
		"admin:\n  socket: /x/d.sock\nroutes:\n\t- bad tab\n":        "/x/d.sock",
		"bad: [\nadmin: {mode: 1, socket: '/x/e.sock'}\n":            "/x/e.sock",
		"admin: {socket: \"${QM_TEST_RUN}/f.sock\"}\n":               "/r/f.sock",
		"admin: {socket: \"${QM_TEST_NONE:-/d}/g.sock\"}\n":          "/d/g.sock",
		"admin: {socket: rel.sock}\n":                                "DIR/rel.sock",
		"admin: {socket: 5}\nmore: {socket: /no}\n":                  "DIR/5",
		"other:\n  socket: /no\n":                                    "",
		"":                                                           "",
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "q.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("QUAYMASTER_SOCKET", "")
		t.Setenv("XDG_RUNTIME_DIR", "/run/user/none")
		got := (&shell{config: file}).findSocket()
		if want == "" {
			want = (&shell{config: filepath.Join(dir, "none.yaml")}).findSocket()
		}
		if want = strings.Replace(want, "DIR", dir, 1); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
		t.Setenv("QUAYMASTER_SOCKET", "/env.sock")
		if got := (&shell{config: file}).findSocket(); got != "/env.sock" {
			t.Errorf("the environment gave %s", got)
		}
		if got := (&shell{config: file, socket: "/flag.sock"}).findSocket(); got != "/flag.sock" {
			t.Errorf("the flag gave %s", got)
		}
	}
}

func TestTable_ForeignTextStaysInItsCell(t *testing.T) {
	var out strings.Builder
	table(&out, "NAME WHAT", [][]string{{"a", "x\x1b[2J\ny\tz"}, {"long-name", ""}})
	want := "NAME       WHAT\na          x?[2J?y?z\nlong-name  -\n"
	if out.String() != want {
		t.Errorf("%q", out.String())
	}
}

func TestExitCode_Of(t *testing.T) {
	for _, q := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {failed(nil), 0}, {fmt.Errorf("unknown flag"), 2}, {failed(fmt.Errorf("x")), 1}, {failed(&coded{4, nil}), 4},
	} {
		if got := (&shell{err: io.Discard}).told(q.err); got != q.want {
			t.Errorf("%v: %d", q.err, got)
		}
	}
}
