package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/apps/launch"
	"github.com/quaymaster/quaymaster/internal/config"
)

// devDaemon finds a daemon for projects: one that runs, or one of our own.
type devDaemon struct {
	s    *shell
	note func(format string, args ...any) // says why a daemon that runs is not used; once for each

	socket string // of the one that is used
	said   map[string]bool
}

const devStart = 15 * time.Second // for a daemon of ours to answer

// hold holds a leash of the first daemon that gives one, and starts one if there is none. f hears of the leash.
func (d *devDaemon) hold(ctx context.Context, note string, f func(*api.Client, string) error) error {
	if d.said == nil {
		d.said = map[string]bool{}
	}
	named := d.s.socket
	if named == "" {
		named = os.Getenv("QUAYMASTER_SOCKET")
	}
	if named != "" {
		_, err := d.try(ctx, named, note, f)
		return err
	}
	ours := devSocket()
	sockets := []string{d.s.findSocket()}
	if os.Geteuid() != 0 {
		sockets = append(sockets, "/run/quaymaster/admin.sock")
	}
	for _, socket := range sockets {
		if usable, err := d.try(ctx, socket, note, f); usable {
			return err
		}
	}
	return d.holdOwn(ctx, ours, note, f)
}

// holdOwn holds a leash of the daemon of projects, and starts it if it is not there. Another project may do the same at
// the same moment: one of the two daemons ends, since they have the same folder.
func (d *devDaemon) holdOwn(ctx context.Context, socket, note string, f func(*api.Client, string) error) error {
	var s *devStarted
	var begun time.Time
	for end := time.Now().Add(devStart); ; {
		if usable, err := d.try(ctx, socket, note, f); usable {
			return err
		}
		switch {
		case s != nil && s.over() && time.Now().After(end):
			return s.why()
		case time.Now().After(end):
			return fmt.Errorf("cannot start a daemon: it does not answer at %s; see %s", socket, s.log)
		case s == nil || s.over() && time.Since(begun) > 2*devAgain:
			if s, begun = startDevDaemon(socket), time.Now(); s.err != nil {
				return s.err
			}
		}
		if err := devPause(ctx, devAgain/10); err != nil {
			return err
		}
	}
}

// try holds a leash of one daemon. It is not usable if it cannot be reached, would not have us, or knows no leashes.
func (d *devDaemon) try(ctx context.Context, socket, note string, f func(*api.Client, string) error) (usable bool, err error) {
	c := api.NewClient(socket)
	defer c.Close()
	held := false
	err = c.Hold(ctx, note, func(id string) error {
		held = true
		d.socket = socket
		return f(c, id)
	})
	if held || ctx.Err() != nil {
		return true, err
	}
	var p *api.Problem
	switch {
	case errors.Is(err, fs.ErrPermission), errors.As(err, &p) && p.Status == http.StatusForbidden:
		d.sayOnce(socket, "the daemon at %s is another user's, so this project gets one of its own; a daemon with admin.group lets others in", socket)
	case errors.As(err, &p) && p.Status == http.StatusNotFound:
		d.sayOnce(socket, "the daemon at %s is of an older version, so this project gets one of its own; \"quaymaster upgrade\" mends that", socket)
	case errors.As(err, &p) && p.Status != http.StatusServiceUnavailable:
		return true, err
	}
	return false, err
}

func (d *devDaemon) sayOnce(socket, format string, args ...any) {
	if !d.said[socket] {
		d.said[socket] = true
		d.note(format, args...)
	}
}

// devSocket is where the daemon of projects listens.
func devSocket() string { return filepath.Join(filepath.Dir(config.DefaultSocket()), "dev.sock") }

// devState is the folder of the daemon of projects, with its local CA.
func devState() (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	home, err := os.UserHomeDir()
	switch {
	case filepath.IsAbs(dir):
	case err != nil:
		dir = filepath.Dir(config.DefaultSocket())
	default:
		dir = filepath.Join(home, ".local", "state")
	}
	dir = filepath.Join(dir, "quaymaster-dev")
	return dir, os.MkdirAll(dir, 0o700)
}

// devConfig is the configuration of the daemon of projects: a file for those who want another app_ports or the like, and
// none by default.
func devConfig() string {
	dir := os.Getenv("XDG_CONFIG_HOME")
	if home, err := os.UserHomeDir(); !filepath.IsAbs(dir) && err == nil {
		dir = filepath.Join(home, ".config")
	}
	file := filepath.Join(dir, "quaymaster", "dev.yaml")
	if _, err := os.Stat(file); dir == "" || err != nil {
		return os.DevNull
	}
	return file
}

// devStarted is a daemon that was started.
type devStarted struct {
	err  error
	pid  int
	log  string
	gone chan struct{}
}

// startDevDaemon starts a daemon that ends with the last project. It is no part of our terminal.
func startDevDaemon(socket string) *devStarted {
	s := &devStarted{gone: make(chan struct{})}
	state, err := devState()
	if err != nil {
		s.err = fmt.Errorf("cannot start a daemon: %w; set XDG_STATE_HOME to a folder that can be written", err)
		return s
	}
	s.log = filepath.Join(state, "daemon.log")
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.err = fmt.Errorf("cannot start a daemon: %w", err)
		return s
	}
	defer log.Close()
	if info, err := log.Stat(); err == nil && info.Size() > 1<<20 {
		_ = log.Truncate(0)
	}
	env := []string{"STATE_DIRECTORY=" + state}
	for _, name := range []string{"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	s.pid, s.err = launch.Start(launcherPath(), []string{"launch"}, &launch.Spec{
		Path: program(), Args: []string{"quaymaster", "run", "--leashed", "-c", devConfig(), "--socket", socket},
		Env: env, Dir: "/", In: -1, Out: -1, Err: int(log.Fd()),
	})
	if s.err != nil {
		s.err = fmt.Errorf("cannot start a daemon: %w", s.err)
		return s
	}
	go s.reap()
	return s
}

func (s *devStarted) reap() {
	defer close(s.gone)
	for {
		if _, err := syscall.Wait4(s.pid, nil, 0, nil); !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

func (s *devStarted) over() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// why is the last thing that a daemon said which did not come up.
func (s *devStarted) why() error {
	text, _ := os.ReadFile(s.log)
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return fmt.Errorf("cannot start a daemon: %s (%s)", lines[len(lines)-1], s.log)
}

// launcherPath is our own program, also when its file has been replaced since.
func launcherPath() string {
	if runtime.GOOS == "linux" || runtime.GOOS == "android" {
		return "/proc/self/exe"
	}
	return program()
}
