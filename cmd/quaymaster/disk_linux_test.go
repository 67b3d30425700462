package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onDisk gives an instance that is not running a state folder on a small disk of its own, with the options of tmpfs.
func (q *qm) onDisk(options string) string {
	q.t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "" {
			q.t.Skip("LOUD SKIP: only root can mount a disk to fill")
		}
		q.t.Fatal("only root can mount a disk to fill")
	}
	dir := q.dir + "/state"
	if err := os.Mkdir(dir, 0o700); err != nil {
		q.t.Fatal(err)
	}
	if err := unix.Mount("quaymaster-test", dir, "tmpfs", 0, options); err != nil {
		q.t.Fatalf("mount: %v", err)
	}
	q.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// remountState changes the options of the disk.
func (q *qm) remountState(flags uintptr, options string) {
	q.t.Helper()
	if err := unix.Mount("quaymaster-test", q.dir+"/state", "tmpfs", unix.MS_REMOUNT|flags, options); err != nil {
		q.t.Fatalf("remount: %v", err)
	}
}

// fillUp leaves no byte of the disk free.
func fillUp(t testing.TB, dir string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return file
}

// put sets a route by API and returns status and body of the answer.
func (q *qm) put(name, body string) (int, string) {
	q.t.Helper()
	res, b, err := q.admin("PUT", "/v1/routes/"+name, strings.NewReader(body), "If-Match", "*")
	if err != nil {
		q.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// trouble is a problem of that kind in `status`, nil when there is none.
func (q *qm) trouble(kind string) map[string]any {
	q.t.Helper()
	s := q.statusOrNil()
	if s == nil {
		q.t.Fatal("no status")
	}
	list, _ := s["problems"].([]any)
	for _, p := range list {
		if p := p.(map[string]any); p["kind"] == kind {
			if s["state"] == "serving" {
				q.t.Errorf("a problem, but the state is serving: %v", p)
			}
			return p
		}
	}
	return nil
}

// well waits until nothing is wrong with what the daemon keeps.
func (q *qm) well() {
	q.t.Helper()
	q.until("no problem of state", func() bool { return q.trouble("state") == nil })
	if s := q.statusOrNil()["state"]; s != "serving" {
		q.t.Errorf("the state is %v", s)
	}
}

func TestD02_FullDisk(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	body := "routes:\n" + fileRoute("f", p, "file.test", "file")
	q := prepare(t, body)
	dir := q.onDisk("size=128k")
	q.run()
	q.serving()
	if code, b := q.put("first", respond(p, "first.test", "first")); code != 200 {
		t.Fatalf("%d %s", code, b)
	}
	kept, err := os.ReadFile(dir + "/api.json")
	if err != nil {
		t.Fatal(err)
	}
	filler := fillUp(t, dir)
	code, b := q.put("second", respond(p, "second.test", "second"))
	if code != 409 || !strings.Contains(b, "no space left on device") || !strings.Contains(b, "df -h "+dir) {
		t.Errorf("an edit on a full disk: %d %s", code, b)
	}
	if now, err := os.ReadFile(dir + "/api.json"); err != nil || !bytes.Equal(now, kept) {
		t.Errorf("api.json is %q, %v; want what was kept", now, err)
	}
	for _, restarted := range []bool{false, true} {
		if restarted { // at the worst moment: the lock's pid cannot be trusted to be written either
			q.signal(os.Kill)
			q.wait(20 * time.Second)
			q.run()
			q.serving()
		}
		mustFetch(t, p, "file.test", "/", "file")
		mustFetch(t, p, "first.test", "/", "first")
		if status, _, err := fetch(p, "second.test", "/"); status != 404 || err != nil {
			t.Errorf("a route that could not be kept answers %d %v", status, err)
		}
		q.until("the fault is shown", func() bool { return q.trouble("state") != nil })
		pr := q.trouble("state")
		if pr["object"] != dir || !strings.Contains(fmt.Sprint(pr["message"]), "no space left") || !strings.Contains(fmt.Sprint(pr["remedy"]), "df -h") {
			t.Errorf("problem %v", pr)
		}
		if out, _ := q.cli("status"); !strings.Contains(out, "no space left") || !strings.Contains(out, "degraded") {
			t.Errorf("status says\n%s", out)
		}
		q.reload(body + fileRoute("g", p, "more.test", "more")) // what is in files needs no disk
		mustFetch(t, p, "more.test", "/", "more")
		q.reload(body)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	q.well() // by itself
	if code, b := q.put("second", respond(p, "second.test", "second")); code != 200 {
		t.Errorf("with room again: %d %s", code, b)
	}
	mustFetch(t, p, "second.test", "/", "second")
	if left, _ := filepath.Glob(dir + "/.tmp-*"); len(left) > 0 {
		t.Errorf("half-written files: %v", left)
	}
}

func TestD02_ReadOnlyDisk(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := prepare(t, "routes:\n"+fileRoute("f", p, "file.test", "file"))
	dir := q.onDisk("size=128k")
	q.run()
	q.serving()
	if code, b := q.put("first", respond(p, "first.test", "first")); code != 200 {
		t.Fatalf("%d %s", code, b)
	}
	for _, lock := range []string{"with a lock file", "without"} {
		q.signal(os.Kill)
		q.wait(20 * time.Second)
		if lock == "without" {
			if err := os.Remove(dir + "/lock"); err != nil {
				t.Fatal(err)
			}
		}
		q.remountState(unix.MS_RDONLY, "")
		q.run()
		q.serving()
		mustFetch(t, p, "file.test", "/", "file")
		mustFetch(t, p, "first.test", "/", "first")
		if pr := q.trouble("state"); pr == nil || !strings.Contains(fmt.Sprint(pr["remedy"]), "remount,rw") {
			t.Errorf("%s: problem %v", lock, pr)
		}
		if code, b := q.put("second", respond(p, "second.test", "second")); code != 409 || !strings.Contains(b, "read-only file system") {
			t.Errorf("%s: an edit: %d %s", lock, code, b)
		}
		out, code := cli(t, "run", "-c", q.file, "--socket", q.dir+"/other.sock")
		if code != 1 || !strings.Contains(out, "in use by") {
			t.Errorf("%s: a second instance: %d %s", lock, code, out)
		}
		mustFetch(t, p, "file.test", "/", "file")
		q.remountState(0, "")
		q.well()
	}
	if code, b := q.put("second", respond(p, "second.test", "second")); code != 200 {
		t.Errorf("writable again: %d %s", code, b)
	}
}

// Garbage in any file of the state folder costs what that file kept, and nothing else.
func TestD02_CorruptFiles(t *testing.T) {
	t.Parallel()
	spoil := map[string]func(t *testing.T, file string){
		"garbage": func(t *testing.T, file string) { overwrite(t, file, []byte("\x00\xff{not json")) },
		"empty":   func(t *testing.T, file string) { overwrite(t, file, nil) },
		"cut short": func(t *testing.T, file string) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, file, b[:len(b)/2])
		},
		"another type": func(t *testing.T, file string) {
			overwrite(t, file, []byte(`{"routes": 7, "leases": "x", "version": []}`))
		},
		"a folder": func(t *testing.T, file string) {
			if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
				t.Fatal(err)
			}
		},
	}
	for how, f := range spoil {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := freePort(t)
			q := start(t, "routes:\n"+fileRoute("f", p, "file.test", "file"))
			if code, b := q.put("first", respond(p, "first.test", "first")); code != 200 {
				t.Fatalf("%d %s", code, b)
			}
			q.signal(os.Kill)
			q.wait(20 * time.Second)
			files, err := os.ReadDir(q.dir + "/state")
			if err != nil || len(files) < 2 {
				t.Fatalf("the state folder holds %v, %v", files, err)
			}
			for _, e := range files {
				if e.Name() == "lock" && how == "a folder" {
					continue // who puts a folder there takes the lock away: an error, and told as one
				}
				f(t, q.dir+"/state/"+e.Name())
			}
			q.run()
			q.serving()
			mustFetch(t, p, "file.test", "/", "file")
			if pr := q.trouble("state"); pr == nil || !strings.Contains(fmt.Sprint(pr["object"]), "api.json") {
				t.Errorf("no problem names api.json: %v", q.statusOrNil()["problems"])
			}
			if _, err := os.Stat(q.dir + "/state/api-refused.json"); err != nil {
				t.Errorf("what could not be used is kept nowhere: %v", err)
			}
			if code, b := q.put("second", respond(p, "second.test", "second")); code != 200 {
				t.Errorf("an edit: %d %s", code, b)
			}
			q.well()
			q.signal(os.Kill)
			q.wait(20 * time.Second)
			q.run()
			q.serving()
			mustFetch(t, p, "second.test", "/", "second")
			q.well()
		})
	}
}

func overwrite(t testing.TB, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A layer that could not be set aside, since the disk is full, is not overwritten by the next edit.
func TestD02_RefusedLayerSurvivesAFullDisk(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := prepare(t, "routes:\n"+fileRoute("f", p, "file.test", "file"))
	dir := q.onDisk("size=128k")
	spoiled := []byte(strings.Repeat("precious ", 1000))
	overwrite(t, dir+"/api.json", spoiled)
	filler := fillUp(t, dir)
	q.run()
	q.serving()
	mustFetch(t, p, "file.test", "/", "file")
	if code, b := q.put("x", respond(p, "x.test", "x")); code != 409 || !strings.Contains(b, "no space left") {
		t.Errorf("an edit on a full disk: %d %s", code, b)
	}
	// Room for the edit alone: the layer of before still goes first.
	if err := os.Truncate(filler, max(0, sizeOf(t, filler)-4096)); err != nil {
		t.Fatal(err)
	}
	if code, b := q.put("x", respond(p, "x.test", "x")); code != 409 {
		t.Errorf("an edit that would overwrite the layer: %d %s", code, b)
	}
	if b, err := os.ReadFile(dir + "/api.json"); err != nil || !bytes.Equal(b, spoiled) {
		t.Errorf("api.json is %d bytes, %v", len(b), err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if code, b := q.put("x", respond(p, "x.test", "x")); code != 200 {
		t.Errorf("with room: %d %s", code, b)
	}
	if b, err := os.ReadFile(dir + "/api-refused.json"); err != nil || !bytes.Equal(b, spoiled) {
		t.Errorf("api-refused.json is %d bytes, %v", len(b), err)
	}
	q.well()
}

func sizeOf(t testing.TB, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// A daemon that is killed at a random moment between edits leaves the last one it answered, or the one under way, whole.
func TestD02_KilledBetweenEdits(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := prepare(t, "routes:\n"+fileRoute("f", p, "file.test", "file"))
	answered, asked := 0, 0
	for round := range 8 {
		q.run()
		q.serving()
		if answered > 0 {
			status, body, err := fetch(p, "n.test", "/")
			if err != nil || status != 200 || body != fmt.Sprint(answered) && body != fmt.Sprint(asked) {
				t.Fatalf("round %d: started with %d %q %v, want edit %d or %d", round, status, body, err, answered, asked)
			}
		}
		if pr := q.trouble("state"); pr != nil {
			t.Errorf("round %d: %v", round, pr)
		}
		over := make(chan struct{})
		go func() { // edits until the daemon is gone
			defer close(over)
			for {
				asked++
				res, _, err := q.admin("PUT", "/v1/routes/n", strings.NewReader(respond(p, "n.test", fmt.Sprint(asked))), "If-Match", "*")
				if err != nil {
					return
				}
				if res.StatusCode == http.StatusOK {
					answered = asked
				}
			}
		}()
		<-time.After(time.Duration(10+round*17) * time.Millisecond) // any moment
		q.signal(os.Kill)
		q.wait(20 * time.Second)
		<-over
		b, err := os.ReadFile(q.dir + "/state/api.json")
		if err != nil && (answered > 0 || !os.IsNotExist(err)) {
			t.Fatal(err)
		}
		if err == nil && !json.Valid(b) {
			t.Fatalf("round %d: half-written: %q", round, b)
		}
	}
	if answered < 8 {
		t.Errorf("only %d edits in 8 rounds", answered)
	}
}
