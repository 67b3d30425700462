//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// machine is the real program under test: the process that serves now, and those that drain after an upgrade.
type machine struct {
	binary, dir, file, sock string
	log                     *os.File
	http                    http.Client

	pid    int          // of the process that serves
	before []int        // processes that were replaced and may still drain
	group  int          // process group of all that were started by the last run
	ended  chan int     // exit code of the process that was started last
	own    map[int]bool // processes that we have started, and whose end somebody waits for
}

func newMachine(binary, dir string) (*machine, error) {
	log, err := os.Create(filepath.Join(dir, "quaymaster.log"))
	if err != nil {
		return nil, err
	}
	m := &machine{binary: binary, dir: dir, file: filepath.Join(dir, "q.yaml"), sock: filepath.Join(dir, "admin.sock"), log: log, own: map[int]bool{}}
	m.http = http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true, // a connection that waits would be a descriptor of the machine
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", m.sock)
		},
	}}
	// Processes that an upgrade leaves behind become children of ours and not of pid 1.
	return m, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// head is the part of the configuration that never changes. Silence on a mixed port goes to its raw tunnel only after a
// time in which every client has spoken.
func (m *machine) head() string {
	return fmt.Sprintf("state_dir: %s/state\nadmin: {socket: %s}\nlog: {access: {enabled: false}}\n"+
		"timeouts: {sniff: 20s, client_hello: 30s}\ndrain_timeout: 2m\n", m.dir, m.sock)
}

// write puts a configuration in the file's place.
func (m *machine) write(text string) error {
	if err := os.WriteFile(m.file+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(m.file+".new", m.file)
}

// start runs the program and returns when it serves or is degraded.
func (m *machine) start() error {
	cmd := exec.Command(m.binary, "run", "-c", m.file)
	cmd.Stdout, cmd.Stderr = m.log, m.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.pid, m.group = cmd.Process.Pid, cmd.Process.Pid
	m.own[m.pid] = true
	m.ended = make(chan int, 1)
	go func(ended chan<- int) {
		_ = cmd.Wait()
		ended <- cmd.ProcessState.ExitCode()
	}(m.ended)
	return within(time.Minute, "the machine serves", func() error {
		if m.gone(m.pid) {
			return &over{fmt.Errorf("quaymaster ended with exit code %d", <-m.ended)}
		}
		s, err := m.status()
		if err == nil && (s.PID != m.pid || s.State != "serving" && s.State != "degraded") {
			err = fmt.Errorf("pid %d is %s", s.PID, s.State)
		}
		return err
	})
}

// over is an error after which waiting is of no use.
type over struct{ error }

// within polls until f is content, or knows that it never will be.
func within(limit time.Duration, what string, f func() error) error {
	end := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if last := (*over)(nil); errors.As(err, &last) || time.Now().After(end) {
			return fmt.Errorf("waited %v for: %s: %w", limit, what, err)
		}
		pause(context.Background(), 5*time.Millisecond)
	}
}

// kill ends the serving process at once, and waits until it is gone.
func (m *machine) kill() error {
	if err := syscall.Kill(m.pid, syscall.SIGKILL); err != nil {
		return err
	}
	return within(10*time.Second, "the killed process is gone", func() error {
		if !m.gone(m.pid) {
			return fmt.Errorf("pid %d is still there", m.pid)
		}
		return nil
	})
}

// gone reports whether a process has ended, all its threads included; one that is a child of ours by adoption is reaped.
func (m *machine) gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	w := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(w) > 1 && w[0] == "Z" && w[1] == strconv.Itoa(os.Getpid()) && !m.own[pid] {
		_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
	}
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return len(w) == 0 || (w[0] == "Z" || w[0] == "X") && len(threads) <= 1
}

// killAll ends every process of the last run.
func (m *machine) killAll() {
	if m.group > 0 {
		_ = syscall.Kill(-m.group, syscall.SIGKILL)
	}
	_ = m.log.Close()
}

// cli runs a verb and returns what it printed.
func (m *machine) cli(args ...string) (string, error) {
	ctx, stop := context.WithTimeout(context.Background(), 90*time.Second)
	defer stop()
	out, err := exec.CommandContext(ctx, m.binary, append(args, "--socket", m.sock)...).CombinedOutput()
	return string(out), err
}

// A refusal is an answer of the API that is no success.
type refusal struct {
	status int
	text   string
}

func (e *refusal) Error() string { return fmt.Sprintf("%d %s", e.status, e.text) }

// api asks over the admin socket.
func (m *machine) api(method, path, match string, body []byte) ([]byte, error) {
	req, err := http.NewRequest(method, "http://quaymaster"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if match != "" {
		req.Header.Set("If-Match", match)
	}
	res, err := m.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = &refusal{res.StatusCode, string(text)}
	}
	return text, err
}

func (m *machine) get(path string, v any) error {
	b, err := m.api("GET", path, "", nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

type status struct {
	PID         int    `json:"pid"`
	State       string `json:"state"`
	Connections struct {
		Active int `json:"active"`
	} `json:"connections"`
}

func (m *machine) status() (s status, err error) { return s, m.get("/v1/status", &s) }

// held is one port as the machine tells of it.
type held struct {
	Port    int       `json:"port"`
	Wanted  string    `json:"wanted"`
	State   string    `json:"state"`
	Source  string    `json:"source"`
	Routes  []string  `json:"routes"`
	Error   string    `json:"error"`
	NextTry time.Time `json:"next_try"`
}

func (m *machine) ports() (out []held, err error) { return out, m.get("/v1/ports", &out) }

// standing counts the connections that stand on each route.
func (m *machine) standing() (map[string]int, error) {
	var all []struct{ Route string }
	if err := m.get("/v1/connections", &all); err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, c := range all {
		out[c.Route]++
	}
	return out, nil
}

// goroutines is how many the machine has.
func (m *machine) goroutines() (int, error) {
	b, err := m.api("GET", "/metrics", "", nil)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			return strconv.Atoi(strings.TrimSpace(n))
		}
	}
	return 0, errors.New("no go_goroutines in /metrics")
}

// fds are the descriptors of the machine, by what they are: a path, or socket:[INODE].
func (m *machine) fds() (out []string, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", m.pid)
	list, err := os.ReadDir(dir)
	for _, e := range list {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			out = append(out, to)
		}
	}
	return out, err
}

// rss is the resident memory in bytes.
func (m *machine) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", m.pid))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	return n * int64(os.Getpagesize())
}
